"""SIGTERM and SIGINT: a scheduler, or a person, asks the run to end."""

import signal
import sys
import threading
import time
from types import FrameType

__all__ = ["Stop"]


class Stop:
    """Notes the first signal, so that the run can save and leave after the update at hand.

    One request may come several times, to the whole job and through the launcher: only a second Ctrl-C kills, and only
    one that a person gives. Schedulers have SIGKILL for that.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.at = 0.0  # when the first one came
        self._before: dict[int, object] = {}
        if threading.current_thread() is threading.main_thread():  # only there can signals be caught
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self.at = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self.at > 1.0:
            self.release()
            signal.raise_signal(number)

    def release(self) -> None:
        """Put back what handled the signals before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
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
