"""Pictures inside tar files, read where they lie: nothing is unpacked."""

import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from opsin.data.images import IMAGE_SUFFIXES, describe
from opsin.data.labels import natural_order
from opsin.data.readers._tarfile import Member, read_member, tar_members
from opsin.data.readers.base import Reader, Record, Strings
from opsin.data.readers.folder import existing, number_folders, suffix_set, visible
from opsin.data.split import find_split, split_kind
from opsin.errors import ImageError, OpsinError, warn_user

__all__ = ["Tar", "by_split", "open_tar", "tars_by_split"]

Index = tuple[list[int], list[str], list[Member]]


class Tar(Reader):
    """Pictures in tar files, in the order in which they lie there.

    The class of a picture is its folder inside the tar, less what all folders have in common, or the name of the tar
    where it lies in none. Tars inside of tars count as folders. The headers are read once, here; after that a picture
    is one read. Members outside of the tar's own folder (absolute names, "..") are left out, with a warning.

    Args:
        paths: tar files, not compressed.
        inside: a folder in them: only the pictures below it.
        classes, extensions, labelled: as for `Folder`.
        index: what `read_index` found in these tars, where that is known.

    Raises:
        OpsinError: a tar that is cut short, compressed or none at all; no pictures; and as `Folder`.
    """

    def __init__(
        self,
        paths: Iterable[str],
        *,
        inside: str | None = None,
        classes: Iterable[str] | None = None,
        extensions: Iterable[str] = IMAGE_SUFFIXES,
        labelled: bool = True,
        index: Index | None = None,
    ) -> None:
        self.paths = tuple(paths)
        suffixes = suffix_set(extensions)
        which, folders, members = index or read_index(self.paths, suffixes)
        if inside is not None:
            kept = [i for i, folder in enumerate(folders) if f"{folder}/".startswith(f"{inside}/")]
            which, members = [which[i] for i in kept], [members[i] for i in kept]
            folders = [folders[i][len(inside) + 1 :] for i in kept]
        if not members:
            raise OpsinError(f"{self}: no pictures in this tar (looked for {' '.join(sorted(suffixes))})")
        self._which = np.array(which, dtype=np.int32)
        self._offsets, self._sizes = (np.array([m[i] for m in members], dtype=np.int64) for i in (1, 2))
        self._names = Strings([member.name for member in members])
        place = number_folders(self, folders, classes) if labelled else None
        if place is None:
            self.task = "unlabelled"
        else:
            self.classes = tuple(place)
            self.targets = np.array([place[folder] for folder in folders], dtype=np.int64)

    def __str__(self) -> str:
        return describe(self.paths[0] if len(self.paths) == 1 else os.path.dirname(self.paths[0]))

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Record:
        name, path = self.name(index), self.paths[self._which[index]]
        # opened anew each time, which costs little beside decoding and leaves nothing to share between processes
        try:
            with open(path, "rb", buffering=0) as file:
                data = read_member(file, int(self._offsets[index]), int(self._sizes[index]), name)
        except OSError as error:
            raise ImageError(f"{name}: cannot be read ({error.strerror})") from error
        return Record(data, self.target(index), name)

    def name(self, index: int) -> str:
        return describe(f"{self.paths[self._which[index]]}/{self._names[index]}")


def open_tar(
    where: str, split: str | None, *, extensions: Iterable[str] = IMAGE_SUFFIXES, labelled: bool = True
) -> tuple[Reader, str | None]:
    """A tar, or a folder of tars; splits are folders of tars, tars called so (train-00.tar), or folders in one."""
    root = existing(where)
    options: dict[str, Any] = {"extensions": extensions, "labelled": labelled}
    inside: list[str] = []
    if os.path.isdir(root):
        groups = tars_by_split(root)
    else:
        groups = {"": [root]}
        options["index"] = index = read_index((root,), suffix_set(extensions))
        inside = _splits_inside(set(index[1]))
    name, part = find_split(split, inside or [group for group in groups if group], owner=describe(root))
    train = next((s for s in inside or groups if split_kind(s) == "train"), name)

    def read(split: str | None, **more: Any) -> Tar:
        return Tar(groups.get(split or "", [root]), inside=split if inside else None, **options, **more)

    if train == name or not labelled:
        return read(name), part
    return read(name, classes=read(train).classes), part  # every split's classes numbered as the training split's


def read_index(paths: tuple[str, ...], suffixes: frozenset[str]) -> Index:
    """For every picture the number of its tar, its folder, and where it lies."""
    which, folders, members = [], [], []
    outside: list[str] = []
    for number, path in enumerate(paths):
        for member in _members_of(path):
            name = os.path.normpath(member.name)
            if os.path.splitext(name)[1].lower() not in suffixes:
                continue
            if name.startswith(("/", "../")):
                outside.append(f"{describe(path)}: {member.name}")
            elif not (name.startswith(".") or "/." in name):
                which.append(number)
                folders.append(os.path.dirname(name))
                members.append(member)
    if outside:
        warn_user(f"{len(outside)} pictures left out, whose names lead out of the tar, first {outside[0]}")
    top = _common(set(folders))
    folders = [folder[len(top) :].lstrip("/") for folder in folders]
    if len(paths) > 1:
        stems = [os.path.splitext(os.path.basename(path))[0] for path in paths]
        folders = [folder or stems[number] for number, folder in zip(which, folders, strict=True)]
    return which, folders, members


def _members_of(path: str) -> Iterator[Member]:
    try:
        with open(path, "rb") as file:
            yield from tar_members(file, describe(path), nested=True)
    except OSError as error:
        raise OpsinError(f"{describe(path)}: cannot be read ({error.strerror})") from error


def _common(folders: set[str]) -> str:
    """What all folders lie in, as far as it says nothing of class or split."""
    if not all(folders) or not folders:
        return ""
    common = os.path.commonpath(folders)
    parts = (os.path.dirname(common) if common in folders else common).split("/")
    return "/".join(parts[: next((i for i, part in enumerate(parts) if split_kind(part)), len(parts))])


def _splits_inside(folders: set[str]) -> list[str]:
    if not any(split_kind(folder.split("/")[0]) and "/" in folder for folder in folders):
        return []
    return natural_order({top for folder in folders if split_kind(top := folder.split("/")[0])})


def tars_by_split(root: str) -> dict[str, list[str]]:
    """The tars of each split; all under "" where they are not divided."""

    def tars(folder: str) -> list[str]:
        return natural_order(e.path for e in visible(folder) if e.name.lower().endswith(".tar") and e.is_file())

    below = {e.name: found for e in visible(root) if split_kind(e.name) and e.is_dir() and (found := tars(e.path))}
    here = tars(root)
    if below:
        return {name: below[name] for name in natural_order(below)}
    if not here:
        raise OpsinError(f"{describe(root)}: no tars in this folder")
    return by_split(here)


def by_split(paths: Iterable[str]) -> dict[str, list[str]]:
    """Tars grouped by the word in their names that means a split; all under "" unless each has one."""
    paths = list(paths)
    groups: dict[str, list[str]] = {}
    for path in paths:
        words = re.split(r"[^A-Za-z]+", os.path.basename(path).rpartition(".")[0])
        groups.setdefault(next(filter(split_kind, words), ""), []).append(path)
    return {"": paths} if "" in groups else groups
