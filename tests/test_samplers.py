"""Orders, sizes and batch plans."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin.data.samplers import (
    BatchPlan,
    ProgressiveSize,
    RandomSize,
    Repeated,
    Sequential,
    Shuffled,
    Weighted,
    class_counts,
    class_weights,
)
from opsin.errors import OpsinError


def plans(total, batch_size, world_size, **how):
    order = how.pop("order", None) or Sequential(total)
    return [BatchPlan(order, batch_size=batch_size, rank=r, world_size=world_size, **how) for r in range(world_size)]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 4))
def test_every_sample_exactly_once_on_any_number_of_ranks(total, batch_size, world_size):
    ranks = plans(total, batch_size, world_size)
    seen = [draw.index for plan in ranks for batch in plan for draw in batch]
    assert sorted(seen) == list(range(total))
    for plan in ranks:
        batches = list(plan)
        assert len(batches) == len(plan)
        assert all(len(batch) == batch_size for batch in batches[:-1])
        assert all(batches)


@settings(deadline=None, max_examples=40)
@given(st.integers(12, 80), st.integers(1, 3), st.integers(1, 4))
def test_ranks_make_as_many_full_steps_when_the_last_is_dropped(total, batch_size, world_size):
    ranks = plans(total, batch_size, world_size, drop_last=True)
    batches = [[[draw.index for draw in batch] for batch in plan] for plan in ranks]
    assert {len(rank) for rank in batches} == {total // (batch_size * world_size)}
    assert all(len(batch) == batch_size for rank in batches for batch in rank)


def test_ranks_together_make_the_batches_of_one_process():
    order = Shuffled(50, seed=3)
    (one,) = plans(50, 8, 1, order=order)
    two = plans(50, 4, 2, order=order)
    one.epoch = two[0].epoch = two[1].epoch = 5
    for whole, *parts in zip(one, *two, strict=True):
        together = [draw for part in parts for draw in part]
        assert sorted(d.key for d in whole) == sorted(d.key for d in together)
        assert {(d.index, d.key, d.epoch) for d in whole} == {(d.index, d.key, d.epoch) for d in together}


def test_a_plan_starts_anywhere():
    (plan,) = plans(30, 4, 1, order=Shuffled(30))
    plan.epoch = 2
    whole = list(plan)
    plan.start = 3
    assert list(plan) == whole[3:]
    assert len(plan) == 8  # of the whole epoch


def test_each_epoch_has_its_own_order_and_each_seed():
    first, again, second = Shuffled(100)(0), Shuffled(100)(0), Shuffled(100)(1)
    assert (first == again).all()
    assert (first != second).any()
    assert (Shuffled(100, seed=1)(0) != first).any()
    assert sorted(first) == sorted(second) == list(range(100))


def test_repeats_meet_on_different_ranks():
    ranks = plans(12, 2, 3, order=Repeated(12, repeats=3))
    steps = list(zip(*ranks, strict=True))
    assert len(steps) == 2
    for step in steps:
        for column in zip(*step, strict=True):
            assert len({draw.index for draw in column}) == 1  # the same picture
            assert len({draw.key for draw in column}) == 3  # augmented differently
    with pytest.raises(OpsinError, match="repeats"):
        Repeated(12, repeats=0)


def test_weights_decide_how_often():
    weights = np.array([0.0, 1.0, 3.0])
    counts = np.bincount(Weighted(weights, length=40_000)(0), minlength=3) / 40_000
    assert counts[0] == 0
    assert abs(counts[2] - 0.75) < 0.01
    assert len(Weighted(weights)(0)) == 3
    assert (Weighted(weights, length=50)(0) != Weighted(weights, length=50)(1)).any()
    assert (Weighted(weights, length=50)(0) != Weighted(weights, length=50, seed=1)(0)).any()
    for bad in ([0.0, 0.0], [1.0, -1.0], [np.nan, 1.0]):
        with pytest.raises(OpsinError, match="weights"):
            Weighted(bad)


def test_class_weights_even_out_the_classes():
    targets = [0] * 90 + [1] * 10
    drawn = Weighted(class_weights(targets, 2), length=20_000)(0)
    assert abs(np.mean(drawn >= 90) - 0.5) < 0.02
    assert set(class_weights(targets, 3, power=0.0)) == {1.0}
    half = class_weights(targets, 2, power=0.5)
    assert half[-1] / half[0] == pytest.approx(3.0)
    several = class_weights([(0,), (0, 1), ()], 2)
    assert several.tolist() == [0.5, 1.0, 0.0]
    assert class_counts([(0,), (0, 1)], 3).tolist() == [2, 1, 0]
    with pytest.raises(OpsinError, match="class 7 is out of range: there are 2"):
        class_counts([0, 7], 2)


def test_sizes():
    plan = BatchPlan(Sequential(40), batch_size=4, sizes=RandomSize(((64, 64), (96, 128))))
    sizes = [{draw.size for draw in batch} for batch in plan]
    assert all(len(size) == 1 for size in sizes)
    assert set.union(*sizes) == {(64, 64), (96, 128)}
    other = BatchPlan(Sequential(40), batch_size=4, sizes=RandomSize(((64, 64), (96, 128)), seed=1))
    assert sizes != [{draw.size for draw in batch} for batch in other]
    grow = ProgressiveSize((128, 128), (224, 320), epochs=4)
    assert [grow(epoch, 0) for epoch in range(5)] == [(128, 128), (160, 192), (192, 256), (224, 320), (224, 320)]
    assert ProgressiveSize((100, 100), (200, 200), epochs=3, step=50)(1, 0) == (150, 150)


def test_says_what_is_wrong():
    with pytest.raises(OpsinError, match="do not fill one step of 2 x 8"):
        BatchPlan(Sequential(10), batch_size=8, world_size=2, drop_last=True)
    with pytest.raises(OpsinError, match="batch_size"):
        BatchPlan(Sequential(10), batch_size=0)
    with pytest.raises(OpsinError, match="rank 2 is not one of 2"):
        BatchPlan(Sequential(10), batch_size=1, rank=2, world_size=2)
