"""torch's SGD, fit for parameters that are set free later."""

import inspect
from typing import Any

import torch

__all__ = ["SGD"]


class SGD(torch.optim.SGD):
    """torch's fused kernel fails when some parameters have a momentum and others do not have one yet: those that get
    their first gradient later. Starting it at zero is the same, but for the dampening of the first gradient.
    """

    __signature__ = inspect.signature(torch.optim.SGD)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_step_pre_hook(start_momentum)


def start_momentum(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups:
        if not group["fused"] or not group["momentum"] or group["dampening"]:
            continue
        for p in group["params"]:
            if p.requires_grad and optimizer.state[p].get("momentum_buffer") is None:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
