"""HRNet (https://arxiv.org/abs/1908.07919): maps of several sizes run side by side and are mixed again and again.

After the stem a list of maps runs along the chain, from 1/4 of the image down to 1/32. The feature levels are its items
after they were widened for the head (or before, as dense prediction takes them: `feature_location=""`).
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._model import Model
from opsin.models.resnet import BasicBlock, Bottleneck, ResidualBlock, shortcut
from opsin.models.resnet import Config as ResNetConfig

__all__ = ["Config", "HighResolutionModule", "HighResolutionNet"]

RESNET = ResNetConfig()  # the blocks are those of a plain ResNet
HEAD_CHS = (128, 256, 512, 1024)  # of the four maps before they are merged


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """The tuples have a figure for each stage; stage n has n branches, each twice as wide as the one before."""

    num_modules: tuple[int, ...] = (1, 1, 4, 3)  # how often the branches of a stage are mixed
    num_blocks: tuple[int, ...] = (4, 4, 4, 4)  # per branch, between one mixing and the next
    num_channels: tuple[int, ...] = (64, 18, 18, 18)  # of the first branch
    head_conv_bias: bool = True  # of the convolutions that merge the maps
    feature_location: str = "incre"  # levels are the widened maps; "" the maps themselves


def conv_norm(in_chs: int, out_chs: int, kernel: int = 3, stride: int = 1, *, bias: bool = False, act: bool = True):
    conv = nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, bias=bias)
    return nn.Sequential(conv, nn.BatchNorm2d(out_chs), *([nn.ReLU(inplace=True)] if act else []))


def residual(block: type[ResidualBlock], in_chs: int, planes: int, depth: int) -> list[nn.Module]:
    out_chs = planes * block.expansion
    down = shortcut(in_chs, out_chs, RESNET, 1, 1, 1) if in_chs != out_chs else None
    return [block(in_chs, planes, downsample=down), *(block(out_chs, planes) for _ in range(depth - 1))]


class Transition(nn.ModuleList):
    """From the branches of one stage to those of the next: the new one is made of the smallest map there is."""

    def __init__(self, before: list[int], after: list[int]) -> None:
        super().__init__()
        for i, out_chs in enumerate(after):
            if i >= len(before):
                self.append(nn.Sequential(conv_norm(before[-1], out_chs, stride=2)))
            else:
                self.append(nn.Identity() if before[i] == out_chs else conv_norm(before[i], out_chs))

    def forward(self, xs: Tensor | list[Tensor]) -> list[Tensor]:
        xs = [xs] if isinstance(xs, Tensor) else xs
        return [part(xs[min(i, len(xs) - 1)]) for i, part in enumerate(self)]


class Mix(nn.ModuleList):
    """The sum of all maps of the list, each brought to the size and width of map number `target`."""

    def __init__(self, chs: list[int], target: int) -> None:
        super().__init__(self.bring(chs, source, target) for source in range(len(chs)))
        self.target = target

    @staticmethod
    def bring(chs: list[int], source: int, target: int) -> nn.Module:
        """One 1x1 up to a larger map (`forward` does the resizing), a strided 3x3 for each halving down."""
        if source == target:
            return nn.Identity()
        if source > target:
            return conv_norm(chs[source], chs[target], 1, act=False)
        steps = [conv_norm(chs[source], chs[source], stride=2) for _ in range(target - source - 1)]
        return nn.Sequential(*steps, conv_norm(chs[source], chs[target], stride=2, act=False))

    def forward(self, xs: list[Tensor]) -> Tensor:
        maps = [layer(x) for layer, x in zip(self, xs, strict=True)]
        total, size = maps[0], xs[self.target].shape[-2:]
        for source, x in enumerate(maps[1:], 1):
            total = total + (F.interpolate(x, size=size, mode="nearest") if source > self.target else x)
        return total


class HighResolutionModule(nn.Module):
    """Blocks on each branch, then every map is mixed with all others."""

    def __init__(self, chs: list[int], depth: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*residual(BasicBlock, c, c, depth)) for c in chs)
        self.fuse_layers = nn.ModuleList(Mix(chs, target) for target in range(len(chs)))
        self.fuse_act = nn.ReLU()

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        xs = [branch(x) for branch, x in zip(self.branches, xs, strict=True)]
        return [self.fuse_act(mix(xs)) for mix in self.fuse_layers]


class OnBranch(nn.Sequential):
    """Layers that work on one map of the list."""

    def __init__(self, index: int, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.index = index

    def forward(self, xs: list[Tensor]) -> list[Tensor]:
        return [super(OnBranch, self).forward(x) if i == self.index else x for i, x in enumerate(xs)]


class Merge(nn.ModuleList):
    """One map of all: each is halved and added to the next smaller one."""

    def forward(self, xs: list[Tensor]) -> Tensor:
        total = xs[0]
        for down, x in zip(self, xs[1:], strict=True):
            total = x + down(total)
        return total


class HighResolutionNet(Model, config=Config):
    """Stem, stages of one to four branches, a head that merges the branches, pooled linear classifier."""

    classifier_path = "classifier"

    def build(self, c: Config) -> None:
        if c.feature_location not in ("incre", ""):
            raise ValueError(f"feature_location={c.feature_location!r}: 'incre' (widened maps) or '' (as they run)")
        for i, in_chs in enumerate((c.in_chans, 64), 1):
            self.add_module(f"conv{i}", nn.Conv2d(in_chs, 64, 3, 2, 1, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(64))
            self.add_module(f"act{i}", nn.ReLU(inplace=True))
        self.layer1 = nn.Sequential(*residual(Bottleneck, 64, c.num_channels[0], c.num_blocks[0]))
        chs, trunk = [4 * c.num_channels[0]], ["conv2", "bn2", "act2", "layer1"]
        for i in (1, 2, 3):
            before, chs = chs, [c.num_channels[i] * 2**k for k in range(i + 1)]
            modules = (HighResolutionModule(chs, c.num_blocks[i]) for _ in range(c.num_modules[i]))
            self.add_module(f"transition{i}", Transition(before, chs))
            self.add_module(f"stage{i + 1}", nn.Sequential(*modules))
            trunk += [f"transition{i}", f"stage{i + 1}"]
        self.build_merge(c, chs)
        widen = [f"incre_modules.{i}" for i in range(4)]
        stem = Stage(("conv1", "bn1", "act1"), 64, 2, module="stem", checkpoint=False)
        wide = c.feature_location == "incre"
        levels = [
            Stage(
                (widen[i],) if wide else (), HEAD_CHS[i] if wide else chs[i], 4 * 2**i, module=f"stage{i + 1}", item=i
            )
            for i in range(4)
        ]
        closing = Stage((*(() if wide else widen), "downsamp_modules", "final_layer"))
        self.chain = (stem, Stage(tuple(trunk)), *levels, closing)
        self.num_features = self.head_hidden_size = 2048
        self.build_head(c)

    def build_merge(self, c: Config, chs: list[int]) -> None:
        """Each map widened to its share of `HEAD_CHS`, then all merged into one of 2048 channels."""
        self.incre_modules = nn.ModuleList(
            OnBranch(i, *residual(Bottleneck, chs[i], out_chs // 4, 1)) for i, out_chs in enumerate(HEAD_CHS)
        )
        self.downsamp_modules = Merge(conv_norm(a, b, stride=2, bias=c.head_conv_bias) for a, b in pairwise(HEAD_CHS))
        self.final_layer = conv_norm(HEAD_CHS[-1], 2048, 1, bias=c.head_conv_bias)

    def init_module(self, module: nn.Module, name: str) -> bool:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            return True
        return False


def width(chs: int, **changes) -> Config:
    return Config(num_channels=(64, chs, chs, chs), **changes)


Small = partial(Config, num_blocks=(2, 2, 2, 2))

VARIANTS = {
    "hrnet_w18": width(18),
    "hrnet_w18_small": Small(num_modules=(1, 1, 1, 1), num_blocks=(1, 2, 2, 2), num_channels=(32, 16, 16, 16)),
    "hrnet_w18_small_v2": Small(num_modules=(1, 1, 3, 2)),
    "hrnet_w18_ssld": width(18, head_conv_bias=False),
    "hrnet_w30": width(30),
    "hrnet_w32": width(32),
    "hrnet_w40": width(40),
    "hrnet_w44": width(44),
    "hrnet_w48": width(48),
    "hrnet_w48_ssld": width(48, head_conv_bias=False),
    "hrnet_w64": width(64),
}

family = Family(HighResolutionNet, VARIANTS)
__getattr__ = family.module_getattr(__name__)
