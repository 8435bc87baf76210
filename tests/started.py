"""Processes that need not import torch again: forked from a server that has, seconds sooner than a new interpreter.

What a fresh interpreter shows (imports, launchers, switches of the environment that libraries read when they are
imported) is tested with `subprocess`.
"""

import os
import sys
from multiprocessing import get_context, set_start_method
from pathlib import Path
from subprocess import TimeoutExpired
from tempfile import TemporaryDirectory

import torch

__all__ = ["OPSIN", "SERVER", "Started"]

SERVER = get_context("forkserver")
SERVER.set_forkserver_preload(["torch._dynamo", "opsin.train.build", "opsin.train.sharded", "started"])
OPSIN = "import sys; from opsin.cli import main; sys.exit(main())"  # the command, given its words


class Started:
    """A process that does what `python -c code *args` does. It is waited for, killed and heard like a `Popen` with
    pipes; `session` gives it a group of processes of its own."""

    def __init__(self, code: str, *args: str, env: dict[str, str] | None = None, session: bool = False) -> None:
        self.folder = TemporaryDirectory()
        what = (code, args, dict(os.environ if env is None else env), self.folder.name, session)
        self.process = SERVER.Process(target=_begin, args=what)
        self.process.start()
        assert self.process.pid
        self.pid = self.process.pid
        self.kill, self.terminate = self.process.kill, self.process.terminate

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise TimeoutExpired("python", timeout or 0)
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> list[str]:
        """What it said, on stdout and on stderr, once it has ended."""
        self.wait(timeout)
        return [Path(self.folder.name, name).read_text() for name in ("out", "err")]


def _begin(code: str, args: tuple[str, ...], env: dict[str, str], folder: str, session: bool) -> None:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    if session:
        os.setsid()
    os.environ.clear()
    os.environ |= env
    set_start_method("fork", force=True)  # of data workers, as in any process
    torch.set_num_threads(1)
    sys.argv = ["-c", *args]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
