"""Normalisation layers, and the names they go by in configs."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, did_you_mean

__all__ = [
    "GroupNorm",
    "GroupNorm1",
    "LayerNorm",
    "LayerNorm2d",
    "RmsNorm",
    "RmsNorm2d",
    "SimpleNorm",
    "SimpleNorm2d",
    "get_norm_layer",
]


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last dimension. `num_channels`, `eps` (default 1e-6, as transformers here use it)."""

    def __init__(self, num_channels: int, eps: float = 1e-6, affine: bool = True) -> None:
        super().__init__(num_channels, eps=eps, elementwise_affine=affine)


class LayerNorm2d(LayerNorm):
    """Layer norm over the channels of `(B, C, H, W)`."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class RmsNorm(nn.Module):
    """Root mean square norm over the last dimension (https://arxiv.org/abs/1910.07467): `x / rms(x) * weight`."""

    def __init__(self, num_channels: int, eps: float = 1e-6, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.normalized_shape = (num_channels,)
        self.weight = nn.Parameter(torch.ones(num_channels)) if affine else None

    def reset_parameters(self) -> None:
        if self.weight is not None:
            nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)


class RmsNorm2d(RmsNorm):
    """Root mean square norm over the channels of `(B, C, H, W)`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SimpleNorm(RmsNorm):
    """As `RmsNorm`, but divides by the (unbiased) standard deviation while leaving the mean in."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.var(dim=-1, keepdim=True) + self.eps)
        return x if self.weight is None else x * self.weight


class SimpleNorm2d(SimpleNorm):
    """`SimpleNorm` over the channels of `(B, C, H, W)`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GroupNorm(nn.GroupNorm):
    """Group norm that takes the channels first, like every other norm here: 32 groups, or groups of `group_size`."""

    def __init__(
        self, num_channels: int, num_groups: int = 32, eps: float = 1e-5, affine: bool = True,
        group_size: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(num_channels // group_size if group_size else num_groups, num_channels, eps, affine)


class GroupNorm1(GroupNorm):
    """Group norm with a single group: layer norm over channels and positions."""

    def __init__(self, num_channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(num_channels, 1, eps, affine)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "batchnorm": nn.BatchNorm2d,
    "batchnorm2d": nn.BatchNorm2d,
    "groupnorm": GroupNorm,
    "groupnorm1": GroupNorm1,
    "layernorm": LayerNorm,
    "layernorm2d": LayerNorm2d,
    "rmsnorm": RmsNorm,
    "rmsnorm2d": RmsNorm2d,
    "simplenorm": SimpleNorm,
    "simplenorm2d": SimpleNorm2d,
}


def get_norm_layer(norm: str | Callable[..., nn.Module], **fixed: object) -> Callable[..., nn.Module]:
    """The norm class of a name (or the callable itself); `fixed` arguments such as `eps` are bound."""
    if isinstance(norm, str):
        key = norm.lower().replace("_", "")
        if key not in NORMS:
            raise UnknownArgumentError(f"no norm layer {norm!r}.{did_you_mean(key, NORMS)} Known: {', '.join(NORMS)}")
        norm = NORMS[key]
    return partial(norm, **fixed) if fixed else norm
