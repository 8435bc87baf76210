"""Models as feature extractors: what `create_model(..., features_only=True)` returns."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, check_choice, did_you_mean
from opsin.models._chain import locate, normalize_indices, run_stage, to_map
from opsin.models._foreign import check_output_fmt, cut_chain, drop_head, input_channels
from opsin.models._model import Model

__all__ = ["FeatureDictNet", "FeatureGetterNet", "FeatureHookNet", "FeatureInfo", "FeatureListNet", "feature_net"]


class FeatureInfo:
    """Channels, stride and module name of each output, in the order of the outputs."""

    def __init__(self, feature_info: Sequence[dict[str, Any]], out_indices: int | Sequence[int] | None = None) -> None:
        self.info = [dict(row, index=i) for i, row in enumerate(feature_info)]
        self.out_indices = tuple(normalize_indices(out_indices, len(self.info)))

    def _rows(self, idx: int | Sequence[int] | None) -> list[dict[str, Any]]:
        if isinstance(idx, int):
            return [self.info[idx]]
        return [self.info[i] for i in (self.out_indices if idx is None else idx)]

    def _get(self, key: str, idx: int | Sequence[int] | None) -> Any:
        values = [row[key] for row in self._rows(idx)]
        return values[0] if isinstance(idx, int) else values

    def channels(self, idx: int | Sequence[int] | None = None):
        """Channels of each output (or of the level `idx`)."""
        return self._get("num_chs", idx)

    def reduction(self, idx: int | Sequence[int] | None = None):
        """Stride of each output to the image (or of the level `idx`)."""
        return self._get("reduction", idx)

    def module_name(self, idx: int | Sequence[int] | None = None):
        """Module each output leaves from (or that of the level `idx`)."""
        return self._get("module", idx)

    def get_dicts(self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None):
        """The rows as dicts, all or just `keys` of them."""
        return [dict(row) if keys is None else {k: row[k] for k in keys} for row in self._rows(idx)]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.info[index]

    def __len__(self) -> int:
        return len(self.info)


def _output_keys(info: FeatureInfo, out_map: Sequence[str | int] | None) -> list[str]:
    keys = [str(k) for k in out_map] if out_map is not None else info.module_name()
    if len(keys) != len(info.out_indices) or len(set(keys)) != len(keys):
        raise UnknownArgumentError(f"out_map needs {len(info.out_indices)} different names, got {keys}")
    return keys


class FeatureListNet(nn.ModuleDict):
    """The body of a model as a row of its own modules, cut behind the last level asked for. Returns a list of maps.

    The parts keep the names they have in the model (`layer1.0.conv1.weight`); with `flatten_sequential` a dotted path
    becomes one name with underscores (`stages_0`), as in published detection checkpoints on such backbones.
    `model` may also be a module of another make with a `feature_info` list, whose children run in their order.
    """

    def __init__(
        self,
        model: nn.Module,
        out_indices: int | Sequence[int] | None = None,
        *,
        output_fmt: str = "NCHW",
        flatten_sequential: bool = False,
    ) -> None:
        super().__init__()
        check_output_fmt(model, output_fmt)
        self.feature_info = FeatureInfo(model.feature_info, out_indices)  # type: ignore[arg-type]
        self.output_fmt, self.layout = output_fmt, getattr(model, "layout", "NCHW")
        self.config, self.pretrained_cfg = getattr(model, "config", None), getattr(model, "pretrained_cfg", {})
        self.grad_checkpointing = False
        self.taken = list(self.feature_info.out_indices)
        if isinstance(model, Model):
            model.prune_intermediate_layers(self.taken, prune_norm=True)
            chain = model.chain
        else:
            chain = cut_chain(model, self.feature_info.info, max(self.taken), flatten_sequential)
        self.chain = tuple(
            stage._replace(run=tuple(self._adopt(model, path, flatten_sequential) for path in stage.run))
            for stage in chain
        )

    def _adopt(self, model: nn.Module, path: str, flatten: bool) -> str:
        """Take the part at `path` over; returns where it is now. Of a method, the part that has it."""
        path, method = split_method(model, path)
        name = path.replace(".", "_") if flatten else path.split(".")[0]
        if name not in self:
            self.add_module(name, locate(model, path if flatten else name))
        return (name if flatten else path) + method

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def init_non_persistent_buffers(self) -> None:
        """Compute the non-persistent buffers again; transformers calls it after a build on the meta device."""
        for module in self.modules():
            if hasattr(module, "reset_buffers"):
                module.reset_buffers()  # type: ignore[operator]

    @property
    def return_layers(self) -> dict[str, str]:
        """Module name -> key of what is returned. Assigning it returns these levels instead, in the order they run;
        a level behind the last one the net was built for is not there any more and is passed over."""
        names = [self.feature_info.info[i]["module"] for i in self.taken]
        return dict(zip(names, getattr(self, "keys_out", None) or map(str, self.taken), strict=True))

    @return_layers.setter
    def return_layers(self, layers: Mapping[str, Any]) -> None:
        kept = [stage.name for stage in self.chain if stage.is_level]
        modules = [row["module"] for row in self.feature_info.info]
        if unknown := [name for name in layers if name not in modules]:
            near = did_you_mean(unknown[0], modules)
            raise UnknownArgumentError(f"no feature level leaves {unknown[0]!r}.{near}")
        self.taken = [i for i in range(len(kept)) if modules[i] in layers]
        if hasattr(self, "keys_out"):
            self.keys_out = [str(layers[modules[i]]) for i in self.taken]

    def collect(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        for stage in self.chain:
            x = run_stage(self, stage, x, self.grad_checkpointing)
            if stage.is_level:
                maps.append(stage.pick(x))
        return [to_map(maps[i], self.layout, self.output_fmt) for i in self.taken]

    def forward(self, x: Tensor) -> Any:
        return self.collect(x)


class FeatureDictNet(FeatureListNet):
    """As `FeatureListNet`, but returns an ordered dict; keys are the module names, or those in `out_map`."""

    def __init__(
        self,
        model: nn.Module,
        out_indices: int | Sequence[int] | None = None,
        *,
        out_map: Sequence[str | int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, out_indices, **kwargs)
        self.keys_out = _output_keys(self.feature_info, out_map)

    def forward(self, x: Tensor) -> Any:
        return OrderedDict(zip(self.keys_out, self.collect(x), strict=True))


class FeatureGetterNet(nn.Module):
    """Features through the model's own `forward_intermediates`: for tokens, and for any model at all."""

    def __init__(
        self,
        model: Model,
        out_indices: int | Sequence[int] | None = None,
        *,
        out_map: Sequence[str | int] | None = None,
        return_dict: bool = False,
        output_fmt: str = "NCHW",
        norm: bool = False,
        prune: bool = True,
    ) -> None:
        super().__init__()
        model.check_output_fmt(output_fmt)
        self.feature_info = FeatureInfo(model.feature_info, out_indices)
        self.keys_out = _output_keys(self.feature_info, out_map) if return_dict or out_map is not None else None
        self.indices = list(self.feature_info.out_indices)
        self.output_fmt, self.norm = output_fmt, norm
        if prune:
            model.prune_intermediate_layers(self.indices, prune_norm=not norm)
        self.model = model

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.model.set_grad_checkpointing(enable)

    def forward(self, x: Tensor) -> Any:
        maps = self.model.forward_intermediates(
            x, self.indices, norm=self.norm, output_fmt=self.output_fmt, intermediates_only=True
        )
        return maps if self.keys_out is None else OrderedDict(zip(self.keys_out, maps, strict=True))


class FeatureHookNet(nn.Module):
    """The outputs of any named modules, caught by hooks while `forward_features` runs.

    `out_indices` are feature levels, or names as in `model.named_modules()`. Channels and strides in `feature_info` are
    measured by one pass without arithmetic (on the meta device) at `input_size`, by default the model's own.
    """

    def __init__(
        self,
        model: nn.Module,
        out_indices: int | Sequence[int] | Sequence[str] | None = None,
        *,
        out_map: Sequence[str | int] | None = None,
        return_dict: bool = False,
        input_size: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        if input_size is None:
            side = getattr(getattr(model, "config", None), "img_size", None) or 224
            input_size = (input_channels(model), *(side if isinstance(side, tuple | list) else (side, side)))
        if isinstance(out_indices, list | tuple) and out_indices and all(isinstance(n, str) for n in out_indices):
            names = list(out_indices)
        else:
            names = FeatureInfo(model.feature_info, out_indices).module_name()  # type: ignore[arg-type]
        known = dict(model.named_modules())
        for name in names:
            path, _ = hook_point(model, name)
            if path not in known or not path:
                raise UnknownArgumentError(f"{type(model).__name__} has no module {name!r}.{did_you_mean(name, known)}")
        drop_head(model)
        self.model, self.names = model, names
        self.feature_info = FeatureInfo(_measure(model, names, input_size), None)
        self.keys_out = _output_keys(self.feature_info, out_map) if return_dict or out_map is not None else None

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.model.set_grad_checkpointing(enable)  # type: ignore[operator]

    def forward(self, x: Tensor) -> Any:
        caught = _catch(self.model, self.names, x)
        return caught if self.keys_out is None else OrderedDict(zip(self.keys_out, caught, strict=True))


def split_method(model: nn.Module, path: str) -> tuple[str, str]:
    """A path of the chain as (module, ".method"); the first is "" for a method of the model itself."""
    if isinstance(locate(model, path), nn.Module):
        return path, ""
    owner, _, method = path.rpartition(".")
    return owner, f".{method}"


def hook_point(model: nn.Module, name: str) -> tuple[str, int | None]:
    """Where to hook what `name` stands for: the path of a module, and which of several maps that leave it.

    The name of a feature level means that level, whose map leaves the last of what its stage runs.
    """
    stage = next((s for s in model.feature_levels() if s.name == name), None) if isinstance(model, Model) else None
    if stage is None or not stage.run or not isinstance(locate(model, stage.run[-1]), nn.Module):
        return name, None
    return stage.run[-1], stage.item


def _catch(model: nn.Module, names: list[str], x: Tensor) -> list[Tensor]:
    caught: dict[str, Any] = {}
    handles = []
    for name in names:
        path, item = hook_point(model, name)
        handles.append(model.get_submodule(path).register_forward_hook(partial(_keep, caught, name, item)))
    try:
        body: Any = getattr(model, "forward_features", model)
        body(x)
    finally:
        for handle in handles:
            handle.remove()
    if unseen := [n for n in names if n not in caught]:
        raise UnknownArgumentError(f"forward_features does not run {', '.join(unseen)}; choose modules of the body")
    if several := [n for n in names if not isinstance(caught[n], Tensor)]:
        raise UnknownArgumentError(f"several maps leave {several[0]}; choose a module that gives one")
    return [caught[n] for n in names]


def _keep(caught: dict[str, Any], name: str, item: int | None, module: nn.Module, args: Any, out: Any) -> None:
    """A copy of what leaves a module: an activation behind it may write into the original."""
    out = out if item is None else out[item]
    caught[name] = out.clone() if isinstance(out, Tensor) else out


def _measure(model: nn.Module, names: list[str], input_size: tuple[int, int, int]) -> list[dict[str, Any]]:
    probe = deepcopy(model).to("meta").eval()
    with torch.no_grad():
        outs = _catch(probe, names, torch.empty((1, *input_size), device="meta"))
    rows, layout = [], getattr(model, "layout", "NCHW")
    for name, out in zip(names, outs, strict=True):
        maps = out.ndim == 4
        channels = out.shape[-1] if layout != "NCHW" or not maps else out.shape[1]
        height = out.shape[1] if maps and layout == "NHWC" else out.shape[2] if maps else None
        rows.append({"num_chs": channels, "reduction": input_size[1] // height if height else None, "module": name})
    return rows


# form -> the arguments it takes
FORMS: dict[str, tuple[str, ...]] = {
    "list": ("output_fmt",),
    "dict": ("output_fmt", "out_map"),
    "hook": ("out_map", "return_dict", "input_size"),
    "getter": ("output_fmt", "out_map", "return_dict", "norm", "prune"),
}


def feature_net(
    model: nn.Module,
    *,
    out_indices: Any = None,
    feature_cls: str | type[nn.Module] = "list",
    flatten: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Wrap a model as a feature extractor. `feature_cls`: list, dict, hook (any module by name), getter, or a class of
    your own that is called with the model and `out_indices`."""
    if not isinstance(feature_cls, str):
        return feature_cls(model, out_indices=out_indices, **kwargs)
    check_choice(feature_cls, FORMS, what="feature_cls")
    if isinstance(out_indices, list | tuple) and out_indices and all(isinstance(i, str) for i in out_indices):
        feature_cls = "hook"
    chain = model.chain if isinstance(model, Model) else ()
    tokens = getattr(model, "layout", "") == "NLC"  # only the model itself knows how they make a map
    if feature_cls in ("list", "dict") and (
        tokens or not all(split_method(model, path)[0] for stage in chain for path in stage.run)
    ):
        kwargs = {"return_dict": feature_cls == "dict"} | kwargs
        feature_cls = "getter"
    for name in kwargs:
        if name not in FORMS[feature_cls]:
            others = [repr(form) for form, names in FORMS.items() if name in names]
            hint = f" It goes with {' or '.join(others)}." if others else did_you_mean(name, FORMS[feature_cls])
            raise UnknownArgumentError(f"feature_cls={feature_cls!r} takes no {name}.{hint}")
    if feature_cls in ("list", "dict"):
        kwargs["flatten_sequential"] = flatten
    nets: dict[str, Any] = {
        "list": FeatureListNet, "dict": FeatureDictNet, "hook": FeatureHookNet, "getter": FeatureGetterNet
    }  # fmt: skip
    return nets[feature_cls](model, out_indices, **kwargs)
