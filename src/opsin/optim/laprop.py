"""LaProp: momentum of adapted gradients, so that its length does not hang on the mean of squares
(https://arxiv.org/abs/2002.04839)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from opsin.optim._common import Group, ListOptimizer, Tensors, cautious, decay, root

__all__ = ["LaProp"]


class LaProp(ListOptimizer):
    """See the paper. Steps are averaged with the rate they were taken with."""

    slots = ("exp_avg", "exp_avg_sq")
    numbers = ("step", "mean_lr")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 4e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-15,
        weight_decay: float = 0.0,
        *,
        caution: bool = False,
        corrected_weight_decay: bool = False,
        foreach: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, caution=caution,
            corrected_weight_decay=corrected_weight_decay, foreach=foreach,
        )  # fmt: skip

    def first(self, state: dict[str, Any], p: Tensor, group: Group) -> None:
        state["mean_lr"] = 0.0

    def update(self, group: Group, step: int, params: Tensors, grads: Tensors, *slots: Tensors) -> None:
        beta1, lr = group["betas"][0], group["lr"]
        states = [self.state[p] for p in params]
        for state in states:
            state["mean_lr"] = beta1 * state["mean_lr"] + (1 - beta1) * lr
        factors = [lr / state["mean_lr"] if lr else 0.0 for state in states]
        for part in self.parts(group, [params, grads, *slots]):
            self._move(group, step, factors, *part)

    def _move(self, group: Group, step: int, factors: list[float], *lists: Tensors) -> None:
        params, grads, mean, square = lists
        beta1, beta2 = group["betas"]
        torch._foreach_mul_(square, beta2)
        torch._foreach_addcmul_(square, grads, grads, 1 - beta2)
        adapted = list(torch._foreach_div(grads, root(square, 1 - beta2**step, group["eps"])))
        torch._foreach_mul_(mean, beta1)
        torch._foreach_add_(mean, adapted, alpha=(1 - beta1) * group["lr"])
        update = cautious(mean, grads) if group["caution"] else mean
        torch._foreach_sub_(params, torch._foreach_mul(update, factors))
        decay(self, group, params, grads)
