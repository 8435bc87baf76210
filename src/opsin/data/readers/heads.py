"""Several kinds of labels a picture, a head each: what each of them says, and how their targets stand in one row.

A row of targets has one number for a head of one label (the class), one for each class of several labels (0 or 1), and
one for each value of numbers; NaN where the picture has no label for the head. The model's outputs stand alike, in the
order of the heads, with one for each class.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from opsin.data.labels import ClassMap, TargetScale
from opsin.data.readers.base import Reader, Relabelled, Targets, Tuples
from opsin.errors import OpsinError, did_you_mean

__all__ = ["Head", "align_heads", "in_words", "label_rows", "pack", "spans"]


@dataclass(frozen=True, kw_only=True)
class Head:
    """What some of a model's outputs say.

    Attributes:
        name: of the head, such as the column of its labels.
        task: "single" label, "multi" labels or "regression".
        classes: names in index order; None for numbers.
        values: how many numbers; 1 for classes.
        scale: of numbers, as they were learnt.
    """

    name: str
    task: Literal["single", "multi", "regression"]
    classes: tuple[str, ...] | None = None
    values: int = 1
    scale: TargetScale | None = None

    @classmethod
    def of(cls, name: str, task: Any, classes: tuple[str, ...] | None, targets: Targets) -> "Head":
        """The head that learns some targets."""
        values = targets.shape[1] if isinstance(targets, np.ndarray) and targets.ndim == 2 else 1
        return cls(name=name, task=task, classes=classes, values=values)

    @property
    def outputs(self) -> int:
        """Of the model."""
        return self.values if self.classes is None else len(self.classes)

    @property
    def columns(self) -> int:
        """Of a row of targets."""
        return 1 if self.task == "single" else self.outputs

    @property
    def labels(self) -> list[str]:
        """A name for each output, unlike those of other heads."""
        if self.classes is None:
            return [self.name] if self.values == 1 else [f"{self.name}[{i}]" for i in range(self.values)]
        return [f"{self.name}: {one}" for one in self.classes]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        scale = None if self.scale is None else {"mean": list(self.scale.mean), "std": list(self.scale.std)}
        plain = {"name": self.name, "task": self.task, "classes": self.classes and list(self.classes)}
        return plain | {"values": self.values, "scale": scale}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Head":
        classes, scale = plain["classes"], plain["scale"]
        return cls(
            name=plain["name"], task=plain["task"], values=plain["values"],
            classes=None if classes is None else tuple(classes),
            scale=None if scale is None else TargetScale(tuple(scale["mean"]), tuple(scale["std"])),
        )  # fmt: skip


def spans(widths: Iterable[int]) -> Iterator[slice]:
    """Where each of some stretches lies that stand one after the other."""
    begin = 0
    for width in widths:
        yield slice(begin, begin + width)
        begin += width


def pack(heads: Sequence[Head], targets: Sequence[Targets], known: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of targets float64 (N, T) for all heads, from those of each head alone.

    Args:
        heads: their order is that of the columns.
        targets: of each head, of the samples that have a label for it, as `Reader.targets`.
        known: for each head, bool (N,): which samples these are.
    """
    rows = np.full((len(known[0]), sum(head.columns for head in heads)), np.nan)
    for head, place, own, there in zip(heads, spans(head.columns for head in heads), targets, known, strict=True):
        rows[there, place] = _flags(own, head.outputs) if isinstance(own, Tuples) else _columns(own)
    return rows


def _columns(values: Any) -> np.ndarray:
    return values.reshape(len(values), -1)


def _flags(rows: Tuples, width: int) -> np.ndarray:
    flags = np.zeros((len(rows), width))
    for flag, row in zip(flags, rows, strict=True):
        flag[list(row)] = 1
    return flags


def label_rows(heads: Sequence[Head], rows: np.ndarray) -> list[tuple[int, ...]]:
    """All labels of each sample as numbers, none of which two heads share; numbers count as none."""
    found: list[list[int]] = [[] for _ in rows]
    offsets = [place.start for place in spans(head.outputs for head in heads)]
    for head, offset, place in zip(heads, offsets, spans(head.columns for head in heads), strict=True):
        if head.task == "regression":
            continue
        part = rows[:, place]
        samples, labels = np.nonzero(part > 0) if head.task == "multi" else (np.flatnonzero(part[:, 0] >= 0), None)
        labels = part[samples, 0].astype(int) if labels is None else labels
        for sample, label in zip(samples.tolist(), labels.tolist(), strict=True):
            found[sample].append(offset + label)
    return [tuple(labels) for labels in found]


def in_words(heads: Sequence[Head], row: Sequence[float]) -> list[str]:
    """What the row of one sample says, in words: labels and numbers by the names of their heads."""
    words = []
    for head, place in zip(heads, spans(head.columns for head in heads), strict=True):
        values = np.asarray(row[place], dtype=np.float64)
        if np.isnan(values).any():
            continue
        if head.task == "regression":
            words.append(f"{head.name}: {', '.join(f'{value:.5g}' for value in values)}")
        else:
            own = [(head.classes or ())[i] for i in label_rows([head], values[None])[0]]
            words.append(f"{head.name}: {', '.join(own) or 'none'}")
    return words


def align_heads(reader: Reader, heads: Sequence[Head], *, owner: str) -> Reader:
    """The samples of a reader with their targets in the order and with the class numbers of `heads`, which `owner` has.

    A head that the reader has no labels for is NaN. Raises `OpsinError` for a head or a class that `heads` lack, and
    for labels of another kind.
    """
    wanted = {head.name: head for head in heads}
    for one in reader.heads:
        if one.name not in wanted:
            hint = did_you_mean(one.name, wanted) or f" There are: {', '.join(wanted)}."
            raise OpsinError(f"{reader}: {owner} has no head {one.name!r}.{hint}")
        if (one.task, one.values) != (wanted[one.name].task, wanted[one.name].values):
            raise OpsinError(f"{reader}: {one.name} is {_kind(one)}, but {_kind(wanted[one.name])} for {owner}")
    assert isinstance(reader.targets, np.ndarray)
    rows = np.full((len(reader), sum(head.columns for head in heads)), np.nan)
    places = {head.name: place for head, place in zip(heads, spans(head.columns for head in heads), strict=True)}
    for one, place in zip(reader.heads, spans(head.columns for head in reader.heads), strict=True):
        to, part = places[one.name], reader.targets[:, place]
        if one.classes is None:
            rows[:, to] = part
            continue
        labels = ClassMap.of(wanted[one.name].classes)
        table = labels.indices(one.classes, owner=f"{one.name} in {reader}", name=owner)
        if one.task == "single":
            known = part[:, 0] >= 0
            rows[known, to.start] = table[part[known, 0].astype(int)]
        else:
            rows[np.ix_(range(len(rows)), to.start + table)] = part
    for head, place in places.items():  # classes that the data does not know are not there
        if wanted[head].task == "multi":
            part = rows[:, place]
            part[np.isnan(part) & ~np.isnan(part).all(1, keepdims=True)] = 0
    return Relabelled(reader, rows, None, "heads", tuple(heads))


def _kind(head: Head) -> str:
    many = "one label" if head.task == "single" else "several labels"
    return f"{head.values} numbers" if head.task == "regression" else many
