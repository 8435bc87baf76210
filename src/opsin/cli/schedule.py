"""`opsin schedule`: what a learning rate will do, as a table and a picture."""

from pathlib import Path
from typing import Annotated, Any

import tyro

from opsin.bounds import Count, FromZero
from opsin.errors import OpsinError

__all__ = ["schedule"]

ROWS = 11  # of the table
# what the verb says itself
TAKEN = {
    "name": "NAME", "lr": "--lr", "optimizer": "opsin", "total": "--epochs", "total_steps": "--epochs",
    "warmup_steps": "--warmup-epochs", "warmup_lr": "--warmup-lr", "min_lr": "--min-lr",
    "steps_per_epoch": "--steps-per-epoch", "timm_epochs": "--timm-epochs",
}  # fmt: skip


def schedule(
    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NAME …]")] = ("cosine",),
    /,
    *,
    epochs: Count = 30,
    steps_per_epoch: Count = 100,
    lr: FromZero = 1e-3,
    warmup_epochs: FromZero = 2.0,
    warmup_lr: FromZero = 1e-6,
    min_lr: FromZero = 1e-6,
    timm_epochs: bool = False,
    plot: Path | None = None,
    options: tuple[str, ...] = (),
) -> int:
    """Show learning rates over a run.

    Args:
        names: schedules, side by side: constant, cosine, linear, poly, tanh, step, multistep, wsd, onecycle, plateau.
        epochs: of the run, warm-up included.
        steps_per_epoch: updates an epoch.
        lr: the full rate.
        warmup_epochs: in which it rises.
        warmup_lr: where it begins.
        min_lr: where it ends.
        timm_epochs: change the rate between epochs, as timm's schedulers do.
        plot: draw it into this file.
        options: other arguments of the schedules, as key=value (cycles=2, decay_updates=1000, milestones=300,600).
    """
    from rich.console import Console
    from rich.table import Table

    shaped = _options(options)
    if plot is not None and not plot.absolute().parent.is_dir():
        raise OpsinError(f"{plot}: there is no folder {plot.absolute().parent}")
    total = epochs * steps_per_epoch
    lines = {
        name: _rates(
            name, total, lr, warmup_steps=round(warmup_epochs * steps_per_epoch), warmup_lr=warmup_lr, min_lr=min_lr,
            steps_per_epoch=steps_per_epoch, timm_epochs=timm_epochs, **shaped,
        )
        for name in names
    }  # fmt: skip
    table = Table("epoch", "update", *names, box=None)
    for row in range(ROWS):
        update = round(row * (total - 1) / (ROWS - 1))
        table.add_row(
            f"{update / steps_per_epoch:.1f}", str(update), *(f"{line[update]:.2e}" for line in lines.values())
        )
    Console().print(table)
    if plot is not None:
        _draw(lines, steps_per_epoch, plot)
    return 0


def _rates(name: str, total: int, lr: float, **options: Any) -> list[float]:
    import torch

    from opsin.scheduler import create_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = create_scheduler(optimizer, name, total_steps=total, **options)
    return [scheduler.lr_at(update) for update in range(total)]


def _options(words: tuple[str, ...]) -> dict[str, Any]:
    """`key=value` words: whole numbers, fractions, lists of them with commas, or text."""
    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise OpsinError(f"an option is key=value, not {word!r}")
        if key in TAKEN:
            raise OpsinError(f"--options is not for {key}: {TAKEN[key]} says it")
        parts = [_value(part) for part in value.split(",")]
        found[key] = parts if len(parts) > 1 else parts[0]
    return found


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _draw(lines: dict[str, list[float]], steps_per_epoch: int, path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        raise OpsinError("drawing needs matplotlib: pip install matplotlib") from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), dpi=150)
    for name, line in lines.items():
        axes.plot([update / steps_per_epoch for update in range(len(line))], line, label=name)
    axes.set(xlabel="epoch", ylabel="learning rate")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise OpsinError(f"{path}: {str(error).splitlines()[0]}") from error
    finally:
        pyplot.close(figure)
    print(f"wrote {path}")
