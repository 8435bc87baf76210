"""What is found in a dataset, the sheet of what a model sees, and `opsin data`."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from opsin.cli import main
from opsin.data.readers import open_reader
from opsin.data.readers.base import Record, Relabelled, Tuples
from opsin.data.survey import duplicates, look, survey
from opsin.data.transforms import EvalTransform, TrainTransform
from opsin.data.views import pick, view_sheet
from opsin.errors import OpsinError


def make_photos(root):
    """Crops of real photos in train and val: one damaged, one empty, one photo of train shrunk into val."""
    data = pytest.importorskip("skimage.data")
    rng = np.random.default_rng(0)
    for name in ("brick", "grass"):
        whole = Image.fromarray(getattr(data, name)()).convert("RGB")
        for i in range(9):
            path = root / ("val" if i < 3 else "train") / name / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            x, y = rng.integers(0, 350, 2).tolist()
            whole.crop((x, y, x + 160, y + 130)).save(path)
    cat = Image.fromarray(data.chelsea())
    for split in ("train", "val"):
        (root / split / "cat").mkdir()
    cat.save(root / "train" / "cat" / "a.jpg")
    cat.save(root / "train" / "cat" / "copy.png")
    cat.crop((0, 0, 200, 200)).save(root / "train" / "cat" / "other.jpg")
    cat.resize((225, 150)).save(root / "val" / "cat" / "small.jpg", quality=70)
    whole = (root / "train" / "cat" / "a.jpg").read_bytes()
    (root / "train" / "cat" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "train" / "cat" / "empty.jpg").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos"))


def of(photos, split):
    return survey(open_reader(str(photos), split=split), title=split)


def test_finds_what_is_there(photos):
    seen = []
    reader = open_reader(str(photos), split="train")
    found = survey(reader, title="train", progress=lambda: seen.append(1))
    assert len(seen) == len(found.looks) == 17
    assert found.counts() == {"brick": 6, "cat": 5, "grass": 6}
    assert found.imbalance() == pytest.approx(6 / 5)
    assert found.sizes() == {"smallest": (160, 130), "median": (160, 130), "largest": (451, 300)}
    assert found.formats() == {"JPEG RGB": 14, "PNG RGB": 1}
    assert sorted(one.error.rpartition("/")[2].partition(":")[0] for one in found.errors) == ["cut.jpg", "empty.jpg"]
    assert len(survey(reader, limit=4).looks) == 4


def test_finds_pictures_that_come_twice(photos):
    groups = duplicates(of(photos, "train"), of(photos, "validation"))
    names = [sorted((title, one.name.rpartition("/")[2]) for title, one in group) for group in groups]
    assert names == [[("train", "a.jpg"), ("train", "copy.png"), ("validation", "small.jpg")]]
    assert duplicates(of(photos, "validation")) == []


def test_plain_and_tiny_pictures_are_the_same_only_when_they_are_equal():
    def seen(pixels):
        return look(Record(pixels, 0, "x"))

    plain, tiny = np.full((64, 64, 3), 200, np.uint8), np.zeros((8, 8, 1), np.uint8)
    from opsin.data.survey import Found

    looks = [seen(plain), seen(plain + 1), seen(tiny), seen(tiny + 1), seen(tiny.copy())]
    (group,) = duplicates(Found("all", "single", ("a",), looks))
    assert [one for _, one in group] == [looks[2], looks[4]]


def test_other_kinds_of_targets():
    digits = open_reader("digits")
    several = Relabelled(digits, Tuples([(0, 1), *[(1,)] * 1796]), ("a", "b", "c"), "multi")
    found = survey(several, limit=10)
    assert found.counts() == {"a": 1, "b": 10, "c": 0}
    assert found.imbalance() == float("inf")
    assert survey(Relabelled(digits, np.zeros(1797), None, "regression"), limit=3).counts() == {}


def test_samples_of_every_class():
    digits = open_reader("digits")
    assert sorted({int(digits.target(i)) for i in pick(digits, 20)}) == list(range(10))
    assert pick(Relabelled(digits, np.zeros(1797), None, "regression"), 3) == [0, 898, 1796]
    assert len(pick(digits, 10_000)) == 1797


def test_the_sheet_shows_each_view(photos):
    from opsin.data.preprocess import Preprocess

    reader = open_reader(str(photos), split="train")
    records = [reader[0], reader[8]._replace(image=b"no picture")]
    views = {"evaluation": EvalTransform(Preprocess()), "training": TrainTransform(224), "views": 3}
    views |= {"title": "a title", "labels": lambda target: reader.classes[target]}
    sheet = view_sheet(records, **views)
    assert sheet.size == (2 * (32 + 5 * 156 - 6), 2 * (58 + 2 * 190 + 16))
    shown = torch.from_numpy(np.array(sheet))
    cells = [shown[120:420, 2 * (16 + i * 156) + 4 : 2 * (16 + i * 156) + 296] for i in range(5)]
    assert all(cell.float().std() > 10 for cell in cells)
    assert not any(torch.equal(cells[i], cells[j]) for i in range(5) for j in range(i))
    assert np.array_equal(np.array(sheet), np.array(view_sheet(records, **views)))
    other = view_sheet(records, **views, seed=1)
    assert not np.array_equal(np.array(sheet), np.array(other))
    with pytest.raises(OpsinError, match="no samples"):
        view_sheet([], **views)


def test_command(photos, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    assert main(["data", str(photos), "--model", "resnet18", "--output", str(sheet), "--samples", "3"]) == 1
    said = capsys.readouterr().out
    for words in ("train: 17 samples", "3 classes, largest over smallest 1.2", "unreadable: 2", "empty.jpg: empty",
                  "in more than one split", "small.jpg (validation)"):  # fmt: skip
        assert words in said
    with Image.open(sheet) as image:
        assert image.size[1] == 2 * (58 + 3 * 190 + 16)
    assert main(["data", str(photos), "--split", "validation", "--output", "None", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["splits"]["validation"]["classes"] == {"brick": 3, "cat": 1, "grass": 3}
    assert facts["duplicates"] == []


def test_command_compares_synsets_with_the_model(tmp_path, capsys):
    for synset in ("n01440764", "n99999999"):
        (tmp_path / synset).mkdir()
        for i in range(4):
            noise = np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / synset / f"{i}.png")
    assert main(["data", str(tmp_path), "--model", "resnet18", "--output", "None"]) == 1
    assert "n99999999" in capsys.readouterr().out
    assert main(["data", str(tmp_path / "absent"), "--output", "None"]) == 2
    assert "absent" in capsys.readouterr().err
