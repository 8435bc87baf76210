"""PNASNet-5 (https://arxiv.org/abs/1712.00559): one kind of cell, found by growing it step by step, strided or not."""

from dataclasses import dataclass

from torch import Tensor, nn

from opsin.models._family import Family
from opsin.models._nas import ActConvNorm, Cell, Halving, NasConfig, NasModel

__all__ = ["Config", "PNASNet5Large", "PNASNetCell"]

TABLE = (
    (("sep5", "side"), ("max", "side")),
    (("sep7", "main"), ("max", "main")),
    (("sep5", "main"), ("sep3", "main")),
    (("sep3", 2), ("max", "main")),
    (("sep3", "side"), ("same", "main")),
)


@dataclass(frozen=True, kw_only=True)
class Config(NasConfig):
    """`num_features` is the width of the last map; those of all cells follow from it."""

    num_features: int = 4320


class FactorizedReduction(Halving):
    """Rectify, then half the size and a new width."""

    def __init__(self, in_chs: int, out_chs: int) -> None:
        super().__init__()
        self.build_paths(in_chs, out_chs)

    def forward(self, x: Tensor) -> Tensor:
        return self.halve(x)


class PNASNetCell(Cell):
    """The cell of PNASNet-5."""

    normal = reduction = TABLE
    outputs = {1: (0, 1, 2, 3, 4), 2: (0, 1, 2, 3, 4)}

    def build_inputs(self, main_chs: int, side_chs: int | None, chs: int, fit: bool) -> None:
        if side_chs is not None:
            self.conv_prev_1x1: nn.Module = (FactorizedReduction if fit else ActConvNorm)(side_chs, chs)
        self.conv_1x1 = ActConvNorm(main_chs, chs)

    def bring_side(self, side: Tensor) -> Tensor:
        return self.conv_prev_1x1(side)


class PNASNet5Large(NasModel, config=Config):
    """Two strided cells, then four cells at each of three sizes, pooled linear head."""

    positional = ("num_classes", "in_chans")
    first_conv = "conv_0.conv"

    def build(self, c: Config) -> None:
        chs = c.num_features // 20  # the last cells are four times as wide, and put five maps together
        plan = [("cell_stem_0", chs // 4, 2), ("cell_stem_1", chs // 2, 2)]
        plan += [(f"cell_{i}", chs * 2 ** (i // 4), 2 if i in (4, 8) else 1) for i in range(12)]
        self.assemble(c, PNASNetCell, "conv_0", c.stem_size, plan)


VARIANTS = {"pnasnet5large": Config()}

family = Family(PNASNet5Large, VARIANTS)
__getattr__ = family.module_getattr(__name__)
