"""`timm.utils.ModelEma` and its successors: averages of a model's weights, as opsin moves them."""

import copy
from typing import Any

import torch
from torch import nn

from opsin.errors import OpsinError
from opsin.optim.groups import _unwrapped
from opsin.train.ema import follow
from opsin.weights.read import read_state_dict

__all__ = ["ModelEma", "ModelEmaV2", "ModelEmaV3"]


def _copied(model: nn.Module, device: Any, dtype: torch.dtype | None = None) -> nn.Module:
    return copy.deepcopy(_unwrapped(model)).eval().to(device=device or None, dtype=dtype)


class ModelEma:
    """`ema` is the average. `resume`: a checkpoint that has one."""

    def __init__(self, model: nn.Module, decay: float = 0.9999, device: Any = "", resume: str = "") -> None:
        self.ema, self.decay, self.device = _copied(model, device).requires_grad_(False), decay, device
        if resume:
            self.ema.load_state_dict(read_state_dict(resume, use_ema=True))

    def update(self, model: nn.Module) -> None:
        follow(self.ema, _unwrapped(model), 1 - self.decay)


class ModelEmaV2(nn.Module):
    """`module` is the average, which a call goes to."""

    def __init__(self, model: nn.Module, decay: float = 0.9999, device: Any = None) -> None:
        super().__init__()
        self.module = _copied(model, device)
        self.decay, self.device = decay, device

    def update(self, model: nn.Module) -> None:
        follow(self.module, _unwrapped(model), 1 - self.decay)

    def set(self, model: nn.Module) -> None:
        """Take over the model's values."""
        follow(self.module, _unwrapped(model), 1.0)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class ModelEmaV3(ModelEmaV2):
    """With a decay that depends on the step, if `update` is told it: none until one step after `update_after_step`;
    from there on, with `use_warmup`, 1 - (1 + n / gamma) ** -power, between `min_decay` and `decay`.

    `dtype` is that of the average. `exclude_buffers`: buffers are taken over, not averaged. The other arguments choose
    between ways to compute the same.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float = 0.9999,
        min_decay: float = 0.0,
        update_after_step: int = 0,
        use_warmup: bool = False,
        warmup_gamma: float = 1.0,
        warmup_power: float = 2 / 3,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        stochastic_rounding: bool = True,
        stochastic_rounding_seed: int = 0,
        foreach: bool = True,
        exclude_buffers: bool = False,
    ) -> None:
        if dtype in (torch.bfloat16, torch.float16) and stochastic_rounding:
            raise OpsinError(f"opsin does not round at random: with dtype={dtype} pass stochastic_rounding=False")
        super().__init__(model, decay, device)
        self.module.to(dtype=dtype)
        self.min_decay, self.update_after_step, self.use_warmup = min_decay, update_after_step, use_warmup
        self.warmup_gamma, self.warmup_power = warmup_gamma, warmup_power
        self.exclude_buffers = exclude_buffers

    def get_decay(self, step: int | None = None) -> float:
        """The share of the old average at a step."""
        if step is None:
            return self.decay
        n = step - self.update_after_step - 1
        if n <= 0:
            return 0.0
        if not self.use_warmup:
            return self.decay
        return max(self.min_decay, min(self.decay, 1 - (1 + n / self.warmup_gamma) ** -self.warmup_power))

    def update(self, model: nn.Module, step: int | None = None) -> None:
        follow(self.module, _unwrapped(model), 1 - self.get_decay(step), buffers=not self.exclude_buffers)
