"""`timm.optim.create_optimizer_v2` and what belongs to it: parameters in groups, optimizers by name."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import nn

from opsin.errors import OpsinError, did_you_mean
from opsin.integrations.timm_alias._optim import CLASSES, Lookahead
from opsin.models._manipulate import group_parameters
from opsin.optim import registry
from opsin.optim._table import OPTIMIZERS

__all__ = [
    "OptimInfo",
    "create_optimizer",
    "create_optimizer_v2",
    "get_optimizer_class",
    "get_optimizer_info",
    "list_optimizers",
    "optimizer_kwargs",
    "param_groups_layer_decay",
    "param_groups_weight_decay",
]

Groups = list[dict[str, Any]]

# --- parameters in groups --------------------------------------------------------------------------------------------


def param_groups_weight_decay(
    model: nn.Module,
    weight_decay: float | None = 1e-5,
    weight_decay_exclude_1d: bool = True,
    no_weight_decay_list: Collection[str] = (),
    fallback_list: Collection[str] = (),
    fallback_no_weight_decay: bool = False,
) -> Groups:
    """Trainable parameters: first those without weight decay, which are named or, with `weight_decay_exclude_1d`, of
    one dimension; then the others.

    Names may be patterns. Those of `fallback_list`, and with `fallback_no_weight_decay` those of the other list, have
    groups of their own with `use_fallback`, for optimizers of matrices.
    """
    sort = _sorter(weight_decay_exclude_1d, no_weight_decay_list, fallback_list, fallback_no_weight_decay)
    groups: dict[Any, dict[str, Any]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            decays, fallback = sort(name, p)
            group: dict[str, Any] = {"params": [], "weight_decay": weight_decay if decays else 0.0}
            key = fallback, group["weight_decay"] != 0
            groups.setdefault(key, group | ({"use_fallback": True} if fallback else {}))["params"].append(p)
    return [groups[key] for key in sorted(groups)]


def param_groups_layer_decay(
    model: nn.Module,
    weight_decay: float = 0.05,
    no_weight_decay_list: Collection[str] = (),
    fallback_list: Collection[str] = (),
    fallback_no_weight_decay: bool = False,
    weight_decay_exclude_1d: bool = True,
    layer_decay: float = 0.75,
    min_scale: float = 0.0,
    no_opt_scale: float | None = None,
    verbose: bool = False,
) -> Groups:
    """As `param_groups_weight_decay`, for each layer: `lr_scale` is `layer_decay` to the number of layers above it, at
    least `min_scale`. Layers below `no_opt_scale` are frozen. `verbose` prints the groups.

    Raises OpsinError for a model without `group_matcher`.
    """
    matcher: Any = getattr(model, "group_matcher", None)
    if matcher is None:
        raise OpsinError(f"layer_decay needs layers: {type(model).__name__} has no group_matcher()")
    layers = group_parameters(model, matcher(coarse=False))
    layer_of = {name: number for number, names in layers.items() for name in names}
    sort = _sorter(weight_decay_exclude_1d, no_weight_decay_list, fallback_list, fallback_no_weight_decay)
    groups: dict[Any, dict[str, Any]] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        scale = max(min_scale, layer_decay ** (max(layers) - layer_of[name]))
        if no_opt_scale is not None and scale < no_opt_scale:
            p.requires_grad_(False)
            continue
        decays, fallback = sort(name, p)
        group = {"lr_scale": scale, "weight_decay": weight_decay if decays else 0.0, "params": []}
        key = layer_of[name], decays, fallback
        groups.setdefault(key, group | ({"use_fallback": True} if fallback else {}))["params"].append(p)
    if verbose:
        for (layer, _, _), group in groups.items():
            print(layer, {key: len(value) if key == "params" else value for key, value in group.items()})
    return list(groups.values())


def _sorter(
    exclude_1d: bool, no_decay: Collection[str], fallback: Collection[str], both: bool
) -> Callable[[str, nn.Parameter], tuple[bool, bool]]:
    def sort(name: str, p: nn.Parameter) -> tuple[bool, bool]:
        spared = any(fnmatchcase(name, pattern) for pattern in no_decay)
        falls = any(fnmatchcase(name, pattern) for pattern in fallback) or (both and spared)
        return not (spared or (exclude_1d and p.ndim <= 1)), falls

    return sort


# --- by name ---------------------------------------------------------------------------------------------------------

# of rows in opsin's table -> the class that timm has there; others are called the same
_RENAMED = {"NovoGrad": "NvNovoGrad"}
_LEGACY = {"adamwlegacy": "AdamWLegacy", "nadamlegacy": "NAdamLegacy", "radamlegacy": "RAdamLegacy"}
_ELSEWHERE = {"fused": "apex", "bnb": "bitsandbytes"}


@dataclass(frozen=True)
class OptimInfo:
    """What is known about an optimizer: which of the arguments that every script passes it takes, and what its name
    stands for."""

    name: str
    opt_class: Any
    description: str = ""
    has_eps: bool = True
    has_momentum: bool = False
    has_betas: bool = False
    num_betas: int = 2
    second_order: bool = False
    defaults: dict[str, Any] | None = None


def _names() -> list[str]:
    return sorted({*OPTIMIZERS, *_LEGACY})


def list_optimizers(
    filter: str | list[str] = "", exclude_filters: list[str] | None = None, with_description: bool = False
) -> list[Any]:
    """Names in order, those that match a pattern; with `with_description` pairs with one line about each."""
    wanted = [filter] if isinstance(filter, str) else filter
    names = [name for name in _names() if not filter or any(fnmatchcase(name, pattern) for pattern in wanted)]
    names = [name for name in names if not any(fnmatchcase(name, pattern) for pattern in exclude_filters or ())]
    return [(name, get_optimizer_info(name).description) for name in names] if with_description else names


def get_optimizer_info(name: str) -> OptimInfo:
    """What is known about an optimizer. Raises ValueError for a name that is none."""
    name = name.lower()
    if name not in _names():
        package = next((package for prefix, package in _ELSEWHERE.items() if name.startswith(prefix)), None)
        hint = f" Make it with {package} itself." if package else did_you_mean(name, _names())
        raise UnknownOptimizerError(f"opsin, which stands in for timm here, has no optimizer {name!r}.{hint}")
    row = OPTIMIZERS.get(name)
    options = {key: value for key, value in (row.options if row else {}).items() if key != "momentum"}
    made = _class(name)
    if made is CLASSES["NAdamW"]:
        del options["nesterov"]  # that is what the class is for
    takes = signature(made).parameters
    betas = takes["betas"].default if "betas" in takes else None
    return OptimInfo(
        name,
        made,
        row.description if row else f"{_LEGACY[name].removesuffix('Legacy')}, as older code calls it",
        has_eps="eps" in takes,
        has_momentum="momentum" in takes,
        has_betas=betas is not None or made is CLASSES["Adafactor"],
        num_betas=len(betas) if betas else 2,
        second_order=getattr(made, "is_second_order", False),
        defaults=options or None,
    )


class UnknownOptimizerError(OpsinError, ValueError):
    """No optimizer has this name."""


def _class(name: str) -> Any:
    if name in _LEGACY:
        return CLASSES[_LEGACY[name]]
    module, _, attribute = OPTIMIZERS[name].home.partition(":")
    if module == "opsin.optim.adamw":
        return CLASSES["NAdamW" if OPTIMIZERS[name].options.get("nesterov") else "AdamWLegacy"]
    return CLASSES[_RENAMED.get(attribute, attribute)]


def get_optimizer_class(name: str, bind_defaults: bool = True) -> Any:
    """The class; with `bind_defaults` a call of it with what the name stands for, if that is anything."""
    info = get_optimizer_info(name)
    return partial(info.opt_class, **info.defaults) if bind_defaults and info.defaults else info.opt_class


# --- making ----------------------------------------------------------------------------------------------------------


def create_optimizer_v2(
    model_or_params: nn.Module | Iterable[Any],
    opt: str = "sgd",
    lr: float | None = None,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    foreach: bool | None = None,
    filter_bias_and_bn: bool = True,
    fallback_list: Collection[str] = (),
    fallback_no_weight_decay: bool = False,
    layer_decay: float | None = None,
    layer_decay_min_scale: float = 0.0,
    layer_decay_no_opt_scale: float | None = None,
    param_group_fn: Callable[[nn.Module], Iterable[Any]] | None = None,
    **kwargs: Any,
) -> torch.optim.Optimizer:
    """An optimizer by name, for a model, whose parameters are grouped as the functions above say and as its own
    `no_weight_decay` and the lists do, or for parameters or groups. Fused kernels are used where torch has them.

    Of the arguments that scripts pass to every optimizer, `momentum`, `eps` and `betas`, one that this optimizer does
    not have is left out.
    """
    params: Any = model_or_params
    if isinstance(model_or_params, nn.Module):
        how: dict[str, Any] = {"fallback_list": fallback_list, "fallback_no_weight_decay": fallback_no_weight_decay}
        how |= {"weight_decay_exclude_1d": filter_bias_and_bn, "weight_decay": weight_decay}
        own: Any = getattr(model_or_params, "no_weight_decay", tuple)
        how["no_weight_decay_list"] = own()
        if param_group_fn is not None:
            params = param_group_fn(model_or_params)
        elif layer_decay is not None:
            scales: dict[str, Any] = {"min_scale": layer_decay_min_scale, "no_opt_scale": layer_decay_no_opt_scale}
            params = param_groups_layer_decay(model_or_params, layer_decay=layer_decay, **scales, **how)
            weight_decay = 0.0
        elif weight_decay or fallback_list or fallback_no_weight_decay:
            params = param_groups_weight_decay(model_or_params, **how)
            weight_decay = 0.0
        else:
            params = [p for p in model_or_params.parameters() if p.requires_grad]
    given = kwargs | {"weight_decay": weight_decay} | ({} if lr is None else {"lr": lr})
    given |= {} if foreach is None else {"foreach": foreach}
    return _make(opt.lower(), params, momentum, given)


def _make(opt: str, params: Any, momentum: float, given: dict[str, Any]) -> torch.optim.Optimizer:
    name = opt.removeprefix(registry.LOOKAHEAD)
    info = get_optimizer_info(name)
    if info.has_momentum:
        given.setdefault("momentum", momentum)
    if not info.has_eps:
        given.pop("eps", None)
    betas = given.pop("betas", None)
    if betas is not None and info.has_betas:
        if len(betas) < info.num_betas:
            raise OpsinError(f"the optimizer {name} takes {info.num_betas} betas, not {tuple(betas)}")
        given["betas"] = tuple(betas[: info.num_betas])
    groups = list(params)
    kernels = registry._kernels(info.opt_class, groups, given)
    made = info.opt_class(groups, **kernels | (info.defaults or {}) | given)
    return made if name == opt else Lookahead(made)


def create_optimizer(args: Any, model: Any, filter_bias_and_bn: bool = True) -> torch.optim.Optimizer:
    """`create_optimizer_v2` with the options of a training script."""
    return create_optimizer_v2(model, **optimizer_kwargs(args), filter_bias_and_bn=filter_bias_and_bn)


def optimizer_kwargs(cfg: Any) -> dict[str, Any]:
    """Arguments of `create_optimizer_v2` from the options of a training script."""
    found = {name: getattr(cfg, name) for name in ("opt", "lr", "weight_decay", "momentum")}
    options: Mapping[str, str] = {
        "eps": "opt_eps", "betas": "opt_betas", "layer_decay": "layer_decay",
        "layer_decay_min_scale": "layer_decay_min_scale", "layer_decay_no_opt_scale": "layer_decay_no_opt_scale",
        "foreach": "opt_foreach",
    }  # fmt: skip
    found |= {name: getattr(cfg, option) for name, option in options.items() if getattr(cfg, option, None) is not None}
    return found | dict(getattr(cfg, "opt_args", None) or {})
