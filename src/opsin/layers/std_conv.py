"""Convolutions with standardised weights (https://arxiv.org/abs/1903.10520), plain and scaled for nets without norms
(https://arxiv.org/abs/2101.08692)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, did_you_mean
from opsin.layers.conv import create_conv2d, pad_same, static_padding

__all__ = ["ScaledStdConv2d", "StdConv2d", "get_conv_layer"]


class StdConv2d(nn.Conv2d):
    """A convolution whose kernels have zero mean and unit variance, one output channel at a time.

    Keeps the size (divided by `stride`): padding is symmetric, or with `pad_type="same"` as in TensorFlow.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1,
        groups: int = 1, bias: bool = False, *, eps: float = 1e-6, pad_type: str = "",
    ) -> None:  # fmt: skip
        padding = static_padding(kernel_size, stride, dilation, pad_type)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding or 0, dilation, groups, bias)
        self.eps = eps
        self.pads_by_size = padding is None

    def kernel(self) -> Tensor:
        """The weight that is convolved with."""
        return self.standardized(None)

    def standardized(self, scale: Tensor | None) -> Tensor:
        # batch norm of one "image" whose channels are the kernels is just that, in one pass over the weight
        flat = self.weight.flatten(1).unsqueeze(0)
        return F.batch_norm(flat, None, None, scale, training=True, momentum=0.0, eps=self.eps).view_as(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.pads_by_size:
            x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        return F.conv2d(x, self.kernel(), self.bias, self.stride, self.padding, self.dilation, self.groups)

    @torch.no_grad()
    def reparameterize(self) -> nn.Conv2d:
        """A plain convolution with the standardised weight, for inference."""
        args = {"stride": self.stride[0], "dilation": self.dilation[0], "groups": self.groups}
        pad_type = "same" if self.pads_by_size else ""
        conv: Any = create_conv2d(
            self.in_channels,
            self.out_channels,
            self.kernel_size[0],
            **args,
            pad_type=pad_type,
            bias=self.bias is not None,
        )
        conv.to(device=self.weight.device, dtype=self.weight.dtype)
        conv.weight.copy_(self.kernel())
        if self.bias is not None:
            conv.bias.copy_(self.bias)
        return conv.train(self.training)


class ScaledStdConv2d(StdConv2d):
    """Standardised, divided by the root of the fan in, times `gamma` (fixed) and `gain` (learned, one per channel).

    So that an input of unit variance gives one of unit variance behind an activation whose own gain is `gamma`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1,
        groups: int = 1, bias: bool = True, *, gamma: float = 1.0, eps: float = 1e-6, pad_type: str = "",
    ) -> None:  # fmt: skip
        super().__init__(
            in_channels, out_channels, kernel_size, stride, dilation, groups, bias, eps=eps, pad_type=pad_type
        )
        self.gain = nn.Parameter(torch.ones(out_channels, 1, 1, 1))
        self.scale = gamma * self.weight[0].numel() ** -0.5

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "gain"):  # not yet there when torch's own constructor calls
            nn.init.ones_(self.gain)

    def kernel(self) -> Tensor:
        return self.standardized((self.gain * self.scale).flatten())


CONVS: dict[str, Callable[..., nn.Module]] = {
    "conv2d": create_conv2d,
    "std_conv2d": StdConv2d,
    "std_conv2d_same": partial(StdConv2d, pad_type="same"),
}


def get_conv_layer(conv: str | Callable[..., nn.Module], **fixed: Any) -> Callable[..., nn.Module]:
    """The convolution of a name (or the callable itself), called with channels, kernel size and keywords.

    `fixed` arguments such as `eps` are bound.
    """
    if isinstance(conv, str):
        if conv not in CONVS:
            raise UnknownArgumentError(f"no convolution {conv!r}.{did_you_mean(conv, CONVS)} Known: {', '.join(CONVS)}")
        conv = CONVS[conv]
    return partial(conv, **fixed) if fixed else conv
