"""Adafactor as it trained Scaling Vision Transformers (https://arxiv.org/abs/2106.04560, appendix)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from opsin.optim._common import Group, ListOptimizer, Tensors, cautious, decay, sliced
from opsin.optim.adafactor import inverse_root, rms, start_second_moment

__all__ = ["AdafactorBigVision"]


class AdafactorBigVision(ListOptimizer):
    """Rates as for AdamW: no scaling by the weights; a capped second moment, and a first one in half precision.

    Args:
        params, lr, weight_decay: as for AdamW.
        min_dim_size_to_factor: smaller matrices keep the whole second moment.
        decay_rate, decay_offset, beta2_cap: the second moment decays by 1 - (step - offset) ** -rate, at most the cap.
        momentum, momentum_dtype: of the first moment; 0 keeps none.
        eps: added to squared gradients.
        clipping_threshold: largest root mean square of an update; None does not clip.
        unscaled_wd: shrink the weights by `weight_decay` itself, whatever the rate.
        caution, corrected_weight_decay: see `_common`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        min_dim_size_to_factor: int = 16,
        decay_rate: float = 0.8,
        decay_offset: int = 0,
        beta2_cap: float = 0.999,
        momentum: float = 0.9,
        momentum_dtype: torch.dtype = torch.bfloat16,
        eps: float = 1e-30,
        weight_decay: float = 0.0,
        *,
        clipping_threshold: float | None = None,
        unscaled_wd: bool = False,
        caution: bool = False,
        corrected_weight_decay: bool = False,
    ) -> None:
        self.momentum_dtype = momentum_dtype
        super().__init__(
            params, lr=lr, min_dim_size_to_factor=min_dim_size_to_factor, decay_rate=decay_rate,
            decay_offset=decay_offset, beta2_cap=beta2_cap, momentum=momentum, eps=eps,
            weight_decay=weight_decay, clipping_threshold=clipping_threshold, unscaled_wd=unscaled_wd,
            caution=caution, corrected_weight_decay=corrected_weight_decay, foreach=False,
        )  # fmt: skip

    def first(self, state: dict[str, Any], p: Tensor, group: Group) -> None:
        start_second_moment(state, p, group["min_dim_size_to_factor"])
        if group["momentum"]:
            state["exp_avg"] = torch.zeros_like(p, dtype=self.momentum_dtype)

    def update(self, group: Group, step: int, params: Tensors, grads: Tensors, *slots: Tensors) -> None:
        (p,), (grad,) = params, grads
        state = self.state[p]
        beta2 = min(group["beta2_cap"], 1 - float(step - group["decay_offset"]) ** -group["decay_rate"])
        square = grad.square().add_(group["eps"])
        update = inverse_root(state, square, beta2, group["min_dim_size_to_factor"]).mul_(grad)
        if group["clipping_threshold"] is not None:
            update.div_((rms(update) / group["clipping_threshold"]).clamp_(min=1))
        whole = [p, grad, update, *([state["exp_avg"]] if "exp_avg" in state else [])]
        for part in [whole] if group["caution"] else sliced(whole):
            self._move(group, *part)

    def _move(self, group: Group, p: Tensor, grad: Tensor, update: Tensor, mean: Tensor | None = None) -> None:
        if mean is not None:
            update = mean.to(p.dtype).lerp_(update, 1 - group["momentum"])
            mean.copy_(update)
        if group["caution"]:
            (update,) = cautious([update], [grad])
        if group["unscaled_wd"]:
            p.mul_(1 - group["weight_decay"])
        else:
            decay(self, group, [p], [grad])
        p.sub_(update, alpha=group["lr"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for state in self.state.values():  # torch has made them of the parameters' type
            if "exp_avg" in state:
                state["exp_avg"] = state["exp_avg"].to(self.momentum_dtype)
