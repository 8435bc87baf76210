"""What cannot be predicted is said at once, in one message with the way out, and loses nothing."""

import io
import re
import sys

import pytest
import torch
from pictures import square
from torch import nn

import opsin
from opsin import catalog
from opsin.cli import main
from opsin.errors import OpsinError
from opsin.inference import predictor as predictor_module
from opsin.inference.predictor import Predictor


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return opsin.create_model("test_vit", num_classes=3).eval()


@pytest.fixture
def photo(tmp_path):
    square("red").save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--output", "none/out.json", "there is no folder .*none"),
        ("--output", "folder", "folder is a folder"),
        ("--sheet", "none/sheet.png", "there is no folder .*none"),
        ("--sheet", "sheet.xyz", r"no image format has this suffix; use \.png"),
        ("--device", "foo", r"no device 'foo' here; there are: cpu"),
        ("--device", "cuda:99", r"no device 'cuda:99' here; there are: cpu"),
        ("--model", "folder/bset", r"folder/bset: there is no such folder\. Did you mean best\?.* hf-hub:folder/bset"),
        ("--model", "./bset", r"\./bset: there is no such folder"),
    ],
)
def test_what_is_wrong_is_said_before_the_work(option, value, message, photo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder" / "best").mkdir(parents=True)
    monkeypatch.setattr(Predictor, "stream", lambda *_: pytest.fail("the work was begun"))
    assert main(["predict", photo, "--model", "test_vit", option, value]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert len(error.splitlines()) == 1


def test_a_hub_name_may_have_meant_a_folder(photo, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["predict", photo, "--model", "nobody/nothing"]) == 2
    assert "there is no folder nobody/nothing here, and hub repository nobody/nothing" in capsys.readouterr().err


def test_labels_that_are_numbers(photo, model, tmp_path, monkeypatch, capsys):
    opsin.save(model, tmp_path / "saved", label_names=[10, 20, 30])  # type: ignore[list-item]
    assert {score.label for score in opsin.load(tmp_path / "saved").predict(photo).labels} == {"10", "20", "30"}
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main(["predict", photo, "--model", str(tmp_path / "saved")]) == 0
    assert re.search(r"20\b.*%", capsys.readouterr().out)


def test_a_line_for_each_picture(model, tmp_path, capsys):
    opsin.save(model, tmp_path / "saved", label_names=["a\nb", "c", "d"])
    square("red").save(tmp_path / "two\nlines.png")
    (tmp_path / "bad\r.png").write_bytes(b"")
    main(["predict", *map(str, tmp_path.glob("*.png")), "--model", str(tmp_path / "saved")])
    lines = sorted(capsys.readouterr().out.splitlines())
    assert [line.rpartition("/")[2].partition(": ")[0] for line in lines] == ["bad\\r.png", "two\\nlines.png"]
    assert "a\\nb" in lines[1]


# --- Predictor ------------------------------------------------------------------------------------------------------


def test_one_picture_in_each_form(model):
    predictor, stream = Predictor(model, labels=["a", "b", "c"]), io.BytesIO()
    square("red").save(stream, "PNG")
    data = stream.getvalue()
    expected = predictor.predict(data).labels
    for one in (bytearray(data), memoryview(data)):
        found = predictor.predict(one)
        assert (found.labels, found.source) == (expected, f"<{len(data)} bytes>")
    assert [one.labels for one in predictor.stream(data)] == [expected]
    assert [one.source for one in predictor.stream("none.png")] == ["none.png"]
    for wrong in (None, 3):
        with pytest.raises(OpsinError, match=r"one picture, or an iterable of pictures, not (NoneType|int)"):
            predictor.predict(wrong)  # type: ignore[arg-type, call-overload]
    with pytest.raises(OpsinError, match="not Tensor"):
        next(predictor.stream(torch.zeros(3, 4, 4)))  # type: ignore[arg-type]


def test_what_predictor_takes(model):
    with pytest.raises(OpsinError, match=r"Flatten has no num_classes\. A module of your own needs"):
        Predictor(nn.Flatten())
    with pytest.raises(OpsinError, match=r"without features_only; FeatureListNet has no num_classes"):
        Predictor(opsin.create_model("test_convnext", features_only=True))
    with pytest.raises(OpsinError, match="workers must be at least 1, not -1"):
        Predictor(model, workers=-1)
    with pytest.raises(OpsinError, match="no device 'gpu' here"):
        Predictor(model, device="gpu")
    own = nn.Flatten()
    own.num_classes = 3  # type: ignore[assignment]
    with pytest.raises(OpsinError, match="Flatten has no pretrained_cfg"):
        Predictor(own, labels=["a", "b", "c"])
    assert Predictor(own, labels=["a", "b", "c"], preprocess=Predictor(model).preprocess).num_classes == 3


# --- embeddings -----------------------------------------------------------------------------------------------------


def test_the_catalog_knows_embeddings_from_classes():
    names = [name for name in catalog.weight_names() if catalog.is_embedding(name)]
    assert len(names) > 90  # of some thousand
    assert all("clip" in name or "_pe_core" in name or "eva02" in name or "mci" in name for name in names)
    assert not catalog.is_embedding("resnet50.a1_in1k")
    assert not catalog.is_embedding("vit_base_patch16_224.bamboo")


def test_an_embedding_has_no_classes(tmp_path, monkeypatch):
    name = "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"
    small = {"depth": 1, "embed_dim": 64}
    published = opsin.create_model(name, **small)
    with pytest.raises(
        OpsinError, match=r"the 512 outputs .* no classes but an embedding.*num_classes=0.*train a head"
    ):
        Predictor(published)
    monkeypatch.setattr("opsin.factory.create_model", lambda *_, **__: published)
    with pytest.raises(OpsinError, match="no classes but an embedding"):
        opsin.load(name)
    monkeypatch.undo()
    # of somebody's own
    assert Predictor(published, labels=[str(i) for i in range(512)]).num_classes == 512
    assert Predictor(opsin.create_model(name, num_classes=511, **small)).num_classes == 511
    assert Predictor(opsin.create_model("test_vit", num_classes=512)).num_classes == 512
    opsin.save(published, tmp_path / "own")
    assert opsin.load(tmp_path / "own").num_classes == 512


def test_an_embedding_from_the_hub_has_none_either(tmp_path, monkeypatch):
    """A repository's config says less than the catalog: no place that the weights come from."""
    name = "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"
    model = opsin.create_model(name, depth=1, embed_dim=64)
    model.pretrained_cfg = {
        key: value for key, value in model.pretrained_cfg.items() if key not in ("hf_hub_id", "url")
    }
    monkeypatch.setattr("opsin.factory.create_model", lambda *_, **__: model)
    monkeypatch.setattr(predictor_module, "meaning", lambda _: {})
    with pytest.raises(OpsinError, match="no classes but an embedding"):
        opsin.load(f"hf-hub:timm/{name}")
    assert opsin.load("hf-hub:somebody/own").num_classes == 512
