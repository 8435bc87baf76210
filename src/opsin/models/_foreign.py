"""Model classes that are not opsin's `Model`: what can be told of their chain from their parts and `feature_info`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from opsin.errors import UnknownArgumentError
from opsin.models._chain import Stage
from opsin.models._model import Model

__all__ = ["check_output_fmt", "cut_chain", "drop_head", "input_channels"]


def check_output_fmt(model: nn.Module, output_fmt: str) -> None:
    if isinstance(model, Model):
        model.check_output_fmt(output_fmt)
    elif output_fmt not in ("NCHW", "NHWC"):
        raise UnknownArgumentError(f"output_fmt is NCHW or NHWC for {type(model).__name__}, not {output_fmt!r}")


def drop_head(model: nn.Module) -> None:
    """Remove the classifier where the model knows how."""
    if isinstance(model, Model):
        model.remove_head()
    elif hasattr(model, "reset_classifier"):
        model.reset_classifier(0, "")  # type: ignore[operator]


def input_channels(model: nn.Module) -> int:
    """Channels the first convolution takes."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return int(getattr(model, "in_chans", 0) or (first.in_channels if first is not None else 3))


def cut_chain(model: nn.Module, rows: Sequence[Mapping[str, Any]], last: int, flatten: bool) -> tuple[Stage, ...]:
    """What to run for the feature levels up to `last`, nothing behind it. `rows` is the model's feature_info.

    A module of another make is taken to run its children in the order they were made (with `flatten`, those of its
    Sequentials too), as its own forward does when it is built for this; a level must be the output of one of them.
    """
    if isinstance(model, Model):
        raise TypeError("opsin's own models declare their chain")
    parts = list(_parts(model, flatten))
    chain, begin = [], 0
    for row in rows[: last + 1]:
        name = row["module"]
        if name not in parts[begin:]:
            raise UnknownArgumentError(
                f"{type(model).__name__} has no part {name!r} in its row of parts ({', '.join(parts)}): "
                "take features with feature_cls='hook'"
            )
        end = parts.index(name) + 1
        chain.append(Stage(tuple(parts[begin:end]), row["num_chs"], row["reduction"], module=name))
        begin = end
    return tuple(chain)


def _parts(model: nn.Module, flatten: bool) -> Iterator[str]:
    for name, child in model.named_children():
        if flatten and isinstance(child, nn.Sequential):
            yield from (f"{name}.{inner}" for inner, _ in child.named_children())
        else:
            yield name
