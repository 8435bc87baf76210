"""How the run went: loss, scores, learning rate and time over the epochs."""

from itertools import pairwise
from typing import Any

from opsin.train.loop import Run
from opsin.train.report.charts import Series, line_chart
from opsin.train.report.page import card, section, table, text
from opsin.train.report.summary import score

__all__ = ["curves", "history"]

X = "epochs done"
ALONE = ("epoch", "lr", "train_loss", "loss", "seconds")  # all other columns are scores


def curves(run: Run) -> str:
    """Loss, the score that decides, learning rate and time; the other scores come closed."""
    rows = run.history
    per_epoch = run.update / run.epoch  # what a stream will give is known afterwards
    steps = run.directory.read_log()
    done = [(row["update"] + 1) / per_epoch for row in steps]
    loss = [
        Series("each step", done, [row["loss"] for row in steps], "train faint"),
        column(rows, "train_loss", "training", "train"),
        *judged(rows, "loss", "validation"),
    ]
    best = run.best[0] + 1.0 if run.best else None
    main = run.task.main_scores()
    rate = Series("learning rate", done, [row["lr"] for row in steps], "rate")
    if len(steps) < 2:
        rate = column(rows, "lr", "learning rate", "rate")
    ends = [0.0, *(row["seconds"] for row in rows)]
    spent = [end - begin for begin, end in pairwise(ends)]
    time = Series("seconds", places(rows), spent, "rate")
    cards = [card("Loss", line_chart(loss, x_name=X, mark=best))]
    cards += [
        card(text(name), line_chart(judged(rows, name, "validation"), x_name=X, mark=best))
        for name in main
        if name != "loss"
    ]
    cards.append(card("Learning rate", line_chart([rate], x_name=X, floor=0.0)))
    names = dict.fromkeys(n.removeprefix("ema_") for row in rows for n in row)
    more = [card("Seconds of training an epoch", line_chart([time], x_name=X, floor=0.0))]
    more += [
        card(text(n), line_chart(judged(rows, n, n), x_name=X, mark=best)) for n in names if n not in (*ALONE, *main)
    ]
    opened = section("Course", f'<div class="cards">{"".join(cards)}</div>')
    return opened + section("Time and all scores", f'<div class="cards">{"".join(more)}</div>', closed=True)


def places(rows: list[dict[str, Any]]) -> list[float]:
    return [row["epoch"] + 1.0 for row in rows]


def column(rows: list[dict[str, Any]], key: str, name: str, tone: str) -> Series:
    known = [row for row in rows if key in row]
    return Series(name, places(known), [float(row[key]) for row in known], tone)


def judged(rows: list[dict[str, Any]], key: str, name: str) -> list[Series]:
    """A score of the model, and that of its average beside it."""
    return [column(rows, key, name, "judge"), column(rows, f"ema_{key}", "average of the weights", "ema")]


def history(run: Run) -> str:
    """Every figure of every epoch."""
    names = list(dict.fromkeys(name for row in run.history for name in row))
    best = run.best[0] if run.best else None
    rows = [
        tuple(
            ('<td class="n best">' if row["epoch"] == best else '<td class="n">') + _cell(name, row.get(name)) + "</td>"
            for name in names
        )
        for row in run.history
    ]
    content = table(list(map(text, names)), rows, sortable=True, numeric=range(len(names)))
    return section("Every epoch", content, closed=True, note="The best one is marked.")


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name == "lr":
        return f"{value:.3g}"
    return str(value) if name == "epoch" else f"{value:.1f}" if name == "seconds" else score(name, value)
