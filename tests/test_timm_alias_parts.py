"""What the alias shows of timm's layers and model files in another form, beside timm itself; no alias is installed."""

import importlib
import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

import opsin
from opsin.errors import OpsinError
from opsin.integrations.timm_alias import _hub
from opsin.integrations.timm_alias._names import lookup


def both(module: str, name: str):
    return lookup(module, name), getattr(importlib.import_module(module), name)


def test_activation_functions():
    ours, theirs = both("timm.layers", "get_act_fn")
    x = torch.randn(50)
    for name in ("relu", "silu", "gelu", "gelu_tanh", "hard_swish", "leaky_relu", "quick_gelu"):
        assert torch.allclose(ours(name)(x), theirs(name)(x), atol=1e-6)
    y = x.clone()
    assert ours("relu")(y, inplace=True) is y
    assert ours(None) is None is ours("")
    assert ours(torch.tanh) is torch.tanh


def test_norms_and_padding():
    ours, theirs = both("timm.layers", "create_norm_layer")
    for name in ("batchnorm2d", "layernorm2d"):
        assert ours(name, 8, eps=1e-3).eps == theirs(name, 8, eps=1e-3).eps == 1e-3
    ours, theirs = both("timm.layers", "get_padding")
    for args in ((3,), (3, 2), (5, 1, 2), (1,), (2, 2), ((3, 5),), ((3, 5), 2)):
        assert ours(*args) == theirs(*args)
    with lookup("timm.layers", "set_layer_config")(scriptable=True, exportable=True, no_jit=True):
        pass


@pytest.mark.parametrize(
    "args",
    [{}, {"pool_type": "catavgmax"}, {"use_conv": True}, {"pool_type": "", "use_conv": True}, {"drop_rate": 0.1},
     {"num_classes": 0}, {"num_classes": 0, "pool_type": ""}],
)  # fmt: skip
def test_classifiers(args):
    ours, theirs = both("timm.layers", "create_classifier")
    args = {"num_classes": 3} | args
    mine, judge = nn.Sequential(*ours(8, **args)).eval(), nn.Sequential(*theirs(8, **args)).eval()
    judge.load_state_dict(mine.state_dict())
    x = torch.randn(2, 8, 4, 3)
    assert len(mine) == len(judge)
    assert torch.allclose(mine(x), judge(x), atol=1e-6)


def test_a_classifier_of_a_map_needs_a_convolution():
    with pytest.raises(ValueError, match="leaves a map"):
        lookup("timm.layers", "create_classifier")(8, 3, "")


def test_helpers_of_model_files():
    ours, theirs = both("timm.models._efficientnet_builder", "resolve_bn_args")
    for given in ({"bn_momentum": 0.01, "bn_eps": 1e-3, "x": 1}, {"bn_tf": True}):
        mine, judge = dict(given), dict(given)
        assert (ours(mine), mine) == (theirs(judge), judge)
    ours, theirs = both("timm.models._efficientnet_builder", "resolve_act_layer")
    assert ours({"act_layer": "silu"}) is theirs({"act_layer": "silu"})
    assert ours({}) is theirs({})
    ours, theirs = both("timm.models.vision_transformer", "resize_pos_embed")
    table = torch.randn(1, 17, 4)
    for new, args in ((37, {}), (13, {"gs_new": (3, 4)}), (37, {"antialias": True, "interpolation": "bilinear"})):
        new = torch.zeros(1, new, 4)
        assert torch.allclose(ours(table, new, **args), theirs(table, new, **args), atol=1e-5)
    assert ours(table[:, 1:], torch.zeros(1, 36, 4), num_prefix_tokens=0).shape == (1, 36, 4)
    ours, theirs = both("timm.models.swin_transformer", "window_partition")
    x = torch.randn(2, 4, 6, 3)
    windows = ours(x, (2, 3))
    assert torch.equal(windows, theirs(x, (2, 3)))
    assert torch.equal(lookup("timm.models.swin_transformer", "window_reverse")(windows, (2, 3), 4, 6), x)


def test_norms_of_several_processes_and_frozen_ones():
    convert = lookup("timm.layers", "convert_sync_batchnorm")
    model = nn.Sequential(lookup("timm.layers", "BatchNormAct2d")(4))
    assert isinstance(convert(model)[0], lookup("timm.layers", "SyncBatchNormAct"))
    frozen = lookup("timm.layers", "freeze_batch_norm_2d")(nn.Sequential(lookup("timm.layers", "BatchNormAct2d")(4)))
    assert isinstance(frozen[0], lookup("timm.layers", "FrozenBatchNormAct2d"))


def test_load_checkpoint_returns_a_pair(tmp_path):
    model = opsin.create_model("test_vit", num_classes=3)
    state = model.state_dict() | {"more": torch.zeros(1)}
    del state["head.bias"]
    torch.save(state, tmp_path / "a.pth")
    missing, unexpected = found = lookup("timm.models", "load_checkpoint")(model, tmp_path / "a.pth", strict=False)
    assert missing == found.missing_keys == ["head.bias"]
    assert unexpected == found.unexpected_keys == ["more"]


def test_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(_hub, "hub_file", lambda repo, names, **_: tmp_path / "saved" / names[0])
    monkeypatch.setattr("opsin.weights.artefact.hub_file", lambda repo, names, **_: tmp_path / "saved" / names[0])
    model = opsin.create_model("test_vit", num_classes=3, img_size=32)
    find = lambda name: lookup("timm.models.hub", name)  # noqa: E731
    find("save_for_hf")(model, tmp_path / "saved", model_config={"label_names": ["a", "b", "c"]})
    cfg, architecture, args = find("load_model_config_from_hf")("me/mine@v1")
    assert (cfg["num_classes"], cfg["label_names"], cfg["hf_hub_id"]) == (3, ["a", "b", "c"], "me/mine@v1")
    again = opsin.create_model(architecture, pretrained_cfg=cfg, **args)
    again.load_state_dict(find("load_state_dict_from_hf")("me/mine@v1"))
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(again.eval()(x), model.eval()(x))
    assert find("hf_split")("me/mine@v1") == timm.models._hub.hf_split("me/mine@v1")
    assert find("has_hf_hub")()
    for call in (
        lambda: find("save_for_hf")(model, tmp_path / "no", model_config={"x": 1}),
        lambda: find("load_state_dict_from_hf")("me/mine", weights_only=False),
        lambda: find("download_cached_file")(("https://a/b", "c")),
    ):
        with pytest.raises(OpsinError):
            call()
    monkeypatch.setattr(_hub, "download_url", lambda url, **_: tmp_path / url.rpartition("/")[2])
    assert find("download_cached_file")("https://a/b.pth") == str(tmp_path / "b.pth")


@pytest.mark.parametrize(
    ("args", "message"), [(["no.py"], "no.py: no such script"), (["-m", "no.mod"], "no module no.mod")]
)
def test_nothing_to_run_is_said_in_a_message(args, message):
    done = subprocess.run(
        [sys.executable, "-m", "opsin.integrations.timm_alias", *args], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
