"""What all ranks must have alike: weights, rates and what is logged."""

import pytest
import torch
from ranks import Halt, train, two_ranks
from runs import dark_and_light

from opsin.train.config import from_dict
from opsin.train.distributed import local
from opsin.train.loop import Callback


@pytest.fixture(scope="module")
def both():
    with two_ranks() as call:
        yield call


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """4 updates an epoch of two ranks."""
    return dark_and_light(tmp_path_factory.mktemp("photos"), 36)


def settings(photos, **groups):
    values = {
        "data": {"data": str(photos), "batch_size": 8, "workers": 0},
        "model": {"model": "test_resnet", "img_size": 32},
        "schedule": {"epochs": 3, "warmup_epochs": 0},
        "run": {"device": "cpu", "log_every": 1},
    }
    return from_dict({key: values.get(key, {}) | groups.get(key, {}) for key in {**values, **groups}})


def train_in(output, config, world, callbacks=()):
    config.run.output = output
    return train(config, world, callbacks)


# --- weights --------------------------------------------------------------------------------------------------------


class Weights(Callback):
    """This rank's weights before the first epoch and after each."""

    every_rank = True

    def on_start(self, run):
        self.seen = []
        self.on_epoch(run, {})

    def on_epoch(self, run, row):
        self.seen.append({name: p.detach().clone() for name, p in local(dict(run.model.named_parameters())).items()})


def set_free(world, config, root):
    watch = Weights()
    train_in(root / "whole", config, world, [watch])
    with pytest.raises(KeyboardInterrupt):
        train_in(root / "halted", config, world, [Halt(6)])  # in the middle of epoch 1
    again = local(dict(train_in(root / "halted", config, world).model.named_parameters()))
    return watch.seen, all(torch.equal(again[name], p) for name, p in watch.seen[-1].items())


@pytest.mark.parametrize("fsdp", [False, True])
def test_stages_that_are_set_free_learn_the_same_on_all_ranks(both, photos, tmp_path, fsdp):
    config = settings(photos, model={"freeze": -1, "unfreeze_epochs": 1}, run={"fsdp": fsdp})
    (first, same), (second, same_there) = both(set_free, config, tmp_path)
    assert same
    assert same_there
    learnt = [{"fc"}, {"fc", "layer4"}, {"fc", "layer4", "layer3"}]
    for before, after, there, wanted in zip(first, first[1:], second[1:], learnt, strict=False):
        moved = {name.partition(".")[0] for name, p in after.items() if not torch.equal(p, before[name])}
        assert moved == wanted
        assert fsdp or all(torch.equal(p, there[name]) for name, p in after.items())


# --- rates ----------------------------------------------------------------------------------------------------------


class Rates(Callback):
    every_rank = True

    def __init__(self):
        self.seen = []

    def on_epoch(self, run, row):
        self.seen.append(run.scheduler.lr_at(run.update))


def lowered(world, config, output):
    rates = Rates()
    return rates.seen, train_in(output, config, world, [rates]).history


def test_a_plateau_is_seen_by_all_ranks(both, photos, tmp_path):
    """Without a head that learns the score stays as it is."""
    config = settings(
        photos, model={"model": "test_vit"}, optim={"lr": 1e-12},
        schedule={"sched": "plateau", "min_lr": 1e-13, "sched_args": {"patience": 0}},
    )  # fmt: skip
    (first, history), (second, there) = both(lowered, config, tmp_path / "run")
    assert first == second == pytest.approx([1e-12, 1e-13, 1e-13])
    assert [row["top1"] for row in history] == [row["top1"] for row in there]
