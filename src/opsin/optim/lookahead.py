"""Lookahead (https://arxiv.org/abs/1907.08610): slow weights that follow the fast ones of another optimizer."""

from collections.abc import Callable
from typing import Any

import torch

from opsin.errors import OpsinError

__all__ = ["Lookahead"]


class Lookahead(torch.optim.Optimizer):
    """Let `base` take `k` steps, then move the slow weights by `alpha` of the way there, and go on from them.

    State and groups are those of `base`, with the slow weights (as much memory as the parameters) and the count of
    steps in them. As in common practice the slow weights begin where the first round ends.
    """

    def __init__(self, base: torch.optim.Optimizer, *, k: int, alpha: float) -> None:
        if k < 1 or not 0 <= alpha <= 1:
            raise OpsinError(f"Lookahead takes k >= 1 and alpha from 0 to 1, not k={k}, alpha={alpha}")
        self.base = base
        super().__init__(base.param_groups, base.defaults | {"lookahead_k": k, "lookahead_alpha": alpha})
        for group in self.param_groups:
            group["lookahead_step"] = 0
        self._share()

    @property
    def is_second_order(self) -> bool:
        """Whether `base` needs gradients from `loss.backward(create_graph=True)`."""
        return getattr(self.base, "is_second_order", False)

    def _share(self) -> None:
        self.base.param_groups[:] = self.param_groups
        self.param_groups, self.state = self.base.param_groups, self.base.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = self.base.step(closure)
        for group in self.param_groups:
            group["lookahead_step"] = group.get("lookahead_step", 0) + 1
            if group["lookahead_step"] % group["lookahead_k"] == 0:
                self._sync([p for p in group["params"] if p.grad is not None], group["lookahead_alpha"])
        return loss

    def _sync(self, params: list[torch.Tensor], alpha: float) -> None:
        for p in params:
            state = self.state[p]
            if "lookahead_slow" in state:
                p.copy_(state["lookahead_slow"].lerp_(p, alpha))
            else:
                state["lookahead_slow"] = p.clone()

    def state_dict(self) -> dict[str, Any]:
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.base.load_state_dict(state_dict)
        self.param_groups, self.state = self.base.param_groups, self.base.state
