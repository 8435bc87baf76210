"""`opsin list`: find models by name and by fact."""

import json
import os
import sys
from shutil import get_terminal_size
from typing import Annotated, Any

import tyro

from opsin import catalog
from opsin.errors import did_you_mean
from opsin.models._index import MODELS
from opsin.models._registry import best_top1, get_pretrained_cfg, list_models, split_name

__all__ = ["list_"]


def list_(
    filters: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[FILTER …]")] = (),
    /,
    *,
    pretrained: bool = False,
    exclude: tuple[str, ...] = (),
    family: tuple[str, ...] = (),
    max_params: float | None = None,
    min_params: float | None = None,
    max_gmacs: float | None = None,
    min_top1: float | None = None,
    license: tuple[str, ...] = (),
    input_size: int | None = None,
    json: bool = False,
) -> int:
    """Find models by name and by fact. Prints a table to a terminal, one name per line to a pipe.

    Args:
        filters: wildcard patterns; a word without wildcards is found anywhere in the name. One with a dot, such as
            resnet18.a1_in1k or resnet18.*, finds sets of weights.
        pretrained: list every set of weights, as architecture.tag.
        exclude: patterns of names to leave out.
        family: only these families.
        max_params: most parameters, such as 30e6.
        min_params: fewest parameters.
        max_gmacs: most multiply-accumulates of one forward, in billions.
        min_top1: least ImageNet-1k top-1 accuracy of the weights, in percent.
        license: licences of the weights, such as apache-2.0 or cc-by-*.
        input_size: image side the weights were made for, in pixels.
        json: print the facts as JSON.
    """
    anywhere = [f if any(c in f for c in "*?[.") else f"*{f}*" for f in filters]
    names = list_models(
        anywhere,
        pretrained=pretrained,
        include_tags=pretrained or any("." in f for f in filters),
        exclude=exclude,
        family=family,
        max_params=max_params,
        min_params=min_params,
        max_gmacs=max_gmacs,
        min_top1=min_top1,
        license=license,
        input_size=input_size,
    )
    if json:
        _print_json(names)
    elif sys.stdout.isatty():
        _print_table(names)
    else:
        sys.stdout.writelines(f"{name}\n" for name in names)
    sys.stdout.flush()
    if not names:
        hints = "".join(did_you_mean(f.strip("*"), MODELS) for f in filters)
        print(f"opsin: no model fits.{hints}", file=sys.stderr)
    return 0 if names else 1


def _row(name: str) -> dict[str, Any]:
    architecture = split_name(name)[0]
    cfg = get_pretrained_cfg(name)
    known = architecture in MODELS
    facts = catalog.model_facts(architecture) if known else None
    return {
        "name": name,
        "family": MODELS.get(architecture),
        "params": facts.params if facts else None,
        "gmacs": facts.gmacs if facts else None,
        "input_size": list(cfg.input_size),
        "num_classes": cfg.num_classes,
        "top1": best_top1(cfg.name),
        "license": cfg.license,
        "default_tag": cfg.tag or None,
        "has_weights": cfg.has_weights,
    }


def _print_json(names: list[str]) -> None:
    print(json.dumps([_row(name) for name in names], indent=1))


COLUMNS = (("model", "<"), ("params", ">"), ("GMACs", ">"), ("size", ">"), ("top-1", ">"), ("licence", "<"))


def _print_table(names: list[str]) -> None:
    """Written by hand: a library for tables measures every cell again, which takes longer than all else together."""
    rows = [tuple(title for title, _ in COLUMNS), *map(_cells, names)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    form = "  ".join(f"{{:{side}{width}}}" for (_, side), width in zip(COLUMNS, widths, strict=True))
    licence = sum(widths[:-1]) + 2 * (len(widths) - 1)  # where that column begins
    most = get_terminal_size().columns
    head, *lines = (_fit(form.format(*row).rstrip(), most) for row in rows)
    print(_style(head, BOLD))
    sys.stdout.writelines(f"{line[:licence]}{_style(line[licence:], DIM)}\n" for line in lines)
    print(_style(f"{len(names)} {'model' if len(names) == 1 else 'models'}; `opsin info NAME` shows one.", DIM))


def _cells(name: str) -> tuple[str, ...]:
    row = _row(name)
    _, height, width = row["input_size"]
    return (
        name,
        f"{row['params'] / 1e6:.1f} M" if row["params"] else "",
        f"{row['gmacs']:.1f}" if row["gmacs"] else "",
        str(height) if height == width else f"{height}×{width}",
        f"{row['top1']:.2f}" if row["top1"] else "",
        (row["license"] or "not stated") if row["has_weights"] else "no weights",
    )


def _fit(line: str, most: int) -> str:
    return line if len(line) <= most else f"{line[: most - 1]}…"


BOLD, DIM = 1, 2  # as terminals number them


def _style(text: str, style: int) -> str:
    plain = not text or os.name != "posix" or os.environ.get("TERM", "dumb") == "dumb"
    return text if plain else f"\x1b[{style}m{text}\x1b[0m"
