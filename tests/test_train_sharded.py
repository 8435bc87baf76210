"""A model in shards learns what a whole one does, and a kill changes nothing. Two processes on the CPU."""

import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from support import free_port

import opsin
from opsin.errors import OpsinError
from opsin.train import sharded
from opsin.train.build import build_run
from opsin.train.checkpoint import RunDirectory
from opsin.train.config import from_dict
from opsin.train.distributed import World

ENV = os.environ | {"OMP_NUM_THREADS": "1"}
SMALL = ["--img-size", "32", "--warmup-epochs", "1", "--workers", "0", "--log-every", "1"]
# statistics that differ between the processes, an average, several batches an update, clipping over all shards
HARD = [*SMALL, "--model", "test_resnet", "--epochs", "2", "--batch-size", "4", "--ema", "--ema-decay", "0.9",
        "--drop-rate", "0.2", "--accumulate", "2", "--clip-grad", "1.0", "--save-every", "0"]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes that differ in brightness: 24 small pictures each."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, base in (("dark", 40), ("light", 140)):
        (root / name).mkdir()
        for i in range(24):
            noise = rng.integers(base, base + 80, (24, 24, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / name / f"{i}.png")
    return root


def command(photos, out, *args):
    return ["-m", "opsin", "train", str(photos), *args, "--output", str(out)]


def start(photos, out, *args):
    """The two processes of a run, without torchrun, whose workers outlive it when it is killed."""
    place = {"WORLD_SIZE": "2", "MASTER_PORT": str(free_port())}
    line = [sys.executable, *command(photos, out, *args, "--fsdp")]
    ranks = [ENV | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    return [subprocess.Popen(line, env=env, stderr=subprocess.PIPE, text=True) for env in ranks]


def finish(processes, status=0):
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [status] * 2, said
    return said


def history(out):
    return (out / "history.csv").read_text().splitlines()


def values(out, *names):
    heads, *rows = (row.split(",") for row in history(out))
    return [float(row[heads.index(name)]) for row in rows for name in names]


def test_shards_learn_what_one_process_does(photos, tmp_path):
    """The same losses but for rounding, of the average too; and `best` is whole."""
    args = [*SMALL, "--model", "test_vit", "--epochs", "2", "--ema", "--ema-decay", "0.9", "--clip-grad", "0.5"]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port", str(free_port())]
    one = command(photos, tmp_path / "one", *args, "--batch-size", "8")
    two = [*launch, *command(photos, tmp_path / "two", *args, "--batch-size", "4", "--fsdp")]
    for line in (one, two):
        done = subprocess.run(
            [sys.executable, *line], env=ENV, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
    found = [values(tmp_path / name, "train_loss", "loss", "ema_loss") for name in ("one", "two")]
    assert len(found[0]) == 6
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    models = [opsin.load(tmp_path / name / "best").model.state_dict() for name in ("one", "two")]
    assert all(torch.allclose(models[1][key], models[0][key], atol=1e-4) for key in models[0])
    (folder,) = RunDirectory(tmp_path / "two").folders()
    assert (folder / "__1_0.distcp").stat().st_size > 0.3 * sum(v.nbytes for v in models[0].values())
    assert not (tmp_path / "two" / "last.pt").exists()


def test_a_sharded_run_that_is_killed_ends_with_the_same_bits(photos, tmp_path):
    finish(start(photos, tmp_path / "whole", *HARD))
    out = tmp_path / "killed"
    processes = start(photos, out, *HARD)
    while processes[0].poll() is None and len(lines(out)) < 2:
        time.sleep(0.02)
    time.sleep(random.random() * 0.2)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    finish(processes, -signal.SIGKILL)
    assert 2 <= len(lines(out)) < len(lines(tmp_path / "whole"))
    finish(start(photos, out, *HARD))
    assert lines(out) == lines(tmp_path / "whole")
    plain = [[row.rpartition(",")[0] for row in history(path)] for path in (tmp_path / "whole", out)]  # no seconds
    assert plain[0] == plain[1]
    first, second = (tensors(path) for path in (tmp_path / "whole", out))
    assert {key.split("/")[0] for key in first} == {"model", "ema", "optimizer", "rank0", "rank1"}
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def lines(out):
    log = out / "log.jsonl"
    return log.read_text().splitlines() if log.exists() else []


def tensors(out):
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    (folder,) = RunDirectory(out).folders()
    file = out / "whole.pt"
    dcp_to_torch_save(folder, file)
    found = torch.load(file, weights_only=True)
    assert torch.load(folder / "rest.pt", weights_only=True)["update"] > 0
    return found


def test_one_process_cannot_shard(photos, tmp_path):
    config = from_dict({"data": {"data": str(photos)}, "run": {"fsdp": True, "output": str(tmp_path), "device": "cpu"}})
    with pytest.raises(OpsinError, match="this one is alone: start with torchrun"):
        build_run(config, World(torch.device("cpu")))


def test_layout_contradicts_shards():
    with pytest.raises(OpsinError, match="fsdp splits weights by rows"):
        from_dict({"run": {"fsdp": True}, "model": {"channels_last": True}}).check()


def test_an_optimizer_that_needs_whole_weights_is_refused(photos, tmp_path):
    for said in finish(start(photos, tmp_path, *HARD, "--opt", "novograd"), 2):
        assert "NovoGrad cannot work on sharded weights" in said


class Boom:
    def __reduce__(self):
        return print, ("code was run",)


def test_metadata_that_hold_code_are_refused(tmp_path, capsys):
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Boom()))
    with pytest.raises(pickle.UnpicklingError, match=r"print has no place in a checkpoint"):
        sharded._check_metadata(tmp_path / ".metadata")
    assert "code was run" not in capsys.readouterr().out


def test_folders(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.open()
    assert sharded.read(directory) is None
    assert not directory.begun()
    for number in (9, 10):
        part = tmp_path / ".last.part"
        sharded._fresh(part)
        if number == 10:
            shutil.copytree(tmp_path / "last-000000", tmp_path / "last-000009")
        sharded._finish(directory, part, {"update": number})
    (folder,) = directory.folders()  # the newest alone is left
    assert folder.name == "last-000010"
    assert sharded.read(directory)["update"] == 10
    (folder / "rest.pt").write_bytes(b"damaged")
    with pytest.raises(OpsinError, match="--overwrite begins anew"):
        sharded.read(directory)
    directory.open(overwrite=True)
    assert not directory.begun()
    directory.close()
