"""Interleaved comparison of two ways to do a thing, and how its results are shown."""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Row", "Worker", "compare", "markdown", "pin"]


@dataclass(frozen=True)
class Row:
    """Seconds (or another unit) of the peer and of ours; `ratio` is how many times less ours needs."""

    what: str
    peer: float
    ours: float
    low: float
    high: float
    unit: str = "ms"

    @property
    def ratio(self) -> float:
        return self.peer / self.ours


def pin() -> None:
    """One core and one thread for this process and its children."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


LOOP = """
import sys, time
for _ in sys.stdin:
    start = time.perf_counter()
    call()
    print(time.perf_counter() - start, flush=True)
"""


class Worker:
    """A process of its own for one side, for what is set for a whole process. Called, it runs `call` once: seconds.

    `code` defines `call` and gets `args` as `sys.argv[1:]`.
    """

    def __init__(self, code: str, *args: object) -> None:
        command = [sys.executable, "-c", code + LOOP, *map(str, args)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(
    what: str,
    peer: Callable[[], object],
    ours: Callable[[], object],
    *,
    rounds: int,
    measure: Callable[[Callable[[], object]], float] = seconds,
    scale: float = 1e3,
    unit: str = "ms",
    warm_up: bool = True,
) -> Row:
    """Measure both in turn, `rounds` times, swapping who goes first."""
    if warm_up:
        peer(), ours()
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(rounds):
        for side in (0, 1) if i % 2 == 0 else (1, 0):
            times[side].append(measure((peer, ours)[side]) * scale)
    ratios = sorted(a / b for a, b in zip(*times, strict=True))
    quartiles = statistics.quantiles(ratios, n=4) if rounds > 1 else [ratios[0]] * 3
    return Row(what, statistics.median(times[0]), statistics.median(times[1]), quartiles[0], quartiles[2], unit)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def markdown(title: str, rows: Sequence[Row], note: str = "") -> str:
    """A section with a table."""
    lines = [f"## {title}", ""] + ([note, ""] if note else [])
    lines += ["| what | timm | opsin | timm / opsin | quartiles |", "|---|---:|---:|---:|---:|"]
    for r in rows:
        sides = f"{_figure(r.peer)} {r.unit} | {_figure(r.ours)} {r.unit}"
        lines.append(f"| {r.what} | {sides} | **{_figure(r.ratio)}** | {_figure(r.low)} to {_figure(r.high)} |")
    return "\n".join(lines) + "\n"
