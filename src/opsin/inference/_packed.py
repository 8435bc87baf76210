"""Convolutions and linear layers whose weights lie in oneDNN's own layout, the activation computed in the same pass.

torch rearranges a weight at every call; for one image that costs as much as some layers. Here it is done once. This
holds for float32 on the CPU without gradients; in every other case (another device or type, autocast, gradients,
`torch.compile`, export) the modules compute as the ordinary ones they are.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.layers.conv import Conv2dSame, pad_same

__all__ = ["PackedConv2d", "PackedLinear", "can_pack", "fusable"]

# type of activation -> its name in oneDNN
NAMES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "hardtanh",
    nn.SiLU: "swish",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.LeakyReLU: "leaky_relu",
    nn.GELU: "gelu",
}
NEEDED = ("_reorder_convolution_weight", "_convolution_pointwise", "_reorder_linear_weight", "_linear_pointwise")


def can_pack() -> bool:
    """Whether this build of torch has what packing needs."""
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in NEEDED)


def fusable(act: nn.Module) -> bool:
    """Whether an activation can be computed in the pass of the layer before it."""
    return type(act) in NAMES


def _post_op(act: nn.Module | None) -> tuple[str, list[Any], str]:
    """An activation as oneDNN takes it: name, figures, algorithm."""
    if act is None:
        return "none", [], ""
    figures: list[Any] = []
    if isinstance(act, nn.Hardtanh):
        figures = [act.min_val, act.max_val]
    elif isinstance(act, nn.LeakyReLU):
        figures = [act.negative_slope]
    return NAMES[type(act)], figures, act.approximate if isinstance(act, nn.GELU) else ""


class Packed(nn.Module):
    """What both layers share: the packed copy of the weight, made at first use and never saved."""

    weight: Tensor
    bias: Any

    def _setup(self, layer: nn.Module, act: nn.Module | None) -> None:
        self.weight, self.bias = layer.weight, layer.bias  # type: ignore[assignment]
        self.act = act if act is not None else nn.Identity()
        self._post = _post_op(act)
        self._packed: Tensor | None = None
        self.training = False

    def _direct(self, x: Tensor) -> bool:
        return (
            x.dtype == self.weight.dtype == torch.float32
            and x.device.type == self.weight.device.type == "cpu"
            and x.numel() > 0
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()
            and not torch.is_autocast_enabled("cpu")
            and not (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._packed = None  # to another device or type: pack again
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._packed = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None}


class PackedConv2d(Packed, nn.Conv2d):
    """A convolution (padded as `Conv2dSame` if it was one) and the activation behind it."""

    def __init__(self, conv: nn.Conv2d, act: nn.Module | None = None) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            bias=False,
            device="meta",
        )
        self._setup(conv, act)
        self.same = isinstance(conv, Conv2dSame)

    @staticmethod
    def takes(conv: nn.Module) -> bool:
        """Whether this is a convolution of the kind that can be packed."""
        plain = type(conv) in (nn.Conv2d, Conv2dSame)
        return plain and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)

    def forward(self, x: Tensor) -> Tensor:
        if self.same:
            x = pad_same(x, self.kernel_size, self.stride, self.dilation)
        if x.ndim != 4 or not self._direct(x):
            args: Any = (self.stride, self.padding, self.dilation, self.groups)
            return self.act(F.conv2d(x, self.weight, self.bias, *args))
        if self.weight.is_contiguous(memory_format=torch.channels_last) and not self.weight.is_contiguous():
            x = x.contiguous(memory_format=torch.channels_last)
        place = (self.padding, self.stride, self.dilation, self.groups)
        if self._packed is None:
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            self._packed = reorder(self.weight, *place, list(x.shape))
        return torch.ops.mkldnn._convolution_pointwise(x, self._packed, self.bias, *place, *self._post)


class PackedLinear(Packed, nn.Linear):
    """A linear layer and the activation behind it."""

    def __init__(self, linear: nn.Linear, act: nn.Module | None = None) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self._setup(linear, act)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 2 or not self._direct(x):
            return self.act(F.linear(x, self.weight, self.bias))
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight, x.numel() // x.shape[-1])
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, *self._post)
