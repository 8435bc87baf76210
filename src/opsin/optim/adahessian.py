"""AdaHessian: Adam by the curvature instead of the squared gradient (https://arxiv.org/abs/2006.00719)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from opsin.errors import OpsinError
from opsin.optim._common import Group, ListOptimizer, Tensors, decay

__all__ = ["Adahessian"]


class Adahessian(ListOptimizer):
    """The gradients must come from `loss.backward(create_graph=True)`, or from a closure that calls it.

    Args:
        params, lr, betas, eps, weight_decay: as for AdamW; the rate is some hundred times larger.
        hessian_power: from 0, which ignores the curvature, to 1.
        update_each: steps for which an estimate of the curvature is used.
        n_samples: random vectors for an estimate.
        avg_conv_kernel: average the curvature over each kernel of a convolution.
    """

    slots = ("exp_avg", "exp_hessian_diag_sq", "hessian")
    is_second_order = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        hessian_power: float = 1.0,
        update_each: int = 1,
        n_samples: int = 1,
        avg_conv_kernel: bool = False,
        foreach: bool | None = None,
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, hessian_power=hessian_power,
            update_each=update_each, n_samples=n_samples, avg_conv_kernel=avg_conv_kernel, foreach=foreach,
        )  # fmt: skip
        self.estimates: dict[Tensor, Tensor] = {}

    def begin(self) -> None:
        """Estimate the diagonal of the Hessian where it is due: the mean of z * Hz over random signs z (Hutchinson)."""
        self.estimates = {}
        due = []
        for group in self.param_groups:
            for p in group["params"]:
                taken = self.state[p]["step"] if p in self.state else 0
                if p.grad is not None and taken % group["update_each"] == 0:
                    due.append(p)
        if not due:
            return
        if any(p.grad.grad_fn is None for p in due):
            raise OpsinError("Adahessian needs gradients with a graph: call loss.backward(create_graph=True)")
        samples = self.defaults["n_samples"]
        for i in range(samples):
            signs = [torch.randint_like(p, 2).mul_(2).sub_(1) for p in due]
            products = torch.autograd.grad(
                [p.grad for p in due], due, signs, retain_graph=i < samples - 1, materialize_grads=True
            )
            for p, sign, product in zip(due, signs, products, strict=True):
                self.estimates[p] = self.estimates.get(p, 0) + sign * product / samples

    def update(self, group: Group, step: int, params: Tensors, grads: Tensors, *slots: Tensors) -> None:
        mean, square, hessian = slots
        beta1, beta2 = group["betas"]
        for p, kept in zip(params, hessian, strict=True):
            if p in self.estimates:
                kept.copy_(self.estimates[p])
                if group["avg_conv_kernel"] and p.ndim == 4:
                    kept.copy_(kept.abs().mean((2, 3), keepdim=True).expand_as(p))
        decay(self, group, params, grads)
        torch._foreach_lerp_(mean, [grad.detach() for grad in grads], 1 - beta1)
        torch._foreach_mul_(square, beta2)
        torch._foreach_addcmul_(square, hessian, hessian, 1 - beta2)
        below = list(torch._foreach_div(square, 1 - beta2**step))
        torch._foreach_pow_(below, group["hessian_power"] / 2)
        torch._foreach_add_(below, group["eps"])
        torch._foreach_addcdiv_(params, mean, below, -group["lr"] / (1 - beta1**step))
