"""`python -m benchmarks [NAME …]`: run, print, and with --output write the tables."""

import platform
from datetime import date
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro
from rich.console import Console
from rich.markdown import Markdown

from benchmarks._ab import markdown, pin

Name = Literal["imports", "listing", "create", "forward", "train", "optim", "data"]
ALL: tuple[Name, ...] = get_args(Name)


def _machine() -> str:
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    versions = ", ".join(f"{name} {version(name)}" for name in ("opsin", "timm", "torch"))
    return f"{date.today()}, {cpu or platform.processor()}, one thread, Python {platform.python_version()}, {versions}."


def main(
    names: Annotated[tuple[Name, ...], tyro.conf.Positional] = ALL, rounds: int = 7, output: Path | None = None
) -> None:
    """Compare opsin with timm.

    Args:
        names: Which tables; all by default.
        rounds: Measurements of each side.
        output: Write the tables to this markdown file as well.
    """
    pin()
    console = Console()
    page = f"# Measured speed\n\nMade by `python -m benchmarks`: {_machine()} Ratios above 1: opsin needs less.\n"
    console.print(Markdown(page))
    for name in names:
        module = import_module(f"benchmarks.{name}")
        section = markdown(module.TITLE, module.run(rounds), module.NOTE)
        console.print(Markdown(section))
        page += "\n" + section
    if output:
        output.write_text(page)


tyro.cli(main)
