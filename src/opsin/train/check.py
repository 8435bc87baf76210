"""What only the model itself can tell is wrong, told before anything is written."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from opsin.data.preprocess import Preprocess
from opsin.errors import OpsinError
from opsin.inference.predictor import model_name

__all__ = ["check_takes", "source_of", "wrong_values"]


def source_of(model: str) -> str:
    """The setting `model` as `create_model` takes it: a name as it is, a folder or a hub repository with its prefix."""
    return model if model.startswith("timm/") else model_name(model)


@contextmanager
def wrong_values(setting: str, values: Mapping[str, Any]) -> Iterator[None]:
    """Within it, an error of Python's own is told as one about these values, where there are any."""
    try:
        yield
    except OpsinError:
        raise
    except (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError, AssertionError) as error:
        if not values:
            raise
        said = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise OpsinError(f"no model can be built with {setting} {said}: {error}") from error


def check_takes(model: Any, fits: Sequence[Preprocess], name: str, device: torch.device) -> None:
    """Raise `OpsinError` unless the model takes pictures as training and validation prepare them; it stays as it is."""
    sizes = dict.fromkeys(fit.input_size for fit in fits)
    if len(sizes) > 1 and getattr(model.config, "img_size", None):
        raise OpsinError(
            f"{name} is built for one size of pictures: eval_img_size must be that of training, or left out"
        )
    training = model.training
    model.eval()
    for size in sizes:
        try:
            with torch.no_grad():  # not inference mode: what a model keeps from here on is learnt from later
                model(torch.zeros(1, *size, device=device))
        except OpsinError:
            raise
        except (ValueError, RuntimeError, AssertionError) as error:
            raise OpsinError(f"{name} does not take pictures of {'x'.join(map(str, size))}: {error}") from error
    model.train(training)
