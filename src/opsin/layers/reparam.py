"""Branches that run side by side in training, as one convolution (https://arxiv.org/abs/2101.03697)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["merge_branches"]

Branch = tuple[nn.Conv2d | None, nn.Module | None]


@torch.no_grad()
def merge_branches(branches: Sequence[Branch]) -> nn.Conv2d:
    """One convolution for the sum of `branches`, as they are in evaluation.

    A branch is a convolution (None: the input as it is) and the batch norm behind it (None: there is none). They share
    stride and groups and keep the size (divided by the stride); at least one is a convolution, dilated as may be.
    """
    like = max((conv for conv, _ in branches if conv is not None), key=lambda conv: conv.kernel_size)
    height, width = like.kernel_size
    kernel = torch.zeros_like(like.weight, dtype=torch.float64)
    bias = kernel.new_zeros(like.out_channels)
    for conv, norm in branches:
        own, shift = _kernel(conv, like), kernel.new_zeros(like.out_channels)
        if conv is not None and conv.bias is not None:
            shift += conv.bias
        if norm is not None:
            own, shift = _behind_norm(own, shift, norm)
        up, left = (height - own.shape[2]) // 2, (width - own.shape[3]) // 2
        kernel += F.pad(own, (left, left, up, up))
        bias += shift
    spacing: Any = {"stride": like.stride, "padding": like.padding, "dilation": like.dilation, "groups": like.groups}
    merged = nn.Conv2d(like.in_channels, like.out_channels, (height, width), **spacing)
    merged.to(device=like.weight.device, dtype=like.weight.dtype)
    merged.weight.copy_(kernel)
    merged.bias.copy_(bias)  # type: ignore[union-attr]
    return merged.train(like.training).requires_grad_(like.weight.requires_grad)


def _kernel(conv: nn.Conv2d | None, like: nn.Conv2d) -> Tensor:
    if conv is not None:
        return conv.weight.double()
    shape = (like.out_channels, like.in_channels // like.groups, 1, 1)
    return nn.init.dirac_(like.weight.new_empty(shape, dtype=torch.float64), like.groups)


def _behind_norm(kernel: Tensor, shift: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    mean, var = norm.running_mean.double(), norm.running_var.double()
    scale = norm.weight.double() * torch.rsqrt(var + norm.eps)
    return kernel * scale[:, None, None, None], (shift - mean) * scale + norm.bias.double()
