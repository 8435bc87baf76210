"""The two-layer perceptron of transformers and modern convolutional networks, for tokens or for maps."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from opsin.layers.act import create_act
from opsin.layers.norm import get_norm_layer

__all__ = ["Mlp"]

Act = str | Callable[..., nn.Module]


def _dense(in_features: int, out_features: int, bias: bool, use_conv: bool) -> nn.Module:
    if use_conv:
        return nn.Conv2d(in_features, out_features, 1, bias=bias)
    return nn.Linear(in_features, out_features, bias=bias)


class Mlp(nn.Module):
    """fc1, activation, (norm), fc2 over the last dimension; with `use_conv` over the channels of `(B, C, H, W)`."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Act = "gelu",
        norm_layer: Any = None,
        bias: bool | tuple[bool, bool] = True,
        drop: float | tuple[float, float] = 0.0,
        use_conv: bool = False,
    ) -> None:
        super().__init__()
        hidden, out = hidden_features or in_features, out_features or in_features
        biases = bias if isinstance(bias, tuple) else (bias, bias)
        drops = drop if isinstance(drop, tuple) else (drop, drop)
        self.fc1 = _dense(in_features, hidden, biases[0], use_conv)
        self.act = create_act(act_layer)
        self.drop1 = nn.Dropout(drops[0])
        self.norm = get_norm_layer(norm_layer)(hidden) if norm_layer is not None else nn.Identity()
        self.fc2 = _dense(hidden, out, biases[1], use_conv)
        self.drop2 = nn.Dropout(drops[1])

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.drop1(self.act(self.fc1(x))))
        return self.drop2(self.fc2(x))
