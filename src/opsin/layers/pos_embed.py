"""Resampling of what depends on the image size: position embeddings and patch projections.

The patch projection follows FlexiViT (https://arxiv.org/abs/2212.08013): the pseudo-inverse of the resize, so that a
resized patch meets the resized kernel with the same response.
"""

import logging
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from opsin.errors import WeightsError

__all__ = ["resample_abs_pos_embed", "resample_abs_pos_embed_nhwc", "resample_patch_embed", "resize_rel_pos_bias_table"]

log = logging.getLogger(__name__)


def resample_abs_pos_embed(
    posemb: Tensor,
    new_size: Sequence[int],
    old_size: Sequence[int] | None = None,
    num_prefix_tokens: int = 1,
    interpolation: str = "bicubic",
    antialias: bool = True,
    verbose: bool = False,
    align_corners: bool | None = None,
) -> Tensor:
    """Position embeddings `(1, prefix + h * w, C)` for another grid; those of the prefix tokens stay as they are.

    Args:
        posemb: the embeddings. new_size: (height, width) of the new grid in patches.
        old_size: grid of `posemb`; a square by default.
        interpolation, antialias, align_corners: as in `torch.nn.functional.interpolate`.
        verbose: log the two sizes.

    Raises:
        WeightsError: the embeddings do not make `old_size`, or without it no square.
    """
    new_size = (int(new_size[0]), int(new_size[1]))
    count = posemb.shape[1] - num_prefix_tokens
    if old_size is None:
        old_size = _square(count, "position embeddings")
    old_size = (int(old_size[0]), int(old_size[1]))
    if old_size[0] * old_size[1] != count:
        raise WeightsError(f"{count} position embeddings do not make a grid of {old_size[0]}x{old_size[1]}")
    if old_size == new_size:
        return posemb
    prefix, grid = posemb[:, :num_prefix_tokens], posemb[:, num_prefix_tokens:]
    grid = grid.reshape(1, old_size[0], old_size[1], -1)
    grid = _resize_nhwc(grid, new_size, interpolation, antialias, align_corners).flatten(1, 2)
    if verbose:
        log.info("position embedding resampled from %s to %s", tuple(old_size), new_size)
    return torch.cat((prefix, grid), 1) if num_prefix_tokens else grid


def resample_abs_pos_embed_nhwc(
    posemb: Tensor,
    new_size: Sequence[int],
    interpolation: str = "bicubic",
    antialias: bool = True,
    verbose: bool = False,
) -> Tensor:
    """Position embeddings kept as a map `(1, H, W, C)` for another (height, width) of the grid."""
    size = (int(new_size[0]), int(new_size[1]))
    if tuple(posemb.shape[-3:-1]) == size:
        return posemb
    if verbose:
        log.info("position embedding resampled from %s to %s", tuple(posemb.shape[-3:-1]), size)
    return _resize_nhwc(posemb, size, interpolation, antialias, None)


def _resize_nhwc(x: Tensor, size: tuple[int, int], mode: str, antialias: bool, align_corners: bool | None) -> Tensor:
    maps = x.float().permute(0, 3, 1, 2)
    maps = F.interpolate(maps, size=size, mode=mode, antialias=antialias, align_corners=align_corners)
    return maps.permute(0, 2, 3, 1).to(x.dtype)


def resample_patch_embed(
    patch_embed: Tensor,
    new_size: Sequence[int],
    interpolation: str = "bicubic",
    antialias: bool = True,
    verbose: bool = False,
) -> Tensor:
    """Kernels of a patch projection `(out, in, h, w)` for another patch size (height, width)."""
    old, new = tuple(patch_embed.shape[-2:]), (int(new_size[0]), int(new_size[1]))
    if old == new:
        return patch_embed
    if verbose:
        log.info("patch projection resampled from %s to %s", old, new)
    basis = torch.eye(old[0] * old[1]).view(-1, 1, *old)
    resize = F.interpolate(basis, size=new, mode=interpolation, antialias=antialias).flatten(1)
    inverse = torch.linalg.pinv(resize).to(patch_embed.device)  # (new, old)
    kernels = patch_embed.float().flatten(2) @ inverse.T
    return kernels.unflatten(2, new).to(patch_embed.dtype)


def resize_rel_pos_bias_table(
    table: Tensor,
    new_window_size: Sequence[int],
    *,
    num_extra: int = 0,
    old_window_size: Sequence[int] | None = None,
    interpolation: str = "bicubic",
) -> Tensor:
    """Relative position biases for another window.

    Args:
        table: (positions + num_extra, heads), or (heads, rows, columns).
        new_window_size: rows and columns of the new window; offsets run over 2·rows - 1 by 2·columns - 1.
        num_extra: trailing entries that stand for prefix tokens; they stay as they are.
        old_window_size: of a flat table; by default a square, or where the count fits the new window.
        interpolation: `bicubic`, `bilinear`, or `geometric`: linear, between old offsets that are spread over the new
            window with growing steps, so that near ones keep their values (BEiT, https://arxiv.org/abs/2106.08254).

    Raises:
        WeightsError: a flat table that makes neither a square nor the windows.
    """
    size = (2 * new_window_size[0] - 1, 2 * new_window_size[1] - 1)
    if table.ndim == 3:
        if tuple(table.shape[1:]) == size:
            return table
        return _resize_offsets(table.float(), size, interpolation).to(table.dtype)
    positions = table.shape[0] - num_extra
    if old_window_size is not None:
        old = (2 * old_window_size[0] - 1, 2 * old_window_size[1] - 1)
    elif positions == size[0] * size[1] and math.isqrt(positions) ** 2 != positions:
        old = size
    else:
        old = _square(positions, "relative position biases")
    if old == size:
        return table
    if old[0] * old[1] != positions:
        raise WeightsError(f"{positions} relative position biases do not make {old[0]}x{old[1]} offsets")
    image = _resize_offsets(table[:positions].float().T.unflatten(1, old), size, interpolation)
    return torch.cat([image.flatten(1).T.to(table.dtype), table[positions:]])


def _resize_offsets(image: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """(heads, rows, columns) to `size`."""
    if interpolation != "geometric":
        return F.interpolate(image[None], size=size, mode=interpolation, align_corners=False)[0]
    if image.is_meta:
        return image.new_empty(image.shape[0], *size)
    rows, columns = (_spread(image.shape[i + 1], size[i]).to(image) for i in (0, 1))
    return rows @ image @ columns.T


def _spread(old: int, new: int) -> Tensor:
    """Weights (new, old) of the linear interpolation between `old` offsets whose distances grow by a fixed ratio.

    The ratio, between 1.01 and 1.5, is found by bisection so that the outermost old offset meets the outermost new one.
    """
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        low, high = (low, ratio) if (1 - ratio ** (old // 2)) / (1 - ratio) > new // 2 else (ratio, high)
    half = torch.cumsum(ratio ** torch.arange(old // 2, dtype=torch.float64), 0)
    knots = torch.cat([-half.flip(0), half.new_zeros(1), half])
    target = torch.arange(new, dtype=torch.float64) - new // 2
    target = target.clamp(knots[0], knots[-1])
    right = torch.searchsorted(knots, target).clamp(1, old - 1) if old > 1 else torch.zeros(new, dtype=torch.long)
    left = (right - 1).clamp_min(0)
    gap = (knots[right] - knots[left]).clamp_min(1e-12)
    part = ((target - knots[left]) / gap)[:, None]
    return F.one_hot(left, old) * (1 - part) + F.one_hot(right, old) * part


def _square(count: int, what: str) -> tuple[int, int]:
    side = math.isqrt(count)
    if side * side != count:
        raise WeightsError(f"{count} {what} do not make a square; the old size must be given")
    return side, side
