"""Whole runs, as a person starts them: what comes out, and that neither a kill nor a second process changes it."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from runs import ENV, HARD, SLOW, command, dark_and_light, differences, finish, lines, start

import opsin
from opsin.cli import main
from opsin.errors import OpsinError
from opsin.train.build import build_run
from opsin.train.config import from_dict
from opsin.train.distributed import World
from opsin.train.loop import Callback, fit

SMALL = ["--model", "test_resnet", "--img-size", "32", "--batch-size", "8", "--epochs", "3", "--warmup-epochs", "1"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return dark_and_light(tmp_path_factory.mktemp("photos"), 36)


def settings(where, output, **groups):
    values = {
        "data": {"data": str(where), "batch_size": 8, "workers": 0},
        "model": {"model": "test_resnet", "img_size": 32},
        "schedule": {"epochs": 2, "warmup_epochs": 0.5},
        "run": {"output": str(output), "device": "cpu"},
    }
    return from_dict({k: values.get(k, {}) | groups.get(k, {}) for k in {**values, **groups}})


def train(config, **how):
    run = build_run(config, World(torch.device("cpu")), **how)
    try:
        return fit(run), run
    finally:
        run.directory.close()


def weights(path):
    return torch.load(path / "last.pt", weights_only=True)["model"]


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in b) and len(a) == len(b)


# --- a run ----------------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_model_that_predicts(photos, tmp_path, capsys):
    out = tmp_path / "run"
    args = ["train", str(photos), *SMALL, "--workers", "0", "--output", str(out), "--log-every", "2", "--ema"]
    assert main([*args, "--ema-decay", "0.5"]) == 0
    said = capsys.readouterr().err
    assert "2 classes, 3 epochs of 8 updates" in said
    assert said.count("top1") >= 3
    predictor = opsin.load(out / "best")
    assert [label.name for label in predictor.labels] == ["dark", "light"]
    assert predictor.preprocess.input_size == (3, 32, 32)
    light = predictor.predict(photos / "light" / "3.png")
    assert light.labels[0].label == "light"
    rows = (out / "history.csv").read_text().splitlines()
    assert rows[0].startswith("epoch,lr,train_loss,loss,top1")
    assert "ema_top1" in rows[0]
    assert len(rows) == 4
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["update"] for row in log] == list(range(1, 24, 2))
    assert log[-1]["lr"] < log[4]["lr"]
    recipe = json.loads((out / "best" / "config.json").read_text())["opsin"]["recipe"]
    assert recipe["config"]["model"]["model"] == "test_resnet"
    assert recipe["scores"]["top1"] >= 0.5
    config = yaml.safe_load((out / "config.yaml").read_text())
    config["run"]["output"] = str(tmp_path / "again")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", str(photos), "--config", str(tmp_path / "c.yaml")]) == 0
    assert same(weights(tmp_path / "again"), weights(out))


def test_an_end_that_is_there_is_not_trained_again(photos, tmp_path, capsys):
    args = ["train", str(photos), *SMALL, "--workers", "0", "--output", str(tmp_path)]
    assert main(args) == 0
    before = weights(tmp_path)
    assert main(args) == 0
    assert same(weights(tmp_path), before)
    assert main([*args, "--lr", "0.5"]) == 2
    assert "optim.lr was 0.002, is 0.5" in capsys.readouterr().err
    assert main([*args, "--lr", "0.5", "--overwrite"]) == 0
    assert not same(weights(tmp_path), before)


def test_dry_run(photos, capsys):
    assert main(["train", str(photos), *SMALL, "--workers", "0", "--dry-run", "--output", "never"]) == 0
    said = capsys.readouterr().out
    for words in ("no_decay", "test_resnet, 0.", "3x32x32", "an update", "the run", "memory"):
        assert words in said
    assert not os.path.exists("never")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--epochs", "1", "--warmup-epochs", "3"], "contradicts itself"),
        (["--recipe", "finetun"], "Did you mean finetune"),
        (["--metric", "top2"], "no metric 'top2'"),
        (["--loss", "mse"], "not for single targets"),
        (["--opt", "adamww"], "adamw"),
        (["--device", "cuda"], "torch finds no GPU"),
        (["--metric", "ema_top1"], "keep one with --ema, or take --metric top1"),
        (["--recipe", "convnext", "--no-ema", "--metric", "ema_loss"], "keep one with --ema, or take --metric loss"),
        (["--batch-size", "100000", "--model", "resnt18"], "resnet18"),
    ],
)
def test_says_what_is_wrong(photos, tmp_path, capsys, args, said):
    if said == "torch finds no GPU" and torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(["train", str(photos), *SMALL, "--workers", "0", "--output", str(tmp_path / "x"), *args]) == 2
    assert said in capsys.readouterr().err


def test_a_recipe_without_its_average_goes_by_the_model(photos, tmp_path, capsys):
    """convnext keeps one, and goes by it."""
    args = ["train", str(photos), "--recipe", "convnext", *SMALL, "--epochs", "1", "--warmup-epochs", "0", "--sync-bn"]
    args += ["--color-jitter", "None", "--workers", "0", "--no-ema", "--output", str(tmp_path / "run")]
    assert main(args) == 0
    said = capsys.readouterr().err
    assert "the recipe's metric ema_top1 becomes top1: there is no average of the weights" in said
    assert "sync_bn has no other rank" in said
    assert main(args) == 0  # there already
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["run"]["metric"] == "top1"


def test_what_cannot_be_built_overwrites_nothing(photos, tmp_path, capsys):
    out = tmp_path / "run"
    args = ["train", str(photos), *SMALL, "--workers", "0", "--output", str(out)]
    assert main([*args, "--epochs", "1", "--warmup-epochs", "0"]) == 0
    before = weights(out)
    assert main([*args, "--overwrite", "--model-args", "block_siz=3"]) == 2
    assert main([*args, "--overwrite", "--opt", "adamv"]) == 2
    assert "adamv" in capsys.readouterr().err
    assert same(weights(out), before)
    assert opsin.load(out / "best")
    assert main([*args, "--model-args", "block_siz=3", "--output", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()


# --- interruptions --------------------------------------------------------------------------------------------------

EVERYTHING = [*SMALL, *HARD]


def kill_now_and_then(photos, out, kills, *more, ranks=1, seed=0):
    """Start again and again, each time killed with -9 at a random moment after some progress; then to the end. Returns
    how many updates were logged at each kill."""
    rng, seen = random.Random(seed), []
    for _ in range(kills):
        processes = start(photos, out, *EVERYTHING, *more, ranks=ranks, program=SLOW)
        wanted = len(lines(out)) + rng.randint(1, 3)
        while all(process.returncode is None for process in processes) and len(lines(out)) < wanted:
            time.sleep(0.02)
        time.sleep(rng.random() * 0.3)
        for process in processes:
            process.kill()
        codes = [process.wait() for process in processes]
        if codes == [-signal.SIGKILL] * ranks:
            seen.append(len(lines(out)))
    finish(start(photos, out, *EVERYTHING, *more, ranks=ranks))
    return seen


@pytest.mark.parametrize(("ranks", "kills"), [(1, 3), (2, 2)])
def test_a_run_that_is_killed_ends_with_the_same_bits(photos, tmp_path, ranks, kills):
    finish(start(photos, tmp_path / "whole", *EVERYTHING, "--workers", "1", ranks=ranks))
    seen = kill_now_and_then(photos, tmp_path / "killed", kills, "--workers", "1", ranks=ranks)
    assert seen
    assert 0 < seen[0] < len(lines(tmp_path / "whole"))  # in the middle
    assert differences(tmp_path / "whole", tmp_path / "killed") == []


def test_what_a_kill_leaves_is_cleared_away(photos, tmp_path):
    """Lines of the log from before the first checkpoint, and files that were being written."""
    (tmp_path / "log.jsonl").write_text('{"update": 0, "epoch": 0, "loss": 1.0, "lr": 0.1}\n{"upd')
    torn = [tmp_path / ".best.abc.tmp", tmp_path / "best" / ".best.abc.tmp", tmp_path / ".last-000004.old"]
    for folder in torn:
        folder.mkdir(parents=True)
        (folder / "half").touch()
    train(settings(photos, tmp_path, run={"log_every": 1}, schedule={"epochs": 1}))
    updates = [json.loads(line)["update"] for line in lines(tmp_path)]
    assert updates == list(range(len(updates)))
    assert not any(folder.exists() for folder in torn)


def test_sigterm_saves_and_leaves(photos, tmp_path):
    out = tmp_path / "run"
    (process,) = start(photos, out, *EVERYTHING, "--workers", "0", "--save-every", "1000", program=SLOW)
    while process.returncode is None and not lines(out):
        time.sleep(0.02)
    process.terminate()
    (said,) = finish([process], status=128 + signal.SIGTERM)
    assert "stopped by SIGTERM" in said
    assert (out / "last.pt").exists()
    finish(start(photos, tmp_path / "whole", *EVERYTHING, "--workers", "0"))
    finish(start(photos, out, *EVERYTHING, "--workers", "0", "--save-every", "1000"))
    assert same(weights(out), weights(tmp_path / "whole"))


def test_two_processes_learn_what_one_does(photos, tmp_path):
    """The same samples a step, the same augmentation: the same losses but for rounding. A model without batch norm."""
    plain = [*SMALL, "--model", "test_vit", "--img-size", "32", "--log-every", "1", "--workers", "0"]
    losses = []
    for ranks, batch in ((1, "8"), (2, "4")):
        out = tmp_path / str(ranks)
        if ranks == 1:
            finish(start(photos, out, *plain, "--batch-size", batch))
        else:
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
            line = [*launch, *command(photos, out, *plain, "--batch-size", batch)]
            done = subprocess.run(line, env=ENV, capture_output=True, text=True, check=False, timeout=300)
            assert done.returncode == 0, done.stderr
        history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
        logged = [json.loads(line)["loss"] for line in lines(out)]
        losses.append([*(row["train_loss"] for row in history), *logged])
    assert len(losses[0]) == 3 + 3 * 8
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


# --- parts of the loop ----------------------------------------------------------------------------------------------


class Spy(Callback):
    def __init__(self):
        self.losses, self.epochs, self.batches = [], [], 0

    def on_update(self, run, loss):
        self.losses.append(loss)

    def on_eval_batch(self, run, batch, outputs):
        assert len(outputs) == len(batch.indices)
        self.batches += 1

    def on_epoch(self, run, row):
        self.epochs.append(row)


def test_callbacks_are_told(photos, tmp_path):
    spy = Spy()
    best, run = train(settings(photos, tmp_path), callbacks=[spy])
    assert len(spy.losses) == 2 * run.updates_per_epoch
    assert spy.batches == 2
    assert best in spy.epochs


def test_a_mean_over_batches_is_that_of_one_large_batch(photos, tmp_path):
    ends = []
    for name, size, times in (("one", 16, 1), ("four", 4, 4)):
        parts = {"data": {"batch_size": size}, "optim": {"accumulate": times}}
        config = settings(photos, tmp_path / name, model={"model": "test_vit", "img_size": 32}, **parts)
        ends.append(train(config)[1].model.state_dict())
    assert all(torch.allclose(ends[0][key], ends[1][key], atol=2e-5) for key in ends[0])


def test_a_loss_that_is_no_number_is_kept_and_stops(photos, tmp_path):
    with pytest.raises(OpsinError, match=r"became nan in update \d+ .*failed-update-\d+-rank-0\.pt"):
        train(settings(photos, tmp_path, optim={"lr": 1e30, "opt": "sgd"}, schedule={"warmup_epochs": 0.0}))
    (file,) = tmp_path.glob("failed-update-*.pt")
    assert set(torch.load(file, weights_only=True)) >= {"images", "targets", "model", "update"}


def test_patience(photos, tmp_path):
    config = settings(photos, tmp_path, optim={"lr": 0.0}, schedule={"epochs": 19}, run={"patience": 2})
    _, run = train(config)
    assert len(run.history) == run.best[0] + 3 < 19


def test_freezing_and_setting_free(photos, tmp_path):
    seen = []

    class Watch(Callback):
        def on_epoch(self, run, row):
            seen.append(sum(p.requires_grad for p in run.model.parameters()))

    config = settings(photos, tmp_path, model={"freeze": -1, "unfreeze_epochs": 1}, schedule={"epochs": 4})
    train(config, callbacks=[Watch()])
    assert seen == sorted(seen)
    assert seen[0] == 2
    assert seen[-1] > seen[1] > 2


def test_amp_and_layout(photos, tmp_path):
    config = settings(photos, tmp_path, run={"amp": "bfloat16"}, model={"channels_last": True}, schedule={"epochs": 1})
    best, run = train(config)
    assert run.amp_dtype == torch.bfloat16
    assert run.model.conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert best["loss"] == best["loss"]


@pytest.mark.parametrize("kind", ["multi", "regression"])
def test_several_labels_and_numbers(photos, tmp_path, kind):
    rows = []
    for path in sorted(photos.glob("*/*.png")):
        dark = path.parent.name == "dark"
        target = ("dark;small" if dark else "light;small") if kind == "multi" else (80.5 if dark else 180.5)
        rows.append(f"{path},{target}\n")
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(rows))
    more = {"optim": {"lr": 0.01}, "schedule": {"epochs": 4}}
    best, run = train(settings(tmp_path / "list.csv", tmp_path / "run", **more))
    assert run.task.kind == kind
    if kind == "multi":
        assert run.task.classes == ("dark", "light", "small")
        assert best["mAP"] > 0.9
    else:
        assert run.task.scale.inverse(torch.zeros(1)).item() == pytest.approx(130.5, abs=10)
        assert best["mae"] < 40  # in units of the targets, which are 100 apart
    assert (tmp_path / "run" / "best" / "config.json").exists()


def test_splits_of_augmentation(photos, tmp_path):
    config = settings(
        photos, tmp_path, augment={"aug_splits": 3, "auto_augment": "augmix-m3-w2"}, loss={"loss": "jsd"},
        model={"split_bn": True}, schedule={"epochs": 1},
    )  # fmt: skip
    best, run = train(config)
    assert any("aux" in key for key in run.model.state_dict())
    assert 0 <= best["top1"] <= 1
    saved = opsin.load(tmp_path / "best")  # without the splits: a model like any other
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(saved.model.eval()(images), run.model.eval()(images))
    assert saved.predict(photos / "light" / "3.png").labels


def test_balance_and_repeats(photos, tmp_path):
    for data in ({"balance": 1.0}, {"repeats": 3}):
        _, run = train(settings(photos, tmp_path / str(*data), data=data, schedule={"epochs": 1}))
        assert run.train_loader.plan.order(0).shape == (len(run.train_loader.dataset),)
        assert len(set(run.train_loader.plan.order(0).tolist())) < len(run.train_loader.dataset)
