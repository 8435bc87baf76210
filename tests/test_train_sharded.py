"""A model in shards learns what a whole one does, and a kill changes nothing. Two processes on the CPU."""

import pickle
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
from runs import ENV, SLOW, command, dark_and_light, differences, finish, lines, start, state
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import opsin
from opsin.errors import OpsinError
from opsin.optim import _common, create_optimizer
from opsin.train import sharded
from opsin.train.build import build_run
from opsin.train.checkpoint import RunDirectory
from opsin.train.config import from_dict
from opsin.train.distributed import World

SMALL = ["--img-size", "32", "--warmup-epochs", "1", "--workers", "0", "--log-every", "1"]
# statistics that differ between the processes, an average, several batches an update, clipping over all shards
HARD = [*SMALL, "--model", "test_resnet", "--epochs", "2", "--batch-size", "4", "--ema", "--ema-decay", "0.9",
        "--drop-rate", "0.2", "--accumulate", "2", "--clip-grad", "1.0", "--save-every", "0", "--fsdp"]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return dark_and_light(tmp_path_factory.mktemp("photos"), 24)


def history(out):
    return (out / "history.csv").read_text().splitlines()


def values(out, *names):
    heads, *rows = (row.split(",") for row in history(out))
    return [float(row[heads.index(name)]) for row in rows for name in names]


def test_shards_learn_what_one_process_does(photos, tmp_path):
    """The same losses but for rounding, of the average too; and `best` is whole."""
    args = [*SMALL, "--model", "test_vit", "--epochs", "2", "--ema", "--ema-decay", "0.9", "--clip-grad", "0.5"]
    finish(start(photos, tmp_path / "one", *args, "--batch-size", "8"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    line = [*launch, *command(photos, tmp_path / "two", *args, "--batch-size", "4", "--fsdp")]
    done = subprocess.run(line, env=ENV, capture_output=True, text=True, check=False, timeout=300)
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
    finish(start(photos, tmp_path / "whole", *HARD, ranks=2))
    out = tmp_path / "killed"
    processes = start(photos, out, *HARD, ranks=2, program=SLOW)
    while processes[0].returncode is None and len(lines(out)) < 2:
        time.sleep(0.02)
    time.sleep(random.random() * 0.2)
    for process in processes:
        process.kill()
    finish(processes, -signal.SIGKILL)
    assert 2 <= len(lines(out)) < len(lines(tmp_path / "whole"))
    finish(start(photos, out, *HARD, ranks=2))
    kept = state(out)
    assert {key.split("/")[0] for key in kept["tensors"]} == {"model", "ema", "optimizer", "rank0", "rank1"}
    assert kept["update"] > 0
    assert differences(tmp_path / "whole", out) == []


def test_one_process_cannot_shard(photos, tmp_path):
    config = from_dict({"data": {"data": str(photos)}, "run": {"fsdp": True, "output": str(tmp_path), "device": "cpu"}})
    with pytest.raises(OpsinError, match="this one is alone: start with torchrun"):
        build_run(config, World(torch.device("cpu")))


def test_layout_contradicts_shards():
    with pytest.raises(OpsinError, match="fsdp splits weights by rows"):
        from_dict({"run": {"fsdp": True}, "model": {"channels_last": True}}).check()


def test_an_optimizer_that_needs_whole_weights_is_refused(photos, tmp_path):
    for said in finish(start(photos, tmp_path, *HARD, "--opt", "novograd", ranks=2), 2):
        assert "NovoGrad cannot work on sharded weights" in said


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("name", ["lion", "lamb", "laprop", "adafactorbv"])
def test_long_weights_in_shards_are_not_sliced(mesh, monkeypatch, name):
    monkeypatch.setattr(_common, "SLICE", 64)
    ends = []
    for place in (lambda w: w, lambda w: distribute_tensor(w, mesh, [Shard(0)])):
        p = torch.nn.Parameter(place(torch.linspace(-1, 1, 640).view(32, 20)))
        optimizer = create_optimizer([p], name, lr=0.01, weight_decay=0.1)
        for _ in range(3):
            p.grad = p.detach() * 2
            optimizer.step()
        ends.append(p.detach())
    torch.testing.assert_close(ends[1].full_tensor(), ends[0], rtol=0, atol=1e-6)


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
