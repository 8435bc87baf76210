"""RMSprop as TensorFlow has it, with which Inception, EfficientNet and their kin were trained.

It differs from torch's in that the mean of squares begins with one, `eps` is under the root, and the momentum is a sum
of steps, in which older ones keep the rate they were taken with.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from opsin.optim._common import Group, ListOptimizer, Tensors, cautious, decay

__all__ = ["RMSpropTF"]


class RMSpropTF(ListOptimizer):
    """See above.

    Args:
        params, lr, alpha, eps, weight_decay, momentum: as for torch's RMSprop.
        centered: divide by the deviation instead of the mean square.
        decoupled_decay: shrink the weights instead of adding to the gradient.
        lr_in_momentum: False applies today's rate to the sum.
        caution, corrected_weight_decay: see `_common`.
    """

    slots = ("square_avg", "momentum_buffer", "grad_avg")
    elementwise = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        alpha: float = 0.9,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        decoupled_decay: bool = False,
        corrected_weight_decay: bool = False,
        lr_in_momentum: bool = True,
        caution: bool = False,
        foreach: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum, centered=centered,
            decoupled_decay=decoupled_decay, corrected_weight_decay=corrected_weight_decay,
            lr_in_momentum=lr_in_momentum, caution=caution, foreach=foreach,
        )  # fmt: skip

    def slots_of(self, group: Group) -> tuple[str, ...]:
        needed = (True, group["momentum"] > 0, group["centered"])
        return tuple(slot for slot, need in zip(self.slots, needed, strict=True) if need)

    def first(self, state: dict[str, Any], p: Tensor, group: Group) -> None:
        state["square_avg"].fill_(1)

    def update(self, group: Group, step: int, params: Tensors, grads: Tensors, *slots: Tensors) -> None:
        kept = dict(zip(self.slots_of(group), slots, strict=True))
        square, rate, lr = kept["square_avg"], 1 - group["alpha"], group["lr"]
        grads = decay(self, group, params, grads, decoupled=group["decoupled_decay"])
        torch._foreach_lerp_(square, list(torch._foreach_mul(grads, grads)), rate)
        below = square
        if group["centered"]:
            torch._foreach_lerp_(kept["grad_avg"], grads, rate)
            below = list(torch._foreach_addcmul(square, kept["grad_avg"], kept["grad_avg"], -1))
        below = list(torch._foreach_add(below, group["eps"]))
        torch._foreach_sqrt_(below)
        update = list(torch._foreach_div(grads, below))
        early = group["momentum"] > 0 and group["lr_in_momentum"]
        if early:
            torch._foreach_mul_(update, lr)
        if group["momentum"] > 0:
            torch._foreach_mul_(kept["momentum_buffer"], group["momentum"])
            torch._foreach_add_(kept["momentum_buffer"], update)
            update = kept["momentum_buffer"]
        if group["caution"]:
            update = cautious(update, grads)
        torch._foreach_add_(params, update, alpha=-1 if early else -lr)
