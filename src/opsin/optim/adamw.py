"""AdamW (https://arxiv.org/abs/1711.05101) and NAdamW in the forms that torch does not have: cautious, corrected decay.

NAdamW looks one step ahead along the momentum, with the plain bias correction
(https://github.com/mlcommons/algorithmic-efficiency).
"""

from collections.abc import Iterable
from typing import Any

import torch

from opsin.optim._common import Group, ListOptimizer, Tensors, cautious, decay, moments, root

__all__ = ["AdamW"]


class AdamW(ListOptimizer):
    """See the papers. `nesterov`: NAdamW. `caution`, `corrected_weight_decay`: see `_common`."""

    slots = ("exp_avg", "exp_avg_sq")
    elementwise = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        nesterov: bool = False,
        caution: bool = False,
        corrected_weight_decay: bool = False,
        foreach: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, nesterov=nesterov, caution=caution,
            corrected_weight_decay=corrected_weight_decay, foreach=foreach,
        )  # fmt: skip

    def update(self, group: Group, step: int, params: Tensors, grads: Tensors, *slots: Tensors) -> None:
        mean, square = slots
        beta1, beta2 = group["betas"]
        decay(self, group, params, grads)
        moments(mean, square, grads, beta1, beta2)
        ahead = list(torch._foreach_lerp(mean, grads, 1 - beta1)) if group["nesterov"] else mean
        if group["caution"]:
            ahead = cautious(ahead, grads)
        denominator = root(square, 1 - beta2**step, group["eps"])
        torch._foreach_addcdiv_(params, ahead, denominator, -group["lr"] / (1 - beta1**step))
