"""Constructors whose arguments stand in a table, in the order in which code written for timm passes them."""

from collections.abc import Mapping
from inspect import Parameter, Signature
from typing import Any

from opsin.errors import check_known

__all__ = ["REQUIRED", "bind", "signature"]

REQUIRED = Parameter.empty


def signature(first: str, table: Mapping[str, Any]) -> Signature:
    """Of a call with the argument `first`, then those of the table, each of which may be passed by place or name."""
    kind = Parameter.POSITIONAL_OR_KEYWORD
    rest = [Parameter(name, kind, default=default) for name, default in table.items()]
    return Signature([Parameter(first, kind), *rest])


def bind(owner: str, made: Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Each argument's value by name, given or by default. Raises TypeError, with the nearest name if there is one."""
    check_known(kwargs, made.parameters, owner=owner)
    try:
        bound = made.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{owner}: {error}") from None
    bound.apply_defaults()
    return dict(bound.arguments)
