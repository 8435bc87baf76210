"""Xception (https://arxiv.org/abs/1610.02357): separable convolutions instead of Inception's branches.

In the layout of the network as first ported from Keras; the later ones are in `xception_aligned.py`.
"""

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._model import Model

__all__ = ["Block", "Config", "SeparableConv2d", "Xception"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Nothing but what all models have."""


class SeparableConv2d(nn.Module):
    """A 3x3 on each channel, then 1x1 across channels, with nothing between."""

    def __init__(self, in_chs: int, out_chs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chs, in_chs, 3, 1, 1, groups=in_chs, bias=False)
        self.pointwise = nn.Conv2d(in_chs, out_chs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.conv1(x))


class Block(nn.Module):
    """Separable convolutions from width to width, a shortcut around them, half the size at the end if `halve`.

    With `fork` it gives two maps, (rectified, as it is): a feature level is what the convolutions of the next block see
    of its output, while the shortcut of that block takes the output itself.
    """

    def __init__(self, *widths: int, halve: bool = False, rectify: bool = True, fork: bool = False) -> None:
        super().__init__()
        if halve:
            self.skip = nn.Conv2d(widths[0], widths[-1], 1, 2, bias=False)
            self.skipbn = nn.BatchNorm2d(widths[-1])
        layers: list[nn.Module] = []
        for i, (in_chs, out_chs) in enumerate(pairwise(widths)):
            if i or rectify:
                layers.append(nn.ReLU(inplace=i > 0))  # the first would spoil the input of the shortcut
            layers += [SeparableConv2d(in_chs, out_chs), nn.BatchNorm2d(out_chs)]
        self.rep = nn.Sequential(*layers, *([nn.MaxPool2d(3, 2, 1)] if halve else []))
        self.halve, self.fork = halve, fork

    def forward(self, maps: Tensor | tuple[Tensor, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        rectified, x = (maps, maps) if isinstance(maps, Tensor) else maps
        shortcut = self.skipbn(self.skip(x)) if self.halve else x
        x = self.rep(rectified) + shortcut
        return (x.relu(), x) if self.fork else x


class Xception(Model, config=Config):
    """Stem without padding, twelve residual blocks, two separable convolutions, pooled linear head."""

    positional = ("num_classes", "in_chans", "drop_rate", "global_pool")

    def build(self, c: Config) -> None:
        self.conv1 = nn.Conv2d(c.in_chans, 32, 3, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(32, 64, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.act2 = nn.ReLU(inplace=True)
        self.block1 = Block(64, 128, 128, halve=True, rectify=False, fork=True)
        self.block2 = Block(128, 256, 256, halve=True, fork=True)
        self.block3 = Block(256, 728, 728, halve=True)
        for i in range(4, 12):
            self.add_module(f"block{i}", Block(728, 728, 728, 728, fork=i == 11))
        self.block12 = Block(728, 728, 1024, halve=True)
        for i, (in_chs, out_chs) in enumerate(((1024, 1536), (1536, 2048)), 3):
            self.add_module(f"conv{i}", SeparableConv2d(in_chs, out_chs))
            self.add_module(f"bn{i}", nn.BatchNorm2d(out_chs))
            self.add_module(f"act{i}", nn.ReLU(inplace=True))
        middle = tuple(f"block{i}" for i in range(3, 12))
        closing = ("conv3", "bn3", "act3", "conv4", "bn4", "act4")
        self.chain = (
            Stage(("conv1", "bn1", "act1", "conv2", "bn2", "act2"), 64, 2, trim=6, checkpoint=False),
            Stage(("block1",), 128, 4, module="block2.rep.0", item=0, trim=6),
            Stage(("block2",), 256, 8, module="block3.rep.0", item=0, trim=6),
            Stage(middle, 728, 16, module="block12.rep.0", item=0, trim=6),
            Stage(("block12", *closing), 2048, 32, trim=6),
        )
        self.num_features = self.head_hidden_size = 2048
        self.build_head(c)

    def init_module(self, module: nn.Module, name: str) -> bool:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            return True
        return False


VARIANTS = {"legacy_xception": Config()}

family = Family(Xception, VARIANTS)
__getattr__ = family.module_getattr(__name__)
