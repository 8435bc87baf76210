"""Scores over a whole evaluation set, exact over any number of processes: the outputs of all samples come together.

All are fractions of 1, but for regression errors, which have the targets' unit. A class that no sample has (or, for
precision, that is never predicted either) is left out of macro averages; one with nothing right counts 0.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["Metrics", "average_precision", "calibration_error", "roc_area"]

BINS = 15  # of the calibration error
KINDS = {
    "single": ("top1", "top5", "precision", "recall", "f1", "auroc", "ece"),
    "multi": ("mAP", "precision", "recall", "f1", "micro_precision", "micro_recall", "micro_f1", "auroc"),
    "regression": ("mae", "rmse", "r2"),
}


class Metrics:
    """Accumulates (outputs, targets) and computes scores.

    Args:
        kind: "single": logits (B, K) and classes (B,); "multi": logits (B, K) and 0 or 1 (B, K); "regression": numbers
            (B, K) and targets (B, K).
        outputs: K.

    After `compute`, `confusion` is the table (K, K) of a single label, true classes in rows; `per_class` has precision,
    recall, F1 and the number of samples of each class.
    """

    def __init__(self, kind: str, outputs: int) -> None:
        self.kind, self.outputs = kind, outputs
        self.names = tuple(name for name in KINDS[kind] if name != "top5" or outputs > 5)
        self.scores: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.confusion: Tensor | None = None
        self.per_class: dict[str, Tensor] = {}

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in a batch."""
        # halves keep the order of scores well enough for none: single precision, on the CPU, is what curves need
        self.scores.append(outputs.detach().float().cpu())
        self.targets.append(targets.detach().cpu().clone())  # a worker's memory would keep a file open each

    def compute(self, world: Any = None) -> dict[str, float]:
        """All scores of `names`, over all processes of `world`; none where nothing was taken in."""
        found = [(torch.cat(self.scores), torch.cat(self.targets))] if self.scores else []
        if world is not None and world.size > 1:
            found = [pair for pairs in world.gather(found) for pair in pairs]
        found = [pair for pair in found if len(pair[0])]
        if not found:
            return {}
        scores, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
        rates = getattr(self, f"_{self.kind}")(scores, targets)
        return {name: float(rates[name]) for name in self.names}

    def _single(self, logits: Tensor, targets: Tensor) -> dict[str, Any]:
        best = logits.argmax(1)
        k = self.outputs
        self.confusion = torch.bincount(targets * k + best, minlength=k * k).view(k, k)
        right = self.confusion.diagonal()
        found = self._rates(right, self.confusion.sum(0), self.confusion.sum(1))
        found["top1"] = right.sum() / len(targets)
        if k > 5:
            found["top5"] = (logits.topk(5).indices == targets[:, None]).any(1).float().mean()
        probabilities = logits.softmax(1)
        found["auroc"] = _mean([roc_area(probabilities[:, i], targets == i) for i in range(k)])
        found["ece"] = calibration_error(probabilities, targets)
        return found

    def _multi(self, logits: Tensor, targets: Tensor) -> dict[str, Any]:
        truth, said = targets > 0.5, logits > 0
        right, predicted, true = (truth & said).sum(0), said.sum(0), truth.sum(0)
        found = self._rates(right, predicted, true)
        found["micro_precision"] = right.sum() / predicted.sum().clamp_min(1)
        found["micro_recall"] = right.sum() / true.sum().clamp_min(1)
        found["micro_f1"] = 2 * right.sum() / (predicted.sum() + true.sum()).clamp_min(1)
        columns = range(self.outputs)
        found["mAP"] = _mean([average_precision(logits[:, i], truth[:, i]) for i in columns])
        found["auroc"] = _mean([roc_area(logits[:, i], truth[:, i]) for i in columns])
        return found

    def _rates(self, right: Tensor, predicted: Tensor, true: Tensor) -> dict[str, Any]:
        precision, recall = right / predicted.clamp_min(1), right / true.clamp_min(1)
        f1 = 2 * right / (predicted + true).clamp_min(1)
        self.per_class = {"precision": precision, "recall": recall, "f1": f1, "count": true}
        seen = (predicted + true) > 0  # a class that is neither there nor ever said has no score
        rates = {"precision": precision, "recall": recall, "f1": f1}
        return {name: value[seen].mean() if seen.any() else torch.tensor(0.0) for name, value in rates.items()}

    def _regression(self, outputs: Tensor, targets: Tensor) -> dict[str, Any]:
        error = (outputs - targets).double()
        spread = (targets - targets.mean(0)).double().square().sum(0)
        r2 = 1 - error.square().sum(0) / spread.clamp_min(1e-12)
        return {"mae": error.abs().mean(), "rmse": error.square().mean().sqrt(), "r2": r2.mean()}


def _mean(values: list[Tensor | None]) -> Tensor:
    known = [value for value in values if value is not None]
    return torch.stack(known).mean() if known else torch.tensor(0.0)


def _ranked(scores: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """(true, false) counted from the highest score on, once for each distinct score."""
    order = scores.argsort(descending=True, stable=True)
    scores, truth = scores[order], truth[order].double()
    last = torch.ones(len(scores), dtype=torch.bool)
    last[:-1] = scores[1:] != scores[:-1]  # equal scores cannot be told apart
    hits = truth.cumsum(0)[last]
    return hits, torch.arange(1, len(scores) + 1)[last] - hits


def roc_area(scores: Tensor, truth: Tensor) -> Tensor | None:
    """Area under the ROC curve: the chance that a true sample scores above a false one. None where one is missing."""
    positive = int(truth.sum())
    if positive in (0, len(truth)):
        return None
    hits, misses = _ranked(scores, truth)
    zero = torch.zeros(1, dtype=torch.float64)
    return torch.trapezoid(torch.cat([zero, hits]), torch.cat([zero, misses])) / (positive * (len(truth) - positive))


def average_precision(scores: Tensor, truth: Tensor) -> Tensor | None:
    """Mean precision over the recalls reached, without interpolation. None where nothing is true."""
    positive = int(truth.sum())
    if not positive:
        return None
    hits, misses = _ranked(scores, truth)
    gained = torch.diff(hits, prepend=torch.zeros(1, dtype=torch.float64))
    return (hits / (hits + misses) * gained).sum() / positive


def calibration_error(probabilities: Tensor, targets: Tensor, bins: int = BINS) -> Tensor:
    """Expected calibration error (https://arxiv.org/abs/1706.04599): how far confidence and accuracy are apart, over
    `bins` of equal width."""
    confidence, best = probabilities.max(1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    right = (best == targets).double()
    gap = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, confidence.double() - right)
    return gap.abs().sum() / len(targets)
