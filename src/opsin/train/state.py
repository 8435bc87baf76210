"""Everything that a run needs to go on, written and read back: weights, average, optimizer, place in the schedule and
the epoch, and what each process has of its own (random states, running statistics, its share of the data)."""

import time
from typing import Any

from torch import Tensor

from opsin.errors import OpsinError
from opsin.train.distributed import get_random_state, set_random_state

__all__ = ["resume", "save"]


def save(run: Any) -> None:
    """Write everything that the run needs to go on."""
    own = {
        "random": get_random_state(),
        "loader": run.train_loader.state_dict(),
        "buffers": [buffer.cpu() for buffer in _own_buffers(run)],
    }
    ranks = run.world.gather(own | {"loss": [run.loss_sum, run.loss_count, run.loss_last]})
    state = {
        "world_size": run.world.size,
        "epoch": run.epoch,
        "update": run.update,
        "seconds": run.seconds + time.perf_counter() - run.clock,
        "scheduler": run.scheduler.state_dict(),
        "scaler": run.scaler.state_dict(),
        "history": run.history,
        "best": list(run.best) if run.best else None,
        "ranks": ranks,
    }
    if run.config.run.fsdp:
        from opsin.train import sharded

        sharded.save(run, state)
    elif run.world.first:
        state |= {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}
        state |= {"projections": run.projections.state_dict()}
        run.directory.save(state | {"ema": run.ema.state_dict() if run.ema else None})
    run.saved_at = time.perf_counter()


def _own_buffers(run: Any) -> list[Tensor]:
    """What each rank has of its own, such as running statistics: of the model, then of the average."""
    if run.world.size == 1 or run.config.run.fsdp:  # in shards they are kept with these
        return []
    models = [run.model, *([run.ema.average] if run.ema else [])]
    return [buffer for model in models for buffer in model.buffers()]


def resume(run: Any) -> None:
    """Go on where the last checkpoint stands, if there is one."""
    if run.config.run.fsdp:
        from opsin.train import sharded

        state = sharded.read(run.directory)
    else:
        state = run.directory.load()
    if state is None:
        if run.world.first:
            run.directory.cut_log(0)  # of a run that was killed before its first checkpoint
        return
    if state["world_size"] != run.world.size:
        raise OpsinError(
            f"the run in {run.directory.path} was made by {state['world_size']} processes and goes on with as "
            f"many, not {run.world.size}"
        )
    if run.config.run.fsdp:
        sharded.restore(run, state)
    else:
        run.model.load_state_dict(state["model"])
        run.projections.load_state_dict(state["projections"])
        run.optimizer.load_state_dict(state["optimizer"])
        if run.ema is not None:
            run.ema.load_state_dict(state["ema"])
    run.scheduler.load_state_dict(state["scheduler"])
    run.scaler.load_state_dict(state["scaler"])
    run.epoch, run.update, run.seconds, run.history = (
        state["epoch"], state["update"], state["seconds"], state["history"],
    )  # fmt: skip
    run.best = (int(state["best"][0]), state["best"][1]) if state["best"] else None
    own = state["ranks"][run.world.rank]
    for place, value in zip(_own_buffers(run), own["buffers"], strict=True):
        place.copy_(value)
    run.train_loader.load_state_dict(own["loader"])
    run.skipped = {name: reason for rank in state["ranks"] for name, reason in rank["loader"]["skipped"].items()}
    run.loss_sum, run.loss_count, run.loss_last = own["loss"]
    if run.world.first:
        # the last line of an epoch, where the log is not due, comes again if the epoch has not ended
        run.directory.cut_log(run.update - bool(run.loss_count and run.update % run.config.run.log_every))
    set_random_state(own["random"])
