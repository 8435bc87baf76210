"""Schedules: where they begin and end, what each option does, and timm's epochs."""

import math

import pytest
import torch

from opsin.errors import OpsinError
from opsin.scheduler import Scheduler, create_scheduler, list_schedules

OPTIONS = {"step": {"decay_updates": 20}, "multistep": {"milestones": [30, 60]}}


def optimizer(lr=1.0, **group):
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))]},
        {"params": [torch.nn.Parameter(torch.zeros(1))], **group},
    ]
    return torch.optim.SGD(groups, lr=lr)


def rates(name="cosine", total=100, **options):
    scheduler = create_scheduler(optimizer(), name, total_steps=total, **OPTIONS.get(name, {}) | options)
    return [scheduler.lr_at(update) for update in range(total)]


@pytest.mark.parametrize("name", [name for name in list_schedules() if name != "onecycle"])
def test_all_begin_with_the_full_rate_after_the_warm_up(name):
    got = rates(name, warmup_steps=10, warmup_lr=0.1)
    assert got[0] == pytest.approx(0.1)
    assert got[5] == pytest.approx(0.55)  # in a line
    assert max(got) == pytest.approx(1.0)
    assert got[10] == 1.0
    assert all(0 <= rate <= 1.0 + 1e-12 for rate in got)


@pytest.mark.parametrize("name", ["cosine", "linear", "poly", "tanh", "wsd", "onecycle"])
def test_the_last_update_has_the_lowest_rate(name):
    got = rates(name, warmup_steps=0 if name == "onecycle" else 7, min_lr=0.01)
    assert got[-1] == pytest.approx(0.01)
    assert min(got[7:-1]) > 0.01


def test_formulas():
    cosine = rates(total=101)
    assert cosine[25] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert rates("linear", total=101)[40] == pytest.approx(0.6)
    assert rates("poly", total=101, power=3.0)[50] == pytest.approx(0.125)
    assert rates("tanh", total=101, lb=-3.0, ub=3.0)[50] == pytest.approx(0.5)
    assert rates("tanh", lb=-3.0)[50] != rates("tanh", lb=-3.0, ub=2.0)[50]
    step = rates("step", decay_updates=20, decay_rate=0.5)
    assert [step[i] for i in (0, 19, 20, 40, 99)] == [1, 1, 0.5, 0.25, 0.0625]
    multi = rates("multistep", milestones=[60, 30], decay_rate=0.1)
    assert [multi[i] for i in (29, 30, 59, 60)] == pytest.approx([1, 0.1, 0.1, 0.01])
    assert set(rates("constant")) == {1.0}
    stable = rates("wsd", decay_fraction=0.3)
    assert stable[69] == 1.0
    assert stable[70] < 1.0
    shapes = [rates("wsd", decay_fraction=0.3, decay_shape=shape)[80] for shape in ("cosine", "linear", "sqrt")]
    assert len(set(shapes)) == 3
    once = rates("onecycle", rise=0.5, begin=0.2)
    assert once[0] == pytest.approx(0.2)
    assert once.index(max(once)) == 50


def test_cycles():
    got = rates(total=100, cycles=2, cycle_decay=0.5)
    assert (got[0], got[50]) == (1.0, 0.5)
    assert got[49] == pytest.approx(0)
    assert got[99] == pytest.approx(0)
    longer = rates(total=99, cycles=2, cycle_mul=2.0)
    assert longer[33] == 1.0
    assert longer[32] == pytest.approx(0)
    assert rates("poly", cycles=4)[25] == 1.0


def test_groups_keep_their_scales():
    opt = optimizer(lr=2.0, lr_scale=0.1)
    scheduler = create_scheduler(opt, "linear", total_steps=11)
    scheduler.step(5)
    assert [group["lr"] for group in opt.param_groups] == pytest.approx([1.0, 0.1])
    other = optimizer(lr=2.0)
    other.param_groups[1]["lr"] = 4.0
    create_scheduler(other, "linear", total_steps=11).step(10)
    assert [group["lr"] for group in other.param_groups] == [0.0, 0.0]


def test_whole_epochs():
    got = rates("linear", total=20, steps_per_epoch=5, by_epoch=True)
    assert all(len({*got[i : i + 5]}) == 1 for i in range(0, 20, 5))
    assert got[5] == pytest.approx(1 - 5 / 19)


@pytest.mark.parametrize(
    ("name", "theirs", "options"),
    [("cosine", "CosineLRScheduler", {}), ("poly", "PolyLRScheduler", {"power": 0.7}), ("tanh", "TanhLRScheduler", {})],
)
def test_epochs_as_in_timm(name, theirs, options):
    close = 3e-3 if name == "tanh" else 1e-9  # ours is stretched to begin and end exactly at the two rates
    schedulers = pytest.importorskip("timm.scheduler")
    ours, old = optimizer(), optimizer()
    judge = getattr(schedulers, theirs)(old, 12, lr_min=0.01, warmup_t=3, warmup_lr_init=0.05, **options)
    scheduler = create_scheduler(
        ours, name, total_steps=48, warmup_steps=12, warmup_lr=0.05, min_lr=0.01, steps_per_epoch=4, timm_epochs=True,
        **options,
    )  # fmt: skip
    for epoch in range(12):
        judge.step(epoch)
        for update in range(4 * epoch, 4 * epoch + 4):
            assert scheduler.lr_at(update) == pytest.approx(old.param_groups[0]["lr"], abs=close), epoch


def test_noise_is_the_same_each_time():
    plain, noisy = rates(noise=None), rates(noise=(0.2, 0.6))
    changed = [a != b for a, b in zip(plain, noisy, strict=True)]
    assert not any(changed[:20] + changed[60:])
    assert all(changed[20:60])
    assert noisy == rates(noise=(0.2, 0.6))
    assert noisy != rates(noise=(0.2, 0.6), noise_seed=1)
    spread = [abs(b / a - 1) for a, b in zip(plain[20:60], rates(noise=(0.2, 0.6), noise_std=0.01)[20:60], strict=True)]
    assert max(spread) < 0.05


def test_plateau():
    opt = optimizer()
    scheduler = create_scheduler(opt, "plateau", total_steps=100, patience=1, decay_rate=0.5)
    seen = []
    for score in (0.1, 0.2, 0.2, 0.1, 0.3, 0.3, 0.3):
        scheduler.judge(score)
        scheduler.step(1)
        seen.append(opt.param_groups[0]["lr"])
    assert seen == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]
    again = create_scheduler(optimizer(), "plateau", total_steps=100, patience=1, decay_rate=0.5)
    again.load_state_dict(scheduler.state_dict())
    assert again.lr_at(1) == 0.25
    lower = create_scheduler(optimizer(), "plateau", total_steps=100, patience=0, lower_is_better=True)
    lower.judge(1.0)
    lower.judge(0.5)
    assert lower.lr_at(1) == 1.0
    lower.judge(0.6)
    assert lower.lr_at(1) == 0.1
    odd = create_scheduler(optimizer(), "plateau", total_steps=100, patience=0)
    odd.judge(math.nan)
    odd.judge(0.5)
    assert (odd.best, odd.lr_at(1)) == (0.5, 1.0)  # whatever follows is better than no number
    cosine = create_scheduler(optimizer(), total_steps=100)
    cosine.judge(1.0)
    cosine.judge(0.0)
    assert cosine.lr_at(0) == 1.0


def test_plateau_ends_at_the_lowest_rate_and_waits_for_the_warm_up():
    options = {
        "total_steps": 100,
        "warmup_steps": 20,
        "warmup_lr": 0.01,
        "min_lr": 0.3,
        "patience": 0,
        "decay_rate": 0.5,
    }
    scheduler = create_scheduler(optimizer(), "plateau", **options)
    for update in (10, 19):
        scheduler.judge(0.5, update)
    assert scheduler.lr_at(20) == 1.0
    scheduler.judge(0.5, 30)
    assert scheduler.lr_at(30) == 0.5
    for update in (40, 50, 60):
        scheduler.judge(0.5, update)
        assert scheduler.lr_at(update) == 0.3
    assert scheduler.lr_at(0) == 0.01


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "cosin"}, "Did you mean cosine"),
        ({"power": 2.0}, "the schedule cosine takes no argument 'power'"),
        ({"name": "step"}, "the schedule step needs decay_updates"),
        ({"name": "step", "decay_updates": 0}, "decay_updates must be at least 1"),
        ({"name": "wsd", "decay_shape": "round", "decay_fraction": 1.0}, "cosine, linear or sqrt"),
        ({"cycles": 0}, "cycles must be at least 1"),
        ({"patience": 3}, "patience is of the schedule plateau, not of cosine"),
        ({"name": "onecycle", "warmup_steps": 5}, "a rise of its own"),
        ({"warmup_steps": 100}, "100 updates of warm-up leave nothing of 100"),
    ],
)
def test_says_what_is_wrong(options, said):
    with pytest.raises(OpsinError, match=said):
        Scheduler(optimizer(), **{"total_steps": 100, **options})


def test_command(tmp_path, capsys):
    from PIL import Image

    from opsin.cli import main

    picture = tmp_path / "rates.png"
    args = ["schedule", "cosine", "poly", "--epochs", "4", "--steps-per-epoch", "10", "--warmup-epochs", "1"]
    assert main([*args, "--options", "cycles=2", "cycle_decay=0.5", "--plot", str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["0.0", "0", "1.00e-06", "1.00e-06"]
    assert lines[11].split()[:2] == ["3.9", "39"]
    with Image.open(picture) as image:
        assert image.size == (1050, 525)
    assert main(["schedule", "multistep", "--options", "milestones=100,200", "decay_rate=0.5"]) == 0
    assert "2.51e-04" in capsys.readouterr().out
    assert main(["schedule", "cosin"]) == 2
    assert main(["schedule", "cosine", "--options", "cycles"]) == 2
    assert "key=value" in capsys.readouterr().err
