"""AdaBelief: Adam by how much a gradient differs from what was expected (https://arxiv.org/abs/2010.07468)."""

from collections.abc import Iterable
from typing import Any

import torch

from opsin.optim._common import Group, ListOptimizer, Tensors, decay, root

__all__ = ["AdaBelief"]


class AdaBelief(ListOptimizer):
    """See the paper.

    Args:
        params, lr, betas, eps, weight_decay: as for Adam.
        decoupled_decay: shrink the weights instead of adding to the gradient.
        fixed_decay: shrink them by `weight_decay` itself, whatever the rate.
        rectify: as RAdam (https://arxiv.org/abs/1908.03265), trust the variance only once it is known.
        degenerated_to_sgd: until then, step along the momentum; else not at all.
    """

    slots = ("exp_avg", "exp_avg_var")
    elementwise = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0.0,
        *,
        decoupled_decay: bool = True,
        fixed_decay: bool = False,
        rectify: bool = True,
        degenerated_to_sgd: bool = True,
        foreach: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, decoupled_decay=decoupled_decay,
            fixed_decay=fixed_decay, rectify=rectify, degenerated_to_sgd=degenerated_to_sgd, foreach=foreach,
        )  # fmt: skip

    def update(self, group: Group, step: int, params: Tensors, grads: Tensors, *slots: Tensors) -> None:
        mean, variance = slots
        beta1, beta2 = group["betas"]
        if group["decoupled_decay"] and group["fixed_decay"]:
            torch._foreach_mul_(params, 1 - group["weight_decay"])
        else:
            grads = decay(self, group, params, grads, decoupled=group["decoupled_decay"])
        torch._foreach_lerp_(mean, grads, 1 - beta1)
        surprise = list(torch._foreach_sub(grads, mean))
        torch._foreach_mul_(variance, beta2)
        torch._foreach_addcmul_(variance, surprise, surprise, 1 - beta2)
        torch._foreach_add_(variance, group["eps"])
        rate, correction = group["lr"] / (1 - beta1**step), 1 - beta2**step
        if group["rectify"]:
            trusted = rectification(step, beta2)
            if trusted is None:
                if group["degenerated_to_sgd"]:
                    torch._foreach_add_(params, mean, alpha=-rate)
                return
            rate, correction = rate * trusted * correction**0.5, 1
        torch._foreach_addcdiv_(params, mean, root(variance, correction, group["eps"]), -rate)


def rectification(step: int, beta2: float) -> float | None:
    """RAdam's factor for the adaptive step; None while the variance is unknown (five samples and fewer)."""
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / (1 - beta2**step)
    if length < 5:
        return None
    return (((length - 4) * (length - 2) * longest) / ((longest - 4) * (longest - 2) * length)) ** 0.5
