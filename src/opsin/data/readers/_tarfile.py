"""Where the files in a tar lie, from its headers: the formats ustar, pax and GNU (POSIX.1-2017, "pax"; GNU tar manual).

The standard library reads the same, several times slower, and takes a header that is cut or damaged for the end.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from opsin.errors import ImageError, OpsinError

__all__ = ["Member", "read_member", "tar_members"]

BLOCK = 512  # bytes; what a tar file is made of
END = bytes(BLOCK)
FILES, WITHOUT_CONTENT, SPARSE, LONG_NAME, PAX = (b"0", b"\0", b"7"), (*b"123456",), b"S", b"L", b"x"
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd")


class Member(NamedTuple):
    """A file in a tar: where its bytes begin and how many they are."""

    name: str
    offset: int
    size: int


def tar_members(
    file: BinaryIO, name: str, *, nested: bool = False, start: int = 0, size: int | None = None
) -> Iterator[Member]:
    """The files in a tar by reading its headers; no folders, links or devices.

    Args:
        file: opened; only its descriptor is used.
        name: of the tar, for messages.
        nested: give the files of tars inside of it in their place, in a folder of that name.
        start, size: where in the file the tar lies, in bytes; by default all of it.

    Raises:
        OpsinError: cut short, damaged, compressed or no tar.
    """
    fd = file.fileno()
    size = os.fstat(fd).st_size - start if size is None else size
    position, given = 0, dict[bytes, bytes]()  # what headers of their own say of the next file
    while (header := os.pread(fd, min(BLOCK, max(size - position, 0)), start + position)) != END:
        place = f"{name}: cut short or damaged at byte {position} of {size}"
        if position == 0 and header.startswith(COMPRESSED):
            raise OpsinError(f"{name}: compressed; pictures are found in plain tars alone, so unpack it to one")
        if len(header) < BLOCK:
            raise OpsinError(f"{place}: there is no end mark")
        if not _is_sound(header):
            raise OpsinError(f"{place}: that is no header" if position else f"{name}: no tar")
        kind, begin = header[156:157], position + BLOCK
        length = int(given[b"size"]) if b"size" in given else _number(header[124:136])
        length = 0 if kind[0] in WITHOUT_CONTENT else length
        path = given.get(b"path") or _path(header)
        text = path.decode("utf-8", "surrogateescape")
        if begin + length > size:
            raise OpsinError(f"{place}: {text} ends at {begin + length}")
        if kind == SPARSE or any(key.startswith(b"GNU.sparse") for key in given):
            raise OpsinError(f"{name}: {text} is stored with holes; pack the tar anew without --sparse")
        if kind == LONG_NAME:
            given[b"path"] = os.pread(fd, length, start + begin).rstrip(b"\0")
        elif kind == PAX:
            given = _records(os.pread(fd, length, start + begin), place)
        elif nested and kind in FILES and text.endswith(".tar"):
            inner = tar_members(file, f"{name}/{text}", nested=True, start=start + begin, size=length)
            yield from (found._replace(name=f"{text[:-4]}/{found.name}") for found in inner)
        elif kind in FILES and not text.endswith("/"):
            yield Member(text, start + begin, length)
        if kind not in (LONG_NAME, PAX, b"K", b"g"):
            given = {}
        position = begin + -(-length // BLOCK) * BLOCK


def read_member(file: BinaryIO, offset: int, size: int, name: str) -> bytes:
    """The bytes of a file in an opened tar; raises `ImageError` where they are none or too few."""
    data = os.pread(file.fileno(), size, offset)
    if len(data) < size:
        raise ImageError(f"{name}: cut short ({len(data)} of {size} bytes)")
    if not data:
        raise ImageError(f"{name}: empty (0 bytes)")
    return data


def _is_sound(header: bytes) -> bool:
    """Whether the sum of a header's bytes, its own field read as spaces, is what it says, and its size is a number."""
    try:
        _number(header[124:136])
        return sum(header) - sum(header[148:156]) + 8 * ord(" ") == _number(header[148:156])
    except ValueError:
        return False


def _number(field: bytes) -> int:
    """Octal digits, or, with the first bit set, the number itself."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") & ~(0x80 << 8 * (len(field) - 1))
    return int(field.split(b"\0")[0].strip() or b"0", 8)


def _path(header: bytes) -> bytes:
    path = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + path if prefix else path


def _records(data: bytes, place: str) -> dict[bytes, bytes]:
    """The lines `length key=value` of a pax header."""
    records = {}
    try:
        while data:
            length = int(data[: data.index(b" ")])
            key, _, value = data[data.index(b" ") + 1 : length - 1].partition(b"=")
            records[key], data = value, data[length:] if length > 0 else b""
    except ValueError as error:
        raise OpsinError(f"{place}: a header that makes no sense") from error
    return records
