"""Muon: momentum, orthogonalised (https://kellerjordan.github.io/posts/muon/); AdamW for what is no matrix."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from opsin.errors import check_choice
from opsin.optim._common import Group, ListOptimizer, Tensors, moments, root

__all__ = ["Muon", "orthogonal"]

RATES = ("match_rms_adamw", "original")
Triple = tuple[float, float, float]

# One polynomial a step, which together come nearer to one than the same five times
# (https://github.com/KellerJordan/modded-nanogpt, from Jiacheng You).
QUINTIC: tuple[Triple, ...] = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


class Muon(ListOptimizer):
    """Convolutions are taken as matrices (outputs, inputs x kernel). The rest is for AdamW: vectors, tokens, position
    tables of one row, depthwise convolutions, and groups with `use_fallback=True` (a classifier, by convention).

    Args:
        params, lr, weight_decay, momentum: as for SGD; the decay is decoupled.
        nesterov: look one step ahead along the momentum, in AdamW as well.
        ns_steps: of the Newton-Schulz iteration.
        ns_coefficients: three for all of its steps, or three a step, of which the last serve for what follows.
        eps: least norm in it.
        adjust_lr_fn: "match_rms_adamw" makes steps as long as AdamW's (https://arxiv.org/abs/2502.16982), so its rates
            and decays fit; "original" scales by the root of rows over columns, if that is more than one.
        fallback_lr_scale, betas: of AdamW.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = False,
        *,
        ns_steps: int = 5,
        ns_coefficients: Triple | Sequence[Triple] = QUINTIC,
        eps: float = 1e-7,
        adjust_lr_fn: str = "match_rms_adamw",
        fallback_lr_scale: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.95),
        foreach: bool | None = None,
    ) -> None:
        check_choice(adjust_lr_fn, RATES, what="adjust_lr_fn")
        super().__init__(
            params, lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov, ns_steps=ns_steps,
            ns_coefficients=ns_coefficients, eps=eps, adjust_lr_fn=adjust_lr_fn, fallback_lr_scale=fallback_lr_scale,
            betas=betas, use_fallback=False, foreach=foreach,
        )  # fmt: skip

    def first(self, state: dict[str, Any], p: Tensor, group: Group) -> None:
        names = ("momentum_buffer",) if is_matrix(p, group) else ("exp_avg", "exp_avg_sq")
        state.update({name: torch.zeros_like(p) for name in names})

    def update(self, group: Group, step: int, params: Tensors, grads: Tensors, *slots: Tensors) -> None:
        rows = [(p, grad) for p, grad in zip(params, grads, strict=True) if is_matrix(p, group)]
        others = [(p, grad) for p, grad in zip(params, grads, strict=True) if not is_matrix(p, group)]
        if rows:
            self._matrices(group, *(list(column) for column in zip(*rows, strict=True)))
        if others:
            self._others(group, step, *(list(column) for column in zip(*others, strict=True)))

    def _matrices(self, group: Group, params: Tensors, grads: Tensors) -> None:
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        momentum = group["momentum"]
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        ahead = list(torch._foreach_lerp(grads, buffers, momentum)) if group["nesterov"] else buffers
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        for p, direction in zip(params, ahead, strict=True):
            matrix = direction.reshape(p.shape[0], -1)
            update = orthogonal(matrix, group["ns_steps"], group["ns_coefficients"], group["eps"])
            p.add_(update.to(p.dtype).reshape(p.shape), alpha=-group["lr"] * _scale(group, *matrix.shape))

    def _others(self, group: Group, step: int, params: Tensors, grads: Tensors) -> None:
        mean, square = ([self.state[p][name] for p in params] for name in ("exp_avg", "exp_avg_sq"))
        beta1, beta2 = group["betas"]
        lr = group["lr"] * group["fallback_lr_scale"]
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        moments(mean, square, grads, beta1, beta2)
        ahead = list(torch._foreach_lerp(mean, grads, 1 - beta1)) if group["nesterov"] else mean
        denominator = root(square, 1 - beta2**step, group["eps"])
        torch._foreach_addcdiv_(params, ahead, denominator, -lr / (1 - beta1**step))


def is_matrix(p: Tensor, group: Group) -> bool:
    """Whether a parameter is orthogonalised."""
    return not group["use_fallback"] and p.ndim > 1 and 1 not in p.shape[:2]


def _scale(group: Group, rows: int, columns: int) -> float:
    if group["adjust_lr_fn"] == "original":
        return max(1, rows / columns) ** 0.5
    return 0.2 * max(rows, columns) ** 0.5


def orthogonal(m: Tensor, steps: int, coefficients: Triple | Sequence[Triple], eps: float) -> Tensor:
    """About the nearest matrix with singular values of one: polynomials of `m` in bfloat16."""
    triples: Any = [coefficients] if isinstance(coefficients[0], float | int) else coefficients
    tall = m.shape[0] > m.shape[1]
    x = m.bfloat16().T if tall else m.bfloat16()
    x = x / x.norm().clamp(min=eps)
    for i in range(steps):
        a, b, c = triples[min(i, len(triples) - 1)]
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
