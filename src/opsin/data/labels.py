"""What targets mean: class maps, matching a dataset's classes to a model's, ImageNet's relatives, scales."""

import csv
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import yaml
from torch import Tensor

from opsin.catalog.labels import labels_for, real_labels
from opsin.data.images import natural_key
from opsin.errors import OpsinError, did_you_mean

__all__ = ["ClassMap", "TargetScale", "check_classes", "match_classes", "real_targets"]

SHOWN = 12  # rows of a comparison
Numbers = TypeVar("Numbers", np.ndarray, Tensor)


@dataclass(frozen=True)
class ClassMap:
    """Class names in index order, and the index of each name; several names may share one.

    `names` has one entry per index, the first of those that share it; an index that no name has is called "". Where
    the names are ImageNet's, in words, WordNet ids have their index too.
    """

    names: tuple[str, ...]
    index: Mapping[str, int]

    @classmethod
    def of(cls, source: Any) -> "ClassMap":
        """From a class map, names in order, a mapping name -> index or index -> name, or a file (see `load`)."""
        if isinstance(source, ClassMap):
            return source
        if isinstance(source, str | os.PathLike):
            return cls.load(source)
        if isinstance(source, Mapping):
            return cls._from_mapping(source)
        names = tuple(map(str, source))
        if len(set(names)) < len(names):
            double = next(name for i, name in enumerate(names) if name in names[:i])
            raise OpsinError(f"the class map names {double!r} twice")
        return cls(names, _places(names))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ClassMap":
        """From a file, or from a folder with the `config.json` of a saved model.

        A text file has one name a line. JSON and YAML hold a list of names, a mapping name -> index or index -> name,
        or one of these under `label_names`, `class_to_idx`, `id2label`, `label2id` or `names`. CSV has a column of
        names and one of indices, in either order, with or without a heading.

        Raises:
            OpsinError: no such file, or nothing of the kind in it.
        """
        path = Path(path).expanduser()
        path = path / "config.json" if path.is_dir() else path
        try:
            text = path.read_text(encoding="utf-8-sig")
            match path.suffix.lower():
                case ".json":
                    content = _find_map(json.loads(text))
                case ".yaml" | ".yml":
                    content = _find_map(yaml.safe_load(text))
                case ".csv":
                    content = _rows_to_map(list(csv.reader(text.splitlines())))
                case _:
                    content = [line.strip() for line in text.splitlines() if line.strip()]
        except FileNotFoundError:
            raise OpsinError(f"no class map {path}.{_siblings(path)}") from None
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise OpsinError(f"class map {path} cannot be read: {error}") from error
        if not content:
            raise OpsinError(f"{path} holds no class names")
        try:
            return cls.of(content)
        except OpsinError as error:
            raise OpsinError(f"{path}: {error}") from None

    @classmethod
    def _from_mapping(cls, mapping: Mapping[Any, Any]) -> "ClassMap":
        pairs = list(mapping.items())
        if not all(_is_index(value) for _, value in pairs):
            pairs = [(value, key) for key, value in pairs]
        if not all(_is_index(value) for _, value in pairs):
            raise OpsinError("a class map gives an index, a whole number from 0 on, for every name")
        index = {str(name): int(value) for name, value in pairs}
        names = [""] * (max(index.values()) + 1 if index else 0)
        for name, i in index.items():
            names[i] = names[i] or name
        return cls(tuple(names), index)

    def indices(self, classes: Sequence[str], *, owner: str = "the dataset", name: str = "the class map") -> np.ndarray:
        """The index of each of `classes`: by name, or by number where they are the numbers of all indices.

        Raises `OpsinError` that names those the map lacks, with both lists side by side; `owner` is what has the
        classes and `name` the map.
        """
        missing = [one for one in classes if one not in self.index]
        if not missing:
            return np.array([self.index[one] for one in classes], dtype=np.int64)
        if all(one.isascii() and one.isdigit() for one in classes):
            numbers = [int(one) for one in classes]
            if sorted(numbers) == list(range(len(self.names))):
                return np.array(numbers, dtype=np.int64)
        listed = ", ".join(missing[:SHOWN]) + (" …" if len(missing) > SHOWN else "")
        hint = did_you_mean(missing[0], self.index)
        table = "\n".join(_side_by_side(classes, self.names, (owner, name)))
        raise OpsinError(
            f"{name} has no label for {len(missing)} of the {len(classes)} classes of {owner}: {listed}.{hint}\n{table}"
        )

    def number(self, label: str | int) -> int:
        """The index of one label: its name's, or the label itself where it is no name but a whole number.

        Raises `OpsinError` for a name that the map lacks and a number out of its range.
        """
        index = self.index.get(str(label))
        if index is not None:
            return index
        if isinstance(label, str) and not label.isdecimal():
            raise OpsinError(f"no class {label!r} in the class map.{did_you_mean(label, self.index)}")
        if not 0 <= int(label) < len(self.names):
            raise OpsinError(f"label {label} is out of range for {len(self.names)} classes")
        return int(label)


def _places(labels: Sequence[str]) -> dict[str, int]:
    """The index of each label, the first of equal ones; where the labels are ImageNet's, of WordNet ids as well."""
    place = {name: i for i, name in reversed(list(enumerate(labels)))}
    known = labels_for(len(labels))
    if known is not None:
        numbers = map(str, range(len(labels)))
        if place.keys() <= {*known.synsets, *known.words, *known.lemmas, *numbers}:
            place = {synset: i for i, synset in enumerate(known.synsets)} | place  # a label's own place counts first
    return place


def _is_index(value: Any) -> bool:
    return not isinstance(value, bool) and re.fullmatch(r"\d+", str(value)) is not None


def _siblings(path: Path) -> str:
    return did_you_mean(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ""


def _find_map(content: Any) -> Any:
    """The part of a parsed file that is a class map."""
    if isinstance(content, Mapping):
        record = content.get("pretrained_cfg")
        for place in (content, record if isinstance(record, Mapping) else {}):
            for key in ("label_names", "class_to_idx", "id2label", "label2id", "names"):
                if isinstance(place.get(key), list | dict):
                    return place[key]
        if "architecture" in content:
            raise ValueError("the model was saved without label names")
    if not isinstance(content, list | Mapping):
        raise ValueError("neither a list nor a mapping")
    return content


def _rows_to_map(rows: list[list[str]]) -> Any:
    rows = [[cell.strip() for cell in row] for row in rows if any(row)]
    if all(len(row) == 1 for row in rows):
        return [row[0] for row in rows]
    if not all(len(row) == 2 for row in rows):
        raise ValueError("a class map has two columns, names and indices")
    body = rows if any(map(_is_index, rows[0])) else rows[1:]
    column = 0 if body and all(_is_index(row[0]) for row in body) else 1
    if column == 0 and all(_is_index(row[1]) for row in body) and not re.search("id|num", rows[0][0].lower()):
        column = 1  # names that are numbers, before their indices
    return {row[1 - column]: row[column] for row in body}


# --- a dataset's classes and a model's --------------------------------------------------------------------------


def check_classes(classes: Sequence[str], labels: Sequence[str], *, owner: str = "the dataset") -> None:
    """Raise `OpsinError` unless a dataset has the classes of a model in the model's order, differences side by side."""
    if tuple(classes) == tuple(labels):
        return
    if set(classes) == set(labels) and len(classes) == len(labels):
        advice = "They are the same in another order: open the dataset with class_map= the model's labels."
    else:
        advice = "Give the model a new head of that size, or open the dataset with a class_map."
    heading = f"The {len(classes)} classes of {owner} are not the {len(labels)} labels of the model:"
    raise OpsinError("\n".join([heading, *_side_by_side(classes, labels, (owner, "the model")), advice]))


def _side_by_side(left: Sequence[str], right: Sequence[str], headings: tuple[str, str]) -> list[str]:
    """Two lists of names as the lines of a table, those rows in which they differ."""
    rows = [
        (str(i), *(repr(name) if name is not None else "—" for name in pair))
        for i, pair in enumerate(zip_longest(left, right))
        if pair[0] != pair[1]
    ]
    table = [("index", *headings), *rows[:SHOWN]]
    widths = [max(len(row[i]) for row in table) for i in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    if len(rows) > SHOWN:
        lines.append(f"… and {len(rows) - SHOWN} more")
    return ["  " + line for line in lines]


def match_classes(classes: Sequence[str], labels: Sequence[str], *, owner: str = "the dataset") -> np.ndarray:
    """For each class of a dataset its index among a model's labels, int64.

    Classes match by name. For a model of ImageNet's classes, whatever its labels are called, they match by WordNet id
    as well: so folders of ImageNet-A or -R give the 200 indices among 1000. Folders called by number, as those of
    ImageNet-V2 ("0" to "999"), match by number where there is one for every label.

    Raises:
        OpsinError: classes that the model has no label for.
    """
    return ClassMap(tuple(labels), _places(labels)).indices(classes, owner=owner, name="the model")


def real_targets(names: Iterable[str], *, source: str | os.PathLike[str] | None = None) -> list[tuple[int, ...]]:
    """ReaL: the classes that pictures of ImageNet's validation set truly show, by their file names; () where none.

    `source` is a JSON file of the labels, a list for each picture in order; None takes those of the catalog.

    Raises `OpsinError` for a name without `ILSVRC2012_val_` and a number from 1 to 50000.
    """
    labels = real_labels() if source is None else json.loads(Path(source).read_text())
    rows = []
    for name in names:
        found = re.search(r"ILSVRC2012_val_(\d{8})\b", name)
        if not found or not 1 <= int(found[1]) <= len(labels):
            raise OpsinError(f"{name} is no picture of ImageNet's validation set (ILSVRC2012_val_00000001 and so on)")
        rows.append(tuple(labels[int(found[1]) - 1]))
    return rows


def natural_order(names: Iterable[str]) -> list[str]:
    """Sorted with runs of digits as numbers; names that differ in case only, by code point."""
    return sorted(sorted(names), key=natural_key)


# --- regression -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TargetScale:
    """Mean and deviation of regression targets, one per value: a model learns `scale(values)` and predicts in units
    of the deviation, `scale.inverse(predictions)` gives the units of the targets."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def fit(cls, targets: np.ndarray) -> "TargetScale":
        """From training targets, (N,) or (N, K); the deviation of values that are all the same counts as 1."""
        rows = np.asarray(targets, dtype=np.float64)
        if not rows.size or not np.isfinite(rows).all():
            raise OpsinError("a scale needs targets, all of them finite numbers")
        rows = rows.reshape(len(rows), -1)
        std = rows.std(0)
        return cls(tuple(rows.mean(0).tolist()), tuple(np.where(std > 0, std, 1.0).tolist()))

    def __call__(self, values: Numbers) -> Numbers:
        """Targets (N,) or (N, K) less the mean, over the deviation."""
        mean, std = self._like(values)
        return (values - mean) / std

    def inverse(self, values: Numbers) -> Numbers:
        """Predictions (N,) or (N, K) in the units of the targets."""
        mean, std = self._like(values)
        return values * std + mean

    def _like(self, values: Any) -> tuple[Any, Any]:
        both = (self.mean, self.std)
        if values.ndim == 1 and len(self.mean) == 1:
            both = (self.mean[0], self.std[0])  # type: ignore[assignment]
        elif values.shape[-1] != len(self.mean):
            raise OpsinError(f"targets have {len(self.mean)} values each, not {values.shape[-1]}")
        if isinstance(values, Tensor):
            return values.new_tensor(both[0]), values.new_tensor(both[1])
        return np.asarray(both[0]), np.asarray(both[1])
