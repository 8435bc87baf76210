"""`timm.scheduler`: its classes and their arguments, on opsin's shapes. All is counted in `t`: epochs, or updates."""

import math
from collections.abc import Callable, Mapping
from inspect import Signature
from typing import Any, ClassVar

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from opsin.errors import OpsinError, check_choice
from opsin.integrations.timm_alias._signature import REQUIRED, bind, signature
from opsin.scheduler.shapes import SHAPES, wave

__all__ = [
    "CosineLRScheduler",
    "MultiStepLRScheduler",
    "PlateauLRScheduler",
    "PolyLRScheduler",
    "Scheduler",
    "StepLRScheduler",
    "TanhLRScheduler",
    "WSDLRScheduler",
]

CYCLES = {"lr_min": 0.0, "cycle_mul": 1.0, "cycle_decay": 1.0, "cycle_limit": 1}
WARMUP = {"warmup_t": 0, "warmup_lr_init": 0.0}
NOISE = {"noise_range_t": None, "noise_pct": 0.67, "noise_std": 1.0, "noise_seed": 42}


class Scheduler:
    """What all have in common, and the base for those that people write: a subclass has `_get_lr(t)`, or, as in older
    code, `get_epoch_values(epoch)` and `get_update_values(num_updates)`; each gives a value for each group, or None.

    Args:
        optimizer: each group's field is its full value; its `lr_scale`, where it has one, multiplies what comes out.
        param_group_field: the field that is set.
        t_in_epochs: whether `step` sets it, or `step_update`.
        noise_range_t: the first `t` with noise, or the first and the one after the last.
        noise_type: "normal", drawn again until it is less than `noise_pct`, or else even, up to `noise_pct`.
        noise_std, noise_seed: of the noise; it depends on the seed and `t` alone.
        initialize: note the groups' values as their full ones; or else they have been noted.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        param_group_field: str,
        t_in_epochs: bool = True,
        noise_range_t: Any = None,
        noise_type: str = "normal",
        noise_pct: float = 0.67,
        noise_std: float = 1.0,
        noise_seed: int | None = None,
        initialize: bool = True,
    ) -> None:
        self.optimizer, self.param_group_field = optimizer, param_group_field
        field = self._initial_param_group_field = f"initial_{param_group_field}"
        for i, group in enumerate(optimizer.param_groups):
            if initialize:
                group.setdefault(field, group[param_group_field])
            elif field not in group:
                raise KeyError(f"{field} missing from param_groups[{i}]: pass initialize=True")
        self.base_values = [group[field] for group in optimizer.param_groups]
        self.metric: float | None = None
        self.t_in_epochs = t_in_epochs
        self.noise_range_t, self.noise_type, self.noise_pct = noise_range_t, noise_type, noise_pct
        self.noise_std, self.noise_seed = noise_std, 42 if noise_seed is None else noise_seed
        self.update_groups(self.base_values)

    def _get_lr(self, t: int) -> list[float]:
        raise NotImplementedError(f"{type(self).__name__} has no _get_lr(t)")

    def get_epoch_values(self, epoch: int) -> list[float] | None:
        return self._get_lr(epoch) if self.t_in_epochs else None

    def get_update_values(self, num_updates: int) -> list[float] | None:
        return None if self.t_in_epochs else self._get_lr(num_updates)

    def step(self, epoch: int, metric: float | None = None) -> None:
        """Set the values for an epoch."""
        self._set(self.get_epoch_values(epoch), epoch, metric)

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        """Set the values after so many updates."""
        self._set(self.get_update_values(num_updates), num_updates, metric)

    def _set(self, values: list[float] | None, t: int, metric: float | None) -> None:
        self.metric = metric
        if values is not None:
            noise = self._noise(t)
            self.update_groups([value * (1 + noise) for value in values])

    def update_groups(self, values: Any) -> None:
        """Set one value for all groups, or one for each."""
        groups = self.optimizer.param_groups
        values = values if isinstance(values, list | tuple) else [values] * len(groups)
        for group, value in zip(groups, values, strict=True):
            group[self.param_group_field] = value * group.get("lr_scale", 1.0)

    def _noise(self, t: int) -> float:
        span = self.noise_range_t
        if span is None or not (span[0] <= t < span[1] if isinstance(span, list | tuple) else t >= span):
            return 0.0
        generator = torch.Generator().manual_seed(self.noise_seed + t)
        if self.noise_type != "normal":
            return 2 * (torch.rand(1, generator=generator).item() - 0.5) * self.noise_pct
        while True:
            noise = torch.randn(1, generator=generator).item() * self.noise_std
            if abs(noise) < self.noise_pct:
                return noise

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "optimizer"}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        vars(self).update(state_dict)


class _Curve(Scheduler):
    """A warm-up and a shape. `takes` are the arguments, which all are attributes as well."""

    takes: ClassVar[dict[str, Any]] = {}
    __signature__: ClassVar[Signature]
    warmup_t: int
    warmup_lr_init: float
    warmup_prefix: bool = True

    def __init_subclass__(cls) -> None:
        cls.__signature__ = signature("optimizer", cls.takes)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = bind(type(self).__name__, self.__signature__, args, kwargs)
        shared = {key: given.pop(key) for key in ("optimizer", "t_in_epochs", "initialize", *NOISE)}
        super().__init__(param_group_field="lr", **shared)
        vars(self).update(given)
        self.check()
        self.warmup_steps: list[float] = [1] * len(self.base_values)
        if self.warmup_t:
            goals = self.warmup_goals()
            self.warmup_steps = [(goal - self.warmup_lr_init) / self.warmup_t for goal in goals]
            self.update_groups(self.warmup_lr_init)

    def check(self) -> None:
        """Raise for arguments that cannot be meant."""

    def warmup_goals(self) -> list[float]:
        return self.base_values

    def value(self, t: int, full: float) -> float:
        """The rate at `t`, where that of the first is `full`."""
        raise NotImplementedError(f"{type(self).__name__} must define value(t, full)")

    def _get_lr(self, t: int) -> list[float]:
        if t < self.warmup_t:
            return [self.warmup_lr_init + t * step for step in self.warmup_steps]
        if self.warmup_prefix:
            t -= self.warmup_t
        return [self.value(t, full) for full in self.base_values]


class StepLRScheduler(_Curve):
    """Times `decay_rate` every `decay_t`."""

    takes: ClassVar = {"decay_t": REQUIRED, "decay_rate": 1.0, **WARMUP, "warmup_prefix": True, "t_in_epochs": True}
    takes |= {**NOISE, "initialize": True}
    decay_t: Any
    decay_rate: float

    def value(self, t: int, full: float) -> float:
        return full * SHAPES["step"](t, 0, decay_updates=self.decay_t, decay_rate=self.decay_rate)


class MultiStepLRScheduler(StepLRScheduler):
    """Times `decay_rate` one before each of `decay_t`: where the step is told of the epoch that has ended."""

    takes = StepLRScheduler.takes

    def value(self, t: int, full: float) -> float:
        return full * SHAPES["multistep"](t + 1, 0, milestones=self.decay_t, decay_rate=self.decay_rate)


class _Cycles(_Curve):
    """A shape that falls in `t_initial`; in cycles, each `cycle_mul` as long and `cycle_decay` as high as the last."""

    t_initial: int
    lr_min: float
    cycle_mul: float
    cycle_decay: float
    cycle_limit: int

    def check(self) -> None:
        if not (self.t_initial > 0 and self.lr_min >= 0):
            name = type(self).__name__
            raise OpsinError(f"{name}: t_initial={self.t_initial} must be above 0, lr_min={self.lr_min} not below")

    def part(self, t: float, length: float) -> float:
        return t / length

    def shape(self, part: float) -> float:
        """Of the way from the lowest rate to the full one, how much is left."""
        raise NotImplementedError(f"{type(self).__name__} must define shape(part)")

    def value(self, t: int, full: float) -> float:
        i, length = t // self.t_initial, float(self.t_initial)
        begin = i * length
        if (mul := self.cycle_mul) != 1:  # lengths are a geometric series, which ends some time where they shrink
            i = math.floor(math.log(max(1 - t / self.t_initial * (1 - mul), 1e-300), mul))
            begin, length = (1 - mul**i) / (1 - mul) * self.t_initial, mul**i * self.t_initial
        if i >= self.cycle_limit:
            return self.lr_min
        full *= self.cycle_decay**i
        return self.lr_min + (full - self.lr_min) * self.shape(self.part(t - begin, length))

    def get_cycle_length(self, cycles: int = 0) -> int:
        """Of all cycles together, or of the first ones, with the warm-up if that comes before them."""
        cycles, mul = max(1, cycles or self.cycle_limit), self.cycle_mul
        length = self.t_initial * (cycles if mul == 1 else (mul**cycles - 1) / (mul - 1))
        return math.floor(length) + (self.warmup_t if self.warmup_prefix else 0)


class _Bent(_Cycles):
    k_decay: float

    def part(self, t: float, length: float) -> float:
        return t**self.k_decay / length**self.k_decay


_TAIL = {**CYCLES, **WARMUP, "warmup_prefix": False, "t_in_epochs": True, **NOISE}


class CosineLRScheduler(_Bent):
    """Half a cosine wave; `k_decay` bends it (https://arxiv.org/abs/2004.05909)."""

    takes: ClassVar = {"t_initial": REQUIRED, **_TAIL, "k_decay": 1.0, "initialize": True}

    def shape(self, part: float) -> float:
        return wave(part)


class PolyLRScheduler(_Bent):
    """(1 - part) ** power."""

    takes: ClassVar = {"t_initial": REQUIRED, "power": 0.5, **_TAIL, "k_decay": 1.0, "initialize": True}
    power: float

    def shape(self, part: float) -> float:
        return (1 - part) ** self.power


class TanhLRScheduler(_Cycles):
    """A hyperbolic tangent from `lb` to `ub`, which begins and ends a little beside the two rates."""

    takes: ClassVar = {"t_initial": REQUIRED, "lb": -7.0, "ub": 3.0, **_TAIL, "initialize": True}
    lb: float
    ub: float

    def shape(self, part: float) -> float:
        return 0.5 * (1 - math.tanh(self.lb * (1 - part) + self.ub * part))

    def warmup_goals(self) -> list[float]:
        return self.base_values if self.warmup_prefix else [self.value(self.warmup_t, v) for v in self.base_values]


STABLE = ("constant", "rsqrt", "power")
DECAY = ("1-sqrt", "linear", "cosine", "power", "exp")


class WSDLRScheduler(_Curve):
    """Warm-up, stable, decay: `t_initial` after the warm-up, of which the last `decay_t` fall to `lr_min`."""

    takes: ClassVar = {
        "t_initial": REQUIRED, "decay_t": REQUIRED, "lr_min": 0.0, "stable_fn": "constant", "stable_timescale": None,
        "stable_power": 0.5, "decay_fn": "1-sqrt", "decay_power": 0.5, "decay_ratio": 0.1, **WARMUP,
        "t_in_epochs": True, **NOISE, "initialize": True,
    }  # fmt: skip
    t_initial: int
    decay_t: int
    lr_min: float
    stable_fn: str
    stable_timescale: float | None
    stable_power: float
    decay_fn: str | Callable[[float], float]
    decay_power: float
    decay_ratio: float

    def check(self) -> None:
        check_choice(self.stable_fn, STABLE, what="stable_fn")
        if not callable(self.decay_fn):
            check_choice(self.decay_fn, DECAY, what="decay_fn")
        if not 0 < self.decay_t <= self.t_initial:
            raise OpsinError(f"decay_t={self.decay_t} must be above 0 and at most t_initial={self.t_initial}")
        if self.stable_fn != "constant" and not (self.stable_timescale or self.warmup_t) > 0:
            raise OpsinError(f"stable_fn={self.stable_fn!r} needs a stable_timescale, or a warm-up to take it from")

    def value(self, t: int, full: float) -> float:
        if self.stable_fn != "constant":
            power = 0.5 if self.stable_fn == "rsqrt" else self.stable_power
            full *= (1 + t / (self.stable_timescale or self.warmup_t)) ** -power
        part = min((t - (self.t_initial - self.decay_t)) / self.decay_t, 1.0)
        return full if part <= 0 else self.lr_min + (full - self.lr_min) * self.left(part)

    def left(self, part: float) -> float:
        if callable(self.decay_fn):
            return self.decay_fn(part)
        match self.decay_fn:
            case "cosine":
                return wave(part)
            case "exp":
                return (self.decay_ratio**part - self.decay_ratio) / (1 - self.decay_ratio)
        return 1 - part ** {"linear": 1.0, "1-sqrt": 0.5, "power": self.decay_power}[self.decay_fn]

    def get_cycle_length(self) -> int:
        return self.t_initial + self.warmup_t


class PlateauLRScheduler(Scheduler):
    """torch's, after a warm-up: `step(epoch, metric)` with the score of the epoch. With noise."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        decay_rate: float = 0.1,
        patience_t: int = 10,
        threshold: float = 1e-4,
        cooldown_t: int = 0,
        warmup_t: int = 0,
        warmup_lr_init: float = 0.0,
        lr_min: float = 0.0,
        mode: Any = "max",
        noise_range_t: Any = None,
        noise_type: str = "normal",
        noise_pct: float = 0.67,
        noise_std: float = 1.0,
        noise_seed: int | None = None,
        initialize: bool = True,
    ) -> None:
        super().__init__(optimizer, "lr", True, noise_range_t, noise_type, noise_pct, noise_std, noise_seed, initialize)
        self.lr_scheduler = ReduceLROnPlateau(
            optimizer, mode, decay_rate, patience_t, threshold, cooldown=cooldown_t, min_lr=lr_min
        )
        self.warmup_t, self.warmup_lr_init = warmup_t, warmup_lr_init
        self.quiet: list[float] | None = None  # rates before the noise
        if warmup_t:
            self.update_groups(warmup_lr_init)

    def step(self, epoch: int, metric: float | None = None) -> None:
        groups, t = self.optimizer.param_groups, self.warmup_t
        if t and epoch <= t:
            first = self.warmup_lr_init
            self.update_groups([first + epoch * (full - first) / t for full in self.base_values])
            return
        if metric is None:
            raise OpsinError("PlateauLRScheduler.step(epoch, metric) needs the score of the epoch")
        if self.quiet is not None:
            for group, rate in zip(groups, self.quiet, strict=True):
                group["lr"] = rate
            self.quiet = None
        self.lr_scheduler.step(metric)
        if noise := self._noise(epoch):
            self.quiet = [group["lr"] for group in groups]
            for group in groups:
                group["lr"] *= 1 + noise

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        """Nothing: rates change between epochs."""

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.lr_scheduler.best, "last_epoch": self.lr_scheduler.last_epoch}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        vars(self.lr_scheduler).update(state_dict)
