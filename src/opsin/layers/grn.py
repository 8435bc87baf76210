"""Global response normalisation, from ConvNeXt V2 (https://arxiv.org/abs/2301.00808)."""

import torch
from torch import Tensor, nn

__all__ = ["GlobalResponseNorm"]


class GlobalResponseNorm(nn.Module):
    """Weigh each channel by its L2 norm over the map, relative to the mean of all channels' norms; a residual layer.

    Takes `(B, H, W, C)`, or `(B, C, H, W)` with `channels_last=False`. Starts as the identity.
    """

    def __init__(self, num_channels: int, eps: float = 1e-6, *, channels_last: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.spatial, self.channel = ((1, 2), -1) if channels_last else ((2, 3), 1)
        self.shape = (1, 1, 1, -1) if channels_last else (1, -1, 1, 1)
        self.weight = nn.Parameter(torch.zeros(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=self.spatial, keepdim=True)
        response = norm / (norm.mean(self.channel, keepdim=True) + self.eps)
        # weight and response are one value per channel: multiplied first, they cost one pass over the map, not two
        return torch.addcmul(self.bias.view(self.shape), x, self.weight.view(self.shape) * response + 1)
