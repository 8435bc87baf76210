"""Networks without norms: NF-ResNet, NF-RegNet (https://arxiv.org/abs/2101.08692), NFNet (https://arxiv.org/abs/2102.06171).

Standardised weights and known gains of activations keep the variance of what runs through. `dm_nfnet` are DeepMind's
own; the `l` and `eca` models and the ResNets were trained in timm.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, did_you_mean
from opsin.layers import ClassifierHead, DropPath, create_act, create_attn, drop_path_rates, make_divisible
from opsin.layers.pool import avg_pool_down
from opsin.layers.std_conv import ScaledStdConv2d
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._headed import HeadedModel

__all__ = ["Config", "NormFreeBlock", "NormFreeNet"]

# 1 / standard deviation of each activation on a standard normal, as DeepMind measured and trained with
GAMMAS = {
    "silu": 1.7881293296813965,
    "gelu": 1.7015043497085571,
    "relu": 1.7139588594436646,
    "relu6": 1.7131484746932983,
    "leaky_relu": 1.70590341091156,
    "elu": 1.2716004848480225,
    "celu": 1.270926833152771,
    "selu": 1.0008515119552612,
    "tanh": 1.5939117670059204,
    "sigmoid": 4.803835391998291,
    "identity": 1.0,
}


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """`depths` are blocks per stage, `channels` what leaves each stage (before `width_factor`)."""

    stem_type: str = "3x3"  # "7x7", "deep", "deep_tiered", "deep_quad" (stride 4); all but the last also with "_pool"
    stem_chs: int | None = None  # by default that of the first stage
    depths: tuple[int, ...] = ()
    channels: tuple[int, ...] = ()
    num_features: int = 0  # width of a closing 1x1 convolution (before `width_factor`); 0 for none
    width_factor: float = 1.0
    ch_div: int = 8  # widths are multiples of this
    bottle_ratio: float = 0.5
    group_size: int | None = None  # channels per group of the 3x3 convolutions
    extra_conv: bool = False  # a second 3x3 convolution in each block
    reg: bool = False  # as in RegNet: width inside a block from what enters it, attention before the last convolution
    attn_layer: Any = None  # channel attention: "se", "eca", or a class
    attn_kwargs: Mapping[str, Any] = field(default_factory=dict)
    attn_gain: float = 2.0  # makes up for a gate that halves
    act_layer: str = "silu"
    gamma_in_act: bool = False  # the activations carry their gain, not the convolutions
    std_conv_eps: float = 1e-5
    same_padding: bool = False  # TensorFlow's
    alpha: float = 0.2  # of the residual branch: how much the variance grows with each block
    skipinit: bool = False  # a learned scalar, at first 0, on the residual branch
    zero_init_fc: bool = False
    output_stride: int = 32  # 8 or 16 trade stride for dilation
    drop_path_rate: float = 0.0

    def conv(self) -> Callable[..., ScaledStdConv2d]:
        gamma = 1.0 if self.gamma_in_act else GAMMAS[self.act_layer]
        pad_type = "same" if self.same_padding else ""
        return partial(ScaledStdConv2d, gamma=gamma, eps=self.std_conv_eps, pad_type=pad_type)

    def act(self) -> nn.Module:
        act = create_act(self.act_layer)
        return ScaledAct(act, GAMMAS[self.act_layer]) if self.gamma_in_act else act

    def width(self, channels: float) -> int:
        return make_divisible(channels * self.width_factor, self.ch_div)


class ScaledAct(nn.Module):
    """An activation times a constant."""

    def __init__(self, act: nn.Module, gamma: float) -> None:
        super().__init__()
        self.act, self.gamma = act, gamma

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x) * self.gamma


class Downsample(nn.Module):
    """The projection of a shortcut: average pool, 1x1 convolution."""

    def __init__(self, in_chs: int, out_chs: int, c: Config, stride: int, dilation: int) -> None:
        super().__init__()
        self.pool = avg_pool_down(stride, dilation)
        self.conv = c.conv()(in_chs, out_chs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pool(x))


class NormFreeBlock(nn.Module):
    """Bottleneck with activations in front; `beta` brings what enters back to unit variance."""

    def __init__(
        self, in_chs: int, out_chs: int, c: Config, *, beta: float = 1.0, bottle_ratio: float = 0.5, stride: int = 1,
        dilation: int = 1, first_dilation: int = 1, drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        conv = c.conv()
        mid_chs = make_divisible((in_chs if c.reg else out_chs) * bottle_ratio, c.ch_div)
        groups = mid_chs // c.group_size if c.group_size else 1
        if c.group_size and c.group_size % c.ch_div == 0:
            mid_chs = c.group_size * groups
        attn = create_attn(c.attn_layer, mid_chs if c.reg else out_chs, **c.attn_kwargs)
        self.alpha, self.beta, self.attn_gain = c.alpha, beta, c.attn_gain
        self.skipinit_gain = nn.Parameter(torch.empty(())) if c.skipinit else None
        changes = in_chs != out_chs or stride != 1 or dilation != first_dilation
        self.downsample = Downsample(in_chs, out_chs, c, stride, dilation) if changes else None
        self.act1 = c.act()
        self.conv1 = conv(in_chs, mid_chs, 1)
        self.act2 = c.act()
        self.conv2 = conv(mid_chs, mid_chs, 3, stride=stride, dilation=first_dilation, groups=groups)
        self.act2b = c.act() if c.extra_conv else nn.Identity()
        self.conv2b = conv(mid_chs, mid_chs, 3, dilation=dilation, groups=groups) if c.extra_conv else nn.Identity()
        self.attn = attn if c.reg else None
        self.act3 = c.act()
        self.conv3 = conv(mid_chs, out_chs, 1)
        self.attn_last = None if c.reg else attn
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.skipinit_gain is not None:
            nn.init.zeros_(self.skipinit_gain)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(x) * self.beta
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.conv2(self.act2(self.conv1(y)))
        y = self.conv2b(self.act2b(y))
        if self.attn is not None:
            y = self.attn_gain * self.attn(y)
        y = self.conv3(self.act3(y))
        if self.attn_last is not None:
            y = self.attn_gain * self.attn_last(y)
        y = self.drop_path(y)
        if self.skipinit_gain is not None:
            y = y * self.skipinit_gain
        return y * self.alpha + shortcut


# per stem: eighths of the width and stride of each convolution; their kernel size
STEMS: dict[str, tuple[list[tuple[int, int]], int]] = {
    "3x3": ([(8, 2)], 3),
    "7x7": ([(8, 2)], 7),
    "deep": ([(4, 2), (4, 1), (8, 1)], 3),
    "deep_tiered": ([(3, 2), (4, 1), (8, 1)], 3),
    "deep_quad": ([(1, 2), (2, 1), (4, 1), (8, 2)], 3),
}


def build_stem(c: Config, width: int) -> tuple[nn.Sequential, int]:
    """The stem, and how many of its parts make its feature level (all but the last convolution and its activation)."""
    kind = c.stem_type.removesuffix("_pool")
    if kind not in STEMS or c.stem_type == "deep_quad_pool":
        raise UnknownArgumentError(
            f"stem_type={c.stem_type!r}.{did_you_mean(c.stem_type, STEMS)} Known: {', '.join(STEMS)}"
        )
    spec, kernel = STEMS[kind]
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    in_chs = c.in_chans
    for i, (eighths, stride) in enumerate(spec, 1):
        if i > 1:
            parts[f"act{i}"] = c.act()
        out_chs = eighths * width // 8
        parts[f"conv{i}" if len(spec) > 1 else "conv"] = c.conv()(in_chs, out_chs, kernel, stride=stride)
        in_chs = out_chs
    level = max(len(parts) - 2, 1)
    if c.stem_type.endswith("_pool"):
        parts["pool"] = nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(parts), level


class NormFreeNet(HeadedModel, config=Config):
    """Stem, stages of norm-free blocks, closing convolution, pooled linear head."""

    first_conv = "stem.conv1"

    head: ClassifierHead

    def build(self, c: Config) -> None:
        if c.output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride={c.output_stride}: NormFreeNet has 8, 16 and 32")
        if c.act_layer not in GAMMAS:
            near = did_you_mean(str(c.act_layer), GAMMAS)
            raise UnknownArgumentError(f"the gain of {c.act_layer!r} is not known.{near} Known: {', '.join(GAMMAS)}")
        width = c.width(c.stem_chs or c.channels[0])
        self.stem, level = build_stem(c, width)
        parts = [f"stem.{name}" for name, _ in self.stem.named_children()]
        level_chs = int(self.stem[level - 1].out_channels)  # type: ignore[arg-type]
        chain, rest = [Stage(tuple(parts[:level]), level_chs, 2, checkpoint=False)], tuple(parts[level:])
        chain += [Stage(rest, checkpoint=False)] if rest else []
        self.stages = nn.Sequential()
        stride = 4 if c.stem_type == "deep_quad" or c.stem_type.endswith("_pool") else 2
        dilation, variance = 1, 1.0
        for i, (channels, drops) in enumerate(
            zip(c.channels, drop_path_rates(c.drop_path_rate, c.depths), strict=True)
        ):
            out_chs, step = c.width(channels), 1 if i == 0 and stride > 2 else 2
            if step > 1 and stride >= c.output_stride:
                dilation, step = dilation * step, 1
            stride *= step
            stage, first_dilation = nn.Sequential(), 1 if dilation <= 2 else 2
            for j, drop in enumerate(drops):
                ratio = 1.0 if c.reg and i == j == 0 else c.bottle_ratio
                spacing = {"stride": step, "dilation": dilation, "first_dilation": first_dilation}
                beta = variance**-0.5
                stage.append(NormFreeBlock(width, out_chs, c, beta=beta, bottle_ratio=ratio, drop_path=drop, **spacing))
                # a projected shortcut starts again from unit variance; each block adds that of its branch
                variance = (1.0 if j == 0 else variance) + c.alpha**2
                width, step, first_dilation = out_chs, 1, dilation
            self.stages.append(stage)
            chain.append(Stage((f"stages.{i}",), width, stride))
        if c.num_features:
            self.num_features = c.width(c.num_features)
            self.final_conv: nn.Module = c.conv()(width, self.num_features, 1)
            chain[-1] = Stage((*chain[-1].run, "final_conv"), self.num_features, stride)
        else:
            self.num_features, self.final_conv = width, nn.Identity()
        self.final_act = c.act()
        self.chain = (*chain, Stage(("final_act",)))
        self.head_hidden_size = self.num_features
        self.build_head(c)

    def init_module(self, module: nn.Module, name: str) -> bool:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.0 if self.config.zero_init_fc else 0.01)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear")
            if isinstance(module, ScaledStdConv2d):
                nn.init.ones_(module.gain)
        else:
            return False
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        return True

    def init_last(self) -> None:
        if not self.config.skipinit:
            for module in self.modules():
                if isinstance(module, NormFreeBlock):
                    nn.init.zeros_(module.conv3.gain)


WIDE = (256, 512, 1536, 1536)
F = partial(
    Config,
    channels=WIDE,
    stem_type="deep_quad",
    stem_chs=128,
    group_size=128,
    attn_layer="se",
    attn_kwargs={"rd_ratio": 0.5},
    num_features=3072,
    extra_conv=True,
    act_layer="gelu",
)
DM = partial(F, gamma_in_act=True, same_padding=True, skipinit=True)
L = partial(F, group_size=64, bottle_ratio=0.25, act_layer="silu")
ECA = partial(L, attn_layer="eca", attn_kwargs={})
SE4 = {"rd_ratio": 0.25, "rd_divisor": 8}
ResNet = partial(
    Config,
    channels=(256, 512, 1024, 2048),
    stem_type="7x7_pool",
    stem_chs=64,
    bottle_ratio=0.25,
    act_layer="relu",
)
EcaResNet = partial(ResNet, attn_layer="eca")
SEResNet = partial(ResNet, attn_layer="se", attn_kwargs={"rd_ratio": 1 / 16})
Reg = partial(
    Config,
    group_size=8,
    attn_layer="se",
    attn_kwargs={"rd_ratio": 0.5},
    width_factor=0.75,
    bottle_ratio=2.25,
    reg=True,
)

VARIANTS = {
    "dm_nfnet_f0": DM(depths=(1, 2, 6, 3)),
    "dm_nfnet_f1": DM(depths=(2, 4, 12, 6)),
    "dm_nfnet_f2": DM(depths=(3, 6, 18, 9)),
    "dm_nfnet_f3": DM(depths=(4, 8, 24, 12)),
    "dm_nfnet_f4": DM(depths=(5, 10, 30, 15)),
    "dm_nfnet_f5": DM(depths=(6, 12, 36, 18)),
    "dm_nfnet_f6": DM(depths=(7, 14, 42, 21)),
    "eca_nfnet_l0": ECA(depths=(1, 2, 6, 3), num_features=2304),
    "eca_nfnet_l1": ECA(depths=(2, 4, 12, 6)),
    "eca_nfnet_l2": ECA(depths=(3, 6, 18, 9)),
    "eca_nfnet_l3": ECA(depths=(4, 8, 24, 12)),
    "nf_ecaresnet26": EcaResNet(depths=(2, 2, 2, 2)),
    "nf_ecaresnet50": EcaResNet(depths=(3, 4, 6, 3)),
    "nf_ecaresnet101": EcaResNet(depths=(3, 4, 23, 3)),
    "nf_regnet_b0": Reg(depths=(1, 3, 6, 6), channels=(48, 104, 208, 440), num_features=1280),
    "nf_regnet_b1": Reg(depths=(2, 4, 7, 7), channels=(48, 104, 208, 440), num_features=1280),
    "nf_regnet_b2": Reg(depths=(2, 4, 8, 8), channels=(56, 112, 232, 488), num_features=1419),
    "nf_regnet_b3": Reg(depths=(2, 5, 9, 9), channels=(56, 128, 248, 528), num_features=1536),
    "nf_regnet_b4": Reg(depths=(2, 6, 11, 11), channels=(64, 144, 288, 616), num_features=1792),
    "nf_regnet_b5": Reg(depths=(3, 7, 14, 14), channels=(80, 168, 336, 704), num_features=2048),
    "nf_resnet26": ResNet(depths=(2, 2, 2, 2)),
    "nf_resnet50": ResNet(depths=(3, 4, 6, 3)),
    "nf_resnet101": ResNet(depths=(3, 4, 23, 3)),
    "nf_seresnet26": SEResNet(depths=(2, 2, 2, 2)),
    "nf_seresnet50": SEResNet(depths=(3, 4, 6, 3)),
    "nf_seresnet101": SEResNet(depths=(3, 4, 23, 3)),
    "nfnet_f0": F(depths=(1, 2, 6, 3)),
    "nfnet_f1": F(depths=(2, 4, 12, 6)),
    "nfnet_f2": F(depths=(3, 6, 18, 9)),
    "nfnet_f3": F(depths=(4, 8, 24, 12)),
    "nfnet_f4": F(depths=(5, 10, 30, 15)),
    "nfnet_f5": F(depths=(6, 12, 36, 18)),
    "nfnet_f6": F(depths=(7, 14, 42, 21)),
    "nfnet_f7": F(depths=(8, 16, 48, 24)),
    "nfnet_l0": L(depths=(1, 2, 6, 3), num_features=2304, attn_kwargs=SE4),
    "test_nfnet": L(depths=(1, 1, 1, 1), channels=(32, 64, 96, 128), group_size=8, num_features=192, attn_kwargs=SE4),
}

family = Family(NormFreeNet, VARIANTS, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
