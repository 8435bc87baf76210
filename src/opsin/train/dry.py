"""`--dry-run`: two steps of everything, then the plan with an estimate of time and memory. Nothing is kept."""

import copy
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from opsin.optim import describe_groups
from opsin.train.build import build_run
from opsin.train.config import TrainConfig
from opsin.train.distributed import World

__all__ = ["dry_run"]

STEPS = 2


def dry_run(config: TrainConfig, world: World) -> int:
    """Build everything in a folder that goes away, make two updates and judge two batches, and print what was seen."""
    with tempfile.TemporaryDirectory() as folder:
        trial = copy.deepcopy(config)
        trial.run.output = Path(folder) / "run"
        run = build_run(trial, world)
        try:
            facts = _try(run)
        finally:
            run.directory.close()
        if world.first:
            console = Console()
            console.print(describe_groups(run.optimizer.param_groups))
            console.print(_plan(run, facts))
    return 0


def _try(run: Any) -> dict[str, float]:
    run.begin_epoch()
    ends = [time.perf_counter()]
    for update, batches in zip(range(STEPS), run.updates(), strict=False):
        run.scheduler.step(update)
        run.learn(batches)
        ends.append(time.perf_counter())
    run.model.eval()
    start = time.perf_counter()
    with run.gathered(run.model), torch.inference_mode():
        for _, batch in zip(range(STEPS), run.eval_loader, strict=False):
            run.task.metrics().update(run.model(batch.images), run.task.prepare(batch.targets))
    judged = (time.perf_counter() - start) / STEPS
    if run.world.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(run.world.device) / 2**30
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"update": ends[-1] - ends[-2], "eval": judged, "memory": memory}


def _teacher(distill: Any) -> dict[str, str]:
    if distill is None:
        return {}
    teacher = distill.teacher
    size = sum(p.numel() for p in teacher.model.parameters()) / 1e6
    return {"teacher": f"{teacher.source}, {size:.2f} M parameters, learnt by {distill.kind}"}


def _plan(run: Any, facts: dict[str, float]) -> Table:
    c = run.config
    try:
        judged: int | None = len(run.eval_loader)
    except TypeError:  # a stream that does not know
        judged = None
    epoch = facts["update"] * run.updates_per_epoch + facts["eval"] * (judged or 0)
    sizes = dict.fromkeys("x".join(map(str, one.preprocess.input_size)) for one in (run.train_loader, run.eval_loader))
    rows = {
        "model": f"{c.model.model}, {sum(p.numel() for p in run.model.parameters()) / 1e6:.2f} M parameters, "
        f"{sum(p.numel() for p in run.model.parameters() if p.requires_grad) / 1e6:.2f} M of them learn",
        "pictures": ", judged at ".join(sizes),
        "data": f"{len(run.train_loader)} training and {judged or '?'} validation batches on each of "
        f"{run.world.size} ranks",
        "task": f"{run.task.kind}, {run.task.outputs} outputs, best by {run.task.metric}",
        "loss": type(run.task.train_loss).__name__,
        **_teacher(run.distill),
        "optimizer": f"{c.optim.opt}, lr {c.optim.lr:g}, weight decay {c.optim.weight_decay:g}",
        "schedule": f"{c.schedule.sched}, {run.epochs} epochs of {run.updates_per_epoch} updates",
        "an update": f"{facts['update']:.3g} s",
        "an epoch": f"about {epoch:.0f} s",
        "the run": f"about {epoch * run.epochs / 60:.1f} minutes",
        "memory": f"{facts['memory']:.2f} GB at most so far",
    }
    table = Table(title="plan (nothing was kept)", title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table
