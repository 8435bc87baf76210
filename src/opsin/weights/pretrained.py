"""Published weights into a model of another size: other channels, other classes, other image size."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from opsin.catalog import PretrainedCfg
from opsin.errors import WeightsError, warn_user
from opsin.models._model import Model
from opsin.weights.adapt import adapt_input_conv
from opsin.weights.load import LoadReport, load_into
from opsin.weights.sources import Source, fetch_state_dict

__all__ = ["load_checkpoint", "load_pretrained"]

Adapt = Callable[[Mapping[str, Tensor], nn.Module], Mapping[str, Tensor]]


def load_pretrained(
    model: nn.Module,
    pretrained: Source = True,
    *,
    record: PretrainedCfg,
    adapt: Adapt | None = None,
    cache_dir: str | Path | None = None,
    in_chans_strategy: str | None = None,
    strict: bool = True,
) -> None:
    """Find, read, adapt and assign weights. `adapt` is the family's hook for older layouts and image sizes.

    The first convolution is adapted to the model's input channels; a classifier for other classes stays fresh, which a
    warning says. Raises WeightsError naming every key that is missing, unexpected (both unless not `strict`) or of
    another shape; and where the record's own weights have other classes than it says.
    """
    state = fetch_state_dict(pretrained, record, cache_dir=cache_dir)
    if adapt:
        state = dict(adapt(state, model))
    wanted = model.state_dict(keep_vars=True)
    strategy = in_chans_strategy or getattr(model, "in_chans_strategy", None)
    _adapt_first_conv(state, wanted, _paths(record.first_conv, model, "first_conv"), strategy)
    fresh = _drop_other_head(state, wanted, _paths(record.classifier, model, "classifier_path"), record, pretrained)
    load_into(model, state, allow_missing=fresh, strict=strict)
    if fresh and isinstance(model, Model):  # classes of others have initialised their head themselves
        model.init_weights(only=fresh)
    if pretrained is True:
        model.published = True  # type: ignore[assignment]


def load_checkpoint(
    model: nn.Module,
    path: str | Path,
    *,
    adapt: Adapt | None = None,
    cache_dir: str | Path | None = None,
    use_ema: bool = True,
    strict: bool = True,
) -> LoadReport:
    """Load a checkpoint of exactly this model; every key must be there (unless not `strict`) and fit.

    `path` is a file, a folder, a hub repository or a URL, as `pretrained` of `create_model` takes them. `use_ema`: of a
    training checkpoint with both, take the averaged weights.
    """
    state = fetch_state_dict(path, PretrainedCfg(), cache_dir=cache_dir, use_ema=use_ema)
    return load_into(model, dict(adapt(state, model)) if adapt else state, strict=strict)


def _paths(named: str | tuple[str, ...] | None, model: nn.Module, attribute: str) -> tuple[str, ...]:
    found: Any = named or getattr(model, attribute, None) or ()
    return (found,) if isinstance(found, str) else tuple(found)


def _adapt_first_conv(
    state: dict[str, Tensor], wanted: Mapping[str, Tensor], paths: tuple[str, ...], strategy: str | None
) -> None:
    for path in paths:
        key = f"{path}.weight"
        if key in state and key in wanted and state[key].shape != wanted[key].shape:
            inputs, had = wanted[key].shape[1], state[key].shape[1]
            if had != inputs and (state[key].ndim == 4 or strategy):  # or a linear layer on flat patches
                positions = had // 3 if strategy in ("space_to_depth", "pixel_unshuffle") else 1
                state[key] = adapt_input_conv(state[key], inputs // positions, strategy=strategy)


def _drop_other_head(
    state: dict[str, Tensor],
    wanted: Mapping[str, Tensor],
    paths: tuple[str, ...],
    record: PretrainedCfg,
    pretrained: Source,
) -> list[str]:
    """Take a classifier of other classes out of `state`; returns the keys that stay at their fresh values."""
    fresh: list[str] = []
    for path in paths:
        owner = f"{path.rpartition('.')[0]}."
        if owner != "." and not any(
            key.startswith(owner) for key in wanted
        ):  # a head of several layers, left out whole
            for key in [key for key in state if key.startswith(owner)]:
                del state[key]
        for key in (f"{path}.weight", f"{path}.bias"):
            if key not in state:
                continue
            if (
                record.label_offset
                and key in wanted
                and state[key].shape[0] == wanted[key].shape[0] + record.label_offset
            ):
                state[key] = state[key][record.label_offset :]
            if key not in wanted:
                del state[key]  # num_classes=0
            elif state[key].shape[0] != wanted[key].shape[0]:
                fresh.append(key)
                had = state.pop(key).shape[0]
        if any(key.startswith(f"{path}.") for key in fresh):
            now = wanted[f"{path}.weight"].shape[0]
            if pretrained is True and now == record.num_classes:
                raise WeightsError(
                    f"the weights have {had} classes at {path!r}, their record says {now}. If the weights are right, "
                    f"pass num_classes={had} to create_model; for a new classifier, any other number"
                )
            warn_user(f"{path!r} is new: the weights have {had} classes, the model has {now}")
    return fresh
