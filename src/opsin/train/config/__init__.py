"""What a training run is told: settings as nested dataclasses, and the YAML that holds them."""

from opsin.train.config.files import from_dict, list_recipes, load_config, load_recipe, save_config, to_dict
from opsin.train.config.settings import (
    AugmentSettings,
    DataSettings,
    DistillSettings,
    LossSettings,
    ModelSettings,
    OptimSettings,
    RunSettings,
    ScheduleSettings,
    TrainConfig,
)

__all__ = [
    "AugmentSettings",
    "DataSettings",
    "DistillSettings",
    "LossSettings",
    "ModelSettings",
    "OptimSettings",
    "RunSettings",
    "ScheduleSettings",
    "TrainConfig",
    "from_dict",
    "list_recipes",
    "load_config",
    "load_recipe",
    "save_config",
    "to_dict",
]
