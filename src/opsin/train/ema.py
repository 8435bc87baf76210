"""An exponential moving average of a model's weights."""

import copy
from typing import Any

import torch
from torch import nn

from opsin.errors import OpsinError
from opsin.train.distributed import local

__all__ = ["Ema", "follow"]


class Ema:
    """Keeps `average`, a copy of a model whose parameters and floating-point buffers follow it.

    The decay warms up as (1 + n) / (10 + n) after n updates until it reaches `decay`, so that the first, random weights
    leave the average soon and it needs no correction for its beginning: it is a true weighted mean at any time. With
    `debias` there is no warm-up: the decay is constant from the start, and its beginning is divided out as in Adam
    (https://arxiv.org/abs/1412.6980), which is the same as a decay of d * (1 - d**(n-1)) / (1 - d**n).
    """

    def __init__(self, model: nn.Module, decay: float = 0.9998, *, debias: bool = False) -> None:
        if not 0 <= decay < 1:
            raise OpsinError(f"the decay of an average is from 0 to below 1, not {decay}")
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.debias, self.updates = decay, debias, 0

    def decay_at(self, update: int) -> float:
        """The share of the old average after `update` updates (from 1 on)."""
        d = self.decay
        if self.debias:
            return d * (1 - d ** (update - 1)) / (1 - d**update)
        return min(d, (1 + update) / (10 + update))

    def update(self, model: nn.Module) -> None:
        """Move the average towards the model."""
        self.updates += 1
        follow(self.average, model, 1 - self.decay_at(self.updates))

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state["average"])
        self.updates = state["updates"]


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, share: float, *, buffers: bool = True) -> None:
    """Move one model by `share` of the way towards another of the same keys. Values that are no floating-point numbers,
    and all buffers with `buffers=False`, are taken over as they are."""
    ours, theirs = local(average.state_dict()), local(model.state_dict())
    taken = {key for key, value in ours.items() if not value.is_floating_point()}
    if not buffers:
        taken |= {key for key, _ in average.named_buffers()} & ours.keys()
    moved = [key for key in ours if key not in taken]
    goals = [theirs[key].to(ours[key].device, ours[key].dtype) for key in moved]
    torch._foreach_lerp_([ours[key] for key in moved], goals, share)
    for key in taken:
        ours[key].copy_(theirs[key])
