"""opsin: image models for PyTorch. Any architecture by name, published weights, any input, the right answer out.

Names are imported when they are first used, so that listing and searching need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opsin.factory import create_model as create_model
    from opsin.inference.optimize import prepare_for_inference as prepare_for_inference
    from opsin.inference.predictor import Predictor as Predictor
    from opsin.inference.predictor import load as load
    from opsin.models._registry import is_model as is_model
    from opsin.models._registry import is_model_pretrained as is_model_pretrained
    from opsin.models._registry import list_families as list_families
    from opsin.models._registry import list_models as list_models
    from opsin.models._registry import list_pretrained as list_pretrained
    from opsin.models._registry import model_entrypoint as model_entrypoint
    from opsin.models._registry import model_info as model_info
    from opsin.models._registry import register_model as register_model
    from opsin.weights.artefact import save as save

__version__ = "0.1.0"

_HOME = {
    "Predictor": "opsin.inference.predictor",
    "create_model": "opsin.factory",
    "is_model": "opsin.models._registry",
    "is_model_pretrained": "opsin.models._registry",
    "list_families": "opsin.models._registry",
    "list_models": "opsin.models._registry",
    "list_pretrained": "opsin.models._registry",
    "load": "opsin.inference.predictor",
    "model_entrypoint": "opsin.models._registry",
    "model_info": "opsin.models._registry",
    "prepare_for_inference": "opsin.inference.optimize",
    "register_model": "opsin.models._registry",
    "save": "opsin.weights.artefact",
}

__all__ = [*_HOME, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in (
        "catalog",
        "data",
        "errors",
        "inference",
        "integrations",
        "layers",
        "loss",
        "models",
        "optim",
        "scheduler",
        "train",
        "weights",
    ):
        return import_module(f"opsin.{name}")
    raise AttributeError(f"module 'opsin' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
