"""Self-attention over all positions of a map, with relative positions (BoTNet, https://arxiv.org/abs/2101.11605)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.layers.divisible import make_divisible
from opsin.layers.pool import avg_pool_down

__all__ = ["BottleneckAttn", "PosEmbedRel", "head_widths"]


def head_widths(dim: int, num_heads: int, dim_head: int | None, qk_ratio: float) -> tuple[int, int]:
    """Channels per head of queries and keys, and of values."""
    if dim % num_heads:
        raise ValueError(f"{dim} channels cannot be split into num_heads={num_heads} heads")
    return dim_head or make_divisible(dim * qk_ratio) // num_heads, dim // num_heads


class PosEmbedRel(nn.Module):
    """What a query says of where a key lies: a learned vector for each distance in height and for each in width.

    `size` is (height, width) of the window with the keys; queries stand on its first rows and columns.
    """

    def __init__(self, size: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.height_rel = nn.Parameter(torch.empty(2 * size[0] - 1, dim))
        self.width_rel = nn.Parameter(torch.empty(2 * size[1] - 1, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for table in (self.height_rel, self.width_rel):
            nn.init.normal_(table, std=table.shape[1] ** -0.5)

    def forward(self, q: Tensor) -> Tensor:
        """Queries (B, heads, H, W, dim) to scores (B, heads, H * W, keys)."""
        rows = _by_offset(self.height_rel, q.shape[2])
        columns = _by_offset(self.width_rel, q.shape[3])
        vertical = torch.einsum("bnhwd,hdk->bnhwk", q, rows)
        horizontal = torch.einsum("bnhwd,wdk->bnhwk", q, columns)
        return (vertical[..., :, None] + horizontal[..., None, :]).flatten(4).flatten(2, 3)


def _by_offset(table: Tensor, queries: int) -> Tensor:
    """(queries, dim, keys): for query i and key k the row of the distance k - i; distance 0 is in the middle."""
    keys = (len(table) + 1) // 2
    return table.unfold(0, keys, 1)[keys - queries :].flip(0)


class BottleneckAttn(nn.Module):
    """`(B, dim, H, W)` to the same, or with `stride=2` to half the size; H and W are those of `feat_size`.

    Args:
        dim_head: channels per head of queries and keys; by default `qk_ratio` of `dim`, shared out.
        scale_pos_embed: scale the scores of positions as well as those of contents.
    """

    def __init__(
        self, dim: int, *, feat_size: tuple[int, int] | None = None, stride: int = 1, num_heads: int = 4,
        dim_head: int | None = None, qk_ratio: float = 1.0, qkv_bias: bool = False, scale_pos_embed: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if feat_size is None:
            raise ValueError("bottleneck attention learns positions for one size of the map: give img_size")
        self.feat_size, self.num_heads, self.scale_pos_embed = feat_size, num_heads, scale_pos_embed
        self.dim_qk, self.dim_v = head_widths(dim, num_heads, dim_head, qk_ratio)
        self.qkv = nn.Conv2d(dim, num_heads * (2 * self.dim_qk + self.dim_v), 1, bias=qkv_bias)
        self.pos_embed = PosEmbedRel(feat_size, self.dim_qk)
        self.pool = avg_pool_down(stride)

    def forward(self, x: Tensor) -> Tensor:
        size = (x.shape[-2], x.shape[-1])
        if size != self.feat_size:
            raise ValueError(
                f"bottleneck attention was built for maps of {self.feat_size}, got {size}: build the model with the "
                "img_size of these images"
            )
        widths = [self.num_heads * w for w in (self.dim_qk, self.dim_qk, self.dim_v)]
        parts = [part.unflatten(1, (self.num_heads, -1)) for part in self.qkv(x).split(widths, 1)]
        q, k, v = (part.permute(0, 1, 3, 4, 2) for part in parts)  # (B, heads, H, W, D)
        scale = self.dim_qk**-0.5
        bias = self.pos_embed(q) * (scale if self.scale_pos_embed else 1.0)
        q, k, v = (part.flatten(2, 3) for part in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, bias, scale=scale)
        return self.pool(y.transpose(2, 3).reshape(len(x), -1, *size))
