"""Stochastic depth (https://arxiv.org/abs/1603.09382)."""

import torch
from torch import Tensor, nn

__all__ = ["DropPath", "drop_path", "drop_path_rates"]


def drop_path(x: Tensor, drop_prob: float, training: bool, *, scale_by_keep: bool = True) -> Tensor:
    """Zero whole samples of `x` (B, ...) with `drop_prob` while training; the kept ones are scaled up by default."""
    if not drop_prob or not training:
        return x
    keep = 1.0 - drop_prob
    mask = torch.empty((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(keep)
    return x * (mask.div_(keep) if scale_by_keep and keep > 0 else mask)


class DropPath(nn.Module):
    """`drop_path` as a module, for the residual branch."""

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.scale_by_keep = scale_by_keep

    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, self.drop_prob, self.training, scale_by_keep=self.scale_by_keep)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:.3f}"


def drop_path_rates(rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Rates that rise linearly from 0 to `rate` over all blocks, split by stage."""
    total = sum(depths)
    flat = [rate * i / max(total - 1, 1) for i in range(total)]
    ends = [sum(depths[: i + 1]) for i in range(len(depths))]
    return [flat[end - depth : end] for end, depth in zip(ends, depths, strict=True)]
