"""Multi-head self-attention, plain and differential (https://arxiv.org/abs/2410.05258)."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.layers.norm import RmsNorm, get_norm_layer

__all__ = ["Attention", "DiffAttention", "DiffLambda", "add_bias", "mask_args", "split_heads"]

Layer = str | Callable[..., nn.Module]


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """`(B, N, heads * D)` to `(B, heads, N, D)`."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def mask_args(attn_mask: Tensor | None, is_causal: bool) -> dict[str, Any]:
    """Keywords for attention, named only when used: parts that users bring may take just `x`."""
    return {} if attn_mask is None and not is_causal else {"attn_mask": attn_mask, "is_causal": is_causal}


def add_bias(bias: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
    """A bias of the scores and a mask (bool, or to be added) as one mask."""
    if is_causal:
        attn_mask = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).tril()
    if attn_mask is None:
        return bias
    return bias.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else bias + attn_mask


def _head_dim(dim: int, num_heads: int) -> int:
    if dim % num_heads:
        raise ValueError(f"dim={dim} cannot be split into num_heads={num_heads} heads of equal width")
    return dim // num_heads


class Attention(nn.Module):
    """Self-attention over `(B, N, dim)`.

    `fused_attn` (on) goes through torch's fused kernel; switched off, the weights of attention exist, and pass through
    the module `attn_drop`, where a hook sees them.

    Args:
        attn_head_dim: width of a head; None for dim / num_heads. dim_out: width of the output; None for dim.
        qk_norm: `norm_layer` on queries and keys, per head. scale_norm: `norm_layer` before the output projection.
        attn_drop, proj_drop: dropout on the attention weights and after the projection.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        attn_head_dim: int | None = None,
        dim_out: int | None = None,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: Layer | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, attn_head_dim or _head_dim(dim, num_heads)
        self.attn_dim = self.num_heads * self.head_dim
        self.scale, self.fused_attn = self.head_dim**-0.5, True
        norm = get_norm_layer(norm_layer or "layernorm")
        self.qkv = nn.Linear(dim, 3 * self.attn_dim, bias=qkv_bias)
        self.q_norm = norm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = norm(self.head_dim) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = norm(self.attn_dim) if scale_norm else nn.Identity()
        self.proj = nn.Linear(self.attn_dim, dim_out or dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        batch, count, _ = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused_attn:
            drop = self.attn_drop.p if self.training else 0.0
            x = F.scaled_dot_product_attention(q, k, v, attn_mask, drop, is_causal, scale=self.scale)
        else:
            scores = add_bias((q * self.scale) @ k.transpose(-2, -1), attn_mask, is_causal)
            x = self.attn_drop(scores.softmax(-1)) @ v
        x = x.transpose(1, 2).reshape(batch, count, self.attn_dim)
        return self.proj_drop(self.proj(self.norm(x)))


class DiffLambda(nn.Module):
    """Base of differential attention: two half-wide maps per head, the second taken off with a learned weight.

    Holds what the difference is made of (`lambda_*`, `sub_norm`) and computes it. `depth` is the index of the block:
    deeper ones start with more weight on the second map.
    """

    q_norm: nn.Module
    k_norm: nn.Module
    sub_norm: nn.Module

    def init_difference(self, dim: int, num_heads: int, depth: int) -> None:
        width = _head_dim(dim, num_heads)
        if width % 2:
            raise ValueError(f"differential attention halves its heads, and {width} (dim / num_heads) is odd")
        self.num_heads, self.head_dim = num_heads, width // 2
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * depth)
        self.lambda_q1 = nn.Parameter(torch.empty(self.head_dim))
        self.lambda_k1 = nn.Parameter(torch.empty(self.head_dim))
        self.lambda_q2 = nn.Parameter(torch.empty(self.head_dim))
        self.lambda_k2 = nn.Parameter(torch.empty(self.head_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for vector in (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2):
            nn.init.normal_(vector, std=0.1)

    def difference(
        self, q: Tensor, k: Tensor, v: Tensor, drop: float, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor:
        """From `(B, N, dim)` each to `(B, N, dim)`."""
        q = self.q_norm(split_heads(q, 2 * self.num_heads))
        k = self.k_norm(split_heads(k, 2 * self.num_heads))
        v = split_heads(v, self.num_heads)
        first = F.scaled_dot_product_attention(q[:, 0::2], k[:, 0::2], v, attn_mask, drop, is_causal)
        second = F.scaled_dot_product_attention(q[:, 1::2], k[:, 1::2], v, attn_mask, drop, is_causal)
        x = self.sub_norm(first - self.second_weight().to(first.dtype) * second) * (1 - self.lambda_init)
        return x.transpose(1, 2).flatten(2)

    def second_weight(self) -> Tensor:
        """The weight of the second map."""
        first = torch.exp((self.lambda_q1 * self.lambda_k1).float().sum())
        second = torch.exp((self.lambda_q2 * self.lambda_k2).float().sum())
        return first - second + self.lambda_init


class DiffAttention(DiffLambda):
    """Differential self-attention over `(B, N, dim)`. Arguments as in `Attention`, and `depth`, the block's index."""

    def __init__(
        self, dim: int, num_heads: int = 8, qkv_bias: bool = False, qk_norm: bool = False, scale_norm: bool = False,
        proj_bias: bool = True, attn_drop: float = 0.0, proj_drop: float = 0.0, norm_layer: Layer | None = None,
        depth: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        norm = get_norm_layer(norm_layer or "rmsnorm")
        self.init_difference(dim, num_heads, depth)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.q_norm = norm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = norm(self.head_dim) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = norm(dim) if scale_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)
        self.sub_norm = RmsNorm(2 * self.head_dim, eps=1e-5)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        x = self.difference(q, k, v, self.attn_drop.p if self.training else 0.0, attn_mask, is_causal)
        return self.proj_drop(self.proj(self.norm(x)))
