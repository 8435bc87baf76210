"""Training: `build_run` makes the parts of a run from a configuration, `fit` is the loop that moves them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opsin.train.build import build_run as build_run
    from opsin.train.config import TrainConfig as TrainConfig
    from opsin.train.config import list_recipes as list_recipes
    from opsin.train.config import load_config as load_config
    from opsin.train.config import load_recipe as load_recipe
    from opsin.train.distributed import connect as connect
    from opsin.train.ema import Ema as Ema
    from opsin.train.loop import Callback as Callback
    from opsin.train.loop import Run as Run
    from opsin.train.loop import fit as fit
    from opsin.train.metrics import Metrics as Metrics

_HOME = {
    "Callback": "loop",
    "Ema": "ema",
    "Metrics": "metrics",
    "Run": "loop",
    "TrainConfig": "config",
    "build_run": "build",
    "connect": "distributed",
    "fit": "loop",
    "list_recipes": "config",
    "load_config": "config",
    "load_recipe": "config",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"opsin.train.{_HOME[name]}"), name)
    raise AttributeError(f"module 'opsin.train' has no attribute {name!r}")
