"""Numbers that an argument can be, declared with its type: `workers: Annotated[int, Bounds(0)]`."""

import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from opsin.errors import OpsinError

__all__ = [
    "AboveZero",
    "Bounds",
    "Count",
    "FromZero",
    "Index",
    "Share",
    "ShareBelowOne",
    "bound_faults",
    "check_bounds",
]


@dataclass(frozen=True)
class Bounds:
    """From `least` to `most`; `open` leaves out these two themselves: "least", "most" or both. Never infinite or NaN."""

    least: float = -math.inf
    most: float = math.inf
    open: tuple[str, ...] = ()

    def holds(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        least = value > self.least if "least" in self.open else value >= self.least
        return least and (value < self.most if "most" in self.open else value <= self.most)

    def __str__(self) -> str:
        least, most = (f"{side:g}" if side % 1 else f"{side:.0f}" for side in (self.least, self.most))
        low = f"above {least}" if "least" in self.open else f"at least {least}"
        high = f"below {most}" if "most" in self.open else f"at most {most}"
        return low if math.isinf(self.most) else f"{low} and {high}"


Count = Annotated[int, Bounds(1)]
Index = Annotated[int, Bounds(0)]
FromZero = Annotated[float, Bounds(0)]
AboveZero = Annotated[float, Bounds(0, open=("least",))]
Share = Annotated[float, Bounds(0, 1)]
ShareBelowOne = Annotated[float, Bounds(0, 1, open=("most",))]


def bound_faults(hints: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    """What is out of bounds among `values`; `hints` are their types, extras included. None is never."""
    for name, hint in hints.items():
        bounds, value = _bounds(hint), values.get(name)
        if bounds is not None and value is not None and not bounds.holds(value):
            yield f"{name} must be {bounds}, not {value!r}"


def check_bounds(function: Any, values: Mapping[str, Any]) -> None:
    """Raise `OpsinError` for arguments of a function that are out of their bounds."""
    faults = list(bound_faults(typing.get_type_hints(function, include_extras=True), values))
    if faults:
        raise OpsinError("; ".join(faults))


def _bounds(hint: Any) -> Bounds | None:
    """The bounds in a type: `Annotated[int, Bounds(…)]`, or the same or None."""
    for one in (hint, *typing.get_args(hint)):
        for extra in getattr(one, "__metadata__", ()):
            if isinstance(extra, Bounds):
                return extra
    return None
