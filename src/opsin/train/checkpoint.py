"""The run directory: what a run leaves there, and how it goes on from it.

    config.yaml      the whole resolved configuration
    last.pt          everything that the run needs to go on: written whole or not at all (with shards: last-NUMBER/)
    best/            the best model as one artefact: `opsin.load("RUN/best")`
    history.csv      a row per epoch; history.jsonl the same, a line each
    log.jsonl        a line every few steps, and of an epoch's last

Nothing is written in place: a process killed at any moment leaves the state before or the one after. What was logged
after the last checkpoint is cut off when the run goes on, since it comes again.
"""

import csv
import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from opsin.errors import OpsinError, explained

__all__ = ["RunDirectory", "remove"]


class RunDirectory:
    """The files of one run, by the one process that writes them."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config, self.last, self.best = self.path / "config.yaml", self.path / "last.pt", self.path / "best"
        self.history, self.log, self.report = (
            self.path / "history.csv", self.path / "log.jsonl", self.path / "report.html",
        )  # fmt: skip
        self.history_lines = self.path / "history.jsonl"
        self.overwritten = self.path / ".overwritten"  # by which job
        self._lock = FileLock(self.path / ".lock")

    def open(self, *, overwrite: bool = False) -> None:
        """Make the directory and take it for this run; raises `OpsinError` where another process has it."""
        with explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise OpsinError(f"{self.path} is in use by another run; give this one another --output") from None
        for place, pattern in ((self.path, ".best.*.tmp"), (self.best, ".best.*.tmp"), (self.path, ".last-*.old")):
            for torn in place.glob(pattern):  # a killed run leaves these
                shutil.rmtree(torn)
        if overwrite and not self._overwritten():
            with explained(self.path):
                self._clear()

    def _clear(self) -> None:
        """Remove all that a run writes here, and nothing else. State and settings go last: a process killed before that
        leaves them together, for the next one to be refused or to begin anew as well."""
        for name in ("model.safetensors", "config.json"):
            (self.best / name).unlink(missing_ok=True)
        for file in (self.path / "tensorboard").glob("events.out.tfevents.*"):
            file.unlink()
        for folder in (self.best, self.path / "tensorboard"):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if (self.path / ".id-wandb").exists():
            shutil.rmtree(self.path / "wandb", ignore_errors=True)
        for pattern in ("failed-update-*-rank-*.pt", ".id-*"):
            for file in self.path.glob(pattern):
                file.unlink()
        shutil.rmtree(self.path / ".last.part", ignore_errors=True)
        files = (self.report, self.history, self.history_lines, self.log, self.last)
        for file in (*(self._part(file) for file in (*files, self.config)), *files):
            file.unlink(missing_ok=True)
        for folder in self.folders():
            remove(folder)
        self.config.unlink(missing_ok=True)
        job, _ = _job()
        if job:
            self.overwritten.write_text(job, encoding="utf-8")
        else:
            self.overwritten.unlink(missing_ok=True)

    @staticmethod
    def _part(path: Path) -> Path:
        """Where a file is written until it is whole."""
        return path.with_name(f".{path.name}.part")

    def _overwritten(self) -> bool:
        """Whether this job has begun anew here already, before its scheduler or torchrun started it again."""
        job, again = _job()
        return again and self.overwritten.exists() and self.overwritten.read_text(encoding="utf-8") == job

    def folders(self) -> list[Path]:
        """States of a run with shards, the newest last; see `opsin.train.sharded`."""
        return sorted(self.path.glob("last-[0-9]*"))

    def begun(self) -> bool:
        """Whether there is a state to go on from."""
        return self.last.exists() or bool(self.folders())

    def close(self) -> None:
        self._lock.release()

    def save(self, state: Mapping[str, Any], name: str = "last.pt") -> Path:
        """Replace `last.pt`, or what else is called. The bytes are on the disk before the old ones go."""
        path = self.path / name
        part = self._part(path)
        with explained(path, part):
            with part.open("wb") as file:
                torch.save(dict(state), file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        return path

    def load(self) -> dict[str, Any] | None:
        """The state of `last.pt`, or None where there is none."""
        if not self.last.exists():
            return None
        try:
            return torch.load(self.last, map_location="cpu", weights_only=True)
        except Exception as error:  # the reader fails in many ways on damaged input
            raise OpsinError(
                f"{self.last} cannot be read ({str(error).splitlines()[0][:120]}); --overwrite begins anew"
            ) from error

    # --- logs -------------------------------------------------------------------------------------------------------

    def add_log(self, row: Mapping[str, Any]) -> None:
        with explained(self.log), self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        if not self.log.exists():
            return []
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        """All epochs so far, columns in the order in which they first came."""
        columns = list(dict.fromkeys(key for row in rows for key in row))
        part = self._part(self.history)
        with explained(self.history, part):
            with part.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            part.replace(self.history)
        part = self.history_lines.with_name(".history.jsonl.part")
        odd = lambda value: isinstance(value, float) and not math.isfinite(value)  # noqa: E731  JSON has no NaN
        plain = [{name: None if odd(value) else value for name, value in row.items()} for row in rows]
        with explained(self.history_lines, part):
            part.write_text("".join(json.dumps(row) + "\n" for row in plain), encoding="utf-8")
            part.replace(self.history_lines)

    def cut_log(self, update: int) -> None:
        """Drop the lines of steps from `update` on, and a last line that was cut short."""
        if not self.log.exists():
            return
        kept = []
        for line in self.log.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                break
            if row["update"] < update:
                kept.append(line)
        part = self._part(self.log)
        with explained(self.log, part):
            part.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
            part.replace(self.log)


def _job() -> tuple[str, bool]:
    """The job that started this process, and whether it was started before: by its scheduler, else by torchrun."""
    kinds = (("SLURM_JOB_ID", "SLURM_RESTART_COUNT"), ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"))
    job = next((f"{name}={os.environ[name]}" for name, _ in kinds if name in os.environ), "")
    return job, any(os.environ.get(count, "0") != "0" for _, count in kinds)


def remove(folder: Path) -> None:
    """Remove a folder, of which no half is ever seen under its name."""
    aside = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside)
