"""Resizing of decoded pictures, computing only the pixels that are kept.

Bilinear and bicubic run on torch's 8-bit code, which is several times faster than Pillow's and within 2 grey levels of
it; the other filters, and everything where `exact` is asked for, are Pillow's own.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from opsin.data.decode import REDUCTIONS, Picture
from opsin.data.preprocess import FILTERS

__all__ = ["SUPPORT", "largest_reduction", "resize", "resize_to_window"]

SUPPORT = {"bilinear": 1, "bicubic": 2}  # what torch has, and how far these filters reach, in pixels of the result
# A photo that is to become this many times smaller may be decoded at a fraction of its size, as long as this much of
# the work is left to the filter: on photos the result then differs by less than a grey level on average.
LEFT_TO_FILTER = 2.5
PHASE = 1 / 64  # of a source pixel: how far a window may lie beside where it belongs


def largest_reduction(picture: Picture, shrinking: float) -> int:
    """By how much a picture that becomes `shrinking` times smaller may be reduced as it is decoded."""
    return next((f for f in REDUCTIONS if shrinking >= f * LEFT_TO_FILTER and picture.reduces(f)), 1)


def resize(pixels: np.ndarray, size: tuple[int, int], interpolation: str, *, exact: bool = False) -> np.ndarray:
    """uint8 (H, W, C) to (height, width, C) by a filter of `FILTERS`."""
    if interpolation in SUPPORT and not exact:
        return _interpolate(pixels, interpolation, size=size)
    method, (height, width) = FILTERS[interpolation], size
    if pixels.shape[2] == 3:
        return np.array(Image.fromarray(pixels).resize((width, height), method))
    planes = (Image.fromarray(np.ascontiguousarray(pixels[..., i])) for i in range(pixels.shape[2]))
    return np.stack([np.asarray(plane.resize((width, height), method)) for plane in planes], axis=2)


def resize_to_window(
    picture: Picture,
    full: tuple[int, int],
    offset: tuple[int, int],
    size: tuple[int, int],
    interpolation: str,
    *,
    fill: Sequence[int] | int | None = 0,
    exact: bool = False,
) -> np.ndarray:
    """The picture resized to `full` (height, width) and pasted at `offset` (down, right) on a canvas of `size`.

    The offset is negative where the picture is cut, positive where the canvas shows: of colour `fill`, or if that is
    None the picture mirrored.
    """
    torchs = interpolation in SUPPORT and not exact
    sides = (picture.height, picture.width)
    scales = [have / want for have, want in zip(sides, full, strict=True)]
    pixels, reduced = picture.decode(largest_reduction(picture, min(scales)) if torchs else 1)
    first = [max(-o, 0) for o in offset]
    place = [max(o, 0) for o in offset]
    count = [min(f - a, s - p) for f, a, s, p in zip(full, first, size, place, strict=True)]
    rows, columns = (slice(a, a + n) for a, n in zip(first, count, strict=True))
    if full == sides:
        window = pixels[rows, columns]
    elif torchs:
        scales = [scale / reduced for scale in scales]
        window = _window(pixels, first, count, scales, interpolation)
    else:
        window = resize(pixels, full, interpolation, exact=True)[rows, columns]
    if tuple(count) == size:
        return window
    if fill is None:
        around = [(p, s - p - n) for p, s, n in zip(place, size, count, strict=True)]
        return np.pad(window, [*around, (0, 0)], mode="reflect")
    canvas = np.empty((*size, pixels.shape[2]), np.uint8)
    canvas[:] = fill
    canvas[place[0] : place[0] + count[0], place[1] : place[1] + count[1]] = window
    return canvas


def _window(
    pixels: np.ndarray, first: Sequence[int], count: Sequence[int], scales: Sequence[float], mode: str
) -> np.ndarray:
    """Rows and columns `first` to `first + count` of the whole picture resized by `scales` (source pixels a pixel)."""
    cuts, factors, kept = [], [], []
    for axis in (0, 1):
        start, stop, skip = _source_range(first[axis], count[axis], scales[axis], pixels.shape[axis], SUPPORT[mode])
        cuts.append(slice(start, stop))
        kept.append(slice(skip, skip + count[axis]))
        # at the far edge the range may be a fraction of a pixel short of what the last ones stand for
        factors.append(max(1 / scales[axis], (skip + count[axis] + 1e-3) / (stop - start)))
    return _interpolate(pixels[tuple(cuts)], mode, scale_factor=tuple(factors))[tuple(kept)]


@lru_cache(maxsize=4096)
def _source_range(first: int, count: int, scale: float, length: int, support: int) -> tuple[int, int, int]:
    """Which pixels [start, stop) to resize so that the result has the wanted ones, `skip` after its first.

    Resizing starts at a whole pixel, so the range starts where a pixel of the result does as well, to `PHASE`, and far
    enough before the wanted ones that they do not feel the edge; if need be at the picture's own edge.
    """
    reach = support * max(scale, 1)
    latest = first - math.ceil(reach / scale) - 1
    begin = next((i for i in range(latest, 0, -1) if abs(i * scale - round(i * scale)) <= PHASE), 0)
    stop = min(math.ceil((first + count) * scale + reach) + 1, length)
    return round(begin * scale), stop, first - begin


def _interpolate(pixels: np.ndarray, mode: str, **how: Any) -> np.ndarray:
    # the batch axis is added by torch: its strides tell the fast code for interleaved channels
    batch = torch.from_numpy(pixels).unsqueeze(0).permute(0, 3, 1, 2)
    return F.interpolate(batch, mode=mode, antialias=True, **how)[0].permute(1, 2, 0).numpy()
