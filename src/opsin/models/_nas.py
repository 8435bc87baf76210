"""What NASNet and PNASNet share: cells that were found by search, written as tables.

A cell reads the output of the cell before it (`main`) and of the one before that (`side`), each brought to the cell's
width by a 1x1 convolution. It makes five sums of two operations each and puts some of them together.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from opsin.layers.conv import create_conv2d, pad_same
from opsin.layers.conv_norm_act import ConvNormAct
from opsin.layers.pool import MaxPool2dSame
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._model import Model

__all__ = ["Cell", "Halving", "NasConfig", "NasModel"]

Row = tuple[tuple[str, Any], tuple[str, Any]]  # two operations with their sources: "main", "side", or a sum by number
norm = partial(nn.BatchNorm2d, eps=1e-3)


@dataclass(frozen=True, kw_only=True)
class NasConfig(ModelConfig):
    """`pad_type` "same" pads strided windows as TensorFlow does, "" symmetrically."""

    pad_type: str = "same"
    stem_size: int = 96  # channels of the first convolution


class AvgPool2dSame(nn.AvgPool2d):
    """3x3 mean with stride 2, padded as TensorFlow pads; the zeros around count."""

    def __init__(self) -> None:
        super().__init__(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad_same(x, (3, 3), (2, 2), (1, 1)))


def pool(kind: str, stride: int, pad_type: str) -> nn.Module:
    same = stride > 1 and pad_type == "same"
    if kind == "max":
        return MaxPool2dSame(3, stride) if same else nn.MaxPool2d(3, stride, 1)
    return AvgPool2dSame() if same else nn.AvgPool2d(3, stride, 1, count_include_pad=False)


class SeparableConv2d(nn.Sequential):
    """A convolution on each channel, then 1x1 across channels."""

    def __init__(self, in_chs: int, out_chs: int, kernel: int, stride: int, pad_type: str) -> None:
        depthwise = create_conv2d(in_chs, in_chs, kernel, stride=stride, groups=in_chs, pad_type=pad_type)
        pointwise = nn.Conv2d(in_chs, out_chs, 1, bias=False)
        super().__init__(OrderedDict(depthwise_conv2d=depthwise, pointwise_conv2d=pointwise))


class Separables(nn.Sequential):
    """Activation, separable convolution and norm, twice; the first is strided."""

    def __init__(self, in_chs: int, out_chs: int, kernel: int, stride: int, pad_type: str) -> None:
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (width, step) in enumerate(((in_chs, stride), (out_chs, 1)), 1):
            parts[f"act_{i}"] = nn.ReLU(inplace=i > 1)
            parts[f"separable_{i}"] = SeparableConv2d(width, out_chs, kernel, step, pad_type)
            parts[f"bn_sep_{i}"] = norm(out_chs)
        super().__init__(parts)


class ActConvNorm(nn.Sequential):
    """Activation, 1x1 convolution, norm."""

    def __init__(self, in_chs: int, out_chs: int, stride: int = 1) -> None:
        conv = nn.Conv2d(in_chs, out_chs, 1, stride, bias=False)
        super().__init__(OrderedDict(act=nn.ReLU(), conv=conv, bn=norm(out_chs)))


class Halving(nn.Module):
    """Half the size without losing pixels: every second one, and every second one shifted by one, in half the channels
    each."""

    def build_paths(self, in_chs: int, out_chs: int) -> None:
        if out_chs % 2:
            raise ValueError(f"a cell of {out_chs} channels cannot take a larger map in: its width must be even")
        parts = {"pad": nn.ZeroPad2d((-1, 1, -1, 1)), "avgpool": nn.AvgPool2d(1, 2)}
        conv = partial(nn.Conv2d, in_chs, out_chs // 2, 1, bias=False)
        self.path_1 = nn.Sequential(OrderedDict(avgpool=parts["avgpool"], conv=conv()))
        self.path_2 = nn.Sequential(OrderedDict(parts, conv=conv()))
        self.final_path_bn = norm(out_chs)

    def halve(self, x: Tensor) -> Tensor:
        x = x.relu()
        return self.final_path_bn(torch.cat((self.path_1(x), self.path_2(x)), 1))


class Cell(Halving):
    """`cell(main, side)`; a family says in its tables what it computes.

    Args:
        main_chs, side_chs: widths of the two inputs; `side_chs` None for the first cell, which has one input.
        chs: width of the cell.
        stride: 2 halves the size.
        fit: `side` is twice the size of `main`.
    """

    normal: ClassVar[tuple[Row, ...]] = ()
    reduction: ClassVar[tuple[Row, ...]] = ()
    outputs: ClassVar[dict[int, tuple[Any, ...]]] = {}  # what is put together, at stride 1 and 2

    conv_1x1: nn.Module

    def __init__(
        self, main_chs: int, side_chs: int | None, chs: int, c: NasConfig, *, stride: int, fit: bool, passes_side: bool
    ) -> None:
        super().__init__()
        self.has_side, self.passes_side = side_chs is not None, passes_side
        self.build_inputs(main_chs, side_chs, chs, fit)
        self.rows = self.reduction if stride > 1 else self.normal
        self.gathered = self.outputs[stride]
        self.out_chs = chs * len(self.gathered)
        for i, row in enumerate(self.rows):
            for where, (op, source) in zip(("left", "right"), row, strict=True):
                width = main_chs if source == "side" and side_chs is None else chs
                layer = self.operation(op, width, chs, stride if isinstance(source, str) else 1, c.pad_type)
                if layer is not None:
                    self.add_module(f"comb_iter_{i}_{where}", layer)

    def build_inputs(self, main_chs: int, side_chs: int | None, chs: int, fit: bool) -> None:
        raise NotImplementedError("each family names the convolutions of its inputs")

    def bring_side(self, side: Tensor) -> Tensor:
        raise NotImplementedError("each family brings the side input to the cell's width")

    @staticmethod
    def operation(op: str, in_chs: int, out_chs: int, stride: int, pad_type: str) -> nn.Module | None:
        if op.startswith("sep"):
            return Separables(in_chs, out_chs, int(op[3:]), stride, pad_type)
        if op in ("max", "avg"):
            if in_chs == out_chs:
                return pool(op, stride, pad_type)
            conv = nn.Conv2d(in_chs, out_chs, 1, bias=False)
            return nn.Sequential(OrderedDict(max_pool=pool(op, stride, pad_type), conv=conv, bn=norm(out_chs)))
        return ActConvNorm(in_chs, out_chs, stride) if op == "same" and stride > 1 else None

    def forward(self, main: Tensor, side: Tensor) -> Tensor:
        maps: dict[Any, Tensor] = {"side": self.bring_side(side) if self.has_side else side}
        maps["main"] = self.conv_1x1(main)
        for i, row in enumerate(self.rows):
            terms = []
            for where, (_, source) in zip(("left", "right"), row, strict=True):
                layer = self._modules.get(f"comb_iter_{i}_{where}")
                terms.append(maps[source] if layer is None else layer(maps[source]))
            maps[i] = terms[0] + terms[1]
        return torch.cat([maps[name] for name in self.gathered], 1)

    def step(self, maps: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """From (main, side) to those of the next cell. All that read the output rectify it, so it goes on rectified."""
        main, side = (maps, maps) if isinstance(maps, Tensor) else maps
        return self(main, side).relu(), side if self.passes_side else main


class MainReLU(nn.Module):
    """The rectified first of two maps."""

    def forward(self, maps: tuple[Tensor, Tensor]) -> Tensor:
        return maps[0].relu()


class NasModel(Model, config=NasConfig):
    """Strided convolution without padding, cells, pooled linear head."""

    classifier_path = "last_linear"

    def assemble(
        self, c: Any, cell: type[Cell], stem: str, stem_chs: int, plan: Iterable[tuple[str, int, int]]
    ) -> None:
        """Modules and chain of a plan: (name, width, stride) of each cell. Levels are what strided cells read."""
        conv = ConvNormAct(c.in_chans, stem_chs, 3, 2, padding=0, apply_act=False, norm_layer=partial(norm))
        self.add_module(stem, conv)
        chain = [Stage((stem,), stem_chs, 2, trim=2, checkpoint=False)]
        main: tuple[int, int] = (stem_chs, 2)  # channels and stride of the inputs
        side: tuple[int, int] | None = None
        run: list[str] = []  # names of cells since a level
        for name, chs, stride in plan:
            if stride > 1 and run:
                chain.append(self.level(run, *main, f"{name}.conv_1x1.act"))
                run = []
            keeps = name.startswith("reduction")
            fit = side is not None and side[1] != main[1]
            figures: dict[str, Any] = {"stride": stride, "fit": fit, "passes_side": keeps}
            part = cell(main[0], side[0] if side else None, chs, c, **figures)
            self.add_module(name, part)
            main, side = (part.out_chs, main[1] * stride), side if keeps else main
            run.append(name)
        self.act = MainReLU()
        last = self.level(run, *main, "act")
        self.chain = (*chain, last._replace(run=(*last.run, "act"), item=None))
        self.num_features = self.head_hidden_size = main[0]
        self.build_head(c)

    @staticmethod
    def level(cells: list[str], chs: int, stride: int, name: str) -> Stage:
        return Stage(tuple(f"{cell}.step" for cell in cells), chs, stride, name, params=tuple(cells), item=0, trim=2)

    def init_module(self, module: nn.Module, name: str) -> bool:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            return True
        return False
