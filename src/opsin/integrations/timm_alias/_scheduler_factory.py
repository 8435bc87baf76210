"""`timm.scheduler.create_scheduler`: a scheduler from a training script's options."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from opsin.errors import OpsinError, check_choice
from opsin.integrations.timm_alias import _scheduler as schedulers

__all__ = ["create_scheduler", "create_scheduler_v2", "scheduler_kwargs"]

NAMES = ("cosine", "tanh", "step", "multistep", "plateau", "poly", "wsd", "none")

# argument of create_scheduler_v2 -> the option of a training script
OPTIONS = {
    "sched": "sched", "num_epochs": "epochs", "decay_epochs": "decay_epochs", "decay_milestones": "decay_milestones",
    "warmup_epochs": "warmup_epochs", "cooldown_epochs": "cooldown_epochs", "patience_epochs": "patience_epochs",
    "decay_rate": "decay_rate", "min_lr": "min_lr", "warmup_lr": "warmup_lr", "warmup_prefix": "warmup_prefix",
    "noise": "lr_noise", "noise_pct": "lr_noise_pct", "noise_std": "lr_noise_std", "noise_seed": "seed",
    "cycle_mul": "lr_cycle_mul", "cycle_decay": "lr_cycle_decay", "cycle_limit": "lr_cycle_limit",
    "k_decay": "lr_k_decay", "decay_fn": "lr_decay_fn", "stable_timescale": "lr_stable_timescale",
}  # fmt: skip
# where a script has no such option: other values than those of create_scheduler_v2 itself
ABSENT: dict[str, Any] = {
    "sched": "cosine", "decay_epochs": 30, "decay_milestones": [30, 60], "warmup_epochs": 5, "cooldown_epochs": 0,
    "patience_epochs": 10, "decay_rate": 0.1, "min_lr": 0.0, "warmup_lr": 1e-5, "warmup_prefix": False, "noise": None,
    "noise_pct": 0.67, "noise_std": 1.0, "noise_seed": 42, "cycle_mul": 1.0, "cycle_decay": 0.1, "cycle_limit": 1,
    "k_decay": 1.0, "decay_fn": None, "stable_timescale": None,
}  # fmt: skip


def scheduler_kwargs(cfg: Any, decreasing_metric: bool | None = None) -> dict[str, Any]:
    """Arguments of `create_scheduler_v2` from the options of a training script."""
    found = {name: getattr(cfg, option, ABSENT.get(name)) for name, option in OPTIONS.items()}
    if decreasing_metric is None:
        decreasing_metric = "loss" in getattr(cfg, "eval_metric", "")
    on_updates = getattr(cfg, "sched_on_updates", False)
    return found | {"plateau_mode": "min" if decreasing_metric else "max", "step_on_epochs": not on_updates}


def create_scheduler(args: Any, optimizer: torch.optim.Optimizer, updates_per_epoch: int = 0) -> tuple[Any, int]:
    """A scheduler from the options of a training script, and how many epochs it runs."""
    return create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=updates_per_epoch)


def create_scheduler_v2(
    optimizer: torch.optim.Optimizer,
    sched: str = "cosine",
    num_epochs: int = 300,
    decay_epochs: float | None = None,
    decay_milestones: Sequence[int] = (90, 180, 270),
    cooldown_epochs: int = 0,
    patience_epochs: int = 10,
    decay_rate: float = 0.1,
    min_lr: float = 0.0,
    warmup_lr: float = 1e-5,
    warmup_epochs: int = 0,
    warmup_prefix: bool = False,
    noise: Any = None,
    noise_pct: float = 0.67,
    noise_std: float = 1.0,
    noise_seed: int = 42,
    cycle_mul: float = 1.0,
    cycle_decay: float = 0.1,
    cycle_limit: int = 1,
    k_decay: float = 1.0,
    decay_fn: Any = None,
    stable_timescale: float | None = None,
    plateau_mode: str = "max",
    step_on_epochs: bool = True,
    updates_per_epoch: int = 0,
) -> tuple[Any, int]:
    """A scheduler by name (None for "none"), and how many epochs it runs: cycles, cool-down and, with
    `warmup_prefix`, warm-up included. With `step_on_epochs=False` it counts updates; epochs are as many times
    `updates_per_epoch`."""
    given = SimpleNamespace(**locals())
    check_choice(sched, NAMES, what="scheduler")
    if sched == "plateau" and not step_on_epochs:
        raise OpsinError("the scheduler plateau waits for the score of an epoch: step_on_epochs=True")
    if not step_on_epochs and updates_per_epoch <= 0:
        raise OpsinError("step_on_epochs=False needs updates_per_epoch, the number of updates of an epoch")
    unit = 1 if step_on_epochs else updates_per_epoch
    made: Any = None if sched == "none" else _make(given, unit)
    if hasattr(made, "get_cycle_length"):
        return made, (made.get_cycle_length() + cooldown_epochs * unit) // unit
    return made, num_epochs + (warmup_epochs if warmup_prefix else 0)


def _make(o: Any, unit: int) -> Any:
    """The scheduler that the options stand for; an epoch is `unit` long."""
    length, warmup = o.num_epochs * unit, o.warmup_epochs * unit
    decay = 90 * unit if o.decay_epochs is None else o.decay_epochs * unit
    noises: dict[str, Any] = {
        "noise_range_t": _noisy(o.noise, length), "noise_pct": o.noise_pct, "noise_std": o.noise_std,
        "noise_seed": o.noise_seed, "warmup_t": warmup, "warmup_lr_init": o.warmup_lr,
    }  # fmt: skip
    timed = noises | {"t_in_epochs": o.step_on_epochs}
    early = timed | {"warmup_prefix": o.warmup_prefix}
    cycles = {key: getattr(o, key) for key in ("cycle_mul", "cycle_decay", "cycle_limit")} | {"lr_min": o.min_lr}
    match o.sched:
        case "cosine":
            return schedulers.CosineLRScheduler(o.optimizer, length, k_decay=o.k_decay, **cycles, **early)
        case "tanh":
            return schedulers.TanhLRScheduler(o.optimizer, length, **cycles, **early)
        case "poly":
            return schedulers.PolyLRScheduler(o.optimizer, length, o.decay_rate, k_decay=o.k_decay, **cycles, **early)
        case "step":
            return schedulers.StepLRScheduler(o.optimizer, decay, o.decay_rate, **early)
        case "multistep":
            milestones = [milestone * unit for milestone in o.decay_milestones]
            return schedulers.MultiStepLRScheduler(o.optimizer, milestones, o.decay_rate, **early)
        case "plateau":
            return schedulers.PlateauLRScheduler(
                o.optimizer, o.decay_rate, o.patience_epochs, lr_min=o.min_lr, mode=o.plateau_mode, **noises
            )
    left = length if o.warmup_prefix else length - warmup
    falls = round(0.2 * left) if o.decay_epochs is None else decay
    scale = None if o.stable_timescale is None else o.stable_timescale * unit
    shape = {"lr_min": o.min_lr, "stable_timescale": scale, "decay_fn": o.decay_fn or "1-sqrt"}
    return schedulers.WSDLRScheduler(o.optimizer, left, falls, **shape, **timed)


def _noisy(noise: Any, length: int) -> Any:
    """Fractions of the run as times: where noise begins, or begins and ends."""
    if isinstance(noise, list | tuple):
        times = [part * length for part in noise]
        return times[0] if len(times) == 1 else times
    return None if noise is None else noise * length
