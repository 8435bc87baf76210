"""AdamP and SGDP: of weights whose length means nothing, only the direction is moved (https://arxiv.org/abs/2006.08217)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from opsin.optim._common import Group, ListOptimizer, Tensors, cautious, moments, root
from opsin.optim.sgdw import heavy_ball

__all__ = ["SGDP", "AdamP"]


class AdamP(ListOptimizer):
    """Adam with projection.

    Args:
        params, lr, betas, eps, weight_decay: as for AdamW.
        delta: weights are taken for scale-invariant if the cosine of weights and gradient is below delta / sqrt(size).
        wd_ratio: factor of their decay.
        nesterov: look one step ahead along the momentum.
        caution: see `_common`.
    """

    slots = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        nesterov: bool = False,
        caution: bool = False,
        foreach: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, delta=delta, wd_ratio=wd_ratio,
            nesterov=nesterov, caution=caution, foreach=foreach,
        )  # fmt: skip

    def update(self, group: Group, step: int, params: Tensors, grads: Tensors, *slots: Tensors) -> None:
        mean, square = slots
        beta1, beta2 = group["betas"]
        moments(mean, square, grads, beta1, beta2)
        ahead = list(torch._foreach_lerp(mean, grads, 1 - beta1)) if group["nesterov"] else mean
        update = list(torch._foreach_div(ahead, root(square, 1 - beta2**step, group["eps"])))
        rate = group["lr"] / (1 - beta1**step)
        for p, grad, direction in zip(params, grads, update, strict=True):
            move(p, grad, direction, group, rate, group["lr"] * group["weight_decay"])


class SGDP(ListOptimizer):
    """SGD with projection; `delta`, `wd_ratio`, `eps` as for AdamP, the rest as for SGD."""

    slots = ("momentum_buffer",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        eps: float = 1e-8,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        caution: bool = False,
        foreach: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov,
            eps=eps, delta=delta, wd_ratio=wd_ratio, caution=caution, foreach=foreach,
        )  # fmt: skip

    def slots_of(self, group: Group) -> tuple[str, ...]:
        return self.slots if group["momentum"] else ()

    def update(self, group: Group, step: int, params: Tensors, grads: Tensors, *slots: Tensors) -> None:
        update = heavy_ball(group, step + 1, grads, *slots)  # the first gradient is dampened too
        shrink = group["lr"] * group["weight_decay"] / (1 - group["momentum"])  # L2 decay would go through the momentum
        for p, grad, direction in zip(params, grads, update, strict=True):
            move(p, grad, direction, group, group["lr"], shrink)


def move(p: Tensor, grad: Tensor, direction: Tensor, group: Group, rate: float, shrink: float) -> None:
    """Step along a direction, without its part along weights that are scale-invariant as rows or as a whole."""
    unit = _invariant(p, grad, group)
    if unit is not None:
        direction, shrink = _across(unit, direction), shrink * group["wd_ratio"]
        grad = _across(unit, grad) if group["caution"] else grad
    if group["caution"]:
        (direction,) = cautious([direction], [grad])
        if unit is not None:  # what is left out may not push along the weights either
            direction = _across(unit, direction)
    p.mul_(1 - shrink).add_(direction, alpha=-rate)


def _invariant(p: Tensor, grad: Tensor, group: Group) -> Tensor | None:
    """The unit vectors of weights whose length means nothing, one a row or one for all; None where it does."""
    if p.ndim <= 1:
        return None
    eps, weights, grads = group["eps"], p.reshape(p.shape[0], -1), grad.reshape(p.shape[0], -1)
    products = torch.linalg.vecdot(weights, grads)
    lengths = [torch.linalg.vector_norm(x, dim=1) for x in (weights, grads)]
    whole = products.sum(0, keepdim=True), [x.norm().view(1) for x in lengths]
    for dots, (of_weights, of_grads) in ((products, lengths), whole):
        unit = p.reshape(len(dots), -1)
        cosine = dots / (of_weights.clamp(min=eps) * of_grads.clamp(min=eps))
        if cosine.abs().max() < group["delta"] / unit.shape[1] ** 0.5:
            return unit / (of_weights + eps)[:, None]
    return None


def _across(unit: Tensor, x: Tensor) -> Tensor:
    """What of each row of x is at right angles to its unit vector."""
    along = (unit * x.reshape(unit.shape)).sum(1, keepdim=True)
    return x - (unit * along).reshape(x.shape)
