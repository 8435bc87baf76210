"""Initialisation: values truly inside their bounds, the same for any thread count, and none that is thrown away."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["init_conv_net_", "init_pyramid_", "lecun_normal_", "skip_init", "trunc_normal_", "variance_scaling_"]

_LEAVES = (nn.Linear, nn.modules.conv._ConvNd, _NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.Embedding)
_lock = threading.Lock()
_skipping: dict[int, int] = {}  # thread id -> depth of nested `skip_init`
_originals: dict[type, object] = {}


@contextmanager
def skip_init() -> Iterator[None]:
    """Build torch's own leaf modules with uninitialised memory, in this thread only.

    Only `reset_parameters` of torch's leaves is passed over; buffers that a module computes itself come out right.
    Whoever uses this must initialise or overwrite every parameter afterwards.
    """
    me = threading.get_ident()
    with _lock:
        if not _skipping:
            for leaf in _LEAVES:
                _originals[leaf] = leaf.reset_parameters
                leaf.reset_parameters = _unless_skipping(leaf.reset_parameters)  # type: ignore[method-assign]
        _skipping[me] = _skipping.get(me, 0) + 1
    try:
        yield
    finally:
        with _lock:
            _skipping[me] -= 1
            if not _skipping[me]:
                del _skipping[me]
            if not _skipping:
                for leaf in _LEAVES:
                    leaf.reset_parameters = _originals[leaf]  # type: ignore[method-assign, assignment]


def _unless_skipping(reset):
    def reset_parameters(module: nn.Module) -> None:
        if threading.get_ident() not in _skipping:
            reset(module)
        elif isinstance(module, _NormBase):
            module.reset_running_stats()  # buffers: cheap, and a checkpoint may leave out the counter

    return reset_parameters


@torch.no_grad()
def trunc_normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0) -> Tensor:
    """Fill with a normal of `mean` and `std`, redrawn until each value is within [a, b] standard deviations.

    Rejection, not the inverse error function: its tails overflow now and then, and its last bits hang on how threads
    split the tensor. The bounds are in units of `std`, so `std=0.02` still means a cut at two sigma.
    """
    if not a < b:
        raise ValueError(f"trunc_normal_ needs a < b, got a={a}, b={b}")
    if tensor.is_meta or tensor.numel() == 0:
        return tensor
    draw = torch.empty(tensor.shape, dtype=torch.float32, device=tensor.device).normal_()
    flat = draw.view(-1)
    outside = ((flat < a) | (flat > b)).nonzero().squeeze(1)
    while outside.numel():
        again = torch.empty(outside.numel(), device=flat.device).normal_()
        flat[outside] = again
        outside = outside[(again < a) | (again > b)]
    return tensor.copy_(draw.mul_(std).add_(mean))


def variance_scaling_(tensor: Tensor, scale: float = 1.0, mode: str = "fan_in", distribution: str = "normal") -> Tensor:
    """Variance scaling as in JAX: mode fan_in, fan_out or fan_avg; distribution normal, truncated_normal or uniform."""
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(tensor)
    variance = scale / {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
    if distribution == "truncated_normal":  # 0.8796 is the std of a unit normal cut at two sigma
        return trunc_normal_(tensor, std=variance**0.5 / 0.87962566103423978)
    if distribution == "normal":
        return nn.init.normal_(tensor, std=variance**0.5)
    if distribution == "uniform":
        return nn.init.uniform_(tensor, -((3 * variance) ** 0.5), (3 * variance) ** 0.5)
    raise ValueError(f"unknown distribution {distribution!r}: normal, truncated_normal or uniform")


def lecun_normal_(tensor: Tensor) -> Tensor:
    """Truncated normal with variance 1 / fan_in, the default of JAX layers."""
    return variance_scaling_(tensor, distribution="truncated_normal")


def init_conv_net_(module: nn.Module) -> bool:
    """What most convolutional networks start from: He's normal by fan-out, a small normal for the classifier, no bias.

    False for other modules, which keep their own default (https://arxiv.org/abs/1502.01852).
    """
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
    else:
        return False
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return True


def init_pyramid_(module: nn.Module) -> bool:
    """What vision transformers of the PVT line start from: a small normal for linear layers, He's for convolutions.

    False for other modules, which keep their own default (https://arxiv.org/abs/2102.12122).
    """
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
    else:
        return False
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return True
