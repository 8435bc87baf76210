"""HTML: what all sections are made of. Every text from outside goes through `text`."""

import base64
import html
import io
import math
import re
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["card", "duration", "name", "number", "page", "percent", "picture", "section", "table", "text"]

SIDE = 160  # pixels of a picture's longer side
TINY = 48  # up to here a picture is kept as it is, and drawn with square pixels
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def text(value: Any) -> str:
    """Any value as HTML text, fit for attributes as well."""
    valid = str(value).encode("utf-8", "backslashreplace").decode()
    return html.escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", valid))


def name(value: Any) -> str:
    """A name among other words, whichever way it is written: it does not turn what stands after it."""
    return f"<bdi>{text(value)}</bdi>"


def number(value: float) -> str:
    """For people: four digits, and a space between thousands."""
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or 1000 <= abs(value) < 1e15:
        return f"{round(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:.4g}"


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}\N{NARROW NO-BREAK SPACE}%" if math.isfinite(value) else str(value)


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, hours = divmod(round(seconds), 60)[0], int(seconds // 3600)
    return f"{hours} h {minutes % 60:02} min" if hours else f"{minutes} min {round(seconds) % 60:02} s"


def section(title: str, *content: str, note: str = "", closed: bool = False) -> str:
    """A part of the page; nothing without content. `closed` ones open when their title is touched."""
    body = "".join(content)
    if not body:
        return ""
    note = f'<p class="note">{note}</p>' if note else ""
    if closed:
        return f"<details><summary><h2>{title}</h2></summary>{note}{body}</details>\n"
    return f"<section><h2>{title}</h2>{note}{body}</section>\n"


def card(title: str, content: str, note: str = "") -> str:
    note = f'<p class="note">{note}</p>' if note else ""
    return f'<figure class="card"><figcaption>{title}</figcaption>{content}{note}</figure>'


def table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, sortable: bool = False, numeric: Sequence[int] = ()
) -> str:
    """Cells are HTML; a cell that begins with `<td` is taken as it stands. Columns in `numeric` stand to the right."""
    kinds = ['class="n"' if i in numeric else "" for i in range(len(heads))]
    press = '<button type="button">{}</button>' if sortable else "{}"
    head = "".join(f"<th {kind}>{press.format(name)}</th>" for name, kind in zip(heads, kinds, strict=True))
    body = "\n".join(
        "<tr>"
        + "".join(c if c.startswith("<td") else f"<td {k}>{c}</td>" for c, k in zip(row, kinds, strict=True))
        + "</tr>"
        for row in rows
    )
    sort = ' class="sortable"' if sortable else ""
    return f'<div class="scroll"><table{sort}><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def picture(image: np.ndarray, about: str) -> str:
    """An `<img>` of pixels (H, W, C), uint8, that carries its data. Of many channels the first ones are shown."""
    shown = image[..., 0] if image.shape[2] in (1, 2) else image[..., :3]
    photo, file = Image.fromarray(np.ascontiguousarray(shown)), io.BytesIO()
    tiny = max(photo.size) <= TINY
    if tiny:
        photo.save(file, "PNG")
    else:
        photo.thumbnail((SIDE, SIDE))
        photo.convert("RGB").save(file, "JPEG", quality=80)
    data = base64.b64encode(file.getvalue()).decode()
    kind = f'class="tiny" src="data:image/png;base64,{data}"' if tiny else f'src="data:image/jpeg;base64,{data}"'
    return f'<img {kind} alt="{text(about)}" loading="lazy">'


@cache
def _asset(name: str) -> str:
    return (resources.files("opsin.train.report") / name).read_text(encoding="utf-8")


def page(title: str, parts: Iterable[str]) -> str:
    """The whole file. Its policy forbids the browser to fetch anything."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'">
<title>{text(title)}</title>
<style>
{_asset("report.css")}</style>
</head>
<body>
{"".join(parts)}<script>
{_asset("report.js")}</script>
</body>
</html>
"""
