"""The artefact: written whole, read by opsin, timm and transformers."""

import json
import os
import signal

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from started import Started

import opsin
from opsin.cli.download import _folder, download
from opsin.errors import OpsinError, WeightsError
from opsin.weights import artefact
from opsin.weights.artefact import read_config

NAMES = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return opsin.create_model("resnet18", num_classes=7, in_chans=1, drop_rate=0.1).eval()


@pytest.fixture
def folder(model, tmp_path):
    words = {name: name.title() for name in NAMES}
    return opsin.save(model, tmp_path / "a" / "net", label_names=NAMES, label_descriptions=words, recipe={"epochs": 3})


def test_layout(folder, model):
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    wanted = {"architecture": "resnet18", "num_classes": 7, "num_features": 512, "global_pool": "avg"}
    assert {k: config[k] for k in wanted} == wanted
    assert config["label_names"] == NAMES
    assert config["label_descriptions"]["ant"] == "Ant"
    assert config["model_args"] == {"in_chans": 1, "drop_rate": 0.1}
    record = config["pretrained_cfg"]
    assert (record["input_size"], record["num_classes"]) == ([1, 224, 224], 7)
    assert not {"hf_hub_id", "url", "file", "architecture"} & record.keys()
    assert config["opsin"]["version"] == opsin.__version__
    assert config["opsin"]["recipe"] == {"epochs": 3}
    assert config["opsin"]["config"]["layers"] == [2, 2, 2, 2]
    state = load_file(folder / "model.safetensors")
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert (folder / "config.json").stat().st_mode & 0o044 == 0o044
    assert folder.stat().st_mode & 0o055 == 0o055


@pytest.mark.parametrize("prefix", ["local-dir:", ""])
def test_opsin_creates_it_again(folder, model, prefix):
    x = torch.randn(2, 1, 64, 64)
    if prefix:
        again = opsin.create_model(f"{prefix}{folder}", pretrained=True).eval()
    else:
        again = opsin.create_model("resnet18", pretrained=str(folder), num_classes=7, in_chans=1).eval()
    assert torch.equal(again(x), model(x))


def test_timm_reads_it(folder, model):
    x = torch.randn(2, 1, 64, 64)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.allclose(theirs(x), model(x), atol=1e-5)
    assert theirs.pretrained_cfg["label_names"] == NAMES
    assert theirs.num_classes == 7


def test_transformers_reads_it(folder, model):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.allclose(theirs(x).logits, model(x), atol=1e-5)
    assert theirs.config.id2label[2] == "cat"


def test_imagenet_labels_and_licence_by_default(tmp_path):
    record = {"file": str(tmp_path / "w.safetensors")}
    random = opsin.create_model("resnet18.a1_in1k")
    save_file(random.state_dict(), record["file"])
    net = opsin.create_model("resnet18.a1_in1k", pretrained=True, pretrained_cfg_overlay=record)
    config = read_config(opsin.save(net, tmp_path / "net"))
    assert (len(config["label_names"]), config["label_names"][0]) == (1000, "n01440764")
    assert "tench" in config["label_descriptions"]["n01440764"]
    assert config["pretrained_cfg"]["license"] == config["opsin"]["license"] == net.pretrained_cfg["license"]
    assert config["model_args"] == {}
    assert read_config(opsin.save(opsin.load(tmp_path / "net").model, tmp_path / "again"))["pretrained_cfg"]["license"]
    config = read_config(opsin.save(random, tmp_path / "random"))  # never was what the tag names
    assert not {"tag", "license", "origin_url", "paper_ids"} & config["pretrained_cfg"].keys()
    assert "license" not in config["opsin"]


def test_wrong_labels(model, tmp_path):
    with pytest.raises(WeightsError, match="2 label names for a model of 7 classes"):
        opsin.save(model, tmp_path / "net", label_names=["a", "b"])
    with pytest.raises(WeightsError, match="does not have: x"):
        opsin.save(model, tmp_path / "net", label_names=NAMES, label_descriptions={"x": "y"})
    assert os.listdir(tmp_path) == []


def test_an_error_leaves_no_folder_and_no_change(folder, model, tmp_path, monkeypatch):
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(artefact, "save_file", full)
    for place in (folder, tmp_path / "new"):
        with pytest.raises(OpsinError, match="No space"):
            opsin.save(model, place)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert os.listdir(tmp_path) == ["a"]
    monkeypatch.undo()
    monkeypatch.setattr(artefact.json, "dumps", full)  # after the weights are written out
    with pytest.raises(OpsinError, match="No space"):
        opsin.save(model, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


KILLED = """
import os, sys, signal, opsin
from opsin.weights import artefact
real, calls = os.replace, []
def replace(a, b):
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(real(a, b))
artefact.os.replace = replace
if sys.argv[2] == "-1":
    artefact.os.rename = lambda a, b: os.kill(os.getpid(), signal.SIGKILL)
opsin.save(opsin.create_model("resnet18", num_classes=3), sys.argv[1])
"""


@pytest.mark.parametrize("step", [-1, 0, 1])
def test_killed_while_saving(folder, step):
    """-1: a new folder, before its rename. 0, 1: an existing one, before the first and between the two renames."""
    target = folder if step >= 0 else folder / "new"
    assert Started(KILLED, str(target), str(step)).wait() == -signal.SIGKILL
    if step == -1:
        assert not target.exists()
    elif step == 0:
        assert read_config(folder)["num_classes"] == 7
    else:
        with pytest.raises(WeightsError, match="config of one save and the weights of another"):
            read_config(folder)


def test_other_files_in_the_folder_stay(folder, model):
    (folder / "README.md").write_text("mine")
    opsin.save(model, folder, label_names=NAMES[::-1])
    assert sorted(os.listdir(folder)) == ["README.md", "config.json", "model.safetensors"]
    assert read_config(folder)["label_names"][0] == "gnu"


def test_tied_parameters_are_written_out(tmp_path, model):
    state = artefact._independent({"a": (one := torch.ones(3)), "b": one, "c": one[:2]})
    save_file(state, tmp_path / "t.safetensors")
    assert load_file(tmp_path / "t.safetensors")["c"].tolist() == [1, 1]


def test_configs_of_other_versions(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "resnet18", "pretrained_cfg": {"tag": "x", "source": "hub", "from_2031": [1]}})
    )
    assert read_config(tmp_path)["pretrained_cfg"] == {"tag": "x"}
    flat = {"architecture": "resnet18", "num_classes": 10, "input_size": [3, 96, 96], "crop_pct": 0.9}
    (tmp_path / "config.json").write_text(json.dumps(flat))
    assert read_config(f"local-dir:{tmp_path}")["pretrained_cfg"]["input_size"] == [3, 96, 96]


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"architecture": 3}', "{"])
def test_not_a_config(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(WeightsError, match=r"config\.json"):
        read_config(tmp_path)
    with pytest.raises(WeightsError, match="not a folder of a saved model"):
        read_config(tmp_path / "absent")


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("pretrained_cfg", {"pretrained_cfg": None}),
        ("pretrained_cfg", {"pretrained_cfg": "x"}),
        ("mean", {"pretrained_cfg": {"mean": 0.5}}),
        ("mean", {"pretrained_cfg": {"mean": ["a", "b", "c"]}}),
        ("input_size", {"pretrained_cfg": {"input_size": [3, 64]}}),
        ("crop_pct", {"crop_pct": "0.9"}),
        ("num_classes", {"num_classes": "7"}),
        ("num_classes", {"num_classes": True}),
        ("label_names", {"label_names": "abc", "num_classes": 3}),
        ("model_args", {"model_args": [1]}),
        ("opsin", {"opsin": []}),
        ("recipe", {"opsin": {"recipe": "mine"}}),
    ],
)
def test_configs_of_the_wrong_shape(tmp_path, key, content):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet10t"} | content))
    with pytest.raises(WeightsError, match=rf"config\.json: {key} is "):
        opsin.load(tmp_path)


def test_download_command(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert download([f"local-dir:{folder}"], to=tmp_path / "kit") == 0
    assert "MB" in capsys.readouterr().out
    again = opsin.create_model(f"local-dir:{tmp_path / 'kit' / 'net'}", pretrained=True)
    assert again.num_classes == 7
    assert read_config(tmp_path / "kit" / "net")["label_names"] == NAMES
    assert download(["resnet19", f"local-dir:{folder}"], to=tmp_path / "kit2") == 1
    assert "resnet18" in capsys.readouterr().err
    assert os.listdir(tmp_path / "kit2") == ["net"]  # the others are still fetched


def test_a_download_keeps_what_the_outputs_mean_and_other_models(tmp_path, capsys):
    nets = [opsin.create_model("test_resnet", num_classes=2) for _ in range(2)]
    for net, place in zip(nets, ("a", "b"), strict=True):
        opsin.save(net, tmp_path / place / "net", task="multi", recipe={"epochs": 3})
    names = [f"local-dir:{tmp_path / place / 'net'}" for place in ("a", "b")]
    assert download(names, to=tmp_path / "kit") == 1
    assert "kit/net already holds another model" in capsys.readouterr().err
    assert download(names[:1], to=tmp_path / "kit") == 0  # once more, the same
    again = opsin.load(tmp_path / "kit" / "net")
    assert torch.equal(again.model.fc.weight, nets[0].fc.weight)
    assert again.task == "multi"
    assert read_config(tmp_path / "kit" / "net")["opsin"]["recipe"] == {"epochs": 3}


def test_folders_of_hub_models():
    for name, folder in {
        "hf-hub:me/mine": "me--mine",
        "hf_hub:you/mine@v2": "you--mine@v2",
        "hf-hub:a/b@refs/pr/1": "a--b@refs--pr--1",
    }.items():
        assert _folder(name, None) == folder
