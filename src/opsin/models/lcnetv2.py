"""PP-LCNetV2: a network for CPUs, whose late stages have branches that merge (https://github.com/PaddlePaddle/PaddleClas)."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor, nn

from opsin.layers import SEModule, create_act, make_divisible
from opsin.layers.conv_norm_act import ConvNormAct
from opsin.layers.reparam import merge_branches
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._conv_head import ConvHead
from opsin.models._family import Family

__all__ = ["Config", "LCNetV2"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """`scale` multiplies all widths but that behind the pooling; `depths` are the blocks of each stage."""

    scale: float = 1.0
    depths: tuple[int, ...] = (2, 2, 6, 2)
    head_hidden_size: int = 1280
    act_layer: Any = "relu"
    norm_layer: Any = "batchnorm2d"


class Kind(NamedTuple):
    """What the blocks of a stage are like; they end with `width` channels times the scale."""

    width: int
    kernel: int = 3
    rep: bool = False  # depthwise convolutions of several sizes side by side
    split_pw: bool = False  # the 1x1 convolution in two steps, by way of half the channels
    squeeze: bool = False
    shortcut: bool = False  # the input is added where shapes allow


STEM = Kind(64)
STAGES = (
    Kind(128),
    Kind(256),
    Kind(512, 5, rep=True, split_pw=True, squeeze=True),
    Kind(1024, 5, rep=True, shortcut=True),
)


class RepDepthwise(nn.ModuleList):
    """Depthwise convolutions of odd sizes from `kernel` down, side by side; 1x1 only where the map keeps its size."""

    def __init__(self, channels: int, kernel: int, stride: int, layers: dict[str, Any]) -> None:
        sizes = range(kernel, 0 if stride == 1 else 1, -2)
        args: dict[str, Any] = {"groups": channels, "apply_act": False} | layers
        super().__init__(ConvNormAct(channels, channels, size, stride, **args) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self
        return sum((conv(x) for conv in others), first(x))

    def reparameterize(self) -> nn.Module:
        """One convolution that does the same in evaluation; only batch norms allow it, with others nothing changes."""
        if not isinstance(self[0].bn, nn.BatchNorm2d):
            return self
        return merge_branches([(branch.conv, branch.bn) for branch in self])  # type: ignore[misc]


class RepDepthwiseSeparable(nn.Module):
    """Depthwise convolution(s), squeeze and excitation, 1x1 convolution(s)."""

    def __init__(self, in_chs: int, out_chs: int, stride: int, kind: Kind, c: Config) -> None:
        super().__init__()
        layers = {"norm_layer": c.norm_layer, "act_layer": c.act_layer}
        self.skip = kind.shortcut and stride == 1 and in_chs == out_chs
        self.dw_act: nn.Module = nn.Identity()
        if kind.rep:
            self.dw_conv_list: nn.Module = RepDepthwise(in_chs, kind.kernel, stride, layers)
            self.dw_act = create_act(c.act_layer, inplace=True)
        else:
            self.dw_conv = ConvNormAct(in_chs, in_chs, kind.kernel, stride, groups=in_chs, **layers)
        self.se = SEModule(in_chs, 0.25) if kind.squeeze else nn.Identity()
        widths = (in_chs, out_chs // 2, out_chs) if kind.split_pw else (in_chs, out_chs)
        steps = [ConvNormAct(a, b, 1, **layers) for a, b in pairwise(widths)]
        self.pw_conv = nn.Sequential(*steps) if kind.split_pw else steps[0]

    def forward(self, x: Tensor) -> Tensor:
        depthwise = self.dw_conv_list if hasattr(self, "dw_conv_list") else self.dw_conv
        out = self.pw_conv(self.se(self.dw_act(depthwise(x))))
        return x + out if self.skip else out


class LCNetV2(ConvHead, config=Config):
    """Stem of stride 2, four strided stages, pooling, a 1x1 convolution, linear classifier."""

    positional = ("scale", "depths", "in_chans", "num_classes")
    first_conv = "stem.0.conv"

    def build(self, c: Config) -> None:
        thin, width = (make_divisible(chs * c.scale) for chs in (STEM.width // 2, STEM.width))
        layers = {"norm_layer": c.norm_layer, "act_layer": c.act_layer}
        self.stem = nn.Sequential(
            ConvNormAct(c.in_chans, thin, 3, 2, **layers), RepDepthwiseSeparable(thin, width, 1, STEM, c)
        )
        chain = [Stage(("stem.0", "stem.1"), checkpoint=False)]
        self.stages = nn.Sequential()
        for i, (kind, depth) in enumerate(zip(STAGES, c.depths, strict=True)):
            out = make_divisible(kind.width * c.scale)
            places = [(width, 2)] + [(out, 1)] * (depth - 1)
            blocks = [RepDepthwiseSeparable(in_chs, out, stride, kind, c) for in_chs, stride in places]
            self.stages.append(nn.Sequential(*blocks))
            chain.append(Stage((f"stages.{i}",), out, 4 * 2**i))
            width = out
        self.num_features, self.head_hidden_size = width, c.head_hidden_size
        self.chain = tuple(chain)
        self.build_head(c)

    def conv_head_parts(self, in_chs: int) -> tuple[nn.Module, nn.Module]:
        conv = nn.Conv2d(in_chs, self.head_hidden_size, 1, bias=False)
        return conv, create_act(self.config.act_layer, inplace=True)

    def init_module(self, module: nn.Module, name: str) -> bool:
        if not isinstance(module, nn.Conv2d):
            return False
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        return True


VARIANTS = {
    "lcnetv2_base": Config(),
    "lcnetv2_large": Config(scale=1.25, depths=(2, 2, 8, 2)),
    "lcnetv2_small": Config(scale=0.75, depths=(2, 2, 4, 2)),
}

family = Family(LCNetV2, VARIANTS, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
