"""VoVNet: what its arguments do."""

import pytest
import torch
from torch import nn

import opsin
from opsin.layers.channel_attn import EffectiveSEModule, SEModule

SMALL = {"stage_conv_chs": (8, 8, 8, 8), "stage_out_chs": (16, 16, 16, 16), "num_classes": 3}


def count(model, kind):
    return sum(isinstance(m, kind) for m in model.modules())


def test_channel_attention_in_the_last_block_of_each_stage():
    assert count(opsin.create_model("ese_vovnet39b", **SMALL), EffectiveSEModule) == 4
    assert count(opsin.create_model("ese_vovnet39b", **SMALL, attn="se"), SEModule) == 4
    assert count(opsin.create_model("ese_vovnet39b", **SMALL, attn=""), EffectiveSEModule) == 0
    gate = EffectiveSEModule(4)
    x = torch.randn(2, 4, 5, 6)
    expected = x * nn.functional.hardsigmoid(gate.fc(x.mean((2, 3), keepdim=True)))
    assert torch.equal(gate(x), expected)


def test_shortcuts_past_all_blocks_but_the_first():
    blocks = opsin.create_model("ese_vovnet57b", **SMALL).stages[2].blocks
    assert [block.residual for block in blocks] == [False, True, True, True]
    assert not any(block.residual for block in opsin.create_model("vovnet57a", **SMALL).stages[2].blocks)
    block = blocks[1].eval()
    x = torch.randn(1, 16, 8, 8)
    with_shortcut = block(x)
    block.residual = False
    assert torch.allclose(with_shortcut, block(x) + x)


def test_dropped_blocks():
    model = opsin.create_model("ese_vovnet57b", **SMALL, drop_path_rate=0.4)
    assert model.stages[3].blocks[-1].drop_path.drop_prob == pytest.approx(0.4)
    assert isinstance(model.stages[0].blocks[0].drop_path, nn.Identity)


def test_activation_and_norm():
    model = opsin.create_model("ese_vovnet39b", **SMALL, act_layer="silu")
    assert count(model, nn.SiLU)
    assert not count(model, nn.ReLU)
    model = opsin.create_model("ese_vovnet39b", norm_layer="groupnorm")
    assert count(model, nn.GroupNorm)
    assert not count(model, nn.BatchNorm2d)


@pytest.mark.parametrize("args", [{"stem_chs": (64, 64)}, {"block_per_stage": (1, 1)}])
def test_impossible_figures_are_refused(args):
    with pytest.raises(ValueError, match="VovNet needs"):
        opsin.create_model("ese_vovnet39b", **args)
