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
    table: Tensor, new_window_size: Sequence[int], *, num_extra: int = 0, interpolation: str = "bicubic"
) -> Tensor:
    """Relative position biases for another window.

    Args:
        table: (positions + num_extra, heads) with square source windows, or (heads, rows, columns).
        new_window_size: rows and columns of the new window; offsets run over 2·rows - 1 by 2·columns - 1.
        num_extra: trailing entries that stand for prefix tokens; they stay as they are.
        interpolation: `bicubic` or `bilinear`.
    """
    size = (2 * new_window_size[0] - 1, 2 * new_window_size[1] - 1)
    if table.ndim == 3:
        if tuple(table.shape[1:]) == size:
            return table
        image = F.interpolate(table.float()[None], size=size, mode=interpolation, align_corners=False)
        return image[0].to(table.dtype)
    positions = table.shape[0] - num_extra
    old = _square(positions, "relative position biases")
    if old == size:
        return table
    image = table[:positions].float().T.reshape(1, -1, *old)
    image = F.interpolate(image, size=size, mode=interpolation, align_corners=False)
    return torch.cat([image.flatten(2)[0].T.to(table.dtype), table[positions:]])


def _square(count: int, what: str) -> tuple[int, int]:
    side = math.isqrt(count)
    if side * side != count:
        raise WeightsError(f"{count} {what} do not make a square; the old size must be given")
    return side, side
