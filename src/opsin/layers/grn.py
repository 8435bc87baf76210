"""Global response normalisation, from ConvNeXt V2 (https://arxiv.org/abs/2301.00808)."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from opsin.layers.act import create_act

__all__ = ["GlobalResponseNorm", "GlobalResponseNormMlp"]


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


class GlobalResponseNormMlp(nn.Module):
    """Linear, activation, global response norm, linear; on `(B, H, W, C)`, or with `use_conv` on `(B, C, H, W)`."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: str | Callable[..., nn.Module] = "gelu",
        bias: bool = True,
        drop: float = 0.0,
        use_conv: bool = False,
    ) -> None:
        super().__init__()
        hidden = hidden_features or in_features
        linear = partial(nn.Conv2d, kernel_size=1) if use_conv else nn.Linear
        self.fc1 = linear(in_features, hidden, bias=bias)
        self.act = create_act(act_layer)
        self.drop1 = nn.Dropout(drop)
        self.grn = GlobalResponseNorm(hidden, channels_last=not use_conv)
        self.fc2 = linear(hidden, out_features or in_features, bias=bias)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grn(self.drop1(self.act(self.fc1(x))))
        return self.drop2(self.fc2(x))
