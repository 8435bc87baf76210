"""Where pictures and labels come from, each by a name such as `folder:photos` or `csv:list.csv`."""

import inspect
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from opsin.data.labels import ClassMap
from opsin.data.readers.base import Reader, Record, Relabelled, RelabelledStream, StreamReader, Subset, Target, Tuples
from opsin.data.readers.digits import Digits, open_digits
from opsin.data.readers.folder import Folder, open_folder
from opsin.data.readers.heads import Head, align_heads, in_words, label_rows
from opsin.data.readers.hub import Hub, HubStream, open_hub, open_hub_stream
from opsin.data.readers.table import Table, open_table
from opsin.data.readers.tar import Tar, open_tar
from opsin.data.readers.torchvision import Torchvision, open_torchvision
from opsin.data.readers.webdataset import Shards, open_shards
from opsin.data.split import stratified_split
from opsin.errors import OpsinError, check_known, did_you_mean

__all__ = [
    "SCHEMES",
    "Digits",
    "Folder",
    "Head",
    "Hub",
    "HubStream",
    "Reader",
    "Record",
    "Relabelled",
    "RelabelledStream",
    "Shards",
    "StreamReader",
    "Subset",
    "Table",
    "Tar",
    "Target",
    "Torchvision",
    "Tuples",
    "align_heads",
    "in_words",
    "label_rows",
    "open_reader",
    "reader_options",
]

# what opens a place: (place, split) -> a reader, and which part of it is still to be cut out of it
SCHEMES: dict[str, Callable[..., tuple[Any, str | None]]] = {
    "folder": open_folder,
    "csv": open_table,
    "jsonl": open_table,
    "parquet": open_table,
    "tar": open_tar,
    "wds": open_shards,
    "hf": open_hub,
    "hfds": open_hub,
    "hfids": open_hub_stream,
    "torch": open_torchvision,
    "digits": open_digits,
}
SLASHED = ("hfds", "hfids", "torch", "wds")  # these may be followed by a slash too, as timm writes them
# what a path alone is, by its suffix; a folder otherwise
SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".tar": "tar",
}


def open_reader(
    where: str | os.PathLike[str],
    *,
    split: str | None = None,
    class_map: Any = None,
    holdout: float = 0.1,
    seed: int = 0,
    **options: Any,
) -> Reader | StreamReader:
    """The samples of a dataset.

    Args:
        where: `scheme:place`, see `SCHEMES`; a path alone is a folder, or a list or tar by its suffix.
        split: "train", "validation" or another of the dataset's splits, by any of its usual names. A dataset that has
            a training split alone, or none, is divided by `stratified_split`. None is the whole of an undivided one.
        class_map: what numbers the classes, as `ClassMap.of` takes it; by default their natural order.
        holdout: the fraction for validation where the dataset is divided here; 0 leaves all of it to training.
        seed: of that division.
        options: what the scheme takes beside: see `open_folder`, `open_table` and so on.

    Raises:
        OpsinError: no such scheme, place, split, class or column, or nothing there.
    """
    scheme, place = _parse(os.fspath(where))
    opener, takes = SCHEMES[scheme], reader_options(where)
    if takes is not None:
        check_known(options, [*takes, "split", "class_map", "holdout", "seed"], owner=f"a dataset by {scheme}:")
    if not isinstance(target := options.get("target"), str | None) and len(target) == 1:
        options["target"] = target[0]
    numbers = None if class_map is None else ClassMap.of(class_map)
    if "class_map" in (takes or ()):  # one that has to know the classes to read its labels
        options["class_map"] = numbers
    reader, part = opener(place, split, **options)
    if numbers is not None and reader.task not in ("single", "multi"):
        raise OpsinError(f"{reader}: the targets are {reader.task}, so there is nothing that a class_map could number")
    if numbers is not None and "class_map" not in (takes or ()):
        reader = _relabel(reader, numbers)
    return reader if part is None else _part_of(reader, part, holdout, seed)


def reader_options(where: str | os.PathLike[str]) -> list[str] | None:
    """What `open_reader` takes for a dataset beside its own arguments; None where the source takes anything."""
    takes = list(inspect.signature(SCHEMES[_parse(os.fspath(where))[0]]).parameters.values())[2:]
    return None if any(p.kind is p.VAR_KEYWORD for p in takes) else [p.name for p in takes]


def _parse(where: str) -> tuple[str, str]:
    scheme, colon, place = where.partition(":")
    if where in SCHEMES:
        return where, ""
    if colon and scheme in SCHEMES:
        return scheme, place
    first, _, rest = where.partition("/")
    if first in SLASHED and rest and not os.path.exists(where):
        return first, rest
    if not colon or os.path.exists(where) or os.sep in scheme or len(scheme) == 1:  # one letter is a drive
        suffix = os.path.splitext(where)[1].lower()
        hint = "" if os.path.exists(os.path.expanduser(where)) else did_you_mean(where, SCHEMES)
        if hint:
            raise OpsinError(f"{where}: no such folder or scheme.{hint}")
        return SUFFIXES.get(suffix, "folder"), where
    raise OpsinError(f"no kind of dataset {scheme!r}.{did_you_mean(scheme, SCHEMES)} There are: {', '.join(SCHEMES)}.")


def _relabel(reader: Any, class_map: ClassMap) -> Any:
    if reader.classes is None:
        raise OpsinError(f"{reader}: the classes have no names that a class_map could number")
    try:
        table = class_map.indices(reader.classes)
    except OpsinError as error:
        raise OpsinError(f"{reader}: {error}") from None
    if isinstance(reader, StreamReader):
        return RelabelledStream(reader, table, class_map.names)
    old = reader.targets
    new = Tuples([[int(table[i]) for i in row] for row in old]) if isinstance(old, Tuples) else table[old]
    return Relabelled(reader, new, class_map.names, reader.task)


def _part_of(reader: Any, part: str, holdout: float, seed: int) -> Reader | StreamReader:
    if isinstance(reader, StreamReader) and part == "validation":
        raise OpsinError(f"{reader} has no split {part!r}, and none can be cut out of a stream")
    if isinstance(reader, StreamReader):
        return reader  # no part of which is for validation
    if holdout == 0 and part == "train":
        return reader
    targets = len(reader) if reader.targets is None else reader.targets
    if any(head.task != "regression" for head in reader.heads):
        targets = label_rows(reader.heads, reader.targets)
    elif reader.heads:
        targets = np.nan_to_num(reader.targets)
    train, validation = stratified_split(targets, fraction=holdout, seed=seed)
    return Subset(reader, train if part == "train" else validation)
