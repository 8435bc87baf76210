"""The head of small networks: pooling first, then a 1x1 convolution to many channels, then the classifier."""

import torch.nn.functional as F
from torch import Tensor, nn

from opsin.layers import SelectAdaptivePool2d
from opsin.models._config import ModelConfig
from opsin.models._model import Model

__all__ = ["ConvHead"]


class ConvHead(Model):
    """A model with `global_pool`, `conv_head` (num_features to head_hidden_size), `norm_head` and `classifier`."""

    classifier_path = "classifier"
    conv_head: nn.Module
    norm_head: nn.Module

    def conv_head_parts(self, in_chs: int) -> tuple[nn.Module, nn.Module]:
        """The convolution from `in_chs` to `head_hidden_size`, and what follows it: norm, activation or both."""
        raise NotImplementedError(f"{type(self).__name__} must define conv_head_parts(in_chs)")

    def build_head(self, c: ModelConfig) -> None:
        if c.num_classes and not c.global_pool:
            raise ValueError("global_pool='' leaves a map: it needs num_classes=0")
        self.global_pool = SelectAdaptivePool2d(pool_type=c.global_pool)
        width = self.num_features * self.global_pool.feat_mult()
        if not hasattr(self, "conv_head") or self.conv_head.in_channels != width:  # a new classifier leaves it alone
            self.conv_head, self.norm_head = self.conv_head_parts(width)
        self.classifier = nn.Linear(self.head_hidden_size, c.num_classes) if c.num_classes else nn.Identity()

    def remove_head(self) -> None:
        super().remove_head()
        self.conv_head, self.norm_head = nn.Identity(), nn.Identity()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.norm_head(self.conv_head(self.global_pool(x)))
        if self.global_pool.pool_type:
            x = x.flatten(1)
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.classifier(x)
