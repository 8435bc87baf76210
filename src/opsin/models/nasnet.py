"""NASNet-A (https://arxiv.org/abs/1707.07012): two kinds of cells found by reinforcement learning, repeated."""

from dataclasses import dataclass

from torch import Tensor

from opsin.models._family import Family
from opsin.models._nas import ActConvNorm, Cell, NasConfig, NasModel

__all__ = ["Config", "NASNetALarge", "NASNetCell"]


@dataclass(frozen=True, kw_only=True)
class Config(NasConfig):
    """`num_features` is the width of the last map; those of all cells follow from it."""

    channel_multiplier: int = 2  # of the cells' width, each time the size halves
    num_features: int = 4032


class NASNetCell(Cell):
    """The cells of NASNet-A; a larger side input is halved by parts of the cell itself."""

    normal = (
        (("sep5", "main"), ("sep3", "side")),
        (("sep5", "side"), ("sep3", "side")),
        (("avg", "main"), ("same", "side")),
        (("avg", "side"), ("avg", "side")),
        (("sep3", "main"), ("same", "main")),
    )
    reduction = (
        (("sep5", "main"), ("sep7", "side")),
        (("max", "main"), ("sep7", "side")),
        (("avg", "main"), ("sep5", "side")),
        (("same", 1), ("avg", 0)),
        (("sep3", 0), ("max", "main")),
    )
    outputs = {1: ("side", 0, 1, 2, 3, 4), 2: (1, 2, 3, 4)}

    def build_inputs(self, main_chs: int, side_chs: int | None, chs: int, fit: bool) -> None:
        self.fit = fit
        if side_chs is not None and not fit:
            self.conv_prev_1x1 = ActConvNorm(side_chs, chs)
        self.conv_1x1 = ActConvNorm(main_chs, chs)
        if side_chs is not None and fit:
            self.build_paths(side_chs, chs)

    def bring_side(self, side: Tensor) -> Tensor:
        return self.halve(side) if self.fit else self.conv_prev_1x1(side)


class NASNetALarge(NasModel, config=Config):
    """Two strided cells, then six cells at each of three sizes with a strided one between, pooled linear head."""

    positional = ("num_classes", "in_chans", "stem_size", "channel_multiplier", "num_features")
    first_conv = "conv0.conv"

    def build(self, c: Config) -> None:
        times = c.channel_multiplier
        chs = c.num_features // (6 * times**2)  # the last cells put six maps together
        plan = [("cell_stem_0", chs // times**2, 2), ("cell_stem_1", chs // times, 2)]
        for i in range(3):
            width = chs * times**i
            if i:
                plan.append((f"reduction_cell_{i - 1}", width, 2))
            plan += [(f"cell_{6 * i + k}", width, 1) for k in range(6)]
        self.assemble(c, NASNetCell, "conv0", c.stem_size, plan)


VARIANTS = {"nasnetalarge": Config()}

family = Family(NASNetALarge, VARIANTS)
__getattr__ = family.module_getattr(__name__)
