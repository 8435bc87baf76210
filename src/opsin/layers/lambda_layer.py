"""The lambda layer: each query is answered by a linear function made of its context (https://arxiv.org/abs/2102.08602)."""

from typing import Any

import torch
from torch import Tensor, nn

from opsin.layers.bottleneck_attn import head_widths
from opsin.layers.pool import avg_pool_down
from opsin.layers.rel_pos_bias import relative_position_index

__all__ = ["LambdaLayer"]


class PlaneConv(nn.Conv3d):
    """Kernels over height and width alone, which take the memory formats of two-dimensional ones (channels last)."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return super()._apply(lambda x: fn(x.squeeze(-1)).unsqueeze(-1) if x.ndim == 5 else fn(x), recurse)


class LambdaLayer(nn.Module):
    """`(B, dim, H, W)` to the same, or with `stride=2` to half the size.

    Args:
        r: how far positions are told apart, as the side of a window; None for the whole map, of `feat_size` then.
        dim_head: channels of queries and keys; by default `qk_ratio` of `dim`, shared out.
    """

    rel_pos_indices: Tensor

    def __init__(
        self, dim: int, *, feat_size: tuple[int, int] | None = None, stride: int = 1, num_heads: int = 4,
        dim_head: int | None = 16, r: int | None = 9, qk_ratio: float = 1.0, qkv_bias: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_heads = num_heads
        self.dim_qk, self.dim_v = head_widths(dim, num_heads, dim_head, qk_ratio)
        self.qkv = nn.Conv2d(dim, (num_heads + 1) * self.dim_qk + self.dim_v, 1, bias=qkv_bias)
        self.norm_q = nn.BatchNorm2d(num_heads * self.dim_qk)
        self.norm_v = nn.BatchNorm2d(self.dim_v)
        if r is not None:
            self.conv_lambda = PlaneConv(1, self.dim_qk, (r, r, 1), padding=(r // 2, r // 2, 0))
        elif feat_size is None:
            raise ValueError("a lambda layer with r=None learns positions for one size of the map: give img_size")
        else:
            self.feat_size = feat_size
            self.pos_emb = nn.Parameter(torch.empty(2 * feat_size[0] - 1, 2 * feat_size[1] - 1, self.dim_qk))
            self.register_buffer("rel_pos_indices", relative_position_index(feat_size).T, persistent=False)
            self.reset_parameters()
        self.pool = avg_pool_down(stride)

    def reset_parameters(self) -> None:
        if hasattr(self, "pos_emb"):
            nn.init.normal_(self.pos_emb, std=0.02)

    def reset_buffers(self) -> None:
        """Compute the index again."""
        if hasattr(self, "pos_emb"):
            self.rel_pos_indices = relative_position_index(self.feat_size).T.to(self.pos_emb.device)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        q, k, v = self.qkv(x).split([self.num_heads * self.dim_qk, self.dim_qk, self.dim_v], 1)
        q = self.norm_q(q).flatten(2).unflatten(1, (self.num_heads, -1))  # (B, heads, K, N)
        v = self.norm_v(v)
        content = k.flatten(2).softmax(-1) @ v.flatten(2).transpose(1, 2)  # (B, K, V)
        y = torch.einsum("bhkn,bkv->bhvn", q, content)
        y = y + torch.einsum("bhkn,bknv->bhvn", q, self.positions(v))
        return self.pool(y.reshape(len(x), -1, height, width))

    def positions(self, v: Tensor) -> Tensor:
        """For each position what its surroundings say (B, K, N, V), from values (B, V, H, W)."""
        if hasattr(self, "conv_lambda"):
            return self.conv_lambda(v.permute(0, 2, 3, 1).unsqueeze(1)).flatten(2, 3)
        if v.shape[-2:] != self.feat_size:
            raise ValueError(
                f"the lambda layer was built for maps of {self.feat_size}, got {tuple(v.shape[-2:])}: build the model "
                "with the img_size of these images"
            )
        embed = self.pos_emb.flatten(0, 1)[self.rel_pos_indices]  # (N, M, K)
        return torch.einsum("nmk,bvm->bknv", embed, v.flatten(2))
