"""WebDataset shards: tar files in which the files of a sample follow one another (`0001.jpg`, `0001.cls`)."""

import glob
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from opsin.data.images import IMAGE_SUFFIXES, describe
from opsin.data.labels import ClassMap, natural_order
from opsin.data.readers._tarfile import Member, read_member, tar_members
from opsin.data.readers.base import Record, StreamReader, Target, Task
from opsin.data.readers.folder import existing
from opsin.data.readers.tar import by_split, tars_by_split
from opsin.data.split import find_split
from opsin.errors import ImageError, OpsinError

__all__ = ["Shards", "open_shards"]

INFO = ("_info.json", "info.json")  # what lies beside shards: samples and shards of each split
Sample = tuple[str, dict[str, Member]]  # key, and its files by extension


class Shards(StreamReader):
    """The samples of tar shards in the order in which they lie there, or shuffled.

    Whole shards are dealt out to the parts. What is left when they do not come out even, all of them if there are
    fewer shards than parts, is read by every part, which takes every so many-th sample. A shard that is cut short
    or damaged gives its samples up to there, then one `ImageError` that names it.

    Args:
        paths: the shards.
        image: extensions of the picture, the first that a sample has; by default any of a picture.
        target: the extension of the label, and after a dot the key in it where that is a JSON object ("json.label").
            By default `cls`, else `json` with `label`, else there is none. A whole number is a class, a list of them
            several labels, a fraction regression, text a class that `class_map` numbers.
        class_map: names of the classes.
        length: samples an epoch, where it is known.
        buffer: samples among which a shuffled stream draws the next; the order of the shards is shuffled besides.

    Raises:
        OpsinError: a shard that cannot be opened, or whose first sample is no picture with such a label.
    """

    def __init__(
        self,
        paths: Sequence[str],
        *,
        image: str | Sequence[str] | None = None,
        target: str | None = None,
        class_map: ClassMap | None = None,
        length: int | None = None,
        buffer: int = 4096,
    ) -> None:
        self.paths, self.class_map, self.length, self.buffer = tuple(paths), class_map, length, buffer
        words = sorted(IMAGE_SUFFIXES) if image is None else image.split(";") if isinstance(image, str) else image
        self.image = tuple(word.lower().lstrip(".") for word in words)
        if not self.paths:
            raise OpsinError("no shards given")
        if buffer < 1:
            raise OpsinError(f"the buffer holds at least 1 sample, not {buffer}")
        try:
            with open(existing(self.paths[0]), "rb") as file:
                self.target, self.task = self._look(file, target)
        except OSError as error:
            raise OpsinError(f"{describe(self.paths[0])}: cannot be read ({error.strerror})") from error
        if class_map is not None and self.task in ("single", "multi"):
            self.classes = class_map.names

    def __str__(self) -> str:
        return describe(self.paths[0]) + (f" and {len(self.paths) - 1} more" if len(self.paths) > 1 else "")

    def count(self) -> int:
        """The number of samples that can be read, from the headers of all shards."""
        return sum(isinstance(sample, tuple) for path in self.paths for sample in self._of_shard(path, 0, 1))

    def stream(
        self, *, epoch: int = 0, part: int = 0, parts: int = 1, shuffle: bool = False, seed: int = 0
    ) -> Iterator[Record | ImageError]:
        paths = list(self.paths)
        if shuffle:
            np.random.default_rng((seed, epoch)).shuffle(paths)  # the same in every part
        even = len(paths) - len(paths) % parts
        shares = [(path, 0, 1) for path in paths[part:even:parts]] + [(path, part, parts) for path in paths[even:]]
        samples: Iterator[Any] = (sample for share in shares for sample in self._of_shard(*share))
        if shuffle:
            samples = _shuffled(samples, self.buffer, np.random.default_rng((seed, epoch, part)))
        for sample in samples:
            yield sample if isinstance(sample, ImageError) else self._record(*sample)

    def _look(self, file: BinaryIO, target: str | None) -> tuple[str | None, Task]:
        """Where labels are and what they are, from the first sample of a shard."""
        key, files = next(_samples(file, describe(self.paths[0])), ("", {}))
        if not files:
            raise OpsinError(f"{self}: the shard is empty")
        if not any(extension in files for extension in self.image):
            raise OpsinError(f"{self}: sample {key} has no picture ({' '.join(self.image)}), but {' '.join(files)}")
        target = target or _usual_target(file, files)
        if target is None:
            return None, "unlabelled"
        name = f"{describe(self.paths[0])}/{key}"
        value = _value(file, files, target, name)
        self.task = _task_of(value, name)
        if self.class_map is None:
            self._as_target(value, name)  # text is refused here, once
        return target, self.task

    def _of_shard(self, path: str, part: int, parts: int) -> Iterator[tuple[str, Sample] | ImageError]:
        """Every `parts`-th sample of a shard, unread; the error that ends it is the first part's to tell."""
        try:
            with open(path, "rb") as file:
                for number, sample in enumerate(_samples(file, describe(path))):
                    if number % parts == part:
                        yield path, sample
        except (OSError, OpsinError) as error:
            if part == 0:
                reason = str(error) if isinstance(error, OpsinError) else f"{describe(path)}: {error.strerror}"
                yield ImageError(reason)

    def _record(self, path: str, sample: Sample) -> Record | ImageError:
        key, files = sample
        name = f"{describe(path)}/{key}"
        try:
            with open(path, "rb", buffering=0) as file:
                extension = next((e for e in self.image if e in files), None)
                if extension is None:
                    raise ImageError(f"{name}: no picture among {' '.join(files)}")
                image = read_member(file, files[extension].offset, files[extension].size, f"{name}.{extension}")
                target = None
                if self.target is not None:
                    target = self._as_target(_value(file, files, self.target, name), name)
        except ImageError as error:
            return error
        except (OSError, OpsinError) as error:
            return ImageError(str(error))
        return Record(image, target, f"{name}.{extension}")

    def _as_target(self, value: Any, name: str) -> Target:
        try:
            if self.task == "regression":
                return tuple(map(float, value)) if isinstance(value, list) else float(value)
            if self.task == "multi":
                return tuple(sorted({self._class(label, name) for label in value}))
        except (TypeError, ValueError) as error:
            if isinstance(error, ImageError):
                raise
            raise ImageError(
                f"{name}: label {value!r} is not of the kind that the first one is ({self.task})"
            ) from error
        return self._class(value, name)

    def _class(self, label: Any, name: str) -> int:
        if not isinstance(label, int | str):
            raise ImageError(f"{name}: label {label!r} is no class")
        if self.class_map is not None:
            try:
                return self.class_map.number(label)
            except OpsinError as error:
                raise ImageError(f"{name}: {error}") from None
        if isinstance(label, str):
            raise ImageError(f"{name}: label {label!r} is text, and there is no class_map to number it")
        if label < 0:
            raise ImageError(f"{name}: label {label} is out of range: classes count from 0")
        return label


def open_shards(
    where: str,
    split: str | None,
    *,
    image: str | Sequence[str] | None = None,
    target: str | None = None,
    class_map: ClassMap | None = None,
    length: int | None = None,
    buffer: int = 4096,
) -> tuple[StreamReader, str | None]:
    """Shards by a folder, a pattern (`shards/train-{0000..0099}.tar`, `shards/*.tar`), or several of them with `::`.

    Splits are told by `_info.json` in a folder (lengths as well), by folders of shards, or by the names of shards, such
    as `imagenet1k-train-0000.tar`. None can be cut out: where there are training shards alone, that is all of them.
    """
    options: dict[str, Any] = {"image": image, "target": target, "class_map": class_map, "buffer": buffer}
    folder = os.path.expanduser(where)
    info = _info(folder)
    if info:
        groups = {name: paths for name, (paths, _) in info.items()}
    else:
        groups = tars_by_split(folder) if os.path.isdir(folder) else by_split(_expand(where))
    name, part = find_split(split, [g for g in groups if g], owner=where)
    known = info[name][1] if info and name else None
    paths = groups[name] if name else next(iter(groups.values()))
    return Shards(paths, length=known if length is None else length, **options), part


# --- finding shards -------------------------------------------------------------------------------------------------


def _expand(where: str) -> list[str]:
    try:
        from webdataset.shardlists import expand_urls
    except ImportError:
        raise OpsinError("shards need the library webdataset: pip install opsin[data]") from None
    paths: list[str] = []
    for word in map(os.path.expanduser, expand_urls(where)):
        found = (
            natural_order(glob.glob(word)) if glob.has_magic(word) and not os.path.exists(word) else [existing(word)]
        )
        if not found:
            raise OpsinError(f"{word}: nothing matches this pattern")
        paths += found
    return paths


def _info(folder: str) -> dict[str, tuple[list[str], int | None]]:
    """Split -> its shards and number of samples, as the file beside the shards tells."""
    path = next((p for name in INFO if os.path.isfile(p := os.path.join(folder, name))), None)
    if path is None:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            splits = json.load(file)["splits"]
        found = {}
        for name, entry in splits.items():
            lengths = entry.get("shard_lengths")
            count = entry.get("num_samples") or (sum(lengths) if lengths else None)
            found[name] = ([os.path.join(folder, f) for f in entry["filenames"]], count)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise OpsinError(f"{describe(path)}: not the description of shards ({error!r})") from error
    return found


# --- inside a shard -------------------------------------------------------------------------------------------------


def _samples(file: BinaryIO, name: str) -> Iterator[Sample]:
    """Runs of files with the same name up to the first dot."""
    key, files = None, dict[str, Member]()
    for member in tar_members(file, name):
        folder, _, base = member.name.rpartition("/")
        if base.startswith((".", "__")) or "." not in base:
            continue
        stem, _, extension = base.partition(".")
        new = f"{folder}/{stem}" if folder else stem
        if new != key and files:
            yield str(key), files
            files = {}
        key = new
        files[extension.lower()] = member
    if files:
        yield str(key), files


def _usual_target(file: BinaryIO, files: dict[str, Member]) -> str | None:
    if "cls" in files:
        return "cls"
    if "json" in files:
        content = json.loads(os.pread(file.fileno(), files["json"].size, files["json"].offset))
        return "json.label" if isinstance(content, dict) and "label" in content else None
    return None


def _value(file: BinaryIO, files: dict[str, Member], target: str, name: str) -> Any:
    """What stands in the label file of a sample: JSON, or else text."""
    extension, _, key = target.partition(".")
    if extension not in files:
        raise ImageError(f"{name}: no label .{extension} among {' '.join(files)}")
    member = files[extension]
    text = os.pread(file.fileno(), member.size, member.offset).decode("utf-8", "replace").strip()
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    for word in key.split(".") if key else ():
        if not isinstance(value, dict) or word not in value:
            raise ImageError(f"{name}: no {word!r} in .{extension}, which holds {text[:80]}")
        value = value[word]
    return value


def _task_of(value: Any, name: str) -> Task:
    many = isinstance(value, list)
    first = value[0] if many and value else 0 if many else value
    if isinstance(first, float):
        return "regression"
    if isinstance(first, int | str) and not isinstance(first, bool):
        return "multi" if many else "single"
    raise OpsinError(f"{name}: {value!r} is no label; target= names its extension and key, such as json.label")


def _shuffled(samples: Iterator[Any], size: int, rng: np.random.Generator) -> Iterator[Any]:
    held: list[Any] = []
    for sample in samples:
        held.append(sample)
        if len(held) > size:
            at = int(rng.integers(len(held)))
            held[at], held[-1] = held[-1], held[at]
            yield held.pop()
    rng.shuffle(held)
    yield from held
