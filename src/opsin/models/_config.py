"""What every architecture config has in common."""

import inspect
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import Any, Self

from opsin.errors import OpsinError, check_known

__all__ = ["ModelConfig"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Figures of one architecture. Families add theirs; every field is also a keyword of the model class."""

    num_classes: int = 1000
    in_chans: int = 3
    global_pool: str = "avg"
    drop_rate: float = 0.0  # dropout before the classifier

    @classmethod
    def names(cls) -> list[str]:
        return [f.name for f in fields(cls)]

    @classmethod
    def make(cls, owner: str, **kwargs: Any) -> Self:
        """Build from keywords; an unknown one raises with the nearest right name."""
        check_known(kwargs, cls.names(), owner=owner)
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
