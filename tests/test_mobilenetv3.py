"""MobileNetV3 and V4: options, tables, and what code that builds them directly passes."""

import json
from functools import partial

import pytest
import torch
from torch import nn

import opsin
from opsin.models import mobilenetv3
from opsin.models._efficientnet_blocks import MobileAttention, SqueezeExcite, UniversalInvertedResidual
from opsin.models._efficientnet_tables import Row, arch, decode_row, round_channels
from opsin.models.mobilenetv3 import MobileNetV3

SMALL = arch("ds_s2_c16_se0.25 ir_k5_s2_e3_c24_se0.25 uir_a3_k5_s2_e2_c24+mqa_h2_d8_v2_c24+uir_k0_p3_c24 cn_k1_c40")


def small(**kwargs):
    torch.manual_seed(0)
    return MobileNetV3(**({"block_args": SMALL, "num_features": 48, "stem_size": 8, "num_classes": 5} | kwargs))


def squeezed(model):
    return model.blocks[1][0].se.conv_reduce.out_channels  # of 48 inside, 16 at the input


EFFECTS = {  # option: where its effect shows
    "head_bias": ({"head_bias": False}, lambda m: m.conv_head.bias is None, False, True),
    "head_norm": ({"head_norm": True}, lambda m: isinstance(m.norm_head, nn.BatchNorm2d), False, True),
    "num_features": ({"num_features": 64}, lambda m: m.head_hidden_size, 48, 64),
    "se_from_exp": ({"se_from_exp": False}, squeezed, 12, 4),
    "se_rounded": ({"se_rounded": True}, squeezed, 12, 16),
    "se_args": ({"se_args": {"gate_layer": "tanh"}}, lambda m: type(m.blocks[0][0].se.gate), nn.Sigmoid, nn.Tanh),
    "layer_scale_init_value": (
        {"layer_scale_init_value": 0.5},
        lambda m: [m.blocks[2][i].layer_scale(torch.ones(1, 24, 1, 1)).max().item() for i in (0, 1)],
        [1.0, 1.0],
        [0.5, 0.5],
    ),
    "global_pool": ({"global_pool": "catavgmax"}, lambda m: m.conv_head.in_channels, 40, 80),
    "fix_stem": ({"channel_multiplier": 2.0, "fix_stem": True}, lambda m: m.conv_stem.out_channels, 8, 8),
    "aa_layer": ({"aa_layer": "avg"}, lambda m: m.blocks[2][0].dw_mid.conv.stride, (2, 2), (1, 1)),
}


@pytest.mark.parametrize("option", EFFECTS)
def test_each_option_has_its_effect(option):
    change_of, look, before, after = EFFECTS[option]
    assert look(small()) == before
    model = small(**change_of).eval()
    assert look(model) == after
    assert model(torch.randn(1, 3, 37, 64)).shape == (1, 5)


def test_built_directly_with_the_keywords_of_the_field():
    squeeze = partial(SqueezeExcite, gate_layer="hard_sigmoid", force_act_layer=nn.ReLU, rd_round_fn=round_channels)
    model = small(se_layer=squeeze, act_layer=nn.Hardswish, norm_layer=partial(nn.BatchNorm2d, eps=1e-3))
    se = model.blocks[1][0].se
    assert (se.conv_reduce.out_channels, type(se.act1), type(se.gate)) == (16, nn.ReLU, nn.Hardsigmoid)
    assert (type(model.bn1.act), model.bn1.eps) == (nn.Hardswish, 1e-3)
    assert MobileNetV3(SMALL, 3, 1, 8, True, 32).conv_stem.in_channels == 1  # by place


def test_strings_of_the_new_blocks():
    assert decode_row("uir_r2_a3_k5_p7_s2_e4_c96") == {
        "block_type": "uir", "repeats": 2, "dw_kernel_size_start": 3, "dw_kernel_size_mid": 5, "dw_kernel_size_end": 7,
        "stride": 2, "exp_ratio": 4.0, "out_chs": 96,
    }  # fmt: skip
    row = Row.make(decode_row("mqa_h4_d64_v2_c160"))
    assert (row.num_heads, row.key_dim, row.kv_stride, row.out_chs) == (4, 64, 2, 160)


def test_the_stride_of_a_universal_block_goes_to_one_convolution():
    for text, part in (("a3_k5", "dw_mid"), ("a3_k0", "dw_start"), ("k0_p3", "dw_end")):
        block = small(block_args=arch(f"uir_{text}_s2_e2_c16")).blocks[0][0]
        assert isinstance(block, UniversalInvertedResidual)
        strided = [name for name, m in block.named_modules() if getattr(m, "stride", (1, 1)) == (2, 2)]
        assert strided == [f"{part}.conv"]
    with pytest.raises(ValueError, match="depthwise convolution"):
        small(block_args=arch("uir_k0_s2_c16"))
    with pytest.raises(ValueError, match="keeps the size"):
        small(block_args=arch("mqa_s2_c16"))


def test_attention_sees_the_whole_map():
    block = small().eval().blocks[2][1]
    assert isinstance(block, MobileAttention)
    x = torch.randn(1, 24, 6, 6, requires_grad=True)
    block(x)[0, :, 0, 0].sum().backward()
    assert (x.grad.abs().sum(1) > 0).all()
    shares = small(block_args=arch("mqa_h2_c16")).blocks[0][0].attn  # no widths given: equal shares
    assert shares.key.proj.out_channels == shares.value.proj.out_channels == 8


def test_a_new_classifier_leaves_the_convolution_behind_the_pooling_alone():
    model = small()
    kept = model.conv_head
    model.reset_classifier(9)
    assert model.conv_head is kept
    model.reset_classifier(0, "")
    assert model(torch.randn(1, 3, 64, 64)).shape[1:] == (48, 4, 4)


def test_config_survives_json():
    for name in ("mobilenetv4_hybrid_medium", "fbnetv3_b", "hardcorenas_a"):
        with torch.device("meta"):
            first = opsin.create_model(name)
            again = MobileNetV3(**json.loads(json.dumps(first.config.to_dict())))
        assert {k: v.shape for k, v in again.state_dict().items()} == {
            k: v.shape for k, v in first.state_dict().items()
        }
    assert isinstance(mobilenetv3.lcnet_050, partial)
