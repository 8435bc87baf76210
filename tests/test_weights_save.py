"""What is saved comes back as it was: the pool, a classifier by hand, labels; and what could not is refused."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import opsin
from opsin.errors import OpsinError, WeightsError
from opsin.models._users import USERS
from opsin.models.resnet import BasicBlock, ResNet
from opsin.train.split_bn import main_state, split_batch_norm

TINY = "test_resnet"


@pytest.fixture
def place(tmp_path):
    return tmp_path / "net"


@pytest.mark.parametrize(("name", "pool"), [(TINY, "max"), ("test_vit", "avg"), ("test_vit", "token")])
def test_everyone_pools_as_the_saved_model(place, name, pool):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = opsin.create_model(name, num_classes=3, global_pool=pool).eval()
    opsin.save(model, place)
    x = torch.randn(2, 3, 160, 160)
    theirs = transformers.AutoModelForImageClassification.from_pretrained(place).eval()
    with torch.no_grad():
        wanted = model(x)
        assert torch.equal(opsin.load(place, device="cpu").model(x), wanted)
        judge = timm.create_model(f"local-dir:{place}", pretrained=True).eval()
        assert torch.allclose(judge(x), wanted, atol=1e-5)
        assert torch.allclose(theirs(pixel_values=x).logits, wanted, atol=1e-5)
    assert json.loads((place / "config.json").read_text())["global_pool"] == pool


def test_a_classifier_by_hand_names_the_classes(place):
    model = opsin.create_model(TINY)
    model.fc = nn.Linear(model.fc.in_features, 3)
    opsin.save(model, place, label_names=["a", "b", "c"])
    again = opsin.load(place, device="cpu")
    assert torch.equal(again.model.fc.weight, model.fc.weight)
    assert [label.name for label in again.labels] == ["a", "b", "c"]
    opsin.save(model, place)
    assert [label.name for label in opsin.load(place).labels] == ["0", "1", "2"]
    model.fc = nn.Identity()
    opsin.save(model, place)
    assert opsin.create_model(f"local-dir:{place}", pretrained=True).num_classes == 0


def test_two_heads_by_hand(place):
    model = opsin.create_model("deit_tiny_distilled_patch16_224", depth=1, embed_dim=24)
    model.head = nn.Linear(24, 3)
    with pytest.raises(WeightsError, match="3 classes at 'head', 1000 classes at 'head_dist': replace all"):
        opsin.save(model, place)
    model.head_dist = nn.Linear(24, 3)
    opsin.save(model, place)
    assert torch.equal(opsin.load(place, device="cpu").model.head_dist.weight, model.head_dist.weight)


def test_a_head_that_is_not_the_configs_is_refused(place):
    model = opsin.create_model(TINY, num_classes=3)
    opsin.save(model, place)
    state = load_file(place / "model.safetensors")
    save_file(state | {"fc.weight": torch.ones(5, 96), "fc.bias": torch.ones(5)}, place / "model.safetensors")
    with pytest.raises(WeightsError, match=r"5 classes at 'fc', their record says 3.*pass num_classes=5"):
        opsin.load(place)
    assert opsin.create_model(f"local-dir:{place}", pretrained=True, num_classes=5).fc.weight.sum() == 5 * 96
    with pytest.warns(UserWarning, match="5 classes, the model has 7"):
        opsin.create_model(f"local-dir:{place}", pretrained=True, num_classes=7)


def test_what_could_not_be_loaded_is_not_written(place):
    model = opsin.create_model(TINY).eval()
    with pytest.raises(WeightsError, match=r"missing \(.*Save it before prepare_for_inference"):
        opsin.save(opsin.prepare_for_inference(model), place)
    model.fc = nn.Sequential(nn.Dropout(), nn.Linear(96, 3))
    with pytest.raises(WeightsError, match=r"2 missing \(fc.weight, fc.bias\) and 2 of its own \(fc.1.weight"):
        opsin.save(model, place)
    model.prune_intermediate_layers([1])
    with pytest.raises(WeightsError, match="built again, would have other weights"):
        opsin.save(model, place)
    assert not place.exists()


def test_modules_of_another_kind(place):
    def users_net(pretrained=False, **kwargs):
        return nn.Linear(2, 2)

    opsin.register_model(users_net)
    try:
        net = opsin.create_model("users_net")
    finally:
        del USERS["users_net"]
    for module in (net, opsin.create_model(TINY, features_only=True), ResNet(BasicBlock, (1,) * 4)):
        with pytest.raises(OpsinError, match=r"that create_model made.*state_dict\(\)"):
            opsin.save(module, place)
    compiled = torch.compile(model := opsin.create_model(TINY))
    opsin.save(compiled, place)
    assert torch.equal(opsin.load(place, device="cpu").model.fc.weight, model.fc.weight)


def test_split_norms_are_saved_as_the_one_that_evaluates(place):
    model = split_batch_norm(opsin.create_model(TINY), 2)
    model.bn1.main.running_mean.fill_(3)
    opsin.save(model, place, state=main_state(model, model.state_dict()))
    assert opsin.load(place).model.bn1.running_mean.eq(3).all()


def test_labels_do_not_outlive_their_head(tmp_path):
    opsin.save(opsin.create_model(TINY, num_classes=2), tmp_path / "a", label_names=["ant", "bee"])
    model = opsin.create_model(f"local-dir:{tmp_path / 'a'}", pretrained=True)
    model.reset_classifier(2)
    assert "label_names" not in model.pretrained_cfg
    assert [label.name for label in opsin.load(opsin.save(model, tmp_path / "b")).labels] == ["0", "1"]


def test_numbers_as_labels(place):
    model = opsin.create_model(TINY, num_classes=2)
    opsin.save(model, place, label_names=[10, 20], label_descriptions={10: "ten"})
    assert json.loads((place / "config.json").read_text())["label_names"] == ["10", "20"]
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"label_names": [10, 20]}))  # as others may write it
    again = opsin.load(place, device="cpu")
    assert again.predict(torch.randn(3, 64, 64)).labels[0].label in ("10", "20")
    assert again.labels[0].description == "ten"
