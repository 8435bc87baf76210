"""Inception v4 (https://arxiv.org/abs/1602.07261): more of Inception, on a stem that branches as well."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from opsin.models._chain import Stage
from opsin.models._family import Family
from opsin.models._inception import VALID, Branches, InceptionConfig, InceptionNet, conv_maker

__all__ = ["Config", "InceptionV4"]


@dataclass(frozen=True, kw_only=True)
class Config(InceptionConfig):
    """Nothing but what all Inception networks have."""


STEM: list[list[Any]] = [
    [["max"], [("conv", 96, 3, 2, VALID)]],
    [
        [("branch0.0", 64), ("branch0.1", 96, 3, 1, VALID)],
        [
            ("branch1.0", 64),
            ("branch1.1", 64, (1, 7)),
            ("branch1.2", 64, (7, 1)),
            ("branch1.3", 96, 3, 1, VALID),
        ],
    ],
    [[("conv", 192, 3, 2, VALID)], ["max"]],
]
A: list[Any] = [
    [("branch0", 96)],
    [("branch1.0", 64), ("branch1.1", 96, 3)],
    [("branch2.0", 64), ("branch2.1", 96, 3), ("branch2.2", 96, 3)],
    ["avg_inside", ("branch3.1", 96)],
]
REDUCE_A: list[Any] = [
    [("branch0", 384, 3, 2, VALID)],
    [("branch1.0", 192), ("branch1.1", 224, 3), ("branch1.2", 256, 3, 2, VALID)],
    ["max"],
]
B: list[Any] = [
    [("branch0", 384)],
    [("branch1.0", 192), ("branch1.1", 224, (1, 7)), ("branch1.2", 256, (7, 1))],
    [
        ("branch2.0", 192),
        ("branch2.1", 192, (7, 1)),
        ("branch2.2", 224, (1, 7)),
        ("branch2.3", 224, (7, 1)),
        ("branch2.4", 256, (1, 7)),
    ],
    ["avg_inside", ("branch3.1", 128)],
]
REDUCE_B: list[Any] = [
    [("branch0.0", 192), ("branch0.1", 192, 3, 2, VALID)],
    [
        ("branch1.0", 256),
        ("branch1.1", 256, (1, 7)),
        ("branch1.2", 320, (7, 1)),
        ("branch1.3", 320, 3, 2, VALID),
    ],
    ["max"],
]
C: list[Any] = [
    [("branch0", 256)],
    [("branch1_0", 384), [("branch1_1a", 256, (1, 3)), ("branch1_1b", 256, (3, 1))]],
    [
        ("branch2_0", 384),
        ("branch2_1", 448, (3, 1)),
        ("branch2_2", 512, (1, 3)),
        [("branch2_3a", 256, (1, 3)), ("branch2_3b", 256, (3, 1))],
    ],
    ["avg_inside", ("branch3.1", 256)],
]


class InceptionV4(InceptionNet, config=Config):
    """Branching stem without padding, blocks of branches on three sizes, pooled linear head."""

    positional = ("num_classes", "in_chans")
    classifier_path = "last_linear"
    first_conv = "features.0.conv"

    def build(self, c: Config) -> None:
        conv = conv_maker(c)
        stem = [conv(c.in_chans, 32, 3, 2, padding=VALID), conv(32, 32, 3, padding=VALID), conv(32, 64, 3)]
        self.features = nn.Sequential(*stem)
        width, widths = 64, {2: 64}
        for branches in (*STEM, *[A] * 4, REDUCE_A, *[B] * 7, REDUCE_B, *[C] * 3):
            block = Branches(width, branches, conv)
            width = widths[len(self.features)] = block.out_chs
            self.features.append(block)
        begin, chain = 0, []
        for end, reduction, trim in ((2, 2, 6), (3, 4, 10), (9, 8, 26), (17, 16, 42), (21, 32, 74)):
            run = tuple(f"features.{i}" for i in range(begin, end + 1))
            chain.append(Stage(run, widths[end], reduction, trim=trim, checkpoint=end > 3))
            begin = end + 1
        self.chain = tuple(chain)
        self.num_features = self.head_hidden_size = width
        self.build_head(c)


VARIANTS = {"inception_v4": Config()}

family = Family(InceptionV4, VARIANTS, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
