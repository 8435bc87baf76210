"""`timm.scheduler.create_scheduler`: a scheduler from a training script's options."""

from collections.abc import Sequence
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
    check_choice(sched, NAMES, what="scheduler")
    if sched == "plateau" and not step_on_epochs:
        raise OpsinError("the scheduler plateau waits for the score of an epoch: step_on_epochs=True")
    if not step_on_epochs and updates_per_epoch <= 0:
        raise OpsinError("step_on_epochs=False needs updates_per_epoch, the number of updates of an epoch")
    unit = 1 if step_on_epochs else updates_per_epoch
    length, warmup = num_epochs * unit, warmup_epochs * unit
    decay = 90 * unit if decay_epochs is None else decay_epochs * unit
    span = [n * length for n in noise] if isinstance(noise, list | tuple) else None if noise is None else noise * length
    noises = {
        "noise_range_t": span[0] if isinstance(span, list) and len(span) == 1 else span,
        "noise_pct": noise_pct, "noise_std": noise_std, "noise_seed": noise_seed,
    }  # fmt: skip
    warm = {"warmup_t": warmup, "warmup_lr_init": warmup_lr, "t_in_epochs": step_on_epochs}
    early = warm | {"warmup_prefix": warmup_prefix}
    cycles = {"lr_min": min_lr, "cycle_mul": cycle_mul, "cycle_decay": cycle_decay, "cycle_limit": cycle_limit}
    made: Any = None
    match sched:
        case "cosine":
            made = schedulers.CosineLRScheduler(optimizer, length, **cycles, **early, **noises, k_decay=k_decay)
        case "tanh":
            made = schedulers.TanhLRScheduler(optimizer, length, **cycles, **early, **noises)
        case "poly":
            made = schedulers.PolyLRScheduler(
                optimizer, length, decay_rate, **cycles, **early, **noises, k_decay=k_decay
            )
        case "step":
            made = schedulers.StepLRScheduler(optimizer, decay, decay_rate, **early, **noises)
        case "multistep":
            milestones = [m * unit for m in decay_milestones]
            made = schedulers.MultiStepLRScheduler(optimizer, milestones, decay_rate, **early, **noises)
        case "plateau":
            warm.pop("t_in_epochs")
            made = schedulers.PlateauLRScheduler(
                optimizer, decay_rate, patience_epochs, lr_min=min_lr, mode=plateau_mode, **warm, **noises
            )
        case "wsd":
            left = length if warmup_prefix else length - warmup
            falls = round(0.2 * left) if decay_epochs is None else decay
            scale = None if stable_timescale is None else stable_timescale * unit
            shape = {"lr_min": min_lr, "stable_timescale": scale, "decay_fn": decay_fn or "1-sqrt"}
            made = schedulers.WSDLRScheduler(optimizer, left, falls, **shape, **warm, **noises)
    if hasattr(made, "get_cycle_length"):
        return made, (made.get_cycle_length() + cooldown_epochs * unit) // unit
    return made, num_epochs + (warmup_epochs if warmup_prefix else 0)
