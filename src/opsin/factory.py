"""From a name to a model: name -> config -> module -> weights."""

import inspect
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from opsin import catalog
from opsin.catalog import PretrainedCfg
from opsin.errors import UnknownArgumentError, WeightsError, check_known
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._model import Model, deferred_init
from opsin.models._registry import find_family, get_pretrained_cfg, resolve_name, user_entrypoint
from opsin.models.features import feature_net

__all__ = ["build_model", "create_model"]

Pretrained = bool | str | Path | Mapping[str, Tensor]
HUB = ("hf-hub:", "hf_hub:")
FEATURE_ARGS = ("out_indices", "feature_cls", "out_map", "output_fmt", "return_dict", "norm")


def create_model(
    model_name: str,
    pretrained: Pretrained = False,
    pretrained_cfg: str | dict[str, Any] | PretrainedCfg | None = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    checkpoint_path: str | Path | None = None,
    cache_dir: str | Path | None = None,
    *,
    features_only: bool = False,
    in_chans_strategy: str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Create a model by name.

    Args:
        model_name: `resnet34`, `resnet34.a1_in1k` (architecture and weight tag), `hf-hub:org/repo@revision`, or
            `local-dir:folder` for a folder written by `opsin.save` or downloaded from the hub.
        pretrained: True for the published weights of the tag; or where else they are: a file, a folder, `hf-hub:…`,
            `local-dir:…`, a URL, or a state dict. They are adapted to `in_chans`, `num_classes` and image size.
        pretrained_cfg: another tag of the architecture (`a1_in1k` or `resnet34.a1_in1k`), or a whole record in place of
            the catalogued one.
        pretrained_cfg_overlay: changes to that record. A source (`{"file": "weights.safetensors"}`, `hf_hub_id`, `url`)
            goes before those that the record names.
        checkpoint_path: a checkpoint of exactly this model, loaded last, every key accounted for; a file, folder, hub
            repository or URL.
        cache_dir: where downloads are kept; the hub's own cache by default.
        features_only: return feature maps instead of logits. With it go `out_indices` (levels, negatives count from the
            end, or names of any modules), `feature_cls` (list, dict, hook, getter), `out_map`, `output_fmt`.
        in_chans_strategy: how to adapt a first convolution that has no plain rule, see `opsin.weights.adapt`.
        **kwargs: fields of the architecture's config (`num_classes`, `in_chans`, `global_pool`, `drop_rate`,
            `drop_path_rate`, `img_size`, …). `None`, here and above, means the default; an
            unknown name raises with the nearest one.

    Raises:
        UnknownModelError: no such name. UnknownArgumentError: no such argument. WeightsError: weights not to be had.
    """
    pretrained = check_pretrained(pretrained)
    if in_chans_strategy is not None:
        from opsin.weights.adapt import check_strategy

        check_strategy(in_chans_strategy)
    model_name, pretrained_cfg, kwargs = _open_packaged(model_name, pretrained_cfg, cache_dir, kwargs)
    arch, tag = resolve_name(model_name)
    record = _record(arch, tag, pretrained_cfg, pretrained_cfg_overlay)
    if entrypoint := user_entrypoint(arch):
        # the user's function finds its own default record; it is handed one only where one was asked for
        chosen = tag or pretrained_cfg or pretrained_cfg_overlay
        named = {"pretrained_cfg": record if chosen else None, "cache_dir": cache_dir}
        named |= {"in_chans_strategy": in_chans_strategy}
        named |= {"features_only": features_only or None} | kwargs
        model = entrypoint(pretrained=pretrained, **{k: v for k, v in named.items() if v is not None})
        if checkpoint_path:
            from opsin.weights.pretrained import load_checkpoint

            load_checkpoint(model, checkpoint_path, cache_dir=cache_dir)
        return model
    family = find_family(arch)
    own = [*inspect.signature(create_model).parameters][1:-1]
    check_known(kwargs, [*family.variants[arch].names(), *FEATURE_ARGS, *own], owner=arch)
    feature_args = {k: kwargs.pop(k) for k in FEATURE_ARGS if k in kwargs}
    if feature_args and not features_only:
        raise UnknownArgumentError(f"{next(iter(feature_args))} goes with features_only=True")
    model = build_model(
        family.model_of(arch),
        arch,
        _with_record(family.variants[arch], record, kwargs, arch),
        pretrained=pretrained,
        record=record,
        family=family,
        cache_dir=cache_dir,
        checkpoint_path=checkpoint_path,
        in_chans_strategy=in_chans_strategy,
    )
    return _as_features(model, arch, family, feature_args) if features_only else model


def check_pretrained(pretrained: Any) -> Pretrained:
    """`pretrained` as given, None as False; anything that names no weights is refused."""
    if pretrained is None:
        return False
    if not isinstance(pretrained, bool | str | Path | Mapping):
        raise UnknownArgumentError(
            f"pretrained={pretrained!r}: give True or False, a file, a folder, a hub name, a URL or a state dict"
        )
    if pretrained == "":
        raise WeightsError("pretrained='' names no weights; for the current folder give '.'")
    return pretrained


def build_model(
    cls: type[nn.Module],
    arch: str,
    config: ModelConfig,
    *,
    pretrained: Pretrained = False,
    record: PretrainedCfg,
    family: Family | None = None,
    cache_dir: str | Path | None = None,
    checkpoint_path: str | Path | None = None,
    in_chans_strategy: str | None = None,
) -> Any:
    """Build `cls` from its config and give it weights; nothing is initialised that a file will overwrite."""
    # the weights package is imported here: building from random values needs none of it
    if pretrained is not False or checkpoint_path:
        from opsin.weights.pretrained import load_checkpoint, load_pretrained
    from_file = pretrained is not False or bool(checkpoint_path)
    token = deferred_init.set(from_file)
    try:
        model = cls(**{f.name: getattr(config, f.name) for f in fields(config)})
    finally:
        deferred_init.reset(token)
    model.architecture, model.pretrained_cfg = arch, record.to_dict()  # type: ignore[assignment]
    adapt = family.adapt if family else None
    if pretrained is not False:
        how: dict[str, Any] = {"cache_dir": cache_dir, "in_chans_strategy": in_chans_strategy}
        load_pretrained(model, pretrained, record=record, adapt=adapt, **how)
    if checkpoint_path:
        load_checkpoint(model, checkpoint_path, adapt=adapt, cache_dir=cache_dir)
    return model


def _open_packaged(name: str, cfg: Any, cache_dir: Any, kwargs: dict[str, Any]):
    """A hub or folder name becomes the architecture, arguments and record of its `config.json`."""
    if not name.startswith((*HUB, "local-dir:")):
        return name, cfg, kwargs
    from opsin.weights.artefact import read_config

    packaged = read_config(name, cache_dir=cache_dir)
    place = name.partition(":")[2]
    source = {"hf_hub_id": place} if name.startswith(HUB) else {"file": place}
    if isinstance(cfg, dict):
        cfg = PretrainedCfg.from_dict({"architecture": packaged["architecture"]} | cfg)
    if isinstance(cfg, PretrainedCfg):  # it says all but perhaps where the weights are
        cfg = cfg if cfg.has_weights else cfg.overlay(**source)
    else:
        cfg = cfg or PretrainedCfg.from_dict(packaged["pretrained_cfg"]).overlay(**source)
    own = {key: packaged.get(key) for key in ("num_classes", "global_pool")} | (packaged.get("model_args") or {})
    return packaged["architecture"], cfg, own | {k: v for k, v in kwargs.items() if v is not None}


def _record(arch: str, tag: str | None, cfg: Any, overlay: dict[str, Any] | None) -> PretrainedCfg:
    """The weight record: of the tag, of another tag named by `cfg`, or `cfg` itself; then the overlay."""
    if isinstance(cfg, PretrainedCfg):
        record = cfg
    elif isinstance(cfg, dict):
        record = PretrainedCfg.from_dict({"architecture": arch} | cfg)
    else:
        tag = cfg.removeprefix(f"{arch}.") if cfg else tag
        record = get_pretrained_cfg(f"{arch}.{tag}" if tag else arch)
    return record.overlay(**overlay) if overlay else record


def _with_record(config: ModelConfig, record: PretrainedCfg, kwargs: dict[str, Any], arch: str) -> ModelConfig:
    """The variant's config, with the sizes its weight tag was trained at, then the user's own arguments."""
    named: dict[str, Any] = {"num_classes": record.num_classes, "in_chans": record.input_size[0]}
    if record.fixed_input_size and "img_size" in config.names():
        named["img_size"] = record.input_size[1:]
    given = {k: v for k, v in kwargs.items() if v is not None}
    return config.override(arch, **{**named, **given})


def _as_features(model: Model, arch: str, family: Family, args: dict[str, Any]) -> nn.Module:
    levels = catalog.model_facts(arch).out_indices if family.out_indices is None else family.out_indices
    defaults = {"out_indices": levels, "feature_cls": family.feature_cls}
    args = defaults | {k: v for k, v in args.items() if v is not None}
    return feature_net(model, flatten=family.flatten_features, **args)
