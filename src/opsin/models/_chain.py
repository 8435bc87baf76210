"""The chain: what a model runs, in order, and where along it features can be taken."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from opsin.errors import UnknownArgumentError

__all__ = ["Row", "Stage", "as_it_was_on_error", "locate", "normalize_indices", "run_stage", "split_blocks", "to_map"]


PARTS = ("_parameters", "_buffers", "_modules")  # of a module, by name


class Stage(NamedTuple):
    """One link of the chain: module paths (or method names) that run one after the other.

    A stage with `num_chs` is a feature level: what leaves it has that many channels at 1/`reduction` of the image.
    Between stages several maps may run side by side, as a sequence.
    """

    run: tuple[str, ...]
    num_chs: int | None = None
    reduction: int | None = None
    module: str = ""  # the name of the level in `feature_info`; by default the last of `run`
    params: tuple[str, ...] = ()  # owners of its parameters where `run` names a method; by default `run`
    any_depth: bool = False  # a closing norm that fits behind every level, so it stays when late stages are pruned
    checkpoint: bool = True  # worth recomputing in the backward pass; False for stems
    item: int | None = None  # which of several maps that leave it is the level; None where one map leaves it
    to_tokens: bool = False  # makes of the last map what only the head takes (class attention, flattening)
    trim: int = (
        0  # image pixels lost at the borders to windows without padding: size = ceil((image - trim) / reduction)
    )

    @property
    def name(self) -> str:
        return self.module or self.run[-1]

    @property
    def owners(self) -> tuple[str, ...]:
        return self.params or self.run

    @property
    def is_level(self) -> bool:
        return self.num_chs is not None

    def pick(self, x: Any) -> Tensor:
        """The level's map, of what leaves the stage."""
        return x if self.item is None else x[self.item]


class Row(nn.Module):
    """Runs its `parts`, names of modules and methods, one after the other: a Sequential with parameters of its own."""

    parts: ClassVar[tuple[str, ...]]

    def forward(self, x: Tensor) -> Tensor:
        for name in self.parts:
            x = getattr(self, name)(x)
        return x


def locate(root: nn.Module, path: str):
    """The submodule or method at a dotted path."""
    for part in path.split("."):
        root = getattr(root, part)
    return root


@contextmanager
def as_it_was_on_error(root: nn.Module) -> Iterator[None]:
    """Undo what the block has done to the attributes and parts of a module, should it fail."""
    kept = [(module, {k: dict(v) if k in PARTS else v for k, v in vars(module).items()}) for module in root.modules()]
    try:
        yield
    except Exception:
        for module, attributes in kept:
            vars(module).clear()
            vars(module).update(attributes)
        raise


def split_blocks(module, path: str) -> Iterator[tuple[str, Any]]:
    """(path, part) of what runs inside plain (nested) Sequentials and `Row`s; anything else is one block."""
    names: tuple[str, ...] = ()
    if isinstance(module, Row):
        names = module.parts
    elif isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        names = tuple(name for name, _ in module.named_children())
    for name in names:
        yield from split_blocks(getattr(module, name), f"{path}.{name}")
    if not names:
        yield path, module


def run_stage(
    root: nn.Module, stage: Stage, x: Tensor, checkpointing: bool = False, block_args: dict[str, Any] | None = None
) -> Tensor:
    """Run one link of the chain; with `checkpointing` its blocks are computed again in the backward pass.

    `block_args` are further keywords for the blocks of feature levels, such as an attention mask.
    """
    args = block_args if block_args and stage.is_level else {}
    if checkpointing and stage.checkpoint and torch.is_grad_enabled():
        for parts in _segments(root, stage):
            x = checkpoint(_run_parts, parts, x, args, use_reentrant=False)
        return x
    return _run_parts([locate(root, path) for path in stage.run], x, args)


def _run_parts(parts: list[Callable[..., Tensor]], x: Tensor, args: dict[str, Any]) -> Tensor:
    for part in parts:
        x = part(x, **args)
    return x


def _segments(root: nn.Module, stage: Stage) -> list[list[Callable[..., Tensor]]]:
    """What is computed again together: a block, or a row of single layers.

    On its own a layer would save nothing, and one that works in place would meet its own output the second time.
    """
    segments: list[list[Callable[..., Tensor]]] = []
    in_row = False
    for path in stage.run:
        for _, block in split_blocks(locate(root, path), path):
            single = isinstance(block, nn.Module) and not any(True for _ in block.children())
            if single and in_row:
                segments[-1].append(block)
            else:
                segments.append([block])
            in_row = single
    return segments


def to_map(x: Tensor, layout: str, output_fmt: str) -> Tensor:
    """A four-dimensional map of one layout in another (NCHW, NHWC)."""
    if layout == output_fmt:
        return x
    return x.permute(0, 3, 1, 2) if layout == "NHWC" else x.permute(0, 2, 3, 1)


def normalize_indices(indices: int | Sequence[int] | None, count: int) -> list[int]:
    """Indices of feature levels as non-negative ints: None is all, an int n the last n, negatives count from the end.

    Raises IndexError for an index outside the `count` levels, ValueError for a repeated or empty choice, and
    UnknownArgumentError for what is no whole number.
    """
    if indices is None:
        return list(range(count))
    if isinstance(indices, str) or not isinstance(indices, Iterable):
        indices = _level(indices)
        if not 0 < indices <= count:
            raise IndexError(f"asked for the last {indices} feature levels, but the model has {count}")
        return list(range(count - indices, count))
    chosen = []
    for index in map(_level, indices):
        if not -count <= index < count:
            raise IndexError(f"feature index {index} is out of range: the model has {count} levels, 0 to {count - 1}")
        chosen.append(index % count)
    if not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(f"feature indices must be a choice of different levels, got {list(indices)}")
    return chosen


def _level(index: Any) -> int:
    if isinstance(index, bool) or not isinstance(index, Integral):
        raise UnknownArgumentError(
            f"{index!r} is no feature index: give n for the last n levels, a list of whole numbers, or (for hooks) a "
            "list of nothing but module names"
        )
    return int(index)
