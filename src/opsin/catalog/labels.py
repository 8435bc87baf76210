"""Class labels of the ImageNet family: which synset each class index means, in words, and maps between the sets.

Source: WordNet (words and definitions), the published class lists, and ReaL (https://arxiv.org/abs/2006.07159).
"""

import gzip
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from opsin.catalog.tables import DATA
from opsin.errors import OpsinError, did_you_mean

__all__ = [
    "LABEL_SETS",
    "LabelSet",
    "index_map",
    "label_definitions",
    "label_descriptions",
    "label_names",
    "label_set",
    "label_set_for",
    "labels_for",
    "real_labels",
]

# name -> (letter in the flags column of synsets.tsv.gz, number of classes)
LABEL_SETS: dict[str, tuple[str, int]] = {
    "imagenet-1k": ("k", 1000),
    "imagenet-12k": ("t", 11821),
    "imagenet-21k-goog": ("g", 21843),
    "imagenet-21k-miil": ("i", 11221),
    "imagenet-21k-miil-w21": ("w", 10450),
    "imagenet-22k": ("f", 21841),
    "imagenet-22k-ms": ("s", 21842),
    "imagenet-a": ("a", 200),
    "imagenet-r": ("r", 200),
    "mini-imagenet": ("m", 100),
}
# the number of classes names the set only among those that models are published with
_BY_COUNT = {count: name for name, (_, count) in LABEL_SETS.items() if count > 200}
_IN_1K = frozenset({"imagenet-1k"})  # sets whose every synset lies in the first 1000 lines of the table


@dataclass(frozen=True)
class LabelSet:
    """Classes in index order: synset id, all words ("tench, Tinca tinca"), definition."""

    name: str
    synsets: tuple[str, ...]
    lemmas: tuple[str, ...]
    definitions: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """One short name per class, its first word; more words, then the definition, where classes would share it."""
        short = [lemma.partition(", ")[0] for lemma in self.lemmas]
        short_count, lemma_count = Counter(short), Counter(self.lemmas)
        return [
            word if short_count[word] == 1 else lemma if lemma_count[lemma] == 1 else f"{lemma} ({definition})"
            for word, lemma, definition in zip(short, self.lemmas, self.definitions, strict=True)
        ]


@cache
def _table(limit: int | None) -> list[list[str]]:
    """The first `limit` rows: synset, flags, lemmas, definition. ImageNet-1k comes first, the others by synset id."""
    with gzip.open(DATA / "synsets.tsv.gz", "rt", encoding="utf-8") as lines:
        return [line.rstrip("\n").split("\t") for line in itertools.islice(lines, limit)]


@cache
def label_set(name: str) -> LabelSet:
    """The label set of this name, one of `LABEL_SETS`."""
    if name not in LABEL_SETS:
        hint = did_you_mean(name, LABEL_SETS) or f" There are: {', '.join(LABEL_SETS)}."
        raise OpsinError(f"No label set is called {name!r}.{hint}")
    flag, count = LABEL_SETS[name]
    rows = [row for row in _table(1000 if name in _IN_1K else None) if flag in row[1]]
    if name != "imagenet-22k-ms":  # the one set that lists the ImageNet-1k classes first, as the table does
        rows.sort()
    assert len(rows) == count, (name, len(rows))
    synsets, _, lemmas, definitions = zip(*rows, strict=True)
    return LabelSet(name, synsets, lemmas, definitions)


def label_set_for(num_classes: int) -> str | None:
    """The name of the set that models with this many classes are published with; None where it is no known set."""
    return _BY_COUNT.get(num_classes)


def labels_for(num_classes: int) -> LabelSet | None:
    """The label set that models with this many classes are published with; None where it is no known set."""
    name = label_set_for(num_classes)
    return label_set(name) if name else None


def label_names(name: str) -> list[str]:
    """Synset ids in class order, such as "n01440764"."""
    return list(label_set(name).synsets)


def label_descriptions(name: str, *, detailed: bool = False) -> dict[str, str]:
    """Synset id -> its words, with the definition after a colon when `detailed`."""
    labels = label_set(name)
    if not detailed:
        return dict(zip(labels.synsets, labels.lemmas, strict=True))
    return {s: f"{w}: {d}" for s, w, d in zip(labels.synsets, labels.lemmas, labels.definitions, strict=True)}


def label_definitions(name: str) -> dict[str, str]:
    """Synset id -> its definition in WordNet."""
    labels = label_set(name)
    return dict(zip(labels.synsets, labels.definitions, strict=True))


def index_map(source: str, target: str) -> list[int]:
    """For each class of `target`, its class index in `source`: `logits_source[:, index_map(source, target)]`.

    Raises `OpsinError` when `source` lacks a class of `target`.
    """
    position = {synset: i for i, synset in enumerate(label_set(source).synsets)}
    wanted: Sequence[str] = label_set(target).synsets
    missing = [synset for synset in wanted if synset not in position]
    if missing:
        raise OpsinError(f"{source} lacks {len(missing)} of the {len(wanted)} classes of {target}, first {missing[0]}.")
    return [position[synset] for synset in wanted]


@cache
def real_labels() -> list[list[int]]:
    """ReaL: per image of the ImageNet-1k validation set, in file-name order, the classes it truly shows (0 or more)."""
    with gzip.open(DATA / "real.txt.gz", "rt", encoding="utf-8") as lines:
        return [list(map(int, line.split())) for line in lines]
