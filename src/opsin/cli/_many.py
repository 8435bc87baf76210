"""What verbs that go over many models share: which models are meant, and a file of results that grows row by row."""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from opsin.errors import OpsinError, UnknownModelError, check_place, did_you_mean
from opsin.models._index import MODELS
from opsin.models._registry import list_models, resolve_name

__all__ = ["check_output", "expand", "find_row", "put_row", "read_rows", "show"]

Row = Mapping[str, Any]


def expand(words: Iterable[str], *, pretrained: bool) -> list[str]:
    """The models that the words of a command line stand for, each once.

    A word is a name, a pattern of names (with `pretrained`, of every `architecture.tag` that has weights; a pattern
    with a dot always is one of tags), a folder written by `opsin.save`, a hub id, or a text file (`.txt`) with a word
    a line, `#` before what is not to be read.

    Raises:
        OpsinError: a name that no model has, a pattern that no name fits, an empty file.
    """
    found: list[str] = []
    for word in words:
        if word.endswith(".txt"):
            found += _from_file(Path(word).expanduser(), pretrained)
        else:
            found += _names(word, pretrained)
    if not found:
        raise OpsinError("no model is named")
    return list(dict.fromkeys(found))


def _from_file(path: Path, pretrained: bool) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OpsinError(f"{path} cannot be read: {error}") from error
    words = [word for line in lines if (word := line.partition("#")[0].strip())]
    if not words:
        raise OpsinError(f"{path} names no models")
    try:
        return [name for word in words for name in _names(word, pretrained)]
    except OpsinError as error:
        raise OpsinError(f"{path}: {error}") from None


def _names(word: str, pretrained: bool) -> list[str]:
    if "/" in word or ":" in word or os.path.isfile(os.path.join(word, "config.json")):
        return [word]  # a folder or a hub id
    if any(sign in word for sign in "*?["):
        found = list_models(word, pretrained=pretrained, include_tags=pretrained or "." in word)
        if not found:
            kind = "with weights " if pretrained else ""
            raise UnknownModelError(f"no model {kind}fits {word!r}.{did_you_mean(word.strip('*'), MODELS)}")
        return found
    resolve_name(word)  # a misspelt one is refused before the work, not amidst it
    return [word]


# --- results --------------------------------------------------------------------------------------------------------


def check_output(path: Path | None, key: Sequence[str]) -> None:
    """Refuse, before the work, a file of results that cannot be written or holds something else."""
    if path is None:
        return
    if path.suffix.lower() not in (".csv", ".json"):
        raise OpsinError(f"{path}: results are written as .csv or .json")
    check_place(path)
    for row in read_rows(path, key):
        if missing := [name for name in key if name not in row]:
            raise OpsinError(
                f"{path} holds other things than these results (no column {missing[0]}); name another file"
            )


def read_rows(path: Path, key: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a CSV or JSON file, none where there is no file; of a CSV, columns but those of `key` as numbers."""
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            rows = json.loads(text)
            if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
                raise ValueError("no list of rows")
            return rows
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except (OSError, ValueError, csv.Error) as error:
        raise OpsinError(f"{path} cannot be read: {error}") from error
    return [{k: v if k in key else _value(v) for k, v in row.items() if v != "" or k in key} for row in rows]


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def find_row(path: Path | None, row: Row, key: Sequence[str]) -> dict[str, Any] | None:
    """The row of the file that answers the same question: equal in all columns of `key`."""
    if path is None:
        return None
    return next((old for old in read_rows(path, key) if all(old.get(k) == row[k] for k in key)), None)


def put_row(path: Path | None, row: Row, key: Sequence[str]) -> None:
    """Add a row in place of the one with the same key, if there is one; the file changes whole or not at all."""
    if path is None:
        return
    part = path.with_name(f".{path.name}.part")
    with FileLock(path.with_name(f".{path.name}.lock")):  # two processes may fill one file
        rows = read_rows(path, key)
        same = [i for i, old in enumerate(rows) if all(old.get(k) == row[k] for k in key)]
        if same:
            rows[same[0]] = dict(row)
        else:
            rows.append(dict(row))
        try:
            part.write_text(_text(rows, path.suffix.lower()), encoding="utf-8", newline="")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def _text(rows: list[dict[str, Any]], suffix: str) -> str:
    if suffix == ".json":
        return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    columns = dict.fromkeys(name for row in rows for name in row)
    ordered = [name for name in columns if name != "error"] + ["error"] * ("error" in columns)
    out = io.StringIO()
    writer = csv.DictWriter(out, ordered, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def show(rows: Sequence[Row], columns: Mapping[str, str]) -> None:
    """A table of rows: column -> how its numbers are formatted; columns that no row has are left out."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    shown = {name: form for name, form in columns.items() if any(row.get(name) is not None for row in rows)}
    for name in shown:
        # what fails, fails with long words
        table.add_column(name.replace("_", " "), justify="right" if shown[name] else "left", no_wrap=name != "error")
    for row in rows:
        cells = [_cell(row.get(name), form) for name, form in shown.items()]
        table.add_row(
            *(Text(cell, style="red" if name == "error" else "") for name, cell in zip(shown, cells, strict=True))
        )
    console = Console()
    if not console.is_terminal:  # nothing is cut to the width of a window that is not there
        console = Console(width=Console(width=10_000).measure(table).maximum)
    console.print(table)


def _cell(value: Any, form: str) -> str:
    return "" if value is None else format(value, form) if form and isinstance(value, int | float) else str(value)
