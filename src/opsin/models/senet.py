"""Squeeze-and-excitation networks (https://arxiv.org/abs/1709.01507) in the layout of the authors' own Caffe weights.

The `senet154` and `seresnet*` of `resnet.py` are the same idea on today's ResNet.
"""

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, did_you_mean
from opsin.layers import SEModule
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._model import Model

__all__ = ["Config", "SEBottleneck", "SENet", "SEResNeXtBottleneck", "SEResNetBlock", "SEResNetBottleneck"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """`layers` are blocks per stage."""

    block: Any = None
    layers: tuple[int, ...] = ()
    groups: int = 1  # of the 3x3 convolution
    reduction: int = 16  # divides the channels inside squeeze and excitation
    drop_rate: float = 0.2
    inplanes: int = 64  # width of the stem
    input_3x3: bool = False  # three 3x3 convolutions in the stem, not one 7x7
    downsample_kernel_size: int = 1  # of the shortcuts, from the second stage on
    downsample_padding: int = 0


class SEBlock(nn.Module):
    """Residual block of convolutions, each with a norm, gated by squeeze and excitation.

    A block says in `convolutions` what they are: (out channels, kernel size, stride, groups) each.
    """

    expansion: ClassVar[int] = 4
    act_last: ClassVar[bool] = False  # whether the last norm has an activation as well

    def __init__(
        self, in_chs: int, planes: int, c: Config, *, stride: int = 1, downsample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.depth = 0
        for out_chs, kernel, step, groups in self.convolutions(planes, stride, c.groups):
            self.depth += 1
            conv = nn.Conv2d(in_chs, out_chs, kernel, step, kernel // 2, groups=groups, bias=False)
            self.add_module(f"conv{self.depth}", conv)
            self.add_module(f"bn{self.depth}", nn.BatchNorm2d(out_chs))
            in_chs = out_chs
        self.relu = nn.ReLU(inplace=True)
        self.se_module = SEModule(in_chs, rd_channels=in_chs // c.reduction)
        self.downsample = nn.Identity() if downsample is None else downsample

    @staticmethod
    def convolutions(planes: int, stride: int, groups: int) -> list[tuple[int, int, int, int]]:
        raise NotImplementedError("each block says what its convolutions are")

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.downsample(x)
        for i in range(1, self.depth + 1):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))
            x = self.relu(x) if self.act_last or i < self.depth else x
        return self.relu(self.se_module(x) + shortcut)


class SEResNetBlock(SEBlock):
    """Two 3x3 convolutions."""

    expansion = 1
    act_last = True

    @staticmethod
    def convolutions(planes: int, stride: int, groups: int) -> list[tuple[int, int, int, int]]:
        return [(planes, 3, stride, 1), (planes, 3, 1, groups)]


class SEResNetBottleneck(SEBlock):
    """1x1, 3x3, 1x1; the stride stands in the first, as in Caffe."""

    @staticmethod
    def convolutions(planes: int, stride: int, groups: int) -> list[tuple[int, int, int, int]]:
        return [(planes, 1, stride, 1), (planes, 3, 1, groups), (4 * planes, 1, 1, 1)]


class SEResNeXtBottleneck(SEBlock):
    """1x1, grouped 3x3 with 4 channels a group where a stage has 64 planes, 1x1."""

    @staticmethod
    def convolutions(planes: int, stride: int, groups: int) -> list[tuple[int, int, int, int]]:
        width = planes * 4 // 64 * groups
        return [(width, 1, 1, 1), (width, 3, stride, groups), (4 * planes, 1, 1, 1)]


class SEBottleneck(SEBlock):
    """1x1, grouped 3x3 of twice the width, 1x1 (SENet-154)."""

    @staticmethod
    def convolutions(planes: int, stride: int, groups: int) -> list[tuple[int, int, int, int]]:
        return [(2 * planes, 1, 1, 1), (4 * planes, 3, stride, groups), (4 * planes, 1, 1, 1)]


class SENet(Model, config=Config):
    """Stem, four stages of blocks with squeeze and excitation, pooled linear head."""

    positional = ("block", "layers", "groups", "reduction", "drop_rate", "in_chans")
    classifier_path = "last_linear"
    first_conv = "layer0.conv1"
    blocks: ClassVar[dict[str, type[SEBlock]]] = {
        block.__name__: block for block in (SEBottleneck, SEResNetBlock, SEResNetBottleneck, SEResNeXtBottleneck)
    }

    def build(self, c: Config) -> None:
        if isinstance(c.block, str) and c.block not in self.blocks:
            near = did_you_mean(c.block, self.blocks)
            raise UnknownArgumentError(f"no block {c.block!r}.{near} Known: {', '.join(self.blocks)}")
        block: Any = self.blocks.get(c.block, c.block)
        self.layer0 = build_stem(c)
        self.pool0 = nn.MaxPool2d(3, 2, ceil_mode=True)  # Caffe rounds up and does not pad
        stages, width = [Stage(("layer0",), c.inplanes, 2, checkpoint=False)], c.inplanes
        for i, depth in enumerate(c.layers):
            planes, stride = 64 * 2**i, 2 if i else 1
            out_chs = planes * block.expansion
            down = None
            if stride != 1 or width != out_chs:
                kernel, padding = (c.downsample_kernel_size, c.downsample_padding) if i else (1, 0)
                conv = nn.Conv2d(width, out_chs, kernel, stride, padding, bias=False)
                down = nn.Sequential(conv, nn.BatchNorm2d(out_chs))
            first = block(width, planes, c, stride=stride, downsample=down)
            layer = nn.Sequential(first, *(block(out_chs, planes, c) for _ in range(depth - 1)))
            self.add_module(f"layer{i + 1}", layer)
            width = out_chs
            stages.append(Stage((*(() if i else ("pool0",)), f"layer{i + 1}"), width, 4 * 2**i))
        self.num_features = self.head_hidden_size = width
        self.chain = tuple(stages)
        self.build_head(c)

    def init_module(self, module: nn.Module, name: str) -> bool:
        if isinstance(module, nn.Conv2d) and module.bias is None:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            return True
        return False


def build_stem(c: Config) -> nn.Sequential:
    """Stride 2, to `inplanes` channels."""
    spec = [(64, 3, 2), (64, 3, 1), (c.inplanes, 3, 1)] if c.input_3x3 else [(c.inplanes, 7, 2)]
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    in_chs = c.in_chans
    for i, (out_chs, kernel, stride) in enumerate(spec, 1):
        parts[f"conv{i}"] = nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, bias=False)
        parts[f"bn{i}"] = nn.BatchNorm2d(out_chs)
        parts[f"relu{i}"] = nn.ReLU(inplace=True)
        in_chs = out_chs
    return nn.Sequential(parts)


Basic = partial(Config, block="SEResNetBlock")
Bottle = partial(Config, block="SEResNetBottleneck")
NeXt = partial(Config, block="SEResNeXtBottleneck", groups=32)

VARIANTS = {
    "legacy_senet154": Config(
        block="SEBottleneck",
        layers=(3, 8, 36, 3),
        groups=64,
        inplanes=128,
        input_3x3=True,
        downsample_kernel_size=3,
        downsample_padding=1,
    ),
    "legacy_seresnet18": Basic(layers=(2, 2, 2, 2)),
    "legacy_seresnet34": Basic(layers=(3, 4, 6, 3)),
    "legacy_seresnet50": Bottle(layers=(3, 4, 6, 3)),
    "legacy_seresnet101": Bottle(layers=(3, 4, 23, 3)),
    "legacy_seresnet152": Bottle(layers=(3, 8, 36, 3)),
    "legacy_seresnext26_32x4d": NeXt(layers=(2, 2, 2, 2)),
    "legacy_seresnext50_32x4d": NeXt(layers=(3, 4, 6, 3)),
    "legacy_seresnext101_32x4d": NeXt(layers=(3, 4, 23, 3)),
}

family = Family(SENet, VARIANTS)
__getattr__ = family.module_getattr(__name__)
