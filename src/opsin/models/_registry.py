"""The registry: from names to families, facts and entry points. Reads the index and the catalog; imports no torch.

Models come from three places: the generated index of opsin's own families, `@register_model` in users' modules, and
installed packages whose entry points in the group `opsin.models` name a module that registers models.
"""

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from opsin import catalog
from opsin.catalog import PretrainedCfg, natural_key
from opsin.errors import OpsinError, UnknownModelError, did_you_mean
from opsin.models._index import MODELS

if TYPE_CHECKING:
    from torch import nn

    from opsin.models._family import Family

__all__ = [
    "DefaultCfg",
    "ModelInfo",
    "find_family",
    "generate_default_cfgs",
    "get_pretrained_cfg",
    "is_model",
    "is_model_pretrained",
    "list_families",
    "list_models",
    "list_modules",
    "list_pretrained",
    "model_entrypoint",
    "model_info",
    "register_model",
    "resolve_name",
    "split_name",
    "tags_of",
    "user_entrypoint",
]

Names = str | Sequence[str]
Entrypoint = TypeVar("Entrypoint", bound=Callable[..., Any])

_users: dict[str, Callable[..., Any]] = {}  # models of users: name -> their function


# --- users' own models ------------------------------------------------------------------------------------------------


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
    before = _users.get(name)
    if name in MODELS or (before is not None and before.__module__ != fn.__module__):
        owner = before.__module__ if before is not None else f"opsin.models.{MODELS[name]}"
        warnings.warn(f"Model {name!r} of {owner} is replaced by that of {fn.__module__}.", stacklevel=2)
    _users[name] = fn
    return fn


def _user_cfgs(name: str) -> dict[str, PretrainedCfg]:
    """Tag -> record of a user's model, from `default_cfgs` in its module; an empty record where there is none."""
    module = sys.modules.get(_users[name].__module__)
    found = getattr(module, "default_cfgs", {}).get(name)
    if isinstance(found, DefaultCfg):
        return found.cfgs
    if isinstance(found, Mapping):  # the older form: one plain dict per architecture
        found = PretrainedCfg.from_dict(dict(found))
    record = found or PretrainedCfg()
    return {record.tag: record.overlay(architecture=name)}


@cache
def _load_entry_points() -> None:
    """Import, once, the modules of installed packages that register models. A broken one is named, others still load."""
    from importlib.metadata import entry_points

    for entry in entry_points(group="opsin.models"):
        try:
            entry.load()
        except Exception as error:  # whatever a stranger's module raises must not take every other model away
            warnings.warn(f"The models of {entry.name!r} ({entry.value}) cannot be loaded: {error!r}", stacklevel=3)


def user_entrypoint(name: str) -> Callable[..., "nn.Module"] | None:
    """The function a user registered under this architecture name, or None."""
    if name not in _users and name not in MODELS:
        _load_entry_points()
    return _users.get(name)


# --- names ------------------------------------------------------------------------------------------------------------


def split_name(name: str) -> tuple[str, str]:
    """`"resnet34.a1_in1k"` -> `("resnet34", "a1_in1k")`; the tag is empty where there is none."""
    architecture, _, tag = name.partition(".")
    return architecture, tag


def _exists(architecture: str) -> bool:
    return architecture in MODELS or user_entrypoint(architecture) is not None


def tags_of(architecture: str) -> list[str]:
    """The weight tags of an architecture, the default first; empty where it has none."""
    if architecture in _users:
        return [tag for tag in _user_cfgs(architecture) if tag]
    return catalog.tags(architecture)


def resolve_name(name: str) -> tuple[str, str | None]:
    """The architecture and weight tag (None where none is named) that `name` stands for today.

    A former name is followed with a `FutureWarning`. An unknown name or tag raises `UnknownModelError`.
    """
    architecture, tag = split_name(name)
    if _exists(architecture) and (not tag or tag in tags_of(architecture)):
        return architecture, tag or None
    new = catalog.resolve_alias(name)
    if new is None and tag and (renamed := catalog.resolve_alias(architecture)):
        new = f"{split_name(renamed)[0]}.{tag}"
    if new is not None:
        note = catalog.alias_note(name) or catalog.alias_note(architecture)
        message = f"{name!r} is a former name; using {new!r}. {note}".rstrip()
        warnings.warn(message, FutureWarning, stacklevel=3)
        return resolve_name(new)
    if _exists(architecture):
        known = tags_of(architecture)
        hint = did_you_mean(tag, known) or f" It has: {', '.join(known) or 'none'}."
        raise UnknownModelError(f"{architecture} has no weights tagged {tag!r}.{hint}")
    if architecture in catalog.architectures():
        family = catalog.model_facts(architecture).family
        raise UnknownModelError(f"{architecture!r} belongs to the family {family!r}, which opsin cannot build yet.")
    raise UnknownModelError(f"There is no model {architecture!r}.{did_you_mean(architecture, [*MODELS, *_users])}")


def is_model(name: str) -> bool:
    """Whether `create_model` knows this name: an architecture, `architecture.tag`, or a former name of one."""
    architecture, tag = split_name(name)
    if _exists(architecture):
        return not tag or tag in tags_of(architecture)
    try:
        new = catalog.resolve_alias(name)
    except UnknownModelError:
        return False
    return new is not None and _exists(split_name(new)[0])


def is_model_pretrained(name: str) -> bool:
    """Whether this architecture, or this `architecture.tag`, has weights."""
    return is_model(name) and get_pretrained_cfg(_quietly(name)).has_weights


def _quietly(name: str) -> str:
    """The name of today, without the notice that a former one gets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        architecture, tag = resolve_name(name)
    return f"{architecture}.{tag}" if tag else architecture


def find_family(name: str) -> "Family":
    """The family that builds this architecture (imports its file, and torch)."""
    architecture = resolve_name(name)[0]
    if architecture not in MODELS:
        raise UnknownModelError(f"{architecture!r} is a user's model and belongs to no family of opsin.")
    return import_module(f"opsin.models.{MODELS[architecture]}").family


def model_entrypoint(name: str, module_filter: str | None = None) -> Callable[..., "nn.Module"]:
    """The callable `(pretrained=False, **kwargs)` that builds this model; `module_filter` names its family."""
    architecture, tag = resolve_name(name)
    if module_filter and module_filter not in _families_of(architecture):
        raise UnknownModelError(f"{architecture!r} is not in the family {module_filter!r}.")
    user = user_entrypoint(architecture)
    if user is not None:
        return user
    from opsin.factory import create_model

    return partial(create_model, f"{architecture}.{tag}" if tag else architecture)


def get_pretrained_cfg(name: str) -> PretrainedCfg:
    """The record of `architecture.tag`, or of the default tag of a bare `architecture`."""
    architecture, tag = resolve_name(name)
    if architecture in _users:
        cfgs = _user_cfgs(architecture)
        return cfgs[tag] if tag else next(iter(cfgs.values()))
    return catalog.pretrained_cfg(f"{architecture}.{tag}" if tag else architecture)


# --- listing ----------------------------------------------------------------------------------------------------------


def _families_of(architecture: str) -> tuple[str, ...]:
    """The file that builds an architecture, and the family the published packages count it to."""
    if architecture in _users:
        return (_users[architecture].__module__.rpartition(".")[2],)
    return MODELS[architecture], catalog.model_facts(architecture).family


def list_families() -> list[str]:
    """Every family, in natural order: opsin's files, the modules of the published package, modules of users."""
    _load_entry_points()
    found = {family for name in (*MODELS, *_users) for family in _families_of(name)}
    return sorted(found, key=natural_key)


list_modules = list_families


def _patterns(filters: Names) -> list[str]:
    return [f for f in ([filters] if isinstance(filters, str) else filters) if f]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """A pattern without a tag matches whatever the tag."""
    return any(fnmatchcase(name, p) or ("." not in p and fnmatchcase(split_name(name)[0], p)) for p in patterns)


def _check_choice(given: str, known: Iterable[str], *, what: str) -> None:
    known = sorted(known, key=natural_key)
    if not any(fnmatchcase(option, given) for option in known):
        hint = did_you_mean(given, known) or f" There are: {', '.join(known)}."
        raise OpsinError(f"No model has the {what} {given!r}.{hint}")


def _fits_size(size: tuple[int, ...], wanted: int | Sequence[int]) -> bool:
    wanted = (wanted, wanted) if isinstance(wanted, int) else tuple(wanted)
    return size[-len(wanted) :] == wanted


def _top1(name: str) -> float | None:
    return max((record.imagenet_top1 for record in catalog.accuracy(name)), default=None)


@dataclass(frozen=True, kw_only=True)
class _Query:
    """Conditions on facts. A fact that nobody measured does not fulfil a condition on it."""

    max_params: float | None
    min_params: float | None
    max_gmacs: float | None
    min_top1: float | None
    license: list[str]
    input_size: int | Sequence[int] | None

    def takes_architecture(self, name: str) -> bool:
        if self.max_params is None and self.min_params is None and self.max_gmacs is None:
            return True
        if name in _users:
            return False
        facts = catalog.model_facts(name)
        return (
            (self.max_params is None or facts.params <= self.max_params)
            and (self.min_params is None or facts.params >= self.min_params)
            and (self.max_gmacs is None or (facts.gmacs is not None and facts.gmacs <= self.max_gmacs))
        )

    @property
    def asks_for_tags(self) -> bool:
        return self.min_top1 is not None or bool(self.license) or self.input_size is not None

    def takes_weights(self, name: str) -> bool:
        if self.min_top1 is not None and ((top1 := _top1(name)) is None or top1 < self.min_top1):
            return False
        if self.license or self.input_size is not None:
            cfg = get_pretrained_cfg(name)
            if self.license and not any(fnmatchcase(cfg.license or "", pattern) for pattern in self.license):
                return False
            if self.input_size is not None and not _fits_size(cfg.input_size, self.input_size):
                return False
        return True


def list_models(
    filter: Names = "",
    module: Names = "",
    pretrained: bool = False,
    exclude_filters: Names = "",
    name_matches_cfg: bool = False,
    include_tags: bool | None = None,
    *,
    exclude: Names = "",
    family: Names = "",
    max_params: float | None = None,
    min_params: float | None = None,
    min_top1: float | None = None,
    license: Names = "",
    max_gmacs: float | None = None,
    input_size: int | Sequence[int] | None = None,
) -> list[str]:
    """Names of models in natural order (resnet18 before resnet101), without importing torch.

    Args:
        filter: wildcard pattern or patterns, such as `"*resne*t*"`; one without a tag matches every tag.
        module: as `family`.
        pretrained: only what has weights, as `architecture.tag`.
        exclude_filters: as `exclude`.
        name_matches_cfg: only models with a record of their preprocessing; drops users' models that declare none.
        include_tags: list every `architecture.tag`; by default just when `pretrained`.
        exclude: pattern or patterns of what to leave out.
        family: families, by opsin's file name or by the module of the published package (see `list_families`).
        max_params, min_params: bounds on the parameters of the architecture with its default head.
        min_top1: ImageNet-1k validation top-1 (%), the best over the published image sizes.
        license: licence or licences of the weights, wildcards allowed (`"cc-by-*"`).
        max_gmacs: most multiply-accumulates of one forward, in billions, as measured at the default image size.
        input_size: image side, (height, width) or (channels, height, width) the weights were made for.

    `min_top1`, `license` and `input_size` are facts of weight tags: where tags are listed, those tags that fulfil all of
    them; else the architectures of which one tag does. What nobody measured does not fulfil a condition.
    Raises `OpsinError` for an unknown family or licence, with the nearest right one.
    """
    _load_entry_points()
    families = [*_patterns(module), *_patterns(family)]
    for name in families:
        _check_choice(name, list_families(), what="family")
    licenses = _patterns(license)
    for name in licenses:
        _check_choice(name, {w.license for w in _all_cfgs() if w.license}, what="license")
    query = _Query(
        max_params=max_params,
        min_params=min_params,
        max_gmacs=max_gmacs,
        min_top1=min_top1,
        license=licenses,
        input_size=input_size,
    )
    include, leave_out = _patterns(filter), [*_patterns(exclude_filters), *_patterns(exclude)]
    with_tags = pretrained if include_tags is None else include_tags
    found: list[str] = []
    for architecture in {**MODELS, **_users}:
        if families and not any(_matches(f, families) for f in _families_of(architecture)):
            continue
        if not query.takes_architecture(architecture):
            continue
        if name_matches_cfg and architecture in _users and not _declares_cfg(architecture):
            continue
        weights = _weights_of(architecture)
        fulfilling = [
            w
            for w in weights
            if (not pretrained or _has_weights(w)) and (not query.asks_for_tags or query.takes_weights(w))
        ]
        candidates = fulfilling if with_tags else [architecture] if fulfilling else []
        found += [c for c in candidates if (not include or _matches(c, include)) and not _matches(c, leave_out)]
    return sorted(found, key=natural_key)


def list_pretrained(filter: Names = "", **conditions: Any) -> list[str]:
    """Every `architecture.tag` that has weights; takes the conditions of `list_models`."""
    return list_models(filter, pretrained=True, include_tags=True, **conditions)
