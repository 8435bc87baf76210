"""`opsin data`: look at a dataset before anything is trained on it."""

import json as json_
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import tyro

from opsin.errors import ImageError, OpsinError

__all__ = ["data"]

LINES = 12  # classes, faults and duplicates that are listed


def data(
    where: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")],
    /,
    *,
    model: str | None = None,
    split: str | None = None,
    output: Path | None = Path("data.png"),
    samples: int = 10,
    views: int = 4,
    auto_augment: str | None = "rand-m9-mstd0.5-inc1",
    limit: int | None = None,
    workers: int | None = None,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Say what a dataset holds, and draw what a model will see of it.

    Counts classes, sizes and formats, decodes every picture to find the damaged ones, and finds pictures that come
    twice, in training and validation above all. The sheet shows samples as stored, as evaluation takes them, and
    augmented. Exit code 1 when there are unreadable pictures or duplicates across splits.

    Args:
        where: a folder, a list (CSV, JSONL, Parquet), a tar, shards (wds:…), a hub dataset (hf:…), torch:… or digits.
        model: model that will see it: its size and normalisation, and its labels to compare the classes with.
        split: only this split; by default training and validation.
        output: file of the sheet.
        samples: rows of the sheet.
        views: augmented versions of each sample.
        auto_augment: policy of the augmentation, as timm's strings; None for none.
        limit: look at the first so many samples of each split only.
        workers: threads that decode.
        seed: of the choice of samples and of the augmentation.
        json: print the findings as JSON.
    """
    from opsin.data.survey import duplicates

    readers = _open(where, split)
    founds = [_survey(reader, title, limit, workers) for title, reader in readers.items()]
    twins = duplicates(*founds)
    leaks = [group for group in twins if len({title for title, _ in group}) > 1]
    mismatch = _compare(founds[0].classes, model)
    if json:
        print(json_.dumps(_facts(founds, twins, mismatch), indent=1, ensure_ascii=False))
    else:
        _print(where, founds, twins, mismatch)
    if output is not None:
        _draw(readers, where, model, output, samples, views, auto_augment, seed)
    return 1 if leaks or mismatch or any(found.errors for found in founds) else 0


def _open(where: str, split: str | None) -> dict[str, Any]:
    """The training and validation readers, or the one split that is asked for, or the whole of an undivided stream."""
    from opsin.data.readers import StreamReader, open_reader

    if split is not None:
        return {split: open_reader(where, split=split)}
    try:
        whole = open_reader(where)
    except OpsinError:  # a dataset in parts has no whole
        whole = None
    if isinstance(whole, StreamReader) or (whole is not None and whole.task == "unlabelled"):
        return {"all": whole}
    return {part: open_reader(where, split=part) for part in ("train", "validation")}


def _survey(reader: Any, title: str, limit: int | None, workers: int | None) -> Any:
    from rich.console import Console
    from rich.progress import Progress

    from opsin.data.survey import survey

    total = len(reader) if hasattr(reader, "__len__") else reader.length
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(f"looking at {title}", total=min(total, limit) if total and limit else total or limit)
        return survey(reader, title=title, limit=limit, workers=workers, progress=lambda: bar.advance(task))


def _compare(classes: tuple[str, ...] | None, model: str | None) -> str:
    """What is wrong between the classes and the labels of a model; empty where they fit, or where a new head is due."""
    from opsin import catalog
    from opsin.catalog.labels import labels_for
    from opsin.data.labels import match_classes
    from opsin.models._registry import resolve_name

    if model is None or classes is None:
        return ""
    architecture, tag = resolve_name(model)
    known = labels_for(catalog.pretrained_cfg(f"{architecture}.{tag}" if tag else architecture).num_classes)
    if known is None or not all(len(name) == 9 and name[0] == "n" and name[1:].isdigit() for name in classes):
        return ""  # own classes: the model gets a head of its own for them
    try:
        match_classes(classes, known.synsets)
    except OpsinError as error:
        return str(error)
    return ""


def _facts(founds: list[Any], twins: list[Any], mismatch: str) -> dict[str, Any]:
    splits = {
        found.title: {
            "samples": len(found.looks),
            "task": found.task,
            "classes": found.counts(),
            "imbalance": None if found.imbalance() == float("inf") else found.imbalance(),
            "sizes": found.sizes(),
            "formats": dict(found.formats()),
            "unreadable": {one.name: one.error for one in found.errors},
        }
        for found in founds
    }
    groups = [[{"split": title, "name": one.name} for title, one in group] for group in twins]
    return {"splits": splits, "duplicates": groups, "labels": mismatch or None}


def _print(where: str, founds: list[Any], twins: list[Any], mismatch: str) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console()
    console.print(Text(where, style="bold"), soft_wrap=True)
    for found in founds:
        sizes = ", ".join(f"{what} {w}x{h}" for what, (w, h) in found.sizes().items())
        forms = ", ".join(f"{n} {form}" for form, n in found.formats().most_common(5))
        console.print(Text(f"{found.title}: {len(found.looks)} samples, {found.task}", style="bold blue"))
        console.print(f"  sizes: {sizes or 'none'}; formats: {forms or 'none'}", highlight=False, soft_wrap=True)
        if found.counts():
            _classes(console, found)
    _faults(console, founds)
    _twins(console, twins)
    if mismatch:
        console.print(Text(mismatch, style="red"), soft_wrap=True)


def _classes(console: Any, found: Any) -> None:
    from rich.text import Text

    counts = Counter(found.counts())
    rows = counts.most_common()
    if len(rows) > LINES:
        rows = [*rows[: LINES // 2], (f"… {len(rows) - LINES} more …", -1), *rows[-LINES // 2 :]]
    console.print(f"  {len(counts)} classes, largest over smallest {found.imbalance():.3g}", highlight=False)
    widest, most = max(len(name) for name, _ in rows), max(counts.values()) or 1
    for name, count in rows:
        line = Text(f"    {name:<{min(widest, 40)}}  ")
        if count >= 0:
            line.append(f"{count:>7}  ").append("█" * round(24 * count / most), style="blue")
        console.print(line, soft_wrap=True)


def _faults(console: Any, founds: list[Any]) -> None:
    from rich.text import Text

    errors = [one for found in founds for one in found.errors]
    if errors:
        console.print(Text(f"unreadable: {len(errors)}", style="red"))
        for one in errors[:LINES]:
            console.print(Text(f"  {one.error}"), soft_wrap=True)


def _twins(console: Any, twins: list[Any]) -> None:
    from rich.text import Text

    across = [group for group in twins if len({title for title, _ in group}) > 1]
    if across:
        heading = f"in more than one split, so that validation will look better than it is: {len(across)}"
        console.print(Text(heading, style="red"))
        for group in across[:LINES]:
            console.print(Text("  " + " = ".join(f"{one.name} ({title})" for title, one in group)), soft_wrap=True)
    if within := len(twins) - len(across):
        console.print(f"more than once within a split: {within}", highlight=False)


def _draw(
    readers: dict[str, Any], where: str, model: str | None, output: Path, samples: int, views: int,
    auto_augment: str | None, seed: int,
) -> None:  # fmt: skip
    from opsin.catalog import pretrained_cfg
    from opsin.data.pen import save_image
    from opsin.data.preprocess import Preprocess
    from opsin.data.transforms import EvalTransform, TrainTransform
    from opsin.data.views import pick, view_sheet
    from opsin.models._registry import resolve_name

    title, reader = next(iter(readers.items()))
    if hasattr(reader, "stream"):
        records = [
            one for one, _ in zip(reader.stream(), range(samples), strict=False) if not isinstance(one, Exception)
        ]
    else:
        records = []
        for index in pick(reader, samples):
            with suppress(ImageError):  # listed among the unreadable
                records.append(reader[index])
    preprocess = Preprocess()
    if model is not None:
        architecture, tag = resolve_name(model)
        preprocess = Preprocess.from_cfg(pretrained_cfg(f"{architecture}.{tag}" if tag else architecture))
    names = reader.classes

    def label(target: Any) -> str:
        if names is not None and isinstance(target, int):
            return names[target]
        return ", ".join(names[i] for i in target) if names is not None and isinstance(target, tuple) else str(target)

    training = TrainTransform(preprocess.input_size[1:], auto_augment=auto_augment, mean=preprocess.mean)
    h, w = preprocess.input_size[1:]
    sheet = view_sheet(
        records,
        evaluation=EvalTransform(preprocess),
        training=training,
        views=views,
        title=f"{where} ({title}) as {model or 'a model'} sees it at {w}x{h}",
        labels=label,
        seed=seed,
    )
    print(f"wrote {save_image(sheet, output)}", file=sys.stderr)
