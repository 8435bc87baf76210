"""`opsin data`: look at a dataset before anything is trained on it."""

import json as json_
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import tyro

from opsin.bounds import Count, Index
from opsin.errors import ImageError, OpsinError

__all__ = ["data"]

LINES = 12  # classes, faults and duplicates that are listed


def data(
    where: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")],
    /,
    *,
    model: str | None = None,
    split: str | None = None,
    class_map: str | None = None,
    target: tuple[str, ...] = (),
    output: Path | None = Path("data.png"),
    samples: Index = 10,
    views: Count = 4,
    auto_augment: str | None = "rand-m9-mstd0.5-inc1",
    limit: Count | None = None,
    workers: Index | None = None,
    seed: Index = 0,
    json: bool = False,
) -> int:
    """Say what a dataset holds, and draw what a model will see of it.

    Counts classes, sizes and formats, decodes every picture to find the damaged ones, and finds pictures that come
    twice, in training and validation above all. The sheet shows samples as stored, as evaluation takes them, and
    augmented. Exit code 1 when there are unreadable pictures, duplicates across splits, one class alone, or classes
    that the model has no label for.

    Args:
        where: a folder, a list (CSV, JSONL, Parquet), a tar, shards (wds:…), a hub dataset (hf:…), torch:… or digits.
        model: model that will see it, a name or a folder of a saved one: its size and normalisation, and its labels to
            compare the classes with.
        split: only this split; by default training and validation.
        class_map: file or folder of a saved model that numbers the classes.
        target: column of the labels, where the data has columns; several are a head each.
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

    readers = _open(where, split, {"class_map": class_map, **({"target": target} if target else {})})
    founds = [_survey(reader, title, limit, workers) for title, reader in readers.items()]
    twins = duplicates(*founds)
    leaks = [group for group in twins if len({title for title, _ in group}) > 1]
    left_out = _left_out(readers.values())
    mismatch = _one_class(next(iter(readers.values()))) or _compare(founds[0].classes, model)
    if json:
        print(json_.dumps(_facts(founds, twins, mismatch, left_out), indent=1, ensure_ascii=False))
    else:
        _print(where, founds, twins, mismatch, left_out)
    if output is not None:
        _draw(readers, where, model, output, samples, views, auto_augment, seed)
    return 1 if leaks or mismatch or any(found.errors for found in founds) else 0


def _open(where: str, split: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """The training and validation readers, or the one split that is asked for, or the whole of an undivided stream."""
    from opsin.data.readers import StreamReader, open_reader

    if split is not None:
        return {split: open_reader(where, split=split, **options)}
    try:
        whole = open_reader(where, **options)
    except OpsinError:  # a dataset in parts has no whole
        whole = None
    if isinstance(whole, StreamReader) or (whole is not None and whole.task == "unlabelled"):
        return {"all": whole}
    try:
        return {part: open_reader(where, split=part, **options) for part in ("train", "validation")}
    except OpsinError:
        if whole is None:
            raise
        return {"all": whole}  # too few to be divided


def _left_out(readers: Iterable[Any]) -> Counter[str]:
    """Files that are no pictures by their suffix, of all folders that are read."""
    folders: dict[str, Counter[str]] = {}
    for reader in readers:
        while hasattr(reader, "reader"):  # a part of another one
            reader = reader.reader
        if hasattr(reader, "others"):
            folders[str(reader)] = reader.others
    return sum(folders.values(), Counter())


def _one_class(reader: Any) -> str:
    """What is wrong where one class stands alone; pictures without labels are fine, to predict or look at."""
    try:
        if reader.task == "single":
            reader.check_trainable()
    except OpsinError as error:
        return str(error)
    return ""


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
    from opsin.catalog.labels import labels_for
    from opsin.data.labels import match_classes

    if model is None or classes is None:
        return ""
    record = _record(model)
    known = labels_for(record["num_classes"])
    synsets = () if known is None else known.synsets
    labels = tuple(record.get("label_names") or synsets)
    if labels == synsets and not all(len(name) == 9 and name[0] == "n" and name[1:].isdigit() for name in classes):
        return ""  # own classes: the model gets a head of its own for them
    try:
        match_classes(classes, labels, owner="the data")
    except OpsinError as error:
        return str(error)
    return ""


def _record(model: str) -> Mapping[str, Any]:
    """Preprocessing and labels of a saved model, or of a name's weights."""
    from opsin.catalog import pretrained_cfg
    from opsin.inference.predictor import model_name
    from opsin.models._registry import resolve_name
    from opsin.weights.artefact import read_config

    name = model_name(model)
    if ":" in name:  # local-dir: or hf-hub:
        config = read_config(name)
        return config["pretrained_cfg"] | {key: config.get(key) for key in ("num_classes", "label_names")}
    architecture, tag = resolve_name(name)
    return pretrained_cfg(f"{architecture}.{tag}" if tag else architecture).to_dict()


def _facts(founds: list[Any], twins: list[Any], mismatch: str, left_out: Counter[str]) -> dict[str, Any]:
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
    return {"splits": splits, "duplicates": groups, "labels": mismatch or None, "left_out": dict(left_out)}


def _print(where: str, founds: list[Any], twins: list[Any], mismatch: str, left_out: Counter[str]) -> None:
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
    if left_out:
        listed = ", ".join(f"{n} {suffix or 'without suffix'}" for suffix, n in left_out.most_common(LINES))
        console.print(f"left out, no pictures by their names: {listed}", highlight=False, markup=False, soft_wrap=True)
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
    from opsin.data.pen import save_image
    from opsin.data.preprocess import Preprocess
    from opsin.data.readers import in_words
    from opsin.data.transforms import EvalTransform, TrainTransform
    from opsin.data.views import pick, view_sheet

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
    if not records:
        print("no sheet: none of the samples chosen for it can be read", file=sys.stderr)
        return
    preprocess = Preprocess() if model is None else Preprocess.from_cfg(_record(model))
    names = reader.classes

    def label(target: Any) -> str:
        if reader.heads:
            return ", ".join(in_words(reader.heads, target))
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
