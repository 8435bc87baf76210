"""The errors opsin raises: one clear message each, with the nearest right name or the fix."""

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

__all__ = [
    "DamagedError",
    "DeadWorkerError",
    "ImageError",
    "OpsinError",
    "UnknownArgumentError",
    "UnknownModelError",
    "WeightsError",
    "causes",
    "check_choice",
    "check_known",
    "check_place",
    "did_you_mean",
    "explained",
    "names_checked",
    "warn_user",
]

P = ParamSpec("P")
R = TypeVar("R")

MANY = 20  # more names than a person reads
PACKAGE = str(Path(__file__).parent)


class OpsinError(Exception):
    """Base of every error that opsin raises on purpose."""


class UnknownModelError(OpsinError, RuntimeError):
    """No model, weight tag or family has this name."""


class UnknownArgumentError(OpsinError, TypeError):
    """An argument that the called thing does not take."""


class WeightsError(OpsinError, RuntimeError):
    """Weights that cannot be found, read, trusted or fitted into the model."""


class DamagedError(WeightsError):
    """A file that is broken for every reader, or no weights at all: what was fetched is worth fetching again."""


class DeadWorkerError(OpsinError, RuntimeError):
    """A process that read pictures is no more."""


class ImageError(OpsinError, ValueError):
    """A picture that cannot be read or prepared; the message names the file."""


def did_you_mean(word: str, options: Iterable[str], *, limit: int = 3) -> str:
    """A question with the nearest of `options`, whatever their case, or an empty string when nothing is near."""
    lower = {option.lower(): option for option in reversed(list(options))}
    near = [lower[found] for found in get_close_matches(word.lower(), lower, n=limit, cutoff=0.6)]
    return f" Did you mean {' or '.join(near)}?" if near else ""


def check_choice(word: str, options: Iterable[str], *, what: str, where: str = "") -> None:
    """Raise `UnknownArgumentError` unless `word`, which says `what` (in the text `where`), is one of `options`."""
    options = list(options)
    if word not in options:
        hint = did_you_mean(word, options)
        if not hint and len(options) > MANY:
            near = get_close_matches(word, options, n=3, cutoff=0)
            hint = f" The nearest of {len(options)} are {', '.join(near)}."
        hint = hint or f" It can be {', '.join(options)}."
        raise UnknownArgumentError(f"no {what} {word!r}{f' (in {where!r})' if where else ''}.{hint}")


def check_known(given: Iterable[str], known: Iterable[str], *, owner: str) -> None:
    """Raise `UnknownArgumentError` for the first of `given` that `owner` does not take."""
    known = list(known)
    for word in given:
        if word not in known:
            hint = did_you_mean(word, known) or f" It takes: {', '.join(known)}."
            raise UnknownArgumentError(f"{owner} takes no argument {word!r}.{hint}")


def names_checked(fn: Callable[P, R]) -> Callable[P, R]:
    """Decorator: a keyword that `fn` does not take raises `UnknownArgumentError` with the nearest that it does."""
    known = list(inspect.signature(fn).parameters)

    @wraps(fn)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        check_known(kwargs, known, owner=fn.__name__)
        return fn(*args, **kwargs)

    return checked


def check_place(path: Path) -> None:
    """Raise `OpsinError` for a file that cannot be written where it is to be."""
    folder = path.absolute().parent
    if path.is_dir():
        raise OpsinError(f"{path} is a folder; name a file")
    if not folder.is_dir():
        raise OpsinError(f"{path}: there is no folder {folder}")
    if not os.access(folder, os.W_OK):
        raise OpsinError(f"{path}: the folder {folder} is not to be written to")


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line outside opsin that the call came from."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what caused it or was handled when it came, what caused that, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


@contextmanager
def explained(path: Path, part: Path | None = None) -> Iterator[None]:
    """Turn an error of the file system into one clear message, and leave no half of a file behind."""
    try:
        yield
    except OpsinError:
        raise
    except (OSError, RuntimeError) as error:  # torch's writer says RuntimeError where the disk is full
        if part is not None:
            part.unlink(missing_ok=True)
        raise OpsinError(f"{path} cannot be written ({_reason(error)}); what was there before is unharmed") from error


def _reason(error: BaseException) -> str:
    """What the system said."""
    for cause in causes(error):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]
