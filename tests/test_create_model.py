"""`create_model`: names, arguments, adaptation of weights, users' own models."""

import sys
import textwrap
import types
import warnings

import pytest
import torch
from safetensors.torch import save_file
from support import randomize
from torch import nn

import opsin
from opsin.errors import UnknownArgumentError, UnknownModelError, WeightsError
from opsin.foreign import build_model_with_cfg
from opsin.models import resnet
from opsin.models._users import USERS
from opsin.models.features import FeatureHookNet
from opsin.models.resnet import BasicBlock, Bottleneck, ResNet

TINY = "test_resnet"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with lively random weights of a tiny model, and the model."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    model = randomize(opsin.create_model(TINY)).eval()
    save_file(model.state_dict(), path)
    return path, model


def test_weights_from_each_kind_of_source(weights):
    path, model = weights
    x = torch.randn(1, 3, 64, 64)
    for source in (path, str(path), f"local-dir:{path.parent}", path.parent, model.state_dict()):
        assert torch.equal(opsin.create_model(TINY, pretrained=source).eval()(x), model(x))
    overlaid = opsin.create_model(TINY, pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    assert torch.equal(overlaid.eval()(x), model(x))
    checkpoint = opsin.create_model(TINY, checkpoint_path=path)
    assert torch.equal(checkpoint.eval()(x), model(x))


def test_a_loaded_model_shares_nothing_with_what_it_was_given(weights):
    path, model = weights
    state = {k: v.clone() for k, v in model.state_dict().items()}
    before = state["fc.weight"].clone()
    ours = opsin.create_model(TINY, pretrained=state)
    with torch.no_grad():
        ours.fc.weight.zero_()
    assert torch.equal(state["fc.weight"], before)
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("in_chans", [1, 2, 4, 25])
def test_first_convolution_is_adapted(weights, in_chans):
    path, model = weights
    kernel = model.conv1[0].weight
    adapted = opsin.create_model(TINY, pretrained=path, in_chans=in_chans).conv1[0].weight
    if in_chans == 1:
        expected = kernel.sum(1, keepdim=True)
    else:
        expected = kernel.repeat(1, -(-in_chans // 3), 1, 1)[:, :in_chans] * (3 / in_chans)
    assert torch.allclose(adapted, expected, atol=1e-6)


def test_a_stem_of_other_channels_needs_a_strategy(weights):
    _, model = weights
    state = dict(model.state_dict())
    state["conv1.0.weight"] = torch.randn(16, 4, 3, 3)
    with pytest.raises(WeightsError, match="name a strategy"):
        opsin.create_model(TINY, pretrained=state, in_chans=2)
    ours = opsin.create_model(TINY, pretrained=state, in_chans=2, in_chans_strategy="mean")
    assert torch.allclose(ours.conv1[0].weight[:, 0], state["conv1.0.weight"].mean(1) * 2)


def test_other_classes_get_a_fresh_head_and_a_warning(weights):
    path, model = weights
    with pytest.warns(UserWarning, match="1000 classes, the model has 7") as caught:
        ours = opsin.create_model(TINY, pretrained=path, num_classes=7)
    assert caught[0].filename == __file__
    assert ours.fc.weight.shape == (7, 96)
    assert ours.fc.weight.abs().sum() > 0
    assert torch.equal(ours.layer4[0].conv1.weight, model.layer4[0].conv1.weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        none = opsin.create_model(TINY, pretrained=path, num_classes=0)
    assert torch.equal(none.layer4[0].conv1.weight, model.layer4[0].conv1.weight)


def test_keys_that_do_not_fit_are_named(weights):
    _, model = weights
    state = dict(model.state_dict())
    state["stray.weight"] = torch.ones(2)
    del state["layer2.0.conv1.weight"]
    state["layer3.0.bn1.weight"] = torch.ones(3)
    with pytest.raises(WeightsError) as caught:
        opsin.create_model(TINY, pretrained=state)
    for key in ("stray.weight", "layer2.0.conv1.weight", "layer3.0.bn1.weight"):
        assert key in str(caught.value)


def test_features_from_pretrained_equal_the_model(weights):
    path, model = weights
    x = torch.randn(2, 3, 64, 64)
    net = opsin.create_model(TINY, pretrained=path, features_only=True, out_indices=[2, 3, 4]).eval()
    _, maps = model.forward_intermediates(x, [2, 3, 4])
    assert all(torch.equal(a, b) for a, b in zip(net(x), maps, strict=True))
    assert set(net.state_dict()) == {k for k in model.state_dict() if not k.startswith("fc.")}


def test_hooks_on_any_module(weights):
    path, model = weights
    names = ["layer2.0.conv1", "layer3.0.bn2"]
    net = opsin.create_model(TINY, pretrained=path, features_only=True, out_indices=names, return_dict=True).eval()
    assert isinstance(net, FeatureHookNet)
    x = torch.randn(1, 3, 64, 64)
    seen = {}
    model.layer2[0].conv1.register_forward_hook(lambda m, a, out: seen.setdefault("x", out))
    model(x)
    out = net(x)
    assert list(out) == names
    assert torch.equal(out["layer2.0.conv1"], seen["x"])
    assert net.feature_info.channels() == [48, 48]
    assert net.feature_info.reduction() == [8, 16]
    with pytest.raises(UnknownArgumentError, match=r"Did you mean layer2"):
        opsin.create_model(TINY, features_only=True, out_indices=["layer2.0.conv"])


def test_unknown_names():
    with pytest.raises(UnknownModelError, match="Did you mean resnet34"):
        opsin.create_model("resnt34")
    with pytest.raises(UnknownModelError, match="Did you mean a1_in1k"):
        opsin.create_model("resnet34.a1_in1")
    with pytest.raises(UnknownArgumentError, match="Did you mean num_classes"):
        opsin.create_model("resnet34", num_class=10)
    with pytest.raises(UnknownArgumentError, match="features_only"):
        opsin.create_model("resnet34", out_indices=(1,))
    with pytest.raises(UnknownArgumentError, match="Did you mean interpolation"):
        opsin.create_model("resnet34", pretrained_cfg_overlay={"interpolatio": "bilinear"})


def test_old_names_still_create_a_model():
    with pytest.warns(FutureWarning, match="resnet50") as caught:
        model = opsin.create_model("gluon_resnet50_v1b", num_classes=2)
    assert caught[0].filename == __file__
    assert model.architecture == "resnet50"
    assert model.pretrained_cfg["tag"] == "gluon_in1k"


def test_the_record_of_the_tag_travels():
    model = opsin.create_model("resnet50.gluon_in1k")
    assert model.pretrained_cfg["tag"] == "gluon_in1k"
    assert model.default_cfg is model.pretrained_cfg
    other = opsin.create_model("resnet50", pretrained_cfg="gluon_in1k", pretrained_cfg_overlay={"crop_pct": 0.5})
    assert other.pretrained_cfg["crop_pct"] == 0.5
    assert other.pretrained_cfg["tag"] == "gluon_in1k"
    full = opsin.create_model("test_resnet", pretrained_cfg="test_resnet.r160_in1k")
    assert full.pretrained_cfg["tag"] == "r160_in1k"
    with pytest.raises(UnknownModelError, match="no weights tagged 'resnet34.a1_in1k'"):
        opsin.create_model("test_resnet", pretrained_cfg="resnet34.a1_in1k")


def test_family_modules_answer_to_variant_names():
    assert resnet.resnet18(num_classes=3).num_classes == 3
    assert "resnet18.a1_in1k" in resnet.default_cfgs
    with pytest.raises(AttributeError, match="Did you mean resnet18"):
        resnet.resnet_18  # noqa: B018


def test_classes_are_built_directly():
    model = ResNet(BasicBlock, layers=[1, 1, 1, 1], in_chans=1, num_classes=5)
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 5)
    assert ResNet(block=Bottleneck, layers=(1, 1, 1, 1), num_classes=0).num_features == 2048
    with pytest.raises(UnknownArgumentError, match="Did you mean in_chans"):
        ResNet(BasicBlock, [1, 1, 1, 1], in_chan=1)
    with pytest.raises(TypeError, match="both"):
        ResNet(BasicBlock, [1, 1, 1, 1], block=BasicBlock)

    class Mine(ResNet):
        def __init__(self, **kwargs):
            super().__init__(BasicBlock, [1, 1, 1, 1], **kwargs)
            self.extra = nn.Linear(4, 4)
            nn.init.constant_(self.extra.weight, 0.5)

    assert torch.equal(Mine().extra.weight, torch.full((4, 4), 0.5))


def test_config_goes_to_json_and_back():
    import json

    for arch in ("resnetrs50", "test_resnet", "resnetblur18", "ecaresnet26t"):
        model = opsin.create_model(arch, drop_path_rate=0.1, num_classes=4)
        again = ResNet(**json.loads(json.dumps(model.config.to_dict())))
        assert {k: v.shape for k, v in again.state_dict().items()} == {
            k: v.shape for k, v in model.state_dict().items()
        }


def test_resnet_knobs_act():
    x = torch.randn(1, 3, 64, 64)
    for stride, size in ((8, 8), (16, 4), (32, 2)):
        model = opsin.create_model("resnet18", output_stride=stride).eval()
        assert model.forward_features(x).shape[-1] == size
        assert model.feature_info[-1]["reduction"] == stride
    with pytest.raises(ValueError, match="8, 16 and 32"):
        opsin.create_model("resnet18", output_stride=4)
    assert opsin.create_model("resnet18", global_pool="catavgmax").fc.in_features == 1024
    dropped = opsin.create_model("resnet18", drop_path_rate=0.2)
    assert dropped.layer4[1].drop_path.drop_prob == pytest.approx(0.2)
    model = opsin.create_model("resnet18", drop_rate=0.5).train()
    features = torch.ones(1, 512, 2, 2)
    assert (model.forward_head(features, pre_logits=True) == 0).any()
    assert opsin.create_model("resnet18").layer1[0].bn2.weight.sum() == 0
    assert opsin.create_model("resnet18", zero_init_last=False).layer1[0].bn2.weight.sum() == 64
    assert isinstance(opsin.create_model("resnet18", act_layer="silu").act1, nn.SiLU)
    assert isinstance(opsin.create_model("resnet18", norm_layer="groupnorm").bn1, nn.GroupNorm)
    assert opsin.create_model("resnet26", down_kernel_size=3).layer2[0].downsample[0].kernel_size == (3, 3)
    assert opsin.create_model("resnet26", block_reduce_first=2).layer1[0].conv1.out_channels == 32
    assert opsin.create_model("resnet26", stem_type="deep", stem_width=24).conv1[0].out_channels == 24
    assert isinstance(opsin.create_model("resnet18", replace_stem_pool=True).maxpool[0], nn.Conv2d)


def test_users_own_models(monkeypatch):
    source = textwrap.dedent("""
        from torch import nn
        from opsin.models import register_model, generate_default_cfgs
        from opsin.models.resnet import ResNet, BasicBlock

        default_cfgs = generate_default_cfgs({"my_net.mine_in1k": {"num_classes": 1000, "crop_pct": 0.9}})

        @register_model
        def my_net(pretrained=False, num_classes=10, **kwargs):
            return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=num_classes)
    """)
    module = types.ModuleType("my_models_for_a_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(source, module.__name__, "exec"), module.__dict__)
    assert opsin.is_model("my_net")
    assert "my_net" in opsin.list_models("my_*")
    assert opsin.create_model("my_net", num_classes=3).num_classes == 3
    del USERS["my_net"]
    assert not opsin.is_model("my_net")


def test_the_input_strategy_reaches_users_models(weights, monkeypatch):
    path, model = weights
    module = types.ModuleType("my_models_for_strategies")
    monkeypatch.setitem(sys.modules, module.__name__, module)

    tiny = opsin.create_model(TINY).config.to_dict()

    def my_stem(pretrained=False, **kwargs):
        return build_model_with_cfg(ResNet, "my_stem", pretrained, {"first_conv": "conv1.0"}, **(tiny | kwargs))

    my_stem.__module__ = module.__name__
    monkeypatch.setitem(USERS, "my_stem", my_stem)
    kernel = model.conv1[0].weight
    for strategy, expected in ((None, kernel.sum(1)), ("mean", kernel.mean(1) * 3)):
        ours = opsin.create_model("my_stem", pretrained=str(path), in_chans=1, in_chans_strategy=strategy)
        assert torch.allclose(ours.conv1[0].weight[:, 0], expected, atol=1e-6)
    ours = opsin.create_model("my_stem", pretrained=str(path), in_chans=2, in_chans_strategy="mean")
    assert torch.allclose(ours.conv1[0].weight[:, 0], kernel.mean(1) * 1.5, atol=1e-6)
    for name in ("my_stem", TINY):
        with pytest.raises(WeightsError, match="Did you mean mean"):
            opsin.create_model(name, in_chans_strategy="meann")


@pytest.mark.parametrize("wrong", [1, 0, 0.5, ["a"]])
def test_what_pretrained_can_be(wrong):
    assert opsin.create_model(TINY, pretrained=None).num_classes == 1000
    with pytest.raises(UnknownArgumentError, match="give True or False, a file"):
        opsin.create_model(TINY, pretrained=wrong)
    with pytest.raises(WeightsError, match="names no weights"):
        opsin.create_model(TINY, pretrained="")


def test_pretrained_creation_initialises_nothing(weights, monkeypatch):
    path, _ = weights
    calls = []
    monkeypatch.setattr(ResNet, "init_weights", lambda self, only=None: calls.append(only))
    opsin.create_model(TINY, pretrained=path)
    assert not calls
    opsin.create_model(TINY)
    assert calls == [None]
