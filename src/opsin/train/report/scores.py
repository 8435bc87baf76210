"""How well it is done, class by class: confusions, tables, calibration; of regression the predictions themselves."""

import numpy as np

from opsin.train.loop import Run
from opsin.train.report.charts import heat_map, histogram, reliability, scatter
from opsin.train.report.judged import ClassRow, Judged
from opsin.train.report.page import card, name, number, percent, section, table

__all__ = ["class_name", "scores"]

MAPPED = 30  # up to so many classes the confusion matrix is drawn
PAIRS, ROWS = 40, 1000  # rows of the tables
POINTS, PLOTS = 2000, 6  # of scatter plots


def class_name(names: tuple[str, ...], index: int) -> str:
    return names[index] or f"class {index}"


def scores(run: Run, judged: Judged) -> str:
    """The sections that fit the kind of task."""
    if judged.task.kind == "regression":
        return regression(run, judged)
    names = judged.task.classes or ()
    parts = [confusions(run, judged, names)] if judged.task.kind == "single" else []
    return "".join((*parts, classes(run, judged, names), calibration(run, judged)))


def whence(run: Run, judged: Judged) -> str:
    """Which outputs a section is about."""
    best = " (the best)" if run.best and run.best[0] == judged.epoch else ""
    model = "the average of the weights" if run.task.metric.startswith("ema_") else "the model"
    return f"Of {model} after epoch {judged.epoch}{best}, on {number(judged.count)} pictures."


def confusions(run: Run, judged: Judged, names: tuple[str, ...]) -> str:
    """The matrix where it can be drawn, and the pairs that are confused most."""
    true, said, counts = judged.confusions()
    pairs = confused(names, true, said, counts)
    if len(names) > MAPPED:
        return section(judged.title("Most confused"), pairs, note=whence(run, judged))
    cells = np.zeros((len(names), len(names)), dtype=np.int64)
    cells[true, said] = counts
    drawn = heat_map([class_name(names, i) for i in range(len(names))], cells.tolist())
    note = f"{whence(run, judged)} A cell's colour is its share of the row; that of mistakes begins stronger."
    return section(
        judged.title("Confusion matrix"), f'<div class="beside"><div class="card">{drawn}</div>{pairs}</div>', note=note
    )


def confused(names: tuple[str, ...], true: np.ndarray, said: np.ndarray, counts: np.ndarray) -> str:
    """A table of mistakes, the most frequent ones first; nothing where there are none."""
    totals, wrong = np.bincount(true, counts, minlength=len(names)), np.flatnonzero(true != said)
    order = wrong[np.argsort(-counts[wrong], kind="stable")][:PAIRS]
    rows = [
        (name(class_name(names, true[i])), name(class_name(names, said[i])), number(int(counts[i])),
         bar(counts[i] / totals[true[i]], "bad"))
        for i in order
    ]  # fmt: skip
    return table(("true", "said", "pictures", "of the class"), rows, sortable=True, numeric=(2, 3)) if rows else ""


def bar(share: float, kind: str = "") -> str:
    """A cell with a share, drawn as well."""
    return f'<td class="n bar {kind}" style="--v:{share:.3f}" data-v="{share:.6f}">{percent(share)}</td>'


def classes(run: Run, judged: Judged, names: tuple[str, ...]) -> str:
    """A row per class, those with the lowest scores first."""
    several = judged.task.kind == "multi"
    found = judged.classes()

    def worth(row: ClassRow) -> tuple[bool, float]:
        return row.pictures == 0, (row.ap or 0.0) if several else row.f1

    rows = [
        (name(class_name(names, row.label)), number(row.pictures), bar(row.precision), bar(row.recall), bar(row.f1),
         *((bar(row.ap) if row.ap is not None else '<td class="n" data-v="-1">–</td>',) if several else ()))
        for row in sorted(found, key=worth)[:ROWS]
    ]  # fmt: skip
    heads = ("class", "pictures", "precision", "recall", "F1", *(("average precision",) if several else ()))
    cut = f" The {ROWS} lowest of {number(len(found))}." if len(found) > ROWS else ""
    about = f"{whence(run, judged)} Precision, recall and F1 at a confidence of 50 %. " if several else ""
    note = f"{about}Touch a heading to sort by it.{cut}"
    find = '<input type="search" class="find" placeholder="find a class" aria-label="find a class">' * (len(rows) > 20)
    content = find + table(heads, rows, sortable=True, numeric=range(1, len(heads)))
    return section(judged.title("Class by class"), content, note=note)


def calibration(run: Run, judged: Judged) -> str:
    bins = judged.calibration()
    total = sum(count for *_, count in bins)
    error = sum(abs(confidence - right) * count for confidence, right, count in bins) / total
    several = judged.task.kind == "multi"
    what = "Share of labels that are true" if several else "Share of pictures that are right"
    note = (
        f"On average confidence and truth are {percent(error)} apart. A bar that ends at the line means what it says; "
        "below it the model is too sure, above it not sure enough."
    )
    parts = (
        card(what, reliability(bins, x_name="confidence")),
        card(
            "Labels, true and not true" if several else "Pictures, right and wrong",
            histogram(bins, x_name="confidence"),
        ),
    )
    return section(judged.title("Calibration"), f'<div class="cards">{"".join(parts)}</div>', note=note)


def regression(run: Run, judged: Judged) -> str:
    truth, said = judged.truth, judged.said
    chosen = np.linspace(0, len(truth) - 1, min(POINTS, len(truth))).round().astype(int)
    plots = []
    for k in range(min(truth.shape[1], PLOTS)):
        error = said[:, k] - truth[:, k]
        finite = chosen[np.isfinite(said[chosen, k])]
        half, most = np.quantile(np.abs(error), (0.5, 0.95)).tolist()
        note = (
            f"half of them within ± {number(half)}, 19 of 20 within ± {number(most)}; mean error {number(error.mean())}"
        )
        if len(finite):
            title = f"Predicted over true, value {k}" if truth.shape[1] > 1 else "Predicted over true"
            plots.append(card(title, scatter(truth[finite, k].tolist(), said[finite, k].tolist(), x_name="true"), note))
    return section(judged.title("Predictions"), f'<div class="cards">{"".join(plots)}</div>', note=whence(run, judged))
