"""A norm and the activation behind it as one module, so that checkpoints hold them under one name."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, did_you_mean
from opsin.layers.act import create_act
from opsin.layers.norm import GroupNorm, LayerNorm2d

__all__ = [
    "BatchNormAct2d",
    "EvoNorm2dS0",
    "EvoNorm2dS0a",
    "FilterResponseNormTlu2d",
    "GroupNormAct",
    "LayerNormAct2d",
    "get_norm_act_layer",
]

Act = str | Callable[..., nn.Module]


def _act(act_layer: Act, apply_act: bool, inplace: bool) -> nn.Module:
    return create_act(act_layer, inplace=inplace) if apply_act else nn.Identity()


class BatchNormAct2d(nn.BatchNorm2d):
    """Batch norm, then an activation."""

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True,
        track_running_stats: bool = True, apply_act: bool = True, act_layer: Act = "relu", *, inplace: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.act = _act(act_layer, apply_act, inplace)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class GroupNormAct(GroupNorm):
    """Group norm (32 groups, or groups of `group_size`), then an activation."""

    def __init__(
        self, num_channels: int, num_groups: int = 32, eps: float = 1e-5, affine: bool = True,
        group_size: int | None = None, apply_act: bool = True, act_layer: Act = "relu", *, inplace: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(num_channels, num_groups, eps, affine, group_size)
        self.act = _act(act_layer, apply_act, inplace)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class LayerNormAct2d(LayerNorm2d):
    """Layer norm over the channels of (B, C, H, W), then an activation."""

    def __init__(
        self, num_channels: int, eps: float = 1e-5, affine: bool = True, apply_act: bool = True,
        act_layer: Act = "relu", *, inplace: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(num_channels, eps, affine)
        self.act = _act(act_layer, apply_act, inplace)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class EvoNorm2dS0(nn.Module):
    """EvoNorm S0 (https://arxiv.org/abs/2004.02967): `x sigmoid(v x) / std(group)`, then scale and shift.

    The nonlinearity is its own: `act_layer` has no say. With `apply_act=False` only scale and shift are left.
    """

    def __init__(
        self, num_channels: int, num_groups: int = 32, eps: float = 1e-5, group_size: int | None = None, *,
        apply_act: bool = True, act_layer: Act = "silu",
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_groups = num_channels // group_size if group_size else num_groups
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(num_channels))
        self.bias = nn.Parameter(torch.empty(num_channels))
        self.v = nn.Parameter(torch.empty(num_channels)) if apply_act else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        if self.v is not None:
            nn.init.ones_(self.v)

    def std(self, x: Tensor) -> Tensor:
        """Of each group of channels, for each channel (B, C, 1, 1)."""
        exact = torch.promote_types(x.dtype, torch.float32)  # a variance in half precision is worth little
        groups = x.to(exact).reshape(x.shape[0], self.num_groups, -1)
        std = (groups.var(-1, correction=0) + self.eps).sqrt().to(x.dtype)
        return std.repeat_interleave(x.shape[1] // self.num_groups, 1)[:, :, None, None]

    def normalize(self, x: Tensor) -> Tensor:
        return x if self.v is None else x * torch.sigmoid(self.v.view(-1, 1, 1) * x) / self.std(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalize(x) * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


class EvoNorm2dS0a(EvoNorm2dS0):
    """EvoNorm S0 that divides by the standard deviation in any case, also with `apply_act=False`."""

    def __init__(
        self, num_channels: int, num_groups: int = 32, eps: float = 1e-3, group_size: int | None = None, *,
        apply_act: bool = True, act_layer: Act = "silu",
    ) -> None:  # fmt: skip
        super().__init__(num_channels, num_groups, eps, group_size, apply_act=apply_act, act_layer=act_layer)

    def normalize(self, x: Tensor) -> Tensor:
        return x / self.std(x) if self.v is None else super().normalize(x)


class FilterResponseNormTlu2d(nn.Module):
    """Filter response norm (https://arxiv.org/abs/1911.09737): `x / rms(channel)`, scale and shift, learned threshold.

    The threshold is the nonlinearity: `act_layer` has no say, and `apply_act=False` leaves it out.
    """

    def __init__(
        self, num_channels: int, eps: float = 1e-5, *, apply_act: bool = True, act_layer: Act = "relu"
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(num_channels))
        self.bias = nn.Parameter(torch.empty(num_channels))
        self.tau = nn.Parameter(torch.empty(num_channels)) if apply_act else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        if self.tau is not None:
            nn.init.zeros_(self.tau)

    def forward(self, x: Tensor) -> Tensor:
        channels = (-1, 1, 1)
        exact = torch.promote_types(x.dtype, torch.float32)
        power = x.to(exact).square().mean((2, 3), keepdim=True)
        x = x * (power + self.eps).rsqrt().to(x.dtype)
        x = x * self.weight.view(channels) + self.bias.view(channels)
        return x if self.tau is None else torch.maximum(x, self.tau.view(channels))


NORM_ACTS: dict[str, Callable[..., nn.Module]] = {
    "batchnorm": BatchNormAct2d,
    "batchnorm2d": BatchNormAct2d,
    "batchnormact2d": BatchNormAct2d,
    "groupnorm": GroupNormAct,
    "groupnormact": GroupNormAct,
    "layernorm2d": LayerNormAct2d,
    "layernormact2d": LayerNormAct2d,
    "evonorm2ds0": EvoNorm2dS0,
    "evonorm2ds0a": EvoNorm2dS0a,
    "filterresponsenormtlu2d": FilterResponseNormTlu2d,
}


def get_norm_act_layer(
    norm: str | Callable[..., nn.Module], norm_args: Mapping[str, Any] | None = None
) -> Callable[..., nn.Module]:
    """The norm with activation for a name or a plain norm class, `partial` or not; `norm_args` are bound to it.

    The result is called with channels, `apply_act` and `act_layer`. Other callables must take these themselves.
    """
    bound: dict[str, Any] = dict(norm_args or {})
    if isinstance(norm, partial):
        if norm.args:
            raise UnknownArgumentError(f"{norm}: bind the arguments of a norm by name")
        bound = norm.keywords | bound
        norm = norm.func
    if not isinstance(norm, str) and "apply_act" not in inspect.signature(norm).parameters:
        norm = getattr(norm, "__name__", str(norm))
    if isinstance(norm, str):
        key = norm.lower().replace("_", "")
        if key not in NORM_ACTS:
            near = did_you_mean(key, NORM_ACTS)
            raise UnknownArgumentError(f"no norm with activation {norm!r}.{near} Known: {', '.join(NORM_ACTS)}")
        norm = NORM_ACTS[key]
    return partial(norm, **bound) if bound else norm
