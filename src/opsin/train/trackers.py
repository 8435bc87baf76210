"""Sending the numbers of a run to TensorBoard, Weights & Biases or Trackio while it goes on.

Each is a package of its own, imported when a run asks for it. The updates of a run are the steps of its curves. A run
that goes on after an interruption goes on in the same curves.
"""

import uuid
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from opsin.errors import OpsinError, check_choice
from opsin.train.config import to_dict
from opsin.train.loop import Callback, Run

__all__ = ["TensorBoard", "Tracker", "Trackio", "Wandb", "create_trackers"]


class Tracker(Callback):
    """Sends loss and learning rate with each line of the log, and all scores after each epoch."""

    def send(self, values: Mapping[str, float], step: int) -> None:
        """Send numbers that belong to the first `step` updates."""
        raise NotImplementedError(f"{type(self).__name__} must define send(values, step)")

    def on_log(self, run: Run, row: dict[str, Any]) -> None:
        self.send({"train/loss": row["loss"], "train/lr": run.optimizer.param_groups[0]["lr"]}, run.update)

    def on_epoch(self, run: Run, row: dict[str, Any]) -> None:
        self.send({f"epoch/{name}": value for name, value in row.items()}, run.update)


class TensorBoard(Tracker):
    """Event files in the folder `tensorboard` of the run directory."""

    def __init__(self) -> None:
        _need("tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self.make = SummaryWriter
        self.writer: Any = None

    def on_start(self, run: Run) -> None:
        # steps after the checkpoint that a run goes on from are hidden: they come again
        self.writer = self.make(str(run.directory.path / "tensorboard"), purge_step=run.update + 1)

    def send(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def on_end(self, run: Run) -> None:
        self.writer.close()


class Wandb(Tracker):
    """A run at Weights & Biases, in the project of WANDB_PROJECT or else its own default."""

    package = "wandb"

    def __init__(self) -> None:
        self.api = _need(self.package)

    def on_start(self, run: Run) -> None:
        self.api.init(**self.place(run), config=to_dict(run.config), resume="allow")

    def place(self, run: Run) -> dict[str, str]:
        """Where the numbers go, as `init` takes it."""
        return {"name": run.directory.path.name, "id": self.mark(run), "dir": str(run.directory.path)}

    def mark(self, run: Run) -> str:
        """What tells this run from others of the same name: kept in its directory, new when it begins anew."""
        file = run.directory.path / f".id-{self.package}"  # `.wandb` would be a folder of wandb's own
        if not (run.update and file.exists()):
            file.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        return file.read_text(encoding="utf-8")

    def send(self, values: Mapping[str, float], step: int) -> None:
        self.api.log(dict(values), step=step)

    def on_end(self, run: Run) -> None:
        self.api.finish()


class Trackio(Wandb):
    """A run of Trackio on this machine, in the project `opsin`."""

    package = "trackio"

    def place(self, run: Run) -> dict[str, str]:
        return {"project": "opsin", "name": f"{run.directory.path.name}-{self.mark(run)}"}


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "trackio": Trackio, "wandb": Wandb}


def create_trackers(names: Sequence[str]) -> list[Tracker]:
    """Trackers by name: tensorboard, trackio, wandb.

    Raises:
        OpsinError: no such tracker, or its package is not installed.
    """
    for name in names:
        check_choice(name, TRACKERS, what="tracker")
    return [TRACKERS[name]() for name in dict.fromkeys(names)]


def _need(package: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise OpsinError(f"the tracker {package} needs a package that is not here: pip install {package}") from error
