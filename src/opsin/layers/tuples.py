"""Sizes given as one number or as several."""

from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any

__all__ = ["to_2tuple", "to_3tuple", "to_4tuple", "to_ntuple"]


def to_ntuple(n: int) -> Callable[[Any], tuple[Any, ...]]:
    """A function that repeats a single value `n` times and turns any other sequence into a tuple as it is."""

    def parse(x: Any) -> tuple[Any, ...]:
        return tuple(x) if isinstance(x, Iterable) and not isinstance(x, str) else tuple(repeat(x, n))

    return parse


to_2tuple, to_3tuple, to_4tuple = to_ntuple(2), to_ntuple(3), to_ntuple(4)
