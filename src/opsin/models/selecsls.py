"""SelecSLS (XNect, https://arxiv.org/abs/1907.00837): skips inside a block, and from the first block of a stage."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._model import Model

__all__ = ["Config", "SelecSls", "SelecSlsBlock"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """For each of three stages: its blocks, their channels, and those of its last block."""

    num_blocks: tuple[int, ...] = (2, 2, 2)
    widths: tuple[int, ...] = (64, 144, 304)
    out_chs: tuple[int, ...] = (128, 288, 480)
    head_chs: tuple[int, ...] = (960, 1024, 1024, 1280)  # four convolutions behind the stages, two of them strided
    head_kernel_size: int = 1  # of the last of these; the others are 3x3


def conv_bn(in_chs: int, out_chs: int, kernel_size: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_chs, out_chs, kernel_size, stride, kernel_size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_chs), nn.ReLU(inplace=True))


class SelecSlsBlock(nn.Module):
    """A row of convolutions, of which three outputs and the long skip meet in the last, 1x1."""

    def __init__(self, in_chs: int, skip_chs: int, mid_chs: int, out_chs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv_bn(in_chs, mid_chs, 3, stride)
        self.conv2 = conv_bn(mid_chs, mid_chs, 1)
        self.conv3 = conv_bn(mid_chs, mid_chs // 2)
        self.conv4 = conv_bn(mid_chs // 2, mid_chs, 1)
        self.conv5 = conv_bn(mid_chs, mid_chs // 2)
        self.conv6 = conv_bn(2 * mid_chs + skip_chs, out_chs, 1)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        first = self.conv1(x)
        second = self.conv3(self.conv2(first))
        third = self.conv5(self.conv4(second))
        return self.conv6(torch.cat((first, second, third) if skip is None else (first, second, third, skip), 1))


class SelecSls(Model, config=Config):
    """Strided convolution, three stages of blocks, four convolutions, pooled linear head."""

    first_conv = "stem.0"

    def build(self, c: Config) -> None:
        if not len(c.num_blocks) == len(c.widths) == len(c.out_chs) == 3 or len(c.head_chs) != 4:
            raise ValueError(f"SelecSls has three stages and four head_chs, got {c}")
        width = 32
        self.stem = conv_bn(c.in_chans, width, stride=2)
        chain = [Stage(("stem",), width, 2, module="stem.2", checkpoint=False)]
        self.features = nn.Sequential()
        self.spans: list[list[int]] = []  # of the blocks of each stage
        for i, (depth, mid_chs, out_chs) in enumerate(zip(c.num_blocks, c.widths, c.out_chs, strict=True)):
            self.spans.append(list(range(len(self.features), len(self.features) + depth)))
            self.features.append(SelecSlsBlock(width, 0, mid_chs, mid_chs, 2))
            for j in range(1, depth):
                self.features.append(SelecSlsBlock(mid_chs, mid_chs, mid_chs, mid_chs if j < depth - 1 else out_chs))
            blocks = tuple(f"features.{k}" for k in self.spans[-1])
            chain.append(Stage((f"stage{i + 1}",), out_chs, 4 * 2**i, module=blocks[-1], params=blocks))
            width = out_chs
        self.head = nn.Sequential()
        for i, chs in enumerate(c.head_chs):
            self.head.append(conv_bn(width, chs, c.head_kernel_size if i == 3 else 3, 1 if i % 2 else 2))
            width = chs
        chain += [
            Stage(("head.0", "head.1"), c.head_chs[1], 32),
            Stage(("head.2", "head.3"), c.head_chs[3], 64),
        ]
        self.chain = tuple(chain)
        self.num_features = self.head_hidden_size = width
        self.build_head(c)

    def run_blocks(self, x: Tensor, stage: int) -> Tensor:
        """The blocks of one stage; the first one's output goes to all others."""
        first, *others = (self.features[i] for i in self.spans[stage])
        skip = x = first(x)
        for block in others:
            x = block(x, skip)
        return x

    def stage1(self, x: Tensor) -> Tensor:
        return self.run_blocks(x, 0)

    def stage2(self, x: Tensor) -> Tensor:
        return self.run_blocks(x, 1)

    def stage3(self, x: Tensor) -> Tensor:
        return self.run_blocks(x, 2)

    def init_module(self, module: nn.Module, name: str) -> bool:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            return True
        return False


S60: dict[str, Any] = {"num_blocks": (2, 3, 4), "widths": (64, 128, 288), "out_chs": (128, 288, 416)}
VARIANTS = {
    "selecsls42": Config(),
    "selecsls42b": Config(head_chs=(960, 1024, 1280, 1024)),
    "selecsls60": Config(**S60, head_chs=(756, 1024, 1024, 1280)),
    "selecsls60b": Config(**S60, head_chs=(756, 1024, 1280, 1024)),
    "selecsls84": Config(num_blocks=(2, 5, 6), out_chs=(144, 304, 512), head_kernel_size=3),
}

family = Family(SelecSls, VARIANTS)
__getattr__ = family.module_getattr(__name__)
