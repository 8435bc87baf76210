"""Datasets of the library `datasets`: by their name on the Hugging Face hub, a local folder, or one saved to disk."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from opsin.data.images import describe, read_bytes
from opsin.data.labels import ClassMap, natural_order
from opsin.data.readers.base import Reader, Record, Relabelled, StreamReader, Target, Targets, Task, Tuples
from opsin.data.readers.heads import Head, pack
from opsin.data.readers.table import IMAGE_COLUMNS, TARGET_COLUMNS
from opsin.data.split import find_split
from opsin.errors import ImageError, OpsinError, did_you_mean

__all__ = ["Hub", "HubStream", "open_hub", "open_hub_stream"]

SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves in a folder
FILES = {".parquet": "parquet", ".arrow": "arrow"}


class Hub(Reader):
    """A dataset whose samples have numbers.

    Args:
        data: a `datasets.Dataset`.
        image: the column of pictures; by default the one of that type.
        target: the column of labels; by default the one of class labels, else one with a usual name. None there is
            leaves the pictures unlabelled. Class labels, whole numbers and text are classes, a list of them several
            labels; fractions are regression.
        name: of the dataset, for messages.

    Raises:
        OpsinError: no such column, or none with pictures.
    """

    def __init__(
        self, data: Any, *, image: str | None = None, target: str | None = None, name: str = "dataset"
    ) -> None:
        self.label = name
        self.image, self.column, data = _prepare(data, image, target, name)
        self.data = data
        if self.column is None:
            self.task = "unlabelled"
            return
        feature = data.features[self.column]
        self.task, self.classes = _kind(feature)
        self.targets = self._all_targets(list(data.select_columns(self.column)[:][self.column]))

    def __str__(self) -> str:
        return self.label

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Record:
        name = self.name(index)
        try:
            picture = self.data[int(index)][self.image]
        except (OSError, ValueError) as error:
            raise ImageError(f"{name}: cannot be read ({error})") from error
        return Record(_picture(picture, name), self.target(index), name)

    def name(self, index: int) -> str:
        return f"{self.label}[{index}]"

    def _all_targets(self, values: list[Any]) -> Targets:
        if None in values:
            raise OpsinError(f"{self}: row {values.index(None)} has no {self.column}")
        if self.task == "regression":
            return self._numbers(values)
        rows = values if self.task == "multi" else [[value] for value in values]
        if self.classes is None:
            labels = {label for row in rows for label in row}
            order = sorted(labels) if all(isinstance(label, int) for label in labels) else natural_order(labels)
            self.classes = tuple(map(str, order))
            place = {label: i for i, label in enumerate(order)}
            rows = [[place[label] for label in row] for row in rows]
        known = range(len(self.classes))
        for number, row in enumerate(rows):
            if any(label not in known for label in row):
                raise OpsinError(f"{self}: row {number}: label {row} is out of range for {len(known)} classes")
        if self.task == "multi":
            return Tuples([sorted(set(row)) for row in rows])
        return np.array([row[0] for row in rows], dtype=np.int64)

    def _numbers(self, values: list[Any]) -> np.ndarray:
        try:
            targets = np.array(values, dtype=np.float64)
        except ValueError as error:
            raise OpsinError(f"{self}: the rows of {self.column} are not equally long") from error
        wrong = np.flatnonzero(~np.isfinite(targets.reshape(len(targets), -1)).all(1))
        if len(wrong):
            raise OpsinError(f"{self}: row {wrong[0]} has {values[wrong[0]]} for {self.column}, no finite number")
        return targets


class HubStream(StreamReader):
    """A dataset that comes as a stream; columns as for `Hub`.

    Args:
        data: a `datasets.IterableDataset`.
        class_map: numbers the classes; labels that are text need one.
        length: samples an epoch, where it is known; by default what the dataset says of itself.
        buffer: samples among which a shuffled stream draws the next.
    """

    def __init__(
        self,
        data: Any,
        *,
        image: str | None = None,
        target: str | None = None,
        name: str = "dataset",
        class_map: ClassMap | None = None,
        length: int | None = None,
        buffer: int = 1000,
    ) -> None:
        self.label, self.buffer, self.class_map = name, buffer, class_map
        self.image, self.column, self.data = _prepare(data, image, target, name)
        if self.column is None:
            self.task = "unlabelled"
        else:
            feature = self.data.features[self.column]
            self.task, self.stored = _kind(feature)
            self.classes = self.stored
            if self.task != "regression" and class_map is not None:
                self.classes = class_map.names
                class_map.indices(self.stored or ())  # tells what it lacks
            elif self.task != "regression" and _dtype(feature).endswith("string"):
                raise OpsinError(f"{self}: column {self.column} holds text; a class_map has to number it in a stream")
        known = (data.info.splits or {}).get(str(data.split)) if data.info is not None else None
        self.length = length if length is not None else known.num_examples or None if known else None

    def __str__(self) -> str:
        return self.label

    def stream(
        self, *, epoch: int = 0, part: int = 0, parts: int = 1, shuffle: bool = False, seed: int = 0
    ) -> Iterator[Record | ImageError]:
        from datasets.distributed import split_dataset_by_node

        data = self.data
        if shuffle:
            data = data.shuffle(seed=seed, buffer_size=self.buffer)
        if parts > 1:
            data = split_dataset_by_node(data, rank=part, world_size=parts)
        data.set_epoch(epoch)  # last: what divides the dataset makes a new one, of epoch 0
        # not iter(data): in a worker of a DataLoader that would deal out the files a second time, and lose most
        number, rows = -1, data.iter(batch_size=1)
        while True:
            number += 1
            try:
                row = {name: values[0] for name, values in next(rows).items()}
            except StopIteration:
                return
            except Exception as error:  # the library meets a damaged file with errors of many kinds; it ends there
                yield ImageError(f"{self}: cut short or damaged after {number} samples of part {part} ({error})")
                return
            name = f"{self}[{part}:{number}]"
            try:
                yield Record(_picture(row[self.image], name), self._target(row, name), name)
            except ImageError as error:
                yield error

    def _target(self, row: dict[str, Any], name: str) -> Target:
        if self.column is None:
            return None
        value = row[self.column]
        if value is None:
            raise ImageError(f"{name}: no {self.column}")
        if self.task == "multi":
            return tuple(sorted({self._class(label, name) for label in value}))
        if self.task == "single":
            return self._class(value, name)
        return tuple(value) if isinstance(value, list) else value

    def _class(self, label: int | str, name: str) -> int:
        if self.stored is not None:
            if not 0 <= int(label) < len(self.stored):
                raise ImageError(f"{name}: label {label} is out of range for {len(self.stored)} classes")
            label = label if self.class_map is None else self.stored[int(label)]
        if self.class_map is None and int(label) < 0:
            raise ImageError(f"{name}: label {label} is out of range: classes count from 0")
        try:
            return int(label) if self.class_map is None else self.class_map.number(label)
        except OpsinError as error:
            raise ImageError(f"{name}: {error}") from None


def open_hub(
    where: str,
    split: str | None,
    *,
    config: str | None = None,
    image: str | None = None,
    target: str | Sequence[str] | None = None,
) -> tuple[Reader, str | None]:
    """A name on the hub, a folder, a Parquet or Arrow file, or a folder of `save_to_disk`; `config` is a part by name.

    `split` may be a slice in the library's own words too, such as "train[:10%]". Several columns in `target` are a head
    each.
    """
    data, part = _load(where, split, config, streaming=False)
    columns: Sequence[str | None] = [target] if isinstance(target, str) else target or [None]
    parts = [Hub(data, image=image, target=column, name=describe(where)) for column in columns]
    return (parts[0] if len(parts) == 1 else _joined(parts)), part


def _joined(parts: Sequence[Hub]) -> Reader:
    """The samples of a dataset with a head for each of some columns of labels."""
    heads = tuple(Head.of(one.column or "", one.task, one.classes, one.targets) for one in parts)
    known = [np.ones(len(one), dtype=bool) for one in parts]
    return Relabelled(parts[0], pack(heads, [one.targets for one in parts], known), None, "heads", heads)


def open_hub_stream(
    where: str,
    split: str | None,
    *,
    config: str | None = None,
    image: str | None = None,
    target: str | Sequence[str] | None = None,
    class_map: ClassMap | None = None,
    length: int | None = None,
    buffer: int = 1000,
) -> tuple[StreamReader, str | None]:
    """As `open_hub`, but nothing is downloaded ahead; labels come from one column."""
    if target is not None and not isinstance(target, str):
        raise OpsinError(f"{describe(where)}: a stream has one column of labels; hf:… takes several as a head each")
    data, part = _load(where, split, config, streaming=True)
    name = describe(where)
    stream = HubStream(data, image=image, target=target, name=name, class_map=class_map, length=length, buffer=buffer)
    return stream, part


def _load(where: str, split: str | None, config: str | None, *, streaming: bool) -> tuple[Any, str | None]:
    try:
        import datasets
    except ImportError:
        raise OpsinError(f"{where}: this needs the library datasets: pip install opsin[data]") from None
    path = os.path.expanduser(where)
    suffix = os.path.splitext(path)[1].lower()
    sliced = split if split and "[" in split else None
    try:
        if any(os.path.isfile(os.path.join(path, name)) for name in SAVED):
            loaded = datasets.load_from_disk(path)
            if sliced:
                raise OpsinError(f"{where}: a dataset that was saved to disk has whole splits, not {split}")
        elif suffix in FILES:
            loaded = datasets.load_dataset(FILES[suffix], data_files=path, split=sliced, streaming=streaming)
        else:
            loaded = datasets.load_dataset(path, config, split=sliced, streaming=streaming)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if isinstance(error, OpsinError):
            raise
        raise OpsinError(f"{where}: cannot be opened ({error})") from error
    part = None
    if isinstance(loaded, dict):
        name, part = find_split(split, loaded, owner=where)
        loaded = loaded[name]
    elif not sliced:
        _, part = find_split(split, (), owner=where)
    if streaming and hasattr(loaded, "to_iterable_dataset"):
        loaded = loaded.to_iterable_dataset(num_shards=max(1, min(64, len(loaded))))
    return loaded, part


def _prepare(data: Any, image: str | None, target: str | None, owner: str) -> tuple[str, str | None, Any]:
    """The columns of picture and label, and the dataset with these alone, pictures encoded."""
    from datasets import ClassLabel, Image

    features = data.features
    if features is None:  # a stream that has to be looked into
        data = data._resolve_features()
        features = data.features
    for name in (image, target):
        if name is not None and name not in features:
            hint = did_you_mean(name, features)
            raise OpsinError(f"{owner}: no column {name!r}.{hint} There are: {', '.join(features)}")
    image = image or next((name for name, feature in features.items() if isinstance(feature, Image)), None)
    image = image or next((name for name in IMAGE_COLUMNS if name in features), None)
    if image is None:
        raise OpsinError(f"{owner}: no column holds pictures; say image=, of: {', '.join(features)}")
    if target is None:
        labelled = [n for n, f in features.items() if isinstance(getattr(f, "feature", f), ClassLabel)]
        target = next((name for name in (*labelled, *TARGET_COLUMNS) if name in features), None)
    data = data.select_columns([image] if target is None else [image, target])
    if isinstance(features[image], Image):
        data = data.cast_column(image, Image(decode=False))
    return image, target, data


def _kind(feature: Any) -> tuple[Task, tuple[str, ...] | None]:
    """Task and class names of a column of labels."""
    inner = getattr(feature, "feature", None)
    names = getattr(feature if inner is None else inner, "names", None)
    if _dtype(feature).startswith(("float", "double", "decimal")):
        return "regression", None
    return "single" if inner is None else "multi", tuple(names) if names else None


def _dtype(feature: Any) -> str:
    return str(getattr(getattr(feature, "feature", None) or feature, "dtype", ""))


def _picture(value: Any, name: str) -> Any:
    """Bytes of a stored picture, an array as it is."""
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if value is None:
        raise ImageError(f"{name}: no picture")
    if isinstance(value, bytes) and not value:
        raise ImageError(f"{name}: empty (0 bytes)")
    if isinstance(value, str):
        return read_bytes(value)
    if not isinstance(value, list):
        return value
    array = np.asarray(value)
    if array.dtype.kind in "iu" and (array.min(initial=0) < 0 or array.max(initial=0) > 255):
        raise ImageError(f"{name}: values from {array.min()} to {array.max()}; a picture has 0 to 255")
    return array.astype(np.uint8) if array.dtype.kind in "iu" else array
