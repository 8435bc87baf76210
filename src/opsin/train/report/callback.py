"""What a run tells the report, and when the file is written."""

import math
from typing import Any

from torch import Tensor

from opsin.data.loader import Batch, create_loader
from opsin.errors import explained
from opsin.train.loop import Callback, Run
from opsin.train.report.curves import curves, history
from opsin.train.report.examples import mistakes, samples
from opsin.train.report.judged import Judged
from opsin.train.report.page import page
from opsin.train.report.scores import scores
from opsin.train.report.summary import headline, settings, skipped

__all__ = ["Report"]

SAMPLES = 24


class Report(Callback):
    """Writes `report.html` into the run's directory after every epoch, so that an interrupted run has one too.

    It shows the validation of the best epoch. A run that goes on after an interruption shows that of its last epoch
    until a better one comes, since outputs are kept in memory alone. Each process keeps what it has judged; the first
    one writes what all have.
    """

    every_rank = True
    fresh: list[Judged]  # of the epoch at hand, on this process, one a head

    def __init__(self) -> None:
        self.shown: list[Judged] = []
        self.first_batch = self.details = ""

    def on_start(self, run: Run) -> None:
        self.fresh = nothing_yet(run)
        if not run.world.first:
            return
        splits = max(run.config.augment.aug_splits, 1)
        batch = first_pictures(run, SAMPLES // splits)
        self.first_batch = samples(run.task, batch, run.train_loader.preprocess, splits=splits)

    def on_eval_batch(self, run: Run, batch: Batch, outputs: Tensor) -> None:
        # of the model and its average that is kept which the deciding metric is of
        if run.judging == ("ema_" if run.task.metric.startswith("ema_") else ""):
            for judged, part in zip(self.fresh, run.task.parts(outputs, run.task.prepare(batch.targets)), strict=True):
                judged.add(batch, part)

    def on_epoch(self, run: Run, row: dict[str, Any]) -> None:
        whole, self.fresh = [judged.gather(run.world) for judged in self.fresh], nothing_yet(run)
        if not run.world.first:
            return
        best = run.best[0] if run.best else None
        if not self.shown or self.shown[0].epoch != best or row["epoch"] == best:
            self.shown = [judged for judged in whole if judged.count]
            self.details = "".join(scores(run, judged) + mistakes(run, judged) for judged in self.shown)
        self.write(run)

    def on_end(self, run: Run) -> None:
        if self.shown:  # a run that had ended before keeps the report that it has
            self.write(run)

    def write(self, run: Run) -> None:
        """Replace the file."""
        parts = (
            headline(run), curves(run), self.details, self.first_batch, history(run), skipped(run), settings(run),
        )  # fmt: skip
        path = run.directory.report
        part = path.with_name(f".{path.name}.part")
        with explained(path, part):
            part.write_text(page(f"{run.config.model.model} on {run.config.data.data}", parts), encoding="utf-8")
            part.replace(path)


def nothing_yet(run: Run) -> list[Judged]:
    return [Judged(task, run.epoch, name) for name, task in run.task.each()]


def first_pictures(run: Run, count: int) -> Batch | None:
    """The first samples of an epoch as training gets them; None where none can be read. The run's loader stays put."""
    loader = run.train_loader
    order = loader.plan.order if loader.plan is not None else None
    own = create_loader(
        loader.dataset, batch_size=min(count, loader.batch_size), preprocess=loader.preprocess, order=order,
        shuffle=order is None and loader.shuffle, seed=loader.seed, num_workers=0, erase=loader.erase, mix=loader.mix,
        sizes=loader.sizes, max_skips=math.inf,
    )  # fmt: skip
    return next(iter(own), None)
