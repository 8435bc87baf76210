"""PSGD with a Kronecker-factored preconditioner (https://arxiv.org/abs/1512.04202, https://arxiv.org/abs/2211.04422)."""

import math
import random
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from opsin.optim._common import Group, ListOptimizer, Tensors, decay

__all__ = ["Kron"]

LONGEST = 1.1  # root mean square of an update


class Kron(ListOptimizer):
    """The gradient is whitened by P = Q'Q, Q a Kronecker product of one factor a dimension, which is fitted as it goes.

    What is random is drawn anew from the number of the step and of the tensor: a run repeats itself, and all ranks
    draw the same.

    Args:
        params, lr, momentum, weight_decay: as for AdamW.
        preconditioner_update_probability: the factors are fitted once in its inverse of steps; None lets it fall from
            1, from step 500 on, to 0.03.
        max_size_triangular: longer dimensions have a diagonal factor.
        min_ndim_triangular: tensors of fewer dimensions have diagonal factors.
        momentum_into_precond_update: fit to the momentum instead of the gradient.
        precond_lr, precond_init_scale: rate of the fit, and where it begins.
        corrected_weight_decay: see `_common`.
    """

    slots = ("momentum_buffer",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        preconditioner_update_probability: float | None = None,
        max_size_triangular: int = 2048,
        min_ndim_triangular: int = 2,
        *,
        momentum_into_precond_update: bool = True,
        precond_lr: float = 0.1,
        precond_init_scale: float = 1.0,
        corrected_weight_decay: bool = False,
    ) -> None:
        super().__init__(
            params, lr=lr, momentum=momentum, weight_decay=weight_decay,
            preconditioner_update_probability=preconditioner_update_probability,
            max_size_triangular=max_size_triangular, min_ndim_triangular=min_ndim_triangular,
            momentum_into_precond_update=momentum_into_precond_update, precond_lr=precond_lr,
            precond_init_scale=precond_init_scale,
            corrected_weight_decay=corrected_weight_decay, foreach=False,
        )  # fmt: skip

    def first(self, state: dict[str, Any], p: Tensor, group: Group) -> None:
        state["seed"] = sum(len(g["params"]) for g in self.param_groups[: self.param_groups.index(group)])
        state["seed"] += next(i for i, other in enumerate(group["params"]) if other is p)
        state["since_fit"] = 0
        scale = group["precond_init_scale"] ** (1 / max(p.ndim, 1))
        for d, size in enumerate(p.shape or (1,)):
            diagonal = size == 1 or size > group["max_size_triangular"] or p.ndim < group["min_ndim_triangular"]
            ones = torch.full((size,), scale, dtype=p.dtype, device=p.device)
            state[f"q{d}"] = ones if diagonal else ones.diag()

    def update(self, group: Group, step: int, params: Tensors, grads: Tensors, *slots: Tensors) -> None:
        (p,), (grad,), (buffer,) = params, grads, slots[0]
        state = self.state[p]
        factors = [state[f"q{d}"] for d in range(max(p.ndim, 1))]
        buffer.lerp_(grad, 1 - group["momentum"])
        mean = buffer / (1 - group["momentum"] ** step)
        state["since_fit"] += 1
        if state["since_fit"] * probability(group, step) >= 1:
            state["since_fit"] = 0
            if p.ndim > 1 and random.Random(step).random() < 0.01:
                balance(factors)
            target = mean if group["momentum_into_precond_update"] else grad
            fit(factors, target.reshape(p.shape or 1), noise(target, step, state["seed"]), group["precond_lr"])
        update = whiten(factors, mean.reshape(p.shape or 1)).reshape(p.shape)
        update.mul_((LONGEST / (update.square().mean().sqrt() + 1e-6)).clamp_(max=1))
        decay(self, group, [p], [grad])
        p.sub_(update, alpha=group["lr"])


def probability(group: Group, step: int) -> float:
    """The share of steps in which the factors are fitted."""
    given = group["preconditioner_update_probability"]
    return max(0.03, min(1.0, math.exp(-0.001 * (step - 500)))) if given is None else given


def noise(like: Tensor, step: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed((step << 24) + seed)
    return torch.randn(like.shape or (1,), generator=generator).to(like)


def balance(factors: Tensors) -> None:
    """Give all factors the same largest value, which their product does not see."""
    norms = torch.stack([q.abs().max() for q in factors])
    for q, scale in zip(factors, norms.log().mean().exp() / norms, strict=True):
        q.mul_(scale)


def along(q: Tensor, x: Tensor, d: int) -> Tensor:
    """A factor times dimension `d` of a tensor."""
    if q.ndim == 1:
        return x * q.view(-1, *[1] * (x.ndim - d - 1))
    return torch.tensordot(q, x, ([1], [d])).movedim(0, d)


def unsolved(q: Tensor, x: Tensor, d: int) -> Tensor:
    """The inverse of a factor's transpose times dimension `d` of a tensor."""
    if q.ndim == 1:
        return along(1 / q, x, d)
    last = x.movedim(d, -1)
    rows = torch.linalg.solve_triangular(q.float(), last.reshape(-1, len(q)).float(), upper=True, left=False)
    return rows.to(x.dtype).reshape(last.shape).movedim(-1, d)


def whiten(factors: Tensors, x: Tensor) -> Tensor:
    """P times a tensor."""
    for d, q in enumerate(factors):
        x = along(q if q.ndim == 1 else q.T, along(q, x, d), d)
    return x


def fit(factors: Tensors, grad: Tensor, probe: Tensor, rate: float) -> None:
    """Step the factors towards E[P gg' P] = 1 along the natural gradient, with Qg and the inverse transpose's probe."""
    grad = grad + torch.finfo(torch.float32).eps * grad.abs().mean() * probe
    for d, q in enumerate(factors):
        grad, probe = along(q, grad, d), unsolved(q, probe, d)
    steps = []
    for d, q in enumerate(factors):
        ours, theirs = (x.movedim(d, 0).reshape(len(q), -1) for x in (grad, probe))
        if q.ndim == 1:
            first, second = ours.square().sum(1), theirs.square().sum(1)
            steps.append((first - second) * q / size(first + second))
        else:
            first, second = ours @ ours.T, theirs @ theirs.T
            steps.append((first - second).triu() @ q / size(first + second))
    for q, step in zip(factors, steps, strict=True):
        q.sub_(step, alpha=rate)


def size(m: Tensor) -> Tensor:
    """About the spectral norm of a symmetric matrix (a bound from below), or the largest value of a diagonal one."""
    largest = m.abs().max().clamp(min=torch.finfo(m.dtype).tiny)
    if m.ndim == 1:
        return largest
    m = m / largest
    x = m @ m[m.square().sum(1).argmax()]
    return largest * (m @ (x / x.norm())).norm()
