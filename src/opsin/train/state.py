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
        "data": _data(run),
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
    else:
        run.world.share(lambda: _write(run, state))
    run.saved_at = time.perf_counter()


def _write(run: Any, state: dict[str, Any]) -> None:
    state |= {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}
    state |= {"projections": run.projections.state_dict(), "ema": run.ema.state_dict() if run.ema else None}
    run.directory.save(state)


def _own_buffers(run: Any) -> list[Tensor]:
    """What each rank has of its own, such as running statistics: of the model, then of the average."""
    if run.world.size == 1 or run.config.run.fsdp:  # in shards they are kept with these
        return []
    models = [run.model, *([run.ema.average] if run.ema else [])]
    return [buffer for model in models for buffer in model.buffers()]


def _data(run: Any) -> dict[str, Any]:
    """What must not change under a run: the meanings of its outputs, and how many pictures there are (None of a stream
    that does not know)."""
    heads = [(f"{head.name} ", head.classes) for head in run.task.heads] or [("", run.task.classes)]
    counts = {}
    for name, loader in (("training", run.train_loader), ("validation", run.eval_loader)):
        counts[name] = getattr(loader.dataset.reader, "length", None) if loader.plan is None else len(loader.dataset)
    return {"classes": {name: list(classes or ()) for name, classes in heads}, "pictures": counts}


def _check_data(run: Any, old: dict[str, Any]) -> None:
    """Raise `OpsinError` that says what has changed in the data since the run began."""
    new, changed = _data(run), []
    for head in old["classes"].keys() | new["classes"].keys():
        before, after = old["classes"].get(head, []), new["classes"].get(head, [])
        gone, more = ([one for one in a if one not in set(b)] for a, b in ((before, after), (after, before)))
        changed += [f"{head}classes that are gone: {_some(gone)}"] if gone else []
        changed += [f"new {head}classes: {_some(more)}"] if more else []
        if before != after and not (gone or more):
            changed.append(f"the {head}classes have another order")
    for split, count in old["pictures"].items():
        if count != new["pictures"][split]:
            changed.append(f"{count} pictures for {split} were there, now {new['pictures'][split]}")
    if changed:
        raise OpsinError(
            f"the data is not what the run in {run.directory.path} began with ({'; '.join(changed)}). Bring it back as "
            "it was, give another --output, or --overwrite to begin anew"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


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
    _check_data(run, state["data"])
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
