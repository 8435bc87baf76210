"""A folder of pictures: the folder that a picture lies in is its class."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np

from opsin.data.images import IMAGE_SUFFIXES, describe, read_bytes
from opsin.data.labels import natural_order
from opsin.data.readers.base import Reader, Record, Strings
from opsin.data.split import find_split, split_kind
from opsin.errors import OpsinError, did_you_mean, warn_user

__all__ = ["Folder", "existing", "number_folders", "open_folder", "suffix_set", "walk"]


class Folder(Reader):
    """Pictures in a folder and those below it, in natural order.

    The class of a picture is its folder, relative to the top ("dogs/poodle"). Hidden files and folders are left out,
    links are followed. `others` counts the files left out, by suffix.

    Args:
        root: the folder.
        classes: names in index order; by default the folders that hold pictures, in natural order.
        extensions: what counts as a picture; by default `IMAGE_SUFFIXES`.
        labelled: False takes all pictures without a class, wherever they lie. Pictures at the top alone, with no
            folders, have none anyway.

    Raises:
        OpsinError: no such folder, nothing in it, a folder that cannot be read, pictures beside the class folders, or
            a class that is not in `classes`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        classes: Iterable[str] | None = None,
        extensions: Iterable[str] = IMAGE_SUFFIXES,
        labelled: bool = True,
    ) -> None:
        self.root = existing(root)
        suffixes = suffix_set(extensions)
        found, self.others, bare = walk(self.root, suffixes)
        if not found:
            held = ", ".join(f"{n} {suffix or 'without suffix'}" for suffix, n in self.others.most_common(5))
            looked = " ".join(sorted(suffixes))
            raise OpsinError(f"{self}: no pictures in this folder (it holds {held or 'no files'}; looked for {looked})")
        folders = natural_order(found)
        self._names = Strings([f"{here}/{name}" if here else name for here in folders for name in found[here]])
        place = number_folders(self, folders, classes) if labelled else None
        if place is None:
            self.task = "unlabelled"
            return
        if bare and classes is None:
            listed = ", ".join(sorted(bare)[:5]) + (" …" if len(bare) > 5 else "")
            warn_user(f"{self}: {len(bare)} folders hold no pictures, so they are no classes: {listed}")
        self.classes = tuple(place)
        self.targets = np.repeat([place[here] for here in folders], [len(found[here]) for here in folders])

    def __str__(self) -> str:
        return describe(self.root)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Record:
        path = os.path.join(self.root, self._names[index])
        return Record(read_bytes(path), self.target(index), describe(path))

    def name(self, index: int) -> str:
        return describe(os.path.join(self.root, self._names[index]))


def open_folder(
    where: str,
    split: str | None,
    *,
    extensions: Iterable[str] = IMAGE_SUFFIXES,
    labelled: bool = True,
) -> tuple[Reader, str | None]:
    """A folder, or the part of it in a folder such as `train`, whose classes then number those of every split."""
    root = existing(where)
    splits = split_folders(root)
    name, part = find_split(split, splits, owner=describe(root))
    here = os.path.join(root, name) if name else root
    train = next((os.path.join(root, s) for s in splits if split_kind(s) == "train"), here)
    if train == here or not labelled:
        return Folder(here, extensions=extensions, labelled=labelled), part
    # so that a class of which the split has no picture does not shift the numbers of the others
    classes = natural_order(walk(train, suffix_set(extensions))[0])
    return Folder(here, classes=classes, extensions=extensions), part


def number_folders(
    owner: object, folders: Iterable[str], classes: Iterable[str] | None = None
) -> dict[str, int] | None:
    """The class index of each folder that holds pictures; None where all of them lie at the top, "".

    Raises `OpsinError` for pictures at the top beside folders, and for folders that are none of `classes`.
    """
    folders = natural_order(set(folders))
    if folders == [""]:
        return None
    if "" in folders:
        raise OpsinError(
            f"{owner}: pictures lie beside the class folders, so they have no class: move them into one, "
            "or read all pictures without classes (labelled=False)"
        )
    place = {name: i for i, name in enumerate(folders if classes is None else classes)}
    new = [folder for folder in folders if folder not in place]
    if new:
        listed, hint = ", ".join(new[:5]), did_you_mean(new[0], place)
        raise OpsinError(f"{owner}: {len(new)} folders are none of the {len(place)} classes: {listed}.{hint}")
    return place


def existing(where: str | os.PathLike[str]) -> str:
    """The path, if it is there; raises `OpsinError` with the nearest name that is."""
    path = os.path.expanduser(os.fspath(where))
    if os.path.exists(path):
        return path
    parent, base = os.path.split(os.path.normpath(path))
    nearby = os.listdir(parent or ".") if os.path.isdir(parent or ".") else []
    raise OpsinError(f"{describe(path)}: no such file or folder.{did_you_mean(base, nearby)}")


def suffix_set(extensions: Iterable[str]) -> frozenset[str]:
    """Suffixes in lower case, each with its dot."""
    words = [extensions] if isinstance(extensions, str) else extensions
    return frozenset("." + word.lower().lstrip(".") for word in words)


def split_folders(root: str) -> list[str]:
    """The folders that divide a dataset (train, val …): by their names, and folders lie in one of them.

    A class may be called "train" too, but then its folder holds pictures.
    """
    named = [entry for entry in visible(root) if split_kind(entry.name) and entry.is_dir()]
    if not any(below.is_dir() for entry in named for below in visible(entry.path)):
        return []
    return natural_order(entry.name for entry in named)


def visible(folder: str) -> Iterator["os.DirEntry[str]"]:
    """What lies in a folder, hidden names left out."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise OpsinError(f"{describe(folder)}: cannot be searched ({error.strerror})") from error


def walk(root: str, suffixes: frozenset[str]) -> tuple[dict[str, list[str]], Counter[str], list[str]]:
    """Pictures by folder: relative folder -> names in natural order; other files by suffix; folders with neither."""
    found: dict[str, list[str]] = {}
    others: Counter[str] = Counter()
    bare: list[str] = []
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        relative, above = waiting.pop()
        here = os.path.join(root, relative)
        status = os.stat(here)
        identity = (status.st_dev, status.st_ino)
        if identity in above:  # a link back to a folder that it lies in
            continue
        names, below = [], []
        for entry in visible(here):
            suffix = os.path.splitext(entry.name)[1].lower()
            if _is_folder(entry):
                below.append(f"{relative}/{entry.name}" if relative else entry.name)
            elif suffix in suffixes and (entry.is_symlink() or entry.is_file()):  # a pipe would be waited for
                names.append(entry.name)
            else:
                others[suffix] += 1
        waiting += [(name, above | {identity}) for name in below]
        if names:
            found[relative] = natural_order(names)
        elif not below:
            bare.append(relative)
    return found, others, bare


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
