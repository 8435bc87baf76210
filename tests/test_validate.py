"""Scores of models on data: the right figures, the right classes, and runs over many models that go on."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from timm.data import RealLabelsImagenet

import opsin
from opsin.catalog.labels import label_set, real_labels
from opsin.cli import main
from opsin.cli import validate as verb
from opsin.cli._many import expand, find_row, put_row, read_rows
from opsin.data.labels import TargetScale
from opsin.data.preprocess import Preprocess
from opsin.data.readers import Relabelled, Subset, Tuples, open_reader
from opsin.data.transforms import EvalTransform
from opsin.errors import OpsinError, UnknownModelError
from opsin.inference.predictor import Predictor
from opsin.train.validate import FiveCrops, _Classes, validate

DATA = Path(skimage.__file__).parent / "data"
LITE = "tf_efficientnet_lite0"
PHOTOS = {  # what they show; among all classes the model calls the cat another cat, and the motorcycle a moped
    "n02123045": ("chelsea.png",),
    "n03773504": ("rocket.jpg",),
    "n03791053": ("motorcycle_left.png", "motorcycle_right.png"),
    "n04485082": ("camera.png",),
    "n07920052": ("coffee.png",),
}
QUICK = {"workers": 0, "batch_size": 4}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for synset, names in PHOTOS.items():
        (root / synset).mkdir()
        for name in names:
            with Image.open(DATA / name) as image:
                image.convert("RGB").resize((320, 300)).save(root / synset / Path(name).with_suffix(".png"))
    return root


@pytest.fixture(scope="module")
def lite():
    return opsin.create_model(LITE, pretrained=True).eval()


@pytest.fixture(scope="module")
def logits(lite, photos):
    """Of each picture in the reader's order, as the published transform sees it."""
    fit = Preprocess.from_model(lite)
    reader = open_reader(str(photos))
    paths = [reader.name(i) for i in range(len(reader))]
    with torch.inference_mode():
        return lite(torch.stack([fit(Image.open(path)) for path in paths])), torch.from_numpy(reader.targets)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A small model for the digits, with labels in an order of its own, saved."""
    torch.manual_seed(0)
    names = tuple("9876543210")
    model = opsin.create_model("test_vit", num_classes=10, in_chans=1, img_size=32)
    model.pretrained_cfg.update(input_size=(1, 32, 32), crop_pct=1.0, mean=(0.5,), std=(0.5,))
    return opsin.save(model, tmp_path_factory.mktemp("own") / "digits", label_names=names)


@pytest.fixture(scope="module")
def digits():
    return Subset(open_reader("digits", split="validation"), np.arange(24))


def places():
    known = label_set("imagenet-1k").synsets
    return torch.tensor([known.index(synset) for synset in PHOTOS])


# --- scores ---------------------------------------------------------------------------------------------------------


def test_scores_among_the_classes_of_the_data_and_among_all(lite, logits, photos):
    outputs, targets = logits
    seen = []
    found = validate(lite, open_reader(str(photos)), exact=True, progress=seen.append, **QUICK)
    part = outputs[:, places()]
    assert found["top1"] == (part.argmax(1) == targets).float().mean() == 1
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(part, targets).item(), rel=1e-4)
    assert (found["images"], found["skipped"], found["classes"], seen) == (6, 0, 5, [4, 2])
    assert found["images_per_second"] > 0

    found = validate(lite, open_reader(str(photos)), exact=True, all_classes=True, **QUICK)
    truth = places()[targets]
    assert found["top1"] == (outputs.argmax(1) == truth).float().mean() == 0.5
    assert found["top5"] == (outputs.topk(5).indices == truth[:, None]).any(1).float().mean() == 1
    assert found["loss"] == pytest.approx(torch.nn.functional.cross_entropy(outputs, truth).item(), rel=1e-4)
    assert found["classes"] == 1000


def test_exact_pixels_and_mixed_precision_change_the_figures_a_little(lite, photos, own, digits):
    model = opsin.load(own).model
    for net, reader, other in ((lite, open_reader(str(photos)), {"exact": True}),
                               (model, digits, {"amp_dtype": torch.bfloat16})):  # fmt: skip
        plain, changed = (validate(net, reader, all_classes=True, **how, **QUICK)["loss"] for how in ({}, other))
        assert changed != plain
        assert changed == pytest.approx(plain, rel=0.2)


def test_mirrored_views_are_averaged(own, digits):
    model = opsin.load(own).model
    fit = replace(Preprocess.from_model(model), crop_pct=0.8)
    pixels = torch.stack([fit(digits[i].image) for i in range(len(digits))])
    with torch.inference_mode():
        mean = (model(pixels) + model(pixels.flip(-1))) / 2
    how = {"preprocess": fit, "exact": True, "all_classes": True, **QUICK}
    plain, mirrored, five, ten = (
        validate(model, digits, tta=tta, **how) for tta in ([], ["hflip"], ["crops"], ["hflip", "crops"])
    )
    expected = torch.nn.functional.cross_entropy(mean, 9 - torch.from_numpy(digits.targets)).item()
    assert mirrored["loss"] == pytest.approx(expected, rel=1e-4)
    crops = torch.stack([FiveCrops(fit, exact=True)(digits[i].image) for i in range(len(digits))])
    with torch.inference_mode():
        mean = model(fit.normalize(crops.flatten(0, 1))).unflatten(0, (-1, 5)).mean(1)
    expected = torch.nn.functional.cross_entropy(mean, 9 - torch.from_numpy(digits.targets)).item()
    assert five["loss"] == pytest.approx(expected, rel=1e-4)
    assert len({found["loss"] for found in (plain, mirrored, five, ten)}) == 4
    assert {found["images"] for found in (plain, mirrored, five, ten)} == {24}
    with pytest.raises(OpsinError, match="Did you mean hflip"):
        validate(model, digits, tta=["hflp"])


def test_five_crops_are_corners_and_middle():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)
    fit = Preprocess(input_size=(3, 48, 48), crop_pct=0.75, interpolation="bicubic")
    crops = FiveCrops(fit, exact=True)(image)
    middle = torch.from_numpy(image[:, 16:80]).permute(2, 0, 1)  # 64 = 48 / 0.75: nothing is resized
    expected = [middle[:, t : t + 48, x : x + 48] for t, x in ((0, 0), (0, 16), (16, 0), (16, 16), (8, 8))]
    assert torch.equal(crops, torch.stack(expected))
    assert torch.equal(crops[4], EvalTransform(fit, exact=True)(image))
    assert FiveCrops(fit)(image, size=(24, 36)).shape == (5, 3, 24, 36)
    with pytest.raises(OpsinError, match="crop_pct below 1, not 1.0"):
        FiveCrops(Preprocess(crop_pct=1.0))


def test_real_labels_as_the_peer_counts_them(lite, photos, tmp_path):
    truth = real_labels()
    several = next(i for i, row in enumerate(truth) if len(row) > 1)
    none = next(i for i, row in enumerate(truth) if not row)
    moped = next(i for i, row in enumerate(truth) if row == [665])
    for number, (synset, name) in zip(
        (several, none, moped), (("n02123045", "chelsea"), ("n07920052", "coffee"), ("n03791053", "motorcycle_left")),
        strict=True,
    ):  # fmt: skip
        (tmp_path / synset).mkdir()
        shutil.copy(photos / synset / f"{name}.png", tmp_path / synset / f"ILSVRC2012_val_{number + 1:08d}.png")
    reader = open_reader(str(tmp_path))
    found = validate(lite, reader, exact=True, real=True, **QUICK)
    names = [Path(reader.name(i)).with_suffix(".JPEG").name for i in range(3)]
    peer = RealLabelsImagenet(names + [""] * 49_997)
    fit = Preprocess.from_model(lite)
    with torch.inference_mode():
        peer.add_result(lite(torch.stack([fit(Image.open(reader.name(i))) for i in range(3)])))
    assert (found["real_top1"] * 100, found["real_top5"] * 100) == (peer.get_accuracy(k=1), peer.get_accuracy(k=5))
    assert found["real_top1"] == 0.5  # the moped counts, the picture without a label does not
    assert "real_top1" not in validate(lite, reader, **QUICK)
    with pytest.raises(OpsinError, match="no picture of ImageNet's validation set"):
        validate(lite, open_reader(str(photos)), real=True)


# --- classes --------------------------------------------------------------------------------------------------------


def test_classes_in_the_model_s_own_order(own, digits):
    model, reader = opsin.load(own).model, digits
    found = validate(model, reader, workers=0)
    fit = Preprocess.from_model(model)
    with torch.inference_mode():
        said = model(torch.stack([fit(reader[i].image) for i in range(len(reader))])).argmax(1)
    expected = np.mean([9 - int(i) == int(reader.target(n)) for n, i in enumerate(said)])
    assert found["top1"] == pytest.approx(expected, abs=0.05)
    assert found["images"] == len(reader) == 24


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r", "v2"])
def test_subsets_of_imagenet(lite, name):
    """200 folders of WordNet ids, and V2's folders called by number, in the order of their text."""
    known = label_set("imagenet-1k").synsets
    classes = sorted(map(str, range(1000))) if name == "v2" else label_set(name).synsets
    expected = [int(one) if name == "v2" else known.index(one) for one in classes]
    few = SimpleNamespace(classes=tuple(classes))
    select = _Classes([label.name for label in Predictor(lite).labels], few, all_classes=False)
    assert select.width == len(classes)
    outputs, targets = select(torch.arange(1000.0)[None], torch.tensor([7]))
    assert outputs.tolist() == [expected]
    assert targets.tolist() == [7]
    everything = _Classes([label.name for label in Predictor(lite).labels], few, all_classes=True)
    outputs, targets = everything(torch.arange(1000.0)[None], torch.tensor([7]))
    assert (outputs.shape, targets.tolist()) == ((1, 1000), [expected[7]])


def test_strange_classes_are_refused_side_by_side(lite):
    with pytest.raises(OpsinError, match=r"(?s)no label for.*'0' +'tench'"):
        validate(lite, open_reader("digits"), workers=0)


def test_outputs_without_names_are_taken_in_order(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32), {"a": "red", "b": "blue"}[name]).save(tmp_path / name / "0.png")
    model = opsin.create_model("test_resnet", num_classes=2).eval()
    with pytest.warns(UserWarning, match="in the order of the data's classes"):
        found = validate(model, open_reader(str(tmp_path)), workers=0)
    fit = Preprocess.from_model(model)
    with torch.inference_mode():
        outputs = model(torch.stack([fit(Image.new("RGB", (32, 32), c)) for c in ("red", "blue")]))
    expected = torch.nn.functional.cross_entropy(outputs, torch.tensor([0, 1])).item()
    assert found["loss"] == pytest.approx(expected, rel=1e-3)


def test_several_labels_and_numbers(own, digits):
    model = opsin.load(own).model
    rows = Tuples([(int(i), int(i + 1) % 10) for i in digits.targets])
    found = validate(model, Relabelled(digits, rows, digits.classes, "multi"), workers=0)
    assert {"mAP", "micro_f1", "loss"} <= found.keys()
    assert 0 < found["mAP"] < 1
    everything = validate(model, Relabelled(digits, rows, digits.classes, "multi"), workers=0, all_classes=True)
    assert everything["mAP"] == pytest.approx(found["mAP"])

    teller = opsin.create_model("test_resnet", num_classes=1, in_chans=1).eval()
    numbers = Relabelled(digits, digits.targets.astype(np.float64), None, "regression")
    fit = Preprocess(input_size=(1, 32, 32), mean=(0.5,), std=(0.5,))
    plain = validate(teller, numbers, preprocess=fit, workers=0)
    scaled = validate(teller, numbers, preprocess=fit, workers=0, scale=TargetScale((4.5,), (1e-9,)))
    assert scaled["mae"] == pytest.approx(np.abs(digits.targets - 4.5).mean(), rel=1e-4) != plain["mae"]
    with pytest.raises(OpsinError, match="1 numbers a picture, but the model predicts 10"):
        validate(model, numbers, workers=0)


def test_nothing_to_compare_with(own, tmp_path):
    model = opsin.load(own).model
    digits = open_reader("digits")
    with pytest.raises(OpsinError, match="no labels to compare with"):
        validate(model, Relabelled(digits, None, None, "unlabelled"))
    with pytest.raises(OpsinError, match="has a class 12, but the model only 10 outputs"):
        validate(model, Relabelled(digits, digits.targets + 3, None, "single"))
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    with pytest.raises(OpsinError, match="no finite numbers"):
        validate(model, digits, workers=0)


def test_pictures_that_cannot_be_read_are_counted(lite, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "n02123045" / "broken.png").write_bytes(b"no picture")
    found = validate(lite, open_reader(str(tmp_path / "photos")), **QUICK)
    assert (found["images"], found["skipped"]) == (6, 1)


# --- the command ----------------------------------------------------------------------------------------------------


def run(capsys, *args):
    code = main(["validate", *map(str, args), "--workers", "0"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_many_models_and_going_on(photos, own, tmp_path, capsys, monkeypatch):
    out, words = tmp_path / "results.csv", tmp_path / "models.txt"
    words.write_text(f"{LITE}  # the first\n\n{own}\n")
    code, said, told = run(capsys, photos, "--model", words, "--output", out)
    assert code == 1
    assert LITE in said
    assert "1.0000" in said
    assert "has no label" in told or "no label for" in told
    with out.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["model"], row["top1"], row["images"]) for row in rows] == [(LITE, "1.0", "6"), (str(own), "", "")]
    assert "no label" in rows[1]["error"]
    assert [path.name for path in tmp_path.glob(".*")] == [".results.csv.lock"]

    asked = []
    real = verb._scores
    monkeypatch.setattr(verb, "_scores", lambda name, *args: asked.append(name) or real(name, *args))
    assert run(capsys, photos, "--model", words, "--output", out, "--json")[0] == 1
    assert asked == [str(own)]  # what failed is tried again, what has scores is not
    code, said, _ = run(capsys, photos, "--model", LITE, "--output", out, "--json")
    assert (code, asked) == (0, [str(own)])
    assert json.loads(said)[0]["top1"] == 1.0
    run(capsys, photos, "--model", LITE, "--output", out, "--again")
    assert asked == [str(own), LITE]
    run(capsys, photos, "--model", LITE, "--output", out, "--all-classes", "--tta", "hflip")  # another question
    assert asked == [str(own), LITE, LITE]
    with out.open(newline="") as lines:
        assert [row["settings"] for row in csv.DictReader(lines)] == ["", "", "tta=hflip all_classes"]


def test_size_and_crop_reach_the_model(photos, own, capsys):
    def row(*args):
        code, said, told = run(capsys, *args, "--json")
        assert code == 0, told
        return json.loads(said)[0]

    plain = row(photos, "--model", LITE)
    assert (plain["img_size"], plain["crop_pct"]) == ("224", 0.875)
    small = row(photos, "--model", LITE, "--img-size", "96", "--crop-pct", "0.5")
    assert (small["img_size"], small["crop_pct"], small["settings"]) == ("96", 0.5, "img_size=96 crop_pct=0.5")
    assert small["loss"] != plain["loss"]
    digits = ("digits", "--split", "validation", "--model", own)
    assert row(*digits)["img_size"] == "32"
    larger = row(*digits, "--img-size", "64")  # position embeddings are resampled
    assert (larger["img_size"], larger["images"]) == ("64", 359)


def test_sizes_that_the_publishers_tested_with(photos, tmp_path, capsys, monkeypatch):
    cfg = opsin.models._registry.get_pretrained_cfg("resnet18.a1_in1k")
    assert cfg.test_input_size == (3, 288, 288)
    real = opsin.create_model
    monkeypatch.setattr("opsin.factory.create_model", lambda name, pretrained=False, **kw: real(name, **kw))
    run(capsys, photos, "--model", "resnet18.a1_in1k", "--use-test-size", "--output", tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())[0]["img_size"] == "288"


def test_checkpoint_and_class_map(own, tmp_path, capsys):
    digits = ("digits", "--split", "validation", "--json")
    weights = ("--checkpoint", own / "model.safetensors", "--num-classes", "10", "--in-chans", "1")
    command = (*digits, "--model", "test_vit", *weights, "--img-size", "32")
    code, said, told = run(capsys, *command)
    assert code == 0, told
    assert json.loads(said)[0]["images"] == 359
    (tmp_path / "names.txt").write_text("\n".join([*"0123456789", "ten"]))
    code, _, told = run(capsys, *command, "--class-map", tmp_path / "names.txt")
    assert (code, "no label for 1 of the 11 classes" in told or "lacks 1 classes: ten" in told) == (1, True), told
    code, _, told = run(capsys, *digits, "--model", "test_vit", "test_resnet", *weights)
    assert (code, "a checkpoint is of one model, but 2 are named" in told) == (2, True)
    code, _, told = run(capsys, *digits, "--model", own, "--num-classes", "10")
    assert (code, "--num-classes is for a --checkpoint" in told) == (2, True)


def test_the_split_of_divided_data(photos, tmp_path, capsys):
    for part in ("train", "val"):
        shutil.copytree(photos, tmp_path / part)
    shutil.rmtree(tmp_path / "val" / "n03791053")
    code, said, _ = run(capsys, tmp_path, "--model", LITE, "--json")
    assert (code, json.loads(said)[0]["images"]) == (0, 4)
    assert json.loads(run(capsys, tmp_path, "--model", LITE, "--json", "--split", "train")[1])[0]["images"] == 6


def test_names_patterns_and_files(own, tmp_path):
    assert expand(["resnet18", "resnet18"], pretrained=True) == ["resnet18"]
    assert expand(["tf_efficientnet_lite0*"], pretrained=True) == ["tf_efficientnet_lite0.in1k"]
    assert expand(["test_resnet*"], pretrained=False) == ["test_resnet"]
    assert expand(["test_resnet.*"], pretrained=False) == ["test_resnet.r160_in1k"]
    assert expand([str(own), "hf-hub:some/repo"], pretrained=True) == [str(own), "hf-hub:some/repo"]
    for word, message in (("resnt18", "Did you mean resnet18"), ("resnt18*", "fits 'resnt18\\*'.*resnet18")):
        with pytest.raises(UnknownModelError, match=message):
            expand([word], pretrained=True)
    empty = tmp_path / "empty.txt"
    empty.write_text("# nothing\n")
    with pytest.raises(OpsinError, match="names no models"):
        expand([str(empty)], pretrained=True)
    with pytest.raises(OpsinError, match="cannot be read"):
        expand([str(tmp_path / "absent.txt")], pretrained=True)


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_results_are_whole(tmp_path, suffix, monkeypatch):
    path, key = tmp_path / f"r.{suffix}", ("model", "data")
    put_row(path, {"model": "a", "data": "1", "top1": 0.5}, key)
    put_row(path, {"model": "b", "data": "1", "error": 'a "quoted", one'}, key)
    put_row(path, {"model": "a", "data": "1", "top1": 0.25, "n": 3}, key)
    expected = [
        {"model": "a", "data": "1", "top1": 0.25, "n": 3},
        {"model": "b", "data": "1", "error": 'a "quoted", one'},
    ]
    assert read_rows(path, key) == expected
    assert find_row(path, {"model": "b", "data": "1"}, key) == expected[1]
    assert find_row(path, {"model": "b", "data": "2"}, key) is None
    before = path.read_bytes()
    monkeypatch.setattr("opsin.cli._many._text", lambda rows, suffix: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        put_row(path, {"model": "c", "data": "1"}, key)
    assert path.read_bytes() == before
    assert {one.name for one in tmp_path.iterdir()} == {path.name, f".{path.name}.lock"}


def test_files_of_other_things_are_left_alone(photos, tmp_path, capsys):
    other = tmp_path / "other.csv"
    other.write_text("name,score\nx,1\n")
    for path, message in ((other, "holds other things"), (tmp_path / "a" / "b.csv", "there is no folder"),
                          (tmp_path / "r.txt", "written as .csv or .json")):  # fmt: skip
        code, _, told = run(capsys, photos, "--model", LITE, "--output", path)
        assert (code, message in told) == (2, True)
    assert other.read_text() == "name,score\nx,1\n"
