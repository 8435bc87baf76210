"""Self-attention in blocks that look a little over their borders (HaloNet, https://arxiv.org/abs/2103.12731)."""

import torch.nn.functional as F
from torch import Tensor, nn

from opsin.layers.bottleneck_attn import PosEmbedRel, head_widths
from opsin.layers.pool import avg_pool_down

__all__ = ["HaloAttn"]


class HaloAttn(nn.Module):
    """`(B, dim, H, W)` to the same, or with `stride=2` to half the size.

    The map is cut into blocks; the queries of one see its keys and those around it, `halo_size` wide. Beyond the
    borders keys and values are zero, also where H and W are no multiples of `block_size`.

    Args:
        dim_head: channels per head of queries and keys; by default `qk_ratio` of `dim`, shared out.
        avg_down: stride by averaging the output, not by leaving out queries; always where blocks have an odd size.
        scale_pos_embed: scale the scores of positions as well as those of contents.
    """

    def __init__(
        self, dim: int, *, stride: int = 1, num_heads: int = 8, dim_head: int | None = None, block_size: int = 8,
        halo_size: int = 3, qk_ratio: float = 1.0, qkv_bias: bool = False, avg_down: bool = False,
        scale_pos_embed: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        avg_down = avg_down or block_size % stride != 0
        self.num_heads, self.block_size, self.halo_size = num_heads, block_size, halo_size
        self.scale_pos_embed = scale_pos_embed
        self.query_stride = 1 if avg_down else stride
        self.dim_qk, self.dim_v = head_widths(dim, num_heads, dim_head, qk_ratio)
        window = block_size + 2 * halo_size
        self.q = nn.Conv2d(dim, num_heads * self.dim_qk, 1, self.query_stride, bias=qkv_bias)
        self.kv = nn.Conv2d(dim, num_heads * (self.dim_qk + self.dim_v), 1, bias=qkv_bias)
        self.pos_embed = PosEmbedRel((window, window), self.dim_qk)
        self.pool = avg_pool_down(stride if avg_down else 1)

    def forward(self, x: Tensor) -> Tensor:
        size, halo, step = self.block_size, self.halo_size, self.query_stride
        height, width = x.shape[-2:]
        right, below = -width % size, -height % size
        q, kv = self.q(x), self.kv(x)
        out_size = (q.shape[-2], q.shape[-1])
        q = F.pad(q, (0, (width + right) // step - out_size[1], 0, (height + below) // step - out_size[0]))
        kv = F.pad(kv, (halo, halo + right, halo, halo + below))

        # (B, rows, columns, heads, h, w, D): blocks of queries, windows of keys and values
        side = size // step
        q = q.unflatten(3, (-1, side)).unflatten(2, (-1, side)).unflatten(1, (self.num_heads, -1))
        q = q.permute(0, 3, 5, 1, 4, 6, 2)
        grid = q.shape[:3]
        window = size + 2 * halo
        kv = kv.unfold(2, window, size).unfold(3, window, size).unflatten(1, (self.num_heads, -1))
        k, v = kv.permute(0, 3, 4, 1, 5, 6, 2).flatten(0, 2).flatten(2, 3).split([self.dim_qk, self.dim_v], -1)

        q = q.flatten(0, 2)
        scale = self.dim_qk**-0.5
        bias = self.pos_embed(q) * (scale if self.scale_pos_embed else 1.0)
        y = F.scaled_dot_product_attention(q.flatten(2, 3), k, v, bias, scale=scale)

        y = y.unflatten(2, (side, side)).unflatten(0, grid)  # (B, rows, columns, heads, h, w, D)
        y = y.permute(0, 3, 6, 1, 4, 2, 5).flatten(5, 6).flatten(3, 4).flatten(1, 2)
        return self.pool(y[..., : out_size[0], : out_size[1]])
