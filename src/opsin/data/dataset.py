"""A reader and a transform together: samples that are ready to be stacked.

The random numbers of a sample come from (seed, epoch, key) alone, where the key is its place in the epoch. So neither
the number of workers nor an interruption changes what is drawn.
"""

import inspect
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from opsin.data.images import open_image
from opsin.data.readers import Reader, Record, StreamReader, open_reader
from opsin.data.samplers import Draw, Size
from opsin.errors import ImageError, OpsinError

__all__ = ["ImageDataset", "Sample", "Skip", "StreamDataset", "create_dataset", "with_name"]


@dataclass(frozen=True, slots=True)
class Sample:
    """`image` is (C, H, W), or (S, C, H, W) for S differently augmented copies; `index` is -1 in a stream."""

    image: Tensor
    target: Any
    index: int


@dataclass(frozen=True, slots=True)
class Skip:
    """A picture that could not be read."""

    name: str
    reason: str


class _Prepare:
    """What a map-style and a streaming dataset share: from a record to a sample."""

    reader: Reader | StreamReader

    def __init__(
        self, transform: Callable[..., Tensor], *, target_transform: Callable[[Any], Any] | None = None, seed: int = 0
    ) -> None:
        self.transform, self.target_transform, self.seed = transform, target_transform, seed
        # a transform of others takes an opened picture, and draws from the global random states
        self.ours = "rng" in inspect.signature(transform).parameters

    @property
    def task(self) -> str:
        return self.reader.task

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.reader.classes

    @property
    def class_to_idx(self) -> dict[str, int]:
        return self.reader.class_to_idx

    def prepare(self, record: Record, draw: Draw) -> Sample:
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, draw.epoch, draw.key))))
        try:
            if self.ours:
                image = self.transform(record.image, rng=rng, size=draw.size)
            else:
                image = _with_global_randomness(self.transform, record.image, rng)
        except ImageError as error:
            raise ImageError(with_name(str(error), record.name)) from error
        except Exception as error:
            error.add_note(f"while transforming {record.name}")
            raise
        target = self.target_transform(record.target) if self.target_transform else record.target
        return Sample(image, target, draw.index)


class ImageDataset(_Prepare, Dataset):
    """Samples by number.

    Args:
        reader: where they come from.
        transform: `transform(image, *, rng, size)` from encoded bytes (or what the reader gives) to a tensor (C, H, W);
            or any function of a Pillow image, such as torchvision's.
        target_transform: a function of the target.
        seed: of the augmentation.

    `dataset[i]` is `(image, target)` for a loader of your own; raises `ImageError` where the picture cannot be read.
    """

    reader: Reader

    def __init__(self, reader: Reader, transform: Callable[..., Tensor], **options: Any) -> None:
        super().__init__(transform, **options)
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        found = self.load(Draw(index, key=index))
        if isinstance(found, Skip):
            raise ImageError(found.reason)
        return found.image, found.target

    def load(self, draw: Draw) -> Sample | Skip:
        """The sample of a draw; a `Skip` where the picture cannot be read."""
        try:
            return self.prepare(self.reader[draw.index], draw)
        except ImageError as error:
            return Skip(self.reader.name(draw.index), str(error))


class StreamDataset(_Prepare):
    """Samples in a stream; see `ImageDataset` for the arguments. Iterating gives one epoch, `(image, target)` each."""

    reader: StreamReader

    def __init__(self, reader: StreamReader, transform: Callable[..., Tensor], **options: Any) -> None:
        super().__init__(transform, **options)
        self.reader = reader

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        for found in self.stream():
            if isinstance(found, Skip):
                raise ImageError(found.reason)
            yield found.image, found.target

    def stream(
        self,
        *,
        epoch: int = 0,
        part: int = 0,
        parts: int = 1,
        shuffle: bool = False,
        begin: int = 0,
        size_of: Callable[[int], Size | None] = lambda place: None,
    ) -> Iterator[Sample | Skip]:
        """One of `parts` shares of an epoch, without its first `begin` records, which are read but not decoded."""
        records = self.reader.stream(epoch=epoch, part=part, parts=parts, shuffle=shuffle, seed=self.seed)
        for place, record in enumerate(records):
            if place < begin:
                continue
            try:
                if isinstance(record, ImageError):
                    raise record
                yield self.prepare(record, Draw(-1, epoch, part + parts * place, size_of(place)))
            except ImageError as error:
                name = record.name if isinstance(record, Record) else str(error).partition(": ")[0]
                yield Skip(name, str(error))


def create_dataset(
    where: str | Reader | StreamReader,
    *,
    transform: Callable[..., Tensor],
    target_transform: Callable[[Any], Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> ImageDataset | StreamDataset:
    """A dataset from `scheme:place`, such as `folder:photos`, `csv:list.csv`, `wds:shards/{000..099}.tar`.

    Args:
        where: see `opsin.data.readers.open_reader`, which also takes `options` (`split`, `class_map`, …); or a reader.
        transform, target_transform, seed: as `ImageDataset` takes them.
    """
    if not isinstance(where, str | Reader | StreamReader) and not hasattr(where, "__fspath__"):
        raise OpsinError(f"a dataset is made from 'scheme:place' or a reader, not from a {type(where).__name__}")
    if options and isinstance(where, Reader | StreamReader):
        raise OpsinError(f"{where} is open already: {', '.join(options)} would change nothing")
    reader = where if isinstance(where, Reader | StreamReader) else open_reader(where, **options)
    kind = StreamDataset if isinstance(reader, StreamReader) else ImageDataset
    return kind(reader, transform, target_transform=target_transform, seed=seed)  # type: ignore[arg-type]


def with_name(reason: str, name: str) -> str:
    """Errors from encoded bytes cannot know where they came from."""
    if name in reason:
        return reason
    _, colon, rest = reason.partition(">: ")
    return f"{name}: {rest if colon else reason}"


def _with_global_randomness(transform: Callable[..., Any], image: Any, rng: np.random.Generator) -> Any:
    """Run a transform that draws from the global states: seeded for this sample, and left as they were."""
    seed = int(rng.integers(2**32))
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        return transform(open_image(image))
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
