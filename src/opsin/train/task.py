"""What is learnt: the kind of targets, with the loss, the metrics and the width of the head that go with it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from opsin.data.labels import TargetScale
from opsin.data.samplers import class_counts
from opsin.errors import OpsinError
from opsin.loss import create_loss
from opsin.train.config import TrainConfig
from opsin.train.metrics import Metrics

__all__ = ["Task"]

BEST = {"single": "top1", "multi": "mAP", "regression": "mae"}  # what decides which checkpoint is best
LOWER = ("loss", "mae", "rmse", "mse", "ece")  # better when lower


@dataclass
class Task:
    """A kind of learning.

    Attributes:
        kind: "single" label, "multi" labels, or "regression".
        classes: names in index order; None for regression.
        outputs: width of the model's head.
        train_loss, eval_loss: of (outputs, targets).
        metric: name of the score that decides.
        scale: of regression targets, learnt from the training set.
    """

    kind: str
    classes: tuple[str, ...] | None
    outputs: int
    train_loss: nn.Module
    eval_loss: nn.Module
    metric: str
    scale: TargetScale | None = field(default=None)

    @classmethod
    def of(cls, reader: Any, config: TrainConfig) -> "Task":
        """The task that a training set poses.

        Raises:
            OpsinError: nothing to learn in it, a task its targets do not fit, or an unknown loss or metric.
        """
        reader.check_trainable()
        kind = reader.task if config.loss.task == "auto" else config.loss.task
        if kind != reader.task:
            raise OpsinError(f"{reader}: the targets are {reader.task}, but the task is to be {kind}")
        settings, scale = config.loss, None
        if kind == "regression":
            if reader.targets is None:
                raise OpsinError(f"{reader}: a stream of numbers gives no scale to learn them by")
            scale, outputs = TargetScale.fit(reader.targets), 1 if reader.targets.ndim == 1 else reader.targets.shape[1]
        else:
            if reader.classes is None:
                raise OpsinError(f"{reader}: the classes have no names; give a class_map")
            outputs = len(reader.classes)
        options: dict[str, Any] = {"task": kind, **settings.loss_args}
        if settings.class_weights:
            if kind != "single" or reader.targets is None:
                raise OpsinError("class_weights are for one label per picture, in data that can be counted")
            counts = torch.from_numpy(class_counts(reader.targets, outputs)).clamp_min(1)
            weights = counts.float() ** -settings.class_weights
            options["weight"] = weights / weights.mean()
        soft = bool(config.augment.mixup or config.augment.cutmix)
        smoothing = 0.0 if soft else settings.smoothing  # mixing smooths the targets itself
        train_loss = create_loss(settings.loss, smoothing=smoothing, num_splits=config.augment.aug_splits, **options)
        metric = config.run.metric or BEST[kind]
        task = cls(kind, reader.classes, outputs, train_loss, create_loss("auto", task=kind), metric, scale)
        names = task.metrics().names
        if metric.removeprefix("ema_") not in (*names, "loss"):
            raise OpsinError(f"no metric {metric!r} for {kind} targets; there are: loss, {', '.join(names)}")
        return task

    def metrics(self) -> Metrics:
        """Fresh counters."""
        return Metrics(self.kind, self.outputs)

    def better(self, new: float, old: float | None) -> bool:
        """Whether a score beats the best so far. One that is not a number never does."""
        if old is None:
            return new == new
        return new < old if self.metric.removeprefix("ema_") in LOWER else new > old

    def in_units(self, values: Tensor) -> Tensor:
        """Outputs or prepared targets as metrics count them: numbers in the units of the data."""
        return values if self.scale is None else self.scale.inverse(values)

    def prepare(self, targets: Tensor) -> Tensor:
        """Targets as the losses and metrics take them."""
        if self.scale is not None:
            targets = self.scale(targets)
            return targets if targets.ndim == 2 else targets[:, None]
        return targets
