"""What every reader gives: records, in one of two ways, by number or as a stream."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from opsin.errors import ImageError

__all__ = ["Reader", "Record", "StreamReader", "Target", "Task"]

Target = int | float | tuple[int, ...] | tuple[float, ...] | None
Task = Literal["single", "multi", "regression", "unlabelled"]


class Record(NamedTuple):
    """One sample as it is stored.

    `image` is encoded bytes wherever the source is encoded. `target` is a class index, a tuple of them (several
    labels), a number or a tuple of them (regression), or None. `name` says where it came from.
    """

    image: bytes | Image.Image | np.ndarray
    target: Target
    name: str


class Reader(ABC):
    """Samples by number. Cheap to send to another process; opens its files there, when they are first needed.

    `classes` are the names in index order (None for regression or where the source has none).
    """

    task: Task = "single"
    classes: tuple[str, ...] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Record:
        """The sample; raises `ImageError` with its name when it cannot be read."""

    @property
    @abstractmethod
    def targets(self) -> Sequence[Target]:
        """All targets, without reading a picture."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Where sample `index` came from, as `Record.name`, without reading it."""

    @property
    def class_to_idx(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.classes or ())}


class StreamReader(ABC):
    """Samples in a stream, for sources that cannot be indexed.

    `length` is the number of samples an epoch, over all ranks; None where nobody knows.
    """

    task: Task = "single"
    classes: tuple[str, ...] | None = None
    length: int | None = None

    @abstractmethod
    def stream(
        self, *, epoch: int = 0, part: int = 0, parts: int = 1, shuffle: bool = False, seed: int = 0
    ) -> Iterator[Record | ImageError]:
        """The samples of one of `parts` equal shares of the work (a share per worker of every rank).

        The shares hold every sample once between them. The same arguments give the same order. A sample that cannot
        be read is yielded as the `ImageError` that says so, so that it can be counted.
        """

    @property
    def class_to_idx(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.classes or ())}
