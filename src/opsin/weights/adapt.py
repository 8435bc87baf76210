"""Fit published tensors to another model: other input channels, other image, patch and window sizes.

Sources: FlexiViT (https://arxiv.org/abs/2212.08013) for patch embeddings; the rest is common practice of the field,
with the figures of the `timm` package.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from opsin.errors import WeightsError

__all__ = [
    "INPUT_STRATEGIES",
    "adapt_input_conv",
    "resample_abs_pos_embed",
    "resample_patch_embed",
    "resize_rel_pos_bias_table",
]

INPUT_STRATEGIES = {
    "space_to_depth": "input channels are (position, colour), colour fastest, as after space-to-depth or in a patch "
    "flattened row by row: the colours of each position are adapted",
    "pixel_unshuffle": "input channels are (colour, position), position fastest, as after torch's pixel_unshuffle: the "
    "colours of each position are adapted",
    "mean": "every new channel gets the mean kernel, rescaled so that the response to grey stays",
}


def adapt_input_conv(weight: Tensor, in_chans: int, *, strategy: str | None = None) -> Tensor:
    """First-layer weights for `in_chans` input channels.

    One channel gets the sum of the three colour kernels; other counts repeat them in turn and rescale by 3 / in_chans,
    so that the response to a grey picture stays.

    Args:
        weight: (out, in, …): a convolution, or a linear layer on flattened patches.
        strategy: needed where `in` is not 3; one of `INPUT_STRATEGIES`.

    Raises:
        WeightsError: a stem that does not see three colours and no strategy is named, or it does not apply.
    """
    if strategy is not None and strategy not in INPUT_STRATEGIES:
        raise WeightsError(f"no input strategy {strategy!r}; there are {', '.join(INPUT_STRATEGIES)}")
    outputs, inputs, *rest = weight.shape
    if strategy == "mean":
        wide = weight.float().mean(dim=1, keepdim=True) * (inputs / in_chans)
        return wide.expand(outputs, in_chans, *rest).to(weight.dtype).contiguous()
    if strategy is None:
        if inputs == 3:
            return _adapt_colours(weight, in_chans, 1)
        raise WeightsError(
            f"a stem with {inputs} input channels cannot be adapted to {in_chans} without knowing what they stand for; "
            f"name a strategy: {', '.join(INPUT_STRATEGIES)}"
        )
    if inputs % 3:
        raise WeightsError(f"strategy {strategy!r} needs three colours per position, but the stem has {inputs} inputs")
    dim, sizes = (2, (inputs // 3, 3)) if strategy == "space_to_depth" else (1, (3, inputs // 3))
    return _adapt_colours(weight.reshape(outputs, *sizes, *rest), in_chans, dim).flatten(1, 2)


def _adapt_colours(weight: Tensor, in_chans: int, dim: int) -> Tensor:
    if in_chans == 3:
        return weight
    wide = weight.float()
    if in_chans == 1:
        wide = wide.sum(dim=dim, keepdim=True)
    else:
        order = torch.arange(in_chans, device=weight.device) % 3
        wide = wide.index_select(dim, order) * (3 / in_chans)
    return wide.to(weight.dtype)


def resample_abs_pos_embed(
    posemb: Tensor,
    new_size: Sequence[int],
    *,
    old_size: Sequence[int] | None = None,
    num_prefix_tokens: int = 1,
    interpolation: str = "bicubic",
    antialias: bool = True,
) -> Tensor:
    """Absolute position embeddings (1, prefix + h·w, dim) resampled to `new_size` (rows, columns) of the token grid.

    `old_size` is square when not given. Prefix tokens (class, registers) stay as they are.
    """
    prefix, grid = posemb[:, :num_prefix_tokens], posemb[:, num_prefix_tokens:]
    rows, columns = old_size or _square(grid.shape[1], "position embeddings")
    if rows * columns != grid.shape[1]:
        raise WeightsError(f"{grid.shape[1]} position embeddings do not make a grid of {rows}×{columns}")
    if (rows, columns) == tuple(new_size):
        return posemb
    image = grid.float().reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=tuple(new_size), mode=interpolation, antialias=antialias)
    grid = image.permute(0, 2, 3, 1).flatten(1, 2).to(posemb.dtype)
    return torch.cat([prefix, grid], dim=1)


def resample_patch_embed(
    patch_embed: Tensor, new_size: Sequence[int], *, interpolation: str = "bicubic", antialias: bool = True
) -> Tensor:
    """Patch projection (out, in, h, w) for patches of `new_size`, by the pseudo-inverse of the resize (FlexiViT).

    The new weights give for a resized patch what the old ones gave for the patch itself.
    """
    old_size = tuple(patch_embed.shape[-2:])
    if old_size == tuple(new_size):
        return patch_embed
    basis = torch.eye(math.prod(old_size)).reshape(-1, 1, *old_size)
    resize = F.interpolate(basis, size=tuple(new_size), mode=interpolation, antialias=antialias).flatten(
        1
    )  # (old, new)
    back = torch.linalg.pinv(resize).to(patch_embed.device)  # (new, old)
    flat = patch_embed.float().flatten(2) @ back.T
    return flat.reshape(*patch_embed.shape[:2], *new_size).to(patch_embed.dtype)


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
