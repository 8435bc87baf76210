"""A saved model is named by its folder or by its file, wherever a model or weights are asked for."""

import json

import pytest
import torch
from runs import dark_and_light
from safetensors.torch import load_file

import opsin
from opsin.cli import main
from opsin.cli.train import parse
from opsin.train.config.rules import settle

TRAIN = ["--batch-size", "8", "--workers", "0", "--epochs", "1", "--lr", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return dark_and_light(tmp_path_factory.mktemp("photos"), 8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model that no name has: narrower, for small pictures."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("runs") / "x" / "best"
    model = opsin.create_model("test_vit", img_size=32, embed_dim=32, num_classes=2)
    opsin.save(model, folder, label_names=["dark", "light"])
    return folder


@pytest.mark.parametrize("source", ["{}", "{}/model.safetensors", "local-dir:{}"])
def test_training_begins_with_it(photos, saved, tmp_path, source):
    words = ["train", str(photos), "--model", source.format(saved), *TRAIN, "--output", str(tmp_path)]
    assert main([*words, "--warmup-epochs", "0", "--min-lr", "0"]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (saved, tmp_path / "best"))
    assert all(torch.equal(before[key], after[key]) for key in before)  # a rate of 0 changes nothing
    assert opsin.load(tmp_path / "best").preprocess.input_size == (3, 32, 32)


def test_its_name_and_its_recipe(photos, saved, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(saved.parent)
    assert main(["train", str(photos), "--model", "best", *TRAIN]) == 0
    assert (saved.parent / "runs" / f"test_vit-{photos.name}" / "best").is_dir()
    for words, wanted in (
        (["--model", "best"], (True, 0.8)),
        (["--model=best"], (True, 0.8)),
        (["--model", "best", "--recipe", "small-from-scratch"], (True, None)),
        (["--model", "best", "--no-pretrained"], (False, 0.8)),
        (["--model", "test_vit"], (False, None)),
    ):
        config = settle(parse(["x", *words])[0])[0]
        assert (config.model.pretrained, config.optim.layer_decay) == wanted


@pytest.mark.parametrize(
    "words",
    [
        ["--model", "{}"],
        ["--model", "{}/model.safetensors"],
        ["--model", "test_vit", "--checkpoint", "{}"],
        ["--model", "{}", "--checkpoint", "{}/model.safetensors"],
    ],
)
def test_validation(photos, saved, capsys, words):
    words = [word.format(saved) for word in words]
    assert main(["validate", str(photos), "--workers", "0", "--device", "cpu", "--json", *words]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert (row["images"], row["classes"], row["img_size"]) == (16, 2, "32")


def test_another_architecture(photos, saved, capsys):
    words = ["--model", "test_resnet", "--checkpoint", str(saved), "--workers", "0", "--device", "cpu"]
    assert main(["validate", str(photos), *words]) == 1
    assert "holds a test_vit, not a test_resnet" in capsys.readouterr().err


def test_a_file_is_predicted_with_and_measured(photos, saved, capsys):
    file = str(saved / "model.safetensors")
    assert main(["predict", str(photos / "dark" / "0.png"), "--model", file]) == 0
    assert "dark" in capsys.readouterr().out
    assert main(["bench", file, "--seconds", "0.05", "--batch-size", "1", "--device", "cpu"]) == 0
