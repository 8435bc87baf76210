"""`opsin info`: a card with what is known about one model."""

import json as json_
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from opsin.catalog import ModelFacts, PretrainedCfg
from opsin.models._registry import ModelInfo, model_info

__all__ = ["info"]


def info(
    name: Annotated[str, tyro.conf.Positional],
    /,
    *,
    json: bool = False,
) -> int:
    """Show what is known about one model: size, compute, features, weights with accuracy and licence.

    Args:
        name: an architecture, or architecture.tag; or a saved model: a folder or hf-hub:org/repo@revision.
        json: print the facts as JSON.
    """
    found = _saved(name) if ":" in name or Path(name, "config.json").is_file() else model_info(name)
    if json:
        print(json_.dumps(found.to_dict(), indent=1))
    else:
        console = Console()
        console.print(Panel(_card(found), title=f"[bold]{found.name}[/]", title_align="left", expand=False))
    return 0


def _saved(name: str) -> ModelInfo:
    """The facts of the architecture, with the record of the saved model in place of the published ones."""
    from opsin.weights.artefact import read_config

    config = read_config(name)
    known = model_info(config["architecture"])
    record = PretrainedCfg.from_dict(config["pretrained_cfg"] | {"architecture": known.architecture})
    if config.get("num_classes") is not None:
        record = record.overlay(num_classes=config["num_classes"])
    return replace(known, name=name, tag=record.tag, cfg=record, weights={}, accuracy={}, aliases={})


def _card(found: ModelInfo) -> Group:
    parts: list[Table | Text] = [_figures(found)]
    if any(found.weights):
        parts += [Text(), _weights(found)]
    return Group(*parts)


def _figures(found: ModelInfo) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    facts, cfg = found.facts, found.cfg
    table.add_row("family", f"{found.family} ({facts.cls})" if facts else found.family)
    if facts:
        table.add_row("parameters", f"{facts.params / 1e6:.2f} M ({facts.params:,})")
        if facts.gmacs is not None:
            compute = f"{facts.gmacs:g} GMACs, {facts.macts:g} M activations at {facts.compute_size} px"
            table.add_row("compute", compute)
        table.add_row("features", _features(facts))
        table.add_row("embedding", f"{facts.num_features} channels")
    norm = f"mean {_numbers(cfg.mean)}, std {_numbers(cfg.std)}"
    crop = f"crop {cfg.crop_pct:g} {cfg.crop_mode}, {cfg.interpolation}"
    table.add_row("input", f"{'×'.join(map(str, cfg.input_size))}, {crop}, {norm}")
    table.add_row("classes", str(cfg.num_classes) if cfg.num_classes else "none (features only)")
    if found.aliases:
        table.add_row("also known as", ", ".join(found.aliases))
    return table


def _numbers(values: tuple[float, ...]) -> str:
    short = [f"{value:.3g}" for value in values]
    return short[0] if len(set(short)) == 1 else " ".join(short)


def _features(facts: ModelFacts) -> str:
    """ "64 at /2, 256 at /4", runs of equal features counted."""
    runs: list[tuple[int, int, int]] = []
    for channels, reduction in zip(facts.feature_channels, facts.feature_reductions, strict=True):
        if runs and runs[-1][:2] == (channels, reduction):
            runs[-1] = (channels, reduction, runs[-1][2] + 1)
        else:
            runs.append((channels, reduction, 1))
    return ", ".join(f"{c} at /{r}" + (f" ×{n}" if n > 1 else "") for c, r, n in runs)


def _weights(found: ModelInfo) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("weights", no_wrap=True)
    for column in ("classes", "size", "top-1", "top-5"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("licence", no_wrap=True)
    for tag, cfg in found.weights.items():
        best = max(found.accuracy.get(tag, ()), key=lambda record: record.imagenet_top1, default=None)
        name = f"{tag} (default)" if tag == next(iter(found.weights)) else tag
        table.add_row(
            name,
            str(cfg.num_classes) if cfg.num_classes else "–",
            str(best.img_size if best else cfg.input_size[-1]),
            f"{best.imagenet_top1:.2f}" if best else "",
            f"{best.imagenet_top5:.2f}" if best else "",
            (cfg.license or "not stated") if cfg.has_weights else "no weights",
            style="bold" if tag == found.tag else None,
        )
    return table
