"""WebDataset shards, read as a stream."""

import io
import json
import pickle
import tarfile
from collections import Counter

import pytest
from test_readers import picture, write_tar

from opsin.data.readers import Record, StreamReader, open_reader
from opsin.errors import ImageError, OpsinError


def shard(path, samples):
    """Samples as {extension: content} by key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, files in samples.items():
            for extension, content in files.items():
                content = content if isinstance(content, bytes) else str(content).encode()
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def shards(root, sizes, name="shard-{:02d}.tar", label=lambda i: i % 3):
    number = 0
    for i, size in enumerate(sizes):
        keys = range(number, number + size)
        shard(root / name.format(i), {f"d/{k:04d}": {"png": picture(k), "cls": label(k)} for k in keys})
        number += size
    return root


def keys(stream):
    return [record.name.split("/")[-1] for record in stream]


def test_samples_in_order(tmp_path):
    reader = open_reader(f"wds:{shards(tmp_path, [2, 3])}")
    assert isinstance(reader, StreamReader)
    records = list(reader.stream())
    assert records[3] == Record(picture(3), 0, f"{tmp_path}/shard-01.tar/d/0003.png")
    assert [record.target for record in records] == [0, 1, 2, 0, 1]
    assert (reader.task, reader.classes, reader.length, reader.count()) == ("single", None, None, 5)
    assert open_reader(f"wds:{tmp_path}", length=7).length == 7


@pytest.mark.parametrize("sizes", [[9], [5, 7], [3, 3, 3, 3], [2, 5, 1, 4, 3, 3], [1] * 9])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_sample_once_over_four_parts(tmp_path, sizes, shuffle):
    reader = open_reader(f"wds:{shards(tmp_path, sizes)}", buffer=3)
    found = []
    for part in range(4):  # two ranks of two workers, each with a copy of its own
        copied = pickle.loads(pickle.dumps(reader))
        found.append(keys(copied.stream(epoch=2, part=part, parts=4, shuffle=shuffle, seed=5)))
    assert sorted(key for part in found for key in part) == sorted(keys(reader.stream()))
    again = keys(reader.stream(epoch=2, part=3, parts=4, shuffle=shuffle, seed=5))
    assert again == found[3]


def test_shuffling_depends_on_seed_epoch_and_buffer(tmp_path):
    reader = open_reader(f"wds:{shards(tmp_path, [20, 20])}")
    plain = keys(reader.stream())
    orders = [keys(reader.stream(shuffle=True, seed=s, epoch=e)) for s, e in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(order) for order in (plain, *orders)}) == 4
    near = open_reader(f"wds:{tmp_path}", buffer=1)
    shard_of = {key: plain.index(key) // 20 for key in plain}
    mixed = [len({shard_of[key] for key in keys(r.stream(shuffle=True))[:15]}) for r in (near, reader)]
    assert mixed == [1, 2]
    with pytest.raises(OpsinError, match="at least 1 sample"):
        open_reader(f"wds:{tmp_path}", buffer=0)


def test_patterns_and_lists(tmp_path):
    shards(tmp_path, [1, 1, 1, 1])
    for where, count in (
        (f"{tmp_path}/shard-{{00..02}}.tar", 3),
        (f"{tmp_path}/shard-00.tar::{tmp_path}/shard-03.tar", 2),
        (f"{tmp_path}/shard-*.tar", 4),
    ):
        assert len(list(open_reader(f"wds:{where}").stream())) == count
    with pytest.raises(OpsinError, match="shard-04.tar: no such file or folder. Did you mean"):
        open_reader(f"wds:{tmp_path}/shard-{{00..04}}.tar")
    with pytest.raises(OpsinError, match="nothing matches this pattern"):
        open_reader(f"wds:{tmp_path}/none-*.tar")


def test_splits_by_shard_names(tmp_path):
    shards(tmp_path, [2, 2], "set-train-{:02d}.tar")
    with pytest.raises(OpsinError, match="has no split 'validation', and none can be cut out of a stream"):
        open_reader(f"wds:{tmp_path}", split="validation")
    assert len(list(open_reader(f"wds:{tmp_path}", split="train").stream())) == 4
    shards(tmp_path, [3], "set-validation-{:02d}.tar")
    assert len(list(open_reader(f"wds:{tmp_path}", split="val").stream())) == 3
    assert len(list(open_reader(f"wds:{tmp_path}/set-{{train,validation}}-00.tar", split="val").stream())) == 3
    with pytest.raises(OpsinError, match="divided into"):
        open_reader(f"wds:{tmp_path}")


def test_description_beside_the_shards(tmp_path):
    shards(tmp_path, [2, 3, 4])
    entries = {
        "train": {"filenames": ["shard-00.tar", "shard-01.tar"], "shard_lengths": [2, 3]},
        "validation": {"filenames": ["shard-02.tar"], "num_samples": 4},
    }
    (tmp_path / "_info.json").write_text(json.dumps({"splits": entries}))
    read = {split: open_reader(f"wds:{tmp_path}", split=split) for split in ("train", "validation")}
    assert {split: reader.length for split, reader in read.items()} == {"train": 5, "validation": 4}
    assert len(list(read["train"].stream())) == 5
    (tmp_path / "_info.json").write_text('{"splits": {"train": {}}}')
    with pytest.raises(OpsinError, match="_info.json: not the description of shards"):
        open_reader(f"wds:{tmp_path}", split="train")


@pytest.mark.parametrize(
    ("files", "options", "task", "target"),
    [
        ({"cls": 7}, {}, "single", 7),
        ({"json": {"label": 2}}, {}, "single", 2),
        ({"json": {"meta": {"y": 0.25}}}, {"target": "json.meta.y"}, "regression", 0.25),
        ({"json": {"label": [3, 1]}}, {}, "multi", (1, 3)),
        ({"xyz.json": [0.5, 1.5], "cls": 1}, {"target": "xyz"}, "regression", None),
        ({"cls": "cat"}, {"class_map": ["dog", "cat"]}, "single", 1),
        ({"cls": 1}, {"class_map": ["dog", "cat"]}, "single", 1),
        ({"json": {"label": ["cat", "dog"]}}, {"class_map": ["dog", "cat"]}, "multi", (0, 1)),
        ({"txt": "a caption"}, {}, "unlabelled", None),
    ],
)
def test_kinds_of_labels(tmp_path, files, options, task, target):
    files = {k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in files.items()}
    shard(tmp_path / "a.tar", {"k": {"jpg": picture(1), **files}})
    if options.get("target") == "xyz":
        with pytest.raises(ImageError, match="no label .xyz among jpg xyz.json cls"):
            open_reader(f"wds:{tmp_path}", **options)
        return
    reader = open_reader(f"wds:{tmp_path}", **options)
    (record,) = reader.stream()
    assert (reader.task, record.target) == (task, target)
    assert reader.classes == (("dog", "cat") if "class_map" in options else None)


def test_image_extension(tmp_path):
    shard(tmp_path / "a.tar", {"k": {"small.png": picture(1), "large.png": picture(2), "cls": 0}})
    with pytest.raises(OpsinError, match="sample k has no picture .* but small.png large.png cls"):
        open_reader(f"wds:{tmp_path}")
    (record,) = open_reader(f"wds:{tmp_path}", image="huge.png;large.png").stream()
    assert record.image == picture(2)


def faults(reader, **how):
    return [str(r) for r in reader.stream(**how) if isinstance(r, ImageError)]


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_shard_cut_short_is_counted_once_and_named(tmp_path, parts):
    shards(tmp_path, [6, 6, 6])
    path = tmp_path / "shard-01.tar"
    path.write_bytes(path.read_bytes()[: 4 * 2048 + 600])  # 4 samples of picture and label, and a part of the fifth
    reader = open_reader(f"wds:{tmp_path}")
    found = [r for part in range(parts) for r in reader.stream(part=part, parts=parts)]
    wrong = [str(r) for r in found if isinstance(r, ImageError)]
    assert len(wrong) == 1
    assert "shard-01.tar: cut short" in wrong[0]
    good = Counter(r.name for r in found if isinstance(r, Record))
    assert len(good) == 16
    assert set(good.values()) == {1}


def test_faulty_samples_are_told_and_passed_over(tmp_path):
    good = {"png": picture(1), "cls": 0}
    samples = {"a": good, "b": {"png": b"", "cls": 0}, "c": {"cls": 0}, "d": {"png": picture(1)}, "f": good}
    samples["e"] = {"png": picture(1), "cls": 9}
    samples["g"] = {"png": picture(1), "cls": "0.5"}
    shard(tmp_path / "s.tar", samples)
    reader = open_reader(f"wds:{tmp_path}", class_map=["x", "y"])
    assert sum(isinstance(r, Record) for r in reader.stream()) == 2
    expected = [
        "b.png: empty",
        "c: no picture among cls",
        "d: no label .cls among png",
        "e: label 9 is out of range for 2",
    ]
    for text, start in zip(faults(reader), [*expected, "g: label 0.5 is no class"], strict=True):
        assert f"s.tar/{start}" in text


def test_labels_of_another_kind_than_the_first(tmp_path):
    shard(tmp_path / "s.tar", {"a": {"png": picture(), "cls": "[1, 2]"}, "b": {"png": picture(), "cls": 3}})
    assert "label 3 is not of the kind that the first one is (multi)" in faults(open_reader(f"wds:{tmp_path}"))[0]
    shard(tmp_path / "s.tar", {"a": {"png": picture(), "cls": 1}, "b": {"png": picture(), "cls": "cat"}})
    assert "label 'cat' is text, and there is no class_map" in faults(open_reader(f"wds:{tmp_path}"))[0]
    shard(tmp_path / "s.tar", {"a": {"png": picture(), "cls": "cat"}})
    with pytest.raises(OpsinError, match="label 'cat' is text, and there is no class_map"):
        open_reader(f"wds:{tmp_path}")


def test_shards_that_cannot_be_opened(tmp_path):
    with pytest.raises(OpsinError, match="no tars in this folder"):
        open_reader(f"wds:{tmp_path}")
    write_tar(tmp_path / "s.tar")
    with pytest.raises(OpsinError, match="the shard is empty"):
        open_reader(f"wds:{tmp_path}")
    shards(tmp_path, [2, 2], "t-{}.tar")
    reader = open_reader(f"wds:{tmp_path}/t-{{0..1}}.tar")
    (tmp_path / "d.tar").mkdir()
    with pytest.raises(OpsinError, match=r"d.tar: cannot be read \(Is a directory\)"):
        open_reader(f"wds:{tmp_path}/d.ta{{r,r}}")
    (tmp_path / "t-1.tar").unlink()
    assert "t-1.tar: No such file" in faults(reader)[0]
