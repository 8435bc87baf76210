"""What the loop does between the epochs: which is the best, when rates fall, what stops a run."""

import csv
import json
import math

import pytest
import torch
from runs import dark_and_light
from torch import nn

import opsin
from opsin.errors import OpsinError
from opsin.loss import create_loss
from opsin.models import _registry, _users
from opsin.scheduler import create_scheduler
from opsin.train.build import build_run
from opsin.train.config import from_dict
from opsin.train.distributed import World
from opsin.train.ema import Ema
from opsin.train.loop import Callback, fit
from opsin.train.state import save


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """4 updates an epoch."""
    return dark_and_light(tmp_path_factory.mktemp("photos"), 36)


def settings(where, output, **groups):
    values = {
        "data": {"data": str(where), "batch_size": 16, "workers": 0},
        "model": {"model": "test_resnet", "img_size": 32},
        "schedule": {"epochs": 2, "warmup_epochs": 0},
        "run": {"output": str(output), "device": "cpu", "log_every": 1},
    }
    return from_dict({k: values.get(k, {}) | groups.get(k, {}) for k in {**values, **groups}})


def made(config, **how):
    return build_run(config, World(torch.device("cpu")), **how)


def trained(run):
    try:
        fit(run)
    finally:
        run.directory.close()
    return run


class Scores(Callback):
    """Lets a run find the scores of a list, whatever it learns."""

    def __init__(self, rows):
        self.rows, self.rates = rows, []

    def on_start(self, run):
        run.score = lambda model, prefix="": {prefix + name: value for name, value in self.rows[run.epoch].items()}

    def on_epoch(self, run, row):
        self.rates.append(round(run.scheduler.lr_at(run.update), 6))


# --- rates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "wanted"),
    [("loss", [1e-3] * 5), ("ema_top1", [1e-3, 1e-3, 5e-4, 5e-4, 3e-4])],
)
def test_the_rate_falls_where_the_score_stays(photos, tmp_path, metric, wanted):
    """From the second bad epoch on, whether or not the run is interrupted; a loss that sinks gets better."""
    rows = [{"top1": 0.5, "loss": 1 - epoch / 10} for epoch in range(5)]

    class Halt(Scores):
        def on_epoch(self, run, row):
            super().on_epoch(run, row)
            raise KeyboardInterrupt

    config = settings(
        photos, tmp_path, run={"metric": metric, "ema": True}, optim={"lr": 1e-3},
        schedule={
            "epochs": 5, "sched": "plateau", "min_lr": 3e-4, "sched_args": {"patience": 1, "decay_rate": 0.5},
        },
    )  # fmt: skip
    whole = Scores(rows)
    trained(made(config, callbacks=[whole]))
    assert whole.rates == wanted
    config.run.overwrite, halted = True, Halt(rows)
    for _ in rows:
        with pytest.raises(KeyboardInterrupt):
            trained(made(config, callbacks=[halted]))
        config.run.overwrite = False
    assert halted.rates == wanted


# --- logs -----------------------------------------------------------------------------------------------------------


class Broken(Callback):
    """Ends a run after its checkpoint of update 4, the last of the first epoch, or after the log's line about it."""

    def __init__(self, event):
        self.event = event

    def on_update(self, run, loss):
        if self.event == "update" and run.update == 4:
            save(run)
            raise KeyboardInterrupt

    def on_log(self, run, row):
        if self.event == "log":
            raise KeyboardInterrupt


def test_the_last_update_of_an_epoch_is_logged_once(photos, tmp_path):
    told = []

    class Told(Callback):
        def on_log(self, run, row):
            told.append(row)

    config = settings(photos, tmp_path / "whole", run={"log_every": 3}, schedule={"epochs": 2})
    trained(made(config, callbacks=[Told()]))
    config.run.output = tmp_path / "broken"
    for event in ("update", "log", "log"):
        with pytest.raises(KeyboardInterrupt):
            trained(made(config, callbacks=[Broken(event)]))
    run = trained(made(config))
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "broken")]
    assert logs[0] == logs[1]
    rows = [json.loads(line) for line in logs[0].splitlines()]
    assert rows == told
    assert [(row["update"], row["epoch"]) for row in rows] == [(2, 0), (3, 0), (5, 1), (7, 1)]
    lines = [json.loads(line) for line in (tmp_path / "broken" / "history.jsonl").read_text().splitlines()]
    assert lines == run.history
    with (tmp_path / "broken" / "history.csv").open() as file:
        assert [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)] == lines


# --- numbers that are none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("metric", "lr"), [("top1", 1e20), ("loss", 1e30)])
def test_weights_that_the_last_update_spoiled_are_not_the_best(photos, tmp_path, metric, lr):
    """The loss of the only update is fine."""
    config = settings(
        photos, tmp_path, data={"batch_size": 64}, optim={"lr": lr}, run={"metric": metric},
        schedule={"epochs": 1, "sched": "constant"},
    )  # fmt: skip
    with pytest.raises(
        OpsinError, match=r"of the model on the validation set became (nan|inf) in epoch 0 \(lr 1.00e\+"
    ):
        trained(made(config))
    assert not (tmp_path / "best").exists()
    assert not (tmp_path / "history.csv").exists()


def test_a_score_that_is_never_a_number(photos, tmp_path):
    rows = [{"top1": math.nan, "loss": 1.0}] * 2
    with pytest.raises(OpsinError, match="no epoch had a top1 that is a number"):
        trained(made(settings(photos, tmp_path), callbacks=[Scores(rows)]))


class Odd(nn.Module):
    """A finite loss whose gradient is no number."""

    def forward(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets) + (outputs[0, 0] * 0).abs().sqrt()


@pytest.mark.parametrize(
    ("batch_size", "said"),
    [
        (16, "nothing was learnt: .* in each of 4 updates"),
        (2, r"however .* scaled, in update 30 .*rank-0\.pt"),
    ],
)
def test_gradients_that_are_no_numbers_in_float16(photos, tmp_path, batch_size, said):
    parts = {"data": {"batch_size": batch_size}, "run": {"amp": "float16"}, "schedule": {"epochs": 1}}
    run = made(settings(photos, tmp_path, **parts))
    run.task.train_loss = Odd()
    with pytest.raises(OpsinError, match=said):
        trained(run)


# --- smoothing ------------------------------------------------------------------------------------------------------


class Seen(nn.Module):
    """What a loss is given, and what it says of it."""

    def __init__(self, loss):
        super().__init__()
        self.loss, self.calls = loss, []

    def forward(self, outputs, targets):
        self.calls.append((outputs.detach(), targets, self.loss(outputs, targets)))
        return self.calls[-1][-1]


@pytest.mark.parametrize(
    ("kind", "loss"), [("single", "auto"), ("single", "bce"), ("multi", "auto"), ("single", "focal")]
)
def test_the_loss_smooths_mixed_targets_and_those_that_come_after(photos, tmp_path, kind, loss):
    where = photos
    if kind == "multi":
        where = tmp_path / "list.csv"
        rows = [f"{path},{path.parent.name};small\n" for path in sorted(photos.glob("*/*.png"))]
        where.write_text("path,label\n" + "".join(rows))
    run = made(
        settings(
            where, tmp_path / "run", augment={"mixup": 1.0, "mixup_off_epoch": 1},
            loss={"loss": loss, "smoothing": 0.3},
        )
    )  # fmt: skip
    seen = run.task.train_loss = Seen(run.task.train_loss)
    trained(run)
    plain = create_loss(loss, task=kind)
    assert not (seen.calls[0][1] == seen.calls[0][1].round()).all()  # mixed
    assert (seen.calls[-1][1] == seen.calls[-1][1].round()).all()
    for outputs, targets, said in (seen.calls[0], seen.calls[-1]):
        shares = targets.float() if targets.ndim == 2 else nn.functional.one_hot(targets, run.task.outputs).float()
        towards = 0.5 if kind == "multi" or loss == "focal" else 1 / run.task.outputs
        assert said.item() == pytest.approx(plain(outputs, shares * 0.7 + 0.3 * towards).item(), rel=1e-5)


# --- what decides ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["top1", "ema_top1"])
def test_of_equal_scores_the_lower_loss_decides(photos, tmp_path, metric):
    rows = [
        {"top1": top1, "loss": loss} for top1, loss in ((0.5, 0.1), (1, 0.6), (1, 0.4), (1, 0.4), (1, 0.5), (0.9, 0.2))
    ]
    config = settings(photos, tmp_path, run={"metric": metric, "ema": True}, schedule={"epochs": 6})
    assert trained(made(config, callbacks=[Scores(rows)])).best == (2, 1)
    kept = json.loads((tmp_path / "best" / "config.json").read_text())
    assert kept["opsin"]["recipe"]["scores"]["epoch"] == 2


def test_a_head_that_decides_needs_labels_to_judge_by(photos, tmp_path):
    lines = ["path,colour,size,split"]
    for i, path in enumerate(sorted(photos.glob("*/*.png"))):
        lines.append(f"{path},{path.parent.name},{i},train" if i % 4 else f"{path},,{i},validation")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    parts = {"data": {"target": ["colour", "size"]}, "schedule": {"epochs": 1}}
    config = settings(tmp_path / "list.csv", tmp_path / "run", **parts, run={"metric": "colour/top1"})
    with pytest.raises(
        OpsinError, match="has a label for colour, so colour/top1 cannot decide. Heads that have: size."
    ):
        made(config)
    assert not (tmp_path / "run").exists()
    config.run.metric = None
    run = made(config)
    run.task.metric = "colour/top1"  # as if none of the labelled pictures could be read
    with pytest.raises(OpsinError, match="nothing that could be read for validation has a label for colour/top1"):
        trained(run)


# --- parts of one's own ---------------------------------------------------------------------------------------------


class TwoSteps(torch.optim.SGD):
    is_second_order = True


def test_parts_are_replaced_by_setting_them(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(_users, "USERS", {})
    monkeypatch.setattr(_registry, "USERS", _users.USERS)

    @opsin.register_model
    def test_resnet_of_mine(pretrained=False, **options):
        model = opsin.create_model("test_resnet", **options)
        model.act1 = nn.Tanh()
        return model

    lengths, rates = [], []

    class Watch(Callback):
        def on_update(self, run, loss):
            rates.append([group["lr"] for group in run.optimizer.param_groups])

    config = settings(
        photos, tmp_path, model={"model": "test_resnet_of_mine"}, run={"metric": "ema_loss", "ema": True},
        schedule={"sched": "linear", "min_lr": 0.0},
    )  # fmt: skip
    run = made(config)
    run.callbacks.append(Watch())
    head = [*run.model.get_classifier().parameters()]
    body = [p for p in run.learner.parameters() if all(p is not one for one in head)]
    run.optimizer = TwoSteps([{"params": body, "lr": 0.07}, {"params": head, "lr": 0.7}])
    assert run.second_order
    assert run.scheduler.optimizer is run.optimizer
    run.optimizer = torch.optim.SGD([{"params": body, "lr": 0.07}, {"params": head, "lr": 0.7}])
    assert not run.second_order
    run.clip = lambda model: lengths.append(nn.utils.clip_grad_norm_(model.parameters(), 0.1))
    run.ema = Ema(run.model, 0.5)
    run.task.train_loss = seen = Seen(nn.MultiMarginLoss())
    run.task.metric = "top1"
    assert isinstance(run.model.act1, nn.Tanh)
    trained(run)
    assert rates == [pytest.approx([0.07 * (1 - i / 7), 0.7 * (1 - i / 7)]) for i in range(8)]
    assert len(lengths) == len(seen.calls) == 8
    assert run.ema.updates == 8
    assert run.best[1] == run.history[run.best[0]]["top1"]
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(0.0)
    longer = made(settings(photos, tmp_path / "longer", schedule={"epochs": 1, "sched": "linear", "min_lr": 0.0}))
    longer.scheduler = create_scheduler(longer.optimizer, "constant", total_steps=4)
    assert trained(longer).optimizer.param_groups[0]["lr"] == 1e-3
