"""Attention of CoAtNet (over the whole map) and of MaxViT (in windows, and on a grid that spans the map)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.layers.drop import DropPath
from opsin.layers.layer_scale import LayerScale, LayerScale2d
from opsin.layers.mlp import Mlp
from opsin.layers.norm import get_norm_layer
from opsin.layers.patch_embed import to_2tuple
from opsin.layers.pos_embed import resize_rel_pos_bias_table
from opsin.layers.rel_pos_bias import RelPosBias, RelPosMlp
from opsin.models._maxxvit import Config, ConvNeXtBlock, Downsample2d, MbConvBlock, choose

__all__ = [
    "MaxxVitBlock",
    "ParallelMaxxVitBlock",
    "RelPosBiasTf",
    "TransformerBlock2d",
    "make_block",
    "partition_sizes",
]

Size = tuple[int, int]


class RelPosBiasTf(nn.Module):
    """Position biases as the original code of MaxViT keeps them: a table (heads, 2h - 1, 2w - 1)."""

    height_lookup: Tensor
    width_lookup: Tensor

    def __init__(self, window_size: Size, num_heads: int) -> None:
        super().__init__()
        self.window_size = window_size
        height, width = window_size
        self.relative_position_bias_table = nn.Parameter(torch.empty(num_heads, 2 * height - 1, 2 * width - 1))
        self.register_buffer("height_lookup", None, persistent=False)
        self.register_buffer("width_lookup", None, persistent=False)
        self.reset_buffers()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.relative_position_bias_table, std=0.02)

    def reset_buffers(self) -> None:
        """Compute again for each pair of rows, and of columns, where in the table its offset stands."""
        device = self.relative_position_bias_table.device
        steps = [torch.arange(side, device=device) for side in self.window_size]
        self.height_lookup, self.width_lookup = (step - step[:, None] + len(step) - 1 for step in steps)

    @torch.no_grad()
    def set_window_size(self, window_size: Size) -> None:
        """Another window (height, width): the biases are resampled."""
        if window_size == self.window_size:
            return
        table = self.relative_position_bias_table
        self.window_size = window_size
        new = resize_rel_pos_bias_table(table, window_size, interpolation="geometric")
        self.relative_position_bias_table = nn.Parameter(new, requires_grad=table.requires_grad)
        self.reset_buffers()

    def forward(self) -> Tensor:
        """(1, heads, N, N)."""
        rows, columns = self.height_lookup[:, None, :, None], self.width_lookup[None, :, None, :]
        return self.relative_position_bias_table[:, rows, columns].flatten(3).flatten(1, 2)[None]


def make_rel_pos(c: Config, window_size: Size, num_heads: int) -> nn.Module | None:
    """Position biases of the kind that the config names, None for ""."""
    kind = c.transformer_rel_pos_type
    if kind == "mlp":
        return RelPosMlp(window_size, num_heads, hidden_dim=c.transformer_rel_pos_dim)
    make = choose(
        kind, {"bias": RelPosBias, "bias_tf": RelPosBiasTf, "mlp": None, "": None}, "transformer_rel_pos_type"
    )
    return make and make(window_size, num_heads)


class Attention(nn.Module):
    """Self-attention over tokens `(B, N, dim)` of a window, row by row; with `conv` over maps `(B, dim, H, W)`.

    `qkv` holds q, k and v of one head after the other, or without `head_first` q of all heads, then k, then v.
    """

    rel_pos: Any

    def __init__(
        self, c: Config, dim: int, out_dim: int, window_size: Size, *, head_first: bool, conv: bool = False
    ) -> None:
        super().__init__()
        width = max(dim, out_dim) if c.transformer_expand_first else dim
        if width % c.transformer_dim_head:
            raise ValueError(f"transformer_dim_head={c.transformer_dim_head} does not divide a width of {width}")
        self.num_heads, self.head_first, self.conv = width // c.transformer_dim_head, head_first, conv
        dense: Any = (lambda i, o, bias: nn.Conv2d(i, o, 1, bias=bias)) if conv else nn.Linear
        self.qkv = dense(dim, 3 * width, bias=c.transformer_attn_bias)
        self.rel_pos = make_rel_pos(c, window_size, self.num_heads)
        self.attn_drop = nn.Dropout(c.transformer_attn_drop)
        self.proj = dense(width, out_dim, bias=c.transformer_attn_bias)
        self.proj_drop = nn.Dropout(c.transformer_proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        qkv = self.qkv(x)
        if self.conv:
            qkv = qkv.flatten(2).transpose(1, 2)
        if self.head_first:
            q, k, v = qkv.unflatten(-1, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4).unbind(0)
        else:
            q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        bias = None if self.rel_pos is None else self.rel_pos()
        x = F.scaled_dot_product_attention(q, k, v, bias, self.attn_drop.p if self.training else 0.0)
        x = x.transpose(1, 2).flatten(2)
        if self.conv:
            x = x.transpose(1, 2).unflatten(2, size)
        return self.proj_drop(self.proj(x))


def partition(x: Tensor, size: Size, grid: bool) -> Tensor:
    """`(B, H, W, C)` to `(B * windows, h * w, C)`: neighbours make a window, or with `grid` places far apart."""
    batch, height, width, dim = x.shape
    if height % size[0] or width % size[1]:
        raise ValueError(
            f"a map of {height}x{width} cannot be cut into windows of {size[0]}x{size[1]}: resize the images, or call "
            "model.set_input_size with their size"
        )
    rows, columns = height // size[0], width // size[1]
    if grid:
        x = x.reshape(batch, size[0], rows, size[1], columns, dim).permute(0, 2, 4, 1, 3, 5)
    else:
        x = x.reshape(batch, rows, size[0], columns, size[1], dim).transpose(2, 3)
    return x.reshape(-1, size[0] * size[1], dim)


def departition(x: Tensor, size: Size, height: int, width: int, grid: bool) -> Tensor:
    """`(B * windows, h * w, C)` back to `(B, height, width, C)`."""
    x = x.reshape(-1, height // size[0], width // size[1], size[0], size[1], x.shape[-1])
    x = x.permute(0, 3, 1, 4, 2, 5) if grid else x.transpose(2, 3)
    return x.reshape(-1, height, width, x.shape[-1])


def attend_parts(attn: Attention, x: Tensor, size: Size, grid: bool) -> Tensor:
    """Attention in the windows of `size` of `(B, H, W, C)`, or in the places of the grid."""
    parts = partition(x, size, grid)
    if attn.conv:
        parts = attn(parts.transpose(1, 2).unflatten(2, size)).flatten(2).transpose(1, 2)
    else:
        parts = attn(parts)
    return departition(parts, size, x.shape[1], x.shape[2], grid)


def partition_sizes(c: Config) -> tuple[Size, Size]:
    """(height, width) of windows and of grids."""
    size = to_2tuple(c.img_size)
    ratio = c.transformer_partition_ratio
    whole = (size[0] // ratio, size[1] // ratio)
    window, grid = (to_2tuple(s) if s else whole for s in (c.transformer_window_size, c.transformer_grid_size))
    if min(*window, *grid) < 1:
        raise ValueError(f"images of {size[0]}x{size[1]} give no window: they need {ratio} pixels on each side")
    return window, grid


class ResidualParts(nn.Module):
    """Base of the attention blocks: `x + attention(norm1(x))`, then `x + mlp(norm2(x))`.

    A block makes `norm1`, what attends, then the rest by `build_rest`, and defines `branch(x)`, its first branch.
    """

    def build_rest(self, c: Config, dim: int, norm: Any, drop_path: float, maps: bool) -> None:
        init = c.transformer_init_values
        kind = LayerScale2d if maps else LayerScale
        self.ls1 = kind(dim, init) if init else nn.Identity()
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = norm(dim)
        drop = c.transformer_proj_drop
        self.mlp = Mlp(
            dim, int(dim * c.transformer_expand_ratio), act_layer=c.transformer_act_layer, use_conv=maps,
            drop=(drop, 0.0) if maps else drop,
        )  # fmt: skip
        self.ls2 = kind(dim, init) if init else nn.Identity()
        self.drop_path2 = DropPath(drop_path)

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define branch")

    def shorten(self, x: Tensor) -> Tensor:
        """What the first branch is added to."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.shorten(x) + self.drop_path1(self.ls1(self.branch(x)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class PartitionAttention(ResidualParts):
    """Attention in windows or on a grid, and MLP: on `(B, H, W, dim)`, or `(B, dim, H, W)` by the config."""

    def __init__(self, c: Config, dim: int, *, grid: bool, drop_path: float = 0.0) -> None:
        super().__init__()
        self.grid, self.maps = grid, c.transformer_use_nchw_attn
        self.partition_size = partition_sizes(c)[grid]
        layer = c.transformer_norm_layer if self.maps else c.transformer_norm_layer_cl
        norm = get_norm_layer(layer, eps=c.transformer_norm_eps)
        self.norm1 = norm(dim)
        self.attn = Attention(c, dim, dim, self.partition_size, head_first=c.transformer_head_first, conv=self.maps)
        self.build_rest(c, dim, norm, drop_path, self.maps)

    def branch(self, x: Tensor) -> Tensor:
        x = self.norm1(x)
        if not self.maps:
            return attend_parts(self.attn, x, self.partition_size, self.grid)
        return attend_parts(self.attn, x.permute(0, 2, 3, 1), self.partition_size, self.grid).permute(0, 3, 1, 2)

    def set_sizes(self, window: Size, grid: Size) -> None:
        self.partition_size = grid if self.grid else window
        resize_rel_pos(self.attn, self.partition_size)


class ParallelPartitionAttention(ResidualParts):
    """Attention in windows and on a grid side by side, half of the width from each, and MLP; `(B, H, W, dim)`."""

    def __init__(self, c: Config, dim: int, *, drop_path: float = 0.0) -> None:
        super().__init__()
        norm = get_norm_layer(c.transformer_norm_layer_cl, eps=c.transformer_norm_eps)
        self.window_size, self.grid_size = partition_sizes(c)
        self.norm1 = norm(dim)
        self.attn_block = Attention(c, dim, dim // 2, self.window_size, head_first=c.transformer_head_first)
        self.attn_grid = Attention(c, dim, dim // 2, self.grid_size, head_first=c.transformer_head_first)
        self.build_rest(c, dim, norm, drop_path, maps=False)

    def branch(self, x: Tensor) -> Tensor:
        x = self.norm1(x)
        block = attend_parts(self.attn_block, x, self.window_size, grid=False)
        return torch.cat((block, attend_parts(self.attn_grid, x, self.grid_size, grid=True)), -1)

    def set_sizes(self, window: Size, grid: Size) -> None:
        self.window_size, self.grid_size = window, grid
        resize_rel_pos(self.attn_block, window)
        resize_rel_pos(self.attn_grid, grid)


def resize_rel_pos(attn: Attention, size: Size) -> None:
    if attn.rel_pos is not None:
        attn.rel_pos.set_window_size(size)


class TransformerBlock2d(ResidualParts):
    """Attention over the whole map `(B, dim, H, W)` and MLP; `stride` 2 halves the map in front of attention."""

    def __init__(
        self, c: Config, dim: int, out_dim: int, stride: int = 1, drop_path: float = 0.0, *, feat_size: Size
    ) -> None:
        super().__init__()
        norm = get_norm_layer(c.transformer_norm_layer, eps=c.transformer_norm_eps)
        self.shortcut: nn.Module = nn.Identity()
        self.norm1 = norm(dim)
        if stride > 1:
            pool = c.transformer_pool_type
            self.shortcut = Downsample2d(dim, out_dim, pool, bias=c.transformer_shortcut_bias)
            self.norm1 = nn.Sequential()
            self.norm1.add_module("norm", norm(dim))
            self.norm1.add_module("down", Downsample2d(dim, dim, pool))
        self.feat_size = feat_size
        self.attn = Attention(c, dim, out_dim, feat_size, head_first=True, conv=True)
        self.build_rest(c, out_dim, norm, drop_path, maps=True)

    def shorten(self, x: Tensor) -> Tensor:
        return self.shortcut(x)

    def branch(self, x: Tensor) -> Tensor:
        x = self.norm1(x)
        if self.attn.rel_pos is not None and (x.shape[2], x.shape[3]) != self.feat_size:
            height, width = self.feat_size
            raise ValueError(
                f"the position biases are for maps of {height}x{width}, not {x.shape[2]}x{x.shape[3]}: resize the "
                "images, or call model.set_input_size with their size"
            )
        return self.attn(x)


class MaxxVitBlock(nn.Module):
    """Convolution, attention in windows, attention on a grid; `(B, C, H, W)`."""

    def __init__(self, c: Config, dim: int, out_dim: int, stride: int = 1, drop_path: float = 0.0) -> None:
        super().__init__()
        self.maps = c.transformer_use_nchw_attn
        self.conv = conv_block(c)(c, dim, out_dim, stride, drop_path)
        windows = not c.transformer_no_block_attn
        self.attn_block = PartitionAttention(c, out_dim, grid=False, drop_path=drop_path) if windows else None
        self.attn_grid = PartitionAttention(c, out_dim, grid=True, drop_path=drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if not self.maps:
            x = x.permute(0, 2, 3, 1)
        if self.attn_block is not None:
            x = self.attn_block(x)
        x = self.attn_grid(x)
        return x if self.maps else x.permute(0, 3, 1, 2)


class ParallelMaxxVitBlock(nn.Module):
    """Two convolution blocks, then attention in windows and on a grid side by side; `(B, C, H, W)`."""

    def __init__(self, c: Config, dim: int, out_dim: int, stride: int = 1, drop_path: float = 0.0) -> None:
        super().__init__()
        make = conv_block(c)
        self.conv = nn.Sequential(make(c, dim, out_dim, stride, drop_path), make(c, out_dim, out_dim, 1, drop_path))
        self.attn = ParallelPartitionAttention(c, out_dim, drop_path=drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def conv_block(c: Config) -> Any:
    return choose(c.conv_block_type, {"mbconv": MbConvBlock, "convnext": ConvNeXtBlock}, "conv_block_type")


def make_block(
    kind: str, c: Config, dim: int, out_dim: int, stride: int, drop_path: float, feat_size: Size
) -> nn.Module:
    """A block by its letter; `feat_size` is the map that leaves it."""
    if kind == "T":
        return TransformerBlock2d(c, dim, out_dim, stride, drop_path, feat_size=feat_size)
    make = choose(kind, {"C": conv_block(c), "T": None, "M": MaxxVitBlock, "PM": ParallelMaxxVitBlock}, "block_type")
    return make(c, dim, out_dim, stride, drop_path)
