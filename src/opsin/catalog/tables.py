"""The tables of architectures, weight tags, accuracies and old names; each is read once, when first asked for.

Source: `catalog/data/*.csv`, `aliases.json`, written by `tools/build_catalog.py`, which says how cells are packed.
"""

import csv
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from opsin.catalog.pretrained import PretrainedCfg
from opsin.errors import UnknownModelError, did_you_mean

__all__ = [
    "Accuracy",
    "ModelFacts",
    "accuracy",
    "alias_note",
    "aliases_of",
    "architectures",
    "default_tag",
    "is_embedding",
    "model_facts",
    "natural_key",
    "pretrained_cfg",
    "pretrained_cfgs",
    "resolve_alias",
    "tags",
    "variants_of_old",
    "weight_names",
]

DATA = Path(__file__).with_name("data")
EMBEDDING_WIDTHS = (512, 640, 768, 1024, 1280)

_NORMS: dict[str, dict[str, tuple[float, ...]]] = {
    "": {},
    "half": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "clip": {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)},
    "unit": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
}


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Figures of one architecture with its default head, at `input_size` (channels, height, width)."""

    name: str
    family: str
    cls: str  # class name
    params: int
    num_classes: int
    num_features: int
    head_hidden_size: int
    input_size: tuple[int, int, int]
    first_conv: str | tuple[str, ...] | None  # state-dict prefix
    classifier: str | tuple[str, ...] | None  # state-dict prefix
    feature_channels: tuple[int, ...]  # per feature of `features_only=True`
    feature_reductions: tuple[int, ...]  # stride per feature, in input pixels
    out_indices: tuple[int, ...]  # features returned by default
    gmacs: float | None  # multiply-accumulates of one forward, in billions; None where nobody measured
    macts: float | None  # activations of one forward, in millions
    compute_size: int | None  # the image size at which gmacs and macts were measured


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Published accuracy (%) of one weight tag at `img_size`: ImageNet validation, ReaL, V2, A, R and Sketch.

    None where it was not measured.
    """

    name: str
    img_size: int
    crop_pct: float
    gmacs: float | None
    macts: float | None
    imagenet_top1: float
    imagenet_top5: float
    real_top1: float | None
    real_top5: float | None
    v2_top1: float | None
    v2_top5: float | None
    a_top1: float | None
    a_top5: float | None
    r_top1: float | None
    r_top5: float | None
    sketch_top1: float | None
    sketch_top5: float | None


def _read(name: str) -> tuple[list[str], list[list[str]]]:
    with (DATA / name).open(encoding="utf-8", newline="") as lines:
        header, *rows = csv.reader(lines)
    return header, rows


@cache
def _models() -> dict[str, dict[str, str]]:
    header, rows = _read("models.csv")
    models = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    for name, entry in _aliases()["variants"].items():
        unmeasured = {} if entry.get("weights") else {"gmacs": "", "macts": "", "compute_size": ""}
        own = {key: str(value) for key, value in entry.items() if key in header}
        models[name] = models[entry["like"]] | unmeasured | own | {"name": name}
    return models


@cache
def _weights() -> dict[str, dict[str, str]]:
    header, rows = _read("weights.csv")
    weights = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    for name, entry in _aliases()["variants"].items():
        like = [row for key, row in weights.items() if key.partition(".")[0] == entry["like"]]
        if entry.get("weights"):
            for row in like:
                repo = f"timm/{row['name']}" if row["hf_hub_id"] == "=" else row["hf_hub_id"]
                same = f"{name}.{row['name'].partition('.')[2]}"
                weights[same] = row | {"name": same, "hf_hub_id": repo}
        else:
            weights[name] = dict.fromkeys(header, "") | {"name": name, "pool_size": like[0]["pool_size"]}
    return weights


@cache
def _weights_by_architecture() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in _weights():
        found.setdefault(name.partition(".")[0], []).append(name)
    return found


@cache
def _aliases() -> dict[str, Any]:
    return json.loads((DATA / "aliases.json").read_text(encoding="utf-8"))


@cache
def _accuracy() -> tuple[list[str], dict[str, list[list[str]]]]:
    header, rows = _read("accuracy.csv")
    by_name: dict[str, list[list[str]]] = {}
    for row in rows:
        by_name.setdefault(row[0], []).append(row)
    return header, by_name


def _size(text: str) -> tuple[int, int, int] | None:
    if not text:
        return None
    sides = [int(side) for side in text.split("x")]
    if len(sides) == 1:
        sides *= 2
    channels, height, width = sides if len(sides) == 3 else (3, *sides)
    return channels, height, width


def _names(text: str) -> str | tuple[str, ...] | None:
    if text == "-":
        return None
    return tuple(name for name in text.split(",") if name) if "," in text else text


def _norm(text: str) -> dict[str, tuple[float, ...]]:
    if text in _NORMS:
        return _NORMS[text]
    mean, std = (tuple(map(float, part.split())) for part in text.split("/"))
    return {"mean": mean, "std": std}


def _features(text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    pairs: list[tuple[int, int]] = []
    for run in text.split():
        pair, _, times = run.partition("*")
        channels, _, reduction = pair.partition("/")
        pairs += [(int(channels), int(reduction))] * int(times or 1)
    return tuple(c for c, _ in pairs), tuple(r for _, r in pairs)


def natural_key(name: str) -> list[str | int]:
    """Sort key that counts: resnet18 before resnet101."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]


def architectures() -> list[str]:
    """Every architecture name the catalog has facts about."""
    return list(_models())


def weight_names() -> list[str]:
    """Every `architecture.tag` on record (a bare `architecture` where there is no tag), default tag first."""
    return list(_weights())


@cache
def model_facts(name: str) -> ModelFacts:
    """The figures of one architecture; a misspelt name raises `UnknownModelError` with the nearest ones."""
    row = _models().get(name)
    if row is None:
        raise UnknownModelError(f"The catalog has no architecture {name!r}.{did_you_mean(name, _models())}")
    size = _size(row["input_size"])
    assert size is not None
    channels, reductions = _features(row["features"])
    out_indices = tuple(map(int, row["out_indices"].split())) or tuple(range(len(channels)))
    measured = bool(row["gmacs"])
    return ModelFacts(
        name=name,
        family=row["family"],
        cls=row["cls"],
        params=int(row["params"]),
        num_classes=int(row["num_classes"]),
        num_features=int(row["num_features"]),
        head_hidden_size=int(row["head_hidden_size"] or row["num_features"]),
        input_size=size,
        first_conv=_names(row["first_conv"]),
        classifier=_names(row["classifier"]),
        feature_channels=channels,
        feature_reductions=reductions,
        out_indices=out_indices,
        gmacs=float(row["gmacs"]) if measured else None,
        macts=float(row["macts"]) if measured else None,
        compute_size=int(row["compute_size"] or size[1]) if measured else None,
    )


def tags(architecture: str) -> list[str]:
    """The weight tags of an architecture, the default first; empty where it has none."""
    names = _weights_by_architecture().get(architecture)
    if names is None:
        raise UnknownModelError(
            f"The catalog has no architecture {architecture!r}.{did_you_mean(architecture, _models())}"
        )
    return [name.partition(".")[2] for name in names if "." in name]


def default_tag(architecture: str) -> str:
    """The weight tag that the bare name stands for; empty where there is none."""
    return next(iter(tags(architecture)), "")


@cache
def pretrained_cfg(name: str) -> PretrainedCfg:
    """The record of `architecture.tag`, or of the default tag of a bare `architecture`.

    An architecture without weights gives a record whose `has_weights` is false; its preprocessing still applies.
    """
    architecture, _, tag = name.partition(".")
    known = tags(architecture)
    if tag and tag not in known:
        hint = did_you_mean(tag, known) or f" It has: {', '.join(known) or 'no tags'}."
        raise UnknownModelError(f"{architecture} has no weights tagged {tag!r}.{hint}")
    tag = tag or default_tag(architecture)
    row = _weights()[f"{architecture}.{tag}" if tag else architecture]
    model = _models()[architecture]
    words = ("url", "license", "origin_url", "paper_name", "paper_ids", "interpolation", "crop_mode")
    record: dict[str, Any] = {key: row[key] for key in words if row[key]}
    record |= {key: float(row[key]) for key in ("crop_pct", "test_crop_pct") if row[key]}
    record |= {key: True for key in ("custom_load", "fixed_input_size") if row[key]}
    record |= {key: _size(row[key]) for key in ("test_input_size", "min_input_size")}
    record |= _norm(row["norm"])
    if row["hf_hub_id"]:
        record["hf_hub_id"] = f"timm/{row['name']}" if row["hf_hub_id"] == "=" else row["hf_hub_id"]
    if row["pool_size"]:
        record["pool_size"] = tuple(map(int, row["pool_size"].split("x")))
    if row["num_classes"]:
        record["num_classes"] = int(row["num_classes"])
    if row["notes"]:
        record["notes"] = tuple(row["notes"].split("\n"))
    return PretrainedCfg(
        architecture=architecture,
        tag=tag,
        input_size=_size(row["input_size"] or model["input_size"]),  # type: ignore[arg-type]
        first_conv=_names(row["first_conv"] or model["first_conv"]),
        classifier=_names(row["classifier"] or model["classifier"]),
        **record,
    )


def is_embedding(name: str) -> bool:
    """Whether the published weights `architecture.tag` give no classes but an embedding, to compare with a text's.

    All of those learnt pictures with texts, and their widths are those of no published list of classes.
    """
    return name in _weights() and pretrained_cfg(name).num_classes in EMBEDDING_WIDTHS


def pretrained_cfgs(architecture: str) -> list[PretrainedCfg]:
    """The record of every weight tag of an architecture, the default first; its one empty record where it has none."""
    return [pretrained_cfg(f"{architecture}.{tag}") for tag in tags(architecture)] or [pretrained_cfg(architecture)]


@cache
def accuracy(name: str) -> tuple[Accuracy, ...]:
    """The published accuracies of `architecture.tag`, one per image size, smallest first; empty where none are."""
    header, by_name = _accuracy()
    records = []
    for row in by_name.get(name, []):
        figures: dict[str, Any] = {
            key: float(cell) if cell else None for key, cell in zip(header[2:], row[2:], strict=True)
        }
        records.append(Accuracy(name=name, img_size=int(row[1]), **figures))
    return tuple(sorted(records, key=lambda record: record.img_size))


def resolve_alias(name: str) -> str | None:
    """The name of today for a former one (`tf_efficientnet_b0_ns`), or None where `name` is not a former name."""
    table = _aliases()
    if name in table["replaced"]:
        return table["replaced"][name][0]
    return table["renamed"].get(name)


def variants_of_old() -> dict[str, str]:
    """Architectures of releases long past that the published package no longer builds: name -> the one of today that is
    made like it. Figures that nobody measured for them are its figures."""
    return {name: entry["like"] for name, entry in _aliases()["variants"].items()}


def alias_note(name: str) -> str:
    """How the model differs that stands in for the former name `name`; empty where it is the same."""
    return table[name][1] if name in (table := _aliases()["replaced"]) else ""


def aliases_of(architecture: str) -> dict[str, str]:
    """Former names that lead to `architecture` or one of its tags, each with where it leads."""
    table = _aliases()
    targets = table["renamed"] | {old: new for old, (new, _) in table["replaced"].items()}
    return {old: new for old, new in sorted(targets.items()) if new.partition(".")[0] == architecture}
