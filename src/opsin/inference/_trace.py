"""Which module's output goes to which module alone: found by running the model once and watching every operation.

Neither names nor the order of attributes say what follows a convolution; the values that flow do. Each tensor a model
makes gets a number (a new one when it is changed in place), each operation notes the numbers it reads and the modules
it runs in. A module is the only reader of a value when all operations that read it run inside that module.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Links", "find_links"]

# module -> the module that alone reads its output, at each of its calls
Links = dict[nn.Module, nn.Module]


@dataclass
class Call:
    """One run of a module with a single tensor in and a single tensor out."""

    module: nn.Module
    reads: int
    makes: int = -1


@dataclass
class Trace:
    calls: list[Call] = field(default_factory=list)
    readers: dict[int, list[frozenset[nn.Module]]] = field(default_factory=dict)  # value -> modules around each reader
    outputs: set[int] = field(default_factory=set)


class Recorder(TorchDispatchMode):
    """Numbers tensors and notes who reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.trace = Trace()
        self.inside: list[nn.Module] = []
        self._values = WeakTensorKeyDictionary()
        self._count = 0

    def value(self, tensor: Tensor) -> int:
        if tensor not in self._values:
            self._renew(tensor)
        return self._values[tensor]

    def _renew(self, tensor: Tensor) -> None:
        self._values[tensor] = self._count
        self._count += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        around = frozenset(self.inside)
        for tensor in given:
            self.trace.readers.setdefault(self.value(tensor), []).append(around)
        out = func(*args, **kwargs)
        for place, spec in enumerate(func._schema.arguments):
            if spec.alias_info is not None and spec.alias_info.is_write:
                changed = args[place] if place < len(args) else kwargs.get(spec.name)
                for tensor in tree_leaves(changed):
                    if isinstance(tensor, Tensor):
                        self._renew(tensor)
        return out


@contextmanager
def watch(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """Hooks on every module that tell the recorder where it is."""
    open_calls: list[Call | None] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        open_calls.append(Call(module, recorder.value(tensors[0])) if len(tensors) == 1 else None)
        recorder.inside.append(module)

    def leave(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        recorder.inside.pop()
        call = open_calls.pop()
        if call is not None and isinstance(out, Tensor):
            call.makes = recorder.value(out)
            recorder.trace.calls.append(call)

    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        with recorder:
            yield
    finally:
        for handle in handles:
            handle.remove()


def record(model: nn.Module, run: Callable[[Tensor], Any], x: Tensor) -> Trace:
    recorder = Recorder()
    with torch.no_grad(), watch(model, recorder):
        out = run(x)
    recorder.trace.outputs = {recorder.value(leaf) for leaf in tree_leaves(out) if isinstance(leaf, Tensor)}
    return recorder.trace


def links_of(trace: Trace) -> tuple[Links, set[nn.Module]]:
    """The links of one run, and all modules that ran."""
    taken: dict[int, list[nn.Module]] = {}  # value -> modules that take it whole; inner ones end, and stand, first
    makers: dict[int, set[nn.Module]] = {}
    inputs: dict[nn.Module, set[int]] = {}
    for call in trace.calls:
        makers.setdefault(call.makes, set()).add(call.module)
        inputs.setdefault(call.module, set()).add(call.reads)
        if call.makes != call.reads:  # else it passes the value on, as Identity does
            taken.setdefault(call.reads, []).append(call.module)
    readers: dict[nn.Module, set[nn.Module | None]] = {}
    for call in trace.calls:
        around = trace.readers.get(call.makes, [])
        passed_on = call.makes == call.reads or call.makes in trace.outputs
        takers = [m for m in taken.get(call.makes, []) if around and all(m in modules for modules in around)]
        readers.setdefault(call.module, set()).add(takers[0] if takers and not passed_on else None)
    links = {}
    for module, found in readers.items():
        reader = next(iter(found))
        # the reader must in turn be fed by this module alone
        if len(found) == 1 and reader is not None and all(module in makers.get(v, ()) for v in inputs[reader]):
            links[module] = reader
    return links, set(readers)


def find_links(model: nn.Module, runs: Sequence[Callable[[Tensor], Any]], x: Tensor) -> Links:
    """The links that hold in every one of `runs` (ways to call the model) on `x` in which their modules take part."""
    found = [links_of(record(model, run, x)) for run in runs]
    every = {module: reader for links, _ in found for module, reader in links.items()}
    return {
        module: reader
        for module, reader in every.items()
        if all(links.get(module) is reader for links, ran in found if module in ran or reader in ran)
    }
