"""What stops a run that has gone astray: numbers that are none, and nothing learnt."""

import math
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from opsin.data.loader import Batch
from opsin.errors import OpsinError
from opsin.train.distributed import local

__all__ = ["FIRST_SCALE", "LEAST_SCALE", "check_end", "check_loss", "fail", "finite"]

# Of the loss in float16: halved by each gradient that is infinite or no number, whose update is left out. What fits in
# float16 at the least of them, 30 halvings on, is up to 1e9: a gradient that does not is not one that scaling can mend.
FIRST_SCALE, LEAST_SCALE = 2.0**16, 2.0**-14


@torch.no_grad()
def finite(run: Any, length: Tensor | None) -> bool:
    """Whether the gradient has a finite length: any other spoils the weights one update before a loss shows it.

    `length` is what clipping by norm has found already.
    """
    if length is None or run.config.run.fsdp:
        grads = local({name: p.grad for name, p in run.learner.named_parameters() if p.grad is not None})
        length = nn.utils.get_total_norm(grads.values())
    wrong = not math.isfinite(length.item())
    return not (run.world.any(wrong) if run.config.run.fsdp else wrong)  # all ranks have the same unless sharded


def fail(run: Any, what: str, batches: list[Batch]) -> NoReturn:
    """Keep what led to a number that is none, and stop."""
    content: dict[str, Any] = {"model": local(run.model.state_dict()), "update": run.update}
    content |= {name: [getattr(batch, name) for batch in batches] for name in ("images", "targets", "indices")}
    name = f"failed-update-{run.update}-rank-{run.world.rank}.pt"
    try:
        kept = f"The pictures and the weights before it are in {run.directory.save(content, name)}"
    except OpsinError as error:
        kept = str(error)
    raise OpsinError(
        f"{what} in update {run.update} (epoch {run.epoch}, lr {run.lr:.2e}). {kept}. A lower lr, a longer warm-up or "
        "--clip-grad usually helps"
    )


def check_loss(run: Any, loss: float) -> None:
    """Raise `OpsinError` for a loss on the validation set that is no number."""
    if not math.isfinite(loss):
        raise OpsinError(
            f"the loss of {'the average' if run.judging else 'the model'} on the validation set became {loss} in "
            f"epoch {run.epoch} (lr {run.lr:.2e}); {run.directory.path} keeps what it had before. A lower lr, a longer "
            "warm-up or --clip-grad usually helps; in place of float16, --amp bfloat16"
        )


def check_end(run: Any) -> None:
    """Raise `OpsinError` for a run that has come to its end for nothing."""
    if run.best is None:
        raise OpsinError(
            f"no epoch had a {run.task.metric} that is a number, so none is the best: take another --metric. The "
            f"weights of the last epoch are in {run.directory.path}"
        )
    if run.update and run.scaler.is_enabled() and run.scaler.get_scale() <= FIRST_SCALE * 0.5**run.update:
        raise OpsinError(
            f"nothing was learnt: the gradient was infinite or no number in float16 in each of {run.update} "
            "updates, which were left out. --amp bfloat16 or none tells whether it is the format"
        )
