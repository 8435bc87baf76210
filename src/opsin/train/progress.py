"""What a person sees while a run goes on: bars and a table in a terminal, plain lines anywhere else."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from opsin.data.dataset import ImageDataset
from opsin.train.loop import Callback, Run

__all__ = ["Terminal"]


def _step(run: Run) -> int:
    """Pictures of an update, or of all the epoch where that is fewer."""
    step, loader = run.config.data.batch_size * run.world.size, run.train_loader
    if isinstance(loader.dataset, ImageDataset):
        epoch = step * len(loader) if loader.drop_last else len(loader.dataset)
        return min(step * run.accumulate, epoch)
    return step * run.accumulate


class Terminal(Callback):
    """A bar for the epochs and one for the steps, a row per epoch; plain lines when the output is no terminal."""

    def __init__(self, *, stream: Any = None) -> None:
        self.console = Console(file=stream or sys.stderr)
        self.bars: Progress | None = None
        self.loss: float | None = None  # of all processes, as last logged
        self.before = 0.0  # pictures of the epoch at hand that another process has learnt from

    def on_start(self, run: Run) -> None:
        task, c = run.task, run.config
        known = f", {task.outputs} classes" if task.classes else ""
        known += f" {', '.join(name for name, _ in task.each())}" if task.heads else ""
        if run.epoch >= run.epochs or run.out_of_patience():
            said = "this run has ended, here are its scores: another --output repeats it, --overwrite begins anew"
            self.console.print(said, highlight=False, soft_wrap=True)
        elif run.update:
            self.console.print(f"going on at epoch {run.epoch}, update {run.update}", highlight=False)
        self.console.print(
            f"{c.model.model} on {c.data.data}: {task.kind}{known}, {run.epochs} epochs of {run.updates_per_epoch} "
            f"updates, {_step(run)} pictures each, on {run.world.device}; "
            f"files in {run.directory.path}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        self.before = run.loss_count
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                       TimeRemainingColumn(), TextColumn("{task.fields[said]}"))  # fmt: skip
            self.bars = Progress(*columns, console=self.console, transient=True)
            self.epochs = self.bars.add_task("epochs", total=run.epochs, completed=run.epoch, said="")
            done = max(run.update - run.epoch * run.updates_per_epoch, 0)
            self.steps = self.bars.add_task("updates", total=run.updates_per_epoch, completed=done, said="")
            self.bars.start()

    def on_update(self, run: Run, loss: float) -> None:
        if self.bars is not None:
            shown = loss if run.world.size == 1 else self.loss
            said = f"{'' if shown is None else f'loss {shown:.3f}  '}lr {run.lr:.1e}  {self.rate(run):.0f} images/s"
            self.bars.update(self.steps, advance=1, said=said)

    def on_log(self, run: Run, row: dict[str, Any]) -> None:
        self.loss = row["loss"]

    def rate(self, run: Run) -> float:
        """Pictures a second in this epoch, on all ranks: the others have as many as this one, or nearly."""
        pictures = (run.loss_count - self.before) / max(run.config.augment.aug_splits, 1)
        return pictures * run.world.size / (time.perf_counter() - run.clock)

    def on_epoch(self, run: Run, row: dict[str, Any]) -> None:
        self.before = 0.0
        if self.bars is not None:
            self.bars.update(self.steps, completed=0)
            self.bars.update(self.epochs, completed=run.epoch, said=f"best {run.task.metric} {run.best_score():.4g}")
        star = " *" if run.best and run.best[0] == row["epoch"] else ""
        shown = (
            "train_loss",
            "loss",
            run.task.metric,
            *run.task.main_scores(),
            *(k for k in ("top5", "ema_top1") if k in row),
        )
        scores = "  ".join(f"{name} {row[name]:.4f}" for name in dict.fromkeys(shown) if name in row)
        line = f"epoch {row['epoch']:>3}  {scores}  lr {row['lr']:.1e}  {row['seconds']:.0f} s{star}"
        self.console.print(line, highlight=False, soft_wrap=True)

    def on_end(self, run: Run) -> None:
        self.close()
        best = run.best_row()
        table = Table(title=f"best: epoch {best['epoch']}", title_justify="left", show_header=False)
        for name, value in best.items():
            if name != "epoch":
                table.add_row(name, f"{value:.4g}")
        self.console.print(table)
        if run.skipped:
            first = next(iter(run.skipped.values()))
            self.console.print(f"{len(run.skipped)} pictures could not be read, first: {first}", soft_wrap=True)
        self.console.print(f"the model: opsin predict --model {run.directory.best} PICTURES", highlight=False)

    def close(self) -> None:
        if self.bars is not None:
            self.bars.stop()
            self.bars = None
