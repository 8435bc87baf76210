"""What the report keeps of the validation: a few numbers a picture, and the worst mistakes."""

import heapq
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from opsin.data.loader import Batch
from opsin.train.distributed import World
from opsin.train.metrics import BINS, average_precision
from opsin.train.task import Part, Task

__all__ = ["ClassRow", "Judged", "Mistake"]

WORST = 24


class Mistake(NamedTuple):
    """`number` counts the pictures of the validation, so no two mistakes are alike. `sample` is the index in the
    dataset; of a stream it is -1, and `pixels` (C, H, W), normalised, are kept."""

    loss: float
    number: int
    sample: int
    output: np.ndarray
    target: Any
    pixels: Tensor | None


class ClassRow(NamedTuple):
    """Scores of one class; `ap` is None of a single label and where no picture has the class."""

    label: int
    pictures: int
    precision: float
    recall: float
    f1: float
    ap: float | None = None


class Judged:
    """The outputs of one validation, or of one head of it, taken in batch by batch.

    Attributes:
        name: of the head; "" where there is one kind of labels.
        single label: `truth`, `said` (N,) and `confidence` (N,) of what is said.
        several labels: `truth` (N, K) of bool and `confidence` (N, K).
        regression: `truth` and `said` (N, K), in the unit of the targets.
    """

    def __init__(self, task: Task, epoch: int, name: str = "") -> None:
        self.task, self.epoch, self.name, self.count = task, epoch, name, 0
        self._heap: list[Mistake] = []
        self._parts: dict[str, list[np.ndarray]] = {}

    def add(self, batch: Batch, part: Part) -> None:
        """Take in what a batch holds of the task."""
        outputs, targets = part.outputs.detach().float().cpu(), part.targets.cpu()
        if not len(outputs):
            return
        keep = {"single": self._single, "multi": self._multi, "regression": self._regression}[self.task.kind]
        losses, wrong = keep(outputs, targets)
        self._remember(batch, part, np.nan_to_num(losses.double().numpy(), nan=np.inf), wrong.numpy())
        self.count += len(outputs)

    def _keep(self, **values: Tensor) -> None:
        for name, value in values.items():  # copies: what comes from a worker holds a file open as long as it lives
            self._parts.setdefault(name, []).append(value.numpy().copy())

    def _single(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        confidence, said = outputs.softmax(1).max(1)
        self._keep(truth=targets, said=said, confidence=confidence.nan_to_num())
        return F.cross_entropy(outputs, targets, reduction="none"), said != targets

    def _multi(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        truth = targets > 0.5
        self._keep(truth=truth, confidence=outputs.sigmoid().nan_to_num())
        losses = F.binary_cross_entropy_with_logits(outputs, targets.float(), reduction="none").mean(1)
        return losses, ((outputs > 0) != truth).any(1)

    def _regression(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        self._keep(truth=self.task.in_units(targets), said=self.task.in_units(outputs))
        losses = (outputs - targets).abs().mean(1)
        return losses, losses > 0

    def _remember(self, batch: Batch, part: Part, losses: np.ndarray, wrong: np.ndarray) -> None:
        places = np.flatnonzero(wrong)
        for i in places[np.argsort(-losses[places], kind="stable")][:WORST].tolist():
            if len(self._heap) == WORST and losses[i] <= self._heap[0].loss:
                break
            row = int(part.rows[i])
            index = int(batch.indices[row])
            pixels = batch.images[row].detach().float().cpu().clone() if index < 0 else None
            said, true = (values[i].detach().float().cpu().numpy().copy() for values in (part.outputs, part.targets))
            one = Mistake(float(losses[i]), self.count + i, index, said, true, pixels)
            (heapq.heappush if len(self._heap) < WORST else heapq.heappushpop)(self._heap, one)

    def gather(self, world: World) -> "Judged":
        """What all processes have judged, on each of them; all must call it."""
        whole = Judged(self.task, self.epoch, self.name)
        for rank, (count, parts, worst) in enumerate(world.gather((self.count, self._parts, self._heap))):
            whole.count += count
            for name, arrays in parts.items():
                whole._parts.setdefault(name, []).extend(arrays)
            whole._heap += [one._replace(number=one.number * world.size + rank) for one in worst]
        whole._heap = heapq.nlargest(WORST, whole._heap)[::-1]  # a heap, since it rises
        return whole

    def title(self, what: str) -> str:
        """The heading of a section about it."""
        return f"{self.name}: {what}" if self.name else what

    # --- what it amounts to -----------------------------------------------------------------------------------------

    def _whole(self, name: str) -> np.ndarray:
        self._parts[name] = [np.concatenate(self._parts[name])]
        return self._parts[name][0]

    @property
    def truth(self) -> np.ndarray:
        return self._whole("truth")

    @property
    def said(self) -> np.ndarray:
        return self._whole("said")

    @property
    def confidence(self) -> np.ndarray:
        return self._whole("confidence")

    def worst(self) -> list[Mistake]:
        """The pictures with the greatest losses among those that are wrong, the worst first."""
        return sorted(self._heap, reverse=True)

    def confusions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What was taken for what, of a single label: (true, said, how often) of all pairs that occur."""
        pairs, counts = np.unique(self.truth.astype(np.int64) * self.task.outputs + self.said, return_counts=True)
        return pairs // self.task.outputs, pairs % self.task.outputs, counts

    def classes(self) -> list[ClassRow]:
        """Scores class by class, at a confidence of 0.5 where there are several labels."""
        k, aps = self.task.outputs, None
        if self.task.kind == "single":
            right = np.bincount(self.truth[self.truth == self.said], minlength=k)
            true, said = np.bincount(self.truth, minlength=k), np.bincount(self.said, minlength=k)
        else:
            yes = self.confidence > 0.5
            right, true, said = (self.truth & yes).sum(0), self.truth.sum(0), yes.sum(0)
            found = (
                average_precision(*map(torch.from_numpy, (self.confidence[:, i], self.truth[:, i]))) for i in range(k)
            )
            aps = [None if ap is None else float(ap) for ap in found]
        precision, recall = right / np.maximum(said, 1), right / np.maximum(true, 1)
        f1 = 2 * right / np.maximum(said + true, 1)
        return [
            ClassRow(i, int(true[i]), float(precision[i]), float(recall[i]), float(f1[i]), aps[i] if aps else None)
            for i in range(k)
        ]

    def calibration(self) -> list[tuple[float, float, int]]:
        """(mean confidence, share that is right, how many) of each bin of confidence that is not empty."""
        right = self.truth == self.said if self.task.kind == "single" else self.truth
        confidence, right = self.confidence.ravel().astype(np.float64), right.ravel()
        place = np.clip(np.ceil(confidence * BINS).astype(int), 1, BINS) - 1
        counts = np.bincount(place, minlength=BINS)
        sums = np.bincount(place, confidence, BINS), np.bincount(place, right, BINS)
        return [(float(sums[0][i] / n), float(sums[1][i] / n), int(n)) for i, n in enumerate(counts) if n]
