"""Configurations as plain values and YAML files.

A file names only what differs from the defaults, in the same nesting. A key that does not exist is an error that names
the nearest one. The run directory holds the whole resolved configuration, which repeats the run
elsewhere.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from opsin.errors import OpsinError, did_you_mean, explained
from opsin.train.config.rules import flat
from opsin.train.config.settings import TrainConfig

__all__ = ["from_dict", "list_recipes", "load_config", "load_recipe", "save_config", "to_dict"]


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain nested values, ready for YAML or JSON."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def from_dict(
    values: Mapping[str, Any], *, base: TrainConfig | None = None, owner: str = "the configuration"
) -> TrainConfig:
    """A configuration of `base` (the defaults) with these values, types checked; raises `OpsinError`."""
    return _merge(base or TrainConfig(), values, owner)


def _merge(base: Any, values: Mapping[str, Any], owner: str) -> Any:
    fields = {one.name for one in dataclasses.fields(base)}
    hints = typing.get_type_hints(type(base))
    changed = {}
    for key, value in values.items():
        if key not in fields:
            raise OpsinError(f"{owner} has no setting {key!r}.{_nearest(base, key)}")
        old = getattr(base, key)
        if dataclasses.is_dataclass(old):
            if not isinstance(value, Mapping):
                raise OpsinError(f"{owner}: {key} is a group of settings, not {value!r}")
            changed[key] = _merge(old, value, f"{owner}, {key}")
        else:
            changed[key] = _typed(value, hints[key], f"{owner}, {key}")
    return dataclasses.replace(base, **changed)


def _nearest(base: Any, key: str) -> str:
    for group in dataclasses.fields(base):  # a setting without its group
        value = getattr(base, group.name)
        if dataclasses.is_dataclass(value) and key in {one.name for one in dataclasses.fields(value)}:
            return f" It belongs to {group.name}: write it below that."
    names = [one.name for one in dataclasses.fields(base)]
    return did_you_mean(key, names) or f" There are: {', '.join(names)}."


def _typed(value: Any, hint: Any, owner: str) -> Any:
    """The value as the type the setting has: 1 is fine for 1.0, and a list for a tuple; the rest is refused."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _typed(value, next(arg for arg in args if arg is not type(None)), owner)
    if origin is Literal:
        if value not in args:
            hint = did_you_mean(str(value), map(str, args)) or f" It can be {', '.join(map(str, args))}."
            raise OpsinError(f"{owner} cannot be {value!r}.{hint}")
        return value
    if origin is tuple and isinstance(value, list | tuple) and args[-1] is Ellipsis:
        return tuple(_typed(one, args[0], owner) for one in value)
    if origin is tuple and isinstance(value, list | tuple) and len(value) == len(args):
        return tuple(_typed(one, arg, owner) for one, arg in zip(value, args, strict=True))
    if origin is dict and isinstance(value, Mapping):
        return dict(value)
    if hint is float and not isinstance(value, bool) and _is_number(value):
        return float(value)
    if (hint is Path and isinstance(value, str | Path)) or (hint in (int, str, bool) and type(value) is hint):
        return hint(value)
    kind = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise OpsinError(f"{owner} must be of type {kind}, not {value!r}")


def _is_number(value: Any) -> bool:
    """Text counts where it reads as a number: YAML takes 1e-3, without a point, for a word."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def load_config(path: str | Path, *, base: TrainConfig | None = None) -> TrainConfig:
    """A configuration from a YAML file; raises `OpsinError` for a missing or broken file, or a wrong key or value."""
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise OpsinError(f"no configuration {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise OpsinError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, Mapping):
        raise OpsinError(f"{path} holds no settings")
    return from_dict({k: v for k, v in values.items() if k != "about"}, base=base, owner=str(path))


def save_config(config: TrainConfig, path: str | Path) -> None:
    """Write a configuration; the file appears whole or not at all."""
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    with explained(path, part):
        part.write_text(yaml.safe_dump(to_dict(config), sort_keys=False), encoding="utf-8")
        part.replace(path)


def _recipes() -> Any:
    return resources.files("opsin.train") / "recipes"


def list_recipes() -> dict[str, str]:
    """The recipes that come with opsin: name -> what it is, its source and its expected result."""
    files = (one for one in _recipes().iterdir() if one.name.endswith(".yaml"))
    return {
        one.name.removesuffix(".yaml"): yaml.safe_load(one.read_text(encoding="utf-8"))["about"]
        for one in sorted(files, key=lambda one: one.name)
    }


def load_recipe(name: str) -> TrainConfig:
    """A recipe by name, one of `list_recipes`."""
    known = list_recipes()
    if name not in known:
        raise OpsinError(f"no recipe {name!r}.{did_you_mean(name, known) or ' There are: ' + ', '.join(known) + '.'}")
    with resources.as_file(_recipes() / f"{name}.yaml") as path:
        config = load_config(path)
    config.base = flat(config)
    return config
