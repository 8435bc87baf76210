"""The processes that read pictures for a loader: whom they obey, how they end, and what is said when one dies."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.synchronize import Semaphore
from multiprocessing.util import Finalize
from typing import Any

from opsin.errors import DeadWorkerError

__all__ = ["bound_to", "broken_off", "dead_worker"]

GRACE = 2.0  # seconds in which torch hears of the death of a worker


def bound_to(owner: object, workers: int) -> Callable[[int], None]:
    """What each of the `workers` of `owner` does first (a `worker_init_fn`), so that it ends with it and not before.

    A scheduler or a terminal signals all processes of a job, but the parent decides what follows: a worker ends at once
    when its owner is no more, or within seconds when its parent is. Torch's own word may not reach it: where the owner
    is part of a cycle, the queue to the worker is closed first, and torch would wait five seconds for nothing.
    """
    ending = multiprocessing.Semaphore(0)
    Finalize(owner, _release, (ending, workers), exitpriority=1)  # before multiprocessing waits for them
    return partial(_begin, ending)


def _release(ending: Semaphore, workers: int) -> None:
    for _ in range(workers):
        ending.release()


def _begin(ending: Semaphore, worker: int) -> None:
    """In a worker."""

    def end() -> None:
        ending.acquire()
        os._exit(0)

    def report(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if not isinstance(error, ConnectionError | EOFError):  # a parent that leaves while it takes a batch says why
            sys.__excepthook__(kind, error, trace)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.excepthook = report
    threading.Thread(target=end, daemon=True).start()


def dead_worker(error: BaseException) -> DeadWorkerError | None:
    """What to raise for an error that tells of a worker's death. Torch raises it wherever the main thread happens to
    be."""
    if isinstance(error, DeadWorkerError):
        return error
    said = (str(error).splitlines() or [""])[0]
    if "exited unexpectedly" not in said and "is killed by signal" not in said:
        return None
    return _death(said)


def _death(said: str) -> DeadWorkerError:
    return DeadWorkerError(
        f"a data worker died ({said}), most often because memory ran out: use fewer workers or smaller batches"
    )


def broken_off() -> DeadWorkerError | None:
    """What to raise where the connection to a worker broke. It breaks just before torch hears of a death, which must be
    awaited, since torch would raise it later, in the middle of whatever then is done."""
    try:
        time.sleep(GRACE)
    except RuntimeError as error:
        return dead_worker(error)
    return _death("it exited unexpectedly")
