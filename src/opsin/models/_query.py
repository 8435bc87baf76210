"""What `list_models` asks of facts. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from numbers import Integral, Real
from typing import Any

from opsin import catalog
from opsin.catalog import PretrainedCfg
from opsin.errors import UnknownArgumentError
from opsin.models import _users

__all__ = ["Query", "best_top1"]


def best_top1(name: str) -> float | None:
    """ImageNet-1k top-1 (%) of `architecture.tag`, the best over the published image sizes."""
    return max((record.imagenet_top1 for record in catalog.accuracy(name)), default=None)


def check_number(what: str, value: Any, kind: Any, such_as: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UnknownArgumentError(f"{what}={value!r}: give {such_as}")


def fits_size(size: tuple[int, ...], wanted: int | Sequence[int]) -> bool:
    sides = tuple(wanted) if isinstance(wanted, list | tuple) else (wanted, wanted)
    return size[-len(sides) :] == sides


@dataclass(frozen=True, kw_only=True)
class Query:
    """Conditions on facts. A fact that nobody measured does not fulfil a condition on it."""

    pretrained: bool
    max_params: float | None
    min_params: float | None
    max_gmacs: float | None
    min_top1: float | None
    license: list[str]
    input_size: int | Sequence[int] | None

    def __post_init__(self) -> None:
        for what in ("max_params", "min_params", "max_gmacs", "min_top1"):
            if (value := getattr(self, what)) is not None:
                check_number(what, value, Real, "a number, such as 30e6" if "params" in what else "a number")
        size = self.input_size
        for side in () if size is None else size if isinstance(size, list | tuple) else (size,):
            check_number("input_size", side, Integral, "whole numbers: a side, (height, width) or with channels first")

    def takes_architecture(self, name: str) -> bool:
        if self.max_params is None and self.min_params is None and self.max_gmacs is None:
            return True
        if name in _users.USERS:
            return False
        facts = catalog.model_facts(name)
        return (
            (self.max_params is None or facts.params <= self.max_params)
            and (self.min_params is None or facts.params >= self.min_params)
            and (self.max_gmacs is None or (facts.gmacs is not None and facts.gmacs <= self.max_gmacs))
        )

    def takes_weights(self, cfg: PretrainedCfg) -> bool:
        if self.pretrained and not cfg.has_weights:
            return False
        if self.min_top1 is not None and ((top1 := best_top1(cfg.name)) is None or top1 < self.min_top1):
            return False
        if self.license and not any(fnmatchcase(cfg.license or "", pattern) for pattern in self.license):
            return False
        return self.input_size is None or fits_size(cfg.input_size, self.input_size)
