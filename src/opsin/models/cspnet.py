"""Cross stage partial networks (CSPNet, https://arxiv.org/abs/1911.11929) and the Darknets they were made for.

Darknet-53 (YOLOv3, https://arxiv.org/abs/1804.02767), CSPDarknet-53 (YOLOv4, https://arxiv.org/abs/2004.10934), and the
stages with one transition fewer, "CS3", from the later YOLOs. A cross stage sends half of its channels past its blocks.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError
from opsin.layers import DropPath, create_act, create_attn, drop_path_rates
from opsin.layers.conv_norm_act import ConvNormAct
from opsin.layers.weight_init import init_conv_net_
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._headed import HeadedModel

__all__ = ["BottleneckBlock", "Config", "CrossStage", "CrossStage3", "CspNet", "DarkBlock", "DarkStage", "EdgeBlock"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Tuples have one entry per stage (`stem_chs`: per stem convolution); ratios may be one number for all stages."""

    stem_chs: tuple[int, ...] = (32,)
    stem_stride: int = 2  # 1, 2, or 4
    stem_kernel_size: int = 3
    stem_padding: int | None = None
    stem_pool: bool = False  # half of a stem stride of 4 is a max pool
    num_blocks: tuple[int, ...] = (3, 3, 5, 2)
    out_chs: tuple[int, ...] = (128, 256, 512, 1024)
    strides: tuple[int, ...] = (2, 2, 2, 2)
    groups: int | tuple[int, ...] = 1
    stage_type: str = "csp"  # csp, cs3, dark
    block_type: str = "bottle"  # bottle, dark, edge
    expand_ratio: float | tuple[float, ...] = 1.0  # channels that a cross stage splits, of its output
    block_ratio: float | tuple[float, ...] = 1.0  # channels of its blocks, of its output
    bottle_ratio: float | tuple[float, ...] = 1.0  # channels inside a block, of the block's
    avg_down: bool = False  # average pool and 1x1 convolution instead of a strided 3x3
    down_growth: bool = False  # the strided convolution already gives the stage's output channels
    cross_linear: bool = False  # no activation before the split
    attn_layer: Any = None
    attn_kwargs: Mapping[str, Any] = field(default_factory=dict)
    act_layer: Any = "leaky_relu"
    norm_layer: Any = "batchnorm2d"
    aa_layer: Any = None
    output_stride: int = 32  # 8 or 16 trade stride for dilation
    drop_path_rate: float = 0.0
    zero_init_last: bool = True  # the last norm of each residual branch starts at zero


def conv(c: Config, *args: Any, **kwargs: Any) -> ConvNormAct:
    return ConvNormAct(*args, norm_layer=c.norm_layer, act_layer=c.act_layer, **kwargs)


def attention(c: Config, channels: int) -> nn.Module:
    named = {"act_layer": c.act_layer} if c.attn_layer == "se" else {}
    return create_attn(c.attn_layer, channels, **named, **c.attn_kwargs) or nn.Identity()


class BottleneckBlock(nn.Module):
    """1x1, 3x3, channel attention, 1x1; activation behind the sum."""

    def __init__(self, chs: int, mid_chs: int, c: Config, *, dilation: int, groups: int, drop_path: float) -> None:
        super().__init__()
        self.conv1 = conv(c, chs, mid_chs)
        self.conv2 = conv(c, mid_chs, mid_chs, 3, dilation=dilation, groups=groups)
        self.attn2 = attention(c, mid_chs)
        self.conv3 = conv(c, mid_chs, chs, apply_act=False)
        self.drop_path = DropPath(drop_path)
        self.act3 = create_act(c.act_layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.act3(self.drop_path(self.conv3(self.attn2(self.conv2(self.conv1(x))))) + x)

    def last_norm(self) -> Any:
        return self.conv3.bn


class DarkBlock(nn.Module):
    """1x1, channel attention, 3x3; activation before the sum."""

    kernel_sizes = (1, 3)

    def __init__(self, chs: int, mid_chs: int, c: Config, *, dilation: int, groups: int, drop_path: float) -> None:
        super().__init__()
        spread: dict[int, dict[str, int]] = {3: {"dilation": dilation, "groups": groups}, 1: {}}
        first, second = self.kernel_sizes
        self.conv1 = conv(c, chs, mid_chs, first, **spread[first])
        self.attn = attention(c, mid_chs)
        self.conv2 = conv(c, mid_chs, chs, second, **spread[second])
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop_path(self.conv2(self.attn(self.conv1(x)))) + x

    def last_norm(self) -> Any:
        return self.conv2.bn


class EdgeBlock(DarkBlock):
    """3x3, channel attention, 1x1; activation before the sum."""

    kernel_sizes = (3, 1)


BLOCKS = {"bottle": BottleneckBlock, "dark": DarkBlock, "edge": EdgeBlock}


@dataclass(frozen=True)
class Figures:
    """What one stage is built from."""

    in_chs: int
    out_chs: int
    stride: int
    dilation: int
    first_dilation: int
    groups: int
    expand_ratio: float
    block_ratio: float
    bottle_ratio: float
    drop_path: list[float]

    @property
    def resamples(self) -> bool:
        return self.stride != 1 or self.first_dilation != self.dilation


def downsample(f: Figures, out_chs: int, c: Config) -> nn.Module:
    if c.avg_down:
        pool = nn.AvgPool2d(2) if f.stride == 2 else nn.Identity()
        return nn.Sequential(pool, conv(c, f.in_chs, out_chs, groups=f.groups))
    return conv(c, f.in_chs, out_chs, 3, f.stride, dilation=f.first_dilation, groups=f.groups, aa_layer=c.aa_layer)


def blocks(f: Figures, chs: int, c: Config) -> nn.Sequential:
    mid_chs = round(chs * f.bottle_ratio)
    options: dict[str, Any] = {"dilation": f.dilation, "groups": f.groups}
    return nn.Sequential(*(BLOCKS[c.block_type](chs, mid_chs, c, **options, drop_path=p) for p in f.drop_path))


class CrossStage3(nn.Module):
    """Strided convolution, split, blocks on the first half, transition of both."""

    def __init__(self, f: Figures, c: Config) -> None:
        super().__init__()
        down_chs = f.out_chs if c.down_growth and f.resamples else f.in_chs
        self.half_chs = round(f.out_chs * f.expand_ratio) // 2
        if self.half_chs != (block_chs := round(f.out_chs * f.block_ratio)):
            raise ValueError(f"half of expand_ratio={f.expand_ratio} is not block_ratio={f.block_ratio}")
        self.conv_down = downsample(f, down_chs, c) if f.resamples else nn.Identity()
        self.conv_exp = conv(c, down_chs, 2 * self.half_chs, apply_act=not c.cross_linear)
        self.blocks = blocks(f, block_chs, c)
        self.build_transition(2 * self.half_chs, f.out_chs, c)

    def build_transition(self, chs: int, out_chs: int, c: Config) -> None:
        self.conv_transition = conv(c, chs, out_chs)

    def forward(self, x: Tensor) -> Tensor:
        through, past = self.conv_exp(self.conv_down(x)).split(self.half_chs, 1)
        return self.conv_transition(torch.cat((self.blocks(through), past), 1))


class CrossStage(CrossStage3):
    """Strided convolution, split, blocks and a transition on the second half, transition of both."""

    def build_transition(self, chs: int, out_chs: int, c: Config) -> None:
        self.conv_transition_b = conv(c, self.half_chs, self.half_chs)
        self.conv_transition = conv(c, chs, out_chs)

    def forward(self, x: Tensor) -> Tensor:
        past, through = self.conv_exp(self.conv_down(x)).split(self.half_chs, 1)
        through = self.conv_transition_b(self.blocks(through))
        return self.conv_transition(torch.cat((past, through), 1))


class DarkStage(nn.Module):
    """Strided convolution and blocks, nothing split."""

    def __init__(self, f: Figures, c: Config) -> None:
        super().__init__()
        self.conv_down = downsample(f, f.out_chs, c)
        self.blocks = blocks(f, round(f.out_chs * f.block_ratio), c)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.conv_down(x))


STAGES = {"csp": CrossStage, "cs3": CrossStage3, "dark": DarkStage}


def check(c: Config) -> None:
    for name, known in (("stage_type", STAGES), ("block_type", BLOCKS)):
        if getattr(c, name) not in known:
            raise UnknownArgumentError(f"{name}={getattr(c, name)!r}: one of {', '.join(known)}")
    if c.output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride={c.output_stride}: CspNet has 8, 16 and 32")
    if c.stem_stride not in (1, 2, 4):
        raise ValueError(f"stem_stride={c.stem_stride}: CspNet has 1, 2 and 4")
    if not len(c.num_blocks) == len(c.out_chs) == len(c.strides):
        raise ValueError(
            f"num_blocks={c.num_blocks}, out_chs={c.out_chs}, strides={c.strides}: one per stage is needed"
        )


class CspNet(HeadedModel, config=Config):
    """Convolutional stem, stages of one kind, pooled linear head."""

    first_conv = "stem.conv1.conv"

    def build(self, c: Config) -> None:
        check(c)
        self.chain = (self.build_stem(c),)
        before = ("stem.pool",) if c.stem_pool else ()  # runs with the first stage: no level of its own
        self.stages = nn.Sequential()
        stride, dilation, width = c.stem_stride, 1, c.stem_chs[-1]
        rates = drop_path_rates(c.drop_path_rate, tuple(c.num_blocks))
        for i, (out_chs, step, drop_path) in enumerate(zip(c.out_chs, c.strides, rates, strict=True)):
            first_dilation = dilation
            if stride >= c.output_stride:
                dilation, step = dilation * step, 1
            stride *= step
            per_stage: dict[str, Any] = {
                name: value[i] if isinstance(value := getattr(c, name), list | tuple) else value
                for name in ("groups", "expand_ratio", "block_ratio", "bottle_ratio")
            }
            f = Figures(width, out_chs, step, dilation, first_dilation, drop_path=drop_path, **per_stage)
            self.stages.append(STAGES[c.stage_type](f, c))
            self.chain += (Stage((*before, f"stages.{i}"), out_chs, stride),)
            width, before = out_chs, ()
        self.num_features = self.head_hidden_size = width
        self.build_head(c)

    def build_stem(self, c: Config) -> Stage:
        """Convolutions, of which the first halves the size, and so does the last or a pool where the stride is 4."""
        self.stem = nn.Sequential(OrderedDict())
        width, last = c.in_chans, len(c.stem_chs) - 1
        for i, chs in enumerate(c.stem_chs):
            halves = (i == 0 and c.stem_stride > 1) or (i == last and c.stem_stride > 2 and not c.stem_pool)
            options: dict[str, Any] = {"stride": 2 if halves else 1, "padding": c.stem_padding if i == 0 else None}
            self.stem.add_module(f"conv{i + 1}", conv(c, width, chs, c.stem_kernel_size, **options))
            width = chs
        if c.stem_pool:
            self.stem.add_module("pool", nn.MaxPool2d(3, 2, 1))
        names = tuple(f"stem.conv{i + 1}" for i in range(len(c.stem_chs)))
        return Stage(names, width, c.stem_stride // (2 if c.stem_pool else 1), checkpoint=False)

    def init_module(self, module: nn.Module, name: str) -> bool:
        return init_conv_net_(module)

    def init_last(self) -> None:
        if self.config.zero_init_last:
            for module in self.modules():
                if isinstance(module, BottleneckBlock | DarkBlock):
                    nn.init.zeros_(module.last_norm().weight)


RES: dict[str, Any] = {"stem_stride": 4, "stem_pool": True, "strides": (1, 2, 2, 2), "cross_linear": True}  # CSPResNet
WIDE: dict[str, Any] = {
    "out_chs": (256, 512, 1024, 2048),
    "block_ratio": 0.5,
}  # twice the output, as many channels in the blocks
FIVE: dict[str, Any] = {"stem_stride": 1, "out_chs": (64, 128, 256, 512, 1024), "strides": (2, 2, 2, 2, 2)}
Dark = partial(Config, **FIVE, stage_type="dark", block_type="dark", bottle_ratio=0.5)
Cs3 = partial(Config, stage_type="cs3", block_type="dark", block_ratio=0.5, act_layer="silu")
Edge = partial(Cs3, block_type="edge", bottle_ratio=1.5)
FOCUS: dict[str, Any] = {"stem_kernel_size": 6, "stem_padding": 2}  # one strided 6x6 where YOLOv5 rearranged pixels
S: dict[str, Any] = {"num_blocks": (1, 3, 4, 1), "out_chs": (64, 128, 256, 512)}
M: dict[str, Any] = {"num_blocks": (2, 4, 6, 2), "out_chs": (96, 192, 384, 768)}
L: dict[str, Any] = {"num_blocks": (3, 6, 9, 3)}
X: dict[str, Any] = {"num_blocks": (3, 7, 11, 3), "out_chs": (160, 320, 640, 1280)}
SE: dict[str, Any] = {"attn_layer": "se"}
SE4: dict[str, Any] = {"attn_layer": "se", "attn_kwargs": {"rd_ratio": 0.25}}
CSPDARKNET53 = Config(
    **FIVE,
    num_blocks=(1, 2, 8, 8, 4),
    block_type="dark",
    expand_ratio=(2.0, 1.0, 1.0, 1.0, 1.0),
    block_ratio=(1.0, 0.5, 0.5, 0.5, 0.5),
    bottle_ratio=(0.5, 1.0, 1.0, 1.0, 1.0),
    down_growth=True,
)
CSPRESNEXT50 = Config(**RES, **WIDE, stem_chs=(64,), stem_kernel_size=7, groups=32)
# the names with iabn are from when norm and activation were one operation in place; the networks are the same
VARIANTS = {
    "cs3darknet_focus_l": Cs3(**L, **FOCUS, stem_chs=(64,)),
    "cs3darknet_focus_m": Cs3(**M, **FOCUS, stem_chs=(48,)),
    "cs3darknet_focus_s": Cs3(**S, **FOCUS, stem_chs=(32,)),
    "cs3darknet_focus_x": Cs3(**X, **FOCUS, stem_chs=(80,)),
    "cs3darknet_l": Cs3(**L, stem_chs=(32, 64)),
    "cs3darknet_m": Cs3(**M, stem_chs=(24, 48)),
    "cs3darknet_s": Cs3(**S, stem_chs=(16, 32)),
    "cs3darknet_x": Cs3(**X, stem_chs=(40, 80)),
    "cs3edgenet_x": Edge(**X, stem_chs=(40, 80)),
    "cs3se_edgenet_x": Edge(**X, stem_chs=(40, 80), **SE4),
    "cs3sedarknet_l": Cs3(**L, stem_chs=(32, 64), **SE4),
    "cs3sedarknet_x": Cs3(**X, stem_chs=(40, 80), **SE),
    "cs3sedarknet_xdw": Config(
        stem_chs=(32, 64),
        num_blocks=(3, 6, 12, 4),
        **WIDE,
        groups=(1, 1, 256, 512),
        bottle_ratio=0.5,
        **SE,
        act_layer="silu",
    ),
    "cspdarknet53": CSPDARKNET53,
    "cspdarknet53_iabn": CSPDARKNET53,
    "cspresnet50": Config(**RES, stem_chs=(64,), stem_kernel_size=7, expand_ratio=2.0, bottle_ratio=0.5),
    "cspresnet50d": Config(**RES, stem_chs=(32, 32, 64), expand_ratio=2.0, bottle_ratio=0.5),
    "cspresnet50w": Config(**RES, **WIDE, stem_chs=(32, 32, 64), bottle_ratio=0.25),
    "cspresnext50": CSPRESNEXT50,
    "cspresnext50_iabn": CSPRESNEXT50,
    "darknet17": Dark(num_blocks=(1, 1, 1, 1, 1)),
    "darknet21": Dark(num_blocks=(1, 1, 1, 2, 2)),
    "darknet53": Dark(num_blocks=(1, 2, 8, 8, 4)),
    "darknetaa53": Dark(num_blocks=(1, 2, 8, 8, 4), avg_down=True),
    "sedarknet21": Dark(num_blocks=(1, 1, 1, 2, 2), **SE),
}

family = Family(CspNet, VARIANTS, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
