"""Classification heads: pooling, what stands between it and the classifier, and the classifier."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from opsin.layers.act import create_act
from opsin.layers.norm import get_norm_layer
from opsin.layers.pool import SelectAdaptivePool2d

__all__ = ["ClassifierHead", "ConvClassifier", "NormMlpClassifierHead"]


def _classifier(width: int, num_classes: int, pool_type: str, use_conv: bool = False) -> nn.Module:
    if use_conv and num_classes:
        return nn.Conv2d(width, num_classes, 1)
    if num_classes and not pool_type:
        raise ValueError("global_pool='' leaves a map: it needs num_classes=0")
    return nn.Linear(width, num_classes) if num_classes else nn.Identity()


class ConvClassifier(nn.Conv2d):
    """A linear layer that checkpoints hold as a 1x1 convolution; takes `(B, C)`, or `(B, C, H, W)` at each position."""

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__(in_features, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.flatten(1), self.bias) if x.ndim == 2 else super().forward(x)


class ClassifierHead(nn.Module):
    """Pool, drop out, classify. `(B, C, H, W)` (or `(B, H, W, C)` with `input_fmt="NHWC"`) to `(B, num_classes)`.

    With `num_classes=0` it gives the pooled features, with `pool_type=""` as well the map. With `use_conv` the
    classifier is a 1x1 convolution, which also classifies each position of a map.
    """

    def __init__(
        self, in_features: int, num_classes: int, pool_type: str = "avg", drop_rate: float = 0.0,
        use_conv: bool = False, input_fmt: str = "NCHW",
    ) -> None:  # fmt: skip
        super().__init__()
        self.in_features = in_features
        self.input_fmt = input_fmt
        self.use_conv = use_conv
        self.drop = nn.Dropout(drop_rate)
        self.reset(num_classes, pool_type)

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """A fresh classifier for `num_classes` (0: none), and another pooling if named."""
        if pool_type is not None:
            self.global_pool = SelectAdaptivePool2d(
                pool_type=pool_type, flatten=bool(pool_type), input_fmt=self.input_fmt
            )
        self.num_features = self.in_features * self.global_pool.feat_mult()
        self.fc = _classifier(self.num_features, num_classes, self.global_pool.pool_type, self.use_conv)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(self.global_pool(x))
        return x if pre_logits else self.classify(x)

    def classify(self, x: Tensor) -> Tensor:
        """Logits of an embedding (B, num_features), or with `use_conv` of a map as well."""
        if isinstance(self.fc, nn.Conv2d) and x.ndim == 2:
            return self.fc(x[:, :, None, None]).flatten(1)
        return self.fc(x)


class NormMlpClassifierHead(nn.Module):
    """Pool, norm, an optional hidden layer, drop out, classify. `(B, C, H, W)` to `(B, num_classes)`.

    `norm_layer` works on `(B, C, H, W)`; pooling must keep the width, so there is no `catavgmax`.
    """

    def __init__(
        self, in_features: int, num_classes: int, hidden_size: int | None = None, pool_type: str = "avg",
        drop_rate: float = 0.0, norm_layer: Any = "layernorm2d", act_layer: str | Callable[..., nn.Module] = "tanh",
    ) -> None:  # fmt: skip
        super().__init__()
        self.in_features = in_features
        self.num_features = hidden_size or in_features
        self._set_pool(pool_type)
        self.norm = get_norm_layer(norm_layer)(in_features)
        self.flatten = nn.Flatten(1) if pool_type else nn.Identity()
        self.pre_logits: nn.Module = nn.Identity()
        if hidden_size:
            hidden = OrderedDict(fc=nn.Linear(in_features, hidden_size), act=create_act(act_layer))
            self.pre_logits = nn.Sequential(hidden)
        self.drop = nn.Dropout(drop_rate)
        self.fc = _classifier(self.num_features, num_classes, pool_type)

    def _set_pool(self, pool_type: str) -> None:
        self.global_pool = SelectAdaptivePool2d(pool_type=pool_type)
        if self.global_pool.feat_mult() != 1:
            raise ValueError(f"global_pool={pool_type!r} changes the width, but the norm behind it does not")

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """A fresh classifier for `num_classes` (0: none), and another pooling if named; norm and hidden layer stay."""
        if pool_type is not None:
            self._set_pool(pool_type)
            self.flatten = nn.Flatten(1) if pool_type else nn.Identity()
        self.fc = _classifier(self.num_features, num_classes, self.global_pool.pool_type)

    def remove(self) -> None:
        """Leave nothing: the map comes out as it went in, of whatever width."""
        self.reset(0, "")
        self.norm, self.pre_logits = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.flatten(self.norm(self.global_pool(x)))
        x = self.drop(self._hidden(x))
        return x if pre_logits else self.fc(x)

    def _hidden(self, x: Tensor) -> Tensor:
        if x.ndim == 4 and not isinstance(self.pre_logits, nn.Identity):  # no pooling: the layer acts at each position
            return self.pre_logits(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.pre_logits(x)
