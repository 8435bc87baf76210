"""The scheduler: warm-up, a shape, noise, and the rate of each parameter group."""

import math
from typing import Any

import numpy as np
import torch

from opsin.bounds import AboveZero, FromZero, Index, Share, check_arguments
from opsin.errors import OpsinError, did_you_mean
from opsin.scheduler.shapes import SHAPES, check_options

__all__ = ["Scheduler", "create_scheduler"]


class Scheduler:
    """Sets the learning rates of an optimizer for one update after the other.

    Nothing is remembered from one update to the next (but by `plateau`), so any update can be asked for at any time.

    Args:
        optimizer: each group's `lr` is its full rate; its `lr_scale`, where it has one, multiplies what comes out.
        name: the shape after the warm-up, one of `list_schedules`.
        total_steps: updates of the whole run, warm-up included.
        warmup_steps: updates in which the rate rises in a line from `warmup_lr` to the full one.
        warmup_lr, min_lr: where it begins and ends.
        steps_per_epoch: updates an epoch.
        by_epoch: change the rate between epochs only.
        timm_epochs: the semantics of timm's epochs, for old recipes: by epoch, the shape counted from epoch 0 as if
            there had been no warm-up, and ended one epoch after the last.
        noise: (begin, end) fractions of the run between which the rate is multiplied by 1 + noise.
        noise_std: deviation of the noise, cut off at 0.67. noise_seed: of the noise.
        patience, decay_rate, lower_is_better: of `plateau`: epochs without a better score (10) after which the rate
            is multiplied by `decay_rate`, down to `min_lr`.
        options: of the shape.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        name: str = "cosine",
        *,
        total_steps: int,
        warmup_steps: int = 0,
        warmup_lr: float = 0.0,
        min_lr: float = 0.0,
        steps_per_epoch: int = 1,
        by_epoch: bool = False,
        timm_epochs: bool = False,
        noise: tuple[Share, Share] | None = None,
        noise_std: AboveZero = 0.67,
        noise_seed: Index = 42,
        patience: Index | None = None,
        decay_rate: FromZero = 0.1,
        lower_is_better: bool = False,
        **options: Any,
    ) -> None:
        if name not in SHAPES:
            raise OpsinError(
                f"no schedule {name!r}.{did_you_mean(name, SHAPES) or ' There are: ' + ', '.join(SHAPES) + '.'}"
            )
        own = {"noise": noise, "noise_std": noise_std, "noise_seed": noise_seed, "patience": patience,
               "decay_rate": decay_rate, "lower_is_better": lower_is_better}  # fmt: skip
        check_arguments(Scheduler, own, owner=f"the schedule {name}")
        if patience is not None and name != "plateau":
            raise OpsinError(f"patience is of the schedule plateau, not of {name}")
        if name in ("step", "multistep"):
            options.setdefault("decay_rate", decay_rate)
        check_options(name, options)
        if not 0 <= warmup_steps < max(total_steps, 1):
            raise OpsinError(f"{warmup_steps} updates of warm-up leave nothing of {total_steps}")
        if name == "onecycle" and warmup_steps:
            raise OpsinError("the schedule onecycle has a rise of its own (`rise`): give it no warm-up")
        self.optimizer, self.name, self.options = optimizer, name, options
        self.total_steps, self.warmup_steps = total_steps, warmup_steps
        self.warmup_lr, self.min_lr = warmup_lr, min_lr
        self.steps_per_epoch, self.by_epoch, self.timm_epochs = max(steps_per_epoch, 1), by_epoch, timm_epochs
        self.noise, self.noise_std, self.noise_seed = noise, noise_std, noise_seed
        self.patience = 10 if patience is None else patience
        self.decay_rate, self.lower_is_better = decay_rate, lower_is_better
        self.lowered, self.bad = 1.0, 0
        self.best: float | None = None
        self.step(0)

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Whose rates are set; another one begins with the rates of its groups as the full ones."""
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self._optimizer = optimizer

    def step(self, update: int) -> None:
        """Set the rates for update number `update`, counted from 0."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_at(update, group["initial_lr"]) * group.get("lr_scale", 1.0)

    def lr_at(self, update: int, lr: float | None = None) -> float:
        """The rate of an update for a group whose full rate is `lr` (that of the first group), without its scale."""
        lr = self.optimizer.param_groups[0]["initial_lr"] if lr is None else lr
        if self.by_epoch or self.timm_epochs:
            update = update // self.steps_per_epoch * (1 if self.timm_epochs else self.steps_per_epoch)
        total, warmup = self.total_steps, self.warmup_steps
        if self.timm_epochs:
            total, warmup = total // self.steps_per_epoch, warmup // self.steps_per_epoch
        if update < warmup:
            value = self.warmup_lr + (lr - self.warmup_lr) * update / warmup
        else:
            # timm's cosine would reach its end one epoch after the last, and does not wait for the warm-up
            t, length = (update, total + 1) if self.timm_epochs else (update - warmup, total - warmup)
            value = self.min_lr + (lr - self.min_lr) * SHAPES[self.name](t, length, **self.options)
        value = max(value * self.lowered, min(value, self.min_lr))
        return value * self._noise(update, total)

    def _noise(self, update: int, total: int) -> float:
        if self.noise is None or not self.noise[0] * total <= update < self.noise[1] * total:
            return 1.0
        draw = math.inf
        rng = np.random.default_rng((self.noise_seed, update))
        while abs(draw) >= 0.67:
            draw = float(rng.normal(0, self.noise_std))
        return 1 + draw

    def judge(self, score: float, update: int | None = None) -> None:
        """Tell `plateau` the score of an epoch after which update number `update` comes: one within the warm-up does
        not count as one without a better score."""
        if self.name != "plateau":
            return
        if self.best is None or math.isnan(self.best):
            better = True
        else:
            better = score < self.best if self.lower_is_better else score > self.best
        warm = update is None or update >= self.warmup_steps
        self.best, self.bad = (score, 0) if better else (self.best, self.bad + warm)
        if self.bad > self.patience:
            self.lowered, self.bad = self.lowered * self.decay_rate, 0

    def state_dict(self) -> dict[str, Any]:
        return {"lowered": self.lowered, "bad": self.bad, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lowered, self.bad, self.best = state["lowered"], state["bad"], state["best"]


def create_scheduler(optimizer: torch.optim.Optimizer, name: str = "cosine", **options: Any) -> Scheduler:
    """A scheduler by name; see `Scheduler`."""
    return Scheduler(optimizer, name, **options)
