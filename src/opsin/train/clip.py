"""Gradient clipping: by norm, by value, and adaptively."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from opsin.errors import OpsinError, did_you_mean

__all__ = ["adaptive_clip_", "clip_units_", "make_clip"]

MODES = ("norm", "value", "agc")


def make_clip(limit: float | None, mode: str = "norm") -> Callable[[nn.Module], Tensor | None] | None:
    """A function that clips the gradients of a model in place, and by norm returns how long they were; None without a
    limit."""
    if mode not in MODES:
        raise OpsinError(f"no clip_mode {mode!r}.{did_you_mean(mode, MODES) or ' It can be ' + ', '.join(MODES) + '.'}")
    if limit is None:
        return None
    if not limit > 0:
        raise OpsinError(f"clip_grad must be above 0, not {limit}")
    match mode:
        case "norm":
            return lambda model: nn.utils.clip_grad_norm_(model.parameters(), limit)
        case "value":
            return lambda model: nn.utils.clip_grad_value_(model.parameters(), limit)
    return lambda model: adaptive_clip_(model, limit)


def adaptive_clip_(model: nn.Module, limit: float, *, eps: float = 1e-3) -> None:
    """Adaptive gradient clipping of a model. The classifier is left out, as in the paper."""
    heads: Any = model.get_classifier() if hasattr(model, "get_classifier") else ()  # type: ignore[operator]
    heads = heads if isinstance(heads, tuple) else (heads,)
    spared = {id(p) for head in heads for p in head.parameters()}
    clip_units_((p for p in model.parameters() if id(p) not in spared), limit, eps=eps)


@torch.no_grad()
def clip_units_(parameters: Iterable[Tensor], limit: float, *, eps: float = 1e-3, norm: float = 2.0) -> None:
    """Adaptive gradient clipping (https://arxiv.org/abs/2102.06171): the gradient of each unit, a row of a weight, is
    at most `limit` times as long as its weights, which count as `eps` at least."""
    for parameter in parameters:
        if parameter.grad is not None:
            most = _unit_norm(parameter, norm).clamp_min(eps) * limit
            length = _unit_norm(parameter.grad, norm)
            parameter.grad.mul_((most / length.clamp_min(1e-6)).clamp_max(1))


def _unit_norm(value: Tensor, norm: float) -> Tensor:
    """The length of each row of a weight; of a bias or gain, of each number's own vector as a whole."""
    dims = tuple(range(1, value.ndim)) if value.ndim > 1 else None
    return torch.linalg.vector_norm(value, norm, dim=dims, keepdim=True)
