"""NovoGrad: Adam with one second moment a layer (https://arxiv.org/abs/1905.11286)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from opsin.optim._common import Group, ListOptimizer, Tensors, decay, root

__all__ = ["NovoGrad"]


class NovoGrad(ListOptimizer):
    """See the paper.

    Args:
        params, lr, betas, eps, weight_decay: as for Adam; the decay is added to the normalised gradient.
        grad_averaging: the first moment is a mean, not a sum.
        decoupled_decay, corrected_weight_decay: see `_common`.
    """

    slots = ("exp_avg",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        grad_averaging: bool = False,
        decoupled_decay: bool = False,
        corrected_weight_decay: bool = False,
        foreach: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, grad_averaging=grad_averaging,
            decoupled_decay=decoupled_decay, corrected_weight_decay=corrected_weight_decay, foreach=foreach,
        )  # fmt: skip

    def first(self, state: dict[str, Any], p: Tensor, group: Group) -> None:
        assert p.grad is not None
        state["exp_avg_sq"] = p.grad.square().sum()

    def update(self, group: Group, step: int, params: Tensors, grads: Tensors, *slots: Tensors) -> None:
        (mean,) = slots
        beta1, beta2 = group["betas"]
        square = [self.state[p]["exp_avg_sq"] for p in params]
        if step > 1:
            norms = list(torch._foreach_norm(grads))
            torch._foreach_mul_(norms, norms)
            torch._foreach_lerp_(square, norms, 1 - beta2)
        grads = list(torch._foreach_div(grads, root(square, 1, group["eps"])))
        grads = decay(self, group, params, grads, decoupled=group["decoupled_decay"])
        if group["grad_averaging"]:
            grads = list(torch._foreach_mul(grads, 1 - beta1))
        torch._foreach_mul_(mean, beta1)
        torch._foreach_add_(mean, grads)
        torch._foreach_add_(params, mean, alpha=-group["lr"])
