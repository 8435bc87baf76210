"""Models of several labels and of numbers, from the run that made them to what `opsin predict` writes."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import opsin
from opsin.cli import main
from opsin.data.labels import TargetScale
from opsin.errors import OpsinError
from opsin.inference.predictor import Predictor
from opsin.train.build import build_run
from opsin.train.config import from_dict
from opsin.train.distributed import World
from opsin.train.loop import fit


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, base in (("dark", 20), ("light", 170)):
        for i in range(20):
            Image.fromarray(rng.integers(base, base + 60, (24, 24, 3), dtype=np.uint8)).save(root / f"{name}{i}.png")
    return root


def trained(photos, target):
    """A run on a list with `target` of each picture; its folder."""
    rows = [f"{path},{target(path.name.startswith('dark'))}\n" for path in sorted(photos.glob("*.png"))]
    (photos / "list.csv").write_text("path,label\n" + "".join(rows))
    values = {
        "data": {"data": str(photos / "list.csv"), "batch_size": 8, "workers": 0},
        "model": {"model": "test_resnet", "img_size": 32},
        "optim": {"lr": 0.01},
        "schedule": {"epochs": 6, "warmup_epochs": 0.0},
        "run": {"output": str(photos / "run"), "device": "cpu", "overwrite": True},
    }
    run = build_run(from_dict(values), World(torch.device("cpu")))
    try:
        fit(run)
    finally:
        run.directory.close()
    return photos / "run" / "best"


@pytest.fixture(scope="module")
def multi(photos):
    return trained(photos, lambda dark: "dark;small" if dark else "light;small").rename(photos / "multi")


@pytest.fixture(scope="module")
def numbers(photos):
    return trained(photos, lambda dark: -500.5 if dark else 1500.25).rename(photos / "numbers")


def logits(predictor, path):
    batch = predictor.preprocess(Image.open(path))
    with torch.inference_mode():
        return batch[None], predictor.model(batch[None])[0]


def test_several_labels(photos, multi):
    assert json.loads((multi / "config.json").read_text())["opsin"]["task"] == "multi"
    predictor = opsin.load(multi, device="cpu")
    found = predictor.predict(photos / "light3.png")
    assert {score.label for score in found.labels} == {"light", "small"}
    batch, out = logits(predictor, photos / "light3.png")
    alone = out.sigmoid()
    assert [s.probability for s in found.labels] == pytest.approx(sorted(alone[alone > 0.5].tolist(), reverse=True))
    assert sum(s.probability for s in found.labels) > 1  # they do not share one certainty
    assert torch.allclose(predictor.probabilities(batch)[0], alone)
    assert len(predictor.predict(photos / "light3.png", topk=1).labels) == 1
    assert predictor.predict(batch)[0].labels == found.labels
    with pytest.raises(OpsinError, match="predicts classes, not numbers"):
        predictor.values(batch)


def test_numbers_come_in_units_of_the_targets(photos, numbers):
    assert json.loads((numbers / "config.json").read_text())["opsin"]["task"] == "regression"
    predictor = opsin.load(numbers, device="cpu")
    dark, light = predictor.predict([photos / "dark3.png", photos / "light3.png"])
    assert dark.values[0] < 500 < light.values[0]
    assert dark.labels == ()
    batch, out = logits(predictor, photos / "light3.png")
    scale = json.loads((numbers / "config.json").read_text())["opsin"]["recipe"]["target_scale"]
    assert light.values[0] == pytest.approx(out.item() * scale["std"][0] + scale["mean"][0], rel=1e-5)
    assert light.to_dict() == {"source": str(photos / "light3.png"), "error": None, "values": light.values}
    with pytest.raises(OpsinError, match="predicts numbers"):
        predictor.probabilities(batch)


def written(capsys, *args):
    assert main(["predict", *map(str, args)]) == 0
    return capsys.readouterr().out


def test_files_of_several_labels(photos, multi, capsys):
    picture = photos / "dark1.png"
    found = json.loads(written(capsys, picture, "--model", multi, "--json"))
    assert {row["label"] for row in found[0]["labels"]} == {"dark", "small"}
    assert "values" not in found[0]
    rows = list(csv.DictReader(written(capsys, picture, "--model", multi, "--csv").splitlines()))
    assert [row["label"] for row in rows] == [row["label"] for row in found[0]["labels"]]
    assert all(float(row["probability"]) > 0.5 for row in rows)


def test_files_of_numbers(photos, numbers, tmp_path, capsys):
    pictures = photos / "dark1.png", photos / "light1.png"
    found = json.loads(written(capsys, *pictures, "--model", numbers, "--json"))
    assert "labels" not in found[0]
    values = [row["values"][0] for row in found]
    rows = list(csv.DictReader(written(capsys, *pictures, "--model", numbers, "--csv").splitlines()))
    assert [(row["source"], row["index"]) for row in rows] == [(str(path), "0") for path in pictures]
    assert [float(row["value"]) for row in rows] == pytest.approx(values, rel=1e-5)
    plain = written(capsys, *pictures, "--model", numbers).splitlines()
    assert [float(line.rpartition(": ")[2]) for line in plain] == pytest.approx(values, rel=1e-3)
    assert main(["predict", str(pictures[0]), "--model", str(numbers), "--sheet", str(tmp_path / "s.png")]) == 2
    assert "predicts numbers" in capsys.readouterr().err
    assert not (tmp_path / "s.png").exists()


class Fixed(torch.nn.Module):
    """Gives the same outputs for any picture."""

    def __init__(self, *outputs):
        super().__init__()
        self.outputs = torch.nn.Parameter(torch.tensor(outputs))
        self.num_classes, self.pretrained_cfg = len(outputs), {"input_size": (3, 8, 8)}

    def forward(self, x):
        return self.outputs.expand(len(x), -1)


def test_no_label_fits(tmp_path, capsys, monkeypatch):
    from opsin.cli.predict import write
    from opsin.data.preprocess import Preprocess

    fit = Preprocess(input_size=(3, 8, 8))
    picture = Image.new("RGB", (8, 8))
    result = Predictor(Fixed(-1.0, -2.0), preprocess=fit, labels=["a", "b"], task="multi").predict(picture)
    assert result.labels == ()
    for form in ("plain", "table"):
        write([result], form, None)
        assert "none" in capsys.readouterr().out
    write([result], "csv", None)
    assert len(capsys.readouterr().out.splitlines()) == 2
    # several numbers, and without a scale as they are
    scale = TargetScale((10.0, 20.0), (2.0, 4.0))
    for given, wanted in ((scale, (8.0, 12.0)), (None, (-1.0, -2.0))):
        found = Predictor(Fixed(-1.0, -2.0), preprocess=fit, task="regression", scale=given).predict(picture)
        assert found.values == wanted
        write([found], "table", None)
        assert ", ".join(f"{value:.5g}" for value in wanted) in capsys.readouterr().out
    with pytest.raises(OpsinError, match="Did you mean multi"):
        Predictor(Fixed(0.0), preprocess=fit, task="mutli")
    for task, numbers in (("single", (1.0,)), ("regression", (1.0, 2.0))):
        with pytest.raises(OpsinError, match="a scale of"):
            Predictor(Fixed(0.0), preprocess=fit, task=task, scale=TargetScale(numbers, numbers))


def test_what_is_saved_says_what_it_means(tmp_path):
    model = opsin.create_model("test_resnet", num_classes=2)
    for task in (None, "single", "multi"):
        opsin.save(model, tmp_path / str(task), label_names=["a", "b"], task=task)
        assert opsin.load(tmp_path / str(task), device="cpu").task == (task or "single")
    weights = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    opsin.save(model, tmp_path / "zeros", state=weights)
    assert not any(value.any() for value in opsin.load(tmp_path / "zeros", device="cpu").model.state_dict().values())
    with pytest.raises(OpsinError, match="Did you mean multi"):
        opsin.save(model, tmp_path / "wrong", task="mutli")
    assert not (tmp_path / "wrong").exists()
