"""Tools over the parts of any module: visiting them by name, grouping parameters by layer, checkpointing a sequence."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["checkpoint_seq", "group_modules", "group_parameters", "group_with_matcher", "named_apply"]

Matcher = Mapping[str, Any] | Callable[[str], Any]
WITH_PREVIOUS = 99999  # as the last number of an order: join the group before instead of opening one


def named_apply(
    fn: Callable[..., Any], module: nn.Module, name: str = "", depth_first: bool = True, include_root: bool = False
) -> nn.Module:
    """Call `fn(module=…, name=…)` on every submodule, children before their parents unless not `depth_first`."""
    if include_root and not depth_first:
        fn(module=module, name=name)
    for child_name, child in module.named_children():
        named_apply(fn, child, f"{name}.{child_name}" if name else child_name, depth_first, include_root=True)
    if include_root and depth_first:
        fn(module=module, name=name)
    return module


def group_with_matcher(names: Iterable[str], group_matcher: Matcher, *, reverse: bool = False) -> dict[Any, Any]:
    """Sort names into numbered groups, first layers first.

    Args:
        names: what to group.
        group_matcher: as `model.group_matcher()` gives it, `{group: regex}` or `{group: [(regex, order), …]}`: a name
            belongs to the first expression that matches its beginning; groups come in the order of the mapping, within
            one by the numbers that the expression catches and `order` adds; what nothing matches comes last. Or a
            function from a name to such an order.
        reverse: give `{name: number}` instead of `{number: [names]}`.
    """
    order_of = group_matcher if callable(group_matcher) else _order_by(group_matcher)
    by_order: dict[tuple[float, ...], list[str]] = defaultdict(list)
    for name in names:
        order = order_of(name)
        by_order[tuple(order) if isinstance(order, list | tuple) else (float(order),)].append(name)
    groups: dict[int, list[str]] = {}
    number = -1
    for order in sorted(by_order):
        if number < 0 or order[-1] != WITH_PREVIOUS:
            number += 1
        groups.setdefault(number, []).extend(by_order[order])
    return {name: n for n, members in groups.items() for name in members} if reverse else groups


def _order_by(matcher: Mapping[str, Any]) -> Callable[[str], tuple[float, ...]]:
    rules: list[tuple[int, re.Pattern[str], tuple[float, ...]]] = []
    for place, spec in enumerate(matcher.values()):
        for rule in [spec] if isinstance(spec, str) else spec:
            pattern, order = (rule, None) if isinstance(rule, str) else rule
            rules.append((place, re.compile(pattern), tuple(order or ())))

    def order_of(name: str) -> tuple[float, ...]:
        for place, pattern, order in rules:
            if match := pattern.match(name):
                return (place, *(float(text) for text in match.groups() if text), *order)
        return (float("inf"),)

    return order_of


def group_parameters(module: nn.Module, group_matcher: Matcher, *, reverse: bool = False) -> dict[Any, Any]:
    """The parameters of `module` by layer group, see `group_with_matcher`."""
    return group_with_matcher([name for name, _ in module.named_parameters()], group_matcher, reverse=reverse)


def group_modules(module: nn.Module, group_matcher: Matcher, *, reverse: bool = False) -> dict[Any, Any]:
    """The submodules that hold parameters themselves, by layer group, see `group_with_matcher`."""
    names = [name for name, part in module.named_modules() if any(True for _ in part.parameters(recurse=False))]
    return group_with_matcher(names, group_matcher, reverse=reverse)


def checkpoint_seq(
    functions: nn.Module | Sequence[Callable[..., Tensor]],
    x: Tensor,
    every: int = 1,
    flatten: bool = False,
    skip_last: bool = False,
    use_reentrant: bool = False,
) -> Tensor:
    """Run functions one after the other, keeping only what goes into every `every`-th of them for the backward pass.

    Args:
        functions: a Sequential or a sequence of callables; with `flatten` a sequence of sequences.
        skip_last: keep all of the last group, which the backward pass needs at once anyway.
    """
    parts: list[Any] = list(functions.children()) if isinstance(functions, nn.Module) else list(functions)
    if flatten:
        parts = list(chain.from_iterable(parts))
    for begin in range(0, len(parts), every):
        group = parts[begin : begin + every]
        if skip_last and begin + every >= len(parts):
            x = _run(group, x)
        else:
            x = checkpoint(_run, group, x, use_reentrant=use_reentrant)
    return x


def _run(parts: Sequence[Callable[..., Tensor]], x: Tensor) -> Tensor:
    for part in parts:
        x = part(x)
    return x
