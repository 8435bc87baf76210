"""The shapes that a learning rate takes after its warm-up: fraction of the way from the lowest rate to the full one.

A shape is called with `t`, the update counted from the end of the warm-up, and `total`, the updates there are: 1 at the
first, and, for those that decay, 0 at the very last (`t = total - 1`).
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

from opsin.bounds import AboveZero, Count, FromZero, Share, check_arguments
from opsin.errors import OpsinError

__all__ = ["SHAPES", "Shape", "list_schedules", "wave"]

Shape = Callable[..., float]


def _part(t: int, total: int) -> float:
    return min(t / max(total - 1, 1), 1.0)


def wave(part: float) -> float:
    """Half a cosine wave: 1 where `part` is 0, 0 where it is 1."""
    return 0.5 * (1 + math.cos(math.pi * part))


def constant(t: int, total: int) -> float:
    """The full rate to the end."""
    return 1.0


def cosine(t: int, total: int, *, cycles: Count = 1, cycle_mul: AboveZero = 1.0, cycle_decay: FromZero = 1.0) -> float:
    """Half a cosine wave (https://arxiv.org/abs/1608.03983), or several: each `cycle_mul` times as long as the one
    before and `cycle_decay` times as high."""
    i, part = _cycle(t, total, cycles, cycle_mul)
    return cycle_decay**i * wave(part)


def linear(t: int, total: int) -> float:
    """A straight line."""
    return 1 - _part(t, total)


def poly(
    t: int,
    total: int,
    *,
    power: AboveZero = 2.0,
    cycles: Count = 1,
    cycle_mul: AboveZero = 1.0,
    cycle_decay: FromZero = 1.0,
) -> float:
    """(1 - part) ** `power`, once or in cycles."""
    i, part = _cycle(t, total, cycles, cycle_mul)
    return cycle_decay**i * (1 - part) ** power


def tanh(t: int, total: int, *, lb: float = -7.0, ub: float = 3.0) -> float:
    """A hyperbolic tangent from `lb` to `ub` (https://arxiv.org/abs/1806.01593), stretched to run from 1 to 0."""
    value = math.tanh(lb + (ub - lb) * _part(t, total))
    return (math.tanh(ub) - value) / (math.tanh(ub) - math.tanh(lb))


def step(t: int, total: int, *, decay_updates: Count, decay_rate: FromZero = 0.1) -> float:
    """Times `decay_rate` every `decay_updates`."""
    return decay_rate ** (t // decay_updates)


def multistep(t: int, total: int, *, milestones: Sequence[int], decay_rate: FromZero = 0.1) -> float:
    """Times `decay_rate` at each of `milestones`, updates from the end of the warm-up."""
    return decay_rate ** bisect_right(sorted(milestones), t)


def wsd(t: int, total: int, *, decay_fraction: Share = 0.2, decay_shape: str = "cosine") -> float:
    """Warm-up, stable, decay (https://arxiv.org/abs/2404.06395): the full rate until the last `decay_fraction`."""
    begin = total - max(round(total * decay_fraction), 1)
    if t < begin:
        return 1.0
    if decay_shape not in ("cosine", "linear", "sqrt"):
        raise OpsinError(f"decay_shape is cosine, linear or sqrt, not {decay_shape!r}")
    part = _part(t - begin + 1, total - begin + 1)
    return {"cosine": wave(part), "linear": 1 - part, "sqrt": 1 - part**0.5}[decay_shape]


def onecycle(t: int, total: int, *, rise: Share = 0.3, begin: Share = 0.04) -> float:
    """Up from `begin` on half a cosine wave for the first `rise` of the way, then down (https://arxiv.org/abs/1708.07120)."""
    top = max(round(rise * (total - 1)), 1)
    if t <= top:
        return begin + (1 - begin) * (1 - wave(t / top))
    return wave(_part(t - top, total - top))


def plateau(t: int, total: int) -> float:
    """The full rate, lowered when the score that decides stops getting better (the scheduler does that)."""
    return 1.0


SHAPES: dict[str, Shape] = {
    "constant": constant, "cosine": cosine, "linear": linear, "multistep": multistep, "onecycle": onecycle,
    "plateau": plateau, "poly": poly, "step": step, "tanh": tanh, "wsd": wsd,
}  # fmt: skip


def list_schedules() -> dict[str, str]:
    """Name -> what it does."""
    return {name: " ".join((shape.__doc__ or "").split()) for name, shape in SHAPES.items()}


def _cycle(t: int, total: int, cycles: int, cycle_mul: float) -> tuple[int, float]:
    """Which cycle an update is in, and how far: 0 at its first update, 1 at its last. All end with the run."""
    lengths = [cycle_mul**i for i in range(cycles)]
    ends = [round(total * sum(lengths[: i + 1]) / sum(lengths)) for i in range(cycles)]
    i = min(bisect_right(ends, t), cycles - 1)
    begin = ends[i - 1] if i else 0
    return i, _part(t - begin, ends[i] - begin)


def check_options(name: str, options: dict[str, Any]) -> None:
    """Try a shape with its options, so that a wrong one is told before training begins."""
    import inspect

    from opsin.errors import check_known

    takes = [p for p in inspect.signature(SHAPES[name]).parameters if p not in ("t", "total")]
    check_known(options, takes, owner=f"the schedule {name}")
    missing = [
        p.name
        for p in inspect.signature(SHAPES[name]).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty and p.name not in options
    ]
    if missing:
        raise OpsinError(f"the schedule {name} needs {', '.join(missing)}")
    check_arguments(SHAPES[name], options, owner=f"the schedule {name}")
    SHAPES[name](0, 10, **options)
