"""Gated two-layer perceptrons of transformer blocks (GLU variants, https://arxiv.org/abs/2002.05202)."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from opsin.layers.act import create_act
from opsin.layers.norm import get_norm_layer

__all__ = ["GluMlp", "SwiGLU", "SwiGLUPacked"]

Layer = str | Callable[..., nn.Module]


def _pair(value):
    return tuple(value) if isinstance(value, tuple | list) else (value, value)


class GluMlp(nn.Module):
    """Gated: one linear gives value and gate side by side, so `hidden_features` counts both halves.

    The activation is on the second half, or on the first with `gate_last=False`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Layer = nn.Sigmoid,
        norm_layer: Layer | None = None,
        bias: bool | tuple[bool, bool] = True,
        drop: float | tuple[float, float] = 0.0,
        gate_last: bool = True,
    ) -> None:
        super().__init__()
        hidden, biases, drops = hidden_features or in_features, _pair(bias), _pair(drop)
        if hidden % 2:
            raise ValueError(f"GluMlp splits hidden_features in two halves, {hidden} is odd")
        self.gate_last = gate_last
        self.fc1 = nn.Linear(in_features, hidden, bias=biases[0])
        self.act = create_act(act_layer)
        self.drop1 = nn.Dropout(drops[0])
        self.norm = get_norm_layer(norm_layer)(hidden // 2) if norm_layer else nn.Identity()
        self.fc2 = nn.Linear(hidden // 2, out_features or in_features, bias=biases[1])
        self.drop2 = nn.Dropout(drops[1])

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.fc1(x).chunk(2, -1)
        x = first * self.act(second) if self.gate_last else self.act(first) * second
        return self.drop2(self.fc2(self.norm(self.drop1(x))))


SwiGLUPacked = partial(GluMlp, act_layer=nn.SiLU, gate_last=False)


class SwiGLU(nn.Module):
    """Gated, with the gate (`fc1_g`) and the value (`fc1_x`) as two linear layers of `hidden_features` each."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Layer = nn.SiLU,
        norm_layer: Layer | None = None,
        bias: bool | tuple[bool, bool] = True,
        drop: float | tuple[float, float] = 0.0,
    ) -> None:
        super().__init__()
        hidden, biases, drops = hidden_features or in_features, _pair(bias), _pair(drop)
        self.fc1_g = nn.Linear(in_features, hidden, bias=biases[0])
        self.fc1_x = nn.Linear(in_features, hidden, bias=biases[0])
        self.act = create_act(act_layer)
        self.drop1 = nn.Dropout(drops[0])
        self.norm = get_norm_layer(norm_layer)(hidden) if norm_layer else nn.Identity()
        self.fc2 = nn.Linear(hidden, out_features or in_features, bias=biases[1])
        self.drop2 = nn.Dropout(drops[1])

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop1(self.act(self.fc1_g(x)) * self.fc1_x(x))
        return self.drop2(self.fc2(self.norm(x)))
