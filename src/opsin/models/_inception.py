"""What the Inception networks share: convolutions with norm, and branches side by side written as tables."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.layers.conv_norm_act import ConvNormAct
from opsin.layers.norm_act import get_norm_act_layer
from opsin.models._chain import locate
from opsin.models._config import ModelConfig
from opsin.models._model import Model

__all__ = ["Branches", "InceptionConfig", "InceptionNet", "conv_maker"]

VALID = 0  # no padding
POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": partial(F.max_pool2d, kernel_size=3, stride=2),
    "avg": partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1),
    "avg_inside": partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False),
}


@dataclass(frozen=True, kw_only=True)
class InceptionConfig(ModelConfig):
    """`norm_eps` is that of the norm behind each convolution."""

    norm_layer: Any = "batchnorm2d"
    norm_eps: float = 1e-3
    act_layer: Any = "relu"


def conv_maker(c: InceptionConfig) -> Callable[..., ConvNormAct]:
    """A convolution with the norm and activation of `c`: `(in_chs, out_chs, kernel_size, stride, padding=None)`."""
    norm = get_norm_act_layer(c.norm_layer, {"eps": c.norm_eps})
    return partial(ConvNormAct, norm_layer=norm, act_layer=c.act_layer)


class Branches(nn.Module):
    """Branches on one input, their outputs put behind one another in the channels.

    A branch is a row of steps, each the name of a pool or a convolution `(path, out_chs, kernel=1, stride=1,
    padding=None)`; a list of convolutions as the last step forks the branch. A dotted path makes a part within.
    """

    def __init__(self, in_chs: int, branches: Sequence[Sequence[Any]], conv: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.rows: list[list[list[str]]] = []  # what to run: steps of one path, or of several where a branch forks
        self.out_chs = 0
        for branch in branches:
            width, row = in_chs, []
            for step in branch:
                forks: list[Any] = step if isinstance(step, list) else [step]
                row.append([fork if isinstance(fork, str) else fork[0] for fork in forks])
                if isinstance(step, str):
                    continue
                for path, out_chs, *shape in forks:
                    padding = shape[2] if len(shape) > 2 else None
                    self.place(path, conv(width, out_chs, *shape[:2], padding=padding))
                width = sum(fork[1] for fork in forks)
            self.rows.append(row)
            self.out_chs += width

    def place(self, path: str, module: nn.Module) -> None:
        part, _, name = path.rpartition(".")
        if part and part not in self._modules:
            self.add_module(part, nn.ModuleDict())
        (self._modules[part] if part else self).add_module(name, module)  # type: ignore[union-attr]

    def run(self, x: Tensor, row: list[list[str]]) -> list[Tensor]:
        for paths in row[:-1]:
            x = self.step(x, paths[0])
        return [self.step(x, path) for path in row[-1]]

    def step(self, x: Tensor, path: str) -> Tensor:
        return POOLS[path](x) if path in POOLS else locate(self, path)(x)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([y for row in self.rows for y in self.run(x, row)], 1)


class InceptionNet(Model, config=InceptionConfig):
    """Pooled linear head, and the initial values, of all Inception networks."""

    def init_module(self, module: nn.Module, name: str) -> bool:
        if not isinstance(module, nn.Conv2d):
            return False
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        return True
