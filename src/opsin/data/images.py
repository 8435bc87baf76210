"""Pictures from anywhere: paths, bytes, URLs, arrays, standard input. Decoding is Pillow's; no torch here.

`open_image` turns whatever it is given into the same thing: an upright 8-bit picture with the channels that the model
takes. `find_images` turns command-line words (files, folders, patterns, URLs, `-`) into a list of things to open.
"""

import glob
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from http.client import HTTPException
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from opsin.errors import ImageError, did_you_mean, warn_user

__all__ = [
    "IMAGE_SUFFIXES",
    "Source",
    "describe",
    "find_images",
    "natural_key",
    "open_image",
    "read_bytes",
    "with_channels",
]

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray

HEIF = frozenset({".heic", ".heif", ".hif"})  # Pillow reads them with a plugin
RAW = frozenset({".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2"})
# what counts as a picture when a folder is searched; a file that is named outright is opened whatever its suffix
IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("avif", "bmp", "dds", "dib", "gif", "ico", "j2k", "jfif", "jp2", "jpe", "jpeg", "jpg", "jpx", "pbm", "pcx"),
        *("pgm", "png", "pnm", "ppm", "qoi", "sgi", "tga", "tif", "tiff", "webp"),
    )
) | (HEIF if find_spec("pillow_heif") else frozenset())
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # of a file, behind "ftyp"
URL_TIMEOUT = 30  # seconds without an answer
_DIGITS = re.compile(r"[0-9]+")
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # what an (H, W, n) array means as a picture


def open_image(source: Source, *, channels: int = 3) -> Image.Image | np.ndarray:
    """Read one picture, upright by its EXIF orientation, with 8 bits a channel.

    Args:
        source: a path, an http(s) URL, encoded bytes, a binary file object, a Pillow image, or an array (H, W) or
            (H, W, C) of uint8, uint16 or floats in 0..1. An animation gives its first frame. A grey picture of 32-bit
            integers counts as one of 8 bits if none of its values is above 255, else of 16.
        channels: what the model takes. 3 gives an RGB image and 1 a grey one ("L"), transparency laid on white in
            both; any other count gives a uint8 array (H, W, channels) and needs a source that has just so many
            (an array, a `.npy` file, a picture with that many bands such as RGBA).

    Raises:
        ImageError: missing, empty, truncated or damaged, not a picture, or the wrong channels; it names the source.
    """
    name = describe(source)
    if not isinstance(source, np.ndarray | Image.Image):
        data = read_bytes(source)
        source = _decode_array(data, name) if data.startswith(b"\x93NUMPY") else _decode(data, name)
    elif isinstance(source, Image.Image):
        source = _upright(source, name)
    if isinstance(source, np.ndarray):
        source = _array_to_eight_bits(source, name)
        if channels not in (1, 3):
            return _checked(source, channels, name)
        source = _array_to_image(source, name)
    return with_channels(source, channels, name=name)


def describe(source: Any) -> str:
    """A printable name for a source: its path, URL or stream name, or what sort of object it is."""
    match source:
        case str() | os.PathLike():
            # names that are no valid UTF-8 arrive as lone surrogates, which no file or terminal accepts
            return os.fspath(source).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        case bytes() | bytearray():
            return f"<{len(source)} bytes>"
        case memoryview():
            return f"<{source.nbytes} bytes>"
        case np.ndarray():
            return f"<array {'x'.join(map(str, source.shape))} {source.dtype}>"
        case Image.Image():
            file = getattr(source, "filename", "")
            return describe(file) if file else f"<{source.mode} image {source.width}x{source.height}>"
        case _:
            file = getattr(source, "name", None)
            return describe(file) if isinstance(file, str) else f"<{type(source).__name__}>"


def with_channels(image: Image.Image, channels: int, *, name: str = "image") -> Image.Image | np.ndarray:
    """The picture with the channels a model takes, as `open_image` returns it; an image that fits already is kept."""
    if image.mode == MODES.get(channels) and channels in (1, 3) and not image.has_transparency_data:
        return image
    image = _image_to_eight_bits(image, name)
    if channels not in (1, 3):
        palette = image.mode == "P"
        bands = image.convert("RGBA" if image.has_transparency_data else "RGB") if palette else image
        return _checked(np.asarray(bands), channels, name)
    try:
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
        return image.convert(MODES[channels])
    except ValueError as error:  # Lab and the like
        raise ImageError(f"{name}: a picture of mode {image.mode} cannot become {MODES[channels]} ({error})") from error


def find_images(inputs: Iterable[str | os.PathLike[str]]) -> list[str | BytesIO]:
    """Everything that command-line words stand for, ready for `open_image`.

    Args:
        inputs: files, folders (searched to the bottom for `IMAGE_SUFFIXES`, hidden names left out), patterns such as
            `photos/**/*.jpg`, http(s) URLs, and `-` for standard input: one encoded picture, or text with one of the
            former per line. The order is kept; inside a folder or pattern it is natural (`img9` before `img10`).

    Raises:
        ImageError: a word that stands for nothing, or nothing given at all.
    """
    found = [image for word in inputs for image in _expand(os.fspath(word), stdin=True)]
    if not found:
        raise ImageError("no pictures given: name files, folders, patterns, URLs, or - for standard input")
    return found


def natural_key(text: str) -> str:
    """A sort key that reads runs of digits as numbers."""
    return _DIGITS.sub(_number_key, text.casefold())


def _number_key(digits: re.Match[str]) -> str:
    number = digits[0].lstrip("0")
    return f"\0{chr(len(number))}{number}"  # the shorter number is the smaller one; below any other character


# --- reading -----------------------------------------------------------------------------------------------------


def _is_url(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def read_bytes(source: Any) -> bytes:
    """The encoded bytes behind a path, URL, bytes or file object (which is left where it stood if it can be).

    Raises `ImageError` with the name of the source when it is missing, empty or cannot be read.
    """
    name = describe(source)
    try:
        if isinstance(source, bytes | bytearray | memoryview):
            data = bytes(source)
        elif isinstance(source, str) and _is_url(source):
            data = _fetch(source)
        elif isinstance(source, str | os.PathLike):
            data = Path(source).read_bytes()
        elif hasattr(source, "read"):
            start = source.tell() if source.seekable() else None
            data = source.read()
            if start is not None:
                source.seek(start)
        else:
            raise ImageError(f"{name}: not a picture; give a path, URL, bytes, file object, Pillow image or array")
    except FileNotFoundError as error:
        raise ImageError(_missing(name)) from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: a folder, not a picture; find_images lists what is in it") from error
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a NUL inside a path
        if isinstance(error, ImageError):
            raise
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        code = f"HTTP {error.code} " if hasattr(error, "code") else ""
        raise ImageError(f"{name}: cannot be read ({code}{reason})") from error
    if not isinstance(data, bytes):
        raise ImageError(f"{name}: opened as text; open it in binary mode")
    if not data:
        raise ImageError(f"{name}: empty (0 bytes)")
    return data


def _fetch(url: str) -> bytes:
    address = quote(url, safe="%/:?#[]@!$&'()*+,;=~")  # a name in another script is fine in a URL once it is quoted
    with urlopen(Request(address, headers={"User-Agent": "opsin"}), timeout=URL_TIMEOUT) as answer:
        data: bytes = answer.read()  # raises when the connection closes before all has come
    return data


def _missing(name: str) -> str:
    if os.path.islink(name):
        return f"{name}: a link to {describe(os.readlink(name))}, which is not there"
    folder, base = os.path.split(name)
    nearby: list[str] = []
    with suppress(OSError):  # only the hint is lost
        nearby = os.listdir(folder or ".")
    return f"{name}: no such file.{did_you_mean(base, nearby, limit=1)}"


def _decode(data: bytes, name: str) -> Image.Image:
    try:
        with Image.open(BytesIO(data)) as image:
            image.load()
    except UnidentifiedImageError as error:
        if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS:
            return _decode_heif(data, name)
        raise ImageError(f"{name}: not a picture in any format that Pillow reads{_raw_hint(name)}") from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ImageError(
            f"{name}: more than {limit} pixels, refused lest it fill the memory (PIL.Image.MAX_IMAGE_PIXELS)"
        ) from error
    except Exception as error:  # format plugins meet damaged bytes with errors of every kind
        raise ImageError(f"{name}: truncated or damaged ({error})") from error
    return _upright(image, name)


def _decode_heif(data: bytes, name: str) -> Image.Image:
    """With the plugin, if it is installed; Pillow knows it from then on."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise ImageError(f"{name}: a HEIC picture, which Pillow reads once you pip install pillow-heif") from error
    if "HEIF" in Image.OPEN:  # it has been asked already
        raise ImageError(f"{name}: a HEIC picture that pillow-heif cannot read")
    register_heif_opener()
    return _decode(data, name)


def _raw_hint(name: str) -> str:
    return "; a camera's raw data has to be developed into a JPEG or TIFF first" if _suffix(name) in RAW else ""


def _decode_array(data: bytes, name: str) -> np.ndarray:
    try:
        return np.load(BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as error:
        raise ImageError(f"{name}: truncated or damaged ({error})") from error


def _upright(image: Image.Image, name: str) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # a Pillow image that was opened but not yet decoded fails here
        raise ImageError(f"{name}: truncated or damaged ({error})") from error


# --- eight bits and channels ----------------------------------------------------------------------------------------


def _image_to_eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Grey pictures of 16 and 32 bits to "L"; the rest is 8-bit in Pillow anyway."""
    if image.mode.startswith("I;16"):
        return Image.fromarray(_array_to_eight_bits(np.asarray(image).astype(np.uint16), name))
    if image.mode == "I":  # older Pillow opens 16-bit PNGs so
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ImageError(f"{name}: 32-bit values from {values.min()} to {values.max()}; rescale to 16 or 8 bits")
        bits = np.uint8 if values.size and values.max() <= 255 else np.uint16
        return Image.fromarray(_array_to_eight_bits(values.astype(bits), name))
    if image.mode == "F":
        return Image.fromarray(_array_to_eight_bits(np.asarray(image), name))
    return image


def _array_to_eight_bits(array: np.ndarray, name: str) -> np.ndarray:
    """uint8 as it is; uint16 and floats in 0..1 scaled to 0..255 and rounded."""
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ImageError(f"{name}: an array of shape {array.shape} is no picture; (H, W) or (H, W, C) is")
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype.kind != "f":
        raise ImageError(f"{name}: values of type {array.dtype}; give uint8, uint16, or floats in 0..1")
    low, high = float(array.min()), float(array.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # NaN fails too
        raise ImageError(f"{name}: floats from {low:g} to {high:g}; they must lie in 0..1 (divide by 255?)")
    return np.rint(np.clip(array.astype(np.float32), 0, 1) * 255).astype(np.uint8)


def _array_to_image(array: np.ndarray, name: str) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim == 3 and array.shape[2] not in MODES:
        hint = " It looks like (C, H, W): use array.transpose(1, 2, 0)." if array.shape[0] in MODES else ""
        raise ImageError(f"{name}: an array (H, W, C) of {array.shape[2]} channels is no picture.{hint}")
    return Image.fromarray(np.ascontiguousarray(array))


def _checked(array: np.ndarray, channels: int, name: str) -> np.ndarray:
    array = array if array.ndim == 3 else array[..., None]
    if array.shape[2] != channels:
        raise ImageError(f"{name}: {array.shape[2]} channels, but the model takes {channels}")
    return array


# --- finding --------------------------------------------------------------------------------------------------------


def _expand(word: str, *, stdin: bool) -> Iterator[str | BytesIO]:
    if word == "-" and stdin:
        yield from _from_stdin()
    elif _is_url(word) or os.path.isfile(word):
        yield word
    elif os.path.isdir(word):
        yield from _search(word)
    elif os.path.exists(word):  # a pipe, as in `predict <(…)`
        yield word
    elif glob.has_magic(word):
        matches = sorted(glob.glob(word, recursive=True), key=natural_key)
        if not matches:
            raise ImageError(f"{describe(word)}: nothing matches this pattern")
        for match in matches:
            # `**` names folders as well as what lies in them; only the files count, or each would come twice
            yield from () if "**" in word and os.path.isdir(match) else _expand(match, stdin=False)
    else:
        raise ImageError(_missing(describe(word)))


def _search(folder: str) -> list[str]:
    def stop(error: OSError) -> None:
        raise ImageError(f"{describe(error.filename)}: cannot be searched ({error.strerror})") from error

    found: list[str] = []
    unread: list[str] = []
    seen: set[str] = set()
    for here, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = [] if real in seen else [f for f in folders if not f.startswith(".")]  # links may form a loop
        if real in seen:
            continue
        seen.add(real)
        paths = [os.path.join(here, f) for f in files if not f.startswith(".")]
        found += [path for path in paths if _suffix(path) in IMAGE_SUFFIXES]
        unread += [path for path in paths if _suffix(path) in (HEIF | RAW) - IMAGE_SUFFIXES]
    hint = _unread_hint(sorted(unread, key=natural_key))
    if not found:
        looked = hint or f"looked for {' '.join(sorted(IMAGE_SUFFIXES))}"
        raise ImageError(f"{describe(folder)}: no pictures in this folder ({looked})")
    if hint:
        warn_user(f"{describe(folder)}: {hint}")
    return sorted(found, key=natural_key)


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _unread_hint(paths: list[str]) -> str:
    """What is left out of a folder although it is a picture, and what would bring it in; nothing for nothing."""
    if not paths:
        return ""
    listed = ", ".join(map(describe, paths[:5])) + (" …" if len(paths) > 5 else "")
    ways = ["pip install pillow-heif"] if any(_suffix(path) in HEIF for path in paths) else []
    ways += ["develop the raw ones into JPEG or TIFF"] if any(_suffix(path) in RAW for path in paths) else []
    return f"{len(paths)} left out, which Pillow does not read: {listed}; to have them, {' and '.join(ways)}"


def _from_stdin() -> Iterator[str | BytesIO]:
    data = sys.stdin.buffer.read()
    if not data.strip():
        raise ImageError("standard input is empty: pipe in a picture, or a list of paths, one per line")
    text = None
    try:
        Image.open(BytesIO(data)).close()  # first, since a picture can be text (portable graymaps)
    except Exception:  # no picture, or a damaged one, which is reported by name when it is opened
        with suppress(UnicodeDecodeError):
            text = data.decode("utf-8")
    if text is None or "\0" in text:
        stream = BytesIO(data)
        stream.name = "stdin"  # what describe() shows
        yield stream
    else:
        for line in filter(None, map(str.strip, text.splitlines())):
            yield from _expand(line, stdin=False)
