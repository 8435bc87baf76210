"""LAMB: Adam with a rate for each layer (https://arxiv.org/abs/1904.00962)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from opsin.optim._common import Group, ListOptimizer, Tensors, cautious, decay, root

__all__ = ["Lamb"]


class Lamb(ListOptimizer):
    """See the paper.

    Args:
        params, lr, betas, eps, weight_decay: as for AdamW; the decay belongs to the update that is measured.
        bias_correction: of the moments.
        grad_averaging: the first moment is a mean, not a sum.
        max_grad_norm: largest norm of all gradients together; None does not clip.
        trust_clip: the rate of a layer is never raised.
        always_adapt: adapt the rate of groups without decay, too.
        decoupled_decay: shrink the weights apart from the update.
        caution, corrected_weight_decay: see `_common`.
    """

    slots = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        bias_correction: bool = True,
        grad_averaging: bool = True,
        max_grad_norm: float | None = 1.0,
        trust_clip: bool = False,
        always_adapt: bool = False,
        caution: bool = False,
        decoupled_decay: bool = False,
        corrected_weight_decay: bool = False,
        foreach: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, bias_correction=bias_correction,
            grad_averaging=grad_averaging, max_grad_norm=max_grad_norm, trust_clip=trust_clip,
            always_adapt=always_adapt, caution=caution, decoupled_decay=decoupled_decay,
            corrected_weight_decay=corrected_weight_decay, foreach=foreach,
        )  # fmt: skip
        self.shrink: Tensor | None = None

    def begin(self) -> None:
        """How much the gradients of all groups are too long."""
        limit = self.defaults["max_grad_norm"]
        grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        self.shrink = None
        if limit is not None and grads:
            self.shrink = (torch.nn.utils.get_total_norm(grads) / limit).clamp_(min=1)

    def update(self, group: Group, step: int, params: Tensors, grads: Tensors, *slots: Tensors) -> None:
        pieces = [self._update(group, step, *part) for part in self.parts(group, [params, grads, *slots])]
        update = pieces[0]
        if len(pieces) > 1:
            update = [torch.cat([one for (one,) in pieces]).as_strided(params[0].shape, params[0].stride())]
        if group["weight_decay"] or group["always_adapt"]:
            torch._foreach_addcmul_(params, update, self._ratios(group, params, update), -group["lr"])
        else:
            torch._foreach_add_(params, update, alpha=-group["lr"])

    def _update(self, group: Group, step: int, params: Tensors, grads: Tensors, *slots: Tensors) -> Tensors:
        """Where Adam would go."""
        mean, square = slots
        beta1, beta2 = group["betas"]
        if self.shrink is not None:
            grads = list(torch._foreach_div(grads, self.shrink.to(grads[0].device, grads[0].dtype)))
        if group["grad_averaging"]:
            torch._foreach_lerp_(mean, grads, 1 - beta1)
        else:
            torch._foreach_mul_(mean, beta1)
            torch._foreach_add_(mean, grads)
        torch._foreach_mul_(square, beta2)
        torch._foreach_addcmul_(square, grads, grads, 1 - beta2)
        corrections = (1 - beta1**step, 1 - beta2**step) if group["bias_correction"] else (1, 1)
        update = list(torch._foreach_div(mean, root(square, corrections[1], group["eps"])))
        torch._foreach_div_(update, corrections[0])
        if group["caution"]:
            update = cautious(update, grads)
        if group["decoupled_decay"]:
            decay(self, group, params, grads)
        elif group["weight_decay"]:
            torch._foreach_add_(update, params, alpha=group["weight_decay"])
        return update

    def _ratios(self, group: Group, params: Tensors, updates: Tensors) -> Tensors:
        """Norm of the weights by norm of the update; 1 where either is zero."""
        ratios = []
        for weight, update in zip(torch._foreach_norm(params), torch._foreach_norm(updates), strict=True):
            ratio = torch.where((weight > 0) & (update > 0), weight / update, 1.0)
            ratios.append(ratio.clamp(max=1) if group["trust_clip"] else ratio)
        return ratios
