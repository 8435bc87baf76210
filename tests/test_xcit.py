"""XCiT: checkpoints of the paper's own code, and that every figure of its Config acts."""

import pytest
import torch

from opsin.errors import UnknownArgumentError
from opsin.models import xcit
from opsin.models.xcit import Xcit

SMALL = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize("positions", [True, False])
def test_original_layout(positions):
    judge = pytest.importorskip("timm.models.xcit")
    model = Xcit(**SMALL, use_pos_embed=positions)
    state = model.state_dict()
    assert xcit.adapt(state, model) is state
    old = {k.replace("pos_embed.", "pos_embeder."): v for k, v in Xcit(**SMALL).state_dict().items()}
    for i in range(2):
        for kind in ("weight", "bias"):
            parts = [old.pop(f"cls_attn_blocks.{i}.attn.{letter}.{kind}") for letter in "qkv"]
            old[f"cls_attn_blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
    wanted = judge.checkpoint_filter_fn(dict(old), model)
    read = xcit.adapt(old, model)
    assert set(read) == set(wanted) == set(state)
    assert all(torch.equal(read[key], value) for key, value in wanted.items())


@pytest.mark.parametrize(
    "change",
    [
        {"qkv_bias": False},
        {"patch_size": 16},
        {"mlp_ratio": 2.0},
        {"norm_layer": "rmsnorm"},
        {"cls_attn_layers": 1},
        {"use_pos_embed": False},
        {"eta": None},
    ],
)
def test_fields_change_the_model(change):
    base = Xcit(**SMALL).state_dict()
    other = Xcit(**SMALL | change).state_dict()
    assert {k: v.shape for k, v in base.items()} != {k: v.shape for k, v in other.items()}


@pytest.mark.parametrize("change", [{"tokens_norm": True}, {"act_layer": "relu"}, {"global_pool": "avg"}])
def test_fields_change_the_numbers(change):
    base, other = Xcit(**SMALL).eval(), Xcit(**SMALL, **change).eval()
    for weight in base.parameters():
        torch.nn.init.normal_(weight)
    other.load_state_dict(base.state_dict())
    x = torch.randn(1, 3, 40, 56)
    assert not torch.equal(base(x), other(x))


@pytest.mark.parametrize("rate", ["pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"])
def test_rates_act_in_training_only(rate):
    model = Xcit(**SMALL, **{rate: 0.5})
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    x = torch.randn(8, 3, 32, 32)
    assert not torch.equal(model.train()(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_patches_as_tokens_or_maps():
    model, x = Xcit(**SMALL).eval(), torch.randn(1, 3, 40, 56)
    tokens = model.forward_intermediates(x, 1, output_fmt="NLC", intermediates_only=True)[0]
    grid = model.forward_intermediates(x, 1, intermediates_only=True)[0]
    assert tokens.shape == (1, 35, 16)
    assert torch.equal(grid.flatten(2).transpose(1, 2), tokens)


def test_patch_sizes():
    with pytest.raises(UnknownArgumentError, match="8 and 16"):
        Xcit(patch_size=32)
