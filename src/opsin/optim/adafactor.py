"""Adafactor: Adam whose second moment is kept as means of rows and columns (https://arxiv.org/abs/1804.04235)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from opsin.errors import OpsinError
from opsin.optim._common import Group, ListOptimizer, Tensors, cautious

__all__ = ["Adafactor"]


class Adafactor(ListOptimizer):
    """The paper's.

    Args:
        params, weight_decay: as for AdamW.
        lr: None takes the paper's own, at most 0.01 and falling with the root of the step, which no scheduler changes.
        eps: added to squared gradients.
        eps_scale: least size of weights that `scale_parameter` counts with.
        clip_threshold: largest root mean square of an update.
        decay_rate: the second moment decays by 1 - step ** decay_rate.
        betas: the first is that of a first moment; None keeps none.
        scale_parameter: multiply the rate by the root mean square of the weights; None does with the paper's own rate.
        warmup_init: with `lr=None`, at most 1e-6 x step.
        min_dim_size_to_factor: smaller matrices keep the whole second moment.
        caution: see `_common`; it needs a first moment.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | None = None,
        eps: float = 1e-30,
        eps_scale: float = 1e-3,
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        betas: tuple[float, float] | None = None,
        weight_decay: float = 0.0,
        *,
        scale_parameter: bool | None = None,
        warmup_init: bool = False,
        min_dim_size_to_factor: int = 16,
        caution: bool = False,
    ) -> None:
        if caution and betas is None:
            raise OpsinError("Adafactor: caution needs a first moment to be cautious about: pass betas")
        if warmup_init and lr is not None:
            raise OpsinError("Adafactor: warmup_init belongs to the paper's own rate: pass lr=None")
        scaled = lr is None if scale_parameter is None else scale_parameter
        super().__init__(
            params, lr=0.0 if lr is None else lr, eps=eps, eps_scale=eps_scale, clip_threshold=clip_threshold,
            decay_rate=decay_rate, betas=betas, weight_decay=weight_decay, scale_parameter=scaled,
            relative_step=lr is None, warmup_init=warmup_init, min_dim_size_to_factor=min_dim_size_to_factor,
            caution=caution, foreach=False,
        )  # fmt: skip

    def first(self, state: dict[str, Any], p: Tensor, group: Group) -> None:
        start_second_moment(state, p, group["min_dim_size_to_factor"])
        if group["betas"] is not None:
            state["exp_avg"] = torch.zeros_like(p)

    def update(self, group: Group, step: int, params: Tensors, grads: Tensors, *slots: Tensors) -> None:
        (p,), (grad,) = params, grads
        state = self.state[p]
        lr = self._rate(group, step, p)
        square = grad.square().add_(group["eps"])
        update = inverse_root(state, square, 1 - step ** group["decay_rate"], group["min_dim_size_to_factor"])
        update.mul_(grad)
        update.div_((rms(update) / group["clip_threshold"]).clamp_(min=1))
        update.mul_(lr)
        if "exp_avg" in state:
            update = state["exp_avg"].lerp_(update, 1 - group["betas"][0])
            if group["caution"]:
                (update,) = cautious([update], [grad])
        p.mul_(1 - lr * group["weight_decay"]).sub_(update)

    def _rate(self, group: Group, step: int, p: Tensor) -> float | Tensor:
        lr = group["lr"]
        if group["relative_step"]:
            lr = min(1e-6 * step if group["warmup_init"] else 1e-2, step**-0.5)
        return lr * rms(p).clamp_(min=group["eps_scale"]) if group["scale_parameter"] else lr


def rms(x: Tensor) -> Tensor:
    """Root mean square."""
    return x.square().mean().sqrt_()


def factored_dims(shape: torch.Size, least: int) -> tuple[int, int] | None:
    """The two dimensions over which means are kept, the larger one first; None if there are not two of that size."""
    if len(shape) < 2:
        return None
    *_, second, largest = sorted(range(len(shape)), key=lambda d: shape[d])
    return (largest, second) if shape[second] >= least else None


def start_second_moment(state: dict[str, Any], p: Tensor, least: int) -> None:
    """Zeros for `inverse_root`."""
    dims = factored_dims(p.shape, least)
    if dims is None:
        state["exp_avg_sq"] = torch.zeros_like(p)
    else:
        state["exp_avg_sq_row"], state["exp_avg_sq_col"] = (p.new_zeros(p.sum(d, keepdim=True).shape) for d in dims)


def inverse_root(state: dict[str, Any], square: Tensor, beta2: float, least: int) -> Tensor:
    """Move the second moment on, and give one over its root, for which the memory of `square` may be taken."""
    dims = factored_dims(square.shape, least)
    if dims is None:
        return state["exp_avg_sq"].lerp_(square, 1 - beta2).rsqrt()
    row = state["exp_avg_sq_row"].lerp_(square.mean(dims[0], keepdim=True), 1 - beta2)
    col = state["exp_avg_sq_col"].lerp_(square.mean(dims[1], keepdim=True), 1 - beta2)
    return torch.mul((row / row.mean(dims[1], keepdim=True)).rsqrt_(), col.rsqrt(), out=square)
