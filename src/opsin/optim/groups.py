"""Parameters in groups: which are decayed, and how fast each layer learns."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import nn

from opsin.errors import OpsinError, did_you_mean
from opsin.models._manipulate import group_parameters

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["describe_groups", "param_groups"]


def param_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    layer_decay: float | None = None,
    no_weight_decay: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """The parameters of a model in groups for an optimizer.

    No weight decay for parameters of one dimension or none (biases, norms, scales) and for those that
    `model.no_weight_decay()` or `no_weight_decay` name, by full name or pattern (`pos_embed.*`). Frozen parameters are
    in their groups too: they have no gradient, so they stay as they are until somebody sets them free.

    Args:
        model: any module; one wrapped by torch.compile or for several devices is unwrapped.
        weight_decay: of the groups that have it.
        layer_decay: factor of the learning rate from each layer to the one before it; the last layer group, with the
            head, has 1. Each group's factor is its `lr_scale`, which the scheduler multiplies its rate by. Layers are
            those of the model's `group_matcher`.
        no_weight_decay: names or patterns of parameters beside the model's own.

    Returns:
        Groups with `name`, `params`, `weight_decay`, and with `layer_decay` `lr_scale`; none is empty.

    Raises:
        OpsinError: `no_weight_decay` names nothing, or the model has no layers to decay by.
    """
    model = _unwrapped(model)
    parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point() or p.is_complex()}
    for pattern in no_weight_decay:
        if not any(fnmatchcase(name, pattern) for name in parameters):
            raise OpsinError(f"no_weight_decay: no parameter {pattern!r}.{did_you_mean(pattern, parameters)}")
    spared = _spared(parameters, [*_own_exceptions(model), *no_weight_decay])
    layers = {0: list(parameters)} if layer_decay is None else _layers(model, parameters)
    groups = []
    for number, names in layers.items():
        prefix = "" if layer_decay is None else f"layer_{number:02}."
        scale = {} if layer_decay is None else {"lr_scale": layer_decay ** (max(layers) - number)}
        decayed = [parameters[n] for n in names if parameters[n].ndim > 1 and n not in spared]
        others = [parameters[n] for n in names if parameters[n].ndim <= 1 or n in spared]
        groups += [
            {"name": f"{prefix}decay", "params": decayed, "weight_decay": weight_decay, **scale},
            {"name": f"{prefix}no_decay", "params": others, "weight_decay": 0.0, **scale},
        ]
    return [group for group in groups if group["params"]]


def describe_groups(groups: Iterable[dict[str, Any]]) -> "Table":
    """A table of groups, those of `param_groups` or of an optimizer, to print with rich."""
    from rich.table import Table

    table = Table()
    table.add_column("group")
    for title in ("tensors", "parameters", "trained", "weight decay", "learning rate x"):
        table.add_column(title, justify="right")
    for i, group in enumerate(groups):
        params = list(group["params"])
        trained = sum(p.numel() for p in params if p.requires_grad)
        sizes = f"{len(params):,}", f"{sum(p.numel() for p in params):,}", f"{trained:,}"
        rates = f"{group.get('weight_decay', 0.0):g}", f"{group.get('lr_scale', 1.0):.4g}"
        table.add_row(group.get("name", f"group {i}"), *sizes, *rates)
    return table


def _unwrapped(model: Any) -> Any:
    model = getattr(model, "_orig_mod", model)  # torch.compile
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return _unwrapped(model.module)
    return model


def _own_exceptions(model: Any) -> list[str]:
    found = getattr(model, "no_weight_decay", None)
    return [] if found is None else list(found())


def _spared(names: Iterable[str], patterns: Sequence[str]) -> set[str]:
    return {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}


def _layers(model: Any, parameters: Iterable[str]) -> dict[int, list[str]]:
    if not hasattr(model, "group_matcher"):
        raise OpsinError(f"layer_decay needs layers: {type(model).__name__} has no group_matcher()")
    found = group_parameters(model, model.group_matcher(coarse=False))
    kept = set(parameters)
    return {number: [name for name in names if name in kept] for number, names in found.items()}
