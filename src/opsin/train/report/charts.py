"""Charts as SVG. They are drawn small enough to be read at the width of a phone, and coloured by `report.css`."""

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

from opsin.train.report.page import number, percent, text

__all__ = ["Series", "heat_map", "histogram", "line_chart", "reliability", "scatter"]

WIDTH, HEIGHT = 360, 220  # these and the margins are in report.js as well
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 34
POINTS = 400  # of a line; more are drawn as means
DOTS = 40  # up to so many points each gets a dot
LABEL = 16  # letters of a class name beside a heat map


class Series(NamedTuple):
    """A line; `tone` is its class in `report.css`."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    tone: str


class Frame:
    """From values to places in the drawing."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.x, self.y = _room(*x), _room(*y)

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        place = LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)
        return round(place[0], 1), round(place[1], 1)

    def axes(self, x_name: str, *, whole: bool = False) -> str:
        """Grid lines with their values."""
        left, right, bottom = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM
        lines = []
        for value in ticks(*self.y):
            y = self.at(self.x[0], value)[1]
            lines.append(f'<path class="grid" d="M{left} {y}H{right}"/>')
            lines.append(f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{_short(value)}</text>')
        for value in ticks(*self.x, whole=whole):
            x = self.at(value, self.y[0])[0]
            lines.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{_short(value)}</text>')
        lines.append(f'<path class="axis" d="M{left} {bottom}H{right}"/>')
        lines.append(f'<text class="name" x="{right}" y="{HEIGHT - 4}" text-anchor="end">{text(x_name)}</text>')
        return "".join(lines)


def _room(low: float, high: float) -> tuple[float, float]:
    """A range that is not empty."""
    if high > low:
        return low, high
    half = abs(low) * 0.05 or 0.5
    return low - half, high + half


def ticks(low: float, high: float, most: int = 5, *, whole: bool = False) -> list[float]:
    """Round values within a range, at steps of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(s * power for s in (1, 2, 5, 10) if (high - low) / (s * power) <= most)
    step = max(step, 1.0) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _short(value: float) -> str:
    if value and (abs(value) < 0.01 or abs(value) >= 1e5):
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.6g}"


def line_chart(lines: Sequence[Series], *, x_name: str, floor: float | None = None, mark: float | None = None) -> str:
    """Lines over a common axis, with a legend. `floor` is a value that the axis must reach down to, `mark` the place of
    the best."""
    lines = [thinned(line) for line in lines]
    lines = [line for line in lines if line.xs]
    if not lines:
        return ""
    xs, ys = [x for line in lines for x in line.xs], [y for line in lines for y in line.ys]
    low, high = min(ys), max(ys)
    low = min(low, floor) if floor is not None else low
    pad = (high - low) * 0.05
    frame = Frame((min(xs), max(xs)), (low if floor is not None else low - pad, high + pad))
    drawn = [] if mark is None else [f'<path class="rule" d="M{frame.at(mark, 0)[0]} {TOP}V{HEIGHT - BOTTOM}"/>']
    for line in lines:
        points = [frame.at(x, y) for x, y in zip(line.xs, line.ys, strict=True)]
        path = " ".join(f"{x},{y}" for x, y in points)
        dots = points if len(points) <= DOTS and "faint" not in line.tone else []
        drawn.append(
            f'<g class="{line.tone}"><polyline points="{path}"/>'
            + "".join(f'<circle cx="{x}" cy="{y}" r="2.5"/>' for x, y in dots) + "</g>"
        )  # fmt: skip
    legend = "".join(f'<span class="{line.tone}"><i></i>{text(line.name)}</span>' for line in lines)
    data = {
        "x": x_name,
        "frame": [*frame.x, *frame.y],
        "lines": [[line.name, [_brief(x) for x in line.xs], [_brief(y) for y in line.ys]] for line in lines],
    }
    values = text(json.dumps(data, separators=(",", ":")))
    return (
        f'<div class="legend">{legend}</div><div class="chart" data-values="{values}">'
        f"{_svg(frame.axes(x_name, whole=True) + ''.join(drawn))}</div>"
    )


def _brief(value: float) -> float:
    return float(f"{value:.5g}")


def thinned(line: Series) -> Series:
    """Without values that are no numbers, and of a long line the means of neighbours."""
    pairs = [(x, y) for x, y in zip(line.xs, line.ys, strict=True) if math.isfinite(y)]
    size = -(-len(pairs) // POINTS) or 1
    groups = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    xs, ys = ([sum(pair[i] for pair in group) / len(group) for group in groups] for i in (0, 1))
    return line._replace(xs=xs, ys=ys)


def _svg(content: str, width: int = WIDTH, height: int = HEIGHT, *, style: str = "width:100%") -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" style="{style}">{content}</svg>'


def reliability(bins: Sequence[tuple[float, float, int]], *, x_name: str) -> str:
    """Calibration: the share that is right over the confidence; what is missing to the diagonal in another colour."""
    frame, bars = Frame((0, 1), (0, 1)), []
    for confidence, right, count in bins:
        x, y = frame.at(confidence, right)
        floor, ideal = frame.at(0, 0)[1], frame.at(0, confidence)[1]
        said = f"confidence {percent(confidence)}, right {percent(right)}: {number(count)}"
        bars.append(f"<g><title>{said}</title>{_box('bar', x - 7, y, 14, floor - y)}")
        bars.append(f"{_box('gap', x - 7, ideal, 14, y - ideal) if ideal < y else ''}</g>")
    return _svg(frame.axes(x_name) + "".join(bars) + _diagonal(frame))


def histogram(bins: Sequence[tuple[float, float, int]], *, x_name: str) -> str:
    """How many have which confidence, right ones and wrong ones on each other."""
    frame, bars = Frame((0, 1), (0, max(count for *_, count in bins))), []
    for confidence, right, count in bins:
        x, top = frame.at(confidence, count)
        floor, middle = frame.at(0, 0)[1], frame.at(0, count * right)[1]
        said = f"confidence {percent(confidence)}: {number(count)}, of them right {number(round(count * right))}"
        bars.append(f"<g><title>{said}</title>{_box('bar', x - 7, middle, 14, floor - middle)}")
        bars.append(f"{_box('gap', x - 7, top, 14, middle - top)}</g>")
    return _svg(frame.axes(x_name) + "".join(bars))


def _box(kind: str, x: float, y: float, width: float, height: float, opacity: float = 1.0) -> str:
    strength = f' opacity="{opacity:.2f}"' if opacity < 1 else ""
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"{strength}/>'


def _diagonal(frame: Frame) -> str:
    (x0, y0), (x1, y1) = frame.at(frame.x[0], frame.y[0]), frame.at(frame.x[1], frame.y[1])
    return f'<path class="ideal" d="M{x0} {y0}L{x1} {y1}"/>'


def scatter(truth: Sequence[float], said: Sequence[float], *, x_name: str) -> str:
    """A point for each picture; those on the diagonal are right."""
    low, high = min(*truth, *said), max(*truth, *said)
    pad = (high - low) * 0.03
    frame = Frame((low - pad, high + pad), (low - pad, high + pad))
    places = (frame.at(x, y) for x, y in zip(truth, said, strict=True))
    points = "".join(f'<circle cx="{x}" cy="{y}" r="2.5"/>' for x, y in places)
    return _svg(f'{frame.axes(x_name)}{_diagonal(frame)}<g class="points">{points}</g>')


def heat_map(names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """A confusion matrix, true classes in rows: right ones in one colour and wrong ones in another."""
    cell = min(max(460 // len(names), 22), 56)
    short = [name if len(name) <= LABEL else name[: LABEL - 1] + "…" for name in names]
    long = 7 * max(map(len, short))
    upright = long > cell  # names above the columns that do not fit across
    left, top = max(24 + long, 46), 30 + long if upright else 40
    parts = [
        f'<text class="name" x="{left + len(names) * cell}" y="12" text-anchor="end">said →</text>',
        f'<text class="name" x="{left - 6}" y="{top - 8}" text-anchor="end">true ↓</text>',
    ]
    for i, row in enumerate(counts):
        x, y = left + (i + 0.5) * cell, top + (i + 0.5) * cell + 4
        how = f'transform="rotate(-90 {x + 4} {top - 8})"' if upright else 'text-anchor="middle"'
        parts.append(f'<text x="{x + 4 * upright}" y="{top - 8}" {how}>{text(short[i])}</text>')
        parts.append(f'<text x="{left - 6}" y="{y}" text-anchor="end">{text(short[i])}</text>')
        for j, count in enumerate(row):
            about = f"{names[i]} taken for {names[j]}: {count} of {sum(row)}"
            parts.append(_cell(left + j * cell, top + i * cell, cell, count, sum(row), i == j, about))
    width, height = left + len(names) * cell, top + len(names) * cell
    style = f"width:{width}px;max-width:100%;min-width:{left + 22 * len(names)}px"  # on phones smaller, to a point
    return f'<div class="scroll">{_svg("".join(parts), width, height, style=style)}</div>'


def _cell(x: float, y: float, side: int, count: int, total: int, right: bool, about: str) -> str:
    drawn = _box("empty", x, y, side - 1, side - 1)
    if count:
        strength = count / total if right else math.sqrt(count / total)  # what is rare among mistakes matters
        drawn += _box("right" if right else "wrong", x, y, side - 1, side - 1, strength)
        on = ' class="on"' if strength > 0.55 else ""
        drawn += f'<text{on} x="{x + side / 2 - 0.5}" y="{y + side / 2 + 4}" text-anchor="middle">{count}</text>'
    return f"<g><title>{text(about)}</title>{drawn}</g>"
