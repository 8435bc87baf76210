"""Losses by name."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from opsin.bounds import check_arguments
from opsin.errors import OpsinError, check_known, did_you_mean
from opsin.loss.classification import AsymmetricLoss, BinaryCrossEntropy, CrossEntropy, FocalLoss, JsdLoss, PolyLoss

__all__ = ["create_loss", "list_losses"]

# name -> class, and the tasks it is for
LOSSES: dict[str, tuple[Callable[..., nn.Module], tuple[str, ...]]] = {
    "ce": (CrossEntropy, ("single",)),
    "bce": (BinaryCrossEntropy, ("single", "multi")),
    "focal": (FocalLoss, ("single", "multi")),
    "poly": (PolyLoss, ("single",)),
    "asymmetric": (AsymmetricLoss, ("single", "multi")),
    "jsd": (JsdLoss, ("single",)),
    "mse": (nn.MSELoss, ("regression",)),
    "l1": (nn.L1Loss, ("regression",)),
    "huber": (nn.HuberLoss, ("regression",)),
}
AUTO = {"single": "ce", "multi": "bce", "regression": "mse"}


def list_losses(task: str | None = None) -> list[str]:
    """All names, or those for a task."""
    return [name for name, (_, tasks) in LOSSES.items() if task is None or task in tasks]


def create_loss(
    name: str = "auto", *, task: str = "single", smoothing: float = 0.0, num_splits: int = 0, **options: Any
) -> nn.Module:
    """A loss of (outputs, targets).

    Args:
        name: one of `list_losses`; auto is cross entropy, binary cross entropy or mean squares, by the task.
        task: "single", "multi" or "regression".
        smoothing: of the targets, for losses over classes.
        num_splits: augmentation splits in a batch; only the jsd loss compares them.
        options: other arguments of the loss.

    Raises:
        OpsinError: no such loss or argument, or one that does not fit the task.
    """
    if task not in AUTO:
        raise OpsinError(f"no task {task!r}.{did_you_mean(task, AUTO) or ' There are: ' + ', '.join(AUTO) + '.'}")
    name = AUTO[task] if name == "auto" else name
    if name not in LOSSES:
        raise OpsinError(f"no loss {name!r}.{did_you_mean(name, LOSSES) or ' There are: ' + ', '.join(LOSSES) + '.'}")
    make, tasks = LOSSES[name]
    if task not in tasks:
        raise OpsinError(f"the loss {name} is not for {task} targets; these are: {', '.join(list_losses(task))}")
    takes = [p for p in inspect.signature(make).parameters if p not in ("size_average", "reduce")]
    if smoothing:
        options = {"smoothing": smoothing, **options}
    if name == "jsd":
        options = {"num_splits": num_splits, **options}
    if name == "bce" and task == "multi":
        options = {"multi_label": True, **options}
    if name == "asymmetric" and task == "single":
        options = {"single_label": True, **options}
    check_known(options, takes, owner=f"the loss {name}")
    check_arguments(make, options, owner=f"the loss {name}")
    return make(**options)
