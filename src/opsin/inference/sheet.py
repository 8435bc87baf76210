"""A contact sheet: one picture with a thumbnail, the top labels and their bars for each of many."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from opsin.data.images import Source, open_image
from opsin.data.pen import ALARM, CARD, INK, MUTED, TRACK, Pen, save_image
from opsin.errors import ImageError, OpsinError
from opsin.inference.predictor import Prediction

__all__ = ["MAX_CARDS", "contact_sheet", "save_sheet"]

MAX_CARDS = 2000  # about half a gigabyte of pixels
# in units of one pixel, or two on small sheets
WIDTH, PHOTO, ROW, MARGIN, PAD, RADIUS = 236, 177, 21, 16, 12, 8
FIRST, OTHERS = "#2f6fde", "#a9c4f2"  # bars: the best guess stands out


def contact_sheet(
    items: Iterable[tuple[Source, Prediction]], *, columns: int | None = None, rows: int = 5, title: str = ""
) -> Image.Image:
    """Draw a card per picture: thumbnail, file name, and up to `rows` labels with bars.

    `columns` defaults to what fills a sheet about a third wider than high. A picture that could not be read shows its
    error instead.

    Raises:
        OpsinError: nothing to show, or more than `MAX_CARDS` pictures.
    """
    items = list(items)
    if not 0 < len(items) <= MAX_CARDS:
        raise OpsinError(f"a contact sheet takes 1 to {MAX_CARDS} pictures, not {len(items)}")
    shown = max(len(_lines(prediction, rows)) for _, prediction in items) or 1
    height = PHOTO + 26 + shown * ROW + PAD
    columns = columns or _columns(len(items), height)
    columns = min(columns, len(items))
    lines = -(-len(items) // columns)
    top = MARGIN + (34 if title else 0)
    pen = Pen(MARGIN + columns * (WIDTH + MARGIN), top + lines * (height + MARGIN), 2 if len(items) <= 60 else 1)
    if title:
        pen.text(MARGIN, 14, title, INK, 17, room=columns * (WIDTH + MARGIN) - MARGIN)
    for i, (source, prediction) in enumerate(items):
        line, column = divmod(i, columns)
        _card(pen, source, prediction, MARGIN + column * (WIDTH + MARGIN), top + line * (height + MARGIN), height, rows)
    return pen.image


def save_sheet(items: Iterable[tuple[Source, Prediction]], path: str | Path, **options: Any) -> Path:
    """`contact_sheet` into a file, whose suffix names the format; it appears whole or not at all."""
    return save_image(contact_sheet(items, **options), path)


def _columns(count: int, height: int) -> int:
    """Near the wanted shape, the number of columns that leaves the fewest places empty."""
    ideal = max(1, round((count * height * 1.3 / WIDTH) ** 0.5))
    return min(range(max(1, ideal - 1), ideal + 2), key=lambda n: (-count % n, abs(n - ideal)))


def _card(pen: Pen, source: Source, prediction: Prediction, x: int, y: int, height: int, rows: int) -> None:
    pen.box(x, y, WIDTH, height, CARD, RADIUS, outline=TRACK)
    inner = WIDTH - 2 * PAD
    error = prediction.error
    try:
        if error is None:
            photo = open_image(source)
            assert isinstance(photo, Image.Image)  # as it is for three channels
            pen.photo(photo, x, y, WIDTH, PHOTO, radius=RADIUS)
    except ImageError as reason:  # it has more channels than a thumbnail can show, or went away after the prediction
        error = str(reason)
    if error is not None:
        pen.lines(x + PAD, y + PAD, error, ALARM, 11, room=inner, most=PHOTO // 17 - 1)
    pen.text(x + PAD, y + PHOTO + 6, Path(prediction.source).name or prediction.source, MUTED, 11, room=inner)
    for i, (label, share) in enumerate(_lines(prediction, rows)):
        row, right = y + PHOTO + 26 + i * ROW, share if isinstance(share, str) else f"{share:.1%}"
        pen.text(x + PAD, row, label, INK, 11, room=inner - pen.length(right, 11) - 8)
        pen.text(x + PAD + inner, row, right, MUTED, 11, anchor="ra")
        if not isinstance(share, str):
            pen.box(x + PAD, row + 14, inner, 3, TRACK, 1.5)
            pen.box(x + PAD, row + 14, max(share * inner, 3), 3, OTHERS if i else FIRST, 1.5)


def _lines(prediction: Prediction, most: int) -> list[tuple[str, float | str]]:
    """What a card says: labels with their probabilities; of several heads the best label of each, or its numbers."""
    if prediction.heads is None:
        return [(score.label, score.probability) for score in prediction.labels[:most]]
    lines: list[tuple[str, float | str]] = []
    for name, answer in prediction.heads.items():
        if answer.values is not None:
            lines.append((name, ", ".join(f"{value:.4g}" for value in answer.values)))
        lines += [(f"{name}: {score.label}", score.probability) for score in answer.labels[:1]]
    return lines
