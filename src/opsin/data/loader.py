"""Batches on the device: decoded by workers, normalised, erased and mixed once a batch.

    dataset = create_dataset("folder:photos", split="train", transform=TrainTransform(224))
    loader = create_loader(dataset, batch_size=64, preprocess=preprocess, shuffle=True)
    for images, targets in loader: ...

Pictures that cannot be read are left out of their batch, counted, and logged by name.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from opsin.data.dataset import ImageDataset, Sample, Skip, StreamDataset
from opsin.data.preprocess import Preprocess
from opsin.data.samplers import BatchPlan, Draw, Order, Sequential, Shuffled, SizePlan
from opsin.data.workers import bound_to, broken_off, dead_worker
from opsin.errors import ImageError, OpsinError

__all__ = ["Batch", "Loader", "create_loader"]

log = logging.getLogger("opsin.data")
MAX_WORKERS = 8
SETTLE = 0.05  # seconds before workers are forked beside other processes


class Batch(tuple):
    """`images, targets = batch`. `batch.indices` says which samples of the dataset they are (-1 in a stream)."""

    images: Tensor
    targets: Any
    indices: Tensor

    def __new__(cls, images: Tensor, targets: Any, indices: Tensor) -> "Batch":
        batch = super().__new__(cls, (images, targets))
        batch.images, batch.targets, batch.indices = images, targets, indices
        return batch


class Raw:
    """What a worker sends: uint8 pixels (B, C, H, W) or None where no picture could be read, and the skips."""

    def __init__(self, found: list[Sample | Skip], num_classes: int, task: str, worker: int = 0) -> None:
        self.skips = [one for one in found if isinstance(one, Skip)]
        samples = [one for one in found if isinstance(one, Sample)]
        self.size, self.worker = len(found), worker
        self.images = self.targets = None
        self.indices = torch.tensor([sample.index for sample in samples])
        if not samples:
            return
        self.images = torch.stack([sample.image for sample in samples])
        self.targets = collate_targets([sample.target for sample in samples], num_classes, task)
        if self.images.ndim == 5:  # augmentation splits: all first copies, then all second ones, and so on
            splits = self.images.shape[1]
            self.images = self.images.transpose(0, 1).flatten(0, 1)
            self.indices = self.indices.repeat(splits)
            if self.targets is not None:
                self.targets = self.targets.repeat(splits, *[1] * (self.targets.ndim - 1))

    def pin_memory(self) -> "Raw":
        """Called by torch's loader, for a copy to the device that does not wait."""
        if self.images is not None:
            self.images = self.images.pin_memory()
        return self


def collate_targets(targets: list[Any], num_classes: int, task: str) -> Tensor | None:
    """(B,) int64 classes, (B, num_classes) float32 of 0 and 1 for several labels, float32 (B,) or (B, K) of numbers or
    of several heads, or None."""
    if task == "unlabelled":
        return None
    if task == "single":
        return torch.tensor(targets, dtype=torch.int64)
    if task in ("regression", "heads"):
        return torch.tensor(targets, dtype=torch.float32)
    hot = torch.zeros(len(targets), num_classes)
    for row, labels in zip(hot, targets, strict=True):
        row[list(labels)] = 1
    return hot


class _Indexed(TorchDataset):
    """In a worker: from a list of draws to a batch."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset
        self.num_classes = len(dataset.classes or ())

    def __getitem__(self, draws: list[Draw]) -> Raw:
        return Raw([self.dataset.load(draw) for draw in draws], self.num_classes, self.dataset.task)


class _Streamed(IterableDataset):
    """In a worker: its share of the stream in batches. `place` is shared memory, since workers outlive epochs: the
    epoch, the worker that begins, and how many batches each share has given already."""

    def __init__(self, dataset: StreamDataset, loader: "Loader", place: Tensor) -> None:
        self.dataset, self.place = dataset, place
        self.batch_size, self.drop_last, self.shuffle = loader.batch_size, loader.drop_last, loader.shuffle
        self.rank, self.world_size, self.sizes = loader.rank, loader.world_size, loader.sizes
        self.num_classes = len(dataset.classes or ())

    def __iter__(self) -> Iterator[Raw]:
        info = get_worker_info()
        workers, worker = (info.num_workers, info.id) if info else (1, 0)
        epoch, first, *done = self.place.tolist()
        share = (worker + first) % workers  # the loader asks its workers in turn, from the first one on
        sizes, size = self.sizes, self.batch_size
        found = self.dataset.stream(
            epoch=epoch,
            part=self.rank * workers + share,
            parts=self.world_size * workers,
            shuffle=self.shuffle,
            begin=done[share] * size,
            size_of=(lambda place: sizes(epoch, place // size)) if sizes else lambda place: None,
        )
        batch: list[Sample | Skip] = []
        for one in found:
            batch.append(one)
            if len(batch) == size:
                yield Raw(batch, self.num_classes, self.dataset.task, share)
                batch = []
        if batch and not self.drop_last:
            yield Raw(batch, self.num_classes, self.dataset.task, share)


class Loader:
    """Iterates over an epoch of batches; see `create_loader`.

    A whole iteration moves `epoch` on by one; one that is broken off leaves it, so the next begins that epoch anew,
    unless `go_to` says otherwise. `skipped` holds the pictures that could not be read, by name, with the reason.
    `state_dict` may be taken between any two batches; a loader that gets it continues with the batch that would have
    come next.
    """

    def __init__(
        self,
        dataset: ImageDataset | StreamDataset,
        *,
        batch_size: int,
        preprocess: Preprocess | None,
        order: Order | None,
        shuffle: bool,
        seed: int,
        num_workers: int,
        drop_last: bool,
        rank: int,
        world_size: int,
        device: torch.device,
        dtype: torch.dtype,
        channels_last: bool,
        erase: Callable[..., Tensor] | None,
        mix: Callable[..., tuple[Tensor, Tensor]] | None,
        sizes: SizePlan | None,
        strict: bool,
        max_skips: float,
        prefetch_factor: int,
    ) -> None:
        self.dataset, self.batch_size, self.preprocess, self.shuffle, self.seed = (
            dataset, batch_size, preprocess, shuffle, seed,
        )  # fmt: skip
        self.drop_last, self.rank, self.world_size, self.sizes = drop_last, rank, world_size, sizes
        self.device, self.dtype, self.channels_last = device, dtype, channels_last
        self.erase, self.mix, self.strict, self.max_skips = erase, mix, strict, max_skips
        self.skipped: dict[str, str] = {}
        self.epoch = self.step = 0  # the batch that comes next
        self.workers = max(num_workers, 1)
        self.consumed = [0] * self.workers  # batches of a stream, by share
        self.seen = 0  # samples, read or skipped
        self.first = 0
        self.resumed = False
        # torch's loader seeds its workers from a generator: one of its own, so that the global state is left alone
        how: dict[str, Any] = {"num_workers": num_workers, "batch_size": None, "generator": torch.Generator()}
        how["pin_memory"] = device.type == "cuda"
        if num_workers:
            how |= {"prefetch_factor": prefetch_factor, "persistent_workers": True}
            how["worker_init_fn"] = bound_to(self, num_workers)
        if isinstance(dataset, ImageDataset):
            if order is None:
                order = Shuffled(len(dataset), seed) if shuffle else Sequential(len(dataset))
            self.plan: BatchPlan | None = BatchPlan(
                order, batch_size=batch_size, rank=rank, world_size=world_size, drop_last=drop_last, sizes=sizes
            )
            self.batches = DataLoader(_Indexed(dataset), sampler=self.plan, **how)
        else:
            self.plan = None
            self.place = torch.zeros(2 + self.workers, dtype=torch.int64).share_memory_()
            self.batches = DataLoader(_Streamed(dataset, self, self.place), **how)

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank; of a stream about as many, since its shares are not quite even."""
        if self.plan is not None:
            return len(self.plan)
        length = getattr(self.dataset.reader, "length", None)
        if length is None:
            raise TypeError(f"nobody knows how many samples {self.dataset.reader} streams")
        share = length / (self.world_size * self.workers * self.batch_size)  # batches of each worker of every rank
        return max(self.workers * (math.floor(share) if self.drop_last else math.ceil(share)), 1)

    def __iter__(self) -> Iterator[Batch]:
        self._begin()
        for raw in self._fetch():
            self.step += 1
            self.consumed[raw.worker] += 1
            self.seen += raw.size
            self.first = (raw.worker + 1) % self.workers
            self._account(raw.skips)
            if raw.images is not None:
                yield self._to_device(raw)
        self.go_to(self.epoch + 1)

    def _begin(self) -> None:
        if not self.resumed:
            self.go_to(self.epoch)
        self.resumed = False
        if self.plan is not None:
            self.plan.epoch, self.plan.start = self.epoch, self.step
        else:
            self.place.copy_(torch.tensor([self.epoch, self.first, *self.consumed]))

    def go_to(self, epoch: int) -> None:
        """Let the next iteration begin with the first batch of an epoch."""
        self.epoch, self.step, self.first, self.consumed = epoch, 0, 0, [0] * self.workers

    def _fetch(self) -> Iterator[Raw]:
        if self.batches.num_workers and dist.is_available() and dist.is_initialized():
            # A thread of the process group may still be putting away the last message. A worker that is forked while it
            # holds the lock of Python's list of threads waits for that lock for ever (CPython 3.11).
            time.sleep(SETTLE)
        try:
            yield from self.batches
        except RuntimeError as error:
            if (death := dead_worker(error)) is None:
                raise
            raise death from error
        except (ConnectionError, EOFError) as error:
            met = not self.batches.num_workers or "in DataLoader worker process" in str(error)  # by what lives
            if met or (death := broken_off()) is None:
                raise
            raise death from error

    def _account(self, skips: list[Skip]) -> None:
        for skip in skips:
            if self.strict:
                raise ImageError(skip.reason)
            if skip.name not in self.skipped:
                log.warning("skipped %s", skip.reason)
                self.skipped[skip.name] = skip.reason
        limit = self.max_skips
        if limit < 1:
            length = getattr(self.dataset.reader, "length", None) if self.plan is None else len(self.dataset)  # type: ignore[arg-type]
            limit = max(limit * (length or self.seen), 10) if limit else 0  # a share of a few pictures says little
        if len(self.skipped) > limit:
            some = "\n  ".join(list(self.skipped.values())[:5])
            raise OpsinError(f"{len(self.skipped)} pictures could not be read (max_skips={self.max_skips}):\n  {some}")

    def _to_device(self, raw: Raw) -> Batch:
        assert raw.images is not None
        images = raw.images.to(self.device, non_blocking=True)
        if images.dtype == torch.uint8 and self.preprocess is not None:
            images = self.preprocess.normalize(images)
        if images.is_floating_point():
            layout = torch.channels_last if self.channels_last else torch.contiguous_format
            images = images.to(self.dtype, memory_format=layout)
        targets = None if raw.targets is None else raw.targets.to(self.device, non_blocking=True)
        if self.erase or self.mix:
            # one state of its own for each batch: the same after an interruption
            seed = np.random.SeedSequence((self.seed, self.epoch, self.step, self.rank)).generate_state(1, np.uint64)[0]
            generator = torch.Generator(self.device).manual_seed(int(seed >> np.uint64(1)))
            if self.erase:
                images = self.erase(images, generator=generator)
            if self.mix:
                images, targets = self.mix(images, targets, generator=generator)
        return Batch(images, targets, raw.indices)

    # --- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: plain numbers and names, for JSON or a checkpoint."""
        state = {"epoch": self.epoch, "step": self.step, "seed": self.seed, "skipped": dict(self.skipped)}
        if self.plan is None:
            state |= {"consumed": list(self.consumed), "first": self.first, "seen": self.seen}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken. A stream needs the same number of workers, an order the same seed."""
        if state["seed"] != self.seed:
            raise OpsinError(f"this loader has seed {self.seed}, but the state was taken with seed {state['seed']}")
        if self.plan is None and len(state["consumed"]) != self.workers:
            raise OpsinError(
                f"a stream read by {len(state['consumed'])} workers goes on with as many, not {self.workers}"
            )
        self.epoch, self.step, self.skipped = state["epoch"], state["step"], dict(state["skipped"])
        self.consumed, self.first = list(state.get("consumed", self.consumed)), state.get("first", 0)
        self.seen = state.get("seen", 0)
        self.resumed = True


def create_loader(
    dataset: ImageDataset | StreamDataset,
    *,
    batch_size: int = 32,
    preprocess: Preprocess | None = None,
    shuffle: bool = False,
    order: Order | None = None,
    seed: int = 0,
    num_workers: int | None = None,
    drop_last: bool = False,
    rank: int = 0,
    world_size: int = 1,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    erase: Callable[..., Tensor] | None = None,
    mix: Callable[..., tuple[Tensor, Tensor]] | None = None,
    sizes: SizePlan | None = None,
    strict: bool = False,
    max_skips: float = 0.1,
    prefetch_factor: int = 2,
) -> Loader:
    """Batches of a dataset: float images (B, C, H, W) and targets on `device`.

    Args:
        dataset: from `create_dataset`.
        batch_size: samples a batch, on this rank.
        preprocess: its mean and std normalise the pixels; None leaves them uint8.
        shuffle: another order each epoch (of a stream: as its reader shuffles).
        order: the order itself, in place of `shuffle`: see `opsin.data.samplers`.
        seed: of the order, the erasing and the mixing; augmentation has the dataset's.
        num_workers: processes that read and decode; None is one per core up to 8, 0 reads in this process.
        drop_last: leave out the samples that do not fill a batch on every rank.
        rank, world_size: this process among those that share the epoch.
        device, dtype, channels_last: of the images.
        erase: `RandomErasing`, or the like. mix: `Mix`, or the like.
        sizes: the pictures' size of each batch: `RandomSize`, `ProgressiveSize`.
        strict: raise at the first picture that cannot be read.
        max_skips: raise when more pictures than that could not be read; below 1 a fraction of the dataset, or of
            what was read so far where a stream does not know its length (10 are always borne); 0 bears none.
        prefetch_factor: batches that each worker prepares ahead.
    """
    if num_workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        num_workers = min(cores, MAX_WORKERS)
    if max_skips < 0:
        raise OpsinError(f"max_skips must be at least 0, not {max_skips}")
    if dataset.task == "multi" and dataset.classes is None:
        raise OpsinError(f"{dataset.reader}: several labels a sample, of nobody knows how many: give a class_map")
    if order is not None and (shuffle or isinstance(dataset, StreamDataset)):
        why = "shuffle has an order of its own" if shuffle else "a stream has no order to choose"
        raise OpsinError(f"order cannot be given here: {why}")
    return Loader(
        dataset, batch_size=batch_size, preprocess=preprocess, order=order, shuffle=shuffle, seed=seed,
        num_workers=num_workers, drop_last=drop_last, rank=rank, world_size=world_size, device=torch.device(device),
        dtype=dtype, channels_last=channels_last, erase=erase, mix=mix, sizes=sizes, strict=strict,
        max_skips=max_skips, prefetch_factor=prefetch_factor,
    )  # fmt: skip
