"""`opsin bench`: how fast models are and what memory they take."""

import gc
import json as json_
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from opsin.bounds import AboveZero, Count
from opsin.cli._many import check_output, expand, put_row, show
from opsin.errors import OpsinError

__all__ = ["bench"]

KEY = ("model", "mode", "settings", "device")
COLUMNS = {
    "model": "", "mode": "", "params_M": ".1f", "img_size": "", "batch_size": "d", "images_per_second": ".1f",
    "ms": ".2f", "ms_low": ".2f", "ms_high": ".2f", "memory_MiB": ".0f", "top1": ".2f", "error": "",
}  # fmt: skip


def bench(
    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL …")],
    /,
    *,
    mode: Literal["inference", "train", "both"] = "inference",
    batch_size: Count | None = None,
    img_size: Count | None = None,
    amp: Literal["none", "bfloat16", "float16"] = "none",
    channels_last: bool = False,
    prepare: bool = False,
    compile: bool = False,
    threads: Count | None = None,
    seconds: AboveZero = 3.0,
    device: str | None = None,
    output: Path | None = None,
    plot: Path | None = None,
    json: bool = False,
) -> int:
    """Measure images per second, milliseconds a batch (median and quartiles) and the peak of memory.

    Models get random weights and pictures: no file is read, nothing is downloaded. Memory is that of tensors on a GPU,
    of the whole process on a CPU. Exit code 1 when a model failed.

    Args:
        models: names, patterns of names, folders written by opsin.save, or a .txt file of these.
        mode: a forward pass, a whole training step, or one after the other.
        batch_size: pictures a step; by default the largest that fits on a GPU, the fastest on a CPU.
        img_size: side of the pictures, in pixels; by default what the model was made for.
        amp: mixed precision.
        channels_last: memory layout of weights and pictures.
        prepare: with opsin.prepare_for_inference: batch norms folded, weights packed.
        compile: with torch.compile.
        threads: of torch, on a CPU.
        seconds: how long to measure each, after warming up.
        device: cpu, cuda, cuda:1, mps; the best there is by default.
        output: file of results (.csv or .json), written anew after each model; the same measurement is replaced.
        plot: draw the published ImageNet accuracy against the speed into this image file.
        json: print the results as JSON.
    """
    import torch

    from opsin.inference._device import find_device

    names = expand(models, pretrained=False)
    if prepare and mode != "inference":
        raise OpsinError(f"--prepare is for inference, not for --mode {mode}")
    check_output(output, KEY)
    if plot is not None:
        from opsin.inference.speed_plot import check_plot

        check_plot(plot)
    device = str(find_device(device))
    how: dict[str, Any] = {
        "batch_size": batch_size, "channels_last": channels_last, "prepare": prepare, "compile": compile,
        "threads": threads,
    }  # fmt: skip
    asked = how | {"img_size": img_size, "amp": None if amp == "none" else amp}
    settings = " ".join(k if v is True else f"{k}={v}" for k, v in asked.items() if v not in (None, False))
    how |= {"amp_dtype": None if amp == "none" else getattr(torch, amp), "seconds": seconds}
    rows = []
    for name in names:
        for one in ("inference", "train") if mode == "both" else (mode,):
            print(f"{name}, {one} …", file=sys.stderr)
            row = {"model": name, "mode": one, "settings": settings, "device": device}
            row |= _measure(name, img_size, device, train=one == "train", **how)
            put_row(output, row, KEY)
            rows.append(row)
            gc.collect()
    if json:
        print(json_.dumps(rows, indent=1, ensure_ascii=False))
    else:
        show(rows, COLUMNS)
    if plot is not None:
        from opsin.inference.speed_plot import speed_plot

        print(f"wrote {speed_plot(rows, plot)}", file=sys.stderr)
    return 1 if any(row.get("error") for row in rows) else 0


def _measure(name: str, img_size: int | None, device: str, **how: Any) -> dict[str, Any]:
    """The figures of one model, or the error that kept it from having any."""
    from opsin.inference.benchmark import benchmark

    try:
        model, accuracy = _build(name, img_size)
        found = benchmark(model.to(device), img_size=img_size, **how)
    except Exception as error:  # whatever it is, the models after this one are not to suffer
        if not isinstance(error, OpsinError):
            traceback.print_exc()
        print(f"opsin: {name}: {error}", file=sys.stderr)
        return {"error": (str(error).splitlines() or [type(error).__name__])[0]}
    (height, width), memory = found["img_size"], found["memory"]
    side = str(height) if height == width else f"{height}x{width}"
    return {
        "params_M": round(found["params"] / 1e6, 4), "img_size": side,
        "batch_size": found["batch_size"], "images_per_second": round(found["images_per_second"], 3),
        **{k: round(found[k], 4) for k in ("ms", "ms_low", "ms_high")}, "steps": found["steps"],
        "memory_MiB": None if memory is None else round(memory / 2**20, 2),
        "top1": accuracy.get((height, width)),
    }  # fmt: skip


def _build(name: str, img_size: int | None) -> tuple[Any, dict[tuple[int, int], float]]:
    """The model with random weights, and its published accuracy by image size (of the default tag if none is named)."""
    from opsin import catalog
    from opsin.factory import create_model
    from opsin.inference.predictor import architecture_of, is_saved, model_name
    from opsin.models._index import MODELS
    from opsin.models._registry import find_family, get_pretrained_cfg

    source, accuracy = model_name(name), {}
    architecture = architecture_of(source)
    if not is_saved(source) and architecture in MODELS:
        records = catalog.accuracy(get_pretrained_cfg(source).name)
        accuracy = {(one.img_size, one.img_size): one.imagenet_top1 for one in records}
    sized = img_size is not None and architecture in MODELS
    if sized and "img_size" in find_family(architecture).variants[architecture].names():
        return create_model(source, img_size=img_size), accuracy
    return create_model(source), accuracy
