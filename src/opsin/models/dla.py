"""Deep layer aggregation (DLA, https://arxiv.org/abs/1707.06484): blocks joined by trees of aggregation nodes.

The variants with Res2Net blocks are from https://arxiv.org/abs/1904.01169.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from opsin.layers import SelectAdaptivePool2d
from opsin.layers.classifier import ConvClassifier
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._model import Model

__all__ = ["DLA", "Config", "DlaBasic", "DlaBottle2neck", "DlaBottleneck", "DlaTree"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Of the six levels, the first two are plain convolutions and the others trees."""

    levels: tuple[int, ...] = (1, 1, 1, 2, 2, 1)  # convolutions, or depth of the tree
    channels: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    block: Any = "DlaBottleneck"  # DlaBasic, DlaBottleneck, DlaBottle2neck
    cardinality: int = 1  # groups of the 3x3 convolution
    base_width: int = 64  # width per group where a level has 64 channels
    shortcut_root: bool = False  # aggregation nodes add their last child


class DlaBasic(nn.Module):
    """Two 3x3 convolutions; `shortcut` takes the place of the input in the sum."""

    def __init__(self, in_chs: int, out_chs: int, c: Config, stride: int = 1) -> None:
        super().__init__()
        if c.cardinality != 1 or c.base_width != 64:
            raise ValueError("DlaBasic has cardinality 1 and base_width 64; use DlaBottleneck for others")
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_chs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chs)

    def residual(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        return self.relu(self.residual(x) + (x if shortcut is None else shortcut))


def inner_width(out_chs: int, c: Config) -> int:
    """Channels of the 3x3 convolution in a bottleneck, which halves its output's."""
    return out_chs * c.base_width // 64 * c.cardinality // 2


class DlaBottleneck(DlaBasic):
    """1x1, 3x3 (grouped, strided), 1x1."""

    def __init__(self, in_chs: int, out_chs: int, c: Config, stride: int = 1) -> None:
        nn.Module.__init__(self)
        width = inner_width(out_chs, c)
        self.conv1 = nn.Conv2d(in_chs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=c.cardinality, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_chs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_chs)
        self.relu = nn.ReLU(inplace=True)

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.bn3(self.conv3(x))


class DlaBottle2neck(DlaBasic):
    """1x1, four parts of which three go through 3x3 convolutions one after the other, 1x1."""

    scale = 4

    def __init__(self, in_chs: int, out_chs: int, c: Config, stride: int = 1) -> None:
        nn.Module.__init__(self)
        width = inner_width(out_chs, c)
        self.conv1 = nn.Conv2d(in_chs, self.scale * width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(self.scale * width)
        parts = range(self.scale - 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, 3, stride, 1, groups=c.cardinality, bias=False) for _ in parts
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in parts)
        self.pool = nn.AvgPool2d(3, stride, 1) if stride > 1 else None
        self.conv3 = nn.Conv2d(self.scale * width, out_chs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_chs)
        self.relu = nn.ReLU(inplace=True)

    def residual(self, x: Tensor) -> Tensor:
        *parts, last = self.relu(self.bn1(self.conv1(x))).chunk(self.scale, 1)
        done: list[Tensor] = []
        for part, conv, bn in zip(parts, self.convs, self.bns, strict=True):
            # where the block is strided the parts do not see each other
            part = part + done[-1] if done and self.pool is None else part
            done.append(self.relu(bn(conv(part))))
        done.append(last if self.pool is None else self.pool(last))
        return self.bn3(self.conv3(torch.cat(done, 1)))


BLOCKS = {"DlaBasic": DlaBasic, "DlaBottleneck": DlaBottleneck, "DlaBottle2neck": DlaBottle2neck}


class DlaRoot(nn.Module):
    """Aggregation node: 1x1 convolution of its children."""

    def __init__(self, in_chs: int, out_chs: int, shortcut: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_chs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = shortcut

    def forward(self, children: list[Tensor]) -> Tensor:
        x = self.bn(self.conv(torch.cat(children, 1)))
        return self.relu(x + children[0] if self.shortcut else x)


class DlaTree(nn.Module):
    """Two trees one depth lower, or two blocks and the node that joins them with all `children` from above.

    `extra_chs` is the width of those children; with `level_root` the input is one of them.
    """

    def __init__(
        self, depth: int, in_chs: int, out_chs: int, c: Config, *, stride: int = 1, level_root: bool = False,
        extra_chs: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.level_root = level_root
        extra_chs += in_chs if level_root else 0
        self.downsample = nn.MaxPool2d(stride, stride) if stride > 1 else nn.Identity()
        self.project: nn.Module = nn.Identity()
        self.root = None
        if depth > 1:
            self.tree1: nn.Module = DlaTree(depth - 1, in_chs, out_chs, c, stride=stride)
            self.tree2: nn.Module = DlaTree(depth - 1, out_chs, out_chs, c, extra_chs=extra_chs + out_chs)
            return
        block = BLOCKS[c.block] if isinstance(c.block, str) else c.block
        if in_chs != out_chs:
            self.project = nn.Sequential(nn.Conv2d(in_chs, out_chs, 1, bias=False), nn.BatchNorm2d(out_chs))
        self.tree1 = block(in_chs, out_chs, c, stride)
        self.tree2 = block(out_chs, out_chs, c)
        self.root = DlaRoot(2 * out_chs + extra_chs, out_chs, c.shortcut_root)

    def forward(self, x: Tensor, children: tuple[Tensor, ...] = ()) -> Tensor:
        bottom = self.downsample(x)
        if self.level_root:
            children = (*children, bottom)
        if self.root is None:
            first = self.tree1(x)
            return self.tree2(first, (*children, first))
        first = self.tree1(x, self.project(bottom))
        return self.root([self.tree2(first), first, *children])


def conv_level(in_chs: int, out_chs: int, count: int, *, kernel_size: int = 3, stride: int = 1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(count):
        conv = nn.Conv2d(
            out_chs if i else in_chs, out_chs, kernel_size, 1 if i else stride, kernel_size // 2, bias=False
        )
        layers += [conv, nn.BatchNorm2d(out_chs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class DLA(Model, config=Config):
    """Two levels of plain convolutions, four trees of blocks, pooled head that is a 1x1 convolution."""

    positional = ("levels", "channels")
    first_conv = "base_layer.0"

    def build(self, c: Config) -> None:
        if not len(c.levels) == len(c.channels) == 6:
            raise ValueError(f"levels={c.levels}, channels={c.channels}: six of each are needed")
        chs = c.channels
        self.base_layer = conv_level(c.in_chans, chs[0], 1, kernel_size=7)
        self.level0 = conv_level(chs[0], chs[0], c.levels[0])
        self.level1 = conv_level(chs[0], chs[1], c.levels[1], stride=2)
        stages = [
            Stage(("base_layer", "level0"), chs[0], 1, checkpoint=False),
            Stage(("level1",), chs[1], 2, checkpoint=False),
        ]
        for i in range(2, 6):
            self.add_module(f"level{i}", DlaTree(c.levels[i], chs[i - 1], chs[i], c, stride=2, level_root=i > 2))
            stages.append(Stage((f"level{i}",), chs[i], 2**i))
        self.chain = tuple(stages)
        self.num_features = self.head_hidden_size = chs[-1]
        self.build_head(c)

    def build_head(self, c: Config) -> None:
        self.global_pool = SelectAdaptivePool2d(pool_type=c.global_pool, flatten=bool(c.global_pool))
        width = self.num_features * self.global_pool.feat_mult()
        self.fc = ConvClassifier(width, c.num_classes) if c.num_classes else nn.Identity()

    def init_module(self, module: nn.Module, name: str) -> bool:
        if not isinstance(module, nn.Conv2d):
            return False
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        return True


def adapt(state_dict: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """The authors' files hold projections at the upper nodes of trees, which nothing reads."""
    wanted = model.state_dict().keys()
    return {k: v for k, v in state_dict.items() if k in wanted or ".project." not in k}


WIDE, COMPACT = (16, 32, 128, 256, 512, 1024), (16, 32, 64, 64, 128, 256)
D60 = partial(Config, levels=(1, 1, 1, 2, 3, 1), channels=WIDE)
D102 = partial(Config, levels=(1, 1, 1, 3, 4, 1), channels=WIDE, shortcut_root=True)
X: dict[str, Any] = {"cardinality": 32, "base_width": 4}
VARIANTS = {
    "dla34": Config(block="DlaBasic"),
    "dla46_c": Config(channels=COMPACT),
    "dla46x_c": Config(channels=COMPACT, **X),
    "dla60": D60(),
    "dla60_res2net": D60(block="DlaBottle2neck", base_width=28),
    "dla60_res2next": D60(block="DlaBottle2neck", cardinality=8, base_width=4),
    "dla60x": D60(**X),
    "dla60x_c": Config(levels=(1, 1, 1, 2, 3, 1), channels=COMPACT, **X),
    "dla102": D102(),
    "dla102x": D102(**X),
    "dla102x2": D102(cardinality=64, base_width=4),
    "dla169": Config(levels=(1, 1, 2, 3, 5, 1), channels=WIDE, shortcut_root=True),
}

family = Family(DLA, VARIANTS, adapt=adapt)
__getattr__ = family.module_getattr(__name__)
