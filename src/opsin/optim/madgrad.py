"""MADGRAD: dual averaging with the cube root of squared gradients (https://arxiv.org/abs/2101.11075)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from opsin.optim._common import Group, ListOptimizer, Tensors, decay

__all__ = ["MADGRAD"]


class MADGRAD(ListOptimizer):
    """See the paper. Wants less decay than SGD; `decoupled_decay` shrinks the weights instead."""

    slots = ("grad_sum", "grad_sum_sq", "origin")
    elementwise = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eps: float = 1e-6,
        *,
        decoupled_decay: bool = False,
        foreach: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr=lr, momentum=momentum, weight_decay=weight_decay, eps=eps, decoupled_decay=decoupled_decay,
            foreach=foreach,
        )  # fmt: skip

    def first(self, state: dict[str, Any], p: Tensor, group: Group) -> None:
        state["origin"].copy_(p)

    def update(self, group: Group, step: int, params: Tensors, grads: Tensors, *slots: Tensors) -> None:
        total, total_sq, origin = slots
        grads = decay(self, group, params, grads, decoupled=group["decoupled_decay"])
        weight = (group["lr"] + group["eps"]) * step**0.5  # more than zero, for the sums to mean something
        torch._foreach_add_(total, grads, alpha=weight)
        torch._foreach_addcmul_(total_sq, grads, grads, weight)
        below = list(torch._foreach_pow(total_sq, 1 / 3))
        torch._foreach_add_(below, group["eps"])
        goal = list(torch._foreach_addcdiv(origin, total, below, -1))
        torch._foreach_lerp_(params, goal, 1 - group["momentum"])
