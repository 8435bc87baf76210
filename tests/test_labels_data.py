"""Class maps, matching a dataset to a model, ImageNet's relatives, scales of regression targets."""

import json

import numpy as np
import pytest
import torch
from test_readers import write

import opsin
from opsin.catalog.labels import index_map, label_names, label_set, real_labels
from opsin.data.labels import ClassMap, TargetScale, check_classes, match_classes, natural_order, real_targets
from opsin.data.readers import open_reader
from opsin.errors import OpsinError

NAMES = ("cat", "dog", "fox")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("map.txt", "cat\ndog\n\nfox\n"),
        ("map.json", '["cat", "dog", "fox"]'),
        ("map.json", '{"dog": 1, "cat": 0, "fox": 2}'),
        ("map.json", '{"0": "cat", "1": "dog", "2": "fox"}'),
        ("map.json", '{"architecture": "resnet18", "id2label": {"0": "cat", "1": "dog", "2": "fox"}}'),
        ("map.json", '{"pretrained_cfg": {"label_names": ["cat", "dog", "fox"]}}'),
        ("map.yaml", "names:\n  0: cat\n  1: dog\n  2: fox\n"),
        ("map.yml", "- cat\n- dog\n- fox\n"),
        ("map.csv", "name,index\ndog,1\ncat,0\nfox,2\n"),
        ("map.csv", "0,cat\n2,fox\n1,dog\n"),
        ("map.csv", "id,name\n0,cat\n2,fox\n1,dog\n"),
        ("map.csv", "cat\ndog\nfox\n"),
    ],
)
def test_files(tmp_path, file, text):
    (tmp_path / file).write_text("\ufeff" + text, encoding="utf-8")
    found = ClassMap.of(tmp_path / file)
    assert found.names == NAMES
    assert found.index == {"cat": 0, "dog": 1, "fox": 2}


def test_names_that_are_numbers(tmp_path):
    (tmp_path / "map.csv").write_text("class,index\n10,0\n9,1\n")
    assert ClassMap.load(tmp_path / "map.csv").index == {"10": 0, "9": 1}
    (tmp_path / "map.json").write_text('{"10": 0, "9": 1}')
    assert ClassMap.load(tmp_path / "map.json").names == ("10", "9")


def test_folder_of_a_saved_model(tmp_path):
    model = opsin.create_model("test_vit", num_classes=3)
    opsin.save(model, tmp_path / "saved", label_names=NAMES)
    assert ClassMap.of(tmp_path / "saved").names == NAMES
    data = write(tmp_path / "data", "fox/1.png", "cat/2.png")
    assert open_reader(data, class_map=tmp_path / "saved").targets.tolist() == [0, 2]


def test_sparse_maps_and_shared_indices():
    found = ClassMap.of({"cat": 1, "kitten": 1, "dog": 4})
    assert found.names == ("", "cat", "", "", "dog")
    assert found.indices(["kitten", "dog"]).tolist() == [1, 4]
    assert ClassMap.of(found) is found


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("map.json", "{", "cannot be read"),
        ("map.json", "3", "neither a list nor a mapping"),
        ("map.json", '{"a": "b"}', "an index, a whole number from 0 on, for every name"),
        ("map.json", '{"a": -1}', "an index, a whole number"),
        ("map.json", '{"architecture": "resnet18", "num_classes": 3}', "saved without label names"),
        ("map.txt", "cat\ndog\ncat\n", "names 'cat' twice"),
        ("map.txt", "\n", "holds no class names"),
        ("map.csv", "a,b,c\n", "two columns"),
        ("map.yaml", "a: [", "cannot be read"),
    ],
)
def test_faulty_files(tmp_path, file, text, message):
    (tmp_path / file).write_text(text)
    with pytest.raises(OpsinError, match=message) as info:
        ClassMap.load(tmp_path / file)
    assert file in str(info.value)


def test_missing_file_and_class(tmp_path):
    (tmp_path / "labels.txt").write_text("cat")
    with pytest.raises(OpsinError, match=r"no class map .*lables.txt. Did you mean labels.txt\?"):
        ClassMap.load(tmp_path / "lables.txt")
    with pytest.raises(
        OpsinError, match=r"map has no label for 2 of the 3 classes of the dataset: cats, cow. Did you mean cat\?"
    ):
        ClassMap.of(NAMES).indices(["cats", "dog", "cow"])


# --- a dataset and a model ------------------------------------------------------------------------------------------


def test_classes_of_the_model_pass():
    check_classes(NAMES, list(NAMES))


def test_differences_stand_side_by_side():
    with pytest.raises(OpsinError) as info:
        check_classes(["cat", "fox"], NAMES, owner="pets")
    assert str(info.value).splitlines() == [
        "The 2 classes of pets are not the 3 labels of the model:",
        "  index  pets   the model",
        "  1      'fox'  'dog'",
        "  2      —      'fox'",
        "Give the model a new head of that size, or open the dataset with a class_map.",
    ]
    with pytest.raises(OpsinError, match="the same in another order"):
        check_classes(["dog", "cat", "fox"], NAMES)


def test_long_lists_show_a_part():
    with pytest.raises(OpsinError) as info:
        check_classes([f"c{i}" for i in range(1000)], label_names("imagenet-1k"))
    assert len(str(info.value).splitlines()) == 16
    assert "… and 988 more" in str(info.value)
    with pytest.raises(OpsinError) as info:
        check_classes(["tench", *label_set("imagenet-1k").words[1:-1], "x"], label_set("imagenet-1k").words)
    assert "  999    'x'" in str(info.value)
    assert len(str(info.value).splitlines()) == 4


@pytest.mark.parametrize("variant", ["imagenet-a", "imagenet-r"])
@pytest.mark.parametrize("labels", ["words", "synsets", "lemmas"])
def test_folders_of_200_synsets_find_their_place_among_1000(tmp_path, variant, labels):
    reader = open_reader(write(tmp_path, *(f"{synset}/x.png" for synset in label_names(variant)), data=b"x"))
    found = match_classes(reader.classes, getattr(label_set("imagenet-1k"), labels))
    assert found.tolist() == index_map("imagenet-1k", variant)


def test_numeric_folders_of_imagenet_v2():
    shuffled = [str(i) for i in range(1000)][::-1]
    assert match_classes(natural_order(shuffled), label_set("imagenet-1k").words).tolist() == list(range(1000))
    assert match_classes(sorted(shuffled), label_names("imagenet-1k"))[2] == 10  # by number, not by place
    with pytest.raises(OpsinError, match="no label for 999 of the 999 classes of the dataset: 998, 997"):
        match_classes(shuffled[1:], label_names("imagenet-1k"))


def test_own_labels_match_by_name():
    assert match_classes(["fox", "cat"], NAMES).tolist() == [2, 0]
    with pytest.raises(OpsinError, match=r"no label for 1 of the 2 classes of pets: cox. Did you mean fox\?"):
        match_classes(["fox", "cox"], NAMES, owner="pets")
    with pytest.raises(OpsinError, match="n01440764"):  # a thousand labels of one's own are not ImageNet's
        match_classes(["n01440764"], [f"mine{i}" for i in range(1000)])


def test_real_labels_by_file_name():
    names = ["val/x/ILSVRC2012_val_00000003.JPEG", "ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00050000.png"]
    assert real_targets(names) == [tuple(real_labels()[i]) for i in (2, 0, 49999)]
    for name in ("cat.jpg", "ILSVRC2012_val_00050001.JPEG", "ILSVRC2012_val_00000000.JPEG"):
        with pytest.raises(OpsinError, match="is no picture of ImageNet's validation set"):
            real_targets([name])


# --- regression ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(50,), (50, 1), (50, 3)])
def test_scale_and_back(shape):
    values = np.random.default_rng(0).normal(5, 3, shape)
    scale = TargetScale.fit(values)
    scaled = scale(values)
    assert np.allclose([scaled.mean(0), scaled.std(0)], [np.zeros(shape[1:]), np.ones(shape[1:])])
    assert np.allclose(scale.inverse(scaled), values)
    tensor = scale.inverse(torch.tensor(scaled, dtype=torch.float32))
    assert tensor.dtype == torch.float32
    assert torch.allclose(tensor, torch.tensor(values, dtype=torch.float32), atol=1e-5)
    assert TargetScale(**json.loads(json.dumps(vars(scale)))).inverse(scaled).tolist() == scale.inverse(scaled).tolist()


def test_scale_of_equal_values_and_faults():
    scale = TargetScale.fit(np.full(4, 7.0))
    assert scale == TargetScale((7.0,), (1.0,))
    assert scale.inverse(np.array([0.0, 0.5])).tolist() == [7.0, 7.5]
    for bad in (np.array([1.0, np.nan]), np.array([])):
        with pytest.raises(OpsinError, match="all of them finite numbers"):
            TargetScale.fit(bad)
    with pytest.raises(OpsinError, match="1 values each, not 2"):
        scale(np.zeros((3, 2)))
