"""The right answer for each picture, by name and in order: the predictor and its command."""

import csv
import io
import json
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import COLOURS, fake_stdin, rgb, square
from PIL import Image
from torch import nn

import opsin
from opsin.cli import demo as demo_cli
from opsin.cli import predict as cli
from opsin.data.images import open_image
from opsin.data.preprocess import Preprocess
from opsin.errors import ImageError, OpsinError
from opsin.inference import predictor as predictor_module
from opsin.inference.predictor import Predictor
from opsin.inference.sheet import contact_sheet
from opsin.weights import packaged


class ColourModel(nn.Module):
    """Knows red, green and blue: the logits are the mean of each channel."""

    architecture = "colour"

    def __init__(self, in_chans: int = 3, num_classes: int = 3, **record):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(4.0))
        self.num_classes = num_classes
        self.config = type("Config", (), {"in_chans": in_chans})
        self.pretrained_cfg = {"input_size": (3, 32, 32), "label_names": tuple(COLOURS), **record}
        self.calls = []

    def forward(self, x):
        self.calls.append(len(x))
        return x.mean((2, 3))[:, : self.num_classes] * self.scale


@pytest.fixture
def colour_model(monkeypatch):
    """What every `load` in the command gives here."""
    model = ColourModel()
    monkeypatch.setattr(predictor_module, "load", lambda source, **kw: Predictor(model, batch_size=kw["batch_size"]))
    return model


# --- Predictor ------------------------------------------------------------------------------------------------------


def best(results) -> list[str]:
    return [result.labels[0].label for result in results]


def test_one_or_many_of_every_kind(tmp_path):
    predictor = Predictor(ColourModel())
    paths = []
    for colour in COLOURS:
        paths.append(tmp_path / f"{colour}.png")
        square(colour).save(paths[-1])
    arrays = [np.asarray(square(colour)) for colour in COLOURS]
    ready = torch.stack([predictor.preprocess(square(colour)) for colour in COLOURS])
    for many in (paths, map(str, paths), arrays, np.stack(arrays), ready, [paths[0], arrays[1], square("blue")]):
        assert best(predictor.predict(many)) == list(COLOURS)
    for one in (paths[1], str(paths[1]), paths[1].read_bytes(), arrays[1], ready[1], square("green")):
        assert best([predictor.predict(one)]) == ["green"]
    assert predictor.predict(paths[2]).source == str(paths[2])
    assert predictor.predict([]) == []
    assert predictor.predict(iter(paths[:1]))[0].source == str(paths[0])


def test_scores_are_probabilities_of_the_published_preprocessing():
    model = ColourModel()
    model.train()
    predictor = Predictor(model)
    assert not model.training
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    result = predictor.predict(image, topk=3)
    with torch.no_grad():
        expected = model(Preprocess.from_cfg(model.pretrained_cfg)(image)[None]).softmax(-1)[0]
    assert [score.probability for score in result.labels] == sorted(expected.tolist(), reverse=True)
    assert all(expected[score.index] == score.probability for score in result.labels)
    assert len(predictor.predict(image, topk=2).labels) == 2
    assert len(predictor.predict(image, topk=99).labels) == 3


def test_batches_keep_order_and_size():
    model = ColourModel()
    predictor = Predictor(model, batch_size=4, workers=3)
    order = [list(COLOURS)[i % 3] for i in range(19)]
    assert best(predictor.predict(square(colour) for colour in order)) == order
    assert model.calls == [4, 4, 4, 4, 3]
    model.calls.clear()
    predictor.predict(torch.zeros(9, 3, 32, 32))
    assert model.calls == [4, 4, 1]


def test_stream_is_lazy_and_can_be_left():
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield square("red")

    stream = Predictor(ColourModel(), batch_size=2).stream(endless())
    assert next(stream).labels[0].label == "red"
    stream.close()
    assert len(taken) <= 8
    assert not [t for t in threading.enumerate() if t.name.startswith("opsin-read")]


def test_unreadable_pictures_are_named_and_the_rest_goes_on(tmp_path):
    square("blue").save(tmp_path / "ok.png")
    (tmp_path / "bad.png").write_bytes(b"")
    predictor = Predictor(ColourModel(), batch_size=2)
    paths = [tmp_path / name for name in ("bad.png", "ok.png", "bad.png", "bad.png", "bad.png", "ok.png")]
    results = list(predictor.stream(paths))
    assert [bool(result.error) for result in results] == [True, False, True, True, True, False]
    assert "bad.png: empty" in results[0].error
    assert results[0].labels == ()
    assert best([results[1], results[5]]) == ["blue", "blue"]
    with pytest.raises(ImageError, match=r"bad\.png: empty"):
        predictor.predict(paths)


def test_a_fault_in_the_model_is_no_image_error():
    model = ColourModel()
    model.forward = lambda x: torch.zeros(len(x), 7)
    with pytest.raises(OpsinError, match=r"\(1, 7\), not \(1, 3\)"):
        Predictor(model).predict(square("red"))


def test_tensors_that_are_not_ready_are_refused():
    predictor = Predictor(ColourModel())
    for tensor in (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 4, 8, 8), torch.zeros(8, 8)):
        with pytest.raises(ImageError, match="expected normalised floats"):
            predictor.predict(tensor)


def test_channels_of_the_model():
    one = Predictor(ColourModel(in_chans=1, num_classes=1, label_names=("bright",)))
    assert one.channels == 1
    assert one.predict(square("red")).labels[0].probability == 1
    many = Predictor(ColourModel(in_chans=25))
    assert many.preprocess.input_size == (25, 32, 32)
    volume = np.zeros((40, 40, 25), np.uint8)
    volume[..., 1] = 255
    assert many.predict(volume).labels[0].label == "green"


def test_image_size_that_the_model_was_built_for():
    model = ColourModel()
    for size in (48, (48, 64)):
        model.config.img_size = size
        assert Predictor(model).preprocess.input_size == (3, 48, size if size == 48 else 64)


def test_labels():
    assert best([Predictor(ColourModel(), labels=["r", "g", "b"]).predict(square("green"))]) == ["g"]
    described = Predictor(ColourModel(label_descriptions={"red": "like a rose, or a cherry"}))
    score = described.predict(square("red")).labels[0]
    assert (score.label, score.description, score.id) == ("red", "like a rose, or a cherry", None)
    # a fresh head has nothing to do with the record's labels
    assert best([Predictor(ColourModel(num_classes=2)).predict(square("green"))]) == ["1"]
    ids = {"n02123045": "tabby, tabby cat", "n02123394": "Persian cat", "n02123597": "Siamese cat, Siamese"}
    synsets = Predictor(ColourModel(label_names=tuple(ids), label_descriptions=ids))
    score = synsets.predict(square("red")).labels[0]
    assert (score.label, score.description, score.id) == ("tabby", "tabby, tabby cat", "n02123045")
    with pytest.raises(OpsinError, match="2 labels for 3 classes"):
        Predictor(ColourModel(), labels=["a", "b"])


def test_imagenet_labels_by_class_count():
    model = ColourModel(label_names=None)
    model.num_classes = 1000
    model.forward = lambda x: torch.nn.functional.one_hot(torch.full((len(x),), 281), 1000) * 9.0
    score = Predictor(model).predict(square("red")).labels[0]
    assert (score.index, score.label, score.id) == (281, "tabby", "n02123045")


def test_a_saved_model_gives_the_same_answers(tmp_path):
    torch.manual_seed(0)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8))
    model = opsin.create_model("resnet18")
    opsin.save(model, tmp_path / "imagenet")
    loaded = opsin.load(tmp_path / "imagenet", device="cpu")
    assert loaded.labels == Predictor(model).labels
    assert len({label.name for label in loaded.labels}) == 1000
    assert loaded.predict(image) == Predictor(model).predict(image)

    model = opsin.create_model("resnet18", num_classes=2, in_chans=1)
    opsin.save(model, tmp_path / "own", label_names=["nothing", "something"], label_descriptions={"something": "a cat"})
    loaded = opsin.load(str(tmp_path / "own"), device="cpu")
    assert loaded.preprocess.input_size == (1, 224, 224)
    assert {(s.label, s.description) for s in loaded.predict(image).labels} == {
        ("nothing", None),
        ("something", "a cat"),
    }


def test_what_cannot_be_is_said():
    with pytest.raises(OpsinError, match="no classifier"):
        Predictor(ColourModel(num_classes=0))
    with pytest.raises(OpsinError, match="batch_size"):
        Predictor(ColourModel(), batch_size=0)
    with pytest.raises(OpsinError, match="topk"):
        Predictor(ColourModel()).predict(square("red"), topk=0)


def test_half_precision():
    result = Predictor(ColourModel().to(torch.bfloat16)).predict(square("blue"))
    assert result.labels[0].label == "blue"
    assert sum(score.probability for score in result.labels) == pytest.approx(1)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("resnet34.a1_in1k", "resnet34.a1_in1k"),
        ("org/repo", "hf-hub:org/repo"),
        ("hf-hub:org/repo@v1", "hf-hub:org/repo@v1"),
        ("./runs/best", "local-dir:./runs/best"),
        (Path("runs"), "local-dir:runs"),
        ("saved", "local-dir:saved"),
        ("resnet34", "resnet34"),
    ],
)
def test_what_load_takes_a_source_for(source, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet34").mkdir()  # no model in it
    (tmp_path / "runs" / "best").mkdir(parents=True)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "config.json").write_text("{}")
    assert predictor_module.model_name(source) == name


# --- the commands ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, colour in enumerate(COLOURS):
        square(colour).save(folder / f"{i}, {colour}.png")
    return folder


def test_json(folder, colour_model, capsys):
    assert cli.predict([str(folder)], model="x", json=True, topk=2) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert [row["labels"][0]["label"] for row in rows] == list(COLOURS)
    assert rows[0]["source"] == str(folder / "0, red.png")
    assert rows[0]["error"] is None
    assert len(rows[0]["labels"]) == 2
    assert "3 images in" in err
    assert "images/s" in err


def test_csv_and_plain_to_files(folder, colour_model, capsys, tmp_path):
    assert cli.predict([str(folder)], model="x", output=tmp_path / "out.csv") == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8")))
    assert [row["label"] for row in rows if row["rank"] == "1"] == list(COLOURS)
    assert len(rows) == 9
    assert cli.predict([str(folder)], model="x", output=tmp_path / "out.txt", topk=1) == 0
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert lines[1].startswith(f"{folder / '1, green.png'}: green ")
    assert capsys.readouterr().out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.csv", "out.txt", "photos"]


def test_unreadable_pictures_set_the_exit_status(folder, colour_model, capsys):
    (folder / "9 bad.jpg").write_bytes(b"\xff\xd8\xff")
    assert cli.predict([str(folder)], model="x", csv=True) == 1
    out, err = capsys.readouterr()
    assert "1 of 4 could not be read:" in err
    assert "9 bad.jpg: " in err.split("could not be read:")[1]
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 10
    assert "9 bad.jpg" in rows[-1]["error"]


def test_table_for_a_terminal(folder, colour_model, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    (folder / "9 bad.jpg").write_bytes(b"\xff\xd8\xff")
    assert cli.predict([str(folder)], model="x") == 1
    out = capsys.readouterr().out
    assert "█" in out
    assert "green" in out
    assert "could not be read" in out


def test_progress_for_a_terminal(folder, colour_model, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert cli.predict([str(folder)], model="x") == 0
    assert "3/3" in capsys.readouterr().err


def test_options_that_clash_or_miss(folder, colour_model, monkeypatch):
    with pytest.raises(OpsinError, match="exclude each other"):
        cli.predict([str(folder)], model="x", json=True, csv=True)
    monkeypatch.setattr(packaged, "find_packaged", lambda name: None)
    with pytest.raises(OpsinError, match=r"pip install 'opsin\[demo\]'"):
        cli.predict([str(folder)])


def test_stdin_to_sheet(colour_model, monkeypatch, tmp_path, capsys):
    stream = io.BytesIO()
    square("green").save(stream, "PNG")
    fake_stdin(monkeypatch, stream.getvalue())
    assert cli.predict(["-"], model="x", sheet=tmp_path / "sheet.png") == 0
    assert capsys.readouterr().out.startswith("stdin: green ")
    sheet = rgb(open_image(tmp_path / "sheet.png"))
    assert (sheet == (0, 255, 0)).all(-1).mean() > 0.2  # the picture is on it


def test_sheet_shows_every_picture_and_error(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    predictor = Predictor(ColourModel())
    sources = [square("red"), square("blue"), tmp_path / "bad.png", square("green")]
    items = list(zip(sources, predictor.stream(sources), strict=True))
    sheet = contact_sheet(items, title="colours", columns=2)
    pixels = rgb(sheet)
    for colour in COLOURS.values():
        assert (pixels == colour).all(-1).sum() > 10_000
    assert contact_sheet(items[:1]).width < sheet.width
    assert (rgb(contact_sheet(items[2:3])) == (179, 38, 30)).all(-1).any()  # the error, in red letters


def test_demo_photos_are_real_and_need_no_download():
    photos = demo_cli._photos()
    assert len(photos) >= 5
    for photo in photos:
        assert open_image(photo).size > (100, 100)


def test_demo_names_what_everybody_sees(tmp_path, capsys):
    """Real weights on real photos, through the whole house."""
    assert demo_cli.demo(output=tmp_path / "demo.png") == 0
    out, err = capsys.readouterr()
    told = {name: out.split(f"{name}\n")[1].splitlines()[0] for name in ("chelsea.png", "coffee.png", "camera.png")}
    assert " cat " in told["chelsea.png"]
    assert "espresso" in told["coffee.png"]
    assert "tripod" in told["camera.png"]
    assert "8 images in" in err
    assert open_image(tmp_path / "demo.png").width > 1000
