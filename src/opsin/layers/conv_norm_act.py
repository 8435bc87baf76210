"""Convolution, norm and activation as one module, under the names `conv` and `bn`."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from opsin.layers.norm_act import get_norm_act_layer
from opsin.layers.pool import create_aa
from opsin.layers.tuples import to_2tuple

__all__ = ["ConvNormAct"]


class ConvNormAct(nn.Module):
    """A convolution that keeps the size (divided by `stride`) unless `padding` is named, a norm and an activation.

    `norm_layer` and `act_layer` are names or classes; `apply_act=False` leaves the activation out. With `aa_layer` the
    stride is left to that anti-aliasing layer, behind the activation.
    """

    def __init__(
        self, in_chs: int, out_chs: int, kernel_size: int | tuple[int, int] = 1, stride: int = 1, *,
        padding: int | tuple[int, int] | None = None, dilation: int = 1, groups: int = 1, apply_act: bool = True,
        norm_layer: str | Callable[..., Any] = "batchnorm2d", act_layer: str | Callable[..., nn.Module] = "relu",
        aa_layer: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        blur = bool(aa_layer) and stride > 1
        if padding is None:
            height, width = to_2tuple(kernel_size)
            padding = ((height - 1) * dilation // 2, (width - 1) * dilation // 2)
        self.conv = nn.Conv2d(
            in_chs, out_chs, kernel_size, 1 if blur else stride, padding, dilation, groups, bias=False
        )
        self.bn = get_norm_act_layer(norm_layer)(out_chs, apply_act=apply_act, act_layer=act_layer)
        self.aa = create_aa(aa_layer, out_chs, stride=stride, enable=blur)

    def forward(self, x: Tensor) -> Tensor:
        return self.aa(self.bn(self.conv(x)))
