"""Users' own models: `@register_model`, their weight tags, and the entry points that bring them. Imports no torch."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from opsin.catalog import PretrainedCfg
from opsin.errors import warn_user
from opsin.models._index import MODELS

__all__ = ["USERS", "DefaultCfg", "generate_default_cfgs", "load_entry_points", "register_model", "user_cfgs"]

Entrypoint = TypeVar("Entrypoint", bound=Callable[..., Any])

USERS: dict[str, Callable[..., Any]] = {}  # architecture -> the function that builds it


@dataclass(frozen=True)
class DefaultCfg:
    """The weight tags of one architecture, the default first."""

    cfgs: dict[str, PretrainedCfg] = field(default_factory=dict)

    @property
    def tags(self) -> list[str]:
        return list(self.cfgs)

    @property
    def default(self) -> PretrainedCfg:
        return next(iter(self.cfgs.values()))

    @property
    def default_with_tag(self) -> tuple[str, PretrainedCfg]:
        return next(iter(self.cfgs.items()))

    @property
    def is_pretrained(self) -> bool:
        return any(cfg.has_weights for cfg in self.cfgs.values())


def generate_default_cfgs(cfgs: Mapping[str, PretrainedCfg | dict[str, Any]]) -> dict[str, DefaultCfg]:
    """Group records by architecture: `{"my_model.tag": {"url": …}, "my_model.other": {…}}`.

    The default tag is the one marked by a star (`my_model.tag*`), else the first that has weights, else the first.
    """
    grouped: dict[str, dict[str, tuple[int, PretrainedCfg]]] = {}
    for key, value in cfgs.items():
        name, _, tag = key.partition(".")
        starred, tag = tag.endswith("*"), tag.removesuffix("*")
        record = value if isinstance(value, PretrainedCfg) else PretrainedCfg.from_dict(value)
        record = record.overlay(architecture=name, tag=tag)
        rank = 0 if starred else 1 if record.has_weights else 2
        grouped.setdefault(name, {})[tag] = (rank, record)
    ranked = {name: sorted(found.items(), key=lambda item: item[1][0]) for name, found in grouped.items()}
    return {name: DefaultCfg({tag: record for tag, (_, record) in found}) for name, found in ranked.items()}


def register_model(fn: Entrypoint) -> Entrypoint:
    """Decorator: make `fn(pretrained=False, **kwargs) -> nn.Module` a model under the function's name.

    A `default_cfgs` mapping in the same module (see `generate_default_cfgs`) gives it weight tags. A name that opsin or
    another module already uses is taken over, with a warning.
    """
    name = fn.__name__
    before = USERS.get(name)
    if name in MODELS or (before is not None and before.__module__ != fn.__module__):
        owner = before.__module__ if before is not None else f"opsin.models.{MODELS[name]}"
        warn_user(f"Model {name!r} of {owner} is replaced by that of {fn.__module__}.")
    USERS[name] = fn
    return fn


def user_cfgs(name: str) -> dict[str, PretrainedCfg]:
    """Tag -> record of a user's model, from `default_cfgs` in its module; an empty record where there is none."""
    module = sys.modules.get(USERS[name].__module__)
    found = getattr(module, "default_cfgs", {}).get(name)
    if isinstance(found, DefaultCfg):
        return found.cfgs
    if isinstance(found, Mapping):  # the older form: one plain dict per architecture
        found = PretrainedCfg.from_dict(dict(found))
    record = found or PretrainedCfg()
    return {record.tag: record.overlay(architecture=name)}


@cache
def load_entry_points() -> None:
    """Import, once, what installed packages name under `opsin.models`. A broken one is named, the others still load."""
    from importlib.metadata import entry_points

    for entry in entry_points(group="opsin.models"):
        try:
            entry.load()
        except Exception as error:  # whatever a stranger's module raises must not take every other model away
            warn_user(f"The models of {entry.name!r} ({entry.value}) cannot be loaded: {error!r}")
