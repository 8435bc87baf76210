"""Self-attention in ByobNets: each layer and each of its arguments beside the judge, image sizes, initial values."""

from importlib import import_module

import pytest
import torch
from support import randomize, relative_error

import opsin
from opsin.layers.bottleneck_attn import BottleneckAttn
from opsin.layers.halo_attn import HaloAttn
from opsin.layers.lambda_layer import LambdaLayer
from opsin.models.byoanet import ByoBlockCfg, ByobNet

timm = pytest.importorskip("timm")

THEIRS = {BottleneckAttn: "bottleneck_attn", HaloAttn: "halo_attn", LambdaLayer: "lambda_layer"}
SIZED = {"feat_size": (8, 12)}
LAYERS = [
    (BottleneckAttn, SIZED),
    (BottleneckAttn, {**SIZED, "stride": 2, "num_heads": 2, "qk_ratio": 0.5}),
    (BottleneckAttn, {**SIZED, "dim_head": 12, "qkv_bias": True, "scale_pos_embed": True}),
    (HaloAttn, {"block_size": 4}),
    (HaloAttn, {"block_size": 4, "halo_size": 1, "stride": 2, "num_heads": 2, "qk_ratio": 0.5}),
    (HaloAttn, {"block_size": 4, "stride": 2, "avg_down": True, "dim_head": 4}),
    (HaloAttn, {"block_size": 4, "qkv_bias": True, "scale_pos_embed": True}),
    (LambdaLayer, {}),
    (LambdaLayer, {"r": 5, "stride": 2, "num_heads": 2, "dim_head": 8, "qkv_bias": True}),
    (LambdaLayer, {"dim_head": None, "qk_ratio": 0.5}),
    (LambdaLayer, {**SIZED, "r": None}),
]


@pytest.mark.parametrize(("layer", "args"), LAYERS)
@torch.no_grad()
def test_same_numbers(layer, args):
    judge = getattr(import_module(f"timm.layers.{THEIRS[layer]}"), layer.__name__)
    theirs = randomize(judge(32, **args)).eval().double()
    ours = layer(32, **args).eval().double()
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(2, 32, 8, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert relative_error(ours(x), theirs(x)) < 1e-12


@torch.no_grad()
def test_halo_of_odd_sizes():
    """A map that blocks do not divide is one with zeros at its far sides."""
    for args in ({"stride": 1}, {"stride": 2}, {"stride": 2, "avg_down": True}):
        layer = randomize(HaloAttn(16, block_size=4, num_heads=2, **args)).double()
        x = torch.randn(1, 16, 7, 9, dtype=torch.float64)
        whole = torch.nn.functional.pad(x, (0, 3, 0, 1))
        step = args["stride"]
        assert layer(x).shape == (1, 16, -(-7 // step), -(-9 // step))
        inside = slice(None, 7 // step), slice(None, 9 // step)
        assert torch.allclose(layer(x)[..., inside[0], inside[1]], layer(whole)[..., inside[0], inside[1]])


@torch.no_grad()
def test_lambda_takes_channels_last():
    layer, x = randomize(LambdaLayer(16)).eval(), torch.randn(1, 16, 6, 8)
    expected = layer(x)
    layer.to(memory_format=torch.channels_last)
    assert layer.conv_lambda.weight.shape == (16, 1, 9, 9, 1)
    assert relative_error(layer(x.to(memory_format=torch.channels_last)), expected) < 1e-6
    assert layer.double().conv_lambda.weight.dtype == torch.float64


def test_layers_for_one_size():
    for layer, args in ((BottleneckAttn, SIZED), (LambdaLayer, {**SIZED, "r": None})):
        with pytest.raises(ValueError, match=r"built for maps of \(8, 12\), got \(8, 8\).* img_size"):
            layer(32, **args)(torch.randn(1, 32, 8, 8))
        with pytest.raises(ValueError, match="give img_size"):
            layer(32, **(args | {"feat_size": None}))
        with pytest.raises(ValueError, match="cannot be split into num_heads=5"):
            layer(32, **args, num_heads=5)


BLOCKS = tuple(ByoBlockCfg("self_attn", d=1, c=c, s=s, br=0.5) for c, s in ((32, 2), (64, 2), (64, 2)))
SMALL = {"blocks": BLOCKS, "num_classes": 5, "stem_chs": 16}
KINDS = {
    "bottleneck": {"self_attn_layer": "bottleneck"},
    "lambda": {"self_attn_layer": "lambda", "self_attn_kwargs": {"r": None}},
}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_positions_are_resampled_for_other_sizes(kind):
    args = SMALL | KINDS[kind] | {"stem_pool": "", "stem_type": "3x3"}
    state = randomize(ByobNet(**args, img_size=(64, 96))).state_dict()
    for key, value in state.items():
        if "rel" in key or "pos_emb" in key:
            value.fill_(0.25)
    model = opsin.create_model("botnet26t_256", **args, img_size=(96, 64), pretrained=state)
    tables = [v for k, v in model.state_dict().items() if "rel" in k or "pos_emb" in k]
    assert len(tables) >= 3
    assert all(torch.allclose(table, torch.tensor(0.25)) for table in tables)
    assert torch.isfinite(model.eval()(torch.randn(1, 3, 96, 64))).all()


def test_resampled_positions_lie_between_the_old():
    from opsin.models._byob import resample

    model = ByobNet(**SMALL | KINDS["bottleneck"], img_size=(128, 64))
    old = ByobNet(**SMALL | KINDS["bottleneck"], img_size=(64, 64)).state_dict()
    key = "stages.1.0.self_attn.pos_embed.height_rel"
    old[key] = torch.linspace(-1, 1, len(old[key]))[:, None].expand_as(old[key])
    new = resample(old, model)
    assert new["stages.1.0.self_attn.pos_embed.width_rel"] is old["stages.1.0.self_attn.pos_embed.width_rel"]
    assert new[key].shape == (2 * 32 - 1, old[key].shape[1])
    assert (new[key].diff(dim=0)[4:-4] > 0).all()
    assert new[key][31].abs().max() < 1e-6  # no distance stays in the middle


@pytest.mark.parametrize("name", ["halonet_h1", "eca_botnext26ts_256", "lambda_resnet26t", "lambda_resnet26rpt_256"])
def test_initial_values(name):
    ours, theirs = opsin.create_model(name).state_dict(), timm.create_model(name).state_dict()
    attended = {k: v for k, v in theirs.items() if ".self_attn." in k and v.is_floating_point() and v.numel() > 100}
    assert attended
    for key, value in attended.items():
        std = value.std().item()
        assert ours[key].std().item() == pytest.approx(std, rel=0.25 if value.numel() < 2000 else 0.05, abs=1e-9), key
        assert (ours[key].mean() - value.mean()).abs() <= 0.3 * std, key


def test_published_names_say_their_size():
    model = opsin.create_model("sebotnet33ts_256", num_classes=0)
    assert model.stages[3][1].self_attn.feat_size == (8, 8)
    assert opsin.create_model("halonet26t", num_classes=0).config.img_size is None
    with pytest.raises(ValueError, match="img_size has no effect"):
        opsin.create_model("halonet26t", img_size=288)
