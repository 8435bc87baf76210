"""Lists of pictures with their labels: CSV, JSON lines, Parquet."""

import csv
import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, get_args

import numpy as np

from opsin.data.images import describe, read_bytes
from opsin.data.labels import ClassMap, natural_order
from opsin.data.readers.base import Reader, Record, Strings, Subset, Targets, Task, Tuples
from opsin.data.readers.folder import existing
from opsin.data.readers.heads import Head, pack
from opsin.data.split import find_split
from opsin.errors import OpsinError, did_you_mean

__all__ = ["Table", "open_table"]

IMAGE_COLUMNS = ("image", "file_name", "filename", "file", "path", "filepath", "file_path", "image_path", "img", "name")
TARGET_COLUMNS = ("label", "labels", "target", "targets", "class", "classes", "class_name", "category", "y")
SPLIT_COLUMNS = ("split", "subset", "partition", "set")
SEPARATORS = ("|", ";")  # between several labels in a cell, where one is seen
CHECKED = 10  # files looked for when a list is opened

Columns = dict[str, list[Any]]


class Table(Reader):
    """Pictures named in a list.

    Args:
        names: a path each, relative to `root` or absolute.
        root: the folder they are relative to.
        targets, classes, task, heads: as in `Reader`.
        owner: the list, for messages.

    Raises:
        OpsinError: none of the first pictures is there.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        root: str,
        targets: Targets = None,
        classes: tuple[str, ...] | None = None,
        task: Task = "unlabelled",
        heads: tuple[Head, ...] = (),
        owner: str = "the list",
    ) -> None:
        self._names = Strings(names)
        self.root, self.targets, self.classes, self.task, self.heads = root, targets, classes, task, heads
        self.owner = owner
        if not any(os.path.exists(os.path.join(root, name)) for name in names[:CHECKED]):
            raise OpsinError(
                f"{owner}: of the first {min(len(names), CHECKED)} pictures none is there, such as "
                f"{describe(os.path.join(root, names[0]))}; root= names the folder they lie in"
            )

    def __str__(self) -> str:
        return self.owner

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Record:
        name = self.name(index)
        return Record(read_bytes(os.path.join(self.root, self._names[index])), self.target(index), name)

    def name(self, index: int) -> str:
        return describe(os.path.join(self.root, self._names[index]))


def open_table(
    where: str,
    split: str | None,
    *,
    image: str | None = None,
    target: str | Sequence[str] | None = None,
    task: Task | None = None,
    separator: str | None = None,
    root: str | os.PathLike[str] | None = None,
    class_map: ClassMap | None = None,
) -> tuple[Reader, str | None]:
    """A list by its suffix: .csv, .tsv, .jsonl or .parquet.

    Args:
        where: the file. A CSV has a line of headings; commas, semicolons or tabs divide its cells.
        split: a value of the column `split` (or `subset`, `partition`, `set`) by any of its usual names.
        image: the column of paths; by default the first of `IMAGE_COLUMNS` that there is.
        target: the column of labels, or several; by default the first of `TARGET_COLUMNS` that there is.
        task: by default what the cells look like. Fractions, and several columns of numbers, are "regression". Lists,
            or text with `|` or `;`, are several labels: "multi". The rest is "single": text, or whole numbers, which
            are classes by the order of their values. Several columns of 0 and 1 with "multi" are a label each.
            Several columns that are not all numbers are "heads", each of the kind that its cells look like; a cell may
            then be empty where nobody knows. "unlabelled" reads no labels.
        separator: what divides several labels in a cell.
        root: the folder that paths are relative to; by default that of the file.
        class_map: numbers the labels; a whole number that is no name in it counts as an index.

    Raises:
        OpsinError: no such file or column, a cell that is no label, an empty list, no picture where they should be.
    """
    path = existing(where)
    owner = describe(path)
    if task is not None and task not in get_args(Task):
        raise OpsinError(
            f"no task {task!r}.{did_you_mean(task, get_args(Task))} There are: {', '.join(get_args(Task))}"
        )
    columns = _read(path, owner)
    if not any(columns.values()):
        raise OpsinError(f"{owner}: the list is empty")
    paths = [_text(name) for name in columns[_column(image, columns, IMAGE_COLUMNS, "image", owner)]]
    targets: Targets = None
    classes = None
    heads: tuple[Head, ...] = ()
    if task != "unlabelled":
        wanted: Sequence[str | None] = [target] if isinstance(target, str) else target or [None]
        chosen = {n: columns[n] for n in (_column(name, columns, TARGET_COLUMNS, "target", owner) for name in wanted)}
        if task == "heads" or (task is None and len(chosen) > 1 and not all(map(_all_numbers, chosen.values()))):
            (targets, heads), task = _heads(chosen, separator, class_map, owner), "heads"
        else:
            targets, classes, task = _labels(chosen, task, separator, class_map, owner)
    folder = os.path.expanduser(os.fspath(root)) if root is not None else os.path.dirname(path)
    table = Table(paths, root=folder, targets=targets, classes=classes, task=task, heads=heads, owner=owner)
    column = next((name for name in columns if name.strip().lower() in SPLIT_COLUMNS), None)
    values = [_text(value) for value in columns[column]] if column else []
    value, part = find_split(split, natural_order(set(values)), owner=owner)
    return (table if value is None else Subset(table, np.flatnonzero(np.array(values) == value))), part


# --- cells --------------------------------------------------------------------------------------------------------


def _read(path: str, owner: str) -> Columns:
    suffix = os.path.splitext(path)[1].lower()
    try:
        if suffix in (".jsonl", ".ndjson"):
            return _read_jsonl(path, owner)
        if suffix in (".parquet", ".pq"):
            return _read_parquet(path, owner)
        return _read_csv(path, owner)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise OpsinError(f"{owner}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _read_csv(path: str, owner: str) -> Columns:
    with open(path, newline="", encoding="utf-8-sig") as file:
        heading = file.readline()
        delimiter = max(",;\t", key=heading.count)
        names = next(csv.reader([heading], delimiter=delimiter), [])
        rows = []
        for row in (lines := csv.reader(file, delimiter=delimiter)):
            if len(row) != len(names) and row:
                raise OpsinError(f"{owner}: line {lines.line_num + 1} has {len(row)} cells, not {len(names)}")
            if row:
                rows.append(row)
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def _read_jsonl(path: str, owner: str) -> Columns:
    rows = []
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    rows.append(dict(json.loads(line)))
                except (ValueError, TypeError) as error:
                    raise OpsinError(f"{owner}: line {number} is no JSON object ({error})") from error
    return {name: [row.get(name) for row in rows] for name in (dict.fromkeys(key for row in rows for key in row))}


def _read_parquet(path: str, owner: str) -> Columns:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise OpsinError(f"{owner}: Parquet needs pyarrow: pip install opsin[data]") from None
    try:
        schema = parquet.read_schema(path)
        stored = [f.name for f in schema if pyarrow.types.is_struct(f.type) or pyarrow.types.is_binary(f.type)]
        if stored:
            raise OpsinError(f"{owner}: column {stored[0]} holds pictures, not paths; open it as hf:{owner}")
        return parquet.read_table(path).to_pydict()
    except pyarrow.ArrowException as error:
        raise OpsinError(f"{owner}: cut short, damaged or no Parquet ({error})") from error


def _column(wanted: str | None, columns: Columns, usual: Iterable[str], what: str, owner: str) -> str:
    if wanted is None:
        lower = {name.strip().lower(): name for name in reversed(columns)}
        found = next((lower[name] for name in usual if name in lower), None)
        if found is not None:
            return found
        also = ' or task="unlabelled"' if what == "target" else ""
        raise OpsinError(f"{owner}: which column is the {what}? Say {what}={also}; there are: {', '.join(columns)}")
    if wanted not in columns:
        hint = did_you_mean(wanted, columns)
        raise OpsinError(f"{owner}: no column {wanted!r}.{hint} There are: {', '.join(columns)}")
    return wanted


def _labels(
    columns: Columns, task: Task | None, separator: str | None, class_map: ClassMap | None, owner: str
) -> tuple[Targets, tuple[str, ...] | None, Task]:
    """Targets, classes and task from the cells of one column or several."""
    if len(columns) > 1:
        if task == "multi":
            return *_from_flags(columns, class_map, owner), "multi"
        if task == "single":
            raise OpsinError(f"{owner}: one label a picture comes from one column, not {', '.join(columns)}")
        return np.stack([_numbers(name, cells, owner) for name, cells in columns.items()], axis=1), None, "regression"
    ((name, cells),) = columns.items()
    task = task or _task_of(cells, separator)
    if task == "regression":
        if any(isinstance(cell, list) for cell in cells):
            return _vectors(name, cells, owner), None, task
        return _numbers(name, cells, owner), None, task
    rows = [_split_cell(cell, separator) for cell in cells] if task == "multi" else [[_text(c)] for c in cells]
    if task == "single" and "" in (texts := [row[0] for row in rows]):
        raise OpsinError(f"{owner}: row {texts.index('') + 1} has no {name}")
    classes, place = _place({label for row in rows for label in row}, class_map, owner)
    if task == "single":
        return np.array([place[row[0]] for row in rows], dtype=np.int64), classes, task
    return Tuples([sorted({place[label] for label in row}) for row in rows]), classes, "multi"


def _all_numbers(cells: list[Any]) -> bool:
    return all(_number(text) is not None for cell in cells if (text := _text(cell)))


def _heads(
    columns: Columns, separator: str | None, class_map: ClassMap | None, owner: str
) -> tuple[np.ndarray, tuple[Head, ...]]:
    """The rows of targets, and what their columns are: a head for each column of labels."""
    if class_map is not None:
        raise OpsinError(f"{owner}: a class_map numbers the classes of one column, not of {', '.join(columns)}")
    heads, targets, known = [], [], []
    for name, cells in columns.items():
        there = np.array([cell is not None and _text(cell) != "" for cell in cells])
        if not there.any():
            raise OpsinError(f"{owner}: column {name} is empty")
        filled = [cell for cell, is_there in zip(cells, there, strict=True) if is_there]
        own, classes, task = _labels({name: filled}, None, separator, None, owner)
        heads.append(Head.of(name, task, classes, own))
        targets.append(own)
        known.append(there)
    return pack(heads, targets, known), tuple(heads)


def _task_of(cells: list[Any], separator: str | None) -> Task:
    filled = [cell for cell in cells if cell not in (None, "")]
    if any(isinstance(cell, list) for cell in filled):
        fractions = all(isinstance(v, float) for cell in filled if isinstance(cell, list) for v in cell)
        return "regression" if fractions else "multi"
    texts = [_text(cell) for cell in filled]
    if separator is not None or any(mark in text for mark in SEPARATORS for text in texts):
        return "multi"
    whole = all(isinstance(cell, int) or re.fullmatch(r"-?\d+", text) for cell, text in zip(filled, texts, strict=True))
    return "regression" if filled and not whole and all(_number(text) is not None for text in texts) else "single"


def _split_cell(cell: Any, separator: str | None) -> list[str]:
    if isinstance(cell, list | tuple):
        return [_text(value) for value in cell]
    text = _text(cell)
    mark = separator or next((mark for mark in SEPARATORS if mark in text), None)
    return [part.strip() for part in (text.split(mark) if mark else [text]) if part.strip()]


def _text(cell: Any) -> str:
    return "" if cell is None else str(cell).strip()


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _numbers(name: str, cells: list[Any], owner: str) -> np.ndarray:
    values = [_number(_text(cell)) for cell in cells]
    for row, value in enumerate(values, 1):
        if value is None or not np.isfinite(value):
            raise OpsinError(f"{owner}: row {row} has {cells[row - 1]!r} for {name}, which is no finite number")
    return np.array(values, dtype=np.float64)


def _vectors(name: str, cells: list[Any], owner: str) -> np.ndarray:
    width = len(cells[0] or ())
    for row, cell in enumerate(cells, 1):
        if not isinstance(cell, list) or len(cell) != width:
            raise OpsinError(f"{owner}: row {row} has {cell!r} for {name}, not {width} numbers as the first")
    return np.stack([_numbers(name, [cell[i] for cell in cells], owner) for i in range(width)], axis=1)


def _from_flags(columns: Columns, class_map: ClassMap | None, owner: str) -> tuple[Tuples, tuple[str, ...]]:
    flags = np.stack([_numbers(name, cells, owner) for name, cells in columns.items()], axis=1)
    if not np.isin(flags, (0, 1)).all():
        raise OpsinError(
            f"{owner}: several columns of labels hold 0 and 1 alone; task='regression' takes other numbers"
        )
    table = np.arange(len(columns)) if class_map is None else class_map.indices(list(columns))
    rows = [sorted(table[np.flatnonzero(row)].tolist()) for row in flags]
    return Tuples(rows), tuple(columns) if class_map is None else class_map.names


def _place(labels: set[str], class_map: ClassMap | None, owner: str) -> tuple[tuple[str, ...], dict[str, int]]:
    """Classes in index order and the index of each label."""
    if class_map is None:
        numbers = all(re.fullmatch(r"-?\d+", label) for label in labels)
        classes = tuple(sorted(labels, key=int) if numbers else natural_order(labels))
        return classes, {label: i for i, label in enumerate(classes)}
    try:
        return class_map.names, {label: class_map.number(label) for label in labels}
    except OpsinError as error:
        raise OpsinError(f"{owner}: {error}") from None
