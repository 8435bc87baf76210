"""What settings ask of each other, and what gives way: a recipe's own setting does, what a person said is refused."""

import copy
import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

from opsin import bounds

__all__ = ["faults", "flat", "settle"]

# a setting that does nothing unless one of these is set
NEEDS = {
    "unfreeze_epochs": ("freeze",),
    "clip_mode": ("clip_grad",),
    "ema_decay": ("ema",),
    "ema_debias": ("ema",),
    "remode": ("reprob",),
    "mixup_prob": ("mixup", "cutmix"),
    "mixup_switch_prob": ("mixup", "cutmix"),
    "mixup_mode": ("mixup", "cutmix"),
    "mixup_off_epoch": ("mixup", "cutmix"),
    "warmup_lr": ("warmup_epochs",),
}
# names that the NAME=VALUE settings leave to others: name -> who says it
TAKEN = {
    "model_args": {
        "num_classes": "the data", "in_chans": "in_chans", "img_size": "img_size", "drop_rate": "drop_rate",
        "drop_path_rate": "drop_path_rate", "pretrained": "pretrained", "model_name": "model",
        "checkpoint_path": "checkpoint", "features_only": "training, which needs a classifier",
    },
    "opt_args": {
        "opt": "opt", "lr": "lr", "weight_decay": "weight_decay", "momentum": "momentum", "layer_decay": "layer_decay",
        "model_or_params": "model", "params": "model",
    },
    "loss_args": {
        "name": "loss", "task": "task", "smoothing": "smoothing", "num_splits": "aug_splits", "weight": "class_weights",
    },
    "sched_args": {
        "name": "sched", "optimizer": "opt", "total_steps": "epochs", "warmup_steps": "warmup_epochs",
        "warmup_lr": "warmup_lr", "min_lr": "min_lr", "steps_per_epoch": "the data",
    },
    "reader_args": {"split": "train_split and val_split"},
}  # fmt: skip
WARM_UP_SHARE = 1 / 3  # of the run, at most, unless a person said how long


def _groups(config: Any) -> Iterator[Any]:
    return (getattr(config, group.name) for group in dataclasses.fields(config))


def flat(config: Any) -> dict[str, Any]:
    """All settings without their groups; no two have the same name."""
    return {one.name: getattr(group, one.name) for group in _groups(config) for one in dataclasses.fields(group)}


def _defaults(config: Any) -> dict[str, Any]:
    return flat(type(config)())


def faults(config: Any) -> list[str]:
    """Values that no setting can have, names that others say, and settings that do nothing."""
    values, defaults = flat(config), _defaults(config)
    found: list[str] = []
    for group in _groups(config):
        found += bounds.faults(typing.get_type_hints(type(group), include_extras=True), vars(group))
    for setting, taken in TAKEN.items():
        for name in taken.keys() & values[setting].keys():
            own = "it is a setting of its own" if taken[name] == name else f"{taken[name]} says it"
            found.append(f"{setting} cannot set {name}: {own}")
    for name, needs in NEEDS.items():
        if values[name] != defaults[name] and not any(values[one] for one in needs):
            found.append(f"{name} does nothing without {' or '.join(needs)}")
    return found


def _saved(model: str) -> bool:
    from opsin.inference.predictor import is_saved
    from opsin.train.check import source_of

    return is_saved(source_of(model))


def settle(config: Any, task: str | None = None) -> tuple[Any, list[str]]:
    """The configuration once what nobody but its recipe said has given way to what a person said and, where it is
    known, to the task; and what is to be told about that."""
    config, said = copy.deepcopy(config), []
    values, defaults = flat(config), _defaults(config)
    mild = {name for name, value in config.base.items() if value == values[name]}

    def drop(name: str, value: Any, why: str = "") -> None:
        group = next(group for group in _groups(config) if hasattr(group, name))
        if name in mild and value != getattr(group, name):
            if why:
                said.append(f"the recipe's {name} {getattr(group, name)} becomes {value}: {why}")
            setattr(group, name, value)

    for name in ("loss", "opt", "sched"):
        if name not in mild:
            drop(f"{name}_args", {}, f"the {name} is {values[name]}")
    if values["checkpoint"]:
        drop("pretrained", False)
    elif _saved(values["model"]):
        drop("pretrained", True)  # it is named for its weights
    if values["sched"] == "onecycle":
        drop("warmup_epochs", 0.0, "onecycle has a rise of its own")
    longest = round(values["epochs"] * WARM_UP_SHARE, 2)
    if values["warmup_epochs"] > longest > 0:
        drop("warmup_epochs", longest, f"no more than a third of {values['epochs']} epochs")
    for name, needs in NEEDS.items():
        if not any(values[one] for one in needs):
            drop(name, defaults[name])
    if not values["ema"] and str(values["metric"]).startswith("ema_"):
        drop("metric", values["metric"].removeprefix("ema_"), "there is no average of the weights")
    if task == "regression":
        for name in ("smoothing", "mixup", "cutmix"):
            drop(name, 0.0, "it is for classes, not for regression")
        drop("loss", "auto", "it is for classes, not for regression")
        drop("loss_args", {})
        drop("metric", None, "it is for classes, not for regression")
    return config, said
