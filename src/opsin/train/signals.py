"""What ends a run from outside: a scheduler or a person asks it to (SIGTERM, SIGINT), or a process of it dies."""

import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import wraps
from types import FrameType
from typing import Any

import torch.distributed as dist

from opsin.data.workers import dead_worker
from opsin.errors import OpsinError, causes

__all__ = ["Stop", "explain_deaths"]


class Stop:
    """While it is entered, notes the first signal, so that the run can save and leave after the update at hand.

    One request may come several times, to the whole job and through the launcher: only a second Ctrl-C kills, and only
    one that a person gives. Schedulers have SIGKILL for that.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.at = 0.0  # when the first one came
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # only there can signals be caught
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) != signal.SIG_IGN:  # a shell has what runs in its background ignore SIGINT
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *what: object) -> None:
        self.release()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self.at = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self.at > 1.0:
            self.release()
            signal.raise_signal(number)

    def release(self) -> None:
        """Put back what handled the signals before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @property
    def wanted(self) -> bool:
        return self.signal is not None

    def now(self) -> None:
        """Leave, with the code that says which signal it was."""
        number = self.signal or signal.SIGTERM
        name = signal.Signals(number).name
        print(f"opsin: stopped by {name}; the same command, without --overwrite, goes on from here", file=sys.stderr)
        sys.exit(128 + number)


def explain_deaths(fit: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Let a run that lost one of its processes say so in one message, with what is to be done."""

    @wraps(fit)
    def explained(run: Any) -> Any:
        try:
            return fit(run)
        except Exception as error:
            if (death := _death(error)) is None:
                raise
            then = "goes on from the last checkpoint" if run.directory.begun() else "begins again"
            raise OpsinError(
                f"{death}. What {run.directory.path} holds is good: the same command, without --overwrite, {then}"
            ) from error

    return explained


def _death(error: BaseException) -> object | None:
    """What an error tells of a process that died, or one behind it: the death of a data worker may be heard of while a
    file is written."""
    for one in causes(error):
        if isinstance(one, RuntimeError) and (death := dead_worker(one) or _dead_rank(one)) is not None:
            return death
    return None


def _dead_rank(error: BaseException) -> str | None:
    """Gloo and NCCL say in many words that nobody answers."""
    if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
        return None
    said = re.sub(r"\[/\S*\] ?", "", str(error).splitlines()[0])  # where in the sources of gloo that is
    return f"another process of this run has ended or cannot be reached ({said[:80]})"
