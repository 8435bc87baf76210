"""Fit published tensors to another model: other input channels, other image, patch and window sizes.

What depends on the image size is resampled by `opsin.layers.pos_embed`, which the families use as well.
"""

import torch
from torch import Tensor

from opsin.errors import WeightsError, did_you_mean
from opsin.layers.pos_embed import resample_abs_pos_embed, resample_patch_embed, resize_rel_pos_bias_table

__all__ = [
    "INPUT_STRATEGIES",
    "adapt_input_conv",
    "check_strategy",
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


def check_strategy(strategy: str) -> None:
    if strategy not in INPUT_STRATEGIES:
        hint = did_you_mean(strategy, INPUT_STRATEGIES) or f" There are {', '.join(INPUT_STRATEGIES)}."
        raise WeightsError(f"no input strategy {strategy!r}.{hint}")


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
    if strategy is not None:
        check_strategy(strategy)
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
