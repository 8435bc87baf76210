"""Lists of pictures: CSV, JSON lines, Parquet."""

import json
import os
import pickle

import numpy as np
import pytest
from test_readers import picture, short_names, write

from opsin.data.readers import open_reader
from opsin.errors import ImageError, OpsinError, UnknownArgumentError


@pytest.fixture
def root(tmp_path):
    return write(tmp_path, *(f"{i}.png" for i in range(6)))


def listed(root, text, name="list.csv"):
    path = root / name
    path.write_text(text, encoding="utf-8")
    return path


def table(columns: dict, form: str, root):
    """The same rows in each of the formats."""
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path = root / f"list.{form}"
    if form == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(columns), path)
    elif form == "jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    else:
        mark = {"csv": ",", "tsv": "\t"}[form]
        lines = [mark.join(columns), *(mark.join(map(str, row.values())) for row in rows)]
        path.write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
def test_formats(root, form):
    path = table({"file_name": ["1.png", "0.png", "2.png"], "label": ["кот", "dog10", "dog9"]}, form, root)
    for where in (path, f"{'csv' if form == 'tsv' else form}:{path}"):
        reader = open_reader(where)
        assert (reader.task, reader.classes) == ("single", ("dog9", "dog10", "кот"))
        assert reader.targets.tolist() == [2, 1, 0]
        assert reader[0] == (picture(1), 2, str(root / "1.png"))
        assert short_names(reader, root) == ["1.png", "0.png", "2.png"]
    held = open_reader(path, class_map={"dog9": 5, "dog10": 0, "кот": 1})
    assert held.targets.tolist() == [1, 0, 5]


def test_columns_by_name(root):
    path = listed(root, "id;photo;breed;age\n1;0.png;pug;3\n2;1.png;poodle;4\n")
    with pytest.raises(OpsinError, match=r"which column is the image\? Say image=; there are: id, photo, breed, age"):
        open_reader(path)
    with pytest.raises(OpsinError, match=r'which column is the target\? Say target= or task="unlabelled"'):
        open_reader(path, image="photo")
    with pytest.raises(OpsinError, match=r"no column 'bread'. Did you mean breed\? There are: id, photo"):
        open_reader(path, image="photo", target="bread")
    reader = open_reader(path, image="photo", target="breed")
    assert (reader.classes, reader.targets.tolist()) == (("poodle", "pug"), [1, 0])
    unlabelled = open_reader(path, image="photo", task="unlabelled")
    assert (unlabelled.task, unlabelled.targets, unlabelled[1].target) == ("unlabelled", None, None)
    with pytest.raises(UnknownArgumentError, match=r"no argument 'img'. Did you mean image\?"):
        open_reader(path, img="photo")


def test_paths_relative_to_a_root_or_absolute(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("lists")
    path = listed(elsewhere, f"image,label\n0.png,a\n{root}/1.png,b\n")
    assert open_reader(path, root=root)[0].image == picture(0)
    reader = open_reader(path)  # the absolute one is there
    assert reader[1].image == picture(1)
    path = listed(elsewhere, "image,label\n0.png,a\n1.png,b\n")
    with pytest.raises(OpsinError, match="of the first 2 pictures none is there, such as .*0.png; root= names"):
        open_reader(path)


def test_whole_numbers_are_classes_in_their_order(root):
    reader = open_reader(listed(root, "image,label\n0.png,10\n1.png,9\n2.png,-1\n"))
    assert (reader.task, reader.classes, reader.targets.tolist()) == ("single", ("-1", "9", "10"), [2, 1, 0])
    reader = open_reader(listed(root, "image,label\n0.png,1\n1.png,0\n"), class_map=["cat", "dog", "fox"])
    assert (reader.classes, reader.targets.tolist()) == (("cat", "dog", "fox"), [1, 0])
    with pytest.raises(OpsinError, match="label 7 is out of range for 3 classes"):
        open_reader(listed(root, "image,label\n0.png,1\n1.png,7\n"), class_map=["cat", "dog", "fox"])
    with pytest.raises(OpsinError, match=r"no class 'dogg' in the class map. Did you mean dog\?"):
        open_reader(listed(root, "image,label\n0.png,dogg\n"), class_map=["cat", "dog", "fox"])


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_several_labels(root, form):
    cells = ["sun|sea", "", "sea"] if form == "csv" else [["sun", "sea"], [], ["sea"]]
    path = table({"image": ["0.png", "1.png", "2.png"], "labels": cells}, form, root)
    reader = open_reader(path)
    assert (reader.task, reader.classes, list(reader.targets)) == ("multi", ("sea", "sun"), [(0, 1), (), (0,)])
    assert reader[0].target == (0, 1)
    renumbered = open_reader(path, class_map={"sun": 0, "sea": 3})
    assert list(renumbered.targets) == [(0, 3), (), (3,)]
    train, held = (open_reader(path, split=s, holdout=0.4) for s in ("train", "validation"))
    assert sorted(list(train.targets) + list(held.targets)) == [(), (0,), (0, 1)]


def test_separators(root):
    path = listed(root, 'image,label\n0.png,"tench, Tinca tinca"\n1.png,haze primary\n')
    assert open_reader(path).classes == ("haze primary", "tench, Tinca tinca")
    assert set(open_reader(path, separator=" ").classes) == {"haze", "primary", "tench,", "Tinca", "tinca"}
    path = listed(root, "image,label\n0.png,a|b\n1.png,c\n")
    assert open_reader(path, task="single").classes == ("a|b", "c")
    assert list(open_reader(path, task="multi", separator="/").targets) == [(0,), (1,)]


def test_flag_columns_are_several_labels(root):
    path = listed(root, "image,edema,mass\n0.png,1,0\n1.png,0,0\n2.png,1,1\n")
    reader = open_reader(path, target=["edema", "mass"], task="multi")
    assert (reader.classes, list(reader.targets)) == (("edema", "mass"), [(0,), (), (0, 1)])
    mapped = open_reader(path, target=["edema", "mass"], task="multi", class_map=["mass", "edema"])
    assert list(mapped.targets) == [(1,), (), (0, 1)]
    with pytest.raises(OpsinError, match="hold 0 and 1 alone"):
        open_reader(listed(root, "image,a,b\n0.png,1,2\n", "other.csv"), target=["a", "b"], task="multi")
    with pytest.raises(OpsinError, match="one label a picture comes from one column"):
        open_reader(path, target=["edema", "mass"], task="single")


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_numbers_are_regression(root, form):
    path = table({"image": ["0.png", "1.png"], "y": [1.5, 2], "x": [3, 4]}, form, root)
    reader = open_reader(path)
    assert (reader.task, reader.classes, reader.targets.tolist()) == ("regression", None, [1.5, 2.0])
    assert reader[1].target == 2.0
    assert type(reader[1].target) is float
    several = open_reader(path, target=["x", "y"])
    assert (several.task, several[0].target) == ("regression", (3.0, 1.5))
    assert open_reader(path, target="x").task == "single"
    assert open_reader(path, target="x", task="regression").targets.tolist() == [3.0, 4.0]
    with pytest.raises(OpsinError, match="the targets are regression, so there is nothing that a class_map"):
        open_reader(path, class_map=["a"])


def test_lists_of_numbers_are_regression(root):
    path = table({"image": ["0.png", "1.png"], "box": [[0.5, 1.0], [2.0, 3.0]]}, "jsonl", root)
    assert open_reader(path, target="box")[1].target == (2.0, 3.0)
    path = table({"image": ["0.png", "1.png"], "box": [[0.5, 1.0], [2.0]]}, "jsonl", root)
    with pytest.raises(OpsinError, match=r"row 2 has \[2.0\] for box, not 2 numbers"):
        open_reader(path, target="box")


def test_split_column(root):
    rows = "".join(f"{i}.png,{'ab'[i % 2]},{'train' if i < 3 else 'valid'}\n" for i in range(6))
    path = listed(root, "image,label,Split\n" + rows.replace("4.png,a", "4.png,z"))
    reader = open_reader(path, split="validation")
    assert short_names(reader, root) == ["3.png", "4.png", "5.png"]
    assert (reader.classes, reader.targets.tolist()) == (("a", "b", "z"), [1, 2, 1])
    assert len(open_reader(path, split="train")) == 3
    with pytest.raises(OpsinError, match="divided into train, valid: say which"):
        open_reader(path)
    undivided = listed(root, "image,label\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(6)))
    assert [len(open_reader(undivided, split=s)) for s in ("train", "validation")] == [4, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the list is empty"),
        ("image,label\n", "the list is empty"),
        ("image,label\n0.png\n", "line 2 has 1 cells, not 2"),
        ("image,label\n0.png,a\n1.png,\n", "row 2 has no label"),
        ("image,y\n0.png,0.5\n1.png,nan\n", "row 2 has 'nan' for y, which is no finite number"),
    ],
)
def test_faulty_lists(root, text, message):
    with pytest.raises(OpsinError, match=message):
        open_reader(listed(root, text))


def test_other_faulty_lists(root):
    with pytest.raises(OpsinError, match=r"row 2 has 'x' for y"):
        open_reader(listed(root, "image,y\n0.png,0.5\n1.png,x\n"), task="regression")
    with pytest.raises(OpsinError, match="line 2 is no JSON object"):
        open_reader(listed(root, '{"image": "0.png", "label": 1}\n{"image": ', "x.jsonl"))
    with pytest.raises(OpsinError, match="cut short, damaged or no Parquet"):
        open_reader(listed(root, "PAR1 and so on", "x.parquet"))
    (root / "bad.csv").write_bytes(b"image,label\n0.png,\xff\xfe\n")
    with pytest.raises(OpsinError, match="cannot be read"):
        open_reader(root / "bad.csv")
    listed(root, "image,label\n0.png,a\n")
    with pytest.raises(OpsinError, match=r"lst.csv: no such file or folder. Did you mean list.csv\?"):
        open_reader(root / "lst.csv")
    with pytest.raises(OpsinError, match=r"no task 'mutli'. Did you mean multi\?"):
        open_reader(root / "list.csv", task="mutli")


def test_parquet_of_pictures_is_pointed_to_the_right_reader(root):
    path = table({"image": [picture()], "label": [0]}, "parquet", root)
    with pytest.raises(OpsinError, match="column image holds pictures, not paths; open it as hf:"):
        open_reader(path)


def test_files_that_are_missing_or_empty(root):
    (root / "1.png").write_bytes(b"")
    reader = open_reader(listed(root, "image,label\n0.png,a\n1.png,b\n22.png,a\n"))
    assert reader[0].image == picture(0)
    with pytest.raises(ImageError, match="1.png: empty"):
        reader[1]
    with pytest.raises(ImageError, match=r"22.png: no such file. Did you mean 2.png\?"):
        reader[2]


def test_every_sample_once_over_four_parts_of_copies(root):
    rows = "".join(f"{i % 6}.png,{i / 7}\n" for i in range(23))
    reader = open_reader(listed(root, "image,y\n" + rows))
    values = []
    for part in range(4):
        copied = pickle.loads(pickle.dumps(reader))
        values += [copied[i].target for i in range(part, len(copied), 4)]
    assert np.allclose(sorted(values), np.arange(23) / 7)
    assert os.path.dirname(reader.name(3)) == str(root)
