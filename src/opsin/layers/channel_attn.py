"""Channel attention: squeeze and excitation (https://arxiv.org/abs/1709.01507), ECA (https://arxiv.org/abs/1910.03151),
global context (https://arxiv.org/abs/1904.11492); and the table of them by name."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, did_you_mean
from opsin.layers.act import create_act
from opsin.layers.bilinear_attn import BatNonLocalAttn
from opsin.layers.divisible import make_divisible
from opsin.layers.norm import LayerNorm2d, get_norm_layer

__all__ = ["EcaModule", "EffectiveSEModule", "GlobalContext", "SEModule", "create_attn", "make_divisible"]


class SEModule(nn.Module):
    """Squeeze and excitation with 1x1 convolutions: `(B, C, H, W)` gated by its own channel means.

    `norm_layer` stands between the first convolution and its activation.
    """

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        act_layer: str | Callable[..., nn.Module] = "relu",
        gate_layer: str | Callable[..., nn.Module] = "sigmoid",
        norm_layer: str | Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        rd_channels = rd_channels or make_divisible(channels * rd_ratio, rd_divisor, round_limit=0.0)
        self.fc1 = nn.Conv2d(channels, rd_channels, 1)
        self.bn = get_norm_layer(norm_layer)(rd_channels) if norm_layer else nn.Identity()
        self.act = create_act(act_layer, inplace=True)
        self.fc2 = nn.Conv2d(rd_channels, channels, 1)
        self.gate = create_act(gate_layer)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(self.act(self.bn(self.fc1(x.mean((2, 3), keepdim=True))))))


class EcaModule(nn.Module):
    """Efficient channel attention: a 1D convolution over channel means, its width grown with log2 of the channels."""

    def __init__(self, channels: int, kernel_size: int | None = None, gamma: float = 2, beta: float = 1) -> None:
        super().__init__()
        if kernel_size is None:
            width = int(abs(math.log2(channels) + beta) / gamma)
            kernel_size = max(width if width % 2 else width + 1, 3)
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.conv(x.mean((2, 3)).unsqueeze(1)))
        return x * gate.view(x.shape[0], -1, 1, 1)


class ContextMlp(nn.Module):
    """1x1 convolution, norm, activation, 1x1 convolution."""

    def __init__(self, channels: int, hidden: int, act_layer: str | Callable[..., nn.Module]) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.norm = LayerNorm2d(hidden)
        self.act = create_act(act_layer)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.norm(self.fc1(x))))


class GlobalContext(nn.Module):
    """`(B, C, H, W)` gated by (`fuse_scale`), or plus (`fuse_add`), an MLP of its mean over positions.

    The positions are weighted by one attention map.
    """

    def __init__(
        self,
        channels: int,
        fuse_add: bool = False,
        fuse_scale: bool = True,
        rd_ratio: float = 1 / 8,
        rd_channels: int | None = None,
        rd_divisor: int = 1,
        act_layer: str | Callable[..., nn.Module] = "relu",
        gate_layer: str | Callable[..., nn.Module] = "sigmoid",
    ) -> None:
        super().__init__()
        rd_channels = rd_channels or make_divisible(channels * rd_ratio, rd_divisor, round_limit=0.0)
        self.conv_attn = nn.Conv2d(channels, 1, 1)
        self.mlp_add = ContextMlp(channels, rd_channels, act_layer) if fuse_add else None
        self.mlp_scale = ContextMlp(channels, rd_channels, act_layer) if fuse_scale else None
        self.gate = create_act(gate_layer)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.conv_attn(x).flatten(2).softmax(-1)  # (B, 1, HW)
        context = (x.flatten(2) @ weights.transpose(1, 2)).unsqueeze(-1)  # (B, C, 1, 1)
        if self.mlp_scale is not None:
            x = x * self.gate(self.mlp_scale(context))
        return x if self.mlp_add is None else x + self.mlp_add(context)


class EffectiveSEModule(nn.Module):
    """Squeeze and excitation with one 1x1 convolution that keeps the width (https://arxiv.org/abs/1911.06667)."""

    def __init__(self, channels: int, gate_layer: str | Callable[..., nn.Module] = "hard_sigmoid") -> None:
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)
        self.gate = create_act(gate_layer)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc(x.mean((2, 3), keepdim=True)))


ATTNS: dict[str, Callable[..., nn.Module]] = {
    "se": SEModule,
    "eca": EcaModule,
    "ese": EffectiveSEModule,
    "gc": GlobalContext,
    "gca": partial(GlobalContext, fuse_add=True, fuse_scale=False),
    "bat": BatNonLocalAttn,
}


def create_attn(attn: str | Callable[..., nn.Module] | None, channels: int, **kwargs: object) -> nn.Module | None:
    """Channel attention by name or callable; None when there is none."""
    if not attn:
        return None
    if isinstance(attn, str):
        if attn not in ATTNS:
            raise UnknownArgumentError(
                f"no channel attention {attn!r}.{did_you_mean(attn, ATTNS)} Known: {', '.join(ATTNS)}"
            )
        attn = ATTNS[attn]
    return attn(channels, **kwargs)
