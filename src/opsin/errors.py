"""The errors opsin raises: one clear message each, with the nearest right name or the fix."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "ImageError",
    "OpsinError",
    "UnknownArgumentError",
    "UnknownModelError",
    "WeightsError",
    "check_known",
    "did_you_mean",
]


class OpsinError(Exception):
    """Base of every error that opsin raises on purpose."""


class UnknownModelError(OpsinError, RuntimeError):
    """No model, weight tag or family has this name."""


class UnknownArgumentError(OpsinError, TypeError):
    """An argument that the called thing does not take."""


class WeightsError(OpsinError, RuntimeError):
    """Weights that cannot be found, read, trusted or fitted into the model."""


class ImageError(OpsinError, ValueError):
    """A picture that cannot be read or prepared; the message names the file."""


def did_you_mean(word: str, options: Iterable[str], *, limit: int = 3) -> str:
    """A question with the nearest of `options`, or an empty string when nothing is near."""
    near = get_close_matches(word, list(options), n=limit, cutoff=0.6)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def check_known(given: Iterable[str], known: Iterable[str], *, owner: str) -> None:
    """Raise `UnknownArgumentError` for the first of `given` that `owner` does not take."""
    known = list(known)
    for word in given:
        if word not in known:
            hint = did_you_mean(word, known) or f" It takes: {', '.join(known)}."
            raise UnknownArgumentError(f"{owner} takes no argument {word!r}.{hint}")
