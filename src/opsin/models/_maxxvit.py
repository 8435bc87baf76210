"""What CoAtNet, MaxViT and MaxxViT are made of: their config, and the convolution blocks (MBConv, ConvNeXt)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, did_you_mean
from opsin.layers.channel_attn import create_attn, make_divisible
from opsin.layers.conv import create_conv2d, pad_same
from opsin.layers.drop import DropPath
from opsin.layers.layer_scale import LayerScale2d
from opsin.layers.mlp import Mlp
from opsin.layers.norm import get_norm_layer
from opsin.layers.norm_act import get_norm_act_layer
from opsin.layers.pool import MaxPool2dSame
from opsin.models._config import ModelConfig

__all__ = ["Config", "ConvNeXtBlock", "Downsample2d", "MbConvBlock", "Stem", "choose"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """`embed_dim`, `depths` and `block_type` are per stage; `conv_…` and `transformer_…` are the figures of blocks."""

    img_size: int | tuple[int, int] = 224
    drop_path_rate: float = 0.0
    embed_dim: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 3, 5, 2)
    # C: convolution, T: transformer over the whole map, M: convolution, then attention in windows and on a grid,
    # PM: the same with both attentions side by side. Several for a stage: block by block, the last to its end.
    block_type: tuple[str | tuple[str, ...], ...] = ("C", "C", "T", "T")
    stem_width: int | tuple[int, int] = 64
    stem_bias: bool = False
    head_hidden_size: int | None = None  # a hidden layer in the head; the closing norm is then behind the pool
    weight_init: str = "vit_eff"  # vit_eff (as ViT and EfficientNet), normal, trunc_normal or xavier_normal

    conv_block_type: str = "mbconv"  # or convnext, whose kernel is 7x7
    conv_expand_ratio: float = 4.0
    conv_expand_output: bool = True  # MBConv: the ratio counts from the output, not from the input
    conv_kernel_size: int = 3  # MBConv
    conv_group_size: int = 1  # MBConv: channels per group of the inner convolution
    conv_pre_norm_act: bool = False  # MBConv: an activation behind the first norm
    conv_output_bias: bool = True  # MBConv: of the last convolution and the shortcut
    conv_stride_mode: str = "dw"  # what halves the map: dw (inner convolution), pool, or 1x1 (first one, MBConv only)
    conv_pool_type: str = "avg2"  # in the shortcut: avg, avg2, max or max2 (3x3 windows, or 2x2)
    conv_downsample_pool_type: str = "avg2"  # in the branch, with stride mode "pool"
    conv_padding: str = ""  # "" or "same" (as in TensorFlow)
    conv_attn_early: bool = False  # MBConv: channel attention in front of the second norm
    conv_attn_layer: str = "se"  # MBConv: channel attention by name, "" for none
    conv_attn_act_layer: str = "silu"
    conv_attn_ratio: float = 0.25
    conv_init_values: float | None = 1e-6  # ConvNeXt: start of the layer scale
    conv_act_layer: Any = "gelu"  # of blocks and stem
    conv_norm_layer: Any = "batchnorm2d"
    conv_norm_eps: float = 1e-5

    transformer_dim_head: int = 32
    transformer_head_first: bool = True  # M, PM: qkv is stored head by head; T: always. False: q of all heads first
    transformer_expand_ratio: float = 4.0  # MLP
    transformer_expand_first: bool = True  # attention has the width of the output, not of the input
    transformer_shortcut_bias: bool = True
    transformer_attn_bias: bool = True
    transformer_attn_drop: float = 0.0
    transformer_proj_drop: float = 0.0
    transformer_pool_type: str = "avg2"  # as `conv_pool_type`
    transformer_rel_pos_type: str = "bias"  # bias, bias_tf, mlp, or "" for no position biases
    transformer_rel_pos_dim: int = 512  # hidden width of "mlp"
    transformer_partition_ratio: int = 32  # windows and grids are the image divided by this
    transformer_window_size: int | tuple[int, int] | None = None  # windows named
    transformer_grid_size: int | tuple[int, int] | None = None  # grids named
    transformer_no_block_attn: bool = False  # M: no attention in windows
    transformer_use_nchw_attn: bool = False  # M: weights as 1x1 convolutions, norms over (B, C, H, W)
    transformer_init_values: float | None = None  # start of the layer scale
    transformer_act_layer: Any = "gelu"
    transformer_norm_layer: Any = "layernorm2d"  # of T blocks and behind the last stage
    transformer_norm_layer_cl: Any = "layernorm"  # of M and PM blocks, over (B, H, W, C)
    transformer_norm_eps: float = 1e-6


def choose(name: str, table: Any, field: str) -> Any:
    """The entry of a name; an unknown name raises with the nearest right one."""
    if name not in table:
        raise UnknownArgumentError(f"{field}={name!r}.{did_you_mean(name, table)} Known: {', '.join(map(str, table))}")
    return table[name]


class AvgPool2dSame(nn.Module):
    """Average pooling with TensorFlow's SAME padding; the zeros that are put around count."""

    def __init__(self, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride

    def forward(self, x: Tensor) -> Tensor:
        x = pad_same(x, (self.kernel_size,) * 2, (self.stride,) * 2, (1, 1))
        return F.avg_pool2d(x, self.kernel_size, self.stride)


# without and with SAME padding
POOLS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "max": (partial(nn.MaxPool2d, 3, 2, 1), partial(MaxPool2dSame, 3, 2)),
    "max2": (partial(nn.MaxPool2d, 2, 2), partial(MaxPool2dSame, 2, 2)),
    "avg": (partial(nn.AvgPool2d, 3, 2, 1, count_include_pad=False), partial(AvgPool2dSame, 3, 2)),
    "avg2": (partial(nn.AvgPool2d, 2, 2), partial(AvgPool2dSame, 2, 2)),
}


class Downsample2d(nn.Module):
    """Half the size by pooling, and a 1x1 convolution where the width changes."""

    def __init__(self, dim: int, out_dim: int, pool_type: str = "avg2", padding: str = "", bias: bool = True) -> None:
        super().__init__()
        self.pool = choose(pool_type, POOLS, "pool_type")[padding == "same"]()
        self.expand = nn.Identity() if dim == out_dim else nn.Conv2d(dim, out_dim, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.expand(self.pool(x))


class Stem(nn.Module):
    """3x3 convolution of stride 2, norm, activation, 3x3 convolution."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        first, last = (c.stem_width,) * 2 if isinstance(c.stem_width, int) else c.stem_width
        args: dict[str, Any] = {"pad_type": c.conv_padding, "bias": c.stem_bias}
        self.out_chs = last
        self.conv1 = create_conv2d(c.in_chans, first, 3, stride=2, **args)
        norm = get_norm_act_layer(c.conv_norm_layer, {"eps": c.conv_norm_eps})
        self.norm1 = norm(first, act_layer=c.conv_act_layer)
        self.conv2 = create_conv2d(first, last, 3, **args)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.norm1(self.conv1(x)))


# strides of the pool, the first and the inner convolution of an MBConv that halves the map
STRIDES = {"pool": (2, 1, 1), "1x1": (1, 2, 1), "dw": (1, 1, 2)}


class MbConvBlock(nn.Module):
    """Norm, 1x1, depthwise and 1x1 convolution beside a shortcut (https://arxiv.org/abs/1801.04381)."""

    def __init__(self, c: Config, in_chs: int, out_chs: int, stride: int = 1, drop_path: float = 0.0) -> None:
        super().__init__()
        norm = get_norm_act_layer(c.conv_norm_layer, {"eps": c.conv_norm_eps})
        mid = make_divisible((out_chs if c.conv_expand_output else in_chs) * c.conv_expand_ratio)
        strides = choose(c.conv_stride_mode, STRIDES, "conv_stride_mode") if stride > 1 else (1, 1, 1)
        padding = c.conv_padding
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = Downsample2d(in_chs, out_chs, c.conv_pool_type, padding, c.conv_output_bias)
        self.pre_norm = norm(in_chs, act_layer=c.conv_act_layer, apply_act=c.conv_pre_norm_act)
        self.down: nn.Module = nn.Identity()
        if strides[0] > 1:
            self.down = Downsample2d(in_chs, in_chs, c.conv_downsample_pool_type, padding)
        self.conv1_1x1 = create_conv2d(in_chs, mid, 1, stride=strides[1])
        self.norm1 = norm(mid, act_layer=c.conv_act_layer)
        groups = mid // c.conv_group_size if c.conv_group_size else 1
        self.conv2_kxk = create_conv2d(mid, mid, c.conv_kernel_size, stride=strides[2], groups=groups, pad_type=padding)
        attn = self._attention(c, mid, int(c.conv_attn_ratio * (out_chs if c.conv_expand_output else mid)))
        early = c.conv_attn_early
        if attn is not None and early:
            self.se_early = attn
        self.norm2 = norm(mid, act_layer=c.conv_act_layer)
        if attn is not None and not early:
            self.se = attn
        self.attn_name = None if attn is None else "se_early" if early else "se"
        self.conv3_1x1 = create_conv2d(mid, out_chs, 1, bias=c.conv_output_bias)
        self.drop_path = DropPath(drop_path)

    @staticmethod
    def _attention(c: Config, channels: int, hidden: int) -> nn.Module | None:
        sized = {"act_layer": c.conv_attn_act_layer, "rd_channels": hidden} if c.conv_attn_layer in ("se", "gc") else {}
        return create_attn(c.conv_attn_layer, channels, **sized)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        x = self.norm1(self.conv1_1x1(self.down(self.pre_norm(x))))
        x = self.conv2_kxk(x)
        if self.attn_name == "se_early":
            x = self.se_early(x)
        x = self.norm2(x)
        if self.attn_name == "se":
            x = self.se(x)
        return self.drop_path(self.conv3_1x1(x)) + shortcut


class ConvNeXtBlock(nn.Module):
    """7x7 depthwise convolution, norm and MLP beside a shortcut (https://arxiv.org/abs/2201.03545)."""

    def __init__(self, c: Config, in_chs: int, out_chs: int, stride: int = 1, drop_path: float = 0.0) -> None:
        super().__init__()
        pooled = choose(c.conv_stride_mode, {"dw": False, "pool": True}, "conv_stride_mode") and stride > 1
        padding = c.conv_padding
        self.shortcut = Downsample2d(in_chs, out_chs, c.conv_pool_type, padding) if stride > 1 else nn.Identity()
        self.down = Downsample2d(in_chs, in_chs, c.conv_downsample_pool_type, padding) if pooled else nn.Identity()
        self.conv_dw = create_conv2d(
            in_chs, out_chs, 7, stride=1 if pooled else stride, groups=in_chs, pad_type=padding, bias=True
        )
        self.norm = get_norm_layer(c.conv_norm_layer, eps=c.conv_norm_eps)(out_chs)
        hidden = int(c.conv_expand_ratio * out_chs)
        self.mlp = Mlp(out_chs, hidden, act_layer=c.conv_act_layer, use_conv=True)
        self.ls = LayerScale2d(out_chs, c.conv_init_values) if c.conv_init_values else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.conv_dw(self.down(x))))
        return self.drop_path(self.ls(y)) + self.shortcut(x)
