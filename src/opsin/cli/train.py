"""`opsin train`: from a folder of pictures to a checkpoint that predicts right."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from opsin.errors import OpsinError
from opsin.train.config import TrainConfig, list_recipes, load_config, load_recipe

__all__ = ["train"]


def train(args: Sequence[str]) -> int:
    """Train a model on DATA.

    `--recipe NAME` begins with a recipe that comes with opsin, `--config FILE` with a YAML file, such as the
    `config.yaml` of a run; what is said on the command line comes on top. Started again with the same words, an
    interrupted run goes on where it stood. `torchrun --nproc-per-node=N -m opsin train …` trains on several devices.
    """
    config, dry = parse(args)
    from opsin.train.build import build_run
    from opsin.train.distributed import connect
    from opsin.train.loop import fit
    from opsin.train.progress import Terminal
    from opsin.train.report import Report

    with connect(config.run.device) as world:
        if dry:
            from opsin.train.dry import dry_run

            return dry_run(config, world)
        terminal = Terminal()
        run = build_run(config, world, callbacks=[terminal, Report()])
        try:
            fit(run)
        finally:
            terminal.close()
            run.directory.close()
    return 0


train.reads_args = True  # type: ignore[attr-defined]


def parse(args: Sequence[str]) -> tuple[TrainConfig, bool]:
    """The configuration that the words of a command line stand for, and whether it is only to be tried."""
    given = list(args)
    file, recipe = _take(given, "--config"), _take(given, "--recipe")
    dry = "--dry-run" in given
    if dry:
        given.remove("--dry-run")
    if file and recipe:
        raise OpsinError("--config and --recipe both say where to begin; give one of them")
    if file:
        base = load_config(Path(file))
    else:
        weights = any(word.split("=")[0] in ("--pretrained", "--checkpoint") for word in given) or _names_saved(given)
        base = load_recipe(recipe or ("finetune" if weights else "small-from-scratch"))
    recipes = "\n".join(f"  {name}: {about.strip().splitlines()[0]}" for name, about in list_recipes().items())

    def settings(
        where: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")] = base.data.data,
        config: tyro.conf.OmitArgPrefixes[TrainConfig] = base,
    ) -> TrainConfig:
        config.data.data = where
        return config

    # flags in pairs, since a recipe may have set what is to be set again
    settings.__doc__ = f"{train.__doc__}\n\nRecipes:\n{recipes}"
    made = tyro.cli(settings, prog="opsin train", args=given, config=(tyro.conf.OmitArgPrefixes,))
    said = {word.partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_") for word in given}
    made.base = {name: value for name, value in base.base.items() if name not in said}
    return made, dry


def _names_saved(words: Sequence[str]) -> bool:
    """Whether --model is a saved model."""
    name = _take(list(words), "--model")
    if name is None or not ("/" in name or ":" in name or os.path.isdir(name)):
        return False
    from opsin.inference.predictor import is_saved
    from opsin.train.check import source_of

    return is_saved(source_of(name))


def _take(args: list[str], name: str) -> str | None:
    """Take `--name VALUE` or `--name=VALUE` out of the words."""
    for i, word in enumerate(args):
        if word == name:
            if i + 1 == len(args):
                raise OpsinError(f"{name} needs a value")
            value = args[i + 1]
            del args[i : i + 2]
            return value
        if word.startswith(f"{name}="):
            del args[i]
            return word.partition("=")[2]
    return None
