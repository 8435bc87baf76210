"""The zoo: one file per family, found by name through a generated index. Importing this package imports no torch."""

from importlib import import_module
from typing import Any

__all__ = [
    "Model",
    "ModelConfig",
    "Stage",
    "TokenModel",
    "generate_default_cfgs",
    "is_model",
    "is_model_pretrained",
    "list_families",
    "list_models",
    "list_pretrained",
    "model_entrypoint",
    "model_info",
    "register_model",
]

_HOME = {
    "Model": "opsin.models._model",
    "ModelConfig": "opsin.models._config",
    "Stage": "opsin.models._chain",
    "TokenModel": "opsin.models._token",
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(_HOME.get(name, "opsin.models._registry")), name)
    from opsin.errors import did_you_mean
    from opsin.models._index import MODELS

    modules = {*MODELS.values(), "features"}
    if name in modules:
        return import_module(f"opsin.models.{name}")
    raise AttributeError(f"module 'opsin.models' has no attribute {name!r}.{did_you_mean(name, [*__all__, *modules])}")
