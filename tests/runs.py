"""Training runs as processes of their own: started, killed, started again, and compared bit by bit."""

import csv
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from started import OPSIN, Started
from support import free_port
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from opsin.train.checkpoint import RunDirectory

ENV = os.environ | {"OMP_NUM_THREADS": "1"}
# an average, chance in the model, the pictures and the batches, several batches an update; a checkpoint after each
HARD = [
    "--ema", "--ema-decay", "0.9", "--drop-rate", "0.2", "--mixup", "0.2", "--cutmix", "0.5", "--reprob", "0.3",
    "--auto-augment", "rand-m5-mstd0.5", "--accumulate", "2", "--clip-grad", "1.0", "--save-every", "0",
    "--log-every", "1",
]  # fmt: skip

# the command `opsin`, slow enough to be met in the middle of its work
SLOW = f"""
import time
from opsin.train.loop import Run

def learn(run, batches, quick=Run.learn):
    time.sleep(0.1)
    return quick(run, batches)

Run.learn = learn
{OPSIN}
"""
CHANGES = ("best.opsin.mark", "best.opsin.recipe.config.run.output")  # what ties two files together; where they are


def dark_and_light(root: Path, count: int) -> Path:
    """A folder of two classes that differ in brightness: `count` small pictures each."""
    rng = np.random.default_rng(0)
    for name, base in (("dark", 40), ("light", 140)):
        (root / name).mkdir()
        for i in range(count):
            noise = rng.integers(base, base + 80, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / name / f"{i}.png")
    return root


def command(data: object, out: Path, *args: str) -> list[str]:
    """What follows `python`."""
    return ["-m", "opsin", "train", str(data), *args, "--output", str(out)]


def start(
    data: object, out: Path, *args: str, ranks: int = 1, program: str = OPSIN, session: bool = False
) -> list[Started]:
    """The processes of a run: started one by one, since torchrun's workers would outlive it when it is killed."""
    place = {"WORLD_SIZE": str(ranks), "MASTER_PORT": str(free_port())}
    envs = [ENV | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
    words = ["train", str(data), *args, "--output", str(out)]
    return [Started(program, *words, env=env, session=session) for env in envs]


def finish(processes: list[Started], status: int = 0) -> list[str]:
    """Wait for the end; what each process said."""
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [status] * len(processes), said
    return said


def lines(out: Path) -> list[str]:
    """The log of a run."""
    log = out / "log.jsonl"
    return log.read_text().splitlines() if log.exists() else []


def state(out: Path) -> dict[str, Any]:
    """All that the last checkpoint of a run holds."""
    directory = RunDirectory(out)
    if (found := directory.load()) is not None:
        return found
    (folder,) = directory.folders()
    with tempfile.TemporaryDirectory() as place:
        dcp_to_torch_save(folder, f"{place}/whole.pt")
        tensors = torch.load(f"{place}/whole.pt", weights_only=True)
    return {"tensors": tensors, **torch.load(folder / "rest.pt", weights_only=True)}


def differences(first: Path, second: Path) -> list[str]:
    """What two runs left that is not the same bit for bit: checkpoint, log, history, best model, and which files there
    are. The seconds they took do not count."""
    found = list(_unequal(state(first), state(second), "checkpoint"))
    found += _unequal(lines(first), lines(second), "log")
    found += _unequal(*([*csv.DictReader((out / "history.csv").open())] for out in (first, second)), "history")
    found += _unequal(*(load_file(out / "best" / "model.safetensors") for out in (first, second)), "best")
    configs = (json.loads((out / "best" / "config.json").read_text()) for out in (first, second))
    found += (where for where in _unequal(*configs, "best") if where not in CHANGES)
    names = [{re.sub(r"last-\d+", "last", str(p.relative_to(out))) for p in out.rglob("*")} for out in (first, second)]
    return found + [f"file {name}" for name in sorted(names[0] ^ names[1])]


def _unequal(a: Any, b: Any, where: str) -> Iterator[str]:
    if type(a) is not type(b):
        yield where
    elif isinstance(a, dict):
        yield from (f"{where}.{key}" for key in a.keys() ^ b.keys())
        for key in a.keys() & b.keys() - {"seconds"}:
            yield from _unequal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple) and len(a) == len(b):
        for i, pair in enumerate(zip(a, b, strict=True)):
            yield from _unequal(*pair, f"{where}.{i}")
    elif not (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b):
        yield where
