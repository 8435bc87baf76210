"""Adan: Nesterov's momentum from the change of the gradient (https://arxiv.org/abs/2208.06677)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from opsin.optim._common import Group, ListOptimizer, Tensors, cautious, root

__all__ = ["Adan"]


class Adan(ListOptimizer):
    """See the paper, whose betas are one minus these. `no_prox`: decay as in AdamW, not as a proximal step. `caution`
    is for the mean gradient alone."""

    slots = ("exp_avg", "exp_avg_diff", "exp_avg_sq", "previous_grad")
    elementwise = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        no_prox: bool = False,
        caution: bool = False,
        foreach: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, no_prox=no_prox, caution=caution,
            foreach=foreach,
        )  # fmt: skip

    def first(self, state: dict[str, Any], p: Tensor, group: Group) -> None:
        state["previous_grad"].copy_(p.grad)  # the first change is zero

    def update(self, group: Group, step: int, params: Tensors, grads: Tensors, *slots: Tensors) -> None:
        mean, change, square, previous = slots
        beta1, beta2, beta3 = group["betas"]
        lr, shrink = group["lr"], group["lr"] * group["weight_decay"]
        difference = list(torch._foreach_sub(grads, previous))
        torch._foreach_copy_(previous, grads)
        torch._foreach_lerp_(mean, grads, 1 - beta1)
        torch._foreach_lerp_(change, difference, 1 - beta2)
        torch._foreach_mul_(difference, beta2)
        torch._foreach_add_(difference, grads)
        torch._foreach_mul_(square, beta3)
        torch._foreach_addcmul_(square, difference, difference, 1 - beta3)
        update = cautious(mean, grads) if group["caution"] else mean
        update = list(torch._foreach_div(update, 1 - beta1**step))
        torch._foreach_add_(update, change, alpha=beta2 / (1 - beta2**step))
        torch._foreach_div_(update, root(square, 1 - beta3**step, group["eps"]))
        if group["no_prox"]:
            torch._foreach_mul_(params, 1 - shrink)
        torch._foreach_add_(params, update, alpha=-lr)
        if not group["no_prox"]:
            torch._foreach_div_(params, 1 + shrink)
