"""MobileViT: each argument of its two kinds of blocks beside the judge, and what acts in training alone."""

import pytest
import torch
from support import randomize, relative_error

import opsin
from opsin.errors import OpsinError
from opsin.models._byob import ByoBlockCfg
from opsin.models.mobilevit import VARIANTS, ByobNet

timm = pytest.importorskip("timm")
X = torch.randn(2, 3, 56, 80, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def args_of(kind, gs=None, **kwargs):
    """Two stages, the second with a block of `kind` on a map that is no whole number of patches."""
    kwargs = {"transformer_depth": 1, "patch_size": 2} | kwargs
    block = ByoBlockCfg(kind, d=2, c=24, s=1, gs=gs, br=0.5, block_kwargs=kwargs)
    inside = {"bottle_in": True, "linear_out": True}
    bottles = [ByoBlockCfg("bottle", d=1, c=c, s=2, gs=1, br=2.0, block_kwargs=inside) for c in (16, 24)]
    return {"blocks": (bottles[0], (bottles[1], block)), "act_layer": "silu", "num_classes": 5, "downsample": ""}


PATHS = [
    ("mobilevit", {}),
    ("mobilevit", {"transformer_dim": 32, "transformer_depth": 2}),
    ("mobilevit", {"patch_size": 3, "num_heads": 2}),
    ("mobilevit", {"kernel_size": 5, "mlp_ratio": 3.0, "gs": 8}),
    ("mobilevit", {"no_fusion": True}),
    ("mobilevit", {"output_stride": 8}),
    ("mobilevit2", {"gs": 1}),
    ("mobilevit2", {"transformer_dim": 32, "transformer_depth": 2}),
    ("mobilevit2", {"patch_size": 3, "kernel_size": 5, "mlp_ratio": 3.0, "gs": 8}),
    ("mobilevit2", {"output_stride": 8}),
]
WIDE = {"stem_chs": 16, "num_features": 0}


@pytest.mark.parametrize(("kind", "change"), PATHS)
@torch.no_grad()
def test_same_numbers(kind, change):
    change = dict(change)
    network = {"output_stride": change.pop("output_stride", 32)}
    args = WIDE | args_of(kind, **change) | network
    theirs = randomize(timm.create_model("mobilevit_xxs", **args)).eval().double()
    ours = opsin.create_model("mobilevit_xxs", **args).eval().double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    (final_a, maps_a), (final_b, maps_b) = ours.forward_intermediates(X), theirs.forward_intermediates(X)
    for a, b in zip([ours(X), final_a, *maps_a], [theirs(X), final_b, *maps_b], strict=True):
        assert relative_error(a, b) < 1e-9


@torch.no_grad()
def test_the_second_version_as_published():
    theirs = randomize(timm.create_model("mobilevitv2_050", num_classes=5)).eval().double()
    ours = opsin.create_model("mobilevitv2_050", num_classes=5).eval().double()
    ours.load_state_dict(theirs.state_dict())
    assert relative_error(ours(X), theirs(X)) < 1e-9


@pytest.mark.parametrize("kind", ["mobilevit", "mobilevit2"])
@pytest.mark.parametrize("change", [{"attn_drop": 0.5}, {"drop": 0.5}, {"drop_path_rate": 0.5}])
def test_rates_act_in_training_only(kind, change):
    change = dict(change)
    network = {"drop_path_rate": change.pop("drop_path_rate", 0.0)}
    model = randomize(ByobNet(**WIDE | args_of(kind, **change) | network))
    x = X.float().repeat(4, 1, 1, 1)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize("kind", ["mobilevit", "mobilevit2"])
def test_norms(kind):
    norm = {"mobilevit": "rmsnorm", "mobilevit2": "layernorm2d"}[kind]
    base, other = (ByobNet(**WIDE | args_of(kind, **kw)) for kw in ({}, {"transformer_norm_layer": norm}))
    changed = type(other.stages[1][1].norm)
    assert changed is not type(base.stages[1][1].norm)
    assert changed is type(other.stages[1][1].transformer[0].norm1)
    assert torch.isfinite(other(X.float())).all()


def test_strided_and_misspelt():
    kwargs = {"patch_size": 2}
    model = ByobNet(**WIDE | {"blocks": (ByoBlockCfg("mobilevit2", d=1, c=24, block_kwargs=kwargs),), "num_classes": 5})
    assert model.forward_features(X.float()).shape == (2, 24, 14, 20)
    with pytest.raises(OpsinError, match="Did you mean mobilevit"):
        ByobNet(**WIDE | args_of("mobilvit"))
    assert VARIANTS["mobilevit_s"].to_dict()["blocks"]
