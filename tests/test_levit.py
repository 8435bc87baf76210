"""LeViT: every option acts, both ways to store weights, two heads; beside the judge."""

import copy

import pytest
import torch
from support import randomize, relative_error

import opsin
from opsin.errors import UnknownArgumentError
from opsin.models.levit import Levit, LevitDistilled, LinearNorm, adapt

timm = pytest.importorskip("timm")
from timm.models import levit as judge  # noqa: E402

SMALL = {"num_classes": 5, "img_size": (64, 96), "embed_dim": (16, 24), "depth": (1, 1), "num_heads": 2, "key_dim": 8}
X = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def pair(kind="Levit", **kwargs):
    theirs = randomize(getattr(judge, kind)(**(SMALL | kwargs))).eval()
    ours = {"Levit": Levit, "LevitDistilled": LevitDistilled}[kind](**(SMALL | kwargs)).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_heads": (2, 3), "attn_ratio": (1.0, 3.0), "mlp_ratio": (2.0, 3.0)},
        {"attn_act_layer": "relu", "act_layer": "silu", "use_conv": True},
        {"stem_type": "s8"},
        {"embed_dim": (16, 24, 32), "depth": (1, 0, 1), "use_conv": True},
        {"global_pool": "", "num_classes": 0},
    ],
)
def test_options_as_timm(kwargs):
    ours, theirs = pair(**kwargs)
    assert relative_error(ours(X), theirs(X)) < 1e-5
    assert relative_error(ours.forward_features(X), theirs.forward_features(X)) < 1e-5


@pytest.mark.parametrize("kind", ["Levit", "LevitDistilled"])
def test_both_ways_to_store_weights(kind):
    plain, _ = pair(kind)
    conv, _ = pair(kind, use_conv=True)
    today = plain.state_dict()
    conv.load_state_dict(adapt(today | {"stages.0.blocks.0.attn.attention_bias_idxs": torch.zeros(1)}, conv))
    assert relative_error(conv(X), plain(X)) < 1e-5
    back = adapt(conv.state_dict(), plain)
    assert all(torch.equal(value, today[key]) for key, value in back.items())
    assert adapt(today, plain).keys() == today.keys()


def test_two_heads():
    ours, theirs = pair("LevitDistilled")
    assert relative_error(ours(X), theirs(X)) < 1e-5
    ours.train().set_distilled_training()
    first, second = ours(X)
    assert not torch.equal(first, second)
    ours.set_distilled_training(False)
    assert torch.allclose(ours(X), (first + second) / 2, atol=1e-5)


def test_norms_go_into_linear_layers():
    model, _ = pair("LevitDistilled")
    merged = copy.deepcopy(model)
    for module in merged.modules():
        if isinstance(module, LinearNorm):
            module.reparameterize()
    assert not any(".ln" in key and "bn" in key for key in merged.state_dict())
    assert relative_error(merged(X), model(X)) < 1e-5


def test_initial_values_and_drop_rates():
    for name in ("drop_rate", "drop_path_rate"):
        model = randomize(Levit(**SMALL, **{name: 0.5})).train()
        assert not torch.equal(model(X), model(X)), name
    fresh = LevitDistilled(**SMALL)
    assert not fresh.stages[0].blocks[0].attn.proj.ln.bn.weight.any()
    assert fresh.stages[1].downsample.attn_downsample.proj.ln.bn.weight.eq(1).all()
    assert fresh.head_dist.linear.bias.eq(0).all()


def test_errors_name_the_fix():
    with pytest.raises(ValueError, match="map of 6x4 .* built for 4x6.* img_size"):
        Levit(**SMALL)(torch.zeros(1, 3, 96, 64))
    with pytest.raises(UnknownArgumentError, match="s16 or s8"):
        Levit(**SMALL, stem_type="s4")
    with pytest.raises(ValueError, match="stages"):
        Levit(**(SMALL | {"depth": (1,)}))


@pytest.mark.parametrize("arch", ["levit_128s", "levit_conv_128s"])
def test_feature_nets_name_their_parts_as_timm(arch):
    ours, theirs = (lib.create_model(arch, features_only=True, depth=(1, 1, 1)) for lib in (opsin, timm))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
