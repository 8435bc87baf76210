"""Attention pooling: a learned query reads the sequence (multi-head attention pooling of https://arxiv.org/abs/2106.04560)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.layers.attention import split_heads
from opsin.layers.mlp import Mlp
from opsin.layers.norm import get_norm_layer
from opsin.layers.weight_init import trunc_normal_

__all__ = ["AttentionPoolLatent"]

Layer = str | Callable[..., nn.Module]


class AttentionPoolLatent(nn.Module):
    """`(B, N, C)` to `(B, C)`: attention from `latent_len` learned queries, then a residual MLP.

    `pool_type`: "token" gives the first query's answer, "avg" their mean, "" all of them `(B, latent_len, C)`.
    """

    def __init__(
        self,
        in_features: int,
        *,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        latent_len: int = 1,
        pool_type: str = "token",
        norm_layer: Layer | None = None,
        act_layer: Layer = nn.GELU,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        if in_features % num_heads or pool_type not in ("", "token", "avg"):
            raise ValueError(f"in_features={in_features}, num_heads={num_heads}, pool_type={pool_type!r} do not fit")
        self.num_heads, self.pool_type = num_heads, pool_type
        head_norm = get_norm_layer(norm_layer or "layernorm")
        head_dim = in_features // num_heads
        self.latent = nn.Parameter(torch.empty(1, latent_len, in_features))
        self.q = nn.Linear(in_features, in_features, bias=qkv_bias)
        self.kv = nn.Linear(in_features, 2 * in_features, bias=qkv_bias)
        self.q_norm = head_norm(head_dim) if qk_norm else nn.Identity()
        self.k_norm = head_norm(head_dim) if qk_norm else nn.Identity()
        self.proj = nn.Linear(in_features, in_features)
        self.proj_drop = nn.Dropout(drop)
        self.norm = get_norm_layer(norm_layer)(in_features) if norm_layer else nn.Identity()
        self.mlp = Mlp(in_features, int(in_features * mlp_ratio), act_layer=act_layer)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        trunc_normal_(self.latent, std=self.latent.shape[-1] ** -0.5)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        q = split_heads(self.q(self.latent.expand(len(x), -1, -1)), self.num_heads)
        k, v = (split_heads(part, self.num_heads) for part in self.kv(x).chunk(2, -1))
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, attn_mask)
        x = self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))
        x = x + self.mlp(self.norm(x))
        return x[:, 0] if self.pool_type == "token" else x.mean(1) if self.pool_type == "avg" else x
