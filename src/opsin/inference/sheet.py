"""A contact sheet: one picture with a thumbnail, the top labels and their bars for each of many."""

from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from opsin.inference.images import Source, open_image
from opsin.inference.predictor import Prediction

__all__ = ["contact_sheet", "save_sheet"]

SCALE = 2  # pixels per unit below, so that the sheet stays sharp on dense screens
WIDTH, PHOTO, ROW, MARGIN, PAD = 236, 177, 21, 16, 12
INK, MUTED, TRACK, PAPER, CARD = "#1c2230", "#7a8294", "#e8ebf1", "#f3f5f9", "#ffffff"
FIRST, OTHERS = "#2f6fde", "#a9c4f2"  # bars: the best guess stands out


def contact_sheet(
    items: Iterable[tuple[Source, Prediction]], *, columns: int | None = None, rows: int = 5, title: str = ""
) -> Image.Image:
    """Draw a card per picture: thumbnail, file name, and up to `rows` labels with bars.

    `columns` defaults to what makes the sheet about a third wider than high. A picture that could not be read shows
    its error instead.
    """
    items = list(items)
    shown = max((len(p.labels[:rows]) for _, p in items), default=0) or 1
    height = PHOTO + 26 + shown * ROW + PAD
    if columns is None:
        columns = max(1, round((len(items) * height * 1.3 / WIDTH) ** 0.5))
    columns = max(1, min(columns, len(items)))
    lines = -(-len(items) // columns)
    top = MARGIN + (34 if title else 0)
    size = (MARGIN + columns * (WIDTH + MARGIN), top + lines * (height + MARGIN))
    sheet = Image.new("RGB", (size[0] * SCALE, size[1] * SCALE), PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((MARGIN * SCALE, 14 * SCALE), _clip(title, size[0] - 2 * MARGIN, 17), INK, _font(17))
    for i, (source, prediction) in enumerate(items):
        line, column = divmod(i, columns)
        _card(sheet, draw, MARGIN + column * (WIDTH + MARGIN), top + line * (height + MARGIN), height)
        _fill(sheet, draw, source, prediction, MARGIN + column * (WIDTH + MARGIN), top + line * (height + MARGIN), rows)
    return sheet


def save_sheet(items: Iterable[tuple[Source, Prediction]], path: str | Path, **options: object) -> Path:
    """`contact_sheet` into a file, whose suffix names the format; it appears whole or not at all."""
    path = Path(path)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        contact_sheet(items, **options).save(part)  # type: ignore[arg-type]
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _card(sheet: Image.Image, draw: ImageDraw.ImageDraw, x: int, y: int, height: int) -> None:
    box = [v * SCALE for v in (x, y, x + WIDTH, y + height)]
    draw.rounded_rectangle(box, radius=8 * SCALE, fill=CARD, outline=TRACK, width=SCALE)


def _fill(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, source: Source, prediction: Prediction, x: int, y: int, rows: int
) -> None:
    inner = WIDTH - 2 * PAD
    name = Path(prediction.source).name or prediction.source
    draw.text(((x + PAD) * SCALE, (y + PHOTO + 6) * SCALE), _clip(name, inner, 11), MUTED, _font(11))
    if prediction.error is not None:
        text = _wrap(prediction.error, inner, 11)
        draw.multiline_text(((x + PAD) * SCALE, (y + PAD) * SCALE), text, "#b3261e", _font(11), spacing=4 * SCALE)
        return
    _paste_photo(sheet, source, x, y)
    for i, score in enumerate(prediction.labels[:rows]):
        _row(
            draw, score.label, score.probability, x + PAD, y + PHOTO + 26 + i * ROW, inner, FIRST if i == 0 else OTHERS
        )


def _paste_photo(sheet: Image.Image, source: Source, x: int, y: int) -> None:
    """The picture cut to the card's shape, with the card's rounded corners above."""
    size = (WIDTH * SCALE, PHOTO * SCALE)
    photo = open_image(source)
    assert isinstance(photo, Image.Image)  # three channels always are
    photo = ImageOps.fit(photo, size, Image.Resampling.LANCZOS)
    mask = Image.new("L", size, 0)
    rounded = (0, 0, size[0] - 1, size[1] + 8 * SCALE)
    ImageDraw.Draw(mask).rounded_rectangle(rounded, radius=8 * SCALE, fill=255)
    sheet.paste(photo, (x * SCALE, y * SCALE), mask)


def _row(draw: ImageDraw.ImageDraw, text: str, probability: float, x: int, y: int, width: int, colour: str) -> None:
    percent = f"{probability:.1%}"
    room = width - _length(percent, 11) - 8
    draw.text((x * SCALE, y * SCALE), _clip(text, room, 11), INK, _font(11))
    draw.text(((x + width) * SCALE, y * SCALE), percent, MUTED, _font(11), anchor="ra")
    bar = [v * SCALE for v in (x, y + 14, x + width, y + 17)]
    draw.rounded_rectangle(bar, radius=1.5 * SCALE, fill=TRACK)
    bar[2] = round(bar[0] + max(probability * width, 3) * SCALE)
    draw.rounded_rectangle(bar, radius=1.5 * SCALE, fill=colour)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * SCALE)


def _length(text: str, size: int) -> float:
    return _font(size).getlength(text) / SCALE


def _clip(text: str, width: float, size: int) -> str:
    if _length(text, size) <= width:
        return text
    while text and _length(text + "…", size) > width:
        text = text[:-1]
    return text + "…"


def _wrap(text: str, width: float, size: int) -> str:
    """Break into lines that fit, between words where that is possible, at most nine of them."""
    lines = [""]
    for word in text.split(" "):
        for piece in _pieces(word, width, size):
            joined = f"{lines[-1]} {piece}".strip()
            if _length(joined, size) <= width:
                lines[-1] = joined
            else:
                lines.append(piece)
    return "\n".join(lines[:9])


def _pieces(word: str, width: float, size: int) -> Iterable[str]:
    while _length(word, size) > width:
        cut = next(n for n in range(len(word), 0, -1) if n == 1 or _length(word[:n], size) <= width)
        yield word[:cut]
        word = word[cut:]
    yield word
