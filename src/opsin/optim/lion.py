"""Lion: the sign of the momentum (https://arxiv.org/abs/2302.06675)."""

from collections.abc import Iterable
from typing import Any

import torch

from opsin.optim._common import Group, ListOptimizer, Tensors, cautious, decay

__all__ = ["Lion"]


class Lion(ListOptimizer):
    """Takes a rate three to ten times smaller, and a decay as much larger, than AdamW."""

    slots = ("exp_avg",)
    elementwise = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        caution: bool = False,
        corrected_weight_decay: bool = False,
        foreach: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, weight_decay=weight_decay, caution=caution,
            corrected_weight_decay=corrected_weight_decay, foreach=foreach,
        )  # fmt: skip

    def update(self, group: Group, step: int, params: Tensors, grads: Tensors, *slots: Tensors) -> None:
        (mean,) = slots
        beta1, beta2 = group["betas"]
        decay(self, group, params, grads)
        update = list(torch._foreach_lerp(mean, grads, 1 - beta1))
        torch._foreach_sign_(update)
        if group["caution"]:
            update = cautious(update, grads)
        torch._foreach_add_(params, update, alpha=-group["lr"])
        torch._foreach_lerp_(mean, grads, 1 - beta2)
