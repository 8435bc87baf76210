"""Several heads: some outputs of the model for each kind of labels, learnt and judged side by side.

All heads are parts of the model's one last layer, so that any architecture takes them. A picture that has no label for
a head counts nothing there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opsin.data.augment.mix import soft_targets
from opsin.data.readers import Head
from opsin.data.readers.heads import spans
from opsin.errors import OpsinError, check_choice
from opsin.loss import list_losses
from opsin.train.config import TrainConfig
from opsin.train.metrics import Metrics
from opsin.train.task import BEST, Part, Task

__all__ = ["HeadsTask"]


@dataclass
class HeadsTask(Task):
    """A task for each head, in the order of the outputs. Targets are rows of the heads' columns, see
    `opsin.data.readers.heads`, or of shares of all outputs where pictures are mixed."""

    tasks: list[Task] = field(default_factory=list)

    @classmethod
    def learning(cls, reader: Any, config: TrainConfig) -> "HeadsTask":
        """The task of a training set, with the losses that the configuration asks for."""
        _check(reader, config)
        heads, tasks = [], []
        for head, place in zip(reader.heads, spans(head.columns for head in reader.heads), strict=True):
            targets = reader.targets[:, place]
            targets = targets[~np.isnan(targets[:, 0])]
            if not len(targets):
                raise OpsinError(f"{reader}: not one picture for training has a label for {head.name}")
            targets = targets[:, 0].astype(np.int64) if head.task == "single" else targets
            own = _own_settings(head.task, config)
            tasks.append(Task.learnt_from(targets, head.task, head.classes, own, owner=f"{reader}, {head.name}"))
            heads.append(replace(head, scale=tasks[-1].scale))
        return cls._of(tuple(heads), tasks, [config.loss.head_weights.get(head.name, 1.0) for head in heads])

    @classmethod
    def of_model(cls, heads: Sequence[Head]) -> "HeadsTask":
        """The task of a model that has learnt."""
        return cls._of(tuple(heads), [Task.judging(head) for head in heads], [1.0] * len(heads))

    @classmethod
    def _of(cls, heads: tuple[Head, ...], tasks: list[Task], weights: list[float]) -> "HeadsTask":
        outputs, nothing = sum(head.outputs for head in heads), nn.Identity()
        made = cls("heads", None, outputs, nothing, nothing, "loss", None, heads, tasks)
        made.train_loss = _Sum(made, [task.train_loss for task in tasks], weights)
        made.eval_loss = _Sum(made, [task.eval_loss for task in tasks], weights)
        return made

    def check_judge(self, reader: Any) -> None:
        """Raise `OpsinError` where a validation set has no label for the head whose score decides."""
        known = {
            head.name: not np.isnan(reader.targets[:, place.start]).all()
            for head, place in zip(self.heads, spans(head.columns for head in self.heads), strict=True)
        }
        head = self.metric.removeprefix("ema_").rpartition("/")[0]
        if not known.get(head, True):
            others = ", ".join(name for name, there in known.items() if there) or "none"
            raise OpsinError(
                f"{reader}: not one picture for validation has a label for {head}, so {self.metric} cannot decide. "
                f"Heads that have: {others}. --metric loss is always there"
            )

    def metrics(self) -> Any:
        return HeadsMetrics(self)

    def each(self) -> list[tuple[str, Task]]:
        return [(head.name, task) for head, task in zip(self.heads, self.tasks, strict=True)]

    def main_scores(self) -> list[str]:
        own = [f"{name}/{BEST[task.kind]}" for name, task in self.each()]
        return list(dict.fromkeys([*super().main_scores(), *own]))

    def parts(self, outputs: Tensor, targets: Tensor) -> Iterator[Part]:
        mixed = targets.shape[1] == self.outputs
        columns = spans(head.outputs if mixed else head.columns for head in self.heads)
        places = spans(head.outputs for head in self.heads)
        for head, task, place, column in zip(self.heads, self.tasks, places, columns, strict=True):
            values = targets[:, column]
            rows = (~values.isnan().any(1)).nonzero()[:, 0]
            own = values[rows]
            if head.task == "single" and not mixed:
                own = own[:, 0].long()
            yield Part(head.name, task, rows, outputs[rows, place], task.prepare(own))

    def shares(self, targets: Tensor) -> Tensor:
        """Rows of shares of all outputs (B, `outputs`), ready to be mixed."""
        parts = []
        for head, place in zip(self.heads, spans(head.columns for head in self.heads), strict=True):
            rows = targets[:, place]
            if head.task == "single":
                known = ~rows[:, 0].isnan()
                wide = rows.new_full((len(rows), head.outputs), float("nan"))
                wide[known] = soft_targets(rows[known, 0].long(), head.outputs)
                rows = wide
            parts.append(rows)
        return torch.cat(parts, 1)


def _check(reader: Any, config: TrainConfig) -> None:
    """Raise `OpsinError` for settings that fit none of the heads."""
    settings, kinds = config.loss, {head.task for head in reader.heads}
    for name, weight in settings.head_weights.items():
        check_choice(name, [head.name for head in reader.heads], what="head", where="head_weights")
        if not isinstance(weight, int | float) or weight < 0:
            raise OpsinError(f"head_weights: {name} must be a number of at least 0, not {weight!r}")
    if settings.loss != "auto" and not any(settings.loss in list_losses(kind) for kind in kinds):
        raise OpsinError(f"the loss {settings.loss} is for none of the heads, which are: {', '.join(sorted(kinds))}")
    if settings.loss == "auto" and settings.loss_args:
        raise OpsinError("loss_args belong to a loss: name it, several heads have several")
    if settings.class_weights and "single" not in kinds:
        raise OpsinError("class_weights are for one label per picture, which none of the heads has")
    if config.augment.aug_splits:
        raise OpsinError("aug_splits compare outputs of one kind, not of several heads")


def _own_settings(kind: str, config: TrainConfig) -> TrainConfig:
    """The configuration without what is meant for heads of other kinds."""
    settings = config.loss
    if settings.loss not in list_losses(kind):
        settings = replace(settings, loss="auto", loss_args={})
    if kind == "regression":
        settings = replace(settings, smoothing=0.0)
    if kind != "single":
        settings = replace(settings, class_weights=0.0)
    return replace(config, loss=settings)


class _Sum(nn.Module):
    """The heads' losses added up, each by its weight and by the share of pictures that have a label for it: so the loss
    of a batch is the mean over its pictures, however it is divided over processes."""

    def __init__(self, task: HeadsTask, losses: Sequence[nn.Module], weights: Sequence[float]) -> None:
        super().__init__()
        self.task, self.losses, self.weights = task, nn.ModuleList(losses), weights

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        total = outputs.sum() * 0.0  # a batch without any label has a gradient too
        parts = self.task.parts(outputs, targets)
        for part, loss, weight in zip(parts, self.losses, self.weights, strict=True):
            if len(part.outputs):
                total = total + loss(part.outputs, part.targets) * (weight * len(part.outputs) / len(outputs))
        return total


class HeadsMetrics:
    """The scores of each head by its name: `colour/top1`. A head that no picture has a label for has none."""

    def __init__(self, task: HeadsTask) -> None:
        self.task = task
        self.heads = [Metrics(head.task, head.outputs) for head in task.heads]
        self.names = tuple(
            f"{head.name}/{name}"
            for head, metrics in zip(task.heads, self.heads, strict=True)
            for name in metrics.names
        )

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in a batch: outputs and rows of targets."""
        for part, metrics in zip(self.task.parts(outputs, targets), self.heads, strict=True):
            metrics.update(part.task.in_units(part.outputs), part.task.in_units(part.targets))

    def compute(self, world: Any = None) -> dict[str, float]:
        """All scores, over all processes of `world`."""
        return {
            f"{head.name}/{name}": value
            for head, metrics in zip(self.task.heads, self.heads, strict=True)
            for name, value in metrics.compute(world).items()
        }
