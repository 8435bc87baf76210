"""What a model's outputs say: labels with probabilities, numbers, or some of each for several heads."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from opsin.catalog.labels import LabelSet, labels_for
from opsin.data.labels import TargetScale

__all__ = ["Answer", "Label", "Score", "answers", "named_labels", "own_labels"]

MORE_LIKELY_THAN_NOT = 0.5


class Label(NamedTuple):
    name: str
    description: str | None
    id: str | None


@dataclass(frozen=True, slots=True)
class Score:
    """One class, the place it has in the logits, and its probability (0..1).

    `label` is a name for people, unique in its set. ImageNet's classes have a `description` with all their words as
    well, and their WordNet `id`; custom classes have what was saved with them.
    """

    label: str
    index: int
    probability: float
    description: str | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What one head says of a picture: `labels`, the most probable first, or `values`, numbers in the targets' units.

    Where several labels may hold at once, `labels` are those that are more probable than not.
    """

    labels: tuple[Score, ...] = ()
    values: tuple[float, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The field that it has as plain values, ready for JSON."""
        if self.values is not None:
            return {"values": self.values}
        return {"labels": [{key: getattr(score, key) for key in Score.__slots__} for score in self.labels]}


def answers(
    outputs: Tensor, task: str, labels: Sequence[Label], scale: TargetScale | None, topk: int
) -> Iterator[Answer]:
    """An answer for each row of outputs (B, K), float32 on the CPU."""
    if task == "regression":
        values = outputs if scale is None else scale.inverse(outputs)
        yield from (Answer(values=tuple(row)) for row in values.tolist())
        return
    least = MORE_LIKELY_THAN_NOT if task == "multi" else -1.0
    best = (outputs.softmax(-1) if task == "single" else outputs.sigmoid()).topk(min(topk, outputs.shape[1]))
    for probabilities, indices in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        yield Answer(
            tuple(
                Score(labels[i].name, i, value, labels[i].description, labels[i].id)
                for value, i in zip(probabilities, indices, strict=True)
                if value > least
            )
        )


def own_labels(model: Any) -> list[Label]:
    """The labels of the model's record, of the label set with as many classes, or plain numbers."""
    record = model.pretrained_cfg
    names = record.get("label_names")
    if names is not None and len(names) == model.num_classes:  # a fresh head leaves the record's labels behind
        return named_labels(names, record.get("label_descriptions"))
    known = labels_for(model.num_classes)
    if known is not None:
        return _from_set(known)
    return named_labels([str(i) for i in range(model.num_classes)], None)


def named_labels(names: Sequence[str], descriptions: Mapping[str, str] | None) -> list[Label]:
    """Labels of these names, with their words."""
    names, words = [str(name) for name in names], {str(k): v for k, v in (descriptions or {}).items()}
    known = labels_for(len(names))
    if known is not None and known.synsets == tuple(names):
        return _from_set(known)
    if words and all(re.fullmatch(r"n\d{8}", name) for name in names):  # WordNet ids say nothing to a person
        ids, lemmas = tuple(names), tuple(words.get(name, name) for name in names)
        return _from_set(LabelSet("", ids, lemmas, ids))  # the ids tell apart what has the same words
    return [Label(name, words.get(name), None) for name in names]


def _from_set(labels: LabelSet) -> list[Label]:
    return [Label(*row) for row in zip(labels.words, labels.lemmas, labels.synsets, strict=True)]
