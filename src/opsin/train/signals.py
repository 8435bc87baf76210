"""SIGTERM and SIGINT: a scheduler, or a person, asks the run to end."""

import signal
import sys
import threading
from types import FrameType

__all__ = ["Stop"]


class Stop:
    """Notes the first signal, so that the run can save and leave after the update at hand; a second one kills."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}
        if threading.current_thread() is threading.main_thread():  # only there can signals be caught
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.release()

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
