"""Loaders on real files: what arrives, what is skipped, and what an interruption changes (nothing)."""

import gc
import itertools
import logging
import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from started import Started
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from opsin.data.dataset import create_dataset
from opsin.data.loader import Batch, create_loader
from opsin.data.preprocess import Preprocess
from opsin.data.readers import Record, StreamReader
from opsin.data.samplers import ProgressiveSize, Repeated, Weighted
from opsin.errors import ImageError, OpsinError

SHAPE = (3, 8, 8)
PREPROCESS = Preprocess(input_size=SHAPE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


def pixels(image, *, rng, size=None):
    """A transform that keeps the number hidden in a picture (its red) and shows what was drawn (in its green)."""
    from opsin.data.images import open_image

    out = np.array(open_image(image).resize((size or (8, 8))[::-1]))
    out[..., 1] = rng.integers(256)
    return torch.from_numpy(out).permute(2, 0, 1).contiguous()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """23 pictures of two classes; the red of picture i is 10 * i."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(23):
        path = root / ("even" if i % 2 == 0 else "odd") / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (10 * i, 0, 0)).save(path)
    return root


def loader_of(where, **how):
    options = {k: how.pop(k) for k in ("transform", "target_transform") if k in how}
    dataset = create_dataset(str(where), **({"transform": pixels} | options))
    return create_loader(dataset, **({"batch_size": 4, "num_workers": 0} | how))


def numbers(batch):
    return (batch.images[:, 0, 0, 0] // 10).tolist()


def drawn(batches):
    return [tuple(batch.images[:, 1, 0, 0].tolist()) for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches(folder, workers):
    loader = loader_of(folder, num_workers=workers)
    assert len(loader) == 6
    batches = list(loader)
    assert [len(b.targets) for b in batches] == [4, 4, 4, 4, 4, 3]
    assert [n for b in batches for n in numbers(b)] == [*range(0, 23, 2), *range(1, 23, 2)]
    images, targets = batches[0]
    assert images.dtype == torch.uint8
    assert images.shape == (4, *SHAPE)
    assert targets.tolist() == [0, 0, 0, 0]
    assert batches[1].indices.tolist() == [4, 5, 6, 7]


def test_normalised_once_a_batch(folder):
    raw, ready = next(iter(loader_of(folder))), next(iter(loader_of(folder, preprocess=PREPROCESS)))
    assert torch.equal(ready.images, PREPROCESS.normalize(raw.images))
    half = next(iter(loader_of(folder, preprocess=PREPROCESS, dtype=torch.bfloat16, channels_last=True)))
    assert half.images.dtype == torch.bfloat16
    assert half.images.is_contiguous(memory_format=torch.channels_last)


def test_draws_depend_on_epoch_and_place_only(folder):
    one, two = loader_of(folder, shuffle=True, seed=1), loader_of(folder, shuffle=True, seed=1, num_workers=2)
    first = drawn(one)
    assert first == drawn(two)
    second = drawn(one)
    assert second == drawn(two)
    assert first != second
    other = [numbers(b) for b in loader_of(folder, shuffle=True, seed=2)]
    assert other != [numbers(b) for b in loader_of(folder, shuffle=True, seed=1)]
    dataset = create_dataset(str(folder), transform=pixels, seed=5)
    assert drawn(create_loader(dataset, batch_size=4, shuffle=True, seed=1, num_workers=0)) != first


def test_two_ranks_see_what_one_process_sees(folder):
    whole = list(loader_of(folder, shuffle=True, batch_size=8))
    ranks = [loader_of(folder, shuffle=True, batch_size=4, rank=r, world_size=2, num_workers=2) for r in (0, 1)]
    for one, a, b in zip(whole, *ranks, strict=True):
        both = torch.cat([a.images, b.images])
        rows = sorted(map(tuple, one.images[:, :2, 0, 0].tolist()))
        assert rows == sorted(map(tuple, both[:, :2, 0, 0].tolist()))


@pytest.mark.parametrize("stop", [0, 1, 3, 6])
@pytest.mark.parametrize("workers", [0, 2])
def test_goes_on_where_it_stood(folder, workers, stop):
    how = {"shuffle": True, "num_workers": workers, "preprocess": PREPROCESS}
    how["erase"] = lambda images, generator: images + torch.rand(1, generator=generator)
    whole, broken, resumed = (loader_of(folder, **how) for _ in range(3))
    wanted = [b.images for _ in range(2) for b in whole]
    got = [b.images for b in itertools.islice(broken, stop)] if stop < 6 else [b.images for b in broken]
    resumed.load_state_dict(broken.state_dict())
    while len(got) < len(wanted):
        got += [b.images for b in resumed]
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_an_epoch_that_is_broken_off_begins_anew(folder):
    loader = loader_of(folder, shuffle=True)
    assert torch.equal(next(iter(loader)).images, next(iter(loader)).images)
    assert loader.epoch == 0
    list(loader)
    assert loader.epoch == 1


def test_state_of_another_seed_is_refused(folder):
    state = loader_of(folder, seed=1).state_dict()
    with pytest.raises(OpsinError, match="seed 2, but the state was taken with seed 1"):
        loader_of(folder, seed=2).load_state_dict(state)


def test_orders(folder):
    repeated = [b.indices.tolist() for b in loader_of(folder, order=Repeated(23, 2))]
    assert all(batch[0] == batch[1] for batch in repeated)
    heavy = loader_of(folder, order=Weighted([1.0] + [0.0] * 22))
    assert {i for batch in heavy for i in batch.indices.tolist()} == {0}
    with pytest.raises(OpsinError, match="shuffle has an order"):
        loader_of(folder, order=Repeated(23, 2), shuffle=True)


def test_sizes_grow(folder):
    loader = loader_of(folder, sizes=ProgressiveSize((8, 8), (16, 24), epochs=2, step=8), num_workers=2)
    assert {b.images.shape[2:] for b in loader} == {(8, 8)}
    assert {b.images.shape[2:] for b in loader} == {(16, 24)}


def test_drop_last(folder):
    assert [len(b.indices) for b in loader_of(folder, drop_last=True)] == [4] * 5


def test_splits_come_one_after_the_other(folder):
    def three(image, *, rng, size=None):
        return torch.stack([pixels(image, rng=rng, size=size) + i for i in range(3)])

    images, targets = batch = next(iter(loader_of(folder, transform=three)))
    assert images.shape == (12, *SHAPE)
    assert targets.shape == batch.indices.shape == (12,)
    assert torch.equal(images[4:8, 0], images[:4, 0] + 1)


def test_mix_and_erase_get_a_generator_of_their_own(folder):
    def mix(images, targets, *, generator):
        return images, torch.rand(len(targets), generator=generator)

    loader = loader_of(folder, mix=mix)
    first, second = torch.cat([b.targets for b in loader]), torch.cat([b.targets for b in loader])
    assert len(set(first.tolist())) == 23  # another state for every batch
    assert not torch.equal(first, second)
    assert torch.equal(first, torch.cat([b.targets for b in loader_of(folder, mix=mix)]))
    torch.rand(1)  # the global state plays no part
    assert not torch.equal(first, torch.cat([b.targets for b in loader_of(folder, mix=mix, seed=9)]))


def test_foreign_transforms(folder):
    from torchvision.transforms import v2

    transform = v2.Compose([v2.PILToTensor(), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)])
    state = torch.get_rng_state()
    loader = loader_of(folder, transform=v2.Compose([transform, v2.GaussianNoise()]), preprocess=PREPROCESS)
    once, again = [b.images for b in loader], [b.images for b in loader_of(folder, transform=loader.dataset.transform)]
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))  # seeded, and floats are left as they are
    assert once[0].dtype == torch.float32
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(once[0], next(iter(loader)).images)  # another epoch


def test_kinds_of_targets(tmp_path):
    from opsin.data.readers.base import Relabelled, Tuples
    from opsin.data.readers.digits import Digits

    digits = Digits()
    several = Tuples([(0, 2), *[(1,)] * 1796])
    wanted = {
        "multi": (several, ("a", "b", "c"), [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]),
        "regression": (np.arange(1797) / 2, None, [0.0, 0.5]),
        "unlabelled": (None, None, None),
    }

    def small(image, *, rng, size=None):
        return torch.from_numpy(image).permute(2, 0, 1)

    for task, (targets, classes, first) in wanted.items():
        dataset = create_dataset(Relabelled(digits, targets, classes, task), transform=small)
        images, got = next(iter(create_loader(dataset, batch_size=2, num_workers=0)))
        assert images.shape == (2, 1, 8, 8)
        assert (got if got is None else got.tolist()) == first
    halved = create_dataset("digits", transform=small, target_transform=lambda t: t // 2)
    assert create_loader(halved, batch_size=4, num_workers=0).__iter__().__next__().targets.tolist() == [0, 0, 1, 1]


def test_sends_to_the_device(folder):
    batch = next(iter(loader_of(folder, preprocess=PREPROCESS, device="meta")))
    assert batch.images.is_meta
    assert batch.targets.is_meta
    assert isinstance(batch, Batch)


# --- faults ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(folder, tmp_path):
    root = tmp_path / "damaged"
    for kind in ("even", "odd"):
        (root / kind).mkdir(parents=True)
        for path in (folder / kind).iterdir():
            (root / kind / path.name).write_bytes(path.read_bytes())
    (root / "even" / "04.png").write_bytes(b"")
    (root / "odd" / "07.png").write_bytes((folder / "odd" / "07.png").read_bytes()[:50])
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_pictures_are_counted_and_named(damaged, workers, caplog):
    loader = loader_of(damaged, num_workers=workers)
    with caplog.at_level(logging.WARNING, "opsin.data"):
        seen = [n for b in loader for n in numbers(b)]
        assert seen == [n for n in [*range(0, 23, 2), *range(1, 23, 2)] if n not in (4, 7)]  # none in their place
        list(loader)
    assert sorted(name.rpartition("/")[2] for name in loader.skipped) == ["04.png", "07.png"]
    assert len(caplog.records) == 2  # once each, though there were two epochs
    assert "04.png: empty (0 bytes)" in caplog.text
    assert "07.png: truncated or damaged" in caplog.text
    other = loader_of(damaged)
    other.load_state_dict(loader.state_dict())
    assert other.skipped == loader.skipped


def test_strict_raises_at_the_first(damaged):
    with pytest.raises(ImageError, match=r"04\.png: empty"):
        list(loader_of(damaged, strict=True))
    with pytest.raises(ImageError, match=r"04\.png: empty"):
        create_dataset(str(damaged), transform=pixels)[2]


def test_too_many_skips_stop(damaged):
    with pytest.raises(OpsinError, match=r"2 pictures could not be read \(max_skips=1\)"):
        list(loader_of(damaged, max_skips=1))
    assert len(list(loader_of(damaged, max_skips=2))) == 6
    with pytest.raises(OpsinError, match="max_skips"):
        loader_of(damaged, max_skips=-1)


def test_a_batch_without_any_picture(damaged):
    assert [n for b in loader_of(damaged, batch_size=1) for n in numbers(b)] == [
        n for n in [*range(0, 23, 2), *range(1, 23, 2)] if n not in (4, 7)
    ]
    ranks = [loader_of(damaged, batch_size=1, world_size=2, rank=rank, drop_last=True) for rank in range(2)]
    assert [len(list(loader)) for loader in ranks] == [10, 10]  # of 11: each lost one


def test_an_epoch_can_be_left_early(folder):
    whole, broken, resumed = (loader_of(folder, shuffle=True) for _ in range(3))
    wanted = [b.images for _ in range(2) for b in whole][6:]
    next(iter(broken))
    broken.go_to(1)
    assert broken.state_dict() | {"seed": 0} == {"epoch": 1, "step": 0, "seed": 0, "skipped": {}}
    resumed.load_state_dict(broken.state_dict())
    for loader in (broken, resumed):
        assert all(torch.equal(a.images, b) for a, b in zip(loader, wanted, strict=True))


def deadly(image, *, rng, size=None):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed(folder):
    with pytest.raises(OpsinError, match="a data worker died .* fewer workers"):
        list(loader_of(folder, transform=deadly, num_workers=1))


@pytest.mark.parametrize("error", [ConnectionResetError, EOFError])
def test_a_worker_whose_connection_breaks(folder, monkeypatch, error):
    """Before torch hears of its death; what a living worker or the main process meets stays what it is."""

    def breaks(self):
        heard(self)
        raise error

    def met(image, *, rng, size=None):
        raise error("of my own")

    with pytest.raises(error, match="of my own"):
        list(loader_of(folder, transform=met, num_workers=1))
    with pytest.raises(error, match="of my own"):
        list(loader_of(folder, transform=met, num_workers=0))
    heard = _MultiProcessingDataLoaderIter._next_data
    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_next_data", breaks)
    monkeypatch.setattr("opsin.data.workers.GRACE", 0.0)
    with pytest.raises(OpsinError, match=r"a data worker died \(it exited unexpectedly\)") as caught:
        list(loader_of(folder, num_workers=1))
    assert isinstance(caught.value.__cause__, error)


def test_the_death_behind_a_broken_connection_is_awaited(folder, monkeypatch):
    """Torch raises it in the main thread when it hears of it, which must not be in the middle of something else."""

    def late(number, frame):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    def breaks(self):
        heard(self)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        raise ConnectionResetError

    heard = _MultiProcessingDataLoaderIter._next_data
    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_next_data", breaks)
    before = signal.signal(signal.SIGALRM, late)
    try:
        with pytest.raises(OpsinError, match=r"a data worker died \(DataLoader worker \(pid 7\) is killed by signal"):
            list(loader_of(folder, num_workers=1))
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_worker_does_not_complain_of_a_parent_that_leaves():
    """Its thread that hands batches over reports by `sys.excepthook`."""
    code = """
import sys
from multiprocessing import Semaphore
from opsin.data.workers import _begin
_begin(Semaphore(0), 0)
for error in (ConnectionResetError("left"), ValueError("of its own")):
    sys.excepthook(type(error), error, None)
"""
    assert Started(code).communicate(timeout=60)[1].splitlines()[-1] == "ValueError: of its own"


@pytest.mark.parametrize("start", ["fork", "forkserver"])
@pytest.mark.parametrize("cycle", [False, True])
def test_workers_end_with_their_loader(folder, start, cycle):
    """However they were started, and where torch's own word does not reach them, since the queues are gone."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(start, force=True)
    try:
        loader = loader_of(folder, num_workers=2)
        first = [numbers(batch) for batch, _ in zip(loader, range(2), strict=False)]  # one of each worker
        assert first == [[0, 2, 4, 6], [8, 10, 12, 14]]
    finally:
        multiprocessing.set_start_method(before, force=True)
    workers = list(loader.batches._iterator._workers)
    assert [worker.is_alive() for worker in workers] == [True, True]
    if cycle:
        loader.itself = loader
    del loader
    gc.collect()
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_errors_of_transforms_name_the_picture(folder):
    def broken(image, *, rng, size=None):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        list(loader_of(folder, transform=broken))
    assert "00.png" in caught.value.__notes__[0]


# --- streams --------------------------------------------------------------------------------------------------------


class Numbers(StreamReader):
    """27 pictures in a stream; two of them are broken."""

    classes = ("even", "odd")
    length = 27

    def __str__(self):
        return "numbers"

    def stream(self, *, epoch=0, part=0, parts=1, shuffle=False, seed=0):
        indices = np.random.default_rng((seed, epoch)).permutation(27) if shuffle else np.arange(27)
        for i in indices[part::parts].tolist():
            if i in (5, 11):
                yield ImageError(f"shard/{i}.png: truncated")
            else:
                yield Record(np.full((8, 8, 3), i * 9, dtype=np.uint8), i % 2, f"shard/{i}.png")


def stream_loader(**how):
    dataset = create_dataset(Numbers(), transform=pixels)
    return create_loader(dataset, **({"batch_size": 3, "num_workers": 0} | how))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_gives_each_sample_once(workers):
    ranks = [stream_loader(rank=r, world_size=2, num_workers=workers, shuffle=True) for r in range(2)]
    for _ in range(2):
        seen = [n // 9 for loader in ranks for b in loader for n in b.images[:, 0, 0, 0].tolist()]
        assert sorted(seen) == [i for i in range(27) if i not in (5, 11)]
    skipped = {**ranks[0].skipped, **ranks[1].skipped}
    assert skipped == {f"shard/{i}.png": f"shard/{i}.png: truncated" for i in (5, 11)}
    assert len(ranks[0]) == (6 if workers else 5)
    batches = [len(list(loader)) for loader in ranks]
    assert max(batches) == len(ranks[0])


@pytest.mark.parametrize("stop", [1, 2, 5, 9])
@pytest.mark.parametrize("workers", [0, 3])
def test_a_stream_goes_on_where_it_stood(workers, stop):
    how = {"num_workers": workers, "shuffle": True}
    whole, broken, resumed = (stream_loader(**how) for _ in range(3))
    wanted = [b.images for _ in range(2) for b in whole]
    got = [b.images for b in itertools.islice(broken, stop)]
    resumed.load_state_dict(broken.state_dict())
    got += [b.images for _ in range(2) for b in resumed]
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_streams_say_what_they_cannot():
    state = stream_loader(num_workers=2).state_dict()
    with pytest.raises(OpsinError, match="read by 2 workers goes on with as many, not 3"):
        stream_loader(num_workers=3).load_state_dict(state)
    with pytest.raises(OpsinError, match="a stream has no order"):
        stream_loader(order=Repeated(27))
    sizes = [b.images.shape[2] for b in stream_loader(sizes=lambda epoch, batch: (8 + 8 * (batch % 2), 8))]
    assert sizes == [8, 16] * 4 + [8]
    for workers, batches in ((0, 6), (3, 6), (7, 1)):  # shares of 27, of which 7 workers fill none
        loader = stream_loader(drop_last=True, batch_size=4, num_workers=workers)
        assert len(loader) == batches
    assert len(list(stream_loader(drop_last=True, batch_size=4))) == 6
