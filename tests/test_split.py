"""Splits by name and stratified splits."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsin.data.split import find_split, split_kind, stratified_split
from opsin.errors import OpsinError


def covers(parts, count):
    train, held = parts
    assert sorted([*train, *held]) == list(range(count))
    assert len(train) > 0 < len(held)
    assert (np.diff(train) > 0).all()
    return train, held


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=200), st.floats(0.05, 0.9), st.integers(0, 5))
def test_classes_of_two_or_more_are_in_both_parts(labels, fraction, seed):
    targets = np.array(labels)
    counts = np.bincount(targets)
    if counts.max() < 2:
        return
    _, held = covers(stratified_split(targets, fraction=fraction, seed=seed), len(targets))
    for label in np.flatnonzero(counts):
        inside = (targets[held] == label).sum()
        if counts[label] == 1:
            assert inside == 0
        else:
            assert 1 <= inside < counts[label]
            assert abs(inside - fraction * counts[label]) <= 1


def test_same_seed_same_split():
    targets = np.arange(300) % 7
    first, again, other = (stratified_split(targets, seed=seed)[1].tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_large_sets_keep_their_proportions():
    targets = np.random.default_rng(0).choice(5, 20_000, p=[0.5, 0.3, 0.15, 0.04, 0.01])
    _, held = covers(stratified_split(targets, fraction=0.1), len(targets))
    assert np.abs(np.bincount(targets[held]) - 0.1 * np.bincount(targets)).max() < 1
    assert len(held) == 2000


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.integers(0, 5), max_size=3), min_size=6, max_size=80), st.integers(0, 5))
def test_several_labels(rows, seed):
    rows = [tuple(sorted(row)) for row in rows]
    _, held = covers(stratified_split(rows, fraction=0.3, seed=seed), len(rows))
    assert len(held) <= 0.7 * len(rows)


def test_several_labels_are_each_in_both_parts():
    rng = np.random.default_rng(0)
    rows = [tuple(np.flatnonzero(rng.random(12) < np.linspace(0.02, 0.5, 12)).tolist()) for _ in range(400)]
    for seed in range(5):
        _, held = covers(stratified_split(rows, fraction=0.2, seed=seed), len(rows))
        whole = np.bincount(list(itertools.chain.from_iterable(rows)), minlength=12)
        inside = np.bincount(list(itertools.chain.from_iterable(rows[i] for i in held)), minlength=12)
        assert (inside >= 1).all()
        assert (inside < whole).all()
        assert np.abs(inside / whole - 0.2).max() < 0.1


def test_a_label_pushed_to_one_side_is_moved_back():
    # 1 and 2 come first, being rarest; what they leave of 0 may be one side
    rows = [(0, 1), (1,), (0, 2), (2,), (3,), (3,), (3,), (3,)]
    for seed in range(20):
        train, held = covers(stratified_split(rows, fraction=0.3, seed=seed), len(rows))
        for label in range(4):
            assert any(label in rows[i] for i in train)
            assert any(label in rows[i] for i in held)


@pytest.mark.parametrize("columns", [None, 1, 3])
def test_regression_has_values_of_every_size_in_both_parts(columns):
    rng = np.random.default_rng(0)
    values = np.exp(rng.normal(size=(500, columns or 1)))
    targets = values[:, 0] if columns is None else values
    _, held = covers(stratified_split(targets, fraction=0.1, seed=2), 500)
    assert len(held) == 50
    rank = ((values - values.mean(0)) / values.std(0)).sum(1).argsort().argsort()
    assert sorted(rank[held] // 10) == list(range(50))  # one of each stretch of ten


def test_without_labels():
    _, held = covers(stratified_split(40, fraction=0.25), 40)
    assert len(held) == 10


def test_splits_that_leave_a_part_empty():
    for targets in (np.array([3]), np.array([0, 1, 2]), 1):
        with pytest.raises(OpsinError, match="cannot be divided"):
            stratified_split(targets)
    with pytest.raises(OpsinError, match="must lie between 0 and 1, not 1.5"):
        stratified_split(np.zeros(9, dtype=int), fraction=1.5)


@pytest.mark.parametrize(
    ("wanted", "available", "expected"),
    [
        (None, [], (None, None)),
        (None, ["train"], ("train", None)),
        ("train", [], (None, "train")),
        ("val", [], (None, "validation")),
        ("train", ["training"], ("training", "train")),
        ("validation", ["training"], ("training", "validation")),
        ("train", ["train", "val"], ("train", None)),
        ("Validation", ["train", "Val"], ("Val", None)),
        ("val", ["train", "valid", "test"], ("valid", None)),
        ("validation", ["train", "test"], ("test", None)),
        ("test", ["train", "testing"], ("testing", None)),
        ("extra", ["train", "extra"], ("extra", None)),
        ("train", ["train", "trainval", "test"], ("train", None)),
        ("train", ["trainval", "test"], ("trainval", None)),
        ("dev", ["eval", "dev"], ("dev", None)),
    ],
)
def test_names_of_splits(wanted, available, expected):
    assert find_split(wanted, available, owner="it") == expected


@pytest.mark.parametrize(
    ("wanted", "available", "message"),
    [
        (None, ["a", "b"], "it is divided into a, b: say which with split='a'"),
        ("test", [], "is not divided"),
        ("test", ["train"], "it has no split 'test', but train"),
        ("train", ["val"], "it has no split 'train', but val"),
        ("extar", ["train", "extra"], r"Did you mean extra\?"),
    ],
)
def test_splits_that_are_not_there(wanted, available, message):
    with pytest.raises(OpsinError, match=message):
        find_split(wanted, available, owner="it")


def test_kinds():
    assert [split_kind(n) for n in ("TRAIN", "dev ", "testing", "cat")] == ["train", "validation", "test", None]
