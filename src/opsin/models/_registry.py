"""The registry: from names to families, facts and entry points. Reads the index and the catalog; imports no torch.

Models come from three places: the generated index of opsin's own families, `@register_model` in users' modules, and
installed packages whose entry points in the group `opsin.models` name a module that registers models.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from opsin import catalog
from opsin.catalog import Accuracy, ModelFacts, PretrainedCfg, natural_key
from opsin.errors import (
    OpsinError,
    UnknownArgumentError,
    UnknownModelError,
    did_you_mean,
    names_checked,
    warn_user,
)
from opsin.models._index import MODELS
from opsin.models._query import Query, best_top1
from opsin.models._users import (
    USERS,
    DefaultCfg,
    generate_default_cfgs,
    load_entry_points,
    register_model,
    user_cfgs,
)

if TYPE_CHECKING:
    from torch import nn

    from opsin.models._family import Family

__all__ = [
    "DefaultCfg",
    "ModelInfo",
    "best_top1",
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

Names = str | Sequence[str] | None

HUB_OWNER = "timm/"  # of most names on the hub; a name may begin with it


# --- names ------------------------------------------------------------------------------------------------------------


def user_entrypoint(name: str) -> Callable[..., "nn.Module"] | None:
    """The function a user registered under this architecture name, or None."""
    if name not in USERS and name not in MODELS:
        load_entry_points()
    return USERS.get(name)


def split_name(name: str) -> tuple[str, str]:
    """`"resnet34.a1_in1k"` -> `("resnet34", "a1_in1k")`; the tag is empty where there is none."""
    architecture, _, tag = name.removeprefix(HUB_OWNER).partition(".")
    return architecture, tag


def _exists(architecture: str) -> bool:
    return architecture in MODELS or user_entrypoint(architecture) is not None


def _is_today(name: str) -> bool:
    architecture, tag = split_name(name)
    return _exists(architecture) and (tag in tags_of(architecture) or (not tag and not name.endswith(".")))


def tags_of(architecture: str) -> list[str]:
    """The weight tags of an architecture, the default first; empty where it has none."""
    if architecture in USERS:
        return [tag for tag in user_cfgs(architecture) if tag]
    return catalog.tags(architecture)


def resolve_name(name: str) -> tuple[str, str | None]:
    """The architecture and weight tag (None where none is named) that `name` stands for today.

    A former name is followed with a `FutureWarning`. An unknown name or tag raises `UnknownModelError`.
    """
    architecture, tag = split_name(name)
    if _is_today(name):
        return architecture, tag or None
    if ":" in name:
        raise UnknownModelError(
            f"{name!r} is a place of weights: create_model opens it, the catalogue has no such name."
        )
    new = _name_of_today(name)
    if new is not None:
        note = catalog.alias_note(name) or catalog.alias_note(architecture)
        warn_user(f"{name!r} is a former name; using {new!r}. {note}".rstrip(), FutureWarning)
        return resolve_name(new)
    if _exists(architecture):
        known = tags_of(architecture)
        hint = did_you_mean(tag, known) or f" It has: {', '.join(known) or 'none'}."
        raise UnknownModelError(f"{architecture} has no weights tagged {tag!r}.{hint}")
    if architecture in catalog.architectures():
        family = catalog.model_facts(architecture).family
        raise UnknownModelError(f"{architecture!r} belongs to the family {family!r}, which opsin cannot build yet.")
    raise UnknownModelError(f"There is no model {architecture!r}.{did_you_mean(architecture, [*MODELS, *USERS])}")


def _name_of_today(name: str) -> str | None:
    """What a former name, with or without a weight tag of today, stands for; None where it is no former name."""
    architecture, tag = split_name(name)
    new = catalog.resolve_alias(name.removeprefix(HUB_OWNER))
    if new is None and tag and (renamed := catalog.resolve_alias(architecture)):
        return f"{split_name(renamed)[0]}.{tag}"
    return new


def is_model(name: str) -> bool:
    """Whether `create_model` knows this name: an architecture, `architecture.tag`, or a former name of one."""
    if _is_today(name):
        return True
    new = _name_of_today(name)
    return new is not None and is_model(new)


def is_model_pretrained(name: str) -> bool:
    """Whether this `architecture.tag` has weights, or any tag of this architecture."""
    if not is_model(name):
        return False
    name = _name_of_today(name) or name
    architecture, tag = split_name(name)
    return any(cfg.has_weights for cfg in _weights_of(architecture) if not tag or cfg.tag == tag)


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
    if architecture in USERS:
        cfgs = user_cfgs(architecture)
        return cfgs[tag] if tag else next(iter(cfgs.values()))
    return catalog.pretrained_cfg(f"{architecture}.{tag}" if tag else architecture)


# --- listing ----------------------------------------------------------------------------------------------------------


def _families_of(architecture: str) -> tuple[str, ...]:
    """The file that builds an architecture, and the family the published packages count it to."""
    if architecture in USERS:
        return (USERS[architecture].__module__.rpartition(".")[2],)
    return MODELS[architecture], catalog.model_facts(architecture).family


def list_families() -> list[str]:
    """Every family, in natural order: opsin's files, the modules of the published package, modules of users."""
    load_entry_points()
    found = {family for name in (*MODELS, *USERS) for family in _families_of(name)}
    return sorted(found, key=natural_key)


list_modules = list_families


def _patterns(filters: Names) -> list[str]:
    found = [filters] if isinstance(filters, str) else list(filters) if isinstance(filters, Iterable) else filters or []
    if not isinstance(found, list) or not all(isinstance(f, str) for f in found):
        raise UnknownArgumentError(f"{filters!r}: give a name or pattern, or a list of them")
    return [f for f in found if f]


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """A pattern without a tag matches whatever the tag."""
    return any(fnmatchcase(name, p) or ("." not in p and fnmatchcase(split_name(name)[0], p)) for p in patterns)


def _check_choice(given: str, known: Iterable[str], *, what: str) -> None:
    known = sorted(known, key=natural_key)
    if not any(fnmatchcase(option, given) for option in known):
        hint = did_you_mean(given, known) or f" There are: {', '.join(known)}."
        raise OpsinError(f"No model has the {what} {given!r}.{hint}")


def _weights_of(architecture: str) -> list[PretrainedCfg]:
    """The records of an architecture: one per tag, default first, or a single one without a tag."""
    if architecture in USERS:
        return list(user_cfgs(architecture).values())
    return catalog.pretrained_cfgs(architecture)


@names_checked
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

    `min_top1`, `license` and `input_size` are facts of weight tags: where tags are listed, those tags that fulfil all
    of them; else the architectures of which one tag does. What nobody measured does not fulfil a condition.
    `None` stands for the default. Raises `OpsinError` for an unknown family or licence, with the nearest right one.
    """
    load_entry_points()
    families = [*_patterns(module), *_patterns(family)]
    for name in families:
        _check_choice(name, list_families(), what="family")
    licenses = _patterns(license)
    for name in licenses:
        _check_choice(
            name, {w.license for a in {**MODELS, **USERS} for w in _weights_of(a) if w.license}, what="license"
        )
    query = Query(
        pretrained=bool(pretrained),
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
    for architecture in {**MODELS, **USERS}:
        if families and not any(_matches(f, families) for f in _families_of(architecture)):
            continue
        if not query.takes_architecture(architecture):
            continue
        weights = [cfg for cfg in _weights_of(architecture) if query.takes_weights(cfg)]
        if name_matches_cfg and all(cfg == PretrainedCfg(architecture=architecture) for cfg in weights):
            continue
        candidates = [cfg.name for cfg in weights] if with_tags else [architecture] if weights else []
        found += [c for c in candidates if (not include or _matches(c, include)) and not _matches(c, leave_out)]
    return sorted(found, key=natural_key)


def list_pretrained(filter: Names = "", exclude_filters: Names = "", **conditions: Any) -> list[str]:
    """Every `architecture.tag` that has weights; takes the conditions of `list_models`."""
    if conditions.setdefault("pretrained", True) is False:
        raise UnknownArgumentError("list_pretrained lists what has weights; for pretrained=False use list_models")
    return list_models(filter, exclude_filters=exclude_filters, **(conditions | {"pretrained": True}))


# --- everything about one model ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """All that is on record about one model; `facts` is None for users' models."""

    name: str  # architecture.tag, or the bare architecture
    architecture: str
    tag: str  # the tag asked for, else the default; empty where there is none
    family: str  # file in opsin.models, or the user's module
    facts: ModelFacts | None
    cfg: PretrainedCfg  # of `tag`
    weights: dict[str, PretrainedCfg]  # every tag of the architecture, the default first
    accuracy: dict[str, tuple[Accuracy, ...]]  # tag -> published accuracies, one per image size
    aliases: dict[str, str]  # former name -> where it leads

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, ready for JSON."""
        return asdict(self)


def model_info(name: str) -> ModelInfo:
    """Facts, weight tags, accuracies and former names of a model. Raises `UnknownModelError`."""
    architecture, tag = resolve_name(name)
    cfg = get_pretrained_cfg(f"{architecture}.{tag}" if tag else architecture)
    user = architecture in USERS
    weights = {record.tag: record for record in _weights_of(architecture)}
    return ModelInfo(
        name=cfg.name,
        architecture=architecture,
        tag=cfg.tag,
        family=_families_of(architecture)[0],
        facts=None if user else catalog.model_facts(architecture),
        cfg=cfg,
        weights=weights,
        accuracy={t: found for t, record in weights.items() if (found := catalog.accuracy(record.name))},
        aliases={} if user else catalog.aliases_of(architecture),
    )
