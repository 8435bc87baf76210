"""Optimizers by name."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

import torch
from torch import nn

from opsin.bounds import check_arguments
from opsin.errors import OpsinError, check_choice, check_known
from opsin.optim._table import OPTIMIZERS, PAPERS
from opsin.optim.groups import param_groups

__all__ = ["OptimizerInfo", "create_optimizer", "list_optimizers", "optimizer_info"]

LOOKAHEAD = "lookahead_"
AHEAD = {"k": 6, "alpha": 0.5}
FUSED_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class OptimizerInfo:
    """What is known about an optimizer.

    Attributes:
        name: as `create_optimizer` takes it.
        description: one line.
        paper: address.
        defaults: each argument that it takes, with its value if not given; `lr` has none.
        memory: size of its state as a multiple of the size of the parameters, with these defaults.
        second_order: whether it needs gradients from `loss.backward(create_graph=True)`.
    """

    name: str
    description: str
    paper: str
    defaults: dict[str, Any]
    memory: float
    second_order: bool


def create_optimizer(
    model_or_params: nn.Module | Iterable[Any],
    opt: str = "adamw",
    *,
    lr: float,
    weight_decay: float = 0.0,
    layer_decay: float | None = None,
    momentum: float | None = None,
    betas: tuple[float, ...] | None = None,
    eps: float | None = None,
    **options: Any,
) -> torch.optim.Optimizer:
    """An optimizer by name.

    Fused kernels are used where torch has them for the parameters, which is the fastest way on every device.

    Args:
        model_or_params: a model, grouped by `param_groups`; or parameters or groups as torch's optimizers take them.
        opt: one of `list_optimizers`; `lookahead_` before a name adds Lookahead.
        lr: full learning rate of every group; a group's `lr_scale` is for the scheduler to multiply by.
        weight_decay: of the groups that do not say otherwise.
        layer_decay: see `param_groups`.
        momentum, betas, eps: None for the optimizer's own.
        options: other arguments of the optimizer, see `optimizer_info`; `k` and `alpha` of Lookahead as `lookahead_k`
            and `lookahead_alpha`.

    Raises:
        UnknownArgumentError: no such optimizer, or one that does not take an argument.
        OpsinError: `layer_decay` without a model, or see `param_groups`.
    """
    name = opt.removeprefix(LOOKAHEAD)
    check_choice(opt, _names(opt), what="optimizer")
    given = {"momentum": momentum, "betas": betas, "eps": eps}
    options |= {key: value for key, value in given.items() if value is not None}
    ahead = {}
    if name != opt:
        ahead = {key: options.pop(f"{LOOKAHEAD}{key}") for key in AHEAD if f"{LOOKAHEAD}{key}" in options}
    check_known(options, _defaults(name), owner=f"the optimizer {name}")
    check_arguments(_class(name), options, owner=f"the optimizer {name}")
    groups = _groups(model_or_params, weight_decay, layer_decay)
    make = _class(name)
    arguments = {"lr": lr, "weight_decay": weight_decay, **_kernels(make, groups, options)}
    try:
        optimizer = make(groups, **arguments | OPTIMIZERS[name].options | options)
    except (TypeError, ValueError, ArithmeticError) as error:
        said = ", ".join(f"{key}={value!r}" for key, value in (arguments | options).items() if key != "fused")
        raise OpsinError(f"the optimizer {name} cannot be made with {said}: {error}") from error
    if name == opt:
        return optimizer
    from opsin.optim.lookahead import Lookahead

    return Lookahead(optimizer, **AHEAD | ahead)


def list_optimizers(filter: str = "", *, exclude_filters: str | Iterable[str] = ()) -> list[str]:
    """All names in order, those that match a pattern (`*adam*`), without those that match one of `exclude_filters`."""
    excluded = [exclude_filters] if isinstance(exclude_filters, str) else list(exclude_filters)
    return [
        name
        for name in sorted(OPTIMIZERS)
        if (not filter or fnmatchcase(name, filter)) and not any(fnmatchcase(name, pattern) for pattern in excluded)
    ]


def optimizer_info(name: str) -> OptimizerInfo:
    """What is known about an optimizer.

    Raises:
        UnknownArgumentError: there is none of this name; the message has the nearest.
    """
    base = name.removeprefix(LOOKAHEAD)
    check_choice(name, _names(name), what="optimizer")
    row, defaults = OPTIMIZERS[base], _defaults(base)
    second = getattr(_class(base), "is_second_order", False)
    if name == base:
        return OptimizerInfo(name, row.description, PAPERS[row.home], defaults, row.memory, second)
    ahead = {f"{LOOKAHEAD}{key}": value for key, value in AHEAD.items()}
    return OptimizerInfo(name, f"Lookahead on {base}", PAPERS["Lookahead"], defaults | ahead, row.memory + 1, second)


def _names(like: str) -> list[str]:
    """All names, with Lookahead before them where `like` has it."""
    return [f"{LOOKAHEAD if like.startswith(LOOKAHEAD) else ''}{name}" for name in OPTIMIZERS]


def _class(name: str) -> Any:
    module, _, attribute = OPTIMIZERS[name].home.partition(":")
    return getattr(import_module(module), attribute)


def _defaults(name: str) -> dict[str, Any]:
    parameters = list(inspect.signature(_class(name)).parameters.values())[1:]
    values = {p.name: None if p.name == "lr" else p.default for p in parameters}
    return values | {"weight_decay": 0.0} | OPTIMIZERS[name].options


def _groups(model_or_params: nn.Module | Iterable[Any], weight_decay: float, layer_decay: float | None) -> list[Any]:
    if isinstance(model_or_params, nn.Module):
        return param_groups(model_or_params, weight_decay=weight_decay, layer_decay=layer_decay)
    if layer_decay is not None:
        raise OpsinError("layer_decay needs the model itself instead of parameters, or groups made by param_groups")
    return list(model_or_params)


def _kernels(make: Any, groups: list[Any], options: dict[str, Any]) -> dict[str, bool]:
    """`fused=True` where torch has it for all parameters and nothing else is asked for (see `sgd.py` on dampening)."""
    if "fused" not in inspect.signature(make).parameters:
        return {}
    if options.keys() & {"foreach", "fused", "differentiable", "dampening"}:
        return {}
    held = [p for g in groups for p in (g["params"] if isinstance(g, dict) else [g])]
    tensors = [p[1] if isinstance(p, tuple) else p for p in held]
    fits = all(p.is_floating_point() and p.device.type in FUSED_DEVICES for p in tensors)
    return {"fused": True} if fits else {}
