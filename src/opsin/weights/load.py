"""Put a state dict into a model: every key accounted for, tensors taken over without a copy."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opsin.errors import WeightsError
from opsin.weights.read import listed

__all__ = ["LoadReport", "load_into"]


@dataclass(frozen=True)
class LoadReport:
    """What a load did, by key."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]  # of the model, not in the file: they keep their values
    unexpected: tuple[str, ...]  # of the file, not in the model: left out
    computed: tuple[str, ...]  # of the file, but buffers that this model computes itself: left out


@torch.no_grad()
def load_into(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    strict: bool = True,
    assign: bool = True,
    allow_missing: Collection[str] = (),
) -> LoadReport:
    """Load `state_dict` into `model`.

    Args:
        strict: refuse missing and unexpected keys. A wrong shape is refused in any case.
        assign: make the given tensors the model's own, without a copy (also where the model was built on the meta
            device); False copies values into the model's tensors. Either way the model keeps its types,
            `requires_grad` and tied parameters. A tensor is copied where its type or device differs.
        allow_missing: keys of the model that may be absent, such as those of a fresh head.

    Raises:
        WeightsError: one message that names every missing, unexpected and wrongly shaped key; or those that hold
            integers in place of fractions.
    """
    wanted = model.state_dict(keep_vars=True)
    computed = {name for name, _ in model.named_buffers(remove_duplicate=False)} - wanted.keys()
    tied = _tied(model)
    filled = {name for group in tied if not state_dict.keys().isdisjoint(group) for name in group}
    absent = wanted.keys() - state_dict.keys() - filled
    missing = [k for k in wanted if k in absent and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state_dict if k not in wanted and k not in computed]
    misshapen = [k for k, v in state_dict.items() if k in wanted and v.shape != wanted[k].shape]
    refused = [k for k in missing if k not in allow_missing]
    integers = [k for k, v in state_dict.items() if k in wanted and _is_float(wanted[k]) and not _is_float(v)]
    if integers:
        raise WeightsError(f"the weights are integers where the model computes with fractions: {listed(integers)}")
    if misshapen or (strict and (refused or unexpected)):
        raise WeightsError(_complaint(model, state_dict, wanted, refused, unexpected, misshapen, strict))
    ready = {k: _as(v, wanted[k]) for k, v in state_dict.items() if k in wanted}
    ready = _one_value_each(ready, tied)
    model.load_state_dict(ready, strict=False, assign=assign)
    for names in tied:
        source = next((name for name in names if name in ready), names[0])
        for name in names:
            _set(model, name, model.get_parameter(source))
    _compute_buffers(model)
    skipped = tuple(k for k in state_dict if k in computed)
    loaded = tuple(k for k in state_dict if k in wanted)
    return LoadReport(loaded, tuple(missing), tuple(unexpected), skipped)


def _compute_buffers(model: nn.Module) -> None:
    """Give buffers that no checkpoint holds their values, after a build on the meta device."""
    device = next((p.device for p in model.parameters() if not p.is_meta), None)
    unset = [m for m in model.modules() if any(buffer.is_meta for buffer in m.buffers(recurse=False))]
    computed = [m for m in unset if m is not model and hasattr(m, "reset_buffers")]
    for module in computed:
        module.reset_buffers()  # type: ignore[operator]
    for module in computed:  # only now: one module may hold another
        module.to(device)


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _as(value: Tensor, like: Tensor) -> Tensor:
    """The value in the model's type, and on its device when that is a real one."""
    return value.to(dtype=like.dtype, device=value.device if like.is_meta else like.device)


def _tied(model: nn.Module) -> list[list[str]]:
    """Groups of names under which the model holds one and the same parameter."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _one_value_each(ready: dict[str, Tensor], tied: list[list[str]]) -> dict[str, Tensor]:
    """Leave one value per tied parameter; a file whose values differ was made by a model that did not tie them."""
    for group in tied:
        first, *others = [name for name in group if name in ready] or group
        for other in others:
            if other in ready and not torch.equal(ready.pop(other), ready[first]):
                raise WeightsError(f"the model shares one tensor as {first} and {other}, but the file's two differ")
    return ready


def _set(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, parameter)


def _complaint(
    model: nn.Module,
    given: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    misshapen: list[str],
    strict: bool,
) -> str:
    lines = [f"the weights do not fit {type(model).__name__}:"]
    if missing and strict:
        lines.append(f"{len(missing)} missing: " + ", ".join(f"{k} {_shape(wanted[k])}" for k in missing))
    if unexpected and strict:
        lines.append(f"{len(unexpected)} unexpected: " + ", ".join(f"{k} {_shape(given[k])}" for k in unexpected))
    if misshapen:
        pairs = (f"{k}: file {_shape(given[k])}, model {_shape(wanted[k])}" for k in misshapen)
        lines.append(f"{len(misshapen)} of another shape: " + "; ".join(pairs))
    return "\n  ".join(lines) + _prefix_hint(missing, unexpected)


def _prefix_hint(missing: list[str], unexpected: list[str]) -> str:
    """Say so when the two sides differ just by a leading name."""
    for ours, theirs, text in ((missing, unexpected, "file's"), (unexpected, missing, "model's")):
        prefix = f"{theirs[0].split('.')[0]}." if theirs else ""
        if ours and prefix and sum(prefix + key in theirs for key in ours) > len(ours) // 2:
            return f"\n  The {text} keys begin with {prefix!r}; otherwise they agree."
    return ""


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
