"""MARS: Adam or Lion on gradients with less variance (https://arxiv.org/abs/2411.10438)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from opsin.errors import check_choice
from opsin.optim._common import Group, ListOptimizer, Tensors, cautious, moments, root

__all__ = ["Mars"]


class Mars(ListOptimizer):
    """The approximate form: what a gradient is compared with is that of the batch before.

    Args:
        params, lr, betas, eps, weight_decay: as for AdamW.
        gamma: how much of the change of the gradient is added.
        mars_type: "adamw" or "lion".
        optimize_1d: biases, norms and the like as well; else they are left to AdamW.
        lr_1d_factor, betas_1d: of that AdamW; its betas are `betas` if None.
        caution: see `_common`.
    """

    slots = ("exp_avg", "exp_avg_sq", "previous_grad")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        gamma: float = 0.025,
        mars_type: str = "adamw",
        optimize_1d: bool = False,
        lr_1d_factor: float = 1.0,
        betas_1d: tuple[float, float] | None = None,
        caution: bool = False,
        foreach: bool | None = None,
    ) -> None:
        check_choice(mars_type, ("adamw", "lion"), what="mars_type")
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, gamma=gamma, mars_type=mars_type,
            optimize_1d=optimize_1d, lr_1d_factor=lr_1d_factor, betas_1d=betas_1d or betas, caution=caution,
            foreach=foreach,
        )  # fmt: skip

    def first(self, state: dict[str, Any], p: Tensor, group: Group) -> None:
        state["previous_grad"].copy_(p.grad)  # the first change is zero

    def update(self, group: Group, step: int, params: Tensors, grads: Tensors, *slots: Tensors) -> None:
        rows = list(zip(params, grads, *slots, strict=True))
        varied = [row for row in rows if row[0].ndim > 1 or group["optimize_1d"]]
        plain = [row for row in rows if row[0].ndim <= 1 and not group["optimize_1d"]]
        if varied:
            p, g, mean, square, previous = (list(column) for column in zip(*varied, strict=True))
            calm = reduced(g, previous, group["gamma"], group["betas"][0])
            if group["mars_type"] == "lion":
                torch._foreach_lerp_(mean, calm, 1 - group["betas"][0])
                self._move(group, p, g, list(torch._foreach_sign(mean)), group["lr"])
            else:
                moments(mean, square, calm, *group["betas"])
                self._move(group, p, g, adam(mean, square, step, group["betas"], group["eps"]), group["lr"])
        if plain:
            p, g, mean, square, _ = (list(column) for column in zip(*plain, strict=True))
            moments(mean, square, g, *group["betas_1d"])
            update = adam(mean, square, step, group["betas_1d"], group["eps"])
            self._move(group, p, g, update, group["lr"] * group["lr_1d_factor"])
        torch._foreach_copy_(slots[2], grads)

    def _move(self, group: Group, params: Tensors, grads: Tensors, update: Tensors, lr: float) -> None:
        if group["caution"]:
            update = cautious(update, grads)
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_add_(params, update, alpha=-lr)


def reduced(grads: Tensors, previous: Tensors, gamma: float, beta1: float) -> Tensors:
    """Gradients with a share of their change, each tensor no longer than one."""
    calm = list(torch._foreach_sub(grads, previous))
    torch._foreach_mul_(calm, gamma * beta1 / (1 - beta1))
    torch._foreach_add_(calm, grads)
    lengths = list(torch._foreach_norm(calm))
    torch._foreach_clamp_min_(lengths, 1)
    torch._foreach_div_(calm, lengths)
    return calm


def adam(mean: Tensors, square: Tensors, step: int, betas: tuple[float, float], eps: float) -> Tensors:
    update = list(torch._foreach_div(mean, 1 - betas[0] ** step))
    torch._foreach_div_(update, root(square, 1 - betas[1] ** step, eps))
    return update
