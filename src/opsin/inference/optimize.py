"""A trained model made ready to run: the same numbers in less time, and a report of what was done.

Batch norms are folded into the convolutions before them, branches that were only needed in training are merged, what
does nothing in evaluation is taken out, weights are laid out as the processor likes them. Every step is checked on an
example and taken back if the outputs moved.
"""

import copy
import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from opsin.errors import OpsinError, names_checked
from opsin.inference._packed import PackedConv2d, PackedLinear, can_pack, fusable
from opsin.inference._trace import Links, find_links
from opsin.layers.conv import Conv2dSame
from opsin.layers.drop import DropPath
from opsin.layers.frozen_norm import PLAIN, WITH_ACT, FrozenBatchNorm2d, FrozenBatchNormAct2d
from opsin.models._model import Model

__all__ = ["Report", "keep_freed_memory", "prepare_for_inference", "report"]

TOLERANCE = 1e-5  # of the largest value of an output, in float32
HALF_TOLERANCE = 2e-2  # in half precisions, whose own steps are of that size
NORMS = (*PLAIN, *WITH_ACT, FrozenBatchNorm2d, FrozenBatchNormAct2d)
IDLE = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, DropPath)


@dataclass
class Report:
    """What `prepare_for_inference` did to a model; `print` it."""

    folded: int = 0  # batch norms that went into a convolution
    kept_norms: list[str] = field(default_factory=list)  # those that could not: nothing foldable is right before them
    reparameterized: int = 0  # modules whose branches were merged
    removed: int = 0  # dropout and stochastic depth
    packed: int = 0  # convolutions and linear layers with weights laid out ahead
    fused_acts: int = 0  # activations computed together with the layer before
    channels_last: bool = False
    allocator: bool | None = None  # None: left alone
    error: float = 0.0  # largest difference of the outputs on the example, relative to the largest value
    undone: list[str] = field(default_factory=list)  # steps taken back, and why

    def __str__(self) -> str:
        lines = [
            f"{self.folded} batch norms folded, {len(self.kept_norms)} kept",
            f"{self.reparameterized} modules with merged branches",
            f"{self.removed} dropouts removed",
            f"{self.packed} layers packed, {self.fused_acts} activations computed with them",
            f"channels last: {'yes' if self.channels_last else 'no'}",
            f"outputs differ by {self.error:.1e} of the largest value",
        ]
        if self.allocator is not None:
            lines.append(f"allocator: {'tuned, for the whole process' if self.allocator else 'could not be tuned'}")
        return "\n".join(lines + [f"undone: {what}" for what in self.undone])


@names_checked
def prepare_for_inference(
    model: nn.Module,
    *,
    example_input: Tensor | None = None,
    channels_last: bool | None = None,
    pack: bool | None = None,
    tune_allocator: bool = False,
    inplace: bool = False,
) -> nn.Module:
    """A copy of a model that gives the same outputs faster; `report(model)` says what was done and how exact it is.

    The result is for inference: without gradients, and in evaluation mode, where it stays: `train()` on it, or on a
    model it is a part of, does nothing, for what training needs is gone. Call it under `torch.inference_mode()`.
    Outputs, feature maps and `state_dict` of what is left stay usable; maps between a convolution and its norm are
    gone. It can still be moved, cast, compiled and exported, then with ordinary layers in place of the packed ones.

    Args:
        model: any model; of torch's layers it understands convolutions, batch norms, linear layers, activations.
        example_input: images (B, C, H, W) to try it on; by default one random image of the model's own size.
        channels_last: keep maps as (B, H, W, C) in memory. By default where it pays: for networks of more than one
            convolution on the CPU, and in half precision on a GPU.
        pack: lay out weights ahead of time (a second copy of them in memory) and fuse activations; float32 on the CPU
            only. By default where that can be done.
        tune_allocator: call `keep_freed_memory`; the one effect beyond the model.
        inplace: change the model itself; saves the memory of a copy.

    Raises:
        OpsinError: the model does not run on the example.
    """
    model = model if inplace else copy.deepcopy(model)
    model.eval().requires_grad_(False)
    done = Report()
    x = _example(model) if example_input is None else example_input
    bench = Bench(model, x, done)
    bench.step("merging branches", lambda: _reparameterize(bench))
    bench.step("removing dropout", lambda: _remove_idle(bench))
    bench.step("folding batch norms", lambda: _fold(bench))
    device, dtype = x.device.type, x.dtype
    convs = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    if channels_last is None:
        channels_last = convs > 1 and (device == "cpu" or dtype in (torch.float16, torch.bfloat16))
    if channels_last:
        model.to(memory_format=torch.channels_last)
        done.channels_last = True
    if pack is None:
        pack = can_pack() and device == "cpu" and dtype == torch.float32
    elif pack and not can_pack():
        raise OpsinError("pack=True needs a build of torch with oneDNN; leave pack out to do without")
    if pack:
        bench.step("packing weights", lambda: _pack(bench))
    model.eval().requires_grad_(False)  # parts that a step has made as well
    done.error = bench.error()
    if tune_allocator:
        done.allocator = keep_freed_memory()
    model.inference_report = done  # type: ignore[assignment]
    model.train = StayInEval(model)  # type: ignore[method-assign]
    return model


class StayInEval:
    """`train` of a prepared model: norms that are kept would take the statistics of the batch, folded ones cannot.

    The model is held weakly, so that it goes as soon as nobody else holds it, and a copy gets one of its own.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = ref(model)

    def __call__(self, mode: bool = True) -> Any:
        model = self.model()
        if model is None:  # called on one without a name
            raise OpsinError("a model prepared for inference stays in evaluation mode: leave train() out")
        return type(model).train(model, False)

    def __reduce__(self) -> tuple[Any, ...]:
        return StayInEval, (self.model(),)


def report(model: nn.Module) -> Report:
    """What `prepare_for_inference` did to this model."""
    found = getattr(model, "inference_report", None)
    if not isinstance(found, Report):
        raise OpsinError(f"this {type(model).__name__} has not been through prepare_for_inference")
    return found


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next forward pass; True if that could be done (glibc only).

    By default every large buffer comes fresh from the kernel and goes back to it, page by page: at large batches that
    is a third of the time. This setting is for the whole process and holds until it ends: memory once used is kept.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    settings = ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 64 << 20))
    applied = [mallopt(name, value) == 1 for name, value in settings]
    return all(applied)


# -- trying and undoing ------------------------------------------------------------------------------------------------


class Bench:
    """The model on its example: runs a step, compares the outputs with the first ones, takes it back if they moved."""

    def __init__(self, model: nn.Module, x: Tensor, done: Report) -> None:
        self.model, self.x, self.done = model, x, done
        self.replaced: list[tuple[nn.Module, str, nn.Module]] = []
        self.tolerance = HALF_TOLERANCE if x.dtype in (torch.float16, torch.bfloat16) else TOLERANCE
        self.expected = self.outputs()

    def outputs(self) -> list[Tensor]:
        try:
            with torch.inference_mode():
                out = self.model(self.x)
        except (RuntimeError, TypeError, ValueError) as error:
            raise OpsinError(
                f"{type(self.model).__name__} does not run on an example of shape {tuple(self.x.shape)}: {error}. "
                "Pass example_input=, a batch as the model takes it."
            ) from error
        return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]

    def error(self) -> float:
        """Largest difference from the first outputs, relative to the largest value of each; nan if not finite."""
        worst = 0.0
        for now, before in zip(self.outputs(), self.expected, strict=True):
            before = before.double()
            apart = ((now.double() - before).abs().max() / before.abs().max().clamp_min(1e-12)).item()
            worst = apart if not apart <= worst else worst
        return worst

    def replace(self, old: nn.Module, new: nn.Module) -> None:
        """Put `new` wherever the model holds `old`."""
        for parent in list(self.model.modules()):
            for name, child in parent._modules.items():
                if child is old:
                    self.replaced.append((parent, name, old))
                    parent._modules[name] = new

    def step(self, what: str, act: Callable[[], dict[str, Any]]) -> None:
        """Run one step, which replaces modules and says what to put into the report."""
        self.replaced = []
        figures = act()
        error = self.error() if self.replaced else 0.0
        if error <= self.tolerance:
            vars(self.done).update(figures)
            return
        for parent, name, old in reversed(self.replaced):
            parent._modules[name] = old
        self.done.undone.append(f"{what} changed the outputs by {error:.1e}")


def _example(model: nn.Module) -> Tensor:
    """One random image of the size, type and device that the model, or the one wrapped in it, works with."""
    model = next((m for m in model.modules() if isinstance(m, Model)), model)
    conv = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = getattr(model, "in_chans", None) or (conv.in_channels if conv else 3)
    record = getattr(model, "pretrained_cfg", None) or {}
    size = (
        getattr(getattr(model, "config", None), "img_size", None) or tuple(record.get("input_size", (3, 224, 224)))[1:]
    )
    size = (size, size) if isinstance(size, int) else tuple(size)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, channels, *size, generator=generator).to(device=like.device, dtype=like.dtype)


# -- the steps ---------------------------------------------------------------------------------------------------------


def _reparameterize(bench: Bench) -> dict[str, Any]:
    """Merge the branches of every module that has a `reparameterize()`: in place, or into the module it returns.

    Inner modules come first, so that each needs to know of its own branches alone.
    """
    modules: list[Any] = list(bench.model.modules())[1:]
    found = [m for m in modules if callable(getattr(m, "reparameterize", None))]
    count = 0
    for module in reversed(found):  # from the inside out
        merged = copy.deepcopy(module)
        merged = merged.reparameterize() or merged
        if type(merged) is not type(module) or merged.state_dict().keys() != module.state_dict().keys():
            bench.replace(module, merged)
            count += 1
    return {"reparameterized": count}


def _remove_idle(bench: Bench) -> dict[str, Any]:
    """Of those that run: one that never does may be there for its rate, which its owner reads."""
    idle: dict[nn.Module, None] = {}
    handles = [
        m.register_forward_hook(lambda m, args, out: idle.update({m: None}))
        for m in bench.model.modules()
        if type(m) in IDLE
    ]
    bench.outputs()
    for handle in handles:
        handle.remove()
    for module in idle:
        bench.replace(module, nn.Identity())
    return {"removed": len(idle)}


def _links(bench: Bench) -> Links:
    runs: list[Callable[[Tensor], Any]] = [bench.model]
    if isinstance(bench.model, Model):
        runs.append(bench.model.forward_outputs)
    return find_links(bench.model, runs, bench.x)


def _fold(bench: Bench) -> dict[str, Any]:
    norms: dict[Any, str] = {m: name for name, m in bench.model.named_modules() if type(m) in NORMS}
    if not norms:
        return {}
    convs = {n: m for m, n in _links(bench).items() if n in norms and type(m) in (nn.Conv2d, Conv2dSame)}
    kept = []
    for norm, name in norms.items():
        conv: Any = convs.get(norm)
        if conv is None or norm.running_mean is None:
            kept.append(name)
            continue
        bench.replace(conv, fold_batch_norm(conv, norm))
        bench.replace(norm, getattr(norm, "act", nn.Identity()))
    return {"folded": len(norms) - len(kept), "kept_norms": kept}


def fold_batch_norm(conv: nn.Conv2d, norm: Any) -> nn.Conv2d:
    """A convolution that does what `conv` and the batch norm behind it do in evaluation."""
    mean, var = norm.running_mean.double(), norm.running_var.double()
    scale = torch.rsqrt(var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -mean * scale
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    folded = copy.copy(conv)  # shares nothing that is changed below
    folded._parameters = dict(conv._parameters)
    weight = conv.weight.double() * scale[:, None, None, None]
    folded.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    folded.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=False)
    return folded


def _pack(bench: Bench) -> dict[str, Any]:
    links = _links(bench)
    packed = fused = 0
    layers: list[Any] = list(bench.model.modules())
    for layer in layers:
        linear = type(layer) is nn.Linear
        if not linear and not PackedConv2d.takes(layer):
            continue
        act = links.get(layer)
        act = act if act is not None and fusable(act) else None
        if act is not None:
            bench.replace(act, nn.Identity())
        bench.replace(layer, PackedLinear(layer, act) if linear else PackedConv2d(layer, act))
        packed, fused = packed + 1, fused + (act is not None)
    return {"packed": packed, "fused_acts": fused}
