"""Models whose pooling and classifier are one module, `self.head`."""

from typing import Any

from torch import Tensor

from opsin.layers.classifier import ClassifierHead
from opsin.models._model import Model

__all__ = ["HeadedModel"]


class HeadedModel(Model):
    """A model with a `head` that pools and classifies; families with another one than `ClassifierHead` make theirs."""

    classifier_path = "head.fc"

    def make_head(self, config: Any) -> Any:
        """The head: called with maps and `pre_logits`, and has `reset(num_classes, pool_type)`."""
        args: dict[str, Any] = {"pool_type": config.global_pool, "drop_rate": config.drop_rate}
        return ClassifierHead(self.num_features, config.num_classes, **args)

    def build_head(self, config: Any) -> None:
        if hasattr(self, "head"):
            self.head.reset(config.num_classes, config.global_pool)
        else:
            self.head = self.make_head(config)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)
