"""Pictures inside tar files, read where they lie: nothing is unpacked."""

import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from opsin.data.images import IMAGE_SUFFIXES, describe
from opsin.data.labels import natural_order
from opsin.data.readers.base import Reader, Record, Strings
from opsin.data.readers.folder import existing, number_folders, suffix_set, visible
from opsin.data.split import find_split, split_kind
from opsin.errors import ImageError, OpsinError, warn_user

__all__ = ["Tar", "by_split", "open_tar", "read_member", "tar_members", "tars_by_split"]

BLOCK = 512  # bytes; what a tar file is made of


class Member(NamedTuple):
    """A file in a tar: where its bytes begin and how many they are."""

    name: str
    offset: int
    size: int


class Tar(Reader):
    """Pictures in tar files, in the order in which they lie there.

    The class of a picture is its folder inside the tar, less what all folders have in common, or the name of the tar
    where it lies in none. Tars inside of tars count as folders. The headers are read once, here; after that a picture
    is one read. Members outside of the tar's own folder (absolute names, "..") are left out, with a warning.

    Args:
        paths: tar files, not compressed.
        inside: a folder in them: only the pictures below it.
        classes, extensions, labelled: as for `Folder`.

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
    ) -> None:
        self.paths = tuple(paths)
        suffixes = suffix_set(extensions)
        which, folders, members = _index(self.paths, suffixes)
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
    inside: dict[str, str] = {}
    if os.path.isdir(root):
        groups = tars_by_split(root)
    else:
        groups = {"": [root]}
        inside = {name: name for name in _splits_inside(root, suffix_set(extensions))}
    name, part = find_split(split, inside or [g for g in groups if g], owner=describe(root))
    tars = groups[name] if name in groups else [tar for group in groups.values() for tar in group]
    train = next((s for s in inside or groups if split_kind(s) == "train"), name)
    if train != name and labelled:  # the classes of every split are numbered as those of the training split
        options["classes"] = Tar(groups.get(str(train), tars), inside=inside.get(str(train)), **options).classes
    return Tar(tars, inside=inside.get(str(name)), **options), part


def tar_members(file: BinaryIO, name: str, *, nested: bool = False, start: int = 0) -> Iterator[Member]:
    """The files in a tar, by reading its headers; raises `OpsinError` where it is cut short or damaged.

    With `nested` the files of tars inside of it, which begin at byte `start` of the outermost, take their place.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    compressed = file.read(4).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd"))
    file.seek(0)
    if compressed:
        raise OpsinError(f"{name}: compressed; pictures are found in plain tars alone, so unpack it to one")
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # or they would all be kept
                end = member.offset_data + member.size
                if member.isreg() and end > size:
                    raise OpsinError(f"{name}: cut short within {member.name} ({size} bytes; it ends at {end})")
                if nested and member.isreg() and member.name.endswith(".tar"):
                    inner = tar.extractfile(member)
                    prefix, begin = member.name[:-4], start + member.offset_data
                    for found in tar_members(inner, f"{name}/{member.name}", nested=True, start=begin):  # type: ignore[arg-type]
                        yield found._replace(name=f"{prefix}/{found.name}")
                elif member.isreg() and not member.issparse():
                    yield Member(member.name, start + member.offset_data, member.size)
            file.seek(tar.offset)
            if file.read(BLOCK) != bytes(BLOCK):  # tarfile takes a header that is cut or damaged for the end
                raise OpsinError(f"{name}: cut short or damaged at byte {tar.offset} of {size}: there is no end mark")
    except (tarfile.TarError, OSError) as error:
        raise OpsinError(f"{name}: cut short, damaged or no tar ({error})") from error


def read_member(file: BinaryIO, offset: int, size: int, name: str) -> bytes:
    """The bytes of a file in an opened tar; raises `ImageError` where they are none or too few."""
    data = os.pread(file.fileno(), size, offset)
    if len(data) < size:
        raise ImageError(f"{name}: cut short ({len(data)} of {size} bytes)")
    if not data:
        raise ImageError(f"{name}: empty (0 bytes)")
    return data


def _index(paths: tuple[str, ...], suffixes: frozenset[str]) -> tuple[list[int], list[str], list[Member]]:
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


def _splits_inside(path: str, suffixes: frozenset[str]) -> list[str]:
    folders = set(_index((path,), suffixes)[1])
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
