"""ADOPT: Adam that converges with any beta2 (https://arxiv.org/abs/2411.02853)."""

from collections.abc import Iterable
from typing import Any

import torch

from opsin.optim._common import Group, ListOptimizer, Tensors, cautious, decay

__all__ = ["Adopt"]


class Adopt(ListOptimizer):
    """A gradient is divided by the mean of squares from before it, clipped at `step ** clip_exp` (None: not), and then
    averaged. The first gradient only starts the mean of squares. `decoupled`: decay as in AdamW."""

    slots = ("exp_avg", "exp_avg_sq")
    elementwise = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-6,
        clip_exp: float | None = 0.333,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        *,
        corrected_weight_decay: bool = False,
        caution: bool = False,
        foreach: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, clip_exp=clip_exp, weight_decay=weight_decay, decoupled=decoupled,
            corrected_weight_decay=corrected_weight_decay, caution=caution, foreach=foreach,
        )  # fmt: skip

    def update(self, group: Group, step: int, params: Tensors, grads: Tensors, *slots: Tensors) -> None:
        mean, square = slots
        beta1, beta2 = group["betas"]
        if not group["decoupled"]:
            grads = decay(self, group, params, grads, decoupled=False)
        if step == 1:
            torch._foreach_addcmul_(square, grads, grads)
            return
        if group["decoupled"]:
            decay(self, group, params, grads)
        below = list(torch._foreach_sqrt(square))
        torch._foreach_clamp_min_(below, group["eps"])
        adapted = list(torch._foreach_div(grads, below))
        if group["clip_exp"] is not None:
            limit = (step - 1) ** group["clip_exp"]
            torch._foreach_clamp_min_(adapted, -limit)
            torch._foreach_clamp_max_(adapted, limit)
        torch._foreach_lerp_(mean, adapted, 1 - beta1)
        update = cautious(mean, grads) if group["caution"] else mean
        torch._foreach_add_(params, update, alpha=-group["lr"])
        torch._foreach_mul_(square, beta2)
        torch._foreach_addcmul_(square, grads, grads, 1 - beta2)
