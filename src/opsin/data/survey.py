"""What a dataset holds: classes and how even they are, sizes and formats, damage, and pictures that come twice.

Most faults of a trained model are faults of its data, and nearly all of those can be seen before training.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from io import BytesIO
from itertools import islice
from typing import Any, cast

import numpy as np
from PIL import Image

from opsin.data.decode import open_picture
from opsin.data.readers import Head, Reader, Record, StreamReader, label_rows
from opsin.data.samplers import class_counts
from opsin.errors import ImageError

__all__ = ["Found", "Look", "duplicates", "look", "survey"]

HASH_SIDE = 16  # of the difference hash: 256 bits, nearly equal for the same picture in another size or quality
NEAR = 12  # bits of 256 that may differ
COMMON = 200  # pictures that share 16 bits of it, beyond which these bits tell nothing
FLAT = 24  # bits of 256: a hash with so few set belongs to a plain surface, which says nothing


@dataclass(frozen=True, slots=True)
class Look:
    """One sample: its size and format, or why it cannot be read. `content` is a digest of what is stored, `likeness`
    a hash that is nearly equal for pictures that look the same."""

    name: str
    target: Any
    width: int = 0
    height: int = 0
    format: str = ""
    content: bytes = b""
    likeness: int | None = None
    error: str | None = None


@dataclass
class Found:
    """All looks at one split, and what follows from them."""

    title: str
    task: str
    classes: tuple[str, ...] | None
    looks: list[Look] = field(default_factory=list)
    heads: tuple[Head, ...] = ()

    @property
    def readable(self) -> list[Look]:
        return [one for one in self.looks if one.error is None]

    @property
    def errors(self) -> list[Look]:
        return [one for one in self.looks if one.error is not None]

    def counts(self) -> dict[str, int]:
        """Samples per class, in class order; with several labels, or heads, a sample counts for each."""
        if self.heads:
            rows = np.array([one.target for one in self.looks if one.target is not None])
            names = [label for head in self.heads for label in head.labels]
            found = class_counts(label_rows(self.heads, rows), len(names)).tolist()
            numbers = {label for head in self.heads if head.classes is None for label in head.labels}
            return {name: count for name, count in zip(names, found, strict=True) if name not in numbers}
        if self.task not in ("single", "multi") or self.classes is None:
            return {}
        targets = [one.target for one in self.looks if one.target is not None]  # a stream's faults have none
        return dict(zip(self.classes, class_counts(targets, len(self.classes)).tolist(), strict=True))

    def imbalance(self) -> float | None:
        """The largest class over the smallest; infinite when one is empty."""
        counts = self.counts().values()
        return None if not counts else max(counts) / min(counts) if min(counts) else float("inf")

    def sizes(self) -> dict[str, tuple[int, int]]:
        """(width, height) of the smallest, the median and the largest picture by area."""
        sizes = sorted(((one.width, one.height) for one in self.readable), key=lambda size: size[0] * size[1])
        return {"smallest": sizes[0], "median": sizes[len(sizes) // 2], "largest": sizes[-1]} if sizes else {}

    def formats(self) -> Counter[str]:
        return Counter(one.format for one in self.readable)


def survey(
    reader: Reader | StreamReader,
    *,
    title: str = "",
    limit: int | None = None,
    workers: int | None = None,
    progress: Callable[[], object] = lambda: None,
) -> Found:
    """Look at every sample (the first `limit` of them), decoding each picture to its end.

    `progress` is called after each. Threads share the work: decoders let go of the interpreter.
    """
    found = Found(title, reader.task, reader.classes, heads=reader.heads)
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        waiting: Iterable[Callable[[], Look]] = islice(_lookers(reader), limit)
        while chunk := list(islice(waiting, 256)):
            for one in pool.map(lambda looker: looker(), chunk):
                found.looks.append(one)
                progress()
    return found


def _lookers(reader: Reader | StreamReader) -> Iterator[Callable[[], Look]]:
    if isinstance(reader, StreamReader):
        for record in reader.stream():
            yield lambda record=record: look(record)  # type: ignore[misc]
    else:
        for index in range(len(reader)):
            yield lambda index=index: _look_at(reader, index)  # type: ignore[misc]


def _look_at(reader: Reader, index: int) -> Look:
    try:
        return look(reader[index])
    except ImageError as error:
        return Look(reader.name(index), reader.target(index), error=str(error))


def look(record: Record | ImageError) -> Look:
    """Decode one sample and say what it is."""
    if isinstance(record, ImageError):
        return Look(str(record).partition(": ")[0], None, error=str(record))
    image, target, name = record
    try:
        channels = image.shape[2] if isinstance(image, np.ndarray) and image.ndim == 3 else 3
        picture = open_picture(image, channels=channels, name=name)
        pixels, _ = picture.decode(8 if min(picture.height, picture.width) > 512 else 1)
    except ImageError as error:
        return Look(name, target, error=str(error))
    return Look(name, target, picture.width, picture.height, _format(image), _digest(image, pixels), _likeness(pixels))


def _digest(image: Any, pixels: np.ndarray) -> bytes:
    stored = image if isinstance(image, bytes) else str(pixels.shape).encode() + pixels.tobytes()
    return blake2b(stored, digest_size=16).digest()


def _format(image: Any) -> str:
    if isinstance(image, bytes):
        with Image.open(BytesIO(image)) as opened:
            return f"{opened.format} {opened.mode}"
    return f"array of {image.shape[2]}" if isinstance(image, np.ndarray) else f"image {image.mode}"


def _likeness(pixels: np.ndarray) -> int | None:
    """A difference hash: for each of 16 x 16 cells, whether it is brighter than its right neighbour. None for a plain
    surface, and for pictures too small to have so many cells."""
    if min(pixels.shape[:2]) < 2 * HASH_SIDE:
        return None
    grey = pixels[..., 0] if pixels.shape[2] in (1, 2) else pixels[..., :3].mean(-1)
    small = Image.fromarray(grey.astype(np.uint8)).resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    cells = np.asarray(small, dtype=np.int16)
    bits = cells[:, :-1] > cells[:, 1:]
    return int.from_bytes(np.packbits(bits).tobytes()) if bits.sum() > FLAT else None


def duplicates(*splits: Found) -> list[list[tuple[str, Look]]]:
    """Groups of samples that show the same picture, as (split, look); those across two splits first, since they leak.

    The same are files with equal content, and pictures whose hashes differ in at most `NEAR` of 256 bits: another
    size, format or quality of one photo, not another photo of one thing.
    """
    samples = [(found.title, one) for found in splits for one in found.readable]
    owner = list(range(len(samples)))

    def root(i: int) -> int:
        while owner[i] != i:
            owner[i] = i = owner[owner[i]]
        return i

    for i, j in _pairs([one for _, one in samples]):
        owner[root(j)] = root(i)
    groups: dict[int, list[tuple[str, Look]]] = defaultdict(list)
    for i, sample in enumerate(samples):
        groups[root(i)].append(sample)
    several = [group for group in groups.values() if len(group) > 1]
    return sorted(several, key=lambda group: -len({title for title, _ in group}))


def _pairs(looks: list[Look]) -> Iterator[tuple[int, int]]:
    """Pairs of the same picture. Hashes that differ in few bits agree in one of their words at least: only those with
    a word in common are compared, unless it is so common that it tells nothing."""
    first: dict[bytes, int] = {}
    words: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, one in enumerate(looks):
        if (j := first.setdefault(one.content, i)) != i:
            yield j, i
        if one.likeness is None:
            continue
        for place in range(0, HASH_SIDE**2, 16):
            alike = words[place, one.likeness >> place & 0xFFFF]
            if len(alike) < COMMON:
                yield from ((j, i) for j in alike if (cast(int, looks[j].likeness) ^ one.likeness).bit_count() <= NEAR)
                alike.append(i)
