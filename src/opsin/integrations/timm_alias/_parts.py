"""Helpers of timm's layers and model files that opsin has in another form."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from opsin.layers import SelectAdaptivePool2d, create_act, get_act_layer, get_norm_layer, resample_abs_pos_embed
from opsin.models._swin import departition, partition

__all__ = ["create_classifier", "get_act_fn", "get_padding", "set_layer_config"]

# --- layers ----------------------------------------------------------------------------------------------------------


def get_act_fn(name: Any = "relu") -> Callable[..., Tensor] | None:
    """An activation by name as a function of a tensor and `inplace`; None for none."""
    if not name or not isinstance(name, str):
        return name or None
    plain, inside = create_act(name), create_act(name, inplace=True)
    return lambda x, inplace=False: (inside if inplace else plain)(x)


def create_norm_layer(layer_name: Any, num_features: int, **kwargs: Any) -> nn.Module:
    return get_norm_layer(layer_name)(num_features, **kwargs)


def create_classifier(
    num_features: int, num_classes: int, pool_type: str = "avg", use_conv: bool = False, input_fmt: str = "NCHW",
    drop_rate: float | None = None,
) -> tuple[nn.Module, ...]:  # fmt: skip
    """Pooling and classifier, between them a dropout where a rate is given."""
    if num_classes and not (pool_type or use_conv):
        raise ValueError("pool_type='' leaves a map: it needs num_classes=0 or use_conv=True")
    pool = SelectAdaptivePool2d(1, pool_type, bool(pool_type) and not use_conv, input_fmt)
    width = num_features * pool.feat_mult()
    fc: nn.Module = nn.Conv2d(width, num_classes, 1) if use_conv else nn.Linear(width, num_classes or 1)
    fc = fc if num_classes else nn.Identity()
    return (pool, fc) if drop_rate is None else (pool, nn.Dropout(drop_rate), fc)


def get_padding(kernel_size: Any, stride: Any = 1, dilation: Any = 1, **_: Any) -> Any:
    """The padding on each side that keeps the size (divided by `stride`); a list for several sides."""
    if any(isinstance(value, tuple | list) for value in (kernel_size, stride, dilation)):
        pair = [value if isinstance(value, tuple | list) else (value,) * 2 for value in (kernel_size, stride, dilation)]
        return [get_padding(*side) for side in zip(*pair, strict=True)]
    return ((stride - 1) + dilation * (kernel_size - 1)) // 2


@contextmanager
def set_layer_config(
    scriptable: bool | None = None, exportable: bool | None = None, no_jit: bool | None = None,
    no_activation_jit: bool | None = None,
) -> Iterator[None]:  # fmt: skip
    """What chooses in timm between ways to compute the same; opsin has one way, so nothing changes."""
    yield


# --- model files -----------------------------------------------------------------------------------------------------


def resolve_bn_args(kwargs: dict[str, Any]) -> dict[str, float]:
    """`bn_momentum` and `bn_eps`, taken out of `kwargs`, under the names that a batch norm knows them by."""
    named = {"momentum": kwargs.pop("bn_momentum", None), "eps": kwargs.pop("bn_eps", None)}
    return {name: value for name, value in named.items() if value is not None}


def resolve_act_layer(kwargs: dict[str, Any], default: str = "relu") -> Any:
    """The class of `act_layer`, taken out of `kwargs`."""
    return get_act_layer(kwargs.pop("act_layer", None) or default)


def resize_pos_embed(
    posemb: Tensor, posemb_new: Tensor, num_prefix_tokens: int = 1, gs_new: tuple[int, ...] = (),
    interpolation: str = "bicubic", antialias: bool = False,
) -> Tensor:  # fmt: skip
    """The position embedding for as many patches as `posemb_new` is of, in a square unless `gs_new` says otherwise."""
    if not gs_new:
        gs_new = (round((posemb_new.shape[1] - num_prefix_tokens) ** 0.5),) * 2
    return resample_abs_pos_embed(
        posemb, gs_new, num_prefix_tokens=num_prefix_tokens, interpolation=interpolation, antialias=antialias
    )


def window_partition(x: Tensor, window_size: tuple[int, int]) -> Tensor:
    """`(B, H, W, C)` to `(B * windows, height, width, C)`."""
    return partition(x, window_size).unflatten(1, window_size)


def window_reverse(windows: Tensor, window_size: tuple[int, int], H: int, W: int) -> Tensor:
    """`(B * windows, height, width, C)` back to `(B, H, W, C)`."""
    return departition(windows.flatten(1, 2), window_size, H, W)
