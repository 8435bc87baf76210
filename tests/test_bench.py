"""Speed and memory: the figures fit together, every option reaches the model, and the batch size is the best one."""

import csv
import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

import opsin
from opsin.cli import main
from opsin.errors import OpsinError
from opsin.inference import benchmark as module
from opsin.inference.benchmark import _Steps, benchmark
from opsin.inference.speed_plot import frontier, speed_plot

QUICK = {"seconds": 0.01, "batch_size": 2}


class Spy(nn.Module):
    """Notes what it is given."""

    def __init__(self, **config):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.seen = []
        self.pretrained_cfg = {"input_size": (3, 20, 24)}
        self.config = SimpleNamespace(in_chans=3, **config)

    def forward(self, x):
        out = self.conv(x)
        self.seen.append(SimpleNamespace(
            shape=tuple(x.shape), last=x.is_contiguous(memory_format=torch.channels_last), dtype=out.dtype,
            training=self.training, threads=torch.get_num_threads(), grad=torch.is_grad_enabled(),
        ))  # fmt: skip
        return out.mean((2, 3))


def test_the_figures_fit_together():
    found = benchmark(opsin.create_model("test_resnet"), img_size=64, seconds=0.2, batch_size=2)
    assert found["batch_size"] == 2
    assert found["img_size"] == (64, 64)
    assert found["images_per_second"] == pytest.approx(2 / (found["ms"] / 1e3))
    assert found["ms_low"] <= found["ms"] <= found["ms_high"]
    assert found["steps"] >= 5
    assert found["params"] == sum(p.numel() for p in opsin.create_model("test_resnet").parameters())
    assert found["memory"] is None or found["memory"] > 50e6  # the whole process, torch included


def test_more_memory_is_seen():
    model = Spy()
    small, large = (benchmark(model, img_size=size, seconds=0.01, batch_size=8)["memory"] for size in (16, 512))
    assert small is None or large - small > 4 * 8 * 4 * 510**2 * 0.9  # the convolution's output


def test_options_reach_the_model(monkeypatch):
    model = Spy()
    benchmark(model, **QUICK)
    plain = model.seen[-1]
    assert (plain.shape, plain.dtype, plain.training, plain.grad) == ((2, 3, 20, 24), torch.float32, False, False)
    assert not plain.last
    before, counted, step = model.conv.weight.detach().clone(), [], torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda sgd: counted.append(model.conv.weight.grad.abs().sum()) or step(sgd)
    )
    trained = benchmark(model, train=True, **QUICK)
    assert (model.seen[-1].training, model.seen[-1].grad) == (True, True)
    assert len(counted) == trained["steps"] + module.WARM_UP
    assert min(counted) > 0
    assert torch.equal(before, model.conv.weight)
    assert model.conv.weight.grad is None
    benchmark(model, img_size=(32, 16), amp_dtype=torch.bfloat16, channels_last=True, **QUICK)
    seen = model.seen[-1]
    assert (seen.shape, seen.last, seen.dtype) == ((2, 3, 32, 16), True, torch.bfloat16)
    threads = torch.get_num_threads()
    benchmark(model, threads=threads + 1, **QUICK)
    assert (model.seen[-1].threads, torch.get_num_threads()) == (threads + 1, threads)
    assert benchmark(Spy(img_size=28), **QUICK)["img_size"] == (28, 28)


def test_longer_is_more_steps():
    model = Spy()
    assert benchmark(model, batch_size=1, seconds=0.3)["steps"] > benchmark(model, batch_size=1, seconds=1e-6)["steps"]


def test_prepared_and_compiled(monkeypatch):
    model = opsin.create_model("test_resnet")
    made = []
    real = module.prepare_for_inference
    monkeypatch.setattr(module, "prepare_for_inference", lambda m, **kw: made.append(real(m, **kw)) or made[-1])
    benchmark(model, prepare=True, img_size=32, **QUICK)
    assert opsin.inference.optimize.report(made[0]).folded > 0
    assert any(isinstance(part, nn.BatchNorm2d) for part in model.modules())  # the model itself stays
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda m: compiled.append(m) or m)
    benchmark(model, compile=True, img_size=32, **QUICK)
    assert compiled == [model]


def test_what_cannot_be_is_refused():
    model = Spy()
    for wrong, message in (({"train": True, "prepare": True}, "cannot be trained"), ({"seconds": 0}, "seconds"),
                           ({"batch_size": 0}, "batch_size"), ({"threads": 0}, "threads"),
                           ({"img_size": 2}, r"does not run on pictures of shape \(2, 3, 2, 2\)")):  # fmt: skip
        with pytest.raises(OpsinError, match=message):
            benchmark(model, **QUICK | wrong)


def steps(monkeypatch, seconds_of=None, room=10**9):
    """The search for a batch size on a machine of which the test says how fast it is and how much fits."""
    made = _Steps(Spy(), (8, 8), False, None, False, False, False)
    tried = []

    def run(batch_size, seconds, least=5):
        tried.append(batch_size)
        if batch_size > room:
            raise OpsinError("does not fit") from torch.OutOfMemoryError("full")
        return [seconds_of(batch_size) if seconds_of else 1e-3] * least, None

    monkeypatch.setattr(made, "run", run)
    return made, tried


@pytest.mark.parametrize("room", [1, 2, 3, 5, 100, 700, 10**9])
def test_the_largest_batch_that_fits(monkeypatch, room):
    made, tried = steps(monkeypatch, room=room)
    best = made._largest()
    assert best <= room
    assert best == module.LARGEST or best >= room * 0.88 - 1
    assert len(tried) < 20


def test_not_even_one_picture_fits(monkeypatch):
    made, _ = steps(monkeypatch, room=0)
    with pytest.raises(OpsinError, match="does not fit"):
        made._largest()


@pytest.mark.parametrize(
    ("seconds_of", "best"),
    [
        (lambda n: 1e-3 * n, 1),  # nothing gained
        (lambda n: 1e-3 * max(n, 16), 16),  # free up to 16
        (lambda n: n / {1: 1000, 2: 900, 4: 2000}.get(n, 1900), 4),  # one worse size on the way
        (lambda n: 3.0 * n**0.5, 1),  # so slow that nobody waits for more
    ],
)
def test_the_fastest_batch(monkeypatch, seconds_of, best):
    made, _ = steps(monkeypatch, seconds_of=seconds_of)
    assert made.best_batch() == best


def test_memory_that_runs_out_is_told_apart(monkeypatch):
    made = _Steps(Spy(), (8, 8), False, None, False, False, False)
    monkeypatch.setattr(made, "step", lambda x: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    with pytest.raises(OpsinError, match="a batch of 3 does not fit into the memory of cpu"):
        made.run(3, 0.1)


# --- the command ----------------------------------------------------------------------------------------------------


def test_command(tmp_path, capsys):
    out, plot = tmp_path / "speed.csv", tmp_path / "speed.png"
    args = ["bench", "test_vit", "--seconds", "0.01", "--batch-size", "1", "--mode", "both"]
    args += ["--output", str(out), "--device", "cpu"]
    assert main([*args, "--plot", str(plot)]) == 0
    said = capsys.readouterr().out
    assert "test_vit" in said
    assert "images per second" in said
    with out.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["model"], row["mode"]) for row in rows] == [("test_vit", "inference"), ("test_vit", "train")]
    assert {row["img_size"] for row in rows} == {"160"}
    assert {row["settings"] for row in rows} == {"batch_size=1"}
    assert float(rows[0]["top1"]) == pytest.approx(40.98, abs=0.01)
    with Image.open(plot) as image:
        assert image.size == (1350, 900)
        assert len(image.convert("RGB").getcolors(2**24)) > 50
    assert main(args) == 0  # the same measurement takes the place of the old one
    with out.open(newline="") as lines:
        again = list(csv.DictReader(lines))
    assert [row["mode"] for row in again] == ["inference", "train"]
    assert [row["ms"] for row in again] != [row["ms"] for row in rows]


def test_command_at_another_size(capsys, tmp_path):
    args = ["bench", "test_vit", "--seconds", "0.01", "--batch-size", "1", "--json", "--device", "cpu"]
    assert main([*args, "--img-size", "64", "--threads", "1", "--channels-last", "--prepare"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["settings"] == "batch_size=1 channels_last prepare threads=1 img_size=64"
    assert (row["img_size"], row["top1"], row["batch_size"]) == ("64", None, 1)  # no accuracy is known at that size
    folder = opsin.save(opsin.create_model("test_resnet", num_classes=3), tmp_path / "own")
    assert main(["bench", str(folder), *args[2:], "--amp", "bfloat16"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["settings"] == "batch_size=1 amp=bfloat16"


def test_command_goes_on_past_a_failure(capsys, tmp_path):
    absent = str(tmp_path / "absent")
    args = ["--seconds", "0.01", "--batch-size", "1", "--json", "--device", "cpu"]
    assert main(["bench", absent, "test_resnet", *args]) == 1
    captured = capsys.readouterr()
    rows = json.loads(captured.out)
    assert "absent" in rows[0]["error"]
    assert rows[1]["images_per_second"] > 0
    assert f"opsin: {absent}: " in captured.err
    for extra, message in ((["--prepare", "--mode", "train"], "--prepare is for inference"),
                           (["--plot", "speed.txt"], "a plot is written as .png"),
                           (["--output", "speed.txt"], "written as .csv or .json")):  # fmt: skip
        assert main(["bench", "test_resnet", *args, *extra]) == 2
        assert message in capsys.readouterr().err


# --- the plot -------------------------------------------------------------------------------------------------------


def row(model, speed, top1, params=5.0, mode="inference"):
    return {"model": model, "images_per_second": speed, "top1": top1, "params_M": params, "mode": mode, "device": "cpu"}


def test_the_frontier():
    rows = [row("slow", 10, 80.0), row("worse", 9, 79.0), row("fast", 100, 70.0), row("tie", 100, 69.0)]
    assert [one["model"] for one in frontier(rows)] == ["fast", "slow"]


def test_what_cannot_be_drawn(tmp_path):
    with pytest.raises(OpsinError, match="none of these models"):
        speed_plot([row("a", 10, None), {"model": "b", "error": "broken", "mode": "train"}], tmp_path / "p.png")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OpsinError, match="there is no folder"):
        speed_plot([row("a", 10, 70.0)], tmp_path / "absent" / "p.png")


def test_many_models_name_the_best(tmp_path):
    rows = [row(f"m{i}", 10 + i, 80 - 0.1 * i if i % 5 == 0 else 60.0) for i in range(30)]
    text = speed_plot(rows, tmp_path / "p.svg").read_text()
    assert [one.name for one in tmp_path.iterdir()] == ["p.svg"]
    names = [i for i in range(30) if f"<!-- m{i} -->" in text]
    assert names == [0, 5, 10, 15, 20, 25, 29]
