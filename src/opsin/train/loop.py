"""The training loop.

`fit` is the loop on one screen; `Run` holds the parts it moves, each of which may be replaced before. What a callback
can do: see `Callback`.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from opsin.data.loader import Batch, Loader
from opsin.errors import OpsinError
from opsin.train.checkpoint import RunDirectory
from opsin.train.config import TrainConfig
from opsin.train.distill import Distillation
from opsin.train.distributed import World
from opsin.train.ema import Ema
from opsin.train.freeze import average_gradients, freeze, frozen_stages
from opsin.train.guard import FIRST_SCALE, LEAST_SCALE, check_end, check_loss, fail, finite
from opsin.train.second_order import curvature
from opsin.train.signals import Stop, explain_deaths
from opsin.train.state import resume, save
from opsin.train.task import Task

__all__ = ["Callback", "Run", "fit"]

POLL_SECONDS = 2.0  # between two times that ranks ask each other whether one was told to stop


class Callback:
    """Something that is told how a run goes. Override what you need; `run` may be read and changed.

    Only the first process tells its callbacks, but for those of `every_rank`, which may gather what each process has
    seen: all are told the same at the same time, except that their shares of the validation set have as many batches
    as they have.
    """

    every_rank = False

    def on_start(self, run: "Run") -> None: ...

    def on_update(self, run: "Run", loss: float) -> None:
        """After each update; `loss` is that of this process' batches."""

    def on_log(self, run: "Run", row: dict[str, Any]) -> None:
        """After a line of the log, which every `log_every`-th update and the last of an epoch have: its number, epoch,
        loss (the mean of all processes) and lr."""

    def on_eval_batch(self, run: "Run", batch: Batch, outputs: Tensor) -> None: ...

    def on_epoch(self, run: "Run", row: dict[str, Any]) -> None: ...

    def on_end(self, run: "Run") -> None: ...


@explain_deaths
def fit(run: "Run") -> dict[str, Any]:
    """Train until the last epoch, or until nothing gets better; returns the best epoch's scores.

    A run that was interrupted goes on where its last checkpoint stands, to the same weights.
    """
    with run.stop:
        resume(run)
        run.tell("on_start")
        while run.epoch < run.epochs and not run.out_of_patience():
            run.begin_epoch()
            for batches in run.updates():
                run.scheduler.step(run.update)
                loss = run.learn(batches)
                run.after_update(loss)
            run.after_epoch(run.judge())
        check_end(run)
        run.tell("on_end")
    return run.best_row()


class Run:
    """All parts of a run.

    Args:
        config: the settings.
        world: this process among all.
        directory: where files go.
        task: what is learnt.
        model: the bare model, on its device; `forward` is what is called to train it: the model, compiled or wrapped.
        optimizer, scheduler: as `opsin.optim` and `opsin.scheduler` make them.
        train_loader, eval_loader: batches.
        ema: the average, if there is one.
        distill: the teacher and the loss with it, if there is one.
        callbacks: told of all that happens.

    After each epoch `pictures` says how many it learnt from, and `skipped` what could not be read so far (name ->
    reason), both on all processes together. `judging` is what the names of the scores at hand begin with: "" while the
    model is judged, "ema_" while its average is.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        world: World,
        directory: RunDirectory,
        task: Task,
        model: nn.Module,
        forward: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        train_loader: Loader,
        eval_loader: Loader,
        ema: Ema | None = None,
        clip: Any = None,
        amp_dtype: torch.dtype | None = None,
        distill: Distillation | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.config, self.world, self.directory, self.task = config, world, directory, task
        self.model, self.forward, self.ema, self.clip = model, forward, ema, clip
        self.distill, self.learner = distill, distill.learner if distill else model
        self.projections = distill.projections if distill else nn.ModuleList()
        self.scheduler, self._optimizer = scheduler, optimizer
        self.train_loader, self.eval_loader = train_loader, eval_loader
        self.amp_dtype, self.callbacks = amp_dtype, list(callbacks)
        self.scaler = torch.amp.GradScaler(world.device.type, FIRST_SCALE, enabled=amp_dtype == torch.float16)
        self.epochs, self.accumulate = config.schedule.epochs, config.optim.accumulate
        self.epoch = self.update = 0  # what comes next
        self.loss_sum = self.loss_count = 0.0  # over the epoch so far, on this rank
        self.loss_last = math.nan  # of the last update, on this rank
        self.pictures, self.judging = 0, ""
        self.skipped: dict[str, str] = {}
        self.seconds, self.clock = 0.0, time.perf_counter()
        self.history: list[dict[str, Any]] = []
        self.best: tuple[int, float] | None = None  # epoch and score
        self.saved_at = time.perf_counter()
        self.polled, self.poll_at = (0, 0.0), 0  # update and time of the last poll; update of the next
        self.stop = Stop()

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Where another one is set, the scheduler goes on with that: its rates are the full ones."""
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = self.scheduler.optimizer = optimizer

    @property
    def second_order(self) -> bool:
        """Whether gradients are differentiated once more."""
        return getattr(self.optimizer, "is_second_order", False)

    @property
    def updates_per_epoch(self) -> int:
        return math.ceil(len(self.train_loader) / self.accumulate)

    @property
    def lr(self) -> float:
        """The rate of the last update, without the scales of its groups."""
        return self.scheduler.lr_at(max(self.update - 1, 0))

    def tell(self, event: str, *values: Any) -> None:
        for callback in self.callbacks:
            if self.world.first or callback.every_rank:
                getattr(callback, event)(self, *values)

    # --- training ---------------------------------------------------------------------------------------------------

    def begin_epoch(self) -> None:
        self.clock = time.perf_counter()
        self.polled, self.poll_at = (self.update, self.clock), self.update + 1
        self.forward.train()
        self.thaw()
        off = self.config.augment.mixup_off_epoch
        if off and self.epoch >= off:
            self.train_loader.mix = None

    def thaw(self) -> None:
        """Set one more stage free when its time has come."""
        m = self.config.model
        if not (m.freeze and m.unfreeze_epochs):
            return
        before = sum(p.requires_grad for p in self.model.parameters())
        freeze(self.model, frozen_stages(len(self.model.feature_levels()), m.freeze, m.unfreeze_epochs, self.epoch))  # type: ignore[operator]
        more = sum(p.requires_grad for p in self.model.parameters()) > before
        if more and isinstance(self.forward, DistributedDataParallel):
            self.forward = average_gradients(self.forward.module, self.world)

    def updates(self) -> Iterator[list[Batch]]:
        """The batches of one update after the other, as many on each rank, until one of them has no more.

        A whole step must be made by all ranks or by none. Shares of a stream differ, and so do those of any data where
        not one picture of a batch can be read.
        """
        loader = self.train_loader
        batches = iter(loader if loader.epoch == self.epoch else ())  # it may have ended before an interruption
        while True:
            group = list(islice(batches, self.accumulate))
            if not (size := self.world.least(len(group))):
                break
            yield group[:size]
        loader.go_to(self.epoch + 1)
        if not self.loss_count:
            raise OpsinError(
                f"{loader.dataset.reader}: epoch {self.epoch} gave nothing to learn from: on some rank no picture can "
                f"be read, or none of its {loader.workers} shares of the stream (one a worker) fills a batch of "
                f"{loader.batch_size}; fewer --workers or a smaller --batch-size help then"
            )

    def learn(self, batches: list[Batch]) -> float:
        """One update: forward and backward for each batch, then a step. Returns the mean loss."""
        with curvature() if self.second_order else nullcontext():
            return self._learn(batches)

    def _learn(self, batches: list[Batch]) -> float:
        total, mean = sum(len(batch.images) for batch in batches), 0.0
        for i, batch in enumerate(batches):
            share = len(batch.images) / total
            last = i == len(batches) - 1
            with nullcontext() if last else getattr(self.forward, "no_sync", nullcontext)():
                loss = self.loss_of(batch) * share
                value = loss.item()
                if not math.isfinite(value):
                    fail(self, f"the loss became {value / share}", [batch])
                self.scaler.scale(loss).backward(create_graph=self.second_order)
            mean += value
        self.scaler.unscale_(self.optimizer)
        length = self.clip(self.learner) if self.clip is not None else None
        if not self.scaler.is_enabled() and not finite(self, length):  # with float16 such a step is left out
            fail(self, "the gradient became infinite or no number", batches)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.is_enabled() and self.scaler.get_scale() < LEAST_SCALE:
            fail(self, "the gradient is infinite or no number in float16, however the loss is scaled,", batches)
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.model)
        self.loss_sum += mean * total
        self.loss_count += total
        return mean

    def loss_of(self, batch: Batch) -> Tensor:
        with torch.autocast(self.world.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
            targets = self.task.prepare(batch.targets)
            if self.distill is not None:
                return self.distill.loss(self.forward, batch.images, targets)
            return self.task.train_loss(self.forward(batch.images), targets)

    def after_update(self, loss: float) -> None:
        self.update, self.loss_last = self.update + 1, loss
        every = self.config.run.log_every
        if self.update % every == 0:
            self.log()
        self.tell("on_update", loss)
        if self.world.size == 1 or self.update >= self.poll_at:
            self.poll()

    def poll(self) -> None:
        """Save when it is time to, and leave where a rank was told to. That takes messages, so ranks agree after how
        many updates they do so again: as many as the slowest makes in a few seconds."""
        now, every = time.perf_counter(), self.config.run.save_every
        rate = (self.update - self.polled[0]) / max(now - self.polled[1], 1e-9)
        self.polled = self.update, now
        self.poll_at = self.update + max(self.world.least(int(rate * min(POLL_SECONDS, every))), 1)
        if self.world.any(self.world.first and now - self.saved_at >= every):
            save(self)
        self.leave_if_told()

    def leave_if_told(self) -> None:
        """Save and leave where any rank got a signal."""
        if self.world.any(self.stop.wanted):
            save(self)
            self.world.wait()  # all leave together, see `connect`
            self.stop.now()

    def log(self) -> None:
        """A line about the last update: the mean loss of all ranks."""
        loss = self.world.sum(torch.tensor(self.loss_last, dtype=torch.float64)).item() / self.world.size
        row = {"update": self.update - 1, "epoch": self.epoch, "loss": loss, "lr": self.lr}
        if self.world.first:
            self.directory.add_log(row)
        self.tell("on_log", row)

    # --- evaluation -------------------------------------------------------------------------------------------------

    def judge(self) -> dict[str, Any]:
        """Scores on the validation set, of the average too."""
        self.leave_if_told()
        self.seconds += time.perf_counter() - self.clock
        if self.update % self.config.run.log_every:
            self.log()
        loss, count = self.world.sum(torch.tensor([self.loss_sum, self.loss_count], dtype=torch.float64)).tolist()
        self.pictures = int(count) // max(self.config.augment.aug_splits, 1)
        row = {"epoch": self.epoch, "lr": self.lr, "train_loss": loss / count} | self.score(self.model)
        if self.ema is not None:
            row |= self.score(self.ema.average, "ema_")
        for skipped in self.world.gather({**self.train_loader.skipped, **self.eval_loader.skipped}):
            self.skipped |= skipped
        self.clock = time.perf_counter()
        self.leave_if_told()
        return row | {"seconds": round(self.seconds, 2)}

    def score(self, model: nn.Module, prefix: str = "") -> dict[str, float]:
        """Loss and metrics over the whole validation set, on all ranks together."""
        self.judging = prefix
        with self.gathered(model), torch.inference_mode():
            return {f"{prefix}{name}": value for name, value in self._score(model).items()}

    def gathered(self, model: nn.Module) -> AbstractContextManager[None]:
        """Ranks need not keep step while they have a sharded model whole; any other model is so always."""
        if not self.config.run.fsdp:
            return nullcontext()
        from opsin.train.sharded import gathered

        return gathered(model)

    def _score(self, model: nn.Module) -> dict[str, float]:
        self.average_batch_norm(model)
        model.eval()
        metrics, loss, count = self.task.metrics(), 0.0, 0
        for batch in self.eval_loader:
            if self.stop.wanted:  # leave before a scheduler kills: what is judged counts for nothing then
                break
            targets = self.task.prepare(batch.targets)
            with torch.autocast(self.world.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
                outputs = model(batch.images).float()
            loss += self.task.eval_loss(outputs, targets).item() * len(targets)
            count += len(targets)
            metrics.update(self.task.in_units(outputs), self.task.in_units(targets))
            self.tell("on_eval_batch", batch, outputs)
        if self.world.any(self.stop.wanted):
            return {}
        self.eval_loader.epoch = 0  # each evaluation is the same
        totals = self.world.sum(torch.tensor([loss, count], dtype=torch.float64)).tolist()
        if not totals[1]:
            raise OpsinError(f"{self.eval_loader.dataset.reader}: not one picture of the validation set could be read")
        check_loss(self, loss := totals[0] / totals[1])
        return {"loss": loss, **metrics.compute(self.world)}

    def average_batch_norm(self, model: nn.Module) -> None:
        """Let all ranks judge with the same running statistics: their mean."""
        if self.world.size > 1:
            for name, buffer in model.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    self.world.sum(buffer).div_(self.world.size)

    def after_epoch(self, row: dict[str, Any]) -> None:
        if (score := row.get(self.task.metric)) is None:
            raise OpsinError(f"nothing that could be read for validation has a label for {self.task.metric}")
        better = self.task.better(score, self.best[1] if self.best else None)
        if self.best and score == self.best[1]:  # of two with the same score the one with the lower loss
            loss = "ema_loss" if self.task.metric.startswith("ema_") else "loss"
            better = row[loss] < self.history[self.best[0]][loss]
        if better:
            self.best = (self.epoch, score)
        self.scheduler.judge(score, self.update)
        self.history.append(row)
        self.epoch += 1
        self.loss_sum = self.loss_count = 0.0
        if better:
            self.save_best()
        self.world.share(lambda: self.directory.write_history(self.history))
        save(self)
        self.tell("on_epoch", row)

    def out_of_patience(self) -> bool:
        patience = self.config.run.patience
        return bool(patience and self.best and self.epoch - 1 - self.best[0] >= patience)

    def best_score(self) -> float:
        return self.best[1] if self.best else math.nan

    def best_row(self) -> dict[str, Any]:
        return self.history[self.best[0]] if self.best else {}

    def save_best(self) -> None:
        from opsin.train.artefact import save_artefact

        averaged = self.ema is not None and self.task.metric.startswith("ema_")
        save_artefact(self, self.ema.average if averaged and self.ema else self.model)
