"""Bilinear attentional transforms ("Non-Local Neural Networks With Grouped Bilinear …", CVPR 2020)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.layers.conv_norm_act import ConvNormAct
from opsin.layers.divisible import make_divisible

__all__ = ["BatNonLocalAttn", "BilinearAttnTransform"]

Layer = str | Callable[..., Any]


class BilinearAttnTransform(nn.Module):
    """A map mixed by one matrix over blocks of rows and one over blocks of columns, both made from its profiles.

    `groups` of channels have matrices of their own. Height and width must be multiples of `block_size`.
    """

    def __init__(
        self, in_channels: int, block_size: int, groups: int, act_layer: Layer = "relu",
        norm_layer: Layer = "batchnorm2d",
    ) -> None:  # fmt: skip
        super().__init__()
        conv = partial(ConvNormAct, act_layer=act_layer, norm_layer=norm_layer)
        self.block_size, self.groups = block_size, groups
        self.conv1 = conv(in_channels, groups)
        self.conv_p = nn.Conv2d(groups, groups * block_size**2, (block_size, 1))
        self.conv_q = nn.Conv2d(groups, groups * block_size**2, (1, block_size))
        self.conv2 = conv(in_channels, in_channels)

    def mixers(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """For rows and for columns, (B, groups, block_size, block_size) each; rows, or columns, of weights sum to 1."""
        size = self.block_size
        x = self.conv1(x)
        rows = self.conv_p(F.adaptive_max_pool2d(x, (size, 1))).reshape(-1, self.groups, size, size).sigmoid()
        columns = self.conv_q(F.adaptive_max_pool2d(x, (1, size))).reshape(-1, self.groups, size, size).sigmoid()
        return rows / rows.sum(3, keepdim=True), columns / columns.sum(2, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        size, (height, width) = self.block_size, x.shape[-2:]
        if height % size or width % size:
            raise ValueError(
                f"bilinear attention in {size} blocks cannot split a map of {height}x{width}: "
                f"give images whose maps have multiples of {size} (with stride 32: sides of {32 * size})"
            )
        rows, columns = self.mixers(x)
        y = x.unflatten(1, (self.groups, -1)).unflatten(3, (size, -1))
        y = torch.einsum("bgij,bgcjtw->bgcitw", rows, y).flatten(3, 4).unflatten(4, (size, -1))
        y = torch.einsum("bgchjt,bgji->bgchit", y, columns).flatten(4, 5)
        return self.conv2(y.flatten(1, 2))


class BatNonLocalAttn(nn.Module):
    """`(B, C, H, W)` plus its bilinear transform, computed at a reduced width and dropped out by channels."""

    def __init__(
        self, channels: int, block_size: int = 7, groups: int = 2, rd_ratio: float = 0.25, drop_rate: float = 0.2,
        act_layer: Layer = "relu", norm_layer: Layer = "batchnorm2d",
    ) -> None:  # fmt: skip
        super().__init__()
        reduced = make_divisible(channels * rd_ratio, 8, round_limit=0.0)
        layers: dict[str, Any] = {"act_layer": act_layer, "norm_layer": norm_layer}
        self.conv1 = ConvNormAct(channels, reduced, **layers)
        self.ba = BilinearAttnTransform(reduced, block_size, groups, **layers)
        self.conv2 = ConvNormAct(reduced, channels, **layers)
        self.dropout = nn.Dropout2d(drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.conv2(self.ba(self.conv1(x))))
