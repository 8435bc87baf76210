"""What stands above and below the pictures: the headline, what could not be read, and the settings."""

from typing import Any

import torch

from opsin.train.config import TrainConfig, to_dict
from opsin.train.loop import Run
from opsin.train.report.page import duration, number, percent, section, table, text

__all__ = ["headline", "score", "settings", "skipped"]

PLAIN = ("loss", "train_loss", "mae", "rmse", "r2")  # the other scores are shares of 1
LISTED = 200  # pictures that could not be read


def score(name: str, value: float) -> str:
    return number(value) if name.removeprefix("ema_").rpartition("/")[2] in PLAIN else percent(value, 2)


def headline(run: Run) -> str:
    """The model, the data, and the figures that people ask for first."""
    best, name = run.best_row(), run.task.metric
    row = run.history[-1]
    per_epoch = row["seconds"] / len(run.history)
    tiles = []
    if best:
        tiles.append((score(name, best[name]), f"best {name}", f"epoch {best['epoch']}", "main"))
    tiles += [
        (f"{len(run.history)} of {run.epochs}", "epochs", f"the last is epoch {row['epoch']}", ""),
        (duration(row["seconds"]), "of training", f"{duration(per_epoch)} an epoch", ""),
    ]
    rate = number(round(run.pictures / per_epoch)) if per_epoch else "?"
    params = sum(p.numel() for p in run.model.parameters())
    tiles += [
        (rate, "pictures a second", f"{number(run.pictures)} an epoch", ""),
        (short(params), "parameters", text(_device(run)), ""),
    ]
    boxes = "".join(
        f'<div class="tile {kind}"><b>{value}</b><span>{text(what)}</span><small>{more}</small></div>'
        for value, what, more, kind in tiles
    )
    classes = f", {number(run.task.outputs)} classes" if run.task.classes else ""
    kind = {"single": "one label a picture", "multi": "several labels a picture", "regression": "regression"}.get(
        run.task.kind, f"the heads {', '.join(text(name) for name, _ in run.task.each())}"
    )
    return (
        f'<header><p class="over">opsin · training report</p><h1>{text(run.config.model.model)}</h1>'
        f'<p class="sub">on <b>{text(run.config.data.data)}</b>: {kind}{classes}</p>'
        f'<div class="tiles">{boxes}</div></header>\n'
    )


def short(count: int) -> str:
    """A great number in three digits."""
    size, unit = next((s, u) for s, u in ((1e9, " G"), (1e6, " M"), (1e3, " k"), (1, "")) if count >= s or s == 1)
    return f"{count / size:.3g}{unit}"


def _device(run: Run) -> str:
    device = run.world.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    return f"on {run.world.size} × {name}" if run.world.size > 1 else f"on {name}"


def skipped(run: Run) -> str:
    """Pictures that could not be read."""
    if not run.skipped:
        return ""
    rows = [(text(name), text(reason)) for name, reason in list(run.skipped.items())[:LISTED]]
    note = f"The first {LISTED} of {number(len(run.skipped))}." if len(run.skipped) > LISTED else ""
    return section(
        f"Pictures that could not be read: {number(len(run.skipped))}", table(("picture", "reason"), rows), note=note
    )


def settings(run: Run) -> str:
    """The whole configuration; what differs from the defaults is marked."""
    usual, groups = to_dict(TrainConfig()), []
    for group, values in to_dict(run.config).items():
        rows = [
            (f'<td class="changed">{text(key)}</td>' if value != usual[group][key] else text(key), _plain(value))
            for key, value in values.items()
        ]
        groups.append(f"<div><h3>{text(group)}</h3>{table(('setting', 'value'), rows)}</div>")
    versions = f"opsin {text(_version())}, torch {text(torch.__version__)}"
    return section(
        "Settings", f'<div class="groups">{"".join(groups)}</div>', closed=True,
        note=f"Marked ones are not the defaults. The same in <code>config.yaml</code>. {versions}.",
    )  # fmt: skip


def _plain(value: Any) -> str:
    return "–" if value is None or value in ({}, []) else text(value)


def _version() -> str:
    import opsin

    return opsin.__version__
