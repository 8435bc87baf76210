"""LARS: SGD with a rate for each layer (https://arxiv.org/abs/1708.03888), and LARC, which never raises it."""

from collections.abc import Iterable
from typing import Any

import torch

from opsin.optim._common import Group, ListOptimizer, Tensors
from opsin.optim.sgdw import heavy_ball

__all__ = ["Lars"]


class Lars(ListOptimizer):
    """See the paper.

    Args:
        params, lr, momentum, dampening, weight_decay, nesterov: as for SGD.
        trust_coeff: the length of a step beside that of the weights.
        eps: added to the length of the gradient.
        trust_clip: LARC.
        always_adapt: adapt the rate of groups without decay, too.
    """

    slots = ("momentum_buffer",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        trust_coeff: float = 0.001,
        eps: float = 1e-8,
        trust_clip: bool = False,
        always_adapt: bool = False,
        foreach: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov,
            trust_coeff=trust_coeff, eps=eps, trust_clip=trust_clip, always_adapt=always_adapt, foreach=foreach,
        )  # fmt: skip

    def slots_of(self, group: Group) -> tuple[str, ...]:
        return self.slots if group["momentum"] else ()

    def update(self, group: Group, step: int, params: Tensors, grads: Tensors, *slots: Tensors) -> None:
        if group["weight_decay"] or group["always_adapt"]:
            ratios = self._ratios(group, params, grads)
            grads = list(torch._foreach_add(grads, params, alpha=group["weight_decay"]))
            torch._foreach_mul_(grads, ratios)
        torch._foreach_add_(params, heavy_ball(group, step, grads, *slots), alpha=-group["lr"])

    def _ratios(self, group: Group, params: Tensors, grads: Tensors) -> Tensors:
        ratios = []
        for weight, grad in zip(torch._foreach_norm(params), torch._foreach_norm(grads), strict=True):
            ratio = group["trust_coeff"] * weight / (grad + group["weight_decay"] * weight + group["eps"])
            ratio = torch.where((weight > 0) & (grad > 0), ratio, 1.0)
            ratios.append((ratio / group["lr"]).clamp(max=1) if group["trust_clip"] else ratio)
        return ratios
