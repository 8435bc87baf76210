"""Accuracy against speed, one point a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opsin.errors import OpsinError, check_place

__all__ = ["check_plot", "frontier", "speed_plot"]

SUFFIXES = (".png", ".svg", ".pdf")
MODES = {"inference": ("#2563eb", "o"), "train": ("#d97706", "s")}
MANY = 20  # models of which only those on the frontier are named


def check_plot(path: Path) -> None:
    """Raise `OpsinError` for a file that the plot could not be written to."""
    if path.suffix.lower() not in SUFFIXES:
        raise OpsinError(f"{path}: a plot is written as {', '.join(SUFFIXES)}")
    check_place(path)


def frontier(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows than which none is both faster and more accurate, the fastest first."""
    found: list[Mapping[str, Any]] = []
    for row in sorted(rows, key=lambda row: (-row["images_per_second"], -row["top1"])):
        if not found or row["top1"] > found[-1]["top1"]:
            found.append(row)
    return found


def speed_plot(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draw `top1` (%) over `images_per_second` (logarithmic), area by `params_M`; a line joins the best of a `mode`.

    Rows without a published accuracy or a speed are left out. Raises `OpsinError` where none is left.
    """
    check_plot(path)
    known = [row for row in rows if row.get("top1") is not None and row.get("images_per_second")]
    if not known:
        raise OpsinError("none of these models has both a speed and a published accuracy to draw")
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = Figure(figsize=(9, 6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for mode, (colour, marker) in MODES.items():
        here = [row for row in known if row["mode"] == mode]
        if not here:
            continue
        best = frontier(here)
        x, y = ([row[name] for row in best] for name in ("images_per_second", "top1"))
        axes.plot(x, y, color=colour, alpha=0.35, zorder=1)
        x, y, params = ([row[name] for row in here] for name in ("images_per_second", "top1", "params_M"))
        area = [20 + 4 * size for size in params]
        axes.scatter(x, y, s=area, color=colour, marker=marker, alpha=0.75, linewidths=0, label=mode, zorder=2)
        for row in here if len(here) <= MANY else best:
            place = (row["images_per_second"], row["top1"])
            offset = 4 + (20 + 4 * row["params_M"]) ** 0.5 / 2  # clear of the point
            axes.annotate(row["model"], place, (0, offset), textcoords="offset points", ha="center", fontsize=7)
    axes.set_xscale("log")
    speeds = [row["images_per_second"] for row in known]
    plain = FuncFormatter(lambda value, _: f"{value:,.6g}")
    axes.xaxis.set_major_formatter(plain)
    axes.xaxis.set_minor_formatter(plain if max(speeds) < 20 * min(speeds) else NullFormatter())
    axes.tick_params(which="both", length=3, pad=4)
    axes.margins(0.12)
    axes.set_xlabel("images per second")
    axes.set_ylabel("ImageNet-1k top-1 (%), as published")
    details = {str(row.get("device", "")) + (f", {row['settings']}" if row.get("settings") else "") for row in known}
    axes.set_title("; ".join(sorted(details)), fontsize=9, loc="left")
    axes.grid(alpha=0.25, which="both", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    if len({row["mode"] for row in known}) > 1:
        axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2)  # above, clear of all names
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        figure.savefig(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
