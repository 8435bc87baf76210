"""Activations by name. All are torch's own where torch has them."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, did_you_mean

__all__ = ["QuickGELU", "create_act", "get_act_layer"]


class QuickGELU(nn.Module):
    """`x * sigmoid(1.702 x)`, the approximation the first CLIP was trained with."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


# name -> (class, whether it can work in place)
ACTS: dict[str, tuple[Callable[..., nn.Module], bool]] = {
    "relu": (nn.ReLU, True),
    "relu6": (nn.ReLU6, True),
    "silu": (nn.SiLU, True),
    "swish": (nn.SiLU, True),
    "mish": (nn.Mish, True),
    "leaky_relu": (partial(nn.LeakyReLU, negative_slope=0.01), True),
    "elu": (nn.ELU, True),
    "celu": (nn.CELU, True),
    "selu": (nn.SELU, True),
    "hard_sigmoid": (nn.Hardsigmoid, True),
    "hard_swish": (nn.Hardswish, True),
    "sigmoid": (nn.Sigmoid, False),
    "tanh": (nn.Tanh, False),
    "prelu": (nn.PReLU, False),
    "gelu": (nn.GELU, False),
    "gelu_tanh": (partial(nn.GELU, approximate="tanh"), False),
    "quick_gelu": (QuickGELU, False),
    "identity": (nn.Identity, False),
}


PLAIN = {key.replace("_", ""): key for key in ACTS}


def get_act_layer(act: str | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """The activation class of a name, or the callable itself."""
    if not isinstance(act, str):
        return act
    return ACTS[_known(act)][0]


def _known(name: str) -> str:
    """The table's spelling of a name; class names such as `SiLU` and `LeakyReLU` are understood as well."""
    plain = PLAIN.get(name.lower().replace("_", ""))
    if plain is None:
        raise UnknownArgumentError(f"no activation {name!r}.{did_you_mean(name, ACTS)} Known: {', '.join(ACTS)}")
    return plain


def create_act(act: str | Callable[..., nn.Module], *, inplace: bool = False) -> nn.Module:
    """An activation module; works in place where asked for and possible."""
    if isinstance(act, str):
        layer, can = ACTS[_known(act)]
        return layer(inplace=True) if inplace and can else layer()
    if inplace and any(act is layer for layer, can in ACTS.values() if can):
        return act(inplace=True)
    return act()
