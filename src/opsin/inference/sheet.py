"""A contact sheet: one picture with a thumbnail, the top labels and their bars for each of many."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from opsin.data.images import Source, open_image
from opsin.errors import ImageError, OpsinError
from opsin.inference.predictor import Prediction

__all__ = ["MAX_CARDS", "contact_sheet", "save_sheet"]

MAX_CARDS = 2000  # about half a gigabyte of pixels
# in units of one pixel, or two on sheets small enough to be sharp on dense screens
WIDTH, PHOTO, ROW, MARGIN, PAD, RADIUS = 236, 177, 21, 16, 12, 8
INK, MUTED, TRACK, PAPER, CARD, ALARM = "#1c2230", "#7a8294", "#e8ebf1", "#f3f5f9", "#ffffff", "#b3261e"
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
    shown = max(len(prediction.labels[:rows]) for _, prediction in items) or 1
    height = PHOTO + 26 + shown * ROW + PAD
    columns = columns or _columns(len(items), height)
    columns = min(columns, len(items))
    lines = -(-len(items) // columns)
    top = MARGIN + (34 if title else 0)
    pen = _Pen(MARGIN + columns * (WIDTH + MARGIN), top + lines * (height + MARGIN), 2 if len(items) <= 60 else 1)
    if title:
        pen.text(MARGIN, 14, title, INK, 17, room=columns * (WIDTH + MARGIN) - MARGIN)
    for i, (source, prediction) in enumerate(items):
        line, column = divmod(i, columns)
        _card(pen, source, prediction, MARGIN + column * (WIDTH + MARGIN), top + line * (height + MARGIN), height, rows)
    return pen.image


def save_sheet(items: Iterable[tuple[Source, Prediction]], path: str | Path, **options: Any) -> Path:
    """`contact_sheet` into a file, whose suffix names the format; it appears whole or not at all."""
    path = Path(path)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    sheet = contact_sheet(items, **options)
    try:
        sheet.save(part)
        part.replace(path)
    except ValueError as error:
        raise OpsinError(f"{path}: no image format has this suffix; use .png") from error
    finally:
        part.unlink(missing_ok=True)
    return path


def _columns(count: int, height: int) -> int:
    """Near the wanted shape, the number of columns that leaves the fewest places empty."""
    ideal = max(1, round((count * height * 1.3 / WIDTH) ** 0.5))
    return min(range(max(1, ideal - 1), ideal + 2), key=lambda n: (-count % n, abs(n - ideal)))


def _card(pen: "_Pen", source: Source, prediction: Prediction, x: int, y: int, height: int, rows: int) -> None:
    pen.box(x, y, WIDTH, height, CARD, RADIUS, outline=TRACK)
    inner = WIDTH - 2 * PAD
    error = prediction.error
    try:
        if error is None:
            pen.photo(source, x, y)
    except ImageError as reason:  # it has more channels than a thumbnail can show, or went away after the prediction
        error = str(reason)
    if error is not None:
        pen.lines(x + PAD, y + PAD, error, ALARM, 11, room=inner)
    pen.text(x + PAD, y + PHOTO + 6, Path(prediction.source).name or prediction.source, MUTED, 11, room=inner)
    for i, score in enumerate(prediction.labels[:rows]):
        row, percent = y + PHOTO + 26 + i * ROW, f"{score.probability:.1%}"
        pen.text(x + PAD, row, score.label, INK, 11, room=inner - pen.length(percent, 11) - 8)
        pen.text(x + PAD + inner, row, percent, MUTED, 11, anchor="ra")
        pen.box(x + PAD, row + 14, inner, 3, TRACK, 1.5)
        pen.box(x + PAD, row + 14, max(score.probability * inner, 3), 3, OTHERS if i else FIRST, 1.5)


class _Pen:
    """Draws on a sheet in units of `scale` pixels."""

    def __init__(self, width: int, height: int, scale: int) -> None:
        self.scale = scale
        self.image = Image.new("RGB", (width * scale, height * scale), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def box(
        self, x: float, y: float, width: float, height: float, fill: str, radius: float, outline: str | None = None
    ) -> None:
        box = [round(v * self.scale) for v in (x, y, x + width, y + height)]
        self.draw.rounded_rectangle(box, radius * self.scale, fill, outline, self.scale)

    def text(
        self, x: float, y: float, text: str, fill: str, size: int, *, room: float | None = None, anchor: str = "la"
    ) -> None:
        if room is not None and self.length(text, size) > room:
            while text and self.length(text + "…", size) > room:
                text = text[:-1]
            text += "…"
        self.draw.text((x * self.scale, y * self.scale), text, fill, _font(size * self.scale), anchor)

    def lines(self, x: float, y: float, text: str, fill: str, size: int, *, room: float) -> None:
        """A message over as many lines as a photo has place for, broken after words, or inside one too long."""
        lines = [""]
        for letter in text:
            if self.length(lines[-1] + letter, size) > room:
                whole, _, begun = lines[-1].rpartition(" ")
                lines[-1:] = [whole, begun] if whole else [begun, ""]
            lines[-1] += letter
        for i, line in enumerate(lines[: PHOTO // 17 - 1]):
            self.text(x, y + 17 * i, line, fill, size)

    def length(self, text: str, size: int) -> float:
        return _font(size * self.scale).getlength(text) / self.scale

    def photo(self, source: Source, x: int, y: int) -> None:
        """The picture cut to the card's width and, above, to its rounded corners."""
        size = (WIDTH * self.scale, PHOTO * self.scale)
        photo = open_image(source)
        assert isinstance(photo, Image.Image)  # as it is for three channels
        mask = Image.new("L", size, 0)
        below = size[1] + RADIUS * self.scale
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] - 1, below), RADIUS * self.scale, 255)
        fitted = ImageOps.fit(photo, size, Image.Resampling.LANCZOS, centering=(0.5, 0.3))  # heads are above
        self.image.paste(fitted, (x * self.scale, y * self.scale), mask)


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)
