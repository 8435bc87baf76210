"""SGD with momentum and decoupled weight decay (https://arxiv.org/abs/1711.05101)."""

from collections.abc import Iterable
from typing import Any

import torch

from opsin.optim._common import Group, ListOptimizer, Tensors, cautious, decay

__all__ = ["SGDW"]


class SGDW(ListOptimizer):
    """torch's SGD, but that the decay shrinks the weights. `caution`, `corrected_weight_decay`: see `_common`."""

    slots = ("momentum_buffer",)
    elementwise = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        caution: bool = False,
        corrected_weight_decay: bool = False,
        foreach: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov,
            caution=caution, corrected_weight_decay=corrected_weight_decay, foreach=foreach,
        )  # fmt: skip

    def slots_of(self, group: Group) -> tuple[str, ...]:
        return self.slots if group["momentum"] else ()

    def update(self, group: Group, step: int, params: Tensors, grads: Tensors, *slots: Tensors) -> None:
        decay(self, group, params, grads)
        update = heavy_ball(group, step, grads, *slots)
        if group["caution"]:
            update = cautious(update, grads)
        torch._foreach_add_(params, update, alpha=-group["lr"])


def heavy_ball(group: Group, step: int, grads: Tensors, buffers: Tensors | None = None) -> Tensors:
    """The direction of SGD with momentum: a running sum of gradients; with Nesterov's, one step ahead of it."""
    if buffers is None:
        return grads
    momentum = group["momentum"]
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, grads, alpha=1 if step == 1 else 1 - group["dampening"])
    return list(torch._foreach_add(grads, buffers, alpha=momentum)) if group["nesterov"] else buffers
