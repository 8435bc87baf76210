"""Calls whose signature in timm differs from opsin's; each hands over to the one that does the work."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

import opsin
from opsin import catalog
from opsin.catalog import PretrainedCfg
from opsin.errors import OpsinError, UnknownModelError
from opsin.foreign import build_model_with_cfg, resolve_pretrained_cfg
from opsin.layers import conv, create_act
from opsin.models._chain import normalize_indices
from opsin.models._registry import DefaultCfg, get_pretrained_cfg, is_model, split_name, tags_of
from opsin.weights import adapt
from opsin.weights import pretrained as weights
from opsin.weights.read import read_state_dict

__all__ = ["build_model_with_cfg", "create_model", "load_checkpoint", "load_pretrained", "resolve_pretrained_cfg"]

# --- creating --------------------------------------------------------------------------------------------------------


def create_model(
    model_name: str,
    pretrained: Any = False,
    pretrained_cfg: Any = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    checkpoint_path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    scriptable: bool | None = None,
    exportable: bool | None = None,
    no_jit: bool | None = None,
    **kwargs: Any,
) -> nn.Module:
    """`opsin.create_model`. The three switches choose in timm between ways to compute the same; opsin has one way, fit
    for export and compilation, so they change nothing. A model of transformers' spelling (`timm/name`) is taken too.

    Unknown names and arguments raise as in opsin, and as RuntimeError and TypeError, as in timm.
    """
    try:
        return opsin.create_model(
            model_name,
            pretrained,
            pretrained_cfg,
            pretrained_cfg_overlay,
            checkpoint_path or None,
            cache_dir,
            **{name: value for name, value in kwargs.items() if value is not None},
        )
    except UnknownModelError as error:
        # transformers and others look for these two words
        raise UnknownModelError(f"Unknown model ({model_name}). {error}") from error


def safe_model_name(model_name: str, remove_source: bool = True) -> str:
    """The name as a file name: what is not a letter or digit becomes an underscore."""
    name = model_name.split(":")[-1] if remove_source else model_name
    return "".join(c if c.isalnum() else "_" for c in name).rstrip("_")


# --- the registry ----------------------------------------------------------------------------------------------------


def split_model_name_tag(model_name: str, no_tag: str = "") -> tuple[str, str]:
    architecture, tag = split_name(model_name)
    return architecture, tag or no_tag


def get_arch_name(model_name: str) -> str:
    """The architecture of `architecture.tag`."""
    return split_name(model_name)[0]


def get_pretrained_cfg_value(model_name: str, cfg_key: str) -> Any:
    """One field of a model's record; None where it has no such field."""
    return getattr(get_pretrained_cfg(model_name), cfg_key, None)


def get_arch_pretrained_cfgs(model_name: str) -> dict[str, PretrainedCfg]:
    """`architecture.tag` -> record, for every tag of the architecture."""
    architecture = get_arch_name(model_name)
    names = [f"{architecture}.{tag}" for tag in tags_of(architecture)] or [architecture]
    return {name: get_pretrained_cfg(name) for name in names}


def is_model_in_modules(model_name: str, module_names: Sequence[str]) -> bool:
    """Whether the model belongs to one of these family files."""
    architecture = get_arch_name(model_name)
    return is_model(architecture) and catalog.model_facts(architecture).family in module_names


class Mismatch(NamedTuple):
    """As `nn.Module.load_state_dict` returns it."""

    missing_keys: list[str]
    unexpected_keys: list[str]


# --- weights ---------------------------------------------------------------------------------------------------------


def load_pretrained(
    model: nn.Module,
    pretrained_cfg: PretrainedCfg | DefaultCfg | Mapping[str, Any] | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    filter_fn: Callable[..., Mapping[str, Tensor]] | None = None,
    strict: bool = True,
    cache_dir: str | Path | None = None,
    *,
    default_cfg: Any = None,
) -> None:
    """Find, read, adapt and load the weights that a record names (by default the model's own record).

    The head and the first convolution follow from the model itself; `num_classes` and `in_chans` are checked against
    it. `default_cfg` is the older name of `pretrained_cfg`.
    """
    cfg: Any = (
        pretrained_cfg or default_cfg or getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    )
    if not cfg:
        raise OpsinError("load_pretrained needs a record of where the weights are: pass pretrained_cfg=…")
    if isinstance(cfg, DefaultCfg):
        cfg = cfg.default
    record = cfg if isinstance(cfg, PretrainedCfg) else _record(cfg)
    for name, given in (("num_classes", num_classes), ("in_chans", in_chans)):
        has = getattr(model, name, given)
        if given is not None and given != has:
            raise OpsinError(f"load_pretrained({name}={given}): the model has {name}={has}")
    weights.load_pretrained(model, True, record=record, adapt=filter_fn, cache_dir=cache_dir, strict=strict)


def _record(cfg: Mapping[str, Any]) -> PretrainedCfg:
    return PretrainedCfg.from_dict({name: value for name, value in cfg.items() if value is not None})


def load_state_dict(
    checkpoint_path: str | Path, use_ema: bool = True, device: Any = "cpu", weights_only: bool = True
) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by name, without the wrapping that training scripts put around them."""
    _only_weights(weights_only)
    return read_state_dict(checkpoint_path, use_ema=use_ema, device=device)


def load_checkpoint(
    model: nn.Module,
    checkpoint_path: str | Path,
    use_ema: bool = True,
    device: Any = "cpu",
    strict: bool = True,
    remap: bool = False,
    filter_fn: Callable[..., Mapping[str, Tensor]] | None = None,
    weights_only: bool = True,
) -> Any:
    """Load a checkpoint of exactly this model. Returns what did not match: `missing_keys` and `unexpected_keys`.

    Values go to the model's own device, whatever `device` they are read to.
    """
    _only_weights(weights_only)
    if remap:
        raise OpsinError("load_checkpoint(remap=True) would match keys by their order; rename them with filter_fn")
    report = weights.load_checkpoint(model, checkpoint_path, adapt=filter_fn, use_ema=use_ema, strict=strict)
    return Mismatch(list(report.missing), list(report.unexpected))


def _only_weights(weights_only: bool) -> None:
    if not weights_only:
        raise OpsinError("opsin reads checkpoints with weights_only=True and never runs code they hold")


def clean_state_dict(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys without the prefixes that wrappers of a model put before them."""
    return {key.removeprefix("module.").removeprefix("_orig_mod."): value for key, value in state_dict.items()}


def adapt_input_conv(in_chans: int, conv_weight: Tensor) -> Tensor:
    return adapt.adapt_input_conv(conv_weight, in_chans)


# --- features, layers ------------------------------------------------------------------------------------------------


def feature_take_indices(
    num_features: int, indices: int | Sequence[int] | None = None, as_set: bool = False
) -> tuple[Any, int]:
    """Feature levels as non-negative indices, and the highest of them."""
    taken = normalize_indices(indices, num_features)
    return (set(taken) if as_set else taken), max(taken)


def create_act_layer(name: Any, inplace: bool | None = None, **kwargs: Any) -> nn.Module | None:
    """An activation by name; None for none. Arguments beside `inplace` go to its class."""
    if not name:
        return None
    if kwargs:
        return opsin.layers.get_act_layer(name)(**kwargs | ({} if inplace is None else {"inplace": inplace}))
    return create_act(name, inplace=bool(inplace))


def create_conv2d(
    in_channels: int, out_channels: int, kernel_size: Any, *, padding: str = "", depthwise: bool = False, **kwargs: Any
) -> nn.Module:
    """A convolution without bias that keeps the size (divided by `stride`); `padding` is "" or "same"."""
    if depthwise:
        kwargs["groups"] = in_channels
    return conv.create_conv2d(in_channels, out_channels, kernel_size, pad_type=padding, **kwargs)


def unchanged(thing: Any) -> Any:
    """What timm registers as a leaf for symbolic tracing; opsin does not trace, so there is nothing to note down."""
    return thing


def is_scriptable() -> bool:
    """Whether layers are chosen for torch.jit.script: never, opsin has one set."""
    return False


def is_exportable() -> bool:
    """Whether layers are chosen for export: never, opsin has one set, which exports."""
    return False


def is_no_jit() -> bool:
    """Whether scripted layers are avoided: always, there are none."""
    return True


def use_fused_attn(experimental: bool = False) -> bool:
    """Whether attention goes through torch's fused kernel: always."""
    return True
