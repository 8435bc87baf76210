"""Datasets of torchvision by name, such as `torch:cifar10`: those that classify pictures."""

import inspect
import os
import re
from typing import Any

import numpy as np

from opsin.data.images import read_bytes
from opsin.data.labels import natural_order
from opsin.data.readers.base import Reader, Record
from opsin.data.split import find_split
from opsin.errors import ImageError, OpsinError, UnknownArgumentError, check_known, did_you_mean

__all__ = ["Torchvision", "open_torchvision"]


class Torchvision(Reader):
    """A dataset of torchvision; raises `OpsinError` for one whose targets are not classes."""

    def __init__(self, data: Any, *, name: str) -> None:
        self.data, self.label = data, name
        if hasattr(data, "loader"):
            data.loader = read_bytes  # files, which it would decode
        self.targets = targets = _targets(data, name)
        if targets is None:
            self.task = "unlabelled"
        else:
            self.classes = _classes(data, targets, name)

    def __str__(self) -> str:
        return self.label

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Record:
        name = self.name(index)
        try:
            image, _ = self.data[int(index)]
        except (OSError, ValueError, SyntaxError) as error:
            if isinstance(error, ImageError):
                raise
            raise ImageError(f"{name}: cannot be read ({error})") from error
        return Record(image, self.target(index), name)

    def name(self, index: int) -> str:
        return f"{self.label}[{index}]"


def open_torchvision(
    where: str, split: str | None, *, root: str | os.PathLike[str] = ".", download: bool = False, **options: Any
) -> tuple[Reader, str | None]:
    """A dataset by the name of its class, in any case, with "-" or "_" anywhere.

    Args:
        where: the name.
        split: "validation" is the test split of a dataset that has no other.
        root: the folder of the files, as torchvision lays them out.
        download: fetch what is missing.
        options: further arguments of the class.

    Raises:
        OpsinError: no such dataset, split or argument; files that are missing or damaged; targets that are no classes.
    """
    kind = _find_class(where)
    takes = inspect.signature(kind).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    given = {**options, **({"download": True} if download else {})}
    if not open_ended:
        check_known(given, takes, owner=f"torchvision's {kind.__name__}")
    given |= {"root": os.path.expanduser(os.fspath(root))} if "root" in takes else {}
    given |= {"loader": read_bytes} if "loader" in takes else {}
    if "download" in takes:
        given["download"] = download
    divided_by = next((name for name in ("train", "split") if name in takes), None)
    available = {"train": ("train", "test"), "split": _split_names(kind, given), None: ()}[divided_by]
    name, part = find_split(split, available, owner=f"torch:{where}")
    if divided_by is not None:
        given[divided_by] = name == "train" if divided_by == "train" else name
    try:
        data = kind(**given)
    except TypeError as error:
        raise UnknownArgumentError(f"torchvision's {kind.__name__}: {error}") from error
    except (OSError, RuntimeError, ValueError) as error:
        hint = " (here: root=, download=True)" if not download else ""
        raise OpsinError(f"torch:{where}: cannot be opened from {given.get('root')}: {error}{hint}") from error
    return Torchvision(data, name="/".join(filter(None, (f"torch:{where}", name)))), part


def _find_class(where: str) -> Any:
    try:
        from torchvision import datasets
    except ImportError:
        raise OpsinError(f"torch:{where}: this needs torchvision: pip install opsin[data]") from None
    kinds = {name.lower(): name for name in datasets.__all__ if inspect.isclass(getattr(datasets, name))}
    word = where.lower().replace("-", "").replace("_", "")
    if word not in kinds:
        near = did_you_mean(word, kinds)
        raise OpsinError(f"torchvision has no dataset {where!r}.{near} There are: {', '.join(kinds)}")
    return getattr(datasets, kinds[word])


def _split_names(kind: Any, given: dict[str, Any]) -> tuple[str, ...]:
    """What a class takes for `split`, as its complaint about a wrong one lists it."""
    if "split" not in inspect.signature(kind).parameters:
        return ()
    try:
        kind(**{**given, "split": "?", "download": False} if "download" in given else {**given, "split": "?"})
    except ValueError as error:
        return tuple(natural_order(re.findall(r"'([\w+-]+)'", str(error).partition("Valid values are")[2])))
    except (OSError, RuntimeError) as error:
        raise OpsinError(f"torchvision's {kind.__name__}: {error}") from error
    return ()


def _targets(data: Any, name: str) -> np.ndarray | None:
    """All targets: those the dataset keeps in one of the usual places, or else by reading every sample."""
    values = next(
        (v for key in ("targets", "labels", "_labels", "y") if (v := getattr(data, key, None)) is not None), None
    )
    if values is None:
        samples = next((v for key in ("samples", "_samples") if (v := getattr(data, key, None)) is not None), None)
        values = [row[1] for row in (data if samples is None else samples)]
    try:
        targets = np.asarray(values)
    except ValueError:  # rows of different lengths
        targets = np.empty(0, dtype=object)
    targets = targets[:, 0] if targets.ndim == 2 and hasattr(data, "compat") else targets  # QMNIST keeps eight a digit
    if targets.dtype.kind not in "iu" or targets.shape != (len(data),):
        raise OpsinError(f"{name}: the targets are not classes")
    if (targets < 0).all():
        return None
    if (targets < 0).any():
        raise OpsinError(f"{name}: {(targets < 0).sum()} samples have no label")
    return targets.astype(np.int64)


def _classes(data: Any, targets: np.ndarray, name: str) -> tuple[str, ...]:
    names = getattr(data, "wnids", None) or getattr(data, "classes", None) or getattr(data, "categories", None)
    top = int(targets.max())
    if names is None:
        return tuple(map(str, range(top + 1)))
    if top >= len(names):
        raise OpsinError(f"{name}: label {top} is out of range for {len(names)} classes")
    return tuple(map(str, names))
