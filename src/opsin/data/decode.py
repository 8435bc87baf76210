"""Encoded pictures to arrays, decoding no more than is needed.

`open_picture` reads the header. `Picture.decode` gives the pixels: at full size the very ones of `open_image`, or those
of a half, a quarter or an eighth of the size, which a JPEG decoder computes without the full picture. JPEG goes through
libjpeg-turbo by way of simplejpeg; whatever that does not take as it stands, Pillow reads.
"""

import math
from dataclasses import dataclass
from io import BytesIO
from struct import Struct

import numpy as np
import simplejpeg
from PIL import Image

from opsin.data.images import describe, open_image

__all__ = ["REDUCTIONS", "Picture", "decode", "open_picture"]

REDUCTIONS = (8, 4, 2)  # libjpeg-turbo has fast code for these; its other scales take longer than the full size
ORIENTATION = 0x0112  # EXIF: how the stored picture has to be turned
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
FRAMES, SCAN = (0xC0, 0xC1, 0xC2), 0xDA  # markers of a JPEG: the size, the coded pixels
PLAIN = (0xC4, 0xDB, 0xDD, 0xE0, 0xFE)  # tables, restarts, JFIF, comments
FRAME = Struct(">BHHB")  # bits, height, width, components
ASIDE = (5, 6, 7, 8)  # those that swap height and width


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture whose size, upright, is known, and whose pixels are decoded when they are asked for."""

    height: int
    width: int
    pixels: np.ndarray | None = None  # what is decoded already
    jpeg: bytes = b""
    grey: bool = False  # in the file
    orientation: int = 1
    channels: int = 3
    name: str = ""

    def reduces(self, reduce: int) -> bool:
        """Whether `decode(reduce)` saves time and its pixels lie on the full picture's grid from the upper left."""
        if self.pixels is not None:
            return False
        # where the last row or column is a part of a pixel, turning would make it the first
        return self.orientation not in TURNS or not (self.height % reduce or self.width % reduce)

    def decode(self, reduce: int = 1) -> tuple[np.ndarray, int]:
        """The pixels, uint8 (H, W, C), and the reduction they have.

        With a `reduce` of 2, 4 or 8 a JPEG comes as (ceil(height / reduce), ceil(width / reduce)), a pixel for each
        square of the full picture's. Anything else, a JPEG with flaws too, comes in full, with a reduction of 1.

        Raises:
            ImageError: truncated or damaged, as `open_image` does.
        """
        if self.pixels is not None:
            return self.pixels, 1
        stored = (self.width, self.height) if self.orientation in ASIDE else (self.height, self.width)
        height, width = (-(-side // reduce) for side in stored)
        colorspace = "GRAY" if self.grey and self.channels == 1 else "RGB"
        try:
            pixels = simplejpeg.decode_jpeg(
                self.jpeg, colorspace, fastdct=False, fastupsample=False, min_height=height, min_width=width
            )
        except ValueError:  # libjpeg warned of something: Pillow decides whether it matters, and says what it is
            return _by_pillow(self.jpeg, self.channels, self.name), 1
        if pixels.shape[:2] != (height, width):
            return _by_pillow(self.jpeg, self.channels, self.name), 1
        return self._finished(pixels), reduce

    def _finished(self, pixels: np.ndarray) -> np.ndarray:
        grey = self.channels == 1 and not self.grey
        if not grey and self.orientation not in TURNS:
            return pixels
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        image = image.convert("L") if grey else image
        if self.orientation in TURNS:
            image = image.transpose(TURNS[self.orientation])
        return _array(image)


def open_picture(source: bytes | Image.Image | np.ndarray, *, channels: int = 3, name: str = "") -> Picture:
    """Read as much of a picture as tells its size.

    Args:
        source: encoded bytes, a Pillow image or an array, as `open_image` takes them.
        channels: those of the pixels, as for `open_image`.
        name: what errors call it; by default what it looks like.

    Raises:
        ImageError: not a picture, damaged, more pixels than Pillow's limit, or the wrong channels.
    """
    if isinstance(source, bytes) and channels in (1, 3) and simplejpeg.is_jpeg(source):
        picture = _open_jpeg(source, channels, name)
        if picture is not None:
            return picture
    if isinstance(source, np.ndarray) and _fits(source, channels):
        pixels = np.require(source, requirements=["C", "W"])
    else:
        pixels = _by_pillow(source, channels, name)
    return Picture(pixels.shape[0], pixels.shape[1], pixels=pixels, channels=channels)


def decode(source: bytes | Image.Image | np.ndarray, *, channels: int = 3, name: str = "") -> np.ndarray:
    """The pixels of `open_image`, bit for bit, as uint8 (H, W, C), C being `channels`; faster for JPEG.

    Arguments and errors are those of `open_picture` and `Picture.decode`.
    """
    return open_picture(source, channels=channels, name=name).decode()[0]


def _open_jpeg(data: bytes, channels: int, name: str) -> Picture | None:
    """None for what simplejpeg would decode otherwise than Pillow, or not at all."""
    plain = _plain_header(data)
    if plain is not None:
        height, width, grey = plain
        return Picture(height, width, jpeg=data, grey=grey, channels=channels, name=name or describe(data))
    try:
        image = Image.open(BytesIO(data))
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # whatever is wrong with it, open_image meets it again and gives it a name
        return None
    if image.format not in ("JPEG", "MPO") or image.mode not in ("L", "RGB"):
        return None
    width, height = reversed(image.size) if orientation in ASIDE else image.size
    grey = image.mode == "L"
    name = name or describe(data)
    return Picture(height, width, jpeg=data, grey=grey, orientation=orientation, channels=channels, name=name)


def _plain_header(data: bytes) -> tuple[int, int, bool] | None:
    """(height, width, grey) of a JPEG; None where any of its header, such as EXIF, has to be understood by Pillow."""
    at, found = 2, None
    while len(data) >= at + 10 and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker in FRAMES and found is None:
            bits, height, width, components = FRAME.unpack_from(data, at + 4)
            if bits != 8 or components not in (1, 3) or not 0 < height * width <= (Image.MAX_IMAGE_PIXELS or math.inf):
                return None
            found = height, width, components == 1
        elif marker == SCAN:
            return found
        elif marker not in PLAIN:
            return None
        at += 2 + length
    return None


def _fits(array: np.ndarray, channels: int) -> bool:
    return array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == channels and array.size > 0


def _by_pillow(source: bytes | Image.Image | np.ndarray, channels: int, name: str) -> np.ndarray:
    if isinstance(source, bytes) and name:
        stream = BytesIO(source)
        stream.name = name  # what open_image calls it
        image = open_image(stream, channels=channels)
    else:
        image = open_image(source, channels=channels)
    return _array(image)


def _array(image: Image.Image | np.ndarray) -> np.ndarray:
    pixels = np.array(image)  # a copy: torch wants to be allowed to write
    return pixels if pixels.ndim == 3 else pixels[..., None]
