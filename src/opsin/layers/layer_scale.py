"""Layer scale (https://arxiv.org/abs/2103.17239): a learned gain per channel on a residual branch."""

import torch
from torch import Tensor, nn

__all__ = ["LayerScale", "LayerScale2d"]


class LayerScale(nn.Module):
    """`x * gamma` over the last dimension; `gamma` starts at `init_values`."""

    def __init__(self, dim: int, init_values: float = 1e-5, inplace: bool = False) -> None:
        super().__init__()
        self.init_values, self.inplace = init_values, inplace
        self.gamma = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gamma, self.init_values)

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(self.gamma) if self.inplace else x * self.gamma


class LayerScale2d(LayerScale):
    """The same over the channels of `(B, C, H, W)`."""

    def forward(self, x: Tensor) -> Tensor:
        gamma = self.gamma.view(-1, 1, 1)
        return x.mul_(gamma) if self.inplace else x * gamma
