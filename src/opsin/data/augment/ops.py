"""Picture operations for augmentation: uint8 arrays (H, W, C) in, the same shape out; the input is never written to.

The names, and the pixels to the bit, are those of Pillow's image functions, as the augmentation papers used them
(AutoAugment, Cubuk et al. 2019; RandAugment, Cubuk et al. 2020; 3-Augment in DeiT III, Touvron et al. 2022). Only
shear and translate are up to 3 grey levels off, for a fraction of the time, where they are not asked to be `exact`.
Any number of channels is taken: what is a colour matter for three (grey is their ITU-R 601 luma) uses the mean of the
channels for other counts.

A function may return its argument when there is nothing to do.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from opsin.data.augment.moves import move_columns, move_rows
from opsin.errors import OpsinError

__all__ = [
    "auto_contrast",
    "blend",
    "brightness",
    "color",
    "contrast",
    "desaturate",
    "equalize",
    "gaussian_blur",
    "invert",
    "posterize",
    "rotate",
    "sharpness",
    "shear_x",
    "shear_y",
    "solarize",
    "solarize_add",
    "translate_x",
    "translate_y",
]

RAMP = np.arange(256)
BLACK = (0, 0, 0)
# the other filter for affine maps is bicubic; the names of those for resizing alone (lanczos, ...) stand for it too
AFFINE = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR}


# --- by value ---------------------------------------------------------------------------------------------------------


def invert(image: np.ndarray) -> np.ndarray:
    """The negative."""
    return ~image


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keep the upper `bits` of every value: 8 or more changes nothing, 0 or less gives black."""
    if bits >= 8:
        return image
    return image & np.uint8(256 - (1 << (8 - max(bits, 0))))


def solarize(image: np.ndarray, threshold: float) -> np.ndarray:
    """Invert the values from `threshold` up."""
    return image ^ -(image >= threshold).view(np.uint8)  # the negative of true is 255


def solarize_add(image: np.ndarray, amount: int, *, threshold: float = 128) -> np.ndarray:
    """Add `amount` to the values below `threshold`, up to 255."""
    return _mapped(image, np.where(threshold > RAMP, np.minimum(RAMP + amount, 255), RAMP))


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Mix with black: 0 is black, 1 the image, more is brighter."""
    return _mapped(image, _mix_table(0, factor))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Mix with the image's mean grey: 0 is flat, 1 the image, more is harsher."""
    grey = _grey(image)
    mean = int(grey.sum(dtype=np.uint32) / grey.size + 0.5)
    return _mapped(image, _mix_table(mean, factor))


def auto_contrast(image: np.ndarray) -> np.ndarray:
    """Stretch the values of each channel to 0..255."""
    low, high = (bound(bound(image, axis=0), axis=0) for bound in (np.min, np.max))
    if ((low == 0) & (high == 255)).all():  # as in most photos
        return image
    return _by_pillow(image, lambda picture, _: ImageOps.autocontrast(picture))


def equalize(image: np.ndarray) -> np.ndarray:
    """Spread the values of each channel so that every range of them is equally frequent."""
    return _by_pillow(image, lambda picture, _: ImageOps.equalize(picture))


# --- colour and detail ------------------------------------------------------------------------------------------------


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Mix with the grey picture: 0 is grey, 1 the image, more is more colourful."""
    if image.shape[2] == 1:
        return image
    if image.shape[2] == 3:
        return _by_pillow(image, lambda picture, _: ImageEnhance.Color(picture).enhance(factor))
    return blend(np.repeat(_grey(image), image.shape[2], axis=1), image, factor)


def desaturate(image: np.ndarray, factor: float) -> np.ndarray:
    """Take colour away: 0 changes nothing, 1 or more is grey."""
    return color(image, max(0.0, 1.0 - factor))


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Mix with the smoothed picture: 0 is smooth, 1 the image, more is sharper.

    Smooth is the mean over a neighbourhood of 3x3 with the centre five times; the outermost pixels stay as they are.
    """
    if min(image.shape[:2]) < 3:
        return image
    total = image.astype(np.uint16)
    total = total[:-2] + total[1:-1] + total[2:]
    total = total[:, :-2] + total[:, 1:-1] + total[:, 2:]
    total += image[1:-1, 1:-1] * np.uint16(4)
    total += 6  # half of 13: to the nearest
    smooth = image.copy()
    smooth[1:-1, 1:-1] = total // 13
    return blend(smooth, image, factor)


def gaussian_blur(image: np.ndarray, radius: float) -> np.ndarray:
    """A Gaussian of standard deviation `radius` pixels, approximated by three box filters."""
    return _by_pillow(image, lambda picture, _: picture.filter(ImageFilter.GaussianBlur(radius)))


# --- geometry ---------------------------------------------------------------------------------------------------------


def rotate(
    image: np.ndarray, degrees: float, *, fill: Sequence[int] = BLACK, interpolation: str = "bicubic"
) -> np.ndarray:
    """Turn anticlockwise about the middle; what comes from outside has the colour `fill`, one value a channel."""
    method = AFFINE.get(interpolation, Image.Resampling.BICUBIC)
    _check_fill(image, fill)
    return _by_pillow(image, lambda picture, pick: picture.rotate(degrees, method, fillcolor=pick(fill)))


def shear_x(
    image: np.ndarray,
    factor: float,
    *,
    fill: Sequence[int] = BLACK,
    interpolation: str = "bicubic",
    exact: bool = False,
) -> np.ndarray:
    """Row y takes its pixels from `factor * y` further right."""
    return _slide(image, factor, 0.0, fill, interpolation, exact)


def shear_y(
    image: np.ndarray,
    factor: float,
    *,
    fill: Sequence[int] = BLACK,
    interpolation: str = "bicubic",
    exact: bool = False,
) -> np.ndarray:
    """Column x takes its pixels from `factor * x` further down."""
    return _slide(image, factor, 0.0, fill, interpolation, exact, turned=True)


def translate_x(
    image: np.ndarray,
    pixels: float,
    *,
    fill: Sequence[int] = BLACK,
    interpolation: str = "bicubic",
    exact: bool = False,
) -> np.ndarray:
    """Every pixel comes from `pixels` further right."""
    return _slide(image, 0.0, pixels, fill, interpolation, exact)


def translate_y(
    image: np.ndarray,
    pixels: float,
    *,
    fill: Sequence[int] = BLACK,
    interpolation: str = "bicubic",
    exact: bool = False,
) -> np.ndarray:
    """Every pixel comes from `pixels` further down."""
    return _slide(image, 0.0, pixels, fill, interpolation, exact, turned=True)


def _slide(
    image: np.ndarray,
    factor: float,
    pixels: float,
    fill: Sequence[int],
    interpolation: str,
    exact: bool,
    *,
    turned: bool = False,
) -> np.ndarray:
    """Row y takes its pixels from `factor * (y + 0.5) + pixels` further right; `turned`: columns, further down."""
    _check_fill(image, fill)
    if not exact and interpolation != "nearest":
        shift = factor * (np.arange(image.shape[turned]) + 0.5) + pixels
        move = move_columns if turned else move_rows
        return move(image, shift, np.array(fill, np.uint8), cubic=interpolation != "bilinear")
    if interpolation in AFFINE:
        matrix = (1, 0, 0, factor, 1, pixels) if turned else (1, factor, pixels, 0, 1, 0)
        method = AFFINE[interpolation]
        return _by_pillow(
            image, lambda im, pick: im.transform(im.size, Image.Transform.AFFINE, matrix, method, fillcolor=pick(fill))
        )
    axes = (1, 0, 2) if turned else (0, 1, 2)
    return np.ascontiguousarray(_slide_cubic(image.transpose(axes), factor, pixels, fill).transpose(axes))


def _slide_cubic(image: np.ndarray, factor: float, pixels: float, fill: Sequence[int]) -> np.ndarray:
    """Pillow's bicubic for rows that move as a whole: interpolating along them only takes a fraction of its time.

    The pixels are the same: same positions in float64, same polynomial, same cut to whole values.
    """
    height, width, channels = image.shape
    rows, centres = np.arange(height), np.arange(width) + 0.5
    shift = factor * (rows + 0.5)
    position = centres + shift[:, None] + pixels
    inside = (position >= 0) & (position < width)
    whole = np.clip(np.floor(shift + pixels), -width - 2, width + 2).astype(np.int64)
    fraction = position - (centres + whole[:, None])
    # a plane as one long strip: every row with its edges twice more on each side, and a spare row at either end
    starts = (rows + 1) * (width + 4) + whole + 1
    out = np.empty((channels, height, width), np.uint8)
    for plane, moved, colour in zip(image.transpose(2, 0, 1), out, fill, strict=True):
        strip = np.pad(plane, ((1, 1), (2, 2)), mode="edge").reshape(-1)
        taps = np.lib.stride_tricks.sliding_window_view(strip, width + 3)[starts].astype(np.int16)
        before, here, after, beyond = (taps[:, i : i + width] for i in range(4))
        # the cubic through `here` and `after` whose slopes are the differences of their neighbours (Keys 1981, a = -1)
        value = (here - before - after + beyond) * fraction
        value += 2 * (before - here) + after - beyond
        value *= fraction
        value += after - before
        value *= fraction
        value += here
        moved[:] = np.where(inside, value.clip(0, 255).astype(np.uint8), np.uint8(colour))
    return out.transpose(1, 2, 0)


def _check_fill(image: np.ndarray, fill: Sequence[int]) -> None:
    if len(fill) != image.shape[2]:
        raise OpsinError(f"fill {tuple(fill)} has {len(fill)} values for an image of {image.shape[2]} channels")


# --- shared -----------------------------------------------------------------------------------------------------------


def _mapped(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Each value replaced by its entry in the table (256 of them); bytes do this faster than indexing."""
    values = bytearray(image).translate(table.astype(np.uint8).tobytes())
    return np.frombuffer(values, np.uint8).reshape(image.shape)


def blend(ground: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    """ground + factor * (image - ground), cut to 0..255 and to whole values; both may have any shape of equal size."""
    low, high = (Image.fromarray(pixels.reshape(image.shape[0], -1)) for pixels in (ground, image))
    return np.array(Image.blend(low, high, factor)).reshape(image.shape)


def _mix_table(ground: int, factor: float) -> np.ndarray:
    low = np.float32(ground)
    return (low + np.float32(factor) * (RAMP.astype(np.float32) - low)).clip(0, 255).astype(np.uint8)


def _grey(image: np.ndarray) -> np.ndarray:
    """(H, W): luma of three channels, else the mean of the channels."""
    if image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).convert("L"))
    return image[..., 0] if image.shape[2] == 1 else np.rint(image.mean(axis=2)).astype(np.uint8)


def _by_pillow(image: np.ndarray, function: Callable[[Image.Image, Callable], Image.Image]) -> np.ndarray:
    """A Pillow function on three channels at once, else on one after the other.

    `function(picture, pick)`: `pick` reduces one value a channel to those of the picture at hand.
    """
    if image.shape[2] == 3:
        return np.array(function(Image.fromarray(image), tuple))
    planes = [
        np.asarray(function(Image.fromarray(np.ascontiguousarray(image[..., i])), lambda values, i=i: values[i]))
        for i in range(image.shape[2])
    ]
    return np.stack(planes, axis=2)
