"""Model classes of others, with the services of opsin's own: defaults from a record, weights, features.

A file of user models builds with it what it registers:

    @register_model
    def my_net(pretrained=False, **kwargs):
        return build_model_with_cfg(MyNet, "my_net", pretrained, width=64, **kwargs)
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from opsin.catalog import PretrainedCfg
from opsin.errors import UnknownArgumentError
from opsin.factory import FEATURE_ARGS, Pretrained, check_pretrained
from opsin.models._model import Model
from opsin.models._registry import get_pretrained_cfg, is_model
from opsin.models.features import feature_net

__all__ = ["build_model_with_cfg", "resolve_pretrained_cfg"]

Record = str | Mapping[str, Any] | PretrainedCfg | None


def build_model_with_cfg(
    model_cls: Callable[..., nn.Module],
    variant: str,
    pretrained: Pretrained = False,
    pretrained_cfg: Record = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    model_cfg: Any = None,
    feature_cfg: Mapping[str, Any] | None = None,
    pretrained_strict: bool = True,
    pretrained_filter_fn: Callable[..., Mapping[str, Tensor]] | None = None,
    cache_dir: str | Path | None = None,
    kwargs_filter: Sequence[str] | None = None,
    in_chans_strategy: str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build `model_cls` (any nn.Module class) from keywords, and give it weights.

    Args:
        model_cls: called with `kwargs`, to which the record adds `num_classes` and `in_chans` (and `img_size` where its
            input size is fixed) if they are not named there and the class takes them.
        variant: the name it goes by; `name.tag` picks a registered record.
        pretrained: as in `create_model`.
        pretrained_cfg, pretrained_cfg_overlay: a record, or the tag of one; changes to it.
        model_cfg: passed to the class as `cfg`.
        feature_cfg: how `features_only=True` is answered: `out_indices`, `feature_cls`, `flatten_sequential`,
            `output_fmt`; those given as keywords go before it.
        pretrained_strict: refuse weights with missing or unexpected keys.
        pretrained_filter_fn: `(state_dict, model)`, or just `(state_dict)`, to a state dict in today's layout.
        kwargs_filter: keywords that are taken from `kwargs` and not passed on.
        in_chans_strategy: as in `create_model`.

    Raises:
        UnknownArgumentError, WeightsError: as `create_model`.
    """
    pretrained = check_pretrained(pretrained)
    record = resolve_pretrained_cfg(variant, pretrained_cfg, pretrained_cfg_overlay)
    kwargs = {name: value for name, value in kwargs.items() if name not in (kwargs_filter or ())}
    features_only = bool(kwargs.pop("features_only", False))
    feature_args = dict(feature_cfg or {}) | {name: kwargs.pop(name) for name in FEATURE_ARGS if name in kwargs}
    if not features_only and (odd := [name for name in feature_args if name not in (feature_cfg or {})]):
        raise UnknownArgumentError(f"{odd[0]} goes with features_only=True")
    kwargs = {name: value for name, value in _defaults(record).items() if _takes(model_cls, name)} | kwargs
    model = model_cls(**kwargs) if model_cfg is None else model_cls(cfg=model_cfg, **kwargs)
    if isinstance(model, Model):
        model.architecture = variant.partition(".")[0]
    else:
        model.default_cfg = record.to_dict()  # type: ignore[assignment]
    model.pretrained_cfg = record.to_dict()  # type: ignore[assignment]
    if pretrained is not False:
        from opsin.weights.pretrained import load_pretrained

        how: dict[str, Any] = {"cache_dir": cache_dir, "in_chans_strategy": in_chans_strategy}
        how |= {"adapt": _with_model(pretrained_filter_fn) if pretrained_filter_fn else None}
        load_pretrained(model, pretrained, record=record, strict=pretrained_strict, **how)
    if not features_only:
        return model
    feature_args["flatten"] = feature_args.pop("flatten_sequential", False)
    return feature_net(model, **{name: value for name, value in feature_args.items() if value is not None})


def resolve_pretrained_cfg(
    variant: str, pretrained_cfg: Record = None, pretrained_cfg_overlay: Mapping[str, Any] | None = None
) -> PretrainedCfg:
    """The record of a variant: the one given, that of a tag given, the registered one, or an empty one."""
    if isinstance(pretrained_cfg, PretrainedCfg):
        record = pretrained_cfg
    elif isinstance(pretrained_cfg, Mapping):
        record = PretrainedCfg.from_dict({"architecture": variant} | dict(pretrained_cfg))
    else:
        architecture = variant.partition(".")[0]
        tag = (pretrained_cfg or "").removeprefix(f"{architecture}.")
        name = f"{architecture}.{tag}" if tag else variant
        known = pretrained_cfg or is_model(name)
        record = get_pretrained_cfg(name) if known else PretrainedCfg(architecture=variant)
    return record.overlay(**pretrained_cfg_overlay) if pretrained_cfg_overlay else record


def _defaults(record: PretrainedCfg) -> dict[str, Any]:
    found: dict[str, Any] = {"num_classes": record.num_classes, "in_chans": record.input_size[0]}
    if record.fixed_input_size:
        found["img_size"] = record.input_size[1:]
    return found


def _takes(model_cls: Callable[..., nn.Module], name: str) -> bool:
    """Whether the class has this keyword, or hands all keywords on."""
    if inspect.isclass(model_cls) and issubclass(model_cls, Model):
        return name in model_cls.Config.names()
    parameters = inspect.signature(model_cls).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _with_model(fn: Callable[..., Mapping[str, Tensor]]) -> Callable[..., Mapping[str, Tensor]]:
    """A filter as `(state_dict, model) -> state_dict`, whichever of the two forms it has."""
    try:
        inspect.signature(fn).bind({}, None)
    except TypeError:
        return lambda state_dict, model: fn(state_dict)
    return fn
