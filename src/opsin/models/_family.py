"""A family: one model class, its variants by name, and how its older checkpoints are read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from opsin import catalog
from opsin.errors import did_you_mean
from opsin.models._config import ModelConfig

__all__ = ["Family"]

StateDict = Mapping[str, Tensor]


@dataclass(frozen=True)
class Family:
    """What a family file ends with: `family = Family(ResNet, VARIANTS)`.

    Args:
        model: the model class; a variant whose config names another class is listed in `models`.
        variants: architecture name -> config.
        adapt: `(state_dict, model) -> state_dict`: the one hook that renames and reshapes older or original layouts and
            resamples what depends on the image size. It must leave today's layout as it is.
        models: architecture name -> class, for the few variants that another class builds.
        out_indices: default feature levels of `features_only`, n for the last n; None for those in the catalog.
        feature_cls: default form of `features_only`, see `opsin.models.features`.
        flatten_features: name the parts of a feature net with underscores, as published checkpoints of such nets do.
    """

    model: type[nn.Module]
    variants: Mapping[str, ModelConfig]
    adapt: Callable[[StateDict, nn.Module], StateDict] | None = None
    models: Mapping[str, type[nn.Module]] = field(default_factory=dict)
    out_indices: int | None = None
    feature_cls: str = "list"
    flatten_features: bool = False

    def model_of(self, name: str) -> type[nn.Module]:
        return self.models.get(name, self.model)

    def module_getattr(self, module: str) -> Callable[[str], Any]:
        """A `__getattr__` for the family's file: `resnet.resnet34()` for every variant, and `default_cfgs`."""

        def __getattr__(name: str) -> Any:
            if name in self.variants:
                from opsin.factory import create_model

                return partial(create_model, name)
            if name == "default_cfgs":
                names = [
                    f"{arch}.{tag}" if tag else arch for arch in self.variants for tag in catalog.tags(arch) or [""]
                ]
                return {full: catalog.pretrained_cfg(full) for full in names}
            raise AttributeError(f"module {module!r} has no attribute {name!r}.{did_you_mean(name, self.variants)}")

        return __getattr__
