"""Drawing on a sheet in units that are one pixel, or two on sheets small enough to be sharp on dense screens."""

from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps

from opsin.errors import OpsinError, check_place

__all__ = ["ALARM", "CARD", "INK", "MUTED", "PAPER", "TRACK", "Pen", "check_image_file", "save_image"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".pdf")
INK, MUTED, TRACK, PAPER, CARD, ALARM = "#1c2230", "#7a8294", "#e8ebf1", "#f3f5f9", "#ffffff", "#b3261e"


class Pen:
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

    def lines(self, x: float, y: float, text: str, fill: str, size: int, *, room: float, most: int) -> None:
        """A message over `most` lines, broken after words, or inside one too long."""
        lines = [""]
        for letter in text:
            if self.length(lines[-1] + letter, size) > room:
                whole, _, begun = lines[-1].rpartition(" ")
                lines[-1:] = [whole, begun] if whole else [begun, ""]
            lines[-1] += letter
        for i, line in enumerate(lines[:most]):
            self.text(x, y + 17 * i, line, fill, size)

    def length(self, text: str, size: int) -> float:
        return _font(size * self.scale).getlength(text) / self.scale

    def photo(self, photo: Image.Image, x: float, y: float, width: int, height: int, *, radius: int = 0) -> None:
        """A picture cut to a box whose upper corners are round."""
        size = (width * self.scale, height * self.scale)
        mask = Image.new("L", size, 0)
        below = size[1] + radius * self.scale
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] - 1, below), radius * self.scale, 255)
        fitted = ImageOps.fit(photo, size, Image.Resampling.LANCZOS, centering=(0.5, 0.3))  # heads are above
        self.image.paste(fitted, (round(x * self.scale), round(y * self.scale)), mask)


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def check_image_file(path: Path) -> None:
    """Raise `OpsinError` for a file that no image can be written to."""
    if path.suffix.lower() not in SUFFIXES:
        raise OpsinError(f"{path}: no image format has this suffix; use .png (there are {' '.join(SUFFIXES)})")
    check_place(path)


def save_image(image: Image.Image, path: str | Path) -> Path:
    """Into a file, whose suffix names the format; it appears whole or not at all."""
    path = Path(path)
    check_image_file(path)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        image.save(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
