"""What every architecture config has in common."""

import inspect
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from numbers import Integral, Real
from types import NoneType
from typing import Any, Self, get_args

from opsin.errors import OpsinError, UnknownArgumentError, check_known
from opsin.layers.tuples import to_2tuple

__all__ = ["ModelConfig"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Figures of one architecture. Families add theirs; every field is also a keyword of the model class."""

    num_classes: int = 1000
    in_chans: int = 3
    global_pool: str = "avg"
    drop_rate: float = 0.0  # dropout before the classifier

    def __post_init__(self) -> None:
        for name, least in (("num_classes", 0), ("in_chans", 1)):
            object.__setattr__(self, name, _count(name, getattr(self, name), least))
        for f in fields(self):
            if f.name.endswith(("drop_rate", "drop_path_rate")):
                _check_rate(f.name, getattr(self, f.name))
        if (size := getattr(self, "img_size", None)) is not None:
            for side in to_2tuple(size):
                _count("img_size", side, 1)

    @classmethod
    def names(cls) -> list[str]:
        return [f.name for f in fields(cls)]

    @classmethod
    def make(cls, owner: str, **kwargs: Any) -> Self:
        """Build from keywords; an unknown one raises with the nearest right name.

        `None` stands for the default, but where the field's type names it.
        """
        check_known(kwargs, cls.names(), owner=owner)
        nullable = {f.name for f in fields(cls) if NoneType in get_args(f.type)}
        kwargs = {k: v for k, v in kwargs.items() if v is not None or k in nullable}
        missing = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
        missing = [name for name in missing if name not in kwargs]
        if missing:
            raise TypeError(f"{owner} needs {', '.join(missing)}")
        return cls(**kwargs)

    def override(self, owner: str, **kwargs: Any) -> Self:
        """A copy with changes. `None` stands for "as it was"; an unknown name raises with the nearest right one."""
        check_known(kwargs, self.names(), owner=owner)
        return replace(self, **{k: v for k, v in kwargs.items() if v is not None})

    def to_dict(self) -> dict[str, Any]:
        """The fields that differ from their defaults, ready for JSON."""
        return _changed(self)


def _count(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UnknownArgumentError(f"{name}={value!r}: give a whole number")
    if value < least:
        raise ValueError(f"{name}={value!r}: give a whole number from {least} on")
    return int(value)


def _check_rate(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UnknownArgumentError(f"{name}={value!r}: give a number from 0 to 1")
    if not 0 <= float(value) <= 1:
        raise ValueError(f"{name}={value!r}: give a number from 0 to 1")


def _changed(record: Any) -> dict[str, Any]:
    out = {}
    for f in fields(record):
        value = getattr(record, f.name)
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if default is MISSING or value != default:
            out[f.name] = _plain(value, f.name)
    return out


def _plain(value: Any, field: str) -> Any:
    """JSON form of a config value; classes go by their name, which families take as well."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Mapping):
        return {k: _plain(v, field) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, field) for v in value]
    if inspect.isclass(value):
        return value.__name__
    if is_dataclass(value):
        return _changed(value)
    raise OpsinError(f"config field {field}={value!r} cannot be written to a file; pass it by name instead")
