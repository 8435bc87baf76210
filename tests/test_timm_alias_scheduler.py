"""`timm.scheduler` under the alias: every value beside timm's own."""

import inspect
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from opsin.errors import OpsinError
from opsin.integrations.timm_alias import _scheduler as ours
from opsin.integrations.timm_alias._scheduler_factory import create_scheduler, create_scheduler_v2, scheduler_kwargs

theirs = pytest.importorskip("timm.scheduler")

NAMES = [name for name in ours.__all__ if name != "Scheduler"]
TIMES = range(70)
SCORES = [0.1, 0.2, 0.2, 0.1, 0.2, 0.20001, 0.1, 0.1, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.4, 0.1, 0.1]


def optimizer():
    groups = [{"params": [nn.Parameter(torch.zeros(1))]}, {"params": [nn.Parameter(torch.zeros(1))], "lr": 0.5}]
    made = torch.optim.SGD(groups, lr=1.0)
    made.param_groups[1]["lr_scale"] = 0.3
    return made


def rates(scheduler):
    return [group["lr"] for group in scheduler.optimizer.param_groups]


def curve(scheduler, times=TIMES):
    found = [rates(scheduler)]
    for t in times:
        scheduler.step(t, SCORES[t % len(SCORES)])
        found.append(rates(scheduler))
    for t in times:
        scheduler.step_update(t, 0.5)
        found.append(rates(scheduler))
    return found


CYCLED = [
    {}, {"warmup_t": 5, "warmup_lr_init": 0.1}, {"warmup_t": 5, "warmup_lr_init": 0.1, "warmup_prefix": True},
    {"lr_min": 0.1}, {"cycle_limit": 3}, {"cycle_limit": 3, "cycle_decay": 0.5, "lr_min": 0.05},
    {"cycle_limit": 3, "cycle_mul": 1.5, "cycle_decay": 0.7, "warmup_t": 3, "warmup_prefix": True},
    {"cycle_limit": 4, "cycle_mul": 3.0}, {"t_in_epochs": False},
    {"noise_range_t": (4, 9)}, {"noise_range_t": 3, "noise_pct": 0.2}, {"noise_range_t": [2, 50], "noise_std": 0.1},
    {"noise_range_t": (0, 60), "noise_seed": 7, "t_in_epochs": False, "warmup_t": 4},
]  # fmt: skip
STEPPED = [
    {}, {"warmup_t": 5, "warmup_lr_init": 0.1}, {"warmup_t": 5, "warmup_prefix": False}, {"t_in_epochs": False},
    {"decay_rate": 0.5}, {"noise_range_t": (4, 9), "decay_rate": 0.9}, {"noise_range_t": 3, "noise_seed": 1},
]  # fmt: skip
CASES = [
    *[(name, (10,), options) for options in CYCLED
      for name in ("CosineLRScheduler", "PolyLRScheduler", "TanhLRScheduler")],
    *[(name, (12,), {"k_decay": k, "cycle_limit": 2, "cycle_mul": 1.3}) for k in (0.5, 2.0)
      for name in ("CosineLRScheduler", "PolyLRScheduler")],
    ("PolyLRScheduler", (10, 2.0, 0.1), {}), ("TanhLRScheduler", (10, -3.0, 2.0), {"warmup_t": 4}),
    *[("StepLRScheduler", (7.5,), options) for options in STEPPED],
    *[("MultiStepLRScheduler", ([5, 6, 20],), options) for options in STEPPED],
    *[("WSDLRScheduler", (40, 10), options) for options in (
        {}, {"warmup_t": 5, "warmup_lr_init": 0.1}, {"lr_min": 0.1}, {"t_in_epochs": False}, {"noise_range_t": (4, 36)},
        {"stable_fn": "rsqrt", "warmup_t": 4}, {"stable_fn": "rsqrt", "stable_timescale": 3.0, "lr_min": 0.1},
        {"stable_fn": "power", "stable_timescale": 3.0, "stable_power": 0.8}, {"decay_fn": "linear"},
        {"decay_fn": "cosine"}, {"decay_fn": "power", "decay_power": 2.0}, {"decay_fn": "exp", "decay_ratio": 0.2},
        {"decay_fn": lambda part: 1 - 0.5 * part, "lr_min": 0.1},
    )],
    *[("PlateauLRScheduler", (0.5,), {"warmup_t": 2} | options) for options in (
        {"patience_t": 1}, {"patience_t": 2, "cooldown_t": 2}, {"patience_t": 1, "lr_min": 0.2, "warmup_lr_init": 0.1},
        {"mode": "min", "patience_t": 0}, {"threshold": 1e-6, "patience_t": 0}, {"noise_range_t": (4, 15)},
        {"noise_range_t": 3, "noise_seed": 3, "patience_t": 1}, {"noise_range_t": 3, "noise_type": "even"},
        {"noise_range_t": 3, "noise_pct": 0.1, "noise_std": 0.5},
    )],
]  # fmt: skip


@pytest.mark.parametrize(("name", "args", "options"), CASES)
def test_every_rate(name, args, options):
    mine = getattr(ours, name)(optimizer(), *args, **options)
    judge = getattr(theirs, name)(optimizer(), *args, **options)
    for a, b in zip(curve(mine), curve(judge), strict=True):
        assert a == pytest.approx(b, rel=1e-12, abs=1e-15)
    if hasattr(judge, "get_cycle_length"):
        assert mine.get_cycle_length() == judge.get_cycle_length()
    assert mine.state_dict().keys() == judge.state_dict().keys()


def test_cycles_that_shrink():
    """Beyond the end of all of them timm's raises."""
    mine, judge = (m.CosineLRScheduler(optimizer(), 16, cycle_mul=0.5, cycle_limit=9) for m in (ours, theirs))
    assert curve(mine, range(31)) == [pytest.approx(values) for values in curve(judge, range(31))]
    mine.step(99)
    assert rates(mine) == [0.0, 0.0]


@pytest.mark.parametrize("name", NAMES)
def test_arguments_in_order(name):
    mine, judge = (inspect.signature(getattr(module, name)).parameters for module in (ours, theirs))
    assert [(p.name, p.default) for p in mine.values()] == [(p.name, p.default) for p in judge.values()]


@pytest.mark.parametrize("name", ["CosineLRScheduler", "PlateauLRScheduler"])
def test_states_go_over_in_both_directions(name):
    args = (12,) if name == "CosineLRScheduler" else (0.5, 2)
    pair = [getattr(module, name)(optimizer(), *args) for module in (ours, theirs)]
    for scheduler in pair:
        for t in range(1, 5):
            scheduler.step(t, SCORES[t])
    for old, module in ((pair[0], theirs), (pair[1], ours)):
        new = getattr(module, name)(optimizer(), *((99, 0.1) if name == "CosineLRScheduler" else (0.1, 9)))
        new.load_state_dict(old.state_dict())
        for scheduler in (old, new):
            scheduler.step(6, 0.05)
        if name == "CosineLRScheduler":
            assert rates(new) == pytest.approx(rates(old))
        else:
            assert new.lr_scheduler.best == 0.2


BASE = {"num_epochs": 20, "warmup_epochs": 3, "warmup_lr": 0.1, "cooldown_epochs": 2, "min_lr": 0.01}
UPDATES = {"step_on_epochs": False, "updates_per_epoch": 3}
RECIPES = [
    {}, {"warmup_prefix": True}, {"noise": 0.3}, {"noise": [0.2, 0.5], "noise_seed": 1},
    {"noise": [0.4], "noise_pct": 0.1},
    {"decay_epochs": 4, "decay_rate": 0.5}, {"decay_milestones": [4, 9], "patience_epochs": 1, "noise_std": 0.3},
    {"cycle_limit": 2, "cycle_mul": 1.5, "cycle_decay": 0.5, "k_decay": 2.0, "noise": 0.5}, {"plateau_mode": "min"},
    {"decay_fn": "cosine", "stable_timescale": 3.0, "num_epochs": 13},
]  # fmt: skip


@pytest.mark.parametrize("sched", ["cosine", "tanh", "poly", "step", "multistep", "wsd", "plateau", "none"])
def test_recipes(sched):
    for recipe in RECIPES + ([recipe | UPDATES for recipe in RECIPES] if sched != "plateau" else []):
        mine, epochs = create_scheduler_v2(optimizer(), sched, **BASE | recipe)
        judge, their_epochs = theirs.create_scheduler_v2(optimizer(), sched, **BASE | recipe)
        assert epochs == their_epochs, recipe
        assert (mine is None) == (judge is None) == (sched == "none")
        if mine is not None:
            for a, b in zip(curve(mine), curve(judge), strict=True):
                assert a == pytest.approx(b, rel=1e-12, abs=1e-15), recipe


FEW = {"sched": "cosine", "epochs": 10}
MANY = FEW | {
    "decay_epochs": 3.0, "decay_milestones": [1, 2], "warmup_epochs": 2, "cooldown_epochs": 3, "patience_epochs": 4,
    "decay_rate": 0.2, "min_lr": 0.01, "warmup_lr": 0.02, "warmup_prefix": True, "lr_noise": [0.2, 0.3],
    "lr_noise_pct": 0.4, "lr_noise_std": 0.5, "seed": 6, "lr_cycle_mul": 2.0, "lr_cycle_decay": 0.3,
    "lr_cycle_limit": 4, "lr_k_decay": 1.5, "lr_decay_fn": "linear", "lr_stable_timescale": 3.0,
    "sched_on_updates": True, "eval_metric": "loss",
}  # fmt: skip


@pytest.mark.parametrize("options", [FEW, MANY, MANY | {"eval_metric": "top1", "sched": "tanh"}])
def test_options_of_a_script(options):
    args = SimpleNamespace(**options)
    assert scheduler_kwargs(args) == theirs.scheduler_kwargs(args)
    assert scheduler_kwargs(args, True) == theirs.scheduler_kwargs(args, True)
    mine, epochs = create_scheduler(args, optimizer(), 5)
    judge, their_epochs = theirs.create_scheduler(args, optimizer(), 5)
    assert epochs == their_epochs
    assert curve(mine) == [pytest.approx(values, rel=1e-12) for values in curve(judge)]


def test_signatures_of_the_factory():
    for mine in (create_scheduler, create_scheduler_v2, scheduler_kwargs):
        judge = inspect.signature(getattr(theirs, mine.__name__)).parameters
        found = inspect.signature(mine).parameters
        assert [(p.name, p.default) for p in found.values()] == [(p.name, p.default) for p in judge.values()]


def test_a_scheduler_of_somebodys_own():
    class Linear(ours.Scheduler):  # as people wrote them before `_get_lr`
        def __init__(self, optimizer, total):
            super().__init__(optimizer, param_group_field="lr")
            self.total = total

        def get_epoch_values(self, epoch):
            return None

        def get_update_values(self, num_updates):
            return [value * (1 - num_updates / self.total) for value in self.base_values]

    class Halves(ours.Scheduler):
        def _get_lr(self, t):
            return [value * 0.5**t for value in self.base_values]

    linear = Linear(optimizer(), 10)
    linear.step(3)
    assert rates(linear) == [1.0, 0.15]
    linear.step_update(5)
    assert rates(linear) == [0.5, 0.075]
    halves = Halves(optimizer(), "lr")
    halves.step(2)
    assert rates(halves) == [0.25, 0.0375]
    with pytest.raises(NotImplementedError, match="Scheduler has no _get_lr"):
        ours.Scheduler(optimizer(), "lr").step(1)


def test_plateau_without_warm_up_keeps_its_rate():
    """timm's would go to `warmup_lr_init` at epoch 0, and stay there."""
    scheduler = ours.PlateauLRScheduler(optimizer())
    scheduler.step(0, 0.5)
    assert rates(scheduler) == [1.0, 0.15]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: create_scheduler_v2(optimizer(), "cosin"), "Did you mean cosine"),
        (lambda: create_scheduler_v2(optimizer(), "plateau", **UPDATES), "step_on_epochs=True"),
        (lambda: create_scheduler_v2(optimizer(), step_on_epochs=False), "needs updates_per_epoch"),
        (lambda: ours.CosineLRScheduler(optimizer(), 0), "t_initial=0 must be above 0"),
        (
            lambda: ours.CosineLRScheduler(optimizer(), 10, t_mul=1),
            "takes no argument 't_mul'. It takes: optimizer, t_initial",
        ),
        (lambda: ours.CosineLRScheduler(optimizer()), "CosineLRScheduler: missing a required argument: 't_initial'"),
        (lambda: ours.CosineLRScheduler(optimizer(), 9, initialize=False), "pass initialize=True"),
        (lambda: ours.WSDLRScheduler(optimizer(), 9, 3, decay_fn="cosin"), "Did you mean cosine"),
        (lambda: ours.WSDLRScheduler(optimizer(), 9, 3, stable_fn="rsqrt"), "needs a stable_timescale"),
        (lambda: ours.WSDLRScheduler(optimizer(), 9, 12), "at most t_initial=9"),
        (lambda: ours.PlateauLRScheduler(optimizer()).step(3), "needs the score"),
    ],
)
def test_says_what_is_wrong(call, said):
    with pytest.raises((OpsinError, TypeError, KeyError), match=said):
        call()
