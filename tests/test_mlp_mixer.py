"""Mixers: original layouts, and that every option acts; beside the judge."""

import pytest
import torch
from support import randomize, relative_error
from torch import nn

import opsin
from opsin.models.mlp_mixer import BLOCKS, MLPS, Affine, MlpMixer, SpatialGatingUnit, adapt

timm = pytest.importorskip("timm")
from timm.models import mlp_mixer as judge  # noqa: E402

SMALL = {"num_classes": 5, "img_size": (16, 24), "patch_size": 8, "num_blocks": 2, "embed_dim": 16}


@pytest.mark.parametrize(
    "kwargs",
    [
        {"stem_norm": True},
        {"stem_norm": True, "norm_layer": "Affine", "block_layer": "ResBlock", "mlp_ratio": 2.0},
        {"mlp_layer": "GluMlp", "act_layer": "silu", "mlp_ratio": 3.0},
        {"block_layer": "SpatialGatingBlock", "mlp_layer": "GatedMlp", "mlp_ratio": 2, "act_layer": "relu"},
        {"global_pool": "", "num_classes": 0},
    ],
)
def test_options_as_timm(kwargs):
    acts = {"silu": nn.SiLU, "relu": nn.ReLU}
    names = ("block_layer", "mlp_layer")
    theirs = {k: getattr(judge, v) if k in names or v == "Affine" else acts.get(v, v) for k, v in kwargs.items()}
    theirs = randomize(judge.MlpMixer(**(SMALL | theirs))).eval()
    ours = MlpMixer(**(SMALL | kwargs)).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 16, 24)
    assert relative_error(ours(x), theirs(x)) < 1e-5
    classes = {k: (BLOCKS | MLPS | {"Affine": Affine}).get(v, v) for k, v in kwargs.items()}
    by_class = MlpMixer(**(SMALL | classes)).eval()
    by_class.load_state_dict(ours.state_dict())
    assert torch.equal(by_class(x), ours(x))


def test_initial_values():
    assert torch.allclose(MlpMixer(**SMALL, nlhb=True).head.bias, -torch.tensor(5.0).log())
    block = MlpMixer(**SMALL, block_layer="ResBlock", mlp_ratio=2, init_values=0.25).blocks[1]
    assert block.ls1.eq(0.25).all()
    assert block.ls2.eq(0.25).all()
    gates = [m for m in MlpMixer(**SMALL, **GMLP).modules() if isinstance(m, SpatialGatingUnit)]
    assert len(gates) == 2
    assert all(gate.proj.bias.eq(1).all() and gate.proj.weight.abs().max() < 1e-4 for gate in gates)
    fc1 = MlpMixer(**SMALL, mlp_layer="GluMlp").blocks[0].mlp_channels.fc1
    assert fc1.bias[32:].eq(1).all()
    assert not fc1.bias[:32].eq(1).any()


GMLP = {"block_layer": "SpatialGatingBlock", "mlp_layer": "GatedMlp", "mlp_ratio": 2}


def test_dropouts_act():
    x = torch.randn(4, 3, 16, 24)
    for name in ("proj_drop_rate", "drop_path_rate", "drop_rate"):
        model = randomize(MlpMixer(**SMALL, **{name: 0.5})).train()
        assert not torch.equal(model(x), model(x)), name


def test_resmlp_layout_as_timm():
    model = opsin.create_model("resmlp_12_224", num_classes=5)
    today = randomize(model).state_dict()
    old = {}
    for key, value in today.items():
        for new, name in (("stem.", "patch_embed."), ("linear_tokens.", "attn."), ("mlp_channels.", "mlp.")):
            key = key.replace(new, name)
        key = key.replace(".ls1", ".gamma_1").replace(".ls2", ".gamma_2")
        old[key] = value.flatten() if key.endswith(("alpha", "beta")) else value
    wanted, got = judge.checkpoint_filter_fn(old, model), adapt(old, model)
    assert got.keys() == wanted.keys() == today.keys()
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)
    assert adapt(today, model) is today


def test_flax_layout():
    model = MlpMixer(**SMALL)
    today = randomize(model).state_dict()
    flax = {"stem/kernel": today["stem.proj.weight"].permute(2, 3, 1, 0), "stem/bias": today["stem.proj.bias"]}
    for ours, theirs in (("norm", "pre_head_layer_norm"), *((f"blocks.{i}.norm{j + 1}", f"MixerBlock_{i}/LayerNorm_{j}")
                                                             for i in (0, 1) for j in (0, 1))):  # fmt: skip
        flax |= {f"{theirs}/scale": today[f"{ours}.weight"], f"{theirs}/bias": today[f"{ours}.bias"]}
    dense = [("head", "head")]
    for i in (0, 1):
        for ours, theirs in (("mlp_tokens", "token_mixing"), ("mlp_channels", "channel_mixing")):
            dense += [(f"blocks.{i}.{ours}.fc{j + 1}", f"MixerBlock_{i}/{theirs}/Dense_{j}") for j in (0, 1)]
    for ours, theirs in dense:
        flax |= {f"{theirs}/kernel": today[f"{ours}.weight"].T, f"{theirs}/bias": today[f"{ours}.bias"]}
    got = adapt(flax, model)
    assert got.keys() == today.keys()
    assert all(torch.equal(got[key], today[key]) for key in today)
