"""Where opsin keeps what timm's modules show. Nothing is copied: a name leads to a place in opsin, looked up on demand.

A module's view has `homes`, opsin modules whose public names stand there under the same name, and `names`, for what is
called or placed differently here. Modules of model families come from the index: their classes, their architectures,
and the few conventions that all of timm's family files share (`default_cfgs`, `_cfg`, `checkpoint_filter_fn`).
"""

import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from opsin import catalog
from opsin.integrations.timm_alias._data_names import DATA, DATA_MODULES
from opsin.integrations.timm_alias._training_names import TRAINING
from opsin.models._index import MODELS

__all__ = ["Absent", "child_names", "is_known", "is_unbuilt", "lookup", "public_names"]

HERE = "opsin.integrations.timm_alias"
TIMM_VERSION = "1.0.31"  # the release whose names, signatures and checkpoints opsin follows
REGISTRY, FEATURES, MANIPULATE = "opsin.models._registry", "opsin.models.features", "opsin.models._manipulate"


class Absent(Exception):
    """Opsin has nothing under this name."""


@dataclass(frozen=True)
class View:
    """What one timm module shows."""

    homes: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)  # name in timm -> "module:attribute", or a bare module

    def find(self, name: str) -> Any:
        if name in self.names:
            module, _, attribute = self.names[name].partition(":")
            return getattr(import_module(module), attribute) if attribute else import_module(module)
        for home in self.homes:
            module_ = import_module(home)
            if name in module_.__all__:
                return getattr(module_, name)
        raise Absent(name)

    def public(self) -> list[str]:
        return sorted({*self.names, *(name for home in self.homes for name in import_module(home).__all__)})


def _at(module: str, *names: str, **renamed: str) -> dict[str, str]:
    """Names that `module` has, as they are or renamed."""
    return {name: f"{module}:{name}" for name in names} | {new: f"{module}:{old}" for new, old in renamed.items()}


# --- creating, listing, building -------------------------------------------------------------------------------------

_VERSION = {"__version__": f"{HERE}._names:TIMM_VERSION"}
_CREATE = _at(f"{HERE}._calls", "create_model", "safe_model_name")
_REGISTRY = (
    _at(REGISTRY, "DefaultCfg", "generate_default_cfgs", "get_pretrained_cfg", "is_model", "is_model_pretrained")
    | _at(REGISTRY, "list_models", "list_modules", "list_pretrained", "model_entrypoint", "register_model")
    | _at(f"{HERE}._calls", "get_arch_name", "get_arch_pretrained_cfgs", "get_pretrained_cfg_value")
    | _at(f"{HERE}._calls", "is_model_in_modules", "split_model_name_tag")
    | {"PretrainedCfg": "opsin.catalog:PretrainedCfg"}
)
_BUILD = _at(f"{HERE}._calls", "build_model_with_cfg", "load_pretrained", "resolve_pretrained_cfg")
_LOAD = _at(f"{HERE}._calls", "clean_state_dict", "load_checkpoint", "load_state_dict")
_LOAD |= {"resume_checkpoint": f"{HERE}._saver:resume_checkpoint"}
_MANIPULATE = _at(
    MANIPULATE, "checkpoint_seq", "group_modules", "group_parameters", "group_with_matcher", "named_apply"
) | {"adapt_input_conv": f"{HERE}._calls:adapt_input_conv", "checkpoint": "torch.utils.checkpoint:checkpoint"}
_MANIPULATE |= {"model_parameters": f"{HERE}._utils:model_parameters"}
_FEATURES = _at(FEATURES, "FeatureDictNet", "FeatureGetterNet", "FeatureHookNet", "FeatureInfo", "FeatureListNet")
_FEATURES |= {"feature_take_indices": f"{HERE}._calls:feature_take_indices"}
_SWITCHES = _at(f"{HERE}._calls", "is_exportable", "is_no_jit", "is_scriptable", "use_fused_attn")

# --- layers ----------------------------------------------------------------------------------------------------------

_TRACE = _at(f"{HERE}._calls", register_notrace_function="unchanged", register_notrace_module="unchanged")
_PARTS = f"{HERE}._parts"
_LAYERS = _SWITCHES | _TRACE | _at(_PARTS, "create_classifier", "create_norm_layer", "get_act_fn", "get_padding")
_LAYERS |= {
    "set_layer_config": f"{_PARTS}:set_layer_config",
    "GELU": "torch.nn:GELU",
    "Mish": "torch.nn:Mish",
    "PReLU": "torch.nn:PReLU",
    "Sigmoid": "torch.nn:Sigmoid",
    "Swish": "torch.nn:SiLU",
    "Tanh": "torch.nn:Tanh",
    "HardSigmoid": "torch.nn:Hardsigmoid",
    "HardSwish": "torch.nn:Hardswish",
    "Linear": "torch.nn:Linear",
    "gelu": "torch.nn.functional:gelu",
    "hard_sigmoid": "torch.nn.functional:hardsigmoid",
    "hard_swish": "torch.nn.functional:hardswish",
    "mish": "torch.nn.functional:mish",
    "swish": "torch.nn.functional:silu",
    "_assert": "torch:_assert",
    "SqueezeExcite": "opsin.layers:SEModule",
    "EfficientChannelAttn": "opsin.layers:EcaModule",
    "create_act_layer": f"{HERE}._calls:create_act_layer",
    "create_conv2d": f"{HERE}._calls:create_conv2d",
    "trunc_normal_": "torch.nn.init:trunc_normal_",  # bounds are values; opsin's are in units of std, as in the next
    "convert_splitbn_model": "opsin.train.split_bn:split_batch_norm",
    "convert_sync_batchnorm": "opsin.layers.sync_norm:convert_sync_batchnorm",
    "set_fast_norm": f"{HERE}._utils:set_fast_norm",
    "trunc_normal_tf_": "opsin.layers:trunc_normal_",
}

# the files of timm's layers, as old code imports from them; each shows all layers
_LAYER_FILES = frozenset({
    "activations", "activations_me", "adaptive_avgmax_pool", "attention", "attention2d", "attention_pool",
    "attention_pool2d", "blur_pool", "bottleneck_attn", "classifier", "config", "conv2d_same", "conv_bn_act",
    "create_act", "create_attn", "create_conv2d", "create_norm", "create_norm_act", "drop", "eca", "fast_norm",
    "format", "grid", "grn", "halo_attn", "helpers", "interpolate", "lambda_layer", "layer_scale", "linear",
    "mixed_conv2d", "mlp", "non_local_attn", "norm", "norm_act", "other_pool", "padding", "patch_dropout",
    "patch_embed", "pool2d_same", "pos_embed", "selective_kernel", "squeeze_excite", "std_conv", "trace_utils",
    "weight_init",
})  # fmt: skip


@cache
def _layer_homes() -> tuple[str, ...]:
    """The package with the short list first, then each of its files."""
    package = import_module("opsin.layers")
    files = [f"opsin.layers.{info.name}" for info in pkgutil.iter_modules(package.__path__)]
    return ("opsin.layers", *(f for f in files if hasattr(import_module(f), "__all__")))


def _layers() -> View:
    return View(_layer_homes(), _LAYERS)


# --- helpers of model files ------------------------------------------------------------------------------------------

_HUB = _at(f"{HERE}._hub", "download_cached_file", "has_hf_hub", "hf_split", "load_model_config_from_hf")
_HUB |= _at(f"{HERE}._hub", "load_state_dict_from_hf", "save_for_hf")
_BUILDER = _at(_PARTS, "resolve_act_layer", "resolve_bn_args")
FAMILY_HELPERS = {
    "swin_transformer": _at(_PARTS, "window_partition", "window_reverse"),
    "vision_transformer": _at(_PARTS, "resize_pos_embed"),
}

# --- the modules -----------------------------------------------------------------------------------------------------

_EFFICIENTNET = ("opsin.models._efficientnet_blocks",)
_ALL_MODELS = _CREATE | _REGISTRY | _BUILD | _LOAD | _MANIPULATE | _FEATURES | _SWITCHES

VIEWS: dict[str, View] = {
    "timm": View(
        names=_CREATE
        | {
            k: v
            for k, v in _REGISTRY.items()
            if k[0].islower() and k not in ("generate_default_cfgs", "register_model")
        }
        | _at(f"{HERE}._calls", "is_exportable", "is_scriptable")
        | _VERSION
        | {"__opsin__": "opsin:__version__"}
    ),
    "timm.version": View(names=_VERSION),
    **{module: View(names=DATA) for module in DATA_MODULES},
    "timm.models": View(names=_ALL_MODELS),
    "timm.models.registry": View(names=_REGISTRY),
    "timm.models._registry": View(names=_REGISTRY),
    "timm.models._pretrained": View(names=_REGISTRY),
    "timm.models.factory": View(names=_CREATE),
    "timm.models._factory": View(names=_CREATE),
    "timm.models.helpers": View(names=_BUILD | _LOAD | _MANIPULATE),
    "timm.models._builder": View(names=_BUILD),
    "timm.models._helpers": View(names=_LOAD),
    "timm.models._manipulate": View(names=_MANIPULATE),
    "timm.models.features": View(names=_FEATURES),
    "timm.models._features": View(names=_FEATURES),
    "timm.models.efficientnet_blocks": View(homes=_EFFICIENTNET),
    "timm.models._efficientnet_blocks": View(homes=_EFFICIENTNET),
    "timm.models.efficientnet_builder": View(_EFFICIENTNET, _BUILDER),
    "timm.models._efficientnet_builder": View(_EFFICIENTNET, _BUILDER),
    "timm.models.fx_features": View(names=_TRACE),
    "timm.models.hub": View(names=_HUB),
    "timm.models._hub": View(names=_HUB),
    **{module: View(homes, names) for module, (homes, names) in TRAINING.items()},
}


@cache
def _families() -> dict[str, tuple[str, ...]]:
    """timm's family file -> the opsin modules its architectures are built in, the one of that name first."""
    found: dict[str, dict[str, None]] = {}
    for architecture, file in MODELS.items():
        module = f"opsin.models.{file}"
        found.setdefault(catalog.model_facts(architecture).family, {})[module] = None
    return {
        family: tuple(sorted(modules, key=lambda module: module != f"opsin.models.{family}"))
        for family, modules in found.items()
    }


def view_of(module: str) -> Any:
    """The view of a timm module, or None where opsin has nothing of it."""
    if module in VIEWS:
        return VIEWS[module]
    parent, _, name = module.rpartition(".")
    if module in ("timm.layers", "timm.models.layers"):
        return _layers()
    if parent in ("timm.layers", "timm.models.layers") and name in _LAYER_FILES:
        return _layers()
    if parent == "timm.models" and name in _families():
        from opsin.integrations.timm_alias._family import FamilyView

        return FamilyView(name, _families()[name], _layers())
    return None


def is_known(module: str) -> bool:
    """Whether `import module` works."""
    parent, _, name = module.rpartition(".")
    return (
        module in VIEWS
        or module in ("timm.layers", "timm.models.layers")
        or (parent in ("timm.layers", "timm.models.layers") and name in _LAYER_FILES)
        or (parent == "timm.models" and name in _families())
    )


def is_unbuilt(module: str) -> bool:
    """Whether this is a family file of timm whose architectures the catalog knows, but opsin has no code for."""
    known = {catalog.model_facts(name).family for name in catalog.architectures()}
    return module in {f"timm.models.{family}" for family in known - _families().keys()}


def child_names(module: str) -> list[str]:
    """Names of the modules right below this one."""
    found = {name.rpartition(".")[2] for name in VIEWS if name.rpartition(".")[0] == module}
    if module == "timm":
        found.add("layers")
    if module == "timm.models":
        found |= {"layers", *_families()}
    if module in ("timm.layers", "timm.models.layers"):
        found |= _LAYER_FILES
    return sorted(found)


def lookup(module: str, name: str) -> Any:
    """What `timm…module.name` is in opsin. Raises Absent."""
    view = view_of(module)
    if view is None:
        raise Absent(module)
    try:
        return view.find(name)
    except Absent:
        if module != "timm.models" or name.startswith("_"):
            raise
        return _from_any_family(name)


def _from_any_family(name: str) -> Any:
    """`timm.models.resnet34` and `timm.models.ResNet`: the package shows what all of its family files show."""
    if name in MODELS or catalog.resolve_alias(name):
        return import_module(REGISTRY).model_entrypoint(name)
    if name[0].isupper():
        for module in _family_modules():
            if name in module.__all__:
                return getattr(module, name)
    raise Absent(name)


def _family_modules() -> Iterator[ModuleType]:
    for file in dict.fromkeys(MODELS.values()):
        yield import_module(f"opsin.models.{file}")


def public_names(module: str) -> list[str]:
    """What `from module import *` brings."""
    view = view_of(module)
    names = view.public() if view else []
    return sorted({*names, *MODELS}) if module == "timm.models" else names
