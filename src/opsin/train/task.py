"""What is learnt: the kind of targets, with the loss, the metrics and the width of the head that go with it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opsin.data.labels import TargetScale
from opsin.data.readers import Head
from opsin.data.samplers import class_counts
from opsin.errors import OpsinError
from opsin.loss import create_loss
from opsin.train.config import LossSettings, TrainConfig
from opsin.train.metrics import Metrics

__all__ = ["BEST", "Part", "Task"]

BEST = {"single": "top1", "multi": "mAP", "regression": "mae"}  # what decides which checkpoint is best
LOWER = ("loss", "mae", "rmse", "mse", "ece")  # better when lower


class Part(NamedTuple):
    """What a batch holds for one head: its name, its task, the rows that have a label for it, and the outputs and
    prepared targets of these. The one part of a task without heads is the whole batch and has no name."""

    name: str
    task: "Task"
    rows: Tensor
    outputs: Tensor
    targets: Tensor


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
        heads: what the outputs are where they are of several kinds; see `opsin.train.heads`.
    """

    kind: str
    classes: tuple[str, ...] | None
    outputs: int
    train_loss: nn.Module
    eval_loss: nn.Module
    metric: str
    scale: TargetScale | None = None
    heads: tuple[Head, ...] = ()

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
        if config.loss.head_weights and kind != "heads":
            raise OpsinError(f"head_weights are of several heads; name several columns as target, {reader} has one")
        if kind == "heads":
            from opsin.train.heads import HeadsTask

            task: Task = HeadsTask.learning(reader, config)
        elif kind == "regression" and (config.loss.smoothing or config.augment.mixup or config.augment.cutmix):
            raise OpsinError("mixup, cutmix and smoothing are for classes, not for regression")
        else:
            task = cls.learnt_from(reader.targets, kind, reader.classes, config, owner=str(reader))
        names = task.metrics().names
        if config.run.metric is not None:
            task.metric = config.run.metric
        if task.metric.removeprefix("ema_") not in (*names, "loss"):
            raise OpsinError(f"no metric {task.metric!r} for {kind} targets; there are: loss, {', '.join(names)}")
        return task

    @classmethod
    def learnt_from(
        cls, targets: Any, kind: str, classes: tuple[str, ...] | None, config: TrainConfig, *, owner: str
    ) -> "Task":
        """A task of one kind; `targets` are those of all samples, as `Reader.targets`, or None of a stream."""
        settings, scale, outputs = config.loss, None, len(classes or ())
        if kind == "regression":
            if targets is None:
                raise OpsinError(f"{owner}: a stream of numbers gives no scale to learn them by")
            scale, outputs = TargetScale.fit(targets), 1 if targets.ndim == 1 else targets.shape[1]
        elif classes is None:
            raise OpsinError(f"{owner}: the classes have no names; give a class_map")
        splits = config.augment.aug_splits
        options: dict[str, Any] = {"smoothing": settings.smoothing, "num_splits": splits, **settings.loss_args}
        if settings.class_weights:
            options["weight"] = _class_weights(settings, kind, targets, outputs)
        train_loss = create_loss(settings.loss, task=kind, **options)
        return cls(kind, classes, outputs, train_loss, create_loss("auto", task=kind), BEST[kind], scale)

    @classmethod
    def judging(cls, head: Head) -> "Task":
        """The task of what a model has learnt already."""
        loss = create_loss("auto", task=head.task)
        return cls(head.task, head.classes, head.outputs, loss, loss, BEST[head.task], head.scale)

    def to(self, device: torch.device) -> "Task":
        """The losses with their weights on a device."""
        self.train_loss.to(device)
        return self

    def metrics(self) -> Metrics:
        """Fresh counters."""
        return Metrics(self.kind, self.outputs)

    def each(self) -> list[tuple[str, "Task"]]:
        """The heads' names and tasks; of a task without heads itself, without a name."""
        return [("", self)]

    def main_scores(self) -> list[str]:
        """The scores that say most: the one that decides, or that of each head."""
        return [self.metric.removeprefix("ema_")]

    def parts(self, outputs: Tensor, targets: Tensor) -> Iterator[Part]:
        """What outputs (B, `outputs`) and prepared targets hold for each of these."""
        yield Part("", self, torch.arange(len(outputs)), outputs, targets)

    @property
    def lower_is_better(self) -> bool:
        """Of the score that decides."""
        return self.metric.removeprefix("ema_").rpartition("/")[2] in LOWER

    def better(self, new: float, old: float | None) -> bool:
        """Whether a score beats the best so far. One that is not a number never does."""
        if old is None:
            return new == new
        return new < old if self.lower_is_better else new > old

    def in_units(self, values: Tensor) -> Tensor:
        """Outputs or prepared targets as metrics count them: numbers in the units of the data."""
        return values if self.scale is None else self.scale.inverse(values)

    def prepare(self, targets: Tensor) -> Tensor:
        """Targets as the losses and metrics take them."""
        if self.scale is not None:
            targets = self.scale(targets)
            return targets if targets.ndim == 2 else targets[:, None]
        return targets


def _class_weights(settings: LossSettings, kind: str, targets: Any, outputs: int) -> Tensor:
    if kind != "single" or targets is None:
        raise OpsinError("class_weights are for one label per picture, in data that can be counted")
    counts = torch.from_numpy(class_counts(targets, outputs)).clamp_min(1)
    weights = counts.float() ** -settings.class_weights
    return weights / weights.mean()
