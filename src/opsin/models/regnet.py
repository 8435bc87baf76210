"""RegNet X and Y (https://arxiv.org/abs/2003.13678) and Z (https://arxiv.org/abs/2103.06877).

A line in the index of the blocks, quantised, gives their widths. The V models are Y with activations ahead of the
convolutions. Weights come from those papers, from torchvision, from SEER (https://arxiv.org/abs/2202.08360), from SWAG
(https://arxiv.org/abs/2201.08371), and from training in timm.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from opsin.errors import UnknownArgumentError
from opsin.layers import (
    DropPath,
    SEModule,
    create_act,
    drop_path_rates,
    make_divisible,
)
from opsin.layers.conv_norm_act import ConvNormAct
from opsin.layers.norm_act import get_norm_act_layer
from opsin.layers.pool import avg_pool_down
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._headed import HeadedModel

__all__ = ["Bottleneck", "Config", "PreBottleneck", "RegNet"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """`depth` blocks in all; block i is about `w0 + wa * i` wide, in steps of a factor `wm`."""

    depth: int = 21
    w0: int = 80
    wa: float = 42.63
    wm: float = 2.66
    group_size: int = 24  # channels per group of the 3x3 convolution
    bottle_ratio: float = 1.0  # width inside the blocks to that outside
    se_ratio: float = 0.0  # squeeze and excitation, to the channels that enter a block; 0 for none
    group_min_ratio: float = 0.0  # widths fit the groups as in torchvision: never below this share
    stem_width: int = 32
    downsample: str | None = "conv1x1"  # the shortcut where the map changes: "conv1x1", "avg" (pool first), "" for none
    linear_out: bool = False  # no activation behind the blocks
    preact: bool = False  # norms and activations ahead of the convolutions
    num_features: int = 0  # width of a closing 1x1 convolution; 0 for none
    output_stride: int = 32  # 8 or 16 trade stride for dilation
    act_layer: Any = "relu"
    norm_layer: Any = "batchnorm2d"
    norm_args: Mapping[str, Any] = field(default_factory=dict)  # further arguments of the norms
    drop_path_rate: float = 0.0
    zero_init_last: bool = True  # the last norm of each block starts at zero (not with preact)

    def norm_act(self) -> Callable[..., nn.Module]:
        return get_norm_act_layer(self.norm_layer, self.norm_args)


def stage_plan(c: Config) -> list[tuple[int, int, int]]:
    """(width, depth, group size) of each stage, by the rule of the paper."""
    if c.wa < 0 or c.w0 <= 0 or c.wm <= 1 or c.w0 % 8:
        raise ValueError(f"wa={c.wa}, w0={c.w0}, wm={c.wm}: needed are wa >= 0, wm > 1 and w0 a multiple of 8")
    counts: dict[int, int] = {}
    for i in range(c.depth):
        steps = round(math.log((c.w0 + c.wa * i) / c.w0) / math.log(c.wm))
        width = round(c.w0 * c.wm**steps / 8) * 8
        counts[width] = counts.get(width, 0) + 1
    plan = []
    for width, depth in sorted(counts.items()):
        inner = int(width * c.bottle_ratio)
        group = min(c.group_size, inner)
        if c.group_min_ratio:
            inner = make_divisible(inner, group, round_limit=c.group_min_ratio)
        else:
            inner = round(inner / group) * group
        plan.append((int(inner / c.bottle_ratio), depth, group))
    return plan


def shortcut(in_chs: int, out_chs: int, c: Config, stride: int, dilation: int, first_dilation: int) -> nn.Module | None:
    """How a block's input reaches its end; None where it does not."""
    if c.downsample not in ("conv1x1", "avg", "", None):
        raise UnknownArgumentError(f"downsample={c.downsample!r}: 'conv1x1', 'avg', or '' for none")
    if in_chs == out_chs and stride == 1 and dilation == first_dilation:
        return nn.Identity()
    if not c.downsample:
        return None
    average = c.downsample == "avg"
    step = 1 if average else stride
    if c.preact:
        conv: nn.Module = nn.Conv2d(in_chs, out_chs, 1, step, bias=False)
    else:
        conv = ConvNormAct(in_chs, out_chs, 1, step, norm_layer=c.norm_act(), apply_act=False)
    return nn.Sequential(avg_pool_down(stride, first_dilation), conv) if average else conv


class Bottleneck(nn.Module):
    """1x1, grouped 3x3, squeeze and excitation, 1x1; norm and activation behind each convolution."""

    def __init__(
        self, in_chs: int, out_chs: int, c: Config, *, group_size: int, stride: int = 1, dilation: int = 1,
        first_dilation: int = 1, drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        inner = round(out_chs * c.bottle_ratio)
        layers: dict[str, Any] = {"norm_layer": c.norm_act(), "act_layer": c.act_layer}
        spacing: dict[str, Any] = {"dilation": first_dilation, "groups": inner // group_size}
        self.conv1 = ConvNormAct(in_chs, inner, 1, **layers)
        self.conv2 = ConvNormAct(inner, inner, 3, stride, **spacing, **layers)
        self.se = squeeze(in_chs, inner, c)
        self.conv3 = ConvNormAct(inner, out_chs, 1, apply_act=False, **layers)
        self.act3 = nn.Identity() if c.linear_out else create_act(c.act_layer)
        self.downsample = shortcut(in_chs, out_chs, c, stride, dilation, first_dilation)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(self.se(self.conv2(self.conv1(x))))
        if self.downsample is not None:
            y = self.drop_path(y) + self.downsample(x)
        return self.act3(y)


class PreBottleneck(nn.Module):
    """As `Bottleneck`, with norm and activation ahead of each convolution, and of the shortcut."""

    def __init__(
        self, in_chs: int, out_chs: int, c: Config, *, group_size: int, stride: int = 1, dilation: int = 1,
        first_dilation: int = 1, drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        inner = round(out_chs * c.bottle_ratio)
        norm = partial(c.norm_act(), act_layer=c.act_layer)
        spread, groups = first_dilation, inner // group_size
        self.norm1 = norm(in_chs)
        self.conv1 = nn.Conv2d(in_chs, inner, 1, bias=False)
        self.norm2 = norm(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, spread, spread, groups, bias=False)
        self.se = squeeze(in_chs, inner, c)
        self.norm3 = norm(inner)
        self.conv3 = nn.Conv2d(inner, out_chs, 1, bias=False)
        self.downsample = shortcut(in_chs, out_chs, c, stride, dilation, first_dilation)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x)
        y = self.se(self.conv2(self.norm2(self.conv1(x))))
        y = self.conv3(self.norm3(y))
        return y if self.downsample is None else self.drop_path(y) + self.downsample(x)


def squeeze(in_chs: int, inner: int, c: Config) -> nn.Module:
    if not c.se_ratio:
        return nn.Identity()
    return SEModule(inner, rd_channels=round(in_chs * c.se_ratio), act_layer=c.act_layer)


class RegNet(HeadedModel, config=Config):
    """Strided 3x3 stem, stages `s1` to `s4` of blocks `b1`, `b2`, …, pooled linear head."""

    first_conv = "stem.conv"

    def build(self, c: Config) -> None:
        if c.output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride={c.output_stride}: RegNet has 8, 16 and 32")
        layers: dict[str, Any] = {"norm_layer": c.norm_act(), "act_layer": c.act_layer}
        if c.preact:
            self.stem: nn.Module = nn.Conv2d(c.in_chans, c.stem_width, 3, 2, 1, bias=False)
        else:
            self.stem = ConvNormAct(c.in_chans, c.stem_width, 3, 2, **layers)
        block: Any = PreBottleneck if c.preact else Bottleneck
        plan = stage_plan(c)
        rates = drop_path_rates(c.drop_path_rate, tuple(depth for _, depth, _ in plan))
        width, stride, dilation = c.stem_width, 2, 1
        chain = [Stage(("stem",), width, stride, checkpoint=False)]
        for i, ((out_chs, _, group), drops) in enumerate(zip(plan, rates, strict=True), 1):
            step = 2 if stride < c.output_stride else 1
            stride, dilation = stride * step, dilation * (2 // step)
            stage, first_dilation = nn.Sequential(), 1 if dilation <= 2 else 2
            for j, drop in enumerate(drops, 1):
                spacing = {"stride": step, "dilation": dilation, "first_dilation": first_dilation}
                stage.add_module(f"b{j}", block(width, out_chs, c, group_size=group, drop_path=drop, **spacing))
                width, step, first_dilation = out_chs, 1, dilation
            self.add_module(f"s{i}", stage)
            chain.append(Stage((f"s{i}",), width, stride))
        if c.num_features:
            self.final_conv: nn.Module = ConvNormAct(width, c.num_features, 1, **layers)
        else:
            self.final_conv = create_act(c.act_layer) if c.linear_out or c.preact else nn.Identity()
        self.chain = (*chain, Stage(("final_conv",)))
        self.num_features = self.head_hidden_size = c.num_features or width
        self.build_head(c)

    def init_module(self, module: nn.Module, name: str) -> bool:
        if isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        else:
            return False
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        return True

    def init_last(self) -> None:
        if self.config.zero_init_last:
            for module in self.modules():
                if isinstance(module, Bottleneck):
                    nn.init.zeros_(module.conv3.bn.weight)  # type: ignore[arg-type]


# (pattern, replacement) in order: parts of a block in torchvision and in classy-vision (SEER) -> ours
PARTS = [
    (r"f\.a\.0\.", "conv1.conv."),
    (r"f\.a\.1\.", "conv1.bn."),
    (r"f\.b\.0\.", "conv2.conv."),
    (r"f\.b\.1\.", "conv2.bn."),
    (r"f\.c\.0\.", "conv3.conv."),
    (r"f\.c\.1\.", "conv3.bn."),
    (r"f\.c\.", "conv3.conv."),
    (r"f\.final_bn\.", "conv3.bn."),
    (r"f\.se\.excitation\.0\.", "se.fc1."),
    (r"f\.se\.excitation\.2\.", "se.fc2."),
    (r"f\.se\.", "se."),
    (r"proj\.0\.", "downsample.conv."),
    (r"proj\.1\.", "downsample.bn."),
    (r"proj\.", "downsample.conv."),
]


def adapt(state_dict: Mapping[str, Any], model: nn.Module) -> Mapping[str, Tensor]:
    """Read the layouts of torchvision and of classy-vision (SEER)."""
    state_dict = state_dict.get("model", state_dict)
    if "classy_state_dict" in state_dict:
        whole = state_dict["classy_state_dict"]["base_model"]["model"]
        state = {classy_name(key): value for key, value in whole["trunk"].items()}
        heads = {k: v for k, v in whole["heads"].items() if "projection_head" not in k and "prototypes" not in k}
        return state | {key.replace("0.clf.0", "head.fc"): value for key, value in heads.items()}
    if "stem.0.weight" in state_dict:
        return {torchvision_name(key): value for key, value in state_dict.items()}
    return state_dict


def torchvision_name(key: str) -> str:
    key = re.sub(r"^stem\.(\d)\.", lambda m: f"stem.{('conv', 'bn')[int(m[1])]}.", key)
    key = re.sub(r"^trunk_output\.block(\d)\.block\d+-(\d+)", lambda m: f"s{m[1]}.b{int(m[2]) + 1}", key)
    return block_part(re.sub(r"^fc\.", "head.fc.", key))


def classy_name(key: str) -> str:
    key = re.sub(r"^_feature_blocks\.conv1\.stem\.(\d)\.", lambda m: f"stem.{('conv', 'bn')[int(m[1])]}.", key)
    key = re.sub(r"^_feature_blocks\.res\d\.block(\d)-(\d+)", lambda m: f"s{m[1]}.b{int(m[2]) + 1}", key)
    return block_part(re.sub(r"^(s\d\.b\d+)\.bn\.", r"\1.downsample.bn.", key))


def block_part(key: str) -> str:
    """The name of one of a block's parts; other names stay."""
    for pattern, ours in PARTS:
        key, hits = re.subn(rf"^(s\d\.b\d+\.){pattern}", rf"\g<1>{ours}", key)
        if hits:
            break
    return key


X, Y = Config, partial(Config, se_ratio=0.25)
V = partial(Y, preact=True, act_layer="silu")
Z = partial(Y, bottle_ratio=4.0, downsample="", linear_out=True, act_layer="silu", zero_init_last=False)

VARIANTS = {
    "regnetv_040": V(depth=22, w0=96, wa=31.41, wm=2.24, group_size=64),
    "regnetv_064": V(depth=25, w0=112, wa=33.22, wm=2.27, group_size=72, downsample="avg"),
    "regnetx_002": X(depth=13, w0=24, wa=36.44, wm=2.49, group_size=8),
    "regnetx_004": X(depth=22, w0=24, wa=24.48, wm=2.54, group_size=16),
    "regnetx_004_tv": X(depth=22, w0=24, wa=24.48, wm=2.54, group_size=16, group_min_ratio=0.9),
    "regnetx_006": X(depth=16, w0=48, wa=36.97, wm=2.24, group_size=24),
    "regnetx_008": X(depth=16, w0=56, wa=35.73, wm=2.28, group_size=16),
    "regnetx_016": X(depth=18, w0=80, wa=34.01, wm=2.25, group_size=24),
    "regnetx_032": X(depth=25, w0=88, wa=26.31, wm=2.25, group_size=48),
    "regnetx_040": X(depth=23, w0=96, wa=38.65, wm=2.43, group_size=40),
    "regnetx_064": X(depth=17, w0=184, wa=60.83, wm=2.07, group_size=56),
    "regnetx_080": X(depth=23, w0=80, wa=49.56, wm=2.88, group_size=120),
    "regnetx_120": X(depth=19, w0=168, wa=73.36, wm=2.37, group_size=112),
    "regnetx_160": X(depth=22, w0=216, wa=55.59, wm=2.1, group_size=128),
    "regnetx_320": X(depth=23, w0=320, wa=69.86, wm=2.0, group_size=168),
    "regnety_002": Y(depth=13, w0=24, wa=36.44, wm=2.49, group_size=8),
    "regnety_004": Y(depth=16, w0=48, wa=27.89, wm=2.09, group_size=8),
    "regnety_006": Y(depth=15, w0=48, wa=32.54, wm=2.32, group_size=16),
    "regnety_008": Y(depth=14, w0=56, wa=38.84, wm=2.4, group_size=16),
    "regnety_008_tv": Y(depth=14, w0=56, wa=38.84, wm=2.4, group_size=16, group_min_ratio=0.9),
    "regnety_016": Y(depth=27, w0=48, wa=20.71, wm=2.65, group_size=24),
    "regnety_032": Y(depth=21, w0=80, wa=42.63, wm=2.66, group_size=24),
    "regnety_040": Y(depth=22, w0=96, wa=31.41, wm=2.24, group_size=64),
    "regnety_040_sgn": Y(
        depth=22,
        w0=96,
        wa=31.41,
        wm=2.24,
        group_size=64,
        act_layer="silu",
        norm_layer="groupnorm",
        norm_args={"group_size": 16},
    ),
    "regnety_064": Y(depth=25, w0=112, wa=33.22, wm=2.27, group_size=72),
    "regnety_080": Y(depth=17, w0=192, wa=76.82, wm=2.19, group_size=56),
    "regnety_080_tv": Y(depth=17, w0=192, wa=76.82, wm=2.19, group_size=56, group_min_ratio=0.9),
    "regnety_120": Y(depth=19, w0=168, wa=73.36, wm=2.37, group_size=112),
    "regnety_160": Y(depth=18, w0=200, wa=106.23, wm=2.48, group_size=112),
    "regnety_320": Y(depth=20, w0=232, wa=115.89, wm=2.53, group_size=232),
    "regnety_640": Y(depth=20, w0=352, wa=147.48, wm=2.4, group_size=328),
    "regnety_1280": Y(depth=27, w0=456, wa=160.83, wm=2.52, group_size=264),
    "regnety_2560": Y(depth=27, w0=640, wa=230.83, wm=2.53, group_size=373),
    "regnetz_005": Z(depth=21, w0=16, wa=10.7, wm=2.51, group_size=4, num_features=1024),
    "regnetz_040": Z(depth=28, w0=48, wa=14.5, wm=2.226, group_size=8),
    "regnetz_040_h": Z(depth=28, w0=48, wa=14.5, wm=2.226, group_size=8, num_features=1536),
}

family = Family(RegNet, VARIANTS, adapt=adapt)
__getattr__ = family.module_getattr(__name__)
