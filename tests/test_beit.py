"""BEiT: every option acts, other sizes, checkpoints; beside the judge."""

import pytest
import torch
from support import randomize, relative_error

from opsin.models.beit import Beit, adapt

timm = pytest.importorskip("timm")
from timm.models import beit as judge  # noqa: E402

SMALL = {"num_classes": 5, "img_size": (32, 48), "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2}
BOTH = {"use_rel_pos_bias": True, "use_shared_rel_pos_bias": True}


def pair(**kwargs):
    theirs = randomize(judge.Beit(**(SMALL | kwargs))).eval()
    ours = Beit(**(SMALL | kwargs)).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"use_abs_pos_emb": False, "use_shared_rel_pos_bias": True, "qkv_bias": False},
        BOTH | {"init_values": 0.5},
        {"swiglu_mlp": True, "mlp_ratio": 2.0},
        {"swiglu_mlp": True, "scale_mlp": True},
        {"scale_mlp": True, "global_pool": "token"},
        {"use_fc_norm": False},
        {"use_fc_norm": True, "global_pool": "token", "norm_layer": torch.nn.LayerNorm},
        {"global_pool": "", "num_classes": 0},
    ],
)
def test_options_as_timm(kwargs):
    ours, theirs = pair(**kwargs)
    x = torch.randn(2, 3, 32, 48)
    assert relative_error(ours(x), theirs(x)) < 1e-5
    norm = isinstance(ours.norm, torch.nn.LayerNorm)
    (final, maps), (their_final, their_maps) = (model.forward_intermediates(x, norm=norm) for model in (ours, theirs))
    assert relative_error(final, their_final) < 1e-5
    assert relative_error(maps[0], their_maps[0]) < 1e-5


@pytest.mark.parametrize("kwargs", [BOTH, {"use_abs_pos_emb": False, "use_rel_pos_bias": True}])
@pytest.mark.parametrize(("change", "size"), [({"img_size": (64, 56)}, (64, 56)), ({"patch_size": 16}, (32, 48))])
def test_another_size_as_timm(kwargs, change, size):
    ours, theirs = pair(**kwargs)
    ours.set_input_size(**change)
    theirs.set_input_size(**change)
    x = torch.randn(2, 3, *size)
    assert relative_error(ours(x), theirs(x)) < 1e-4
    again = Beit(**{name: getattr(ours.config, name) for name in ours.config.names()}).eval()
    again.load_state_dict(ours.state_dict())
    assert torch.equal(again(x), ours(x))


def test_checkpoints_as_timm():
    ours, theirs = pair(**BOTH, img_size=(40, 40), patch_size=10)
    source = randomize(judge.Beit(**(SMALL | BOTH | {"img_size": 64}))).state_dict()
    source["blocks.0.attn.relative_position_index"] = torch.zeros(1)
    wanted, got = judge.checkpoint_filter_fn(dict(source), theirs), adapt(source, ours)
    assert got.keys() == wanted.keys() == ours.state_dict().keys()
    assert all(torch.allclose(got[key], wanted[key], atol=1e-5) for key in wanted)
    today = ours.state_dict()
    assert all(torch.equal(value, today[key]) for key, value in adapt(today, ours).items())


@pytest.mark.parametrize("kwargs", [{}, BOTH, {"use_shared_rel_pos_bias": True}])
def test_masks(kwargs):
    model = randomize(Beit(**(SMALL | kwargs))).eval()
    x = torch.randn(1, 3, 32, 48)
    ones = torch.ones(25, 25, dtype=torch.bool)
    causal = model(x, attn_mask=ones.tril())
    assert torch.allclose(model(x, is_causal=True), causal, atol=1e-6)
    added = torch.zeros(25, 25).masked_fill(~ones.tril(), -torch.inf)
    assert torch.allclose(model(x, attn_mask=added), causal, atol=1e-6)
    assert torch.allclose(model(x, attn_mask=ones), model(x), atol=1e-6)
    assert not torch.allclose(causal, model(x), atol=1e-3)


def test_initial_values_and_drop_rates():
    x = torch.randn(4, 3, 32, 48)
    for name in ("pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "drop_rate"):
        model = randomize(Beit(**SMALL, **{name: 0.5})).train()
        assert not torch.equal(model(x), model(x)), name
    assert Beit(**SMALL, head_init_scale=0.0).head.weight.eq(0).all()
    assert Beit(**SMALL, init_values=0.5).blocks[1].gamma_2.eq(0.5).all()
    norms = [block.mlp.fc2.weight.std() for block in Beit(**(SMALL | {"embed_dim": 64, "depth": 4})).blocks]
    assert 1.8 < norms[0] / norms[3] < 2.2


def test_the_norm_stays_where_it_is():
    model = Beit(**SMALL, global_pool="token")
    model.reset_classifier(3, "avg")
    assert isinstance(model.norm, torch.nn.LayerNorm)
    assert model.config.use_fc_norm is False
