"""One artefact: `model.safetensors` and `config.json` in a folder, as the hub, timm and transformers read them."""

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

import opsin
from opsin.catalog import PretrainedCfg, labels_for
from opsin.errors import UnknownModelError, WeightsError, check_choice, explained
from opsin.models._registry import find_family
from opsin.weights.fetch import hub_file, split_hub_name, sync
from opsin.weights.read import read_metadata
from opsin.weights.sources import HUB_PREFIXES, LOCAL_PREFIX

__all__ = ["CONFIG", "TASKS", "WEIGHTS", "read_config", "read_task", "save"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
ROOT_KEYS = ("num_classes", "global_pool")  # transformers refuses them inside `model_args`
SOURCES = ("architecture", "file", "url", "hf_hub_id", "hf_hub_filename", "custom_load")
TASKS = ("single", "multi", "regression", "heads")  # what the outputs of a model can mean
RECORD_KEYS = {field.name for field in fields(PretrainedCfg)}


def save(
    model: nn.Module,
    directory: str | Path,
    *,
    label_names: Sequence[str] | None = None,
    label_descriptions: Mapping[str, str] | None = None,
    license: str | None = None,
    recipe: Mapping[str, Any] | None = None,
    task: str | None = None,
    heads: Sequence[Mapping[str, Any]] = (),
    state: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write a model that needs nothing else to be loaded and used: `opsin.load(directory)`.

    Args:
        directory: made if it is not there. A new folder appears whole or not at all; in an existing one both files are
            written out in full before the first of them takes its name, and a pair torn apart by a crash between the
            two renames is refused when read.
        label_names: one per class, in order. By default those the model carries, or of the ImageNet set of its size.
        label_descriptions: label name -> words.
        license: of the weights; by default that of the weights the model began with.
        recipe: how the weights came to be; anything JSON can hold.
        task: what the outputs mean: "single" label (as when it is left out), "multi" labels or "regression"; the
            `target_scale` of a recipe tells the mean and deviation of numbers. "heads" are some of each.
        heads: what the outputs of these mean, one after the other, as `opsin.data.readers.Head.to_dict` says it.
        state: weights to write in place of the model's own, such as those gathered from the parts of several processes.

    Returns:
        The directory. Raises WeightsError when a label list does not match the classes, OpsinError where it cannot be
        written.
    """
    directory = Path(directory)
    if task is not None:
        check_choice(task, TASKS, what="task")
    if (task == "heads") != bool(heads):
        raise WeightsError("the task heads and a list of heads belong together")
    weights = _independent(model.state_dict() if state is None else state)
    config, mark = _config(model, label_names, label_descriptions, license, recipe), uuid.uuid4().hex
    meaning = {"task": task, "heads": [dict(head) for head in heads] or None}
    config["opsin"] |= {"mark": mark} | {key: value for key, value in meaning.items() if value is not None}
    with explained(directory), _whole(directory) as place:
        try:
            save_file(weights, place / WEIGHTS, metadata={"format": "pt", "opsin_mark": mark})
        except SafetensorError as error:  # "Error while serializing: I/O error: No space left on device (os error 28)"
            raise OSError(str(error).rpartition("error: ")[2].partition(" (os")[0]) from error
        (place / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        for name in (WEIGHTS, CONFIG):
            (place / name).chmod(0o644)
    return directory


def read_config(source: str | Path, *, cache_dir: str | Path | None = None) -> dict[str, Any]:
    """The `config.json` of a folder, of `local-dir:FOLDER`, or of `hf-hub:org/repo@revision`.

    Its `pretrained_cfg` holds the keys that `PretrainedCfg` knows; what other versions wrote beside them is left out.

    Raises:
        WeightsError: no such folder or repository, no readable config in it, or files of two different saves.
    """
    name = str(source)
    if prefix := next((prefix for prefix in HUB_PREFIXES if name.startswith(prefix)), None):
        repo, revision = split_hub_name(name.removeprefix(prefix))
        path = hub_file(repo, (CONFIG,), revision=revision, cache_dir=cache_dir)
    else:
        path = Path(name.removeprefix(LOCAL_PREFIX)).expanduser() / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"no {CONFIG} in {path.parent}: not a folder of a saved model") from None
    except (ValueError, OSError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise WeightsError(f"{path} names no architecture: not the config of an image model")
    _check_pair(config, path)
    # files of old hub uploads are flat: the record stands at the root
    record = config.get("pretrained_cfg", config)
    return config | {"pretrained_cfg": {k: v for k, v in record.items() if k in RECORD_KEYS and v is not None}}


class Meaning(NamedTuple):
    """What the outputs of a saved model say: the task; mean and std of numbers; several heads one after the other."""

    task: str
    scale: dict[str, list[float]] | None
    heads: list[dict[str, Any]]


def read_task(config: Mapping[str, Any]) -> Meaning:
    """What the outputs of a saved model say, of its `read_config`."""
    own = config.get("opsin") or {}
    scale = (own.get("recipe") or {}).get("target_scale")
    return Meaning(own.get("task") or ("regression" if scale else "single"), scale, own.get("heads") or [])


def _check_pair(config: dict[str, Any], path: Path) -> None:
    mark, weights = (config.get("opsin") or {}).get("mark"), path.with_name(WEIGHTS)
    if not mark or not weights.is_file():
        return
    theirs = read_metadata(weights).get("opsin_mark")
    if theirs and theirs != mark:
        raise WeightsError(f"{path.parent} holds the config of one save and the weights of another; save it again")


def _independent(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, each with memory of its own: what the file format takes, ties written out."""
    seen: set[int] = set()
    out = {}
    for key, value in state.items():
        value = value.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        out[key] = value.clone() if place in seen else value
        seen.add(place)
    return out


def _config(
    model: Any,
    label_names: Sequence[str] | None,
    label_descriptions: Mapping[str, str] | None,
    license: str | None,
    recipe: Mapping[str, Any] | None,
) -> dict[str, Any]:
    record = {k: v for k, v in model.pretrained_cfg.items() if v is not None}
    record |= {"num_classes": model.num_classes, "input_size": _input_size(model, record)}
    if license:
        record["license"] = license
    names, words = _labels(model, record, label_names, label_descriptions)
    record = {k: v for k, v in record.items() if k not in (*SOURCES, "label_names", "label_descriptions")}
    out = {
        "architecture": model.architecture,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "global_pool": model.config.global_pool,
        "label_names": names,
        "label_descriptions": words,
        "model_args": _model_args(model),
        "pretrained_cfg": record,
    }
    own = {
        "version": opsin.__version__,
        "config": model.config.to_dict(),
        "license": record.get("license"),
        "recipe": dict(recipe) if recipe else None,
    }
    out["opsin"] = {k: v for k, v in own.items() if v is not None}
    return {k: v for k, v in out.items() if v is not None}


def _input_size(model: Any, record: Mapping[str, Any]) -> list[int]:
    """What the saved model takes, which may not be what its first weights took."""
    size = list(record.get("input_size") or (3, 224, 224))
    size[0] = model.config.in_chans
    if image := getattr(model.config, "img_size", None):
        size[1:] = [image, image] if isinstance(image, int) else list(image)
    return size


def _model_args(model: Any) -> dict[str, Any]:
    """The arguments that differ from the architecture's own; all of them when it is not a registered one."""
    config = model.config.to_dict()
    try:
        variant = find_family(model.architecture).variants[model.architecture]
    except (UnknownModelError, KeyError):
        return {k: v for k, v in config.items() if k not in ROOT_KEYS}
    changed = {
        field.name for field in fields(variant) if getattr(variant, field.name) != getattr(model.config, field.name)
    }
    full = config | {name: getattr(model.config, name) for name in changed if name not in config}
    return {k: full[k] for k in full if k in changed and k not in ROOT_KEYS}


def _labels(
    model: Any,
    record: Mapping[str, Any],
    names: Sequence[str] | None,
    words: Mapping[str, str] | None,
) -> tuple[list[str] | None, dict[str, str] | None]:
    if names is not None and len(names) != model.num_classes:
        raise WeightsError(f"{len(names)} label names for a model of {model.num_classes} classes")
    if names is None and len(record.get("label_names") or ()) == model.num_classes > 0:
        names, words = record["label_names"], words or record.get("label_descriptions")
    if names is None and (known := labels_for(model.num_classes)):
        names, words = known.synsets, words or dict(zip(known.synsets, known.lemmas, strict=True))
    if words and (unknown := [key for key in words if key not in (names or ())]):
        raise WeightsError(f"descriptions of labels that the model does not have: {', '.join(unknown[:5])}")
    return (list(names) if names else None), (dict(words) if words else None)


@contextmanager
def _whole(directory: Path) -> Iterator[Path]:
    """A place to write to; what is there at the end becomes `directory`, or goes into it. On an error nothing does."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    if directory.exists() and not directory.is_dir():
        raise WeightsError(f"{directory} is a file; give a folder")
    parent = directory if directory.is_dir() else directory.parent
    place = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".tmp", dir=parent))
    try:
        yield place
        for file in sorted(place.iterdir()):
            sync(file)
        if parent is directory:
            for name in (WEIGHTS, CONFIG):
                os.replace(place / name, directory / name)
            sync(directory)
        else:
            place.chmod(0o755)
            os.rename(place, directory)
            sync(parent)
    finally:
        shutil.rmtree(place, ignore_errors=True)
