"""Scores beside scikit-learn's, and over several processes."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from opsin.train.metrics import Metrics, average_precision, calibration_error, roc_area

sk = pytest.importorskip("sklearn.metrics")


def single(n=200, k=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    targets = torch.randint(k - 1, (n,), generator=g)  # the last class has no sample
    logits = torch.randn(n, k, generator=g)
    logits[torch.arange(n), targets] += 1.0
    return logits.round(decimals=1), targets  # with ties


def multi(n=150, k=5):
    g = torch.Generator().manual_seed(1)
    targets = (torch.rand(n, k, generator=g) > 0.7).float()
    targets[:, 4] = 0
    return (torch.randn(n, k, generator=g) + targets - 0.5).round(decimals=1), targets


def scored(kind, outputs, targets, parts=4):
    metrics = Metrics(kind, outputs.shape[1])
    for a, b in zip(outputs.chunk(parts), targets.chunk(parts), strict=True):
        metrics.update(a, b)
    return metrics.compute(), metrics


def test_single_label():
    logits, targets = single()
    got, metrics = scored("single", logits, targets)
    best, seen = logits.argmax(1), list(range(7))
    p = logits.softmax(1).double()
    assert got["top1"] == pytest.approx(sk.accuracy_score(targets, best))
    assert got["top5"] == pytest.approx(
        sk.top_k_accuracy_score(targets, logits, k=5, labels=range(8)), abs=0.02
    )  # ties
    for name, judge in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
        labels = sorted({*targets.tolist(), *best.tolist()})
        assert got[name] == pytest.approx(judge(targets, best, average="macro", labels=labels, zero_division=0))
    areas = [sk.roc_auc_score(targets == i, p[:, i]) for i in seen]
    assert got["auroc"] == pytest.approx(np.mean(areas))
    assert np.array_equal(metrics.confusion.numpy(), sk.confusion_matrix(targets, best, labels=range(8)))
    assert metrics.per_class["count"].tolist() == torch.bincount(targets, minlength=8).tolist()
    assert tuple(got) == metrics.names
    assert "top5" not in Metrics("single", 5).names


def test_several_labels():
    logits, targets = multi()
    got, _ = scored("multi", logits, targets)
    said = (logits > 0).int()
    known = range(4)
    assert got["mAP"] == pytest.approx(
        np.mean([sk.average_precision_score(targets[:, i], logits[:, i]) for i in known])
    )
    assert got["auroc"] == pytest.approx(np.mean([sk.roc_auc_score(targets[:, i], logits[:, i]) for i in known]))
    for name, judge in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
        assert got[f"micro_{name}"] == pytest.approx(judge(targets, said, average="micro"))
        assert got[name] == pytest.approx(judge(targets, said, average="macro", zero_division=0))


def test_regression():
    g = torch.Generator().manual_seed(2)
    targets = torch.randn(100, 2, generator=g)
    outputs = targets + 0.3 * torch.randn(100, 2, generator=g)
    got, _ = scored("regression", outputs, targets)
    assert got["mae"] == pytest.approx(sk.mean_absolute_error(targets, outputs), rel=1e-5)
    assert got["rmse"] == pytest.approx(sk.mean_squared_error(targets, outputs) ** 0.5, rel=1e-5)
    assert got["r2"] == pytest.approx(sk.r2_score(targets, outputs), rel=1e-5)


def test_calibration_error():
    p = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    right = torch.tensor([0, 1, 0, 1])
    wanted = (abs(0.9 * 2 - 1) + abs(0.6 - 1) + abs(0.8 - 1)) / 4
    assert calibration_error(p, right).item() == pytest.approx(wanted)
    assert calibration_error(p, right, bins=1).item() == pytest.approx(abs(3.2 - 3) / 4)


def test_what_has_no_score():
    assert roc_area(torch.rand(3), torch.zeros(3, dtype=torch.bool)) is None
    assert average_precision(torch.rand(3), torch.zeros(3, dtype=torch.bool)) is None
    got, _ = scored("multi", torch.randn(4, 2), torch.zeros(4, 2), parts=1)
    assert all(value == value for value in got.values())


class Threads:
    """A world of threads that gathers as processes do."""

    def __init__(self, size):
        self.size, self.box, self.barrier = size, [None] * size, threading.Barrier(size)

    def of(self, rank):
        def gather(value):
            self.box[rank] = value
            self.barrier.wait()
            return list(self.box)

        return SimpleNamespace(size=self.size, gather=gather)


@pytest.mark.parametrize(("kind", "data"), [("single", single), ("multi", multi)])
def test_ranks_together_score_as_one(kind, data):
    outputs, targets = data()
    alone, _ = scored(kind, outputs, targets)
    world, results = Threads(3), [None] * 3

    def work(rank):
        metrics = Metrics(kind, outputs.shape[1])
        if rank < 2:  # one rank has nothing
            metrics.update(outputs[rank::2], targets[rank::2])
        results[rank] = metrics.compute(world.of(rank))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1] == results[2]
    assert results[0] == pytest.approx(alone)
