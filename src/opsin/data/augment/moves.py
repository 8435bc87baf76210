"""Rows that move as a whole, in integers: what shearing and moving a picture comes down to.

The interpolation is Pillow's, with weights of 8 bits (bilinear) or 7 (bicubic): 1 or at most 3 grey levels away, in a
quarter to half of the time, since nothing is interpolated across the rows.
"""

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

__all__ = ["move_columns", "move_rows"]


def move_rows(image: np.ndarray, shift: np.ndarray, fill: np.ndarray, *, cubic: bool) -> np.ndarray:
    """Row y of a uint8 image (H, W, C) takes its pixels from `shift[y]` further right, by bicubic or bilinear.

    What comes from outside has the colour `fill`: (C,), or (H, C) for one a row.
    """
    height, width, channels = image.shape
    length = width * channels
    whole = np.floor(shift)
    fraction = (shift - whole)[:, None]
    # a strip of all rows, each with its edges twice more on both sides: what a row asks for is one piece of it
    strip = np.empty((height + 2, width + 4, channels), np.uint8)
    strip[1:-1, 2:-2] = image
    strip[:, :2], strip[:, -2:] = strip[:, 2:3], strip[:, -3:-2]
    starts = (np.arange(height) + 1) * (width + 4) + np.clip(whole, -width - 2, width + 2).astype(np.int64) + 1
    pieces = sliding_window_view(strip.reshape(-1), length + 3 * channels)[starts * channels]
    before, here, after, beyond = (pieces[:, i * channels : i * channels + length] for i in range(4))
    out = _cubic(before, here, after, beyond, fraction) if cubic else _linear(here, after, fraction)
    # nothing, the picture, nothing: the row's piece of this says what comes from inside (middles count)
    mask = np.zeros((3, length), np.uint8)
    mask[1] = 255
    first = np.clip(np.ceil(-shift - 0.5), -width, width).astype(np.int64)
    fill = np.tile(fill.astype(np.uint8), width)
    out ^= fill
    out &= sliding_window_view(mask.reshape(-1), length)[(width - first) * channels]
    out ^= fill
    return out.reshape(image.shape)


def move_columns(image: np.ndarray, shift: np.ndarray, fill: np.ndarray, *, cubic: bool) -> np.ndarray:
    """Column x of a uint8 image (H, W, C) takes its pixels from `shift[x]` further down."""
    height, width, channels = image.shape
    if (shift == shift[0]).all():  # all together: one row of H pixels, which have W * C channels
        row = move_rows(image.reshape(1, height, -1), shift[:1], np.tile(fill, width), cubic=cubic)
        return row.reshape(image.shape)
    # torch turns interleaved pixels several times faster than NumPy
    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 1, 0).reshape(channels * width, height, 1).numpy()
    moved = move_rows(planes, np.tile(shift, channels), np.repeat(fill, width)[:, None], cubic=cubic)
    return torch.from_numpy(moved).view(channels, width, height).permute(2, 1, 0).contiguous().numpy()


def _linear(here: np.ndarray, after: np.ndarray, fraction: np.ndarray) -> np.ndarray:
    weight = np.rint(fraction * 256).astype(np.uint16)
    total = here * (256 - weight)
    total += after * weight
    total >>= 8
    return total.astype(np.uint8)


def _cubic(
    before: np.ndarray, here: np.ndarray, after: np.ndarray, beyond: np.ndarray, fraction: np.ndarray
) -> np.ndarray:
    """The cubic through `here` and `after` whose slopes are the differences of their neighbours (Keys 1981, a = -1)."""
    square, cube = fraction**2, fraction**3
    weights = [np.rint(128 * w).astype(np.int16) for w in (2 * square - cube - fraction, fraction + square - cube)]
    weights.append(np.rint(128 * (cube - square)).astype(np.int16))
    # the sum lies between -0.25 and 1.25 times 255 * 128: with 64 * 128 more it fits into 16 bits without a sign,
    # where what exceeds them on the way does no harm
    total = here * (128 - sum(weights)).astype(np.uint16)
    total += 64 * 128
    for tap, weight in zip((before, after, beyond), weights, strict=True):
        total += tap * weight.astype(np.uint16)
    total >>= 7
    return np.clip(total, 64, 64 + 255).astype(np.uint8) - np.uint8(64)  # wraps around
