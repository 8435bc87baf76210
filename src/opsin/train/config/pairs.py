"""Settings that are names with values of any kind, as words of a command line: `--model-args depths=[2,2] norm=bn`."""

from collections.abc import Sequence
from typing import Annotated, Any

import tyro
import yaml

__all__ = ["Pairs"]


def _parse(words: Sequence[str]) -> dict[str, Any]:
    pairs = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not (name and sign):
            raise ValueError(f"{word!r} is not NAME=VALUE")
        pairs[name] = _value(value)
    return pairs


def _value(text: str) -> Any:
    """What the text is in YAML; and 1e-3 a number, which YAML takes for a word."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} is no value: {error}") from None
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


Pairs = Annotated[
    dict[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME=VALUE …",
        instance_from_str=_parse,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda pairs: [f"{name}={value}" for name, value in pairs.items()],
    ),
]
