"""What every reader gives: records, in one of two ways, by number or as a stream."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from opsin.errors import ImageError, OpsinError

if TYPE_CHECKING:
    from opsin.data.readers.heads import Head

__all__ = [
    "Reader",
    "Record",
    "Relabelled",
    "RelabelledStream",
    "StreamReader",
    "Strings",
    "Subset",
    "Target",
    "Targets",
    "Task",
    "Tuples",
]

Target = int | float | tuple[int, ...] | tuple[float, ...] | None
Task = Literal["single", "multi", "regression", "heads", "unlabelled"]


class Record(NamedTuple):
    """One sample as it is stored.

    `image` is encoded bytes wherever the source is encoded. `target` is a class index, a tuple of them (several
    labels), a number or a tuple of them (regression, and the row of several heads), or None. `name` says where it came
    from.
    """

    image: bytes | Image.Image | np.ndarray
    target: Target
    name: str


class _Packed(Sequence[Any]):
    """Values of varying lengths end to end, with where each begins: two objects, however many values there are.

    A million `str` would be copied to every worker one by one as their reference counts are written to.
    """

    def __init__(self, values: Any, lengths: Sequence[int]) -> None:
        self.values = values
        self.ends = np.cumsum(lengths, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    def _between(self, index: int) -> Any:
        end = self.ends[index]  # raises IndexError, and counts negative ones from the end
        index %= len(self.ends)
        return self.values[self.ends[index - 1] if index else 0 : end]


class Strings(_Packed):
    """File names or other text; names that are no valid UTF-8 survive."""

    def __init__(self, texts: Sequence[str]) -> None:
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        super().__init__(b"".join(encoded), [len(text) for text in encoded])

    def __getitem__(self, index: Any) -> str:
        return self._between(index).decode("utf-8", "surrogateescape")


class Tuples(_Packed):
    """Class indices of samples with several labels each."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        super().__init__(np.array([i for row in rows for i in row], dtype=np.int32), [len(row) for row in rows])

    def __getitem__(self, index: Any) -> tuple[int, ...]:
        return tuple(self._between(index).tolist())


Targets = np.ndarray | Tuples | None
"""All targets: int64 (N,) of classes, `Tuples` of them, float64 (N,) or (N, K) for regression, rows (N, T) for several
heads (see `opsin.data.readers.heads`), or None."""


class _Source:
    """What readers of both kinds say of themselves.

    `classes` are the names in index order (None for regression or where the source has none). `heads` says what the
    columns of the targets are where there are several kinds of labels.
    """

    task: Task = "single"
    classes: tuple[str, ...] | None = None
    heads: tuple["Head", ...] = ()
    targets: Targets = None  # of all samples, where they are known without reading a picture

    @property
    def class_to_idx(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.classes or ())}

    def check_trainable(self) -> None:
        """Raise `OpsinError` where there is nothing to learn: no labels, or one class only."""
        if self.task == "unlabelled":
            raise OpsinError(f"{self}: the pictures have no labels, so nothing can be learnt from them")
        if self.task == "single" and self.classes is not None and len(self.classes) < 2:
            only = ", ".join(self.classes) or "none"
            raise OpsinError(f"{self}: training needs at least two classes, and there is one: {only}")
        for head in self.heads:
            if head.task == "single" and len(head.classes or ()) < 2:
                raise OpsinError(f"{self}: training needs at least two classes of {head.name}, not {head.labels}")


class Reader(_Source, ABC):
    """Samples by number. Cheap to send to another process; opens its files there, when they are first needed."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Record:
        """The sample; raises `ImageError` with its name when it cannot be read."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Where sample `index` came from, as `Record.name`, without reading it."""

    def target(self, index: int) -> Target:
        """The target of sample `index`, as `Record.target`."""
        targets = self.targets
        if targets is None or isinstance(targets, Tuples):
            return None if targets is None else targets[index]
        value = targets[index].tolist()
        return tuple(value) if isinstance(value, list) else value


class StreamReader(_Source, ABC):
    """Samples in a stream, for sources that cannot be indexed.

    `length` is the number of samples an epoch, over all ranks; None where nobody knows.
    """

    length: int | None = None

    @abstractmethod
    def stream(
        self, *, epoch: int = 0, part: int = 0, parts: int = 1, shuffle: bool = False, seed: int = 0
    ) -> Iterator[Record | ImageError]:
        """The samples of one of `parts` about equal shares of the work (a share per worker of every rank).

        The shares hold every sample once between them. The same arguments give the same order. A sample that cannot
        be read is yielded as the `ImageError` that says so, so that it can be counted.
        """


class Subset(Reader):
    """Some samples of a reader, in the order given."""

    def __init__(self, reader: Reader, indices: np.ndarray) -> None:
        self.reader, self.indices = reader, indices
        self.task, self.classes, self.heads, targets = reader.task, reader.classes, reader.heads, reader.targets
        if isinstance(targets, Tuples):
            self.targets = Tuples([targets[i] for i in indices])
        elif targets is not None:
            self.targets = targets[indices]

    def __str__(self) -> str:
        return str(self.reader)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.reader[self.indices[index]]

    def name(self, index: int) -> str:
        return self.reader.name(self.indices[index])


class Relabelled(Reader):
    """The samples of a reader with other targets."""

    def __init__(
        self,
        reader: Reader,
        targets: Targets,
        classes: tuple[str, ...] | None,
        task: Task,
        heads: tuple["Head", ...] = (),
    ) -> None:
        if targets is not None and len(targets) != len(reader):
            raise OpsinError(f"{reader}: {len(targets)} targets for {len(reader)} samples")
        self.reader, self.targets, self.classes, self.task, self.heads = reader, targets, classes, task, heads

    def __str__(self) -> str:
        return str(self.reader)

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Record:
        record = self.reader[index]
        return record._replace(target=self.target(index))

    def name(self, index: int) -> str:
        return self.reader.name(index)


class RelabelledStream(StreamReader):
    """The samples of a stream with other class indices: `table[index]`."""

    def __init__(self, reader: StreamReader, table: np.ndarray, classes: tuple[str, ...]) -> None:
        self.reader, self.table, self.classes = reader, table, classes
        self.task, self.length = reader.task, reader.length

    def __str__(self) -> str:
        return str(self.reader)

    def stream(self, **how: Any) -> Iterator[Record | ImageError]:
        for record in self.reader.stream(**how):
            if isinstance(record, Record):
                many = isinstance(record.target, tuple)
                new = self.table[np.asarray(record.target, dtype=np.int64)].tolist()
                record = record._replace(target=tuple(new) if many else new)
            yield record
