"""What arguments can be, read from their annotations: `workers: Annotated[int, Bounds(0)]`."""

import inspect
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from opsin.errors import OpsinError

__all__ = [
    "AboveZero", "Bounds", "Count", "FromZero", "Index", "Share", "ShareAboveZero", "ShareBelowOne", "check_arguments",
    "faults",
]  # fmt: skip


@dataclass(frozen=True)
class Bounds:
    """From `least` to `most`, and finite; `open` names those of the two that are left out themselves."""

    least: float = -math.inf
    most: float = math.inf
    open: tuple[Literal["least", "most"], ...] = ()

    def holds(self, value: float) -> bool:
        least = value > self.least if "least" in self.open else value >= self.least
        most = value < self.most if "most" in self.open else value <= self.most
        return least and most and math.isfinite(value)

    def __str__(self) -> str:
        low = f"{'above' if 'least' in self.open else 'at least'} {self.least}"
        high = f"{'below' if 'most' in self.open else 'at most'} {self.most}"
        return low if math.isinf(self.most) else f"{low} and {high}"


Count = Annotated[int, Bounds(1)]
Index = Annotated[int, Bounds(0)]
FromZero = Annotated[float, Bounds(0)]
AboveZero = Annotated[float, Bounds(0, open=("least",))]
Share = Annotated[float, Bounds(0, 1)]
ShareAboveZero = Annotated[float, Bounds(0, 1, open=("least",))]
ShareBelowOne = Annotated[float, Bounds(0, 1, open=("most",))]

PLAIN = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
NUMBERS = {bool: bool, int: int, float: int | float, str: str}


def faults(hints: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[str]:
    """What is not as its type says, extras included, among `values`."""
    for name, hint in hints.items():
        if name in values and (wanted := _wanted(values[name], hint)):
            yield f"{name} must be {wanted}, not {values[name]!r}"


def check_arguments(function: Any, values: Mapping[str, Any], *, owner: str = "") -> None:
    """Raise `OpsinError` for the arguments of a function that are not as their annotations say."""
    function = function.__init__ if inspect.isclass(function) else function
    found = list(faults(typing.get_type_hints(function, include_extras=True), values))
    if found:
        raise OpsinError((f"{owner}: " if owner else "") + "; ".join(found))


def _wanted(value: Any, hint: Any) -> str:
    """What a value should have been; empty where it is so, or where the type says nothing that is understood here."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        kind, *extras = args
        if wanted := _wanted(value, kind):
            return wanted
        bounds = [one for one in extras if isinstance(one, Bounds)]
        return "" if value is None else next((str(one) for one in bounds if not one.holds(value)), "")
    if origin in (types.UnionType, typing.Union):
        each = [_wanted(value, one) for one in args if one is not type(None)]
        right = (value is None and type(None) in args) or "" in each
        return "" if right else " or ".join(each)
    if hint in PLAIN:
        right = isinstance(value, NUMBERS[hint]) and (hint is bool or not isinstance(value, bool))
        return "" if right else PLAIN[hint]
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return _wanted_row(
            value, [one for one in args if one is not Ellipsis], origin is tuple and Ellipsis not in args
        )
    return ""


def _wanted_row(value: Any, kinds: list[Any], counted: bool) -> str:
    if isinstance(value, list | tuple) and (len(value) == len(kinds) or not counted):
        pairs = zip(value, kinds if counted else kinds * len(value), strict=True)
        return next((f"a list, each {wanted}" for one, kind in pairs if (wanted := _wanted(one, kind))), "")
    return f"a list of {len(kinds)}" if counted else "a list"
