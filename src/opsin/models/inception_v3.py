"""Inception v3 (https://arxiv.org/abs/1512.00567): large kernels as rows of small ones, in branches side by side."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from opsin.layers import trunc_normal_
from opsin.models._chain import Stage
from opsin.models._family import Family
from opsin.models._inception import VALID, Branches, InceptionConfig, InceptionNet, conv_maker

__all__ = ["AuxHead", "Config", "InceptionV3"]


@dataclass(frozen=True, kw_only=True)
class Config(InceptionConfig):
    """With `aux_logits` the model returns two logits, those of the second head in the middle as well."""

    aux_logits: bool = False


def block_5(pool: int) -> list[Any]:
    return [
        [("branch1x1", 64)],
        [("branch5x5_1", 48), ("branch5x5_2", 64, 5)],
        [("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
        ["avg", ("branch_pool", pool)],
    ]


def block_6(width: int) -> list[Any]:
    """A 7x7 as 1x7 and 7x1, once and twice."""
    row, column = (1, 7), (7, 1)
    return [
        [("branch1x1", 192)],
        [("branch7x7_1", width), ("branch7x7_2", width, row), ("branch7x7_3", 192, column)],
        [
            ("branch7x7dbl_1", width),
            ("branch7x7dbl_2", width, column),
            ("branch7x7dbl_3", width, row),
            ("branch7x7dbl_4", width, column),
            ("branch7x7dbl_5", 192, row),
        ],
        ["avg", ("branch_pool", 192)],
    ]


BLOCK_7: list[Any] = [
    [("branch1x1", 320)],
    [("branch3x3_1", 384), [("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))]],
    [
        ("branch3x3dbl_1", 448),
        ("branch3x3dbl_2", 384, 3),
        [("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))],
    ],
    ["avg", ("branch_pool", 192)],
]

MIXED: dict[str, list[Any]] = {
    "5b": block_5(32),
    "5c": block_5(64),
    "5d": block_5(64),
    "6a": [
        [("branch3x3", 384, 3, 2, VALID)],
        [("branch3x3dbl_1", 64), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3, 2, VALID)],
        ["max"],
    ],
    "6b": block_6(128),
    "6c": block_6(160),
    "6d": block_6(160),
    "6e": block_6(192),
    "7a": [
        [("branch3x3_1", 192), ("branch3x3_2", 320, 3, 2, VALID)],
        [
            ("branch7x7x3_1", 192),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, 3, 2, VALID),
        ],
        ["max"],
    ],
    "7b": BLOCK_7,
    "7c": BLOCK_7,
}


class AuxHead(nn.Module):
    """A second classifier on the maps at 1/16 of the image, to help the early layers learn. Needs maps of 17x17,
    which come of images of 299 pixels."""

    def __init__(self, in_chs: int, c: Config) -> None:
        super().__init__()
        conv = conv_maker(c)
        self.conv0 = conv(in_chs, 128, 1)
        self.conv1 = conv(128, 768, 5, padding=VALID)
        self.fc: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.conv0(F.avg_pool2d(x, 5, 3)))
        return self.fc(x.mean((2, 3)))


class InceptionV3(InceptionNet, config=Config):
    """Convolutional stem without padding, blocks of branches on three sizes, pooled linear head."""

    positional = ("num_classes", "in_chans", "drop_rate", "global_pool", "aux_logits")
    classifier_path = "fc"
    first_conv = "Conv2d_1a_3x3.conv"

    def build(self, c: Config) -> None:
        conv = conv_maker(c)
        self.Conv2d_1a_3x3 = conv(c.in_chans, 32, 3, 2, padding=VALID)
        self.Conv2d_2a_3x3 = conv(32, 32, 3, padding=VALID)
        self.Conv2d_2b_3x3 = conv(32, 64, 3)
        self.Pool1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = conv(64, 80, 1)
        self.Conv2d_4a_3x3 = conv(80, 192, 3, padding=VALID)
        self.Pool2 = nn.MaxPool2d(3, 2)
        width, ends = 192, {}
        for name, branches in MIXED.items():
            block = Branches(width, branches, conv)
            self.add_module(f"Mixed_{name}", block)
            width = ends[name[0]] = block.out_chs
            if name == "6e" and c.aux_logits:
                self.AuxLogits = AuxHead(width, c)
        at = {stage: [f"Mixed_{name}" for name in MIXED if name[0] == stage] for stage in "567"}
        self.chain = (
            Stage(("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"), 64, 2, trim=6, checkpoint=False),
            Stage(("Pool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3"), 192, 4, trim=18, checkpoint=False),
            Stage(("Pool2", *at["5"]), ends["5"], 8, trim=26),
            Stage(tuple(at["6"]), ends["6"], 16, trim=42),
            Stage(tuple(at["7"]), ends["7"], 32, trim=74),
        )
        self.num_features = self.head_hidden_size = width
        self.build_head(c)

    def build_head(self, c: Config) -> None:
        super().build_head(c)
        if hasattr(self, "AuxLogits"):
            self.AuxLogits.fc = nn.Linear(768, c.num_classes) if c.num_classes else nn.Identity()

    def init_module(self, module: nn.Module, name: str) -> bool:
        """The published initial values: truncated normals, narrow ones in the second head."""
        if not isinstance(module, nn.Conv2d | nn.Linear):
            return False
        special = {"AuxLogits.conv1.conv": 0.01, "AuxLogits.fc": 0.001}
        trunc_normal_(module.weight, std=special.get(name, 0.1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        return True

    def forward(self, x: Tensor) -> Any:
        """Logits; a pair with those of the second head where there is one."""
        if not hasattr(self, "AuxLogits"):
            return super().forward(x)
        final, (middle,) = self.run_chain(x, [3])
        return self.forward_head(final), self.AuxLogits(middle)


def adapt(state_dict: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """Some files hold the second head; a model without one leaves it out."""
    if hasattr(model, "AuxLogits"):
        return state_dict
    return {key: value for key, value in state_dict.items() if not key.startswith("AuxLogits.")}


VARIANTS = {"inception_v3": Config()}

family = Family(InceptionV3, VARIANTS, adapt=adapt)
__getattr__ = family.module_getattr(__name__)
