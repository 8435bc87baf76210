"""What a timm family file shows: classes and architectures of opsin's, and the conventions such files share."""

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

from opsin import catalog
from opsin.catalog import PretrainedCfg
from opsin.integrations.timm_alias._names import FAMILY_HELPERS, View
from opsin.models._index import MODELS
from opsin.models._registry import DefaultCfg, model_entrypoint

__all__ = ["ArchCfg", "FamilyView", "family_cfg"]


class ArchCfg(DefaultCfg, Mapping):
    """The weights of one architecture, as timm's `default_cfgs` holds them: `cfgs`, `tags`, `default`. Read as a
    mapping it is the record of the default weights (`["url"]`, `["input_size"]`), which older releases put there."""

    def __getitem__(self, key: str) -> Any:
        return self.default.to_dict()[key]

    def __iter__(self):
        return iter(self.default.to_dict())

    def __len__(self) -> int:
        return len(self.default.to_dict())


class FamilyView:
    """`timm.models.<family>`: opsin's modules for it, one after the other; then the layers, which timm's files import
    and others import from them."""

    def __init__(self, family: str, homes: tuple[str, ...], layers: View) -> None:
        self.family, self.homes, self.layers = family, homes, layers
        self.helpers = View(names=FAMILY_HELPERS.get(family, {}))

    def modules(self) -> list[ModuleType]:
        return [import_module(home) for home in self.homes]

    def architectures(self) -> list[str]:
        return [name for name in MODELS if catalog.model_facts(name).family == self.family]

    def find(self, name: str) -> Any:
        if name in self.conventions():
            return self.conventions()[name]()
        if name in self.helpers.names:
            return self.helpers.find(name)
        if name in MODELS or (not name.startswith("_") and catalog.resolve_alias(name)):
            return model_entrypoint(name)
        for module in self.modules():
            value = vars(module).get(name)
            if value is not None and not name.startswith("__") and not isinstance(value, ModuleType):
                return value
        return self.layers.find(name)

    def public(self) -> list[str]:
        own = {name for module in self.modules() for name in module.__all__ if name != "Config"}
        return sorted(
            own | set(self.architectures()) | {"default_cfgs", "checkpoint_filter_fn"} | set(self.helpers.names)
        )

    def conventions(self) -> dict[str, Callable[[], Any]]:
        return {
            "default_cfgs": self.default_cfgs,
            "_cfg": lambda: partial(family_cfg, self.family),
            "checkpoint_filter_fn": self.filter_fn,
            f"_create_{self.family}": lambda: self.create,
        }

    def default_cfgs(self) -> dict[str, ArchCfg]:
        return {name: ArchCfg({cfg.tag: cfg for cfg in catalog.pretrained_cfgs(name)}) for name in self.architectures()}

    def filter_fn(self) -> Callable[..., Any]:
        """The hook that reads older layouts; a family without any keeps what it gets."""
        return self.modules()[0].family.adapt or (lambda state_dict, model: state_dict)

    def create(self, variant: str, pretrained: bool = False, **kwargs: Any) -> Any:
        """Build the family's class under a name of the caller's from keywords, as timm's private `_create_…` does."""
        from opsin.integrations.timm_alias._calls import build_model_with_cfg

        family = self.modules()[0].family
        return build_model_with_cfg(family.model, variant, pretrained, pretrained_filter_fn=family.adapt, **kwargs)


# how a family's records differ from the general default
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
_RECORDS: dict[str, dict[str, Any]] = {
    "resnet": {"interpolation": "bilinear", "pool_size": (7, 7)},
    "efficientnet": {"pool_size": (7, 7)},
    "convnext": {"pool_size": (7, 7)},
    "vision_transformer": {"fixed_input_size": True, "crop_pct": 0.9} | _HALF,
    "deit": {"fixed_input_size": True, "crop_pct": 0.9},
}


def family_cfg(family: str, url: str = "", **changes: Any) -> dict[str, Any]:
    """A record of the family with its usual preprocessing, as files of users' own models begin: `_cfg(url=…, …)`."""
    model = import_module(f"opsin.models.{family}").family.model
    record = PretrainedCfg(first_conv=model.first_conv, classifier=model.classifier_path, **_RECORDS.get(family, {}))
    return record.overlay(url=url or None, **changes).to_dict()
