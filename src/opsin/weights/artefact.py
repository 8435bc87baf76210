"""One artefact: `model.safetensors` and `config.json` in a folder, as the hub, timm and transformers read them."""

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

import opsin
from opsin.catalog import PretrainedCfg, labels_for
from opsin.errors import DamagedError, OpsinError, UnknownModelError, WeightsError, check_choice, explained
from opsin.models._model import Model, deferred_init
from opsin.models._registry import find_family
from opsin.weights.fetch import discard, hub_file, split_hub_name, sync
from opsin.weights.read import listed, read_metadata
from opsin.weights.sources import HUB_PREFIXES, LOCAL_PREFIX

__all__ = ["CONFIG", "TASKS", "WEIGHTS", "read_config", "read_task", "save"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
SOURCES = ("architecture", "file", "url", "hf_hub_id", "hf_hub_filename", "custom_load")
# what a record says of the weights themselves: it holds for a model that began with them
ORIGIN = ("tag", "license", "description", "origin_url", "paper_name", "paper_ids", "notes")
LABELS = ("label_names", "label_descriptions")
TASKS = ("single", "multi", "regression", "heads")  # what the outputs of a model can mean
RECORD = {name: kind for name, kind in get_type_hints(PretrainedCfg).items() if name not in SOURCES}
ROOT = {"num_classes": int, "global_pool": str, "model_args": dict, "opsin": dict}
OWN = {"task": str, "recipe": dict, "heads": list, "mark": str}


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
        model: one that `create_model` made, before `prepare_for_inference`. Its classifier may have been replaced by
            hand: its rows are the classes.
        directory: made if it is not there. A new folder appears whole or not at all; in an existing one both files are
            written out in full before the first of them takes its name, and a pair torn apart by a crash between the
            two renames is refused when read.
        label_names: one per class, in order. By default those the model carries, or of the ImageNet set of its size.
        label_descriptions: label name -> words.
        license: of the weights; by default that of the published weights the model began with, if any.
        recipe: how the weights came to be; anything JSON can hold.
        task: what the outputs mean: "single" label (as when it is left out), "multi" labels or "regression"; the
            `target_scale` of a recipe tells the mean and deviation of numbers. "heads" are some of each.
        heads: what the outputs of these mean, one after the other, as `opsin.data.readers.Head.to_dict` says it.
        state: weights to write in place of the model's own, such as those gathered from the parts of several processes.

    Returns:
        The directory. Raises WeightsError when a label list does not match the classes, and for a model that could not
        be built and loaded again; OpsinError for a module of another kind, and where it cannot be written.
    """
    model = _whole_model(model)
    directory = Path(directory)
    if task is not None:
        check_choice(task, TASKS, what="task")
    if (task == "heads") != bool(heads):
        raise WeightsError("the task heads and a list of heads belong together")
    weights = _independent(model.state_dict() if state is None else state)
    made = replace(model.config, num_classes=_classes(model, weights))
    _check_fits(model, made, weights)
    config, mark = _config(model, made, label_names, label_descriptions, license, recipe), uuid.uuid4().hex
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
    return _parse(path, fetched=bool(prefix))


def _parse(path: Path, fetched: bool) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"no {CONFIG} in {path.parent}: not a folder of a saved model") from None
    except (ValueError, OSError) as error:
        if fetched:
            discard(path)
        raise WeightsError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise WeightsError(f"{path} names no architecture: not the config of an image model")
    # files of old hub uploads are flat: the record stands at the root
    record = config.get("pretrained_cfg", config)
    if not isinstance(record, dict):
        raise WeightsError(f"{path}: pretrained_cfg is {record!r}, not an object")
    at_root = {k: config[k] for k in ("num_classes", *LABELS) if config.get(k) is not None}
    record = {k: v for k, v in (record | at_root).items() if k in RECORD}
    if isinstance(record.get("label_names"), list):  # numbers are names too
        record["label_names"] = [str(name) for name in record["label_names"]]
    _check_kinds(config, ROOT, path)
    _check_kinds(config.get("opsin") or {}, OWN, path)
    _check_kinds(record, RECORD, path)
    _check_pair(config, path, fetched)
    record = {k: v for k, v in record.items() if v is not None}
    return config | {k: record[k] for k in LABELS if k in record} | {"pretrained_cfg": record}


def _check_kinds(values: Mapping[str, Any], kinds: Mapping[str, Any], path: Path) -> None:
    for key, kind in kinds.items():
        if values.get(key) is not None and not _is_a(values[key], kind):
            raise WeightsError(f"{path}: {key} is {values[key]!r}, which it cannot be")


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a JSON value fits a field's type, where lists stand for tuples."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_is_a(value, one) for one in args)
    if origin is tuple:
        if not isinstance(value, list):
            return False
        kinds = args[:1] * len(value) if args[-1] is ... else args
        return len(value) == len(kinds) and all(map(_is_a, value, kinds))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else origin or kind)


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


def _check_pair(config: dict[str, Any], path: Path, fetched: bool) -> None:
    mark, weights = (config.get("opsin") or {}).get("mark"), path.with_name(WEIGHTS)
    if not mark or not weights.is_file():
        return
    try:
        theirs = read_metadata(weights).get("opsin_mark")
    except DamagedError:
        if not fetched:
            raise
        discard(weights)  # the next step fetches it again
        return
    if theirs and theirs != mark:
        raise WeightsError(f"{path.parent} holds the config of one save and the weights of another; save it again")


def _whole_model(model: Any) -> Model:
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    if isinstance(model, Model) and model.architecture:
        return model
    raise OpsinError(
        f"opsin.save writes a whole model that create_model made, not {type(model).__name__}: its config.json is what "
        "builds it again. Of another module keep the state_dict(), with safetensors.torch.save_file"
    )


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


def _classes(model: Any, weights: Mapping[str, Tensor]) -> int:
    """The rows of the classifier, which may not be the one that the model was built with."""
    paths = (model.classifier_path,) if isinstance(model.classifier_path, str) else model.classifier_path
    found = {
        path: [v.shape[0] for k, v in weights.items() if k.startswith(f"{path}.") and v.ndim > 1] for path in paths
    }
    rows = {path: counts[-1] for path, counts in found.items() if counts}
    if len(set(rows.values())) > 1:
        raise WeightsError(
            "the classifiers have " + ", ".join(f"{n} classes at {path!r}" for path, n in rows.items()) + ": replace "
            "all of them, as reset_classifier(N) does"
        )
    if rows:
        return next(iter(rows.values()))
    return 0 if isinstance(model.get_classifier(), nn.Identity) else model.num_classes


def _check_fits(model: Any, config: Any, weights: Mapping[str, Tensor]) -> None:
    """Raise WeightsError unless the architecture, built from this config, has the same tensors."""
    token = deferred_init.set(True)
    try:
        with torch.device("meta"):
            again = type(model)(**{f.name: getattr(config, f.name) for f in fields(config)}).state_dict()
    finally:
        deferred_init.reset(token)
    missing = [k for k in again if k not in weights and not k.endswith("num_batches_tracked")]
    other = [k for k, v in weights.items() if k not in again or again[k].shape != v.shape]
    if missing or other:
        parts = [f"{len(missing)} missing ({listed(missing, 4)})"] if missing else []
        parts += [f"{len(other)} of its own ({listed(other, 4)})"] if other else []
        raise WeightsError(
            f"{model.architecture}, built again, would have other weights than this model: {' and '.join(parts)}. Save "
            "it before prepare_for_inference, pruning, or replacing modules other than the classifier's one layer"
        )


def _config(
    model: Any,
    config: Any,
    label_names: Sequence[str] | None,
    label_descriptions: Mapping[str, str] | None,
    license: str | None,
    recipe: Mapping[str, Any] | None,
) -> dict[str, Any]:
    foreign = () if model.published else ORIGIN
    record = {k: v for k, v in model.pretrained_cfg.items() if v is not None and k not in foreign}
    record |= {"num_classes": config.num_classes, "input_size": _input_size(config, record)}
    if license:
        record["license"] = license
    names, words = _labels(config.num_classes, record, label_names, label_descriptions)
    record = {k: v for k, v in record.items() if k not in (*SOURCES, *LABELS)}
    out = {
        "architecture": model.architecture,
        "num_classes": config.num_classes,
        "num_features": model.num_features,
        "global_pool": config.global_pool,
        "label_names": names,
        "label_descriptions": words,
        "model_args": _model_args(model.architecture, config),
        "pretrained_cfg": record,
    }
    own = {
        "version": opsin.__version__,
        "config": config.to_dict(),
        "license": record.get("license"),
        "recipe": dict(recipe) if recipe else None,
    }
    out["opsin"] = {k: v for k, v in own.items() if v is not None}
    return {k: v for k, v in out.items() if v is not None}


def _input_size(config: Any, record: Mapping[str, Any]) -> list[int]:
    """What the saved model takes, which may not be what its first weights took."""
    size = list(record.get("input_size") or (3, 224, 224))
    size[0] = config.in_chans
    if image := getattr(config, "img_size", None):
        size[1:] = [image, image] if isinstance(image, int) else list(image)
    return size


def _model_args(architecture: str, config: Any) -> dict[str, Any]:
    """The arguments that differ from the architecture's own; all of them when it is not a registered one.

    The number of classes is not among them: transformers reads it from the root alone and refuses it twice.
    """
    found = config.to_dict()
    try:
        variant = find_family(architecture).variants[architecture]
    except (UnknownModelError, KeyError):
        return {k: v for k, v in found.items() if k != "num_classes"}
    changed = {field.name for field in fields(variant) if getattr(variant, field.name) != getattr(config, field.name)}
    full = found | {name: getattr(config, name) for name in changed if name not in found}
    return {k: full[k] for k in full if k in changed and k != "num_classes"}


def _labels(
    classes: int,
    record: Mapping[str, Any],
    names: Sequence[str] | None,
    words: Mapping[str, str] | None,
) -> tuple[list[str] | None, dict[str, str] | None]:
    if names is not None and len(names) != classes:
        raise WeightsError(f"{len(names)} label names for a model of {classes} classes")
    if names is None and len(record.get("label_names") or ()) == classes > 0:
        names, words = record["label_names"], words or record.get("label_descriptions")
    if names is None and (known := labels_for(classes)):
        names, words = known.synsets, words or dict(zip(known.synsets, known.lemmas, strict=True))
    names, words = [str(name) for name in names or ()], {str(name): text for name, text in (words or {}).items()}
    if unknown := [key for key in words if key not in names]:
        raise WeightsError(f"descriptions of labels that the model does not have: {', '.join(unknown[:5])}")
    return names or None, words or None


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
