"""Datasets of the libraries `datasets` and torchvision, from files made here."""

import gzip
import pickle
import struct
from itertools import count

import numpy as np
import pytest
import torch
from test_readers import picture, write

from opsin.data.readers import Record, open_reader
from opsin.data.readers.hub import Hub, HubStream, _picture
from opsin.errors import ImageError, OpsinError, UnknownArgumentError

datasets = pytest.importorskip("datasets")
CLASSES = ["cat", "dog", "fox"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
    datasets.disable_progress_bars()


def made(count, label=None, values=None, start=0):
    """A dataset in memory; the shade of each picture is its number."""
    features = {"image": datasets.Image()}
    columns = {"image": [{"bytes": picture(start + i), "path": None} for i in range(count)]}
    if label is not None:
        features["label"] = label
        columns["label"] = values if values is not None else [i % 3 for i in range(count)]
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def saved(path, **splits):
    datasets.DatasetDict(splits).save_to_disk(path)
    return path


def shades(records):
    return sorted(record.image for record in records)


def test_saved_dataset(tmp_path):
    label = datasets.ClassLabel(names=CLASSES)
    where = f"hf:{saved(tmp_path, train=made(7, label), test=made(4, label, start=100))}"
    train, held = open_reader(where, split="train"), open_reader(where, split="validation")
    assert (len(train), len(held), train.task, train.classes) == (7, 4, "single", tuple(CLASSES))
    assert train[4] == Record(picture(4), 1, f"{tmp_path}[4]")
    assert held.targets.tolist() == [0, 1, 2, 0]
    assert open_reader(where.replace("hf:", "hfds:"), split="test")[0].image == picture(100)
    with pytest.raises(OpsinError, match="divided into train, test"):
        open_reader(where)
    assert open_reader(where, split="train", class_map=["fox", "dog", "cat"]).targets.tolist() == [2, 1, 0, 2, 1, 0, 2]


def test_one_saved_split_is_divided(tmp_path):
    made(20, datasets.ClassLabel(names=CLASSES)).save_to_disk(tmp_path)
    parts = [open_reader(f"hf:{tmp_path}", split=split, holdout=0.2) for split in ("train", "val")]
    assert shades(r[i] for r in parts for i in range(len(r))) == sorted(picture(i) for i in range(20))
    assert len(parts[1]) == 4
    assert len(open_reader(f"hf:{tmp_path}")) == 20
    with pytest.raises(OpsinError, match="saved to disk has whole splits"):
        open_reader(f"hf:{tmp_path}", split="train[:10%]")


def test_folder_of_pictures_and_parquet_as_the_library_reads_them(tmp_path):
    write(tmp_path / "pets", "train/cat/1.png", "train/dog/2.png", "test/dog/3.png", "train/dog/4.png")
    reader = open_reader(f"hf:{tmp_path / 'pets'}", split="train")
    assert (reader.classes, sorted(reader.targets.tolist())) == (("cat", "dog"), [0, 1, 1])
    assert reader[0].image == picture(0)
    assert len(open_reader(f"hf:{tmp_path / 'pets'}", split="train[:2]")) == 2
    made(3, datasets.ClassLabel(names=CLASSES)).to_parquet(tmp_path / "x.parquet")
    assert open_reader(f"hf:{tmp_path / 'x.parquet'}")[2].image == picture(2)


@pytest.mark.parametrize(
    ("feature", "values", "task", "classes", "targets"),
    [
        (datasets.Value("int64"), [7, 3, 7], "single", ("3", "7"), [1, 0, 1]),
        (datasets.Value("string"), ["b10", "b9", "b9"], "single", ("b9", "b10"), [1, 0, 0]),
        (datasets.Value("float32"), [0.5, 1.0, 2.0], "regression", None, [0.5, 1.0, 2.0]),
        (datasets.List(datasets.Value("float32")), [[0.5, 1.0]] * 3, "regression", None, [[0.5, 1.0]] * 3),
        (datasets.List(datasets.ClassLabel(names=CLASSES)), [[2, 0], [], [1]], "multi", ("cat", "dog", "fox"), None),
    ],
)
def test_kinds_of_labels(tmp_path, feature, values, task, classes, targets):
    made(3, feature, values).save_to_disk(tmp_path)
    reader = open_reader(f"hf:{tmp_path}")
    assert (reader.task, reader.classes) == (task, classes)
    if targets is None:
        assert list(reader.targets) == [(0, 2), (), (1,)]
    else:
        assert reader.targets.tolist() == targets
    if task == "regression":
        assert next(open_reader(f"hfids:{tmp_path}").stream()).target == reader[0].target


def test_columns(tmp_path):
    data = made(3, datasets.Value("int64"), [1, 0, 1]).rename_columns({"image": "photo", "label": "kind"})
    data.add_column("other", [5, 5, 6]).save_to_disk(tmp_path)
    reader = open_reader(f"hf:{tmp_path}")
    assert (reader.task, reader[1].image) == ("unlabelled", picture(1))
    assert open_reader(f"hf:{tmp_path}", target="other").targets.tolist() == [0, 0, 1]
    with pytest.raises(OpsinError, match=r"no column 'kinds'. Did you mean kind\? There are: photo, kind, other"):
        open_reader(f"hf:{tmp_path}", target="kinds")
    with pytest.raises(UnknownArgumentError, match="takes no argument 'root'"):
        open_reader(f"hf:{tmp_path}", root=".")
    data.remove_columns("photo").save_to_disk(tmp_path / "b")
    with pytest.raises(OpsinError, match="no column holds pictures; say image=, of: kind"):
        open_reader(f"hf:{tmp_path / 'b'}")


def test_arrays_are_pictures_too(tmp_path):
    arrays = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    features = datasets.Features({"img": datasets.Array3D((4, 5, 3), "uint8"), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict({"img": list(arrays), "label": [0, 1]}, features=features).save_to_disk(tmp_path)
    image = open_reader(f"hf:{tmp_path}")[1].image
    assert image.dtype == np.uint8
    assert np.array_equal(image, arrays[1])
    with pytest.raises(ImageError, match="a: values from 300 to 300; a picture has 0 to 255"):
        _picture([[300]], "a")


def test_faults_of_a_dataset(tmp_path):
    label = datasets.ClassLabel(num_classes=5)
    made(3, datasets.Value("int64"), [1, None, 2]).save_to_disk(tmp_path / "none")
    with pytest.raises(OpsinError, match="row 1 has no label"):
        open_reader(f"hf:{tmp_path / 'none'}")
    made(3, label, [1, -1, 2]).save_to_disk(tmp_path / "range")
    with pytest.raises(OpsinError, match=r"row 1: label \[-1\] is out of range for 5 classes"):
        open_reader(f"hf:{tmp_path / 'range'}")
    with pytest.raises(OpsinError, match="row 1 has nan for label, no finite number"):
        Hub(made(2, datasets.Value("float32"), [1.0, float("nan")]))
    with pytest.raises(OpsinError, match="the rows of label are not equally long"):
        Hub(made(2, datasets.List(datasets.Value("float32")), [[1.0], [1.0, 2.0]]))
    stream = list(open_reader(f"hfids:{tmp_path / 'range'}").stream())
    assert [isinstance(r, ImageError) for r in stream] == [False, True, False]
    broken = {"image": [{"bytes": b"", "path": None}, None, {"bytes": None, "path": str(tmp_path / "gone.png")}]}
    data = datasets.Dataset.from_dict(broken, features=datasets.Features({"image": datasets.Image()}))
    reader = Hub(data)
    for index, message in enumerate((r"dataset\[0\]: empty", r"dataset\[1\]: no picture", "gone.png: no such file")):
        with pytest.raises(ImageError, match=message):
            reader[index]
    stream = HubStream(data.to_iterable_dataset()).stream()
    assert [isinstance(record, ImageError) for record in stream] == [True] * 3
    with pytest.raises(OpsinError, match="nowhere: cannot be opened"):
        open_reader("hf:nobody/nowhere")
    with pytest.raises(OpsinError, match="cannot be opened"):
        open_reader(f"hf:{write(tmp_path / 'pets', 'train/cat/1.png')}", config="nonesuch")


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("size", [3, 23, 100])
def test_every_sample_once_over_four_parts(tmp_path, shuffle, size):
    made(size, datasets.ClassLabel(names=CLASSES)).save_to_disk(tmp_path)
    reader, stream = open_reader(f"hf:{tmp_path}"), open_reader(f"hfids:{tmp_path}", buffer=5)
    expected = sorted(picture(i) for i in range(size))
    parts = [pickle.loads(pickle.dumps(stream)).stream(part=p, parts=4, shuffle=shuffle, seed=1) for p in range(4)]
    assert shades(record for part in parts for record in part) == expected
    copies = [pickle.loads(pickle.dumps(reader)) for _ in range(4)]
    assert shades(copies[i % 4][i] for i in range(size)) == expected
    if shuffle and size > 3:
        orders = [
            [r.image for r in stream.stream(shuffle=True, seed=s, epoch=e)] for s, e in ((0, 0), (0, 0), (0, 1), (1, 0))
        ]
        assert orders[0] == orders[1]
        assert len({tuple(order) for order in orders}) == 3


def test_streams_of_files(tmp_path):
    for i in range(6):
        made(4, datasets.ClassLabel(names=CLASSES), start=4 * i).to_parquet(tmp_path / f"train-{i}.parquet")
    reader = open_reader(f"hfids:{tmp_path}", split="train", buffer=4)
    found = [r for p in range(4) for r in reader.stream(part=p, parts=4, shuffle=True, seed=3)]
    assert shades(found) == sorted(picture(i) for i in range(24))
    assert reader.classes == tuple(CLASSES)
    assert open_reader(f"hfids:{tmp_path}", split="train", length=24).length == 24
    with pytest.raises(OpsinError, match="no split 'validation', and none can be cut out of a stream"):
        open_reader(f"hfids:{tmp_path}", split="validation")
    path = tmp_path / "train-5.parquet"
    path.write_bytes(path.read_bytes()[:900])
    records = list(reader.stream())
    assert len([r for r in records if isinstance(r, Record)]) == 20
    assert "cut short or damaged after 20 samples" in str(records[-1])


class Streamed(torch.utils.data.IterableDataset):
    """A reader as a loader's worker runs it."""

    def __init__(self, reader):
        self.reader = reader

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        for record in self.reader.stream(part=worker.id, parts=worker.num_workers):
            yield record.image


@pytest.mark.parametrize("files", [1, 5])
def test_nothing_is_lost_in_workers(tmp_path, files):
    for i in range(files):
        made(4, start=4 * i).to_parquet(tmp_path / f"train-{i}.parquet")
    reader = open_reader(f"hfids:{tmp_path}", split="train")
    found = list(torch.utils.data.DataLoader(Streamed(reader), batch_size=None, num_workers=2))
    assert sorted(found) == sorted(picture(i) for i in range(4 * files))


def test_class_map_of_a_stream(tmp_path):
    made(3, datasets.ClassLabel(names=CLASSES)).save_to_disk(tmp_path / "named")
    reader = open_reader(f"hfids:{tmp_path / 'named'}", class_map={"cat": 4, "dog": 0, "fox": 2})
    assert [record.target for record in reader.stream()] == [4, 0, 2]
    with pytest.raises(OpsinError, match="no label for 1 of the 3 classes of the dataset: fox"):
        open_reader(f"hfids:{tmp_path / 'named'}", class_map=["cat", "dog"])
    made(3, datasets.Value("string"), ["dog", "cow", "cat"]).save_to_disk(tmp_path / "text")
    with pytest.raises(OpsinError, match="column label holds text; a class_map has to number it"):
        open_reader(f"hfids:{tmp_path / 'text'}")
    first, wrong, last = open_reader(f"hfids:{tmp_path / 'text'}", class_map=CLASSES).stream()
    assert (first.target, last.target) == (1, 0)
    assert "no class 'cow' in the class map" in str(wrong)


# --- torchvision ----------------------------------------------------------------------------------------------------


def cifar(root, monkeypatch, classes=10):
    """CIFAR-10 as it lies on the disk, with five pictures a batch; the sums of the real files do not fit these."""
    from torchvision.datasets import CIFAR10

    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    shade = count()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        data = np.repeat(np.array([[next(shade)] for _ in range(5)], dtype=np.uint8), 3072, axis=1)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [i % classes for i in range(5)]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"kind{i}" for i in range(10)]}))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})
    return root


def test_cifar10(tmp_path, monkeypatch):
    root = cifar(tmp_path, monkeypatch)
    train, held = (open_reader("torch:cifar10", root=root, split=split) for split in ("train", "validation"))
    assert (len(train), len(held), len(train.classes)) == (25, 5, 10)
    assert np.asarray(held[2].image)[5, 5].tolist() == [27, 27, 27]
    assert held[2].target == 2
    assert (held.name(2), train.name(0)) == ("torch:cifar10/test[2]", "torch:cifar10/train[0]")
    copies = [pickle.loads(pickle.dumps(train)) for _ in range(4)]
    assert sorted(np.asarray(copies[i % 4][i].image)[0, 0, 0] for i in range(25)) == list(range(25))
    with pytest.raises(OpsinError, match="divided into train, test"):
        open_reader("torch:cifar10", root=root)


def test_mnist_and_emnist(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.arange(3 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)
    for prefix in ("train", "t10k"):
        content = {"images-idx3": struct.pack(">IIII", 2051, 3, 28, 28) + pixels.tobytes()}
        content["labels-idx1"] = struct.pack(">II", 2049, 3) + bytes([4, 0, 9])
        for name, data in content.items():
            (raw / f"{prefix}-{name}-ubyte").write_bytes(data)
            (raw / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(data))
    reader = open_reader("torch:mnist", root=tmp_path, split="test")
    assert np.array_equal(np.asarray(reader[1].image), pixels[1])
    assert reader.targets.tolist() == [4, 0, 9]
    with pytest.raises(OpsinError, match="has no split 'train', but balanced, byclass"):
        open_reader("torch:emnist", root=tmp_path, split="train")


def test_files_stay_encoded(tmp_path):
    write(tmp_path / "eurosat/2750", "River/1.jpg", "River/2.jpg", "Forest/3.jpg", "Forest/4.jpg")
    reader = open_reader("torch:EuroSAT", root=tmp_path)
    assert (reader.classes, reader.targets.tolist()) == (("Forest", "River"), [0, 0, 1, 1])
    assert reader[0].image == picture(2)
    assert [len(open_reader("torch:eurosat", root=tmp_path, split=s)) for s in ("train", "val")] == [2, 2]
    (tmp_path / "eurosat/2750/Forest/3.jpg").write_bytes(b"")
    with pytest.raises(ImageError, match="3.jpg: empty"):
        reader[0]


def test_dataset_with_splits_by_name(tmp_path):
    root = write(
        tmp_path / "country211", *(f"{s}/{c}/{i}.jpg" for s in ("train", "valid", "test") for c in "AB" for i in "12")
    )
    reader = open_reader("torch:country-211", root=root.parent, split="validation")
    assert (reader.name(0), len(reader), reader.classes) == ("torch:country-211/valid[0]", 4, ("A", "B"))
    assert reader[0].image == picture(4)
    with pytest.raises(OpsinError, match="has no split 'dve', but test, train, valid"):
        open_reader("torch:country211", root=root.parent, split="dve")


def test_options_and_faults_of_torchvision(tmp_path):
    reader = open_reader("torch:fakedata", size=6, image_size=(3, 8, 8), num_classes=4)
    assert (len(reader), reader[0].image.size, len(reader.classes) <= 4) == (6, (8, 8), True)
    assert len(open_reader("torch/fakedata", size=5)) == 5
    with pytest.raises(UnknownArgumentError, match=r"FakeData takes no argument 'sise'. Did you mean size\?"):
        open_reader("torch:fakedata", sise=6)
    with pytest.raises(OpsinError, match=r"no dataset 'cifar1000'. Did you mean cifar10"):
        open_reader("torch:cifar1000")
    with pytest.raises(
        OpsinError, match=r"cifar10: cannot be opened from .* not found or corrupted.*root=, download=True"
    ):
        open_reader("torch:cifar10", root=tmp_path, split="train")
    with pytest.raises(UnknownArgumentError, match="FakeData takes no argument 'download'"):
        open_reader("torch:fakedata", download=True)
    with pytest.raises(UnknownArgumentError, match="annFile"):
        open_reader("torch:cocodetection", root=tmp_path)


def test_download_is_asked_for(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    asked = []
    monkeypatch.setattr(CIFAR10, "download", lambda self: (asked.append(self.root), cifar(tmp_path / "d", monkeypatch)))
    reader = open_reader("torch:cifar10", root=tmp_path / "d", split="train", download=True)
    assert (len(reader), asked) == (25, [str(tmp_path / "d")])


def test_targets_that_are_no_classes(tmp_path, monkeypatch):
    from torchvision.datasets import FakeData

    monkeypatch.setattr(FakeData, "targets", torch.rand(6), raising=False)
    with pytest.raises(OpsinError, match="the targets are not classes"):
        open_reader("torch:fakedata", size=6)
    monkeypatch.setattr(FakeData, "targets", torch.tensor([0, 1, -1, 0, 1, 0]), raising=False)
    with pytest.raises(OpsinError, match="1 samples have no label"):
        open_reader("torch:fakedata", size=6)
    monkeypatch.setattr(FakeData, "targets", torch.full((6,), -1), raising=False)
    assert open_reader("torch:fakedata", size=6).task == "unlabelled"
    monkeypatch.setattr(FakeData, "targets", [0, 1, 2, 0, 1, 5], raising=False)
    monkeypatch.setattr(FakeData, "classes", ["a", "b", "c"], raising=False)
    with pytest.raises(OpsinError, match="label 5 is out of range for 3 classes"):
        open_reader("torch:fakedata", size=6)
