"""Convolutions: TensorFlow's SAME padding, mixed kernel sizes (MixConv, https://arxiv.org/abs/1907.09595), and kernels
blended per image (CondConv, https://arxiv.org/abs/1904.04971)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError

__all__ = ["CondConv2d", "Conv2dSame", "MixedConv2d", "create_conv2d", "pad_same"]


def pad_same(
    x: Tensor, kernel_size: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], value: float = 0.0
) -> Tensor:
    """Pad (B, C, H, W) with `value` so that a window gives `ceil(size / stride)` positions; the odd one goes last."""
    pads: list[Any] = []
    for size, kernel, step, spread in zip(x.shape[-2:], kernel_size, stride, dilation, strict=True):
        extent = (kernel - 1) * spread + 1
        total: Any = ((size + step - 1) // step - 1) * step + extent - size
        if extent < step:  # only then can the window already fit; no comparison otherwise, for symbolic sizes
            total = torch.sym_max(total, 0)
        pads = [total // 2, total - total // 2, *pads]
    return F.pad(x, pads, value=value)


class Conv2dSame(nn.Conv2d):
    """Convolution with SAME padding where it depends on the image size: output `ceil(size / stride)`."""

    def forward(self, x: Tensor) -> Tensor:
        x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def static_padding(kernel_size: int, stride: int, dilation: int, pad_type: str) -> int | None:
    """Padding on each side, or None where SAME padding is lopsided or depends on the image size."""
    if pad_type not in ("", "same"):
        raise UnknownArgumentError(f"pad_type={pad_type!r}: '' (symmetric) or 'same' (as in TensorFlow)")
    reach = dilation * (kernel_size - 1)
    if pad_type == "same" and (stride > 1 or reach % 2):
        return None
    return (stride - 1 + reach) // 2


def create_conv2d(
    in_chs: int,
    out_chs: int,
    kernel_size: int | Sequence[int],
    *,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    pad_type: str = "",
    num_experts: int = 0,
    bias: bool = False,
) -> nn.Module:
    """A convolution that keeps the size (divided by `stride`). `pad_type` "" pads symmetrically, "same" as TensorFlow.

    Several kernel sizes give a `MixedConv2d` (each part depthwise if `groups` says so), `num_experts` a `CondConv2d`.
    """
    if not isinstance(kernel_size, int):
        depthwise = groups == in_chs and groups > 1
        args: dict[str, Any] = {"stride": stride, "dilation": dilation, "depthwise": depthwise, "pad_type": pad_type}
        return MixedConv2d(in_chs, out_chs, kernel_size, **args, bias=bias)
    if num_experts:
        args = {"stride": stride, "dilation": dilation, "groups": groups, "pad_type": pad_type}
        return CondConv2d(in_chs, out_chs, kernel_size, num_experts, **args)
    padding = static_padding(kernel_size, stride, dilation, pad_type)
    conv = Conv2dSame if padding is None else nn.Conv2d
    return conv(in_chs, out_chs, kernel_size, stride, padding or 0, dilation, groups, bias)


def split_evenly(channels: int, parts: int) -> list[int]:
    """Channels per part; the first takes what is left over."""
    share = channels // parts
    return [channels - share * (parts - 1)] + [share] * (parts - 1)


class MixedConv2d(nn.ModuleList):
    """The channels in equal parts, each with its own kernel size."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        kernel_size: Sequence[int],
        *,
        stride: int = 1,
        dilation: int = 1,
        depthwise: bool = False,
        pad_type: str = "",
        bias: bool = False,
    ) -> None:
        self.splits = split_evenly(in_chs, len(kernel_size))
        args: dict[str, Any] = {"stride": stride, "dilation": dilation, "pad_type": pad_type, "bias": bias}
        outs = split_evenly(out_chs, len(kernel_size))
        super().__init__(
            create_conv2d(i, o, kernel, groups=i if depthwise else 1, **args)
            for i, o, kernel in zip(self.splits, outs, kernel_size, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([conv(part) for conv, part in zip(self, x.split(self.splits, 1), strict=True)], 1)


class CondConv2d(nn.Module):
    """A convolution whose kernel is, for each image, the sum of `num_experts` kernels weighted by `routing`.

    `weight` holds one flattened kernel a row. Takes (B, C, H, W) and routing weights (B, num_experts).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        num_experts: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        pad_type: str = "",
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.dilation = (kernel_size,) * 2, (stride,) * 2, (dilation,) * 2
        self.padding = static_padding(kernel_size, stride, dilation, pad_type)
        self.kernel_shape = (out_channels, in_channels // groups, kernel_size, kernel_size)
        self.weight = nn.Parameter(torch.empty(num_experts, math.prod(self.kernel_shape)))

    def reset_parameters(self) -> None:
        """Each expert as a convolution of its own: normal, scaled to fan out."""
        fan_out = self.kernel_size[0] ** 2 * self.out_channels // self.groups
        nn.init.normal_(self.weight, std=(2 / fan_out) ** 0.5)

    def forward(self, x: Tensor, routing: Tensor) -> Tensor:
        batch = x.shape[0]
        if self.padding is None:
            x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        # one grouped convolution for the whole batch: the images stand side by side in the channels
        kernels = (routing @ self.weight).view(batch * self.out_channels, *self.kernel_shape[1:])
        x = x.reshape(1, batch * self.in_channels, *x.shape[-2:])
        x = F.conv2d(x, kernels, None, self.stride, self.padding or 0, self.dilation, batch * self.groups)
        return x.view(batch, self.out_channels, *x.shape[-2:])
