"""`opsin validate`: how good models are on data."""

import json as json_
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from opsin.bounds import AboveZero, Count, Index
from opsin.cli._many import check_output, expand, find_row, put_row, show
from opsin.errors import OpsinError

__all__ = ["validate"]

KEY = ("model", "checkpoint", "data", "settings")  # what a row of results answers
COLUMNS = {
    "model": "", "top1": ".4f", "top5": ".4f", "real_top1": ".4f", "mAP": ".4f", "mae": ".4g", "rmse": ".4g",
    "r2": ".4f", "loss": ".4f", "f1": ".4f", "ece": ".4f", "images": "d", "skipped": "d", "images_per_second": ".1f",
    "error": "",
}  # fmt: skip
BEST = {"top1": -1, "mAP": -1, "mae": 1, "loss": 1}  # what decides the order of the table, and whether less is better


def validate(
    where: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")],
    /,
    *,
    model: tuple[str, ...],
    checkpoint: str | None = None,
    split: str | None = None,
    class_map: str | None = None,
    target: tuple[str, ...] = (),
    num_classes: Count | None = None,
    in_chans: Count | None = None,
    img_size: Count | None = None,
    crop_pct: AboveZero | None = None,
    use_test_size: bool = False,
    tta: tuple[Literal["hflip", "crops"], ...] = (),
    real: bool = False,
    all_classes: bool = False,
    exact: bool = False,
    amp: Literal["none", "bfloat16", "float16"] = "none",
    batch_size: Count = 64,
    workers: Index | None = None,
    device: str | None = None,
    output: Path | None = None,
    again: bool = False,
    json: bool = False,
) -> int:
    """Score models on data: accuracy, loss, calibration and more, and images per second.

    The classes of the data are found among a model's labels by name or WordNet id, so that folders of ImageNet-A, -R or
    -V2 need no further word; the model decides among the classes that the data has. With --output, models that the file
    has scores of are not asked again, unless their weights on this machine have changed, so that an interrupted run
    goes on. Exit code 1 when a model failed.

    Args:
        where: a folder, a list (CSV, JSONL, Parquet), a tar, shards (wds:…), a hub dataset (hf:…), torch:… or digits.
        model: names, patterns of names with weights, folders written by opsin.save, hub ids, or a .txt file of these.
        checkpoint: weights for the one model that is named, a file or a folder, in place of the published ones.
        split: split of the data; by default all of undivided data, else its validation split.
        class_map: file that numbers the classes.
        target: column of the labels, where the data has columns; several for a model of several heads.
        num_classes: outputs of the model that the checkpoint is of.
        in_chans: channels of the pictures that the model takes.
        img_size: side of the pictures, in pixels.
        crop_pct: share of the resized picture that the crop keeps.
        use_test_size: the size and crop that the publishers tested with.
        tta: average the outputs for several views: hflip adds the mirror image, crops takes the corners and the middle.
        real: ReaL labels of ImageNet's validation set as well.
        all_classes: let a model decide among all of its classes, not those of the data alone.
        exact: decode and resize bit for bit as Pillow does, slower.
        amp: mixed precision.
        batch_size: pictures a forward pass.
        workers: processes that read and decode; one per core by default.
        device: cpu, cuda, cuda:1, mps; the best there is by default.
        output: file of results (.csv or .json), written anew after each model.
        again: score models again that the file has scores of.
        json: print the results as JSON.
    """
    names = expand(model, pretrained=checkpoint is None)
    if checkpoint is not None and len(names) > 1:
        raise OpsinError(f"a checkpoint is of one model, but {len(names)} are named")
    if num_classes is not None and checkpoint is None:
        raise OpsinError("--num-classes is for a --checkpoint; published weights and saved models have their own heads")
    check_output(output, KEY)
    from opsin.inference._device import find_device

    device = str(find_device(device))
    reader = _open(where, split, class_map, target)
    building = {"in_chans": in_chans, "num_classes": num_classes}
    sizing = {"img_size": img_size, "crop_pct": crop_pct, "use_test_size": use_test_size}
    judging = {"tta": tta, "real": real, "all_classes": all_classes, "exact": exact}
    asked = {"split": split, "class_map": class_map, "target": target, **building, **sizing, **judging}
    asked["amp"] = None if amp == "none" else amp
    running = {"batch_size": batch_size, "workers": workers, "device": device, "amp": amp}
    rows = []
    for name in names:
        question = {"model": name, "checkpoint": checkpoint or "", "data": where, "settings": _settings(asked)}
        weights = _weights(checkpoint or name)
        row = None if again else find_row(output, question, KEY)
        if row is None or row.get("error") or row.get("weights", "") != weights:
            row = (
                question | {"weights": weights} | _scores(name, reader, checkpoint, building, sizing, judging | running)
            )
            put_row(output, row, KEY)
        rows.append(row)
    rows.sort(key=_rank)
    if json:
        print(json_.dumps(rows, indent=1, ensure_ascii=False))
    else:
        of_heads = {name: ".4g" for row in rows for name in row if name.rpartition("/")[2] in BEST and "/" in name}
        show(rows, {"model": COLUMNS["model"]} | of_heads | COLUMNS)
    return 1 if any(row.get("error") for row in rows) else 0


def _settings(asked: dict[str, Any]) -> str:
    """What was asked for beside the defaults, in one line: "img_size=256 tta=hflip"."""
    words = []
    for name, value in asked.items():
        if value is True:
            words.append(name)
        elif value not in (None, False, ()):
            words.append(f"{name}={'+'.join(sorted(value)) if isinstance(value, tuple) else value}")
    return " ".join(words)


def _weights(place: str) -> str:
    """What tells weights on this machine from those that may lie in their place later; of published ones nothing."""
    from opsin.weights.artefact import WEIGHTS
    from opsin.weights.sources import LOCAL_PREFIX

    path = Path(place.removeprefix(LOCAL_PREFIX)).expanduser()
    if path.is_dir():
        path = path / WEIGHTS
    if not path.is_file():
        return ""
    facts = path.stat()
    return f"{facts.st_size} bytes of {facts.st_mtime_ns}"


def _rank(row: dict[str, Any]) -> float:
    return next((sign * row[name] for name, sign in BEST.items() if row.get(name) is not None), float("inf"))


def _open(where: str, split: str | None, class_map: str | None, target: tuple[str, ...]) -> Any:
    """All of undivided data; of divided data the split, which is validation where none is named."""
    from opsin.data.readers import open_reader

    options: dict[str, Any] = {"class_map": class_map, **({"target": target} if target else {})}
    if split is not None:
        return open_reader(where, split=split, **options)
    try:
        return open_reader(where, **options)
    except OpsinError:  # a dataset in parts has no whole
        return open_reader(where, split="validation", **options)


def _scores(
    name: str, reader: Any, checkpoint: str | None, building: dict[str, Any], sizing: dict[str, Any],
    how: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """The scores of one model, or the error that kept it from having any."""
    import torch

    from opsin.train.validate import validate

    amp, device = how.pop("amp"), how.pop("device")
    try:
        model, preprocess, said = _build(name, checkpoint, building, sizing)
        with _Progress(name, reader) as progress:
            scores = validate(
                model, reader, preprocess=preprocess, scale=said.get("scale"), heads=said.get("heads", ()),
                device=device, progress=progress, amp_dtype=None if amp == "none" else getattr(torch, amp), **how,
            )  # fmt: skip
    except Exception as error:  # whatever it is, the models after this one are not to suffer
        if not isinstance(error, OpsinError):
            traceback.print_exc()
        print(f"opsin: {name}: {error}", file=sys.stderr)
        return {"error": (str(error).splitlines() or [type(error).__name__])[0]}
    size = preprocess.input_size[1:]
    facts: dict[str, Any] = {
        "img_size": "x".join(map(str, size if size[0] != size[1] else size[:1])),
        "crop_pct": preprocess.crop_pct,
    }
    return facts | {k: round(v, 6) for k, v in scores.items()}


def _build(
    name: str, checkpoint: str | None, building: dict[str, Any], sizing: dict[str, Any]
) -> tuple[Any, Any, dict[str, Any]]:
    """The model with its weights, how it sees pictures, and what its outputs say."""
    from opsin.data.preprocess import Preprocess, resolve_data_config
    from opsin.factory import create_model
    from opsin.inference.predictor import architecture_of, is_saved, meaning, model_name, saved_at
    from opsin.models._index import MODELS
    from opsin.models._registry import find_family, get_pretrained_cfg
    from opsin.weights.artefact import read_config

    source = model_name(name)
    architecture = architecture_of(source)
    if checkpoint is not None and (saved := saved_at(checkpoint)):  # it says how it was made itself
        if architecture_of(saved) != architecture:
            raise OpsinError(f"{checkpoint} holds a {architecture_of(saved)}, not a {architecture}")
        source, checkpoint = saved, None
    record = read_config(source)["pretrained_cfg"] if is_saved(source) else get_pretrained_cfg(source).to_dict()
    side, options = sizing["img_size"], dict(building)
    if side is None and sizing["use_test_size"] and record.get("test_input_size"):
        side = tuple(record["test_input_size"][1:])
    if (
        side is not None
        and architecture in MODELS
        and "img_size" in find_family(architecture).variants[architecture].names()
    ):
        options["img_size"] = side
    if checkpoint is None:
        model = create_model(source, pretrained=True, **options)
    else:
        model = create_model(source, checkpoint_path=checkpoint, **options)
    given = {"img_size": side, "crop_pct": sizing["crop_pct"]}
    found = resolve_data_config(given, model=model, use_test_size=sizing["use_test_size"])
    return model, Preprocess(**found), meaning(source)


class _Progress:
    """A bar on stderr where a person watches."""

    def __init__(self, name: str, reader: Any) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self.bar = Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
        self.task = self.bar.add_task(name, total=len(reader) if hasattr(reader, "__len__") else reader.length)

    def __enter__(self) -> "_Progress":
        self.bar.start()
        return self

    def __call__(self, count: int) -> None:
        self.bar.advance(self.task, count)

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
