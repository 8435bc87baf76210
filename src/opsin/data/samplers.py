"""Which samples make up an epoch, in which order, and which of them this process takes.

An order is a function of the epoch that gives the indices of all processes together. `BatchPlan` cuts it into batches
and takes this rank's share, so that each sample comes exactly once wherever the order names it once: nothing is
repeated to fill up a last batch, and nothing dropped unless that is asked for. A sample's place in the epoch is its
`key`, from which its augmentation is drawn: the same for any number of processes and workers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from opsin.errors import OpsinError

__all__ = [
    "BatchPlan",
    "Draw",
    "Order",
    "ProgressiveSize",
    "RandomSize",
    "Repeated",
    "Sequential",
    "Shuffled",
    "Size",
    "SizePlan",
    "Weighted",
    "class_counts",
    "class_weights",
]

Size = tuple[int, int]  # (height, width)
Order = Callable[[int], np.ndarray]  # epoch -> indices, of all processes together
SizePlan = Callable[[int, int], Size]  # (epoch, number of the batch) -> the size of its pictures


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample of a batch: its index, and where in which epoch it stands. `size` is None for the transform's own."""

    index: int
    epoch: int = 0
    key: int = 0
    size: Size | None = None


# --- orders ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sequential:
    """0 to `length`, in every epoch."""

    length: int

    def __call__(self, epoch: int) -> np.ndarray:
        return np.arange(self.length)


@dataclass(frozen=True)
class Shuffled:
    """Each index once, in another order every epoch."""

    length: int
    seed: int = 0

    def __call__(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(self.length)


@dataclass(frozen=True)
class Repeated:
    """Repeated augmentation (https://arxiv.org/abs/1902.05509): `repeats` differently augmented copies of a sample in
    one batch, on different ranks where there are several. An epoch stays as long as the dataset, so it shows
    `length / repeats` samples."""

    length: int
    repeats: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise OpsinError(f"repeats must be at least 1, not {self.repeats}")

    def __call__(self, epoch: int) -> np.ndarray:
        return np.repeat(Shuffled(self.length, self.seed)(epoch), self.repeats)[: self.length]


@dataclass(frozen=True)
class Weighted:
    """`length` indices drawn with replacement, each in proportion to its weight. `class_weights` makes classes even."""

    weights: Sequence[float] | np.ndarray
    length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        weights = np.asarray(self.weights, dtype=np.float64)
        if weights.ndim != 1 or not np.isfinite(weights).all() or (weights < 0).any() or not weights.sum() > 0:
            raise OpsinError("weights must be one finite number of at least 0 per sample, and not all 0")

    def __call__(self, epoch: int) -> np.ndarray:
        weights = np.asarray(self.weights, dtype=np.float64)
        edges = np.cumsum(weights) / weights.sum()
        draws = np.random.default_rng((self.seed, epoch)).random(self.length or len(weights))
        return np.searchsorted(edges, draws, side="right").clip(max=len(weights) - 1)


def class_counts(targets: Any, num_classes: int) -> np.ndarray:
    """Samples per class (num_classes,), of class indices or of tuples of them."""
    several = len(targets) and isinstance(targets[0], tuple)
    flat = np.fromiter((i for row in targets for i in row), np.int64) if several else np.asarray(targets, np.int64)
    if flat.size and not 0 <= flat.min() <= flat.max() < num_classes:
        wrong = flat.min() if flat.min() < 0 else flat.max()
        raise OpsinError(f"class {wrong} is out of range: there are {num_classes} classes, from 0 on")
    return np.bincount(flat, minlength=num_classes)


def class_weights(targets: Any, num_classes: int, *, power: float = 1.0) -> np.ndarray:
    """A weight per sample that evens out the classes: 1 / count ** `power` of its class; the rarest of its classes
    counts where it has several. `power` 0 leaves the counts as they are, 1 shows all classes equally often."""
    counts = class_counts(targets, num_classes)
    worth = np.divide(1.0, counts**power, out=np.zeros(num_classes), where=counts > 0)
    if len(targets) and isinstance(targets[0], tuple):
        return np.array([max((worth[i] for i in row), default=0.0) for row in targets])
    return worth[np.asarray(targets, dtype=np.int64)]


# --- sizes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RandomSize:
    """Another of `sizes` for each batch, the same on every rank."""

    sizes: tuple[Size, ...]
    seed: int = 0

    def __call__(self, epoch: int, batch: int) -> Size:
        return self.sizes[np.random.default_rng((self.seed, epoch, batch)).integers(len(self.sizes))]


@dataclass(frozen=True)
class ProgressiveSize:
    """Sizes that grow from `start` to `end` over `epochs` (https://arxiv.org/abs/2104.00298), rounded to `step`."""

    start: Size
    end: Size
    epochs: int
    step: int = 32

    def __call__(self, epoch: int, batch: int) -> Size:
        part = min(epoch / max(self.epochs - 1, 1), 1.0)
        h, w = (a + (b - a) * part for a, b in zip(self.start, self.end, strict=True))
        return round(h / self.step) * self.step, round(w / self.step) * self.step


# --- batches --------------------------------------------------------------------------------------------------------


class BatchPlan:
    """The batches of this rank, each a list of `Draw`.

    Args:
        order: all indices of an epoch.
        batch_size: samples a batch on this rank; `world_size` times as many make a step of all ranks.
        rank, world_size: this process among all. Samples go to the ranks in turn.
        drop_last: leave out the samples that do not fill a step. Training on several ranks needs it, since each rank
            must make as many steps as the others.
        sizes: the size of each batch's pictures.

    `epoch` and `start` (batches of that epoch that are done) say where the next iteration begins.
    """

    def __init__(
        self,
        order: Order,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        sizes: SizePlan | None = None,
    ) -> None:
        if batch_size < 1:
            raise OpsinError(f"batch_size must be at least 1, not {batch_size}")
        if not 0 <= rank < world_size:
            raise OpsinError(f"rank {rank} is not one of {world_size}")
        self.order, self.batch_size, self.rank, self.world_size = order, batch_size, rank, world_size
        self.drop_last, self.sizes = drop_last, sizes
        self.epoch = self.start = 0
        total = len(order(0))
        step = batch_size * world_size
        if drop_last and total < step:
            raise OpsinError(f"{total} samples do not fill one step of {world_size} x {batch_size}; lower batch_size")
        mine = len(range(rank, total, world_size))
        self.length = total // step if drop_last else -(-mine // batch_size)

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self.length

    def __iter__(self) -> Iterator[list[Draw]]:
        indices = self.order(self.epoch)
        step = self.batch_size * self.world_size
        for batch in range(self.start, self.length):
            size = self.sizes(self.epoch, batch) if self.sizes else None
            keys = range(batch * step + self.rank, min((batch + 1) * step, len(indices)), self.world_size)
            yield [Draw(int(indices[key]), self.epoch, key, size) for key in keys]
