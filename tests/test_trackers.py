"""Trackers are told what a run's log and history hold, and a run that goes on stays in its curves."""

import sys
import types

import pytest
import torch
from runs import dark_and_light

from opsin.cli.train import parse
from opsin.errors import OpsinError
from opsin.train import trackers
from opsin.train.build import build_run
from opsin.train.config import from_dict
from opsin.train.distributed import World
from opsin.train.loop import fit


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return dark_and_light(tmp_path_factory.mktemp("photos"), 12)


class Service:
    """What wandb and trackio have in common, kept in lists."""

    def __init__(self):
        self.begun, self.sent, self.ends = [], [], 0

    def init(self, **options):
        self.begun.append(options)

    def log(self, values, step):
        self.sent.append((step, values))

    def finish(self):
        self.ends += 1


@pytest.fixture
def service(monkeypatch):
    made = Service()
    for name in ("wandb", "trackio"):
        module = types.ModuleType(name)
        module.init, module.log, module.finish = made.init, made.log, made.finish
        monkeypatch.setitem(sys.modules, name, module)
    return made


def train(photos, output, names, **more):
    values = {
        "data": {"data": str(photos), "batch_size": 8, "workers": 0},
        "model": {"model": "test_resnet", "img_size": 32},
        "schedule": {"epochs": 2, "warmup_epochs": 0.0},
        "run": {"output": str(output), "device": "cpu", "log_every": 1, "trackers": names} | more,
    }
    run = build_run(from_dict(values), World(torch.device("cpu")))
    try:
        return fit(run), run
    finally:
        run.directory.close()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_services_hear_what_the_log_holds(photos, tmp_path, service, name):
    _, run = train(photos, tmp_path / "run", [name])
    (begun,) = service.begun
    assert begun["name"].startswith("run")
    assert begun["resume"] == "allow"
    assert begun["config"]["model"]["model"] == "test_resnet"
    losses = [(step, values["train/loss"]) for step, values in service.sent if "train/loss" in values]
    assert losses == [(row["update"] + 1, row["loss"]) for row in run.directory.read_log()]
    assert len(losses) == 2 * run.updates_per_epoch
    scores = [values for _, values in service.sent if "epoch/top1" in values]
    assert scores == [{f"epoch/{k}": v for k, v in row.items()} for row in run.history]
    assert service.ends == 1
    train(photos, tmp_path / "run", [name])  # goes on: the same run there
    train(photos, tmp_path / "run", [name], overwrite=True)
    same, other = (service.begun[i].get("id", service.begun[i]["name"]) for i in (1, 2))
    assert same == begun.get("id", begun["name"]) != other


def test_tensorboard(photos, tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def flush(self):
            written.append("flush")

        def close(self):
            written.append("close")

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "tensorboard", types.ModuleType("tensorboard"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    _, run = train(photos, tmp_path, ["tensorboard"], log_every=2)
    assert written[0] == (str(tmp_path / "tensorboard"), 1)
    assert written[-1] == "close"
    (first, *_) = run.directory.read_log()
    assert ("train/loss", first["loss"], 2) in written
    assert ("epoch/top1", run.history[1]["top1"], run.update) in written
    assert [row[2] for row in written if row[0] == "train/lr"] == list(range(2, run.update + 1, 2))


def test_the_real_tensorboard(photos, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, run = train(photos, tmp_path, ["tensorboard"])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [e.value for e in events.Scalars("epoch/loss")] == pytest.approx([row["loss"] for row in run.history])


def test_the_real_wandb(photos, tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    _, run = train(photos, tmp_path, ["wandb"])
    wandb.teardown()  # its service is a process of its own, which writes the file: wait until it has ended
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    assert content.count(b"epoch/top1") >= len(run.history)
    assert b"test_resnet" in content
    train(photos, tmp_path, ["wandb"])  # goes on: the same run there
    assert {path.name.rpartition("-")[2] for path in tmp_path.glob("wandb/offline-run-*")} == {file.stem[4:]}


def test_a_package_that_is_absent_is_named(monkeypatch, tmp_path):
    for name in trackers.TRACKERS:
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(OpsinError, match=f"pip install {name}"):
            trackers.create_trackers([name])
    with pytest.raises(OpsinError, match="Did you mean wandb"):
        train(tmp_path, tmp_path / "run", ["wanbd"])
    assert not (tmp_path / "run").exists()


def test_settings():
    config, _ = parse(["somewhere", "--trackers", "wandb", "tensorboard"])
    assert config.run.trackers == ("wandb", "tensorboard")
    assert from_dict({}).run.trackers == ()
    with pytest.raises(OpsinError, match="trackers must be of type"):
        from_dict({"run": {"trackers": "wandb"}})
    with pytest.raises(OpsinError, match="trackers must be of type str"):
        from_dict({"run": {"trackers": [1]}})
