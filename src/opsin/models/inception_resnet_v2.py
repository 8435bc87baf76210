"""Inception-ResNet v2 (https://arxiv.org/abs/1602.07261): Inception branches as scaled residuals."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from opsin.layers import create_act
from opsin.models._chain import Stage
from opsin.models._family import Family
from opsin.models._inception import VALID, Branches, InceptionConfig, InceptionNet, conv_maker

__all__ = ["Config", "InceptionResnetV2", "ResidualBranches"]


@dataclass(frozen=True, kw_only=True)
class Config(InceptionConfig):
    """Nothing but what all Inception networks have."""


MIXED_5B: list[Any] = [
    [("branch0", 96)],
    [("branch1.0", 48), ("branch1.1", 64, 5)],
    [("branch2.0", 64), ("branch2.1", 96, 3), ("branch2.2", 96, 3)],
    ["avg_inside", ("branch3.1", 64)],
]
MIXED_6A: list[Any] = [
    [("branch0", 384, 3, 2, VALID)],
    [("branch1.0", 256), ("branch1.1", 256, 3), ("branch1.2", 384, 3, 2, VALID)],
    ["max"],
]
MIXED_7A: list[Any] = [
    [("branch0.0", 256), ("branch0.1", 384, 3, 2, VALID)],
    [("branch1.0", 256), ("branch1.1", 288, 3, 2, VALID)],
    [("branch2.0", 256), ("branch2.1", 288, 3), ("branch2.2", 320, 3, 2, VALID)],
    ["max"],
]
BLOCK_35: list[Any] = [
    [("branch0", 32)],
    [("branch1.0", 32), ("branch1.1", 32, 3)],
    [("branch2.0", 32), ("branch2.1", 48, 3), ("branch2.2", 64, 3)],
]
BLOCK_17: list[Any] = [
    [("branch0", 192)],
    [("branch1.0", 128), ("branch1.1", 160, (1, 7)), ("branch1.2", 192, (7, 1))],
]
BLOCK_8: list[Any] = [
    [("branch0", 192)],
    [("branch1.0", 192), ("branch1.1", 224, (1, 3)), ("branch1.2", 256, (3, 1))],
]


class ResidualBranches(Branches):
    """Branches brought back to the width of the input, scaled and added to it."""

    def __init__(self, chs: int, branches: list[Any], c: Config, *, scale: float = 1.0, act: bool = True) -> None:
        super().__init__(chs, branches, conv_maker(c))
        self.scale = scale
        self.conv2d = nn.Conv2d(self.out_chs, chs, 1)
        self.act = create_act(c.act_layer) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv2d(super().forward(x)) * self.scale + x)


class InceptionResnetV2(InceptionNet, config=Config):
    """Convolutional stem without padding, residual blocks of branches on three sizes, pooled linear head."""

    positional = ("num_classes", "in_chans", "drop_rate")
    classifier_path = "classif"
    first_conv = "conv2d_1a.conv"

    def build(self, c: Config) -> None:
        conv = conv_maker(c)
        self.conv2d_1a = conv(c.in_chans, 32, 3, 2, padding=VALID)
        self.conv2d_2a = conv(32, 32, 3, padding=VALID)
        self.conv2d_2b = conv(32, 64, 3)
        self.maxpool_3a = nn.MaxPool2d(3, 2)
        self.conv2d_3b = conv(64, 80, 1)
        self.conv2d_4a = conv(80, 192, 3, padding=VALID)
        self.maxpool_5a = nn.MaxPool2d(3, 2)
        self.mixed_5b = Branches(192, MIXED_5B, conv)
        self.repeat = self.row(10, BLOCK_35, self.mixed_5b, c, 0.17)
        self.mixed_6a = Branches(320, MIXED_6A, conv)
        self.repeat_1 = self.row(20, BLOCK_17, self.mixed_6a, c, 0.10)
        self.mixed_7a = Branches(1088, MIXED_7A, conv)
        self.repeat_2 = self.row(9, BLOCK_8, self.mixed_7a, c, 0.20)
        self.block8 = ResidualBranches(2080, BLOCK_8, c, act=False)
        self.conv2d_7b = conv(2080, 1536, 1)
        self.chain = (
            Stage(("conv2d_1a", "conv2d_2a", "conv2d_2b"), 64, 2, trim=6, checkpoint=False),
            Stage(("maxpool_3a", "conv2d_3b", "conv2d_4a"), 192, 4, trim=18, checkpoint=False),
            Stage(("maxpool_5a", "mixed_5b", "repeat"), 320, 8, trim=26),
            Stage(("mixed_6a", "repeat_1"), 1088, 16, trim=42),
            Stage(("mixed_7a", "repeat_2", "block8", "conv2d_7b"), 1536, 32, trim=74),
        )
        self.num_features = self.head_hidden_size = 1536
        self.build_head(c)

    @staticmethod
    def row(depth: int, branches: list[Any], before: Branches, c: Config, scale: float) -> nn.Sequential:
        return nn.Sequential(*(ResidualBranches(before.out_chs, branches, c, scale=scale) for _ in range(depth)))


VARIANTS = {"inception_resnet_v2": Config()}

family = Family(InceptionResnetV2, VARIANTS)
__getattr__ = family.module_getattr(__name__)
