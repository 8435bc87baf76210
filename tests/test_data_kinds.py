"""Every kind of dataset through `create_dataset` and `create_loader`: nothing lost or twice, going on in between."""

import csv
import itertools
import json
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from test_readers import picture
from test_readers_stream import shards

from opsin.data import EvalTransform, Preprocess, RandomErasing, TrainTransform, create_dataset, create_loader
from opsin.data.samplers import ProgressiveSize, RandomSize, Repeated

COUNT = 41  # divisible by nothing; the red of picture i is i
FILES = ("folder", "csv", "jsonl", "parquet")
STREAMS = ("wds of one shard", "wds of shards", "hf stream, saved", "hf stream, files")
KINDS = (*FILES, "tar", "folder of tars", "hf, saved", "hf, files", "torchvision", "digits", *STREAMS)
RANKS, WORKERS = 2, 2


@pytest.fixture(scope="module", autouse=True)
def datasets(tmp_path_factory):
    library = pytest.importorskip("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(library.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
        library.disable_progress_bars()
        yield library


@pytest.fixture(scope="module")
def places(tmp_path_factory, datasets):
    """The same pictures of classes a and b, once as every kind: kind -> arguments of `create_dataset`."""
    root = tmp_path_factory.mktemp("kinds")
    names = [f"{'ab'[i % 2]}/{i:02d}.png" for i in range(COUNT)]
    for i, name in enumerate(names):
        (root / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "files" / name).write_bytes(picture(i))
    rows = [{"path": name, "label": name[0]} for name in names]
    with open(root / "files" / "list.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label"])
        writer.writeheader()
        writer.writerows(rows)
    (root / "files" / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    columns = {
        "image": [{"bytes": picture(i), "path": None} for i in range(COUNT)],
        "label": [i % 2 for i in range(COUNT)],
    }
    whole = datasets.Dataset.from_dict(columns, features=features)
    whole.save_to_disk(root / "saved")
    for part in range(3):
        whole.shard(3, part).to_parquet(root / "parts" / f"train-{part}.parquet")
    datasets.Dataset.from_list(rows).to_parquet(root / "files" / "list.parquet")
    (root / "tars").mkdir()
    for stem, chosen in (("whole", "ab"), ("tars/a", "a"), ("tars/b", "b")):
        with tarfile.open(root / f"{stem}.tar", "w") as tar:
            for name in names:
                if name[0] in chosen:
                    tar.add(root / "files" / name, name if stem == "whole" else name[2:])
    shards(root / "one", [COUNT], label=lambda i: i % 2)
    shards(root / "many", [9, 1, 14, 6, 11], label=lambda i: i % 2)
    return {
        "folder": {"where": f"folder:{root / 'files'}"},
        **{form: {"where": f"{form}:{root / 'files' / 'list'}.{form}"} for form in FILES[1:]},
        "tar": {"where": f"tar:{root / 'whole.tar'}"},
        "folder of tars": {"where": f"tar:{root / 'tars'}"},
        "hf, saved": {"where": f"hf:{root / 'saved'}"},
        "hf, files": {"where": f"hf:{root / 'parts'}"},
        "torchvision": {"where": "torch:imagefolder", "root": root / "files"},
        "digits": {"where": "digits"},
        "wds of one shard": {"where": f"wds:{root / 'one'}", "length": COUNT},
        "wds of shards": {"where": f"wds:{root / 'many'}"},
        "hf stream, saved": {"where": f"hfids:{root / 'saved'}"},
        "hf stream, files": {"where": f"hfids:{root / 'parts'}"},
    }


def open_kind(places, kind, **options):
    """The dataset; its pictures are 8 x 8 pixels, whatever is drawn the red of each is its number."""
    mean = (0.5,) if kind == "digits" else (0.5, 0.5, 0.5)
    transform = TrainTransform(8, color_jitter=None, mean=mean)
    return create_dataset(**({"transform": transform} | places[kind] | options))


def loader_of(places, kind, **how):
    return create_loader(open_kind(places, kind), **({"batch_size": 3, "num_workers": 0} | how))


def numbers(kind, batch):
    return batch.indices.tolist() if kind == "digits" else batch.images[:, 0, 0, 0].int().tolist()


def test_all_schemes_are_here(places):
    from opsin.data.readers import SCHEMES

    used = {options["where"].partition(":")[0] for options in places.values()}
    assert used == set(SCHEMES) - {"hfds"}  # another word for hf
    assert set(places) == set(KINDS)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_each_sample_once_an_epoch(places, kind, shuffle):
    how = {"shuffle": shuffle, "num_workers": WORKERS, "world_size": RANKS, "batch_size": 64 if kind == "digits" else 3}
    ranks = [loader_of(places, kind, rank=rank, **how) for rank in range(RANKS)]
    epochs = [[list(loader) for loader in ranks] for _ in range(2 if shuffle else 1)]
    for epoch in epochs:
        batches = [batch for rank in epoch for batch in rank]
        seen = Counter(number for batch in batches for number in numbers(kind, batch))
        assert seen == Counter(range(1797 if kind == "digits" else COUNT))
        assert all(sum(len(batch.images) for batch in rank) for rank in epoch)
        if kind != "digits":
            assert all(batch.targets.tolist() == [n % 2 for n in numbers(kind, batch)] for batch in batches)
    if shuffle:
        first, second = ([numbers(kind, batch) for rank in epoch for batch in rank] for epoch in epochs)
        assert first != second


@pytest.mark.parametrize("kind", KINDS)
def test_goes_on_in_mid_epoch(places, kind):
    """Shuffled and augmented, over the end of an epoch: bit for bit what comes without an interruption."""
    how = {
        "shuffle": True,
        "num_workers": WORKERS if kind in ("folder", *STREAMS) else 0,
        "batch_size": 200 if kind == "digits" else 5,
    }
    channels = 1 if kind == "digits" else 3
    fit = Preprocess(input_size=(channels, 8, 8), mean=(0.5,) * channels, std=(0.5,) * channels)
    how |= {"preprocess": fit, "erase": RandomErasing(0.5, mode="pixel")}
    whole, broken, resumed = (loader_of(places, kind, **how) for _ in range(3))
    wanted = [batch for _ in range(2) for batch in whole]
    got = list(itertools.islice(broken, 4))
    resumed.load_state_dict(json.loads(json.dumps(broken.state_dict())))
    got += [batch for _ in range(2) for batch in resumed]
    assert len(got) == len(wanted)
    for mine, other in zip(got, wanted, strict=True):
        assert torch.equal(mine.images, other.images)
        assert torch.equal(mine.targets, other.targets)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in STREAMS])
def test_automatic_split_is_stratified(places, kind):
    parts = [open_kind(places, kind, split=split) for split in ("train", "validation")]
    names = [{part.reader.name(i) for i in range(len(part))} for part in parts]
    total = 1797 if kind == "digits" else COUNT
    assert not names[0] & names[1]
    assert len(names[0]) + len(names[1]) == total
    assert abs(len(names[1]) - (0.2 if kind == "digits" else 0.1) * total) < 1
    shares = [torch.bincount(torch.as_tensor(part.reader.targets)) / len(part) for part in parts]
    assert (shares[0] - shares[1]).abs().max() < 0.02
    again = open_kind(places, kind, split="val")
    assert {again.reader.name(i) for i in range(len(again))} == names[1]


@pytest.mark.parametrize("kind", ["folder", "tar", "hf, files"])
def test_repeated_augmentation(places, kind):
    """Copies of a sample lie on different ranks, each augmented in its own way."""
    noisy = TrainTransform(16, color_jitter=0.8)
    found = []
    for rank in range(RANKS):
        dataset = open_kind(places, kind, transform=noisy)
        order = Repeated(COUNT, RANKS)
        loader = create_loader(
            dataset, order=order, batch_size=4, num_workers=0, rank=rank, world_size=RANKS, drop_last=True
        )
        found.append(list(loader))
    for ours, theirs in zip(*found, strict=True):
        assert ours.indices.tolist() == theirs.indices.tolist()
        assert not torch.equal(ours.images, theirs.images)
    assert sum(len(batch.images) for batch in found[0]) == COUNT // 8 * 4


@pytest.mark.parametrize("kind", ["csv", "wds of shards", "hf stream, files"])
def test_sizes_of_batches(places, kind):
    sizes = ((8, 8), (16, 24), (32, 16))
    plan = RandomSize(sizes, seed=3)
    loader = loader_of(places, kind, sizes=plan)
    for epoch in range(2):
        shapes = [tuple(batch.images.shape[2:]) for batch in loader]
        assert shapes == [plan(epoch, i) for i in range(len(shapes))]
        assert len(set(shapes)) > 1
    grown = loader_of(places, kind, sizes=ProgressiveSize((8, 8), (24, 40), epochs=3, step=8))
    shapes = [{tuple(batch.images.shape[2:]) for batch in grown} for _ in range(4)]
    assert shapes == [{(8, 8)}, {(16, 24)}, {(24, 40)}, {(24, 40)}]


@pytest.mark.parametrize("channels", [1, 3])
def test_exact_is_what_pillow_makes(tmp_path, channels):
    """Short side to 73 with Pillow's bicubic filter, middle 64 x 64: of photos of every shape and format."""
    data = pytest.importorskip("skimage.data")
    photo = Image.fromarray(data.astronaut())
    wanted = {}
    for i, (size, form) in enumerate(
        [((300, 200), "jpg"), ((90, 512), "png"), ((70, 70), "webp"), ((512, 400), "jpg")]
    ):
        path = tmp_path / "x" / f"{i}.{form}"
        path.parent.mkdir(exist_ok=True)
        photo.resize(size).convert("L" if i == 3 else "RGB").save(path)
        with Image.open(path) as image:
            image = image.convert("RGB" if channels == 3 else "L")
        scale = 73 / min(image.size)
        image = image.resize(
            [73 if side == min(size) else int(side * scale) for side in size], Image.Resampling.BICUBIC
        )
        left, top = round((image.width - 64) / 2), round((image.height - 64) / 2)
        wanted[i] = torch.from_numpy(np.array(image.crop((left, top, left + 64, top + 64))))
    fit = Preprocess(
        input_size=(channels, 64, 64), interpolation="bicubic", crop_pct=64 / 73, mean=(0.5,) * channels,
        std=(0.5,) * channels,
    )  # fmt: skip
    dataset = create_dataset(f"folder:{tmp_path}", transform=EvalTransform(fit, exact=True))
    (batch,) = create_loader(dataset, batch_size=8, num_workers=1)
    stacked = torch.stack(list(wanted.values())).view(4, 64, 64, channels).permute(0, 3, 1, 2)
    assert torch.equal(batch.images, stacked)
    (normal,) = create_loader(dataset, batch_size=8, num_workers=0, preprocess=fit)
    assert torch.allclose(normal.images, stacked / 127.5 - 1, atol=1e-6)
