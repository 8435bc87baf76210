"""Files of a training run as timm's scripts keep them: checkpoints, and a table of scores."""

import csv
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from opsin.errors import OpsinError
from opsin.integrations.timm_alias._utils import get_state_dict, unwrap_model
from opsin.train.checkpoint import explained
from opsin.weights.read import read_torch

__all__ = ["CheckpointSaver", "get_outdir", "resume_checkpoint", "trim_summary", "update_summary"]

ENDING = ".pth.tar"


class CheckpointSaver:
    """Keeps `last`, the `max_history` best as `checkpoint-EPOCH`, and `model_best`; `recovery-EPOCH-BATCH` in between,
    of which the last two are kept. Each file is there whole or not at all.

    Args:
        model, optimizer, args, model_ema, amp_scaler: what is saved; `args` are the options of the script.
        checkpoint_prefix, recovery_prefix, checkpoint_dir, recovery_dir: where.
        decreasing: whether a lower score is better.
        max_history: checkpoints to keep.
        unwrap_fn: takes the model out of what is wrapped around it.
        task: there is none in opsin.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        args: Any = None,
        model_ema: Any = None,
        amp_scaler: Any = None,
        checkpoint_prefix: str = "checkpoint",
        recovery_prefix: str = "recovery",
        checkpoint_dir: str = "",
        recovery_dir: str = "",
        decreasing: bool = False,
        max_history: int = 10,
        unwrap_fn: Callable[[Any], nn.Module] = unwrap_model,
        task: Any = None,
    ) -> None:
        if max_history < 1:
            raise OpsinError(f"CheckpointSaver keeps at least one checkpoint, not max_history={max_history}")
        if task is not None:
            raise OpsinError("opsin, which stands in for timm here, has no timm.task: pass the model itself")
        self.model, self.optimizer, self.args = model, optimizer, args
        self.model_ema, self.amp_scaler, self.unwrap_fn = model_ema, amp_scaler, unwrap_fn
        self.save_prefix, self.recovery_prefix, self.extension = checkpoint_prefix, recovery_prefix, ENDING
        self.checkpoint_dir, self.recovery_dir = checkpoint_dir, recovery_dir
        self.decreasing, self.max_history = decreasing, max_history
        self.checkpoint_files: list[tuple[str, float | None]] = []  # the best first
        self.best_epoch: int | None = None
        self.best_metric: float | None = None
        self.recovery_files: list[str] = []

    def _better(self, metric: float | None, than: float | None) -> bool:
        if metric is None or than is None:
            return metric is not None
        return metric < than if self.decreasing else metric > than

    def _write(self, path: str, epoch: int, metric: float | None) -> None:
        part = Path(f"{path}.part")
        with explained(Path(path), part):
            torch.save(self._state(epoch, metric), part)
            part.replace(path)

    def _state(self, epoch: int, metric: float | None) -> dict[str, Any]:
        state = {
            "epoch": epoch,
            "arch": getattr(self.args, "model", None) or type(self.unwrap_fn(self.model)).__name__.lower(),
            "state_dict": get_state_dict(self.model, self.unwrap_fn),
            "optimizer": self.optimizer.state_dict(),
            "version": 2,
        }
        if self.args is not None:
            state["args"] = self.args
        if self.amp_scaler is not None:
            state[self.amp_scaler.state_dict_key] = self.amp_scaler.state_dict()
        if self.model_ema is not None:
            state["state_dict_ema"] = get_state_dict(self.model_ema, self.unwrap_fn)
        return state if metric is None else state | {"metric": float(metric)}

    def save_checkpoint(self, epoch: int, metric: float | None = None) -> tuple[float | None, int | None]:
        """Save after an epoch with this score; returns the best score so far, and its epoch."""
        last = os.path.join(self.checkpoint_dir, f"last{ENDING}")
        self._write(last, epoch, metric)
        files = self.checkpoint_files
        if len(files) < self.max_history or metric is None or self._better(metric, files[-1][1]):
            for path, _ in files[self.max_history - 1 :]:
                Path(path).unlink(missing_ok=True)
            del files[self.max_history - 1 :]
            path = os.path.join(self.checkpoint_dir, f"{self.save_prefix}-{epoch}{ENDING}")
            _duplicate(last, path)
            behind = (i for i, (_, other) in enumerate(files) if self._better(metric, other) or other is metric is None)
            place = next(behind, len(files))
            files.insert(place, (path, metric))
        if metric is not None and self._better(metric, self.best_metric):
            self.best_epoch, self.best_metric = epoch, metric
            _duplicate(last, os.path.join(self.checkpoint_dir, f"model_best{ENDING}"))
        return (None, None) if self.best_metric is None else (self.best_metric, self.best_epoch)

    def save_recovery(self, epoch: int, batch_idx: int = 0) -> None:
        """Save within an epoch."""
        path = os.path.join(self.recovery_dir, f"{self.recovery_prefix}-{epoch}-{batch_idx}{ENDING}")
        self._write(path, epoch, None)
        self.recovery_files.append(path)
        for old in self.recovery_files[:-2]:
            Path(old).unlink(missing_ok=True)
        del self.recovery_files[:-2]

    def find_recovery(self) -> str:
        """The newest recovery file of the folder; an empty string where there is none."""
        found = Path(self.recovery_dir).glob(f"{self.recovery_prefix}-*{ENDING}")
        return str(max(found, key=lambda path: path.stat().st_mtime_ns, default=""))


def _duplicate(path: str, name: str) -> None:
    """A second name for a file, where the file system has that; or else a copy."""
    part = f"{name}.part"
    with explained(Path(name), Path(part)):
        Path(part).unlink(missing_ok=True)
        try:
            os.link(path, part)
        except OSError:
            shutil.copyfile(path, part)
        os.replace(part, name)


def resume_checkpoint(
    model: nn.Module,
    checkpoint_path: str | Path,
    optimizer: torch.optim.Optimizer | None = None,
    loss_scaler: Any = None,
    log_info: bool = True,
    weights_only: bool = True,
) -> int | None:
    """Load weights, and what is given of optimizer and scaler, from a checkpoint; returns the epoch to go on with, or
    None for a file that holds weights only."""
    if not weights_only:
        raise OpsinError("opsin reads checkpoints with weights_only=True and never runs code they hold")
    if not Path(checkpoint_path).is_file():
        raise FileNotFoundError(f"no checkpoint {checkpoint_path}")
    state = read_torch(Path(checkpoint_path))
    weights = state.get("state_dict", state)
    model.load_state_dict({key.removeprefix("module.").removeprefix("_orig_mod."): v for key, v in weights.items()})
    if weights is state:
        return None
    if optimizer is not None and "optimizer" in state:
        optimizer.load_state_dict(state["optimizer"])
    if loss_scaler is not None and loss_scaler.state_dict_key in state:
        loss_scaler.load_state_dict(state[loss_scaler.state_dict_key])
    if "epoch" not in state:
        return None
    epoch = state["epoch"] + (1 if state.get("version", 1) > 1 else 0)
    if log_info:
        logging.getLogger(__name__).info("%s: going on with epoch %s", checkpoint_path, epoch)
    return epoch


def get_outdir(path: str, *paths: str, inc: bool = False) -> str:
    """Make a folder; with `inc` a new one, numbered where that name is taken."""
    wanted = folder = os.path.join(path, *paths)
    number = 0
    while inc and os.path.exists(folder):
        number += 1
        folder = f"{wanted}-{number}"
    os.makedirs(folder, exist_ok=True)
    return folder


def update_summary(
    epoch: int,
    train_metrics: Mapping[str, Any],
    eval_metrics: Mapping[str, Any],
    filename: str | Path,
    lr: float | None = None,
    write_header: bool | None = None,
    log_wandb: bool = False,
) -> None:
    """Append the scores of an epoch to a table. `write_header`: None where there is no file yet. `log_wandb`: to the
    run that wandb has open as well."""
    row = {"epoch": epoch} | {f"train_{key}": value for key, value in train_metrics.items()}
    row |= {f"eval_{key}": value for key, value in eval_metrics.items()} | ({} if lr is None else {"lr": lr})
    if log_wandb:
        import wandb

        wandb.log(row)
    header = not os.path.exists(filename) if write_header is None else write_header
    with explained(Path(filename)), open(filename, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row)
        if header:
            writer.writeheader()
        writer.writerow(row)


def trim_summary(filename: str | Path, start_epoch: int) -> None:
    """Drop the rows from `start_epoch` on, for a run that goes on from there."""
    if not os.path.exists(filename):
        return
    with open(filename, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    kept = [row for i, row in enumerate(rows) if i == 0 or (row and int(row[0]) < start_epoch)]
    part = Path(f"{filename}.part")
    with explained(Path(filename), part):
        with part.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(kept)
        part.replace(filename)
