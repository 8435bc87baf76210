"""EfficientNet: its tables, its options, and what code that builds it directly passes."""

import json
from functools import partial

import pytest
import torch
from support import randomize, relative_error
from torch import nn

import opsin
from opsin.errors import UnknownArgumentError
from opsin.layers import BlurPool2d
from opsin.layers.channel_attn import GlobalContext
from opsin.layers.conv import Conv2dSame
from opsin.models import efficientnet
from opsin.models._efficientnet_blocks import InvertedResidual, SqueezeExcite
from opsin.models._efficientnet_tables import arch, change, deepen
from opsin.models.efficientnet import EfficientNet, decode_arch_def, round_channels

SMALL = arch("cn_c8_skip er_s2_e2_c8 ir_r2_k5_s2_e2_c16_se0.25 ds_s2_c16 ir_s2_e2_c24")


def small(**kwargs):
    torch.manual_seed(0)
    return EfficientNet(**({"block_args": SMALL, "num_features": 32, "stem_size": 8, "num_classes": 5} | kwargs))


# beside test_parity, which goes by the words of a config: one for each kind of table, at a size that nothing divides
TABLES = [
    "efficientnet_b0_g8_gn", "efficientnet_es", "efficientnet_x_b3", "efficientnet_cc_b0_4e",
    "tf_efficientnet_cc_b0_4e", "tf_efficientnet_b0", "mixnet_s", "tf_mixnet_s", "mnasnet_small", "semnasnet_050",
    "mobilenetv1_100h", "fbnetc_100", "spnasnet_100", "mobilenet_edgetpu_v2_xs", "tinynet_e",
]  # fmt: skip


@pytest.mark.parametrize("arch_name", TABLES)
def test_same_numbers_at_odd_sizes(arch_name):
    timm = pytest.importorskip("timm")
    theirs = randomize(timm.create_model(arch_name, num_classes=7)).eval()
    ours = opsin.create_model(arch_name, num_classes=7).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 75, 101, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        (final, maps), (their_final, their_maps) = ours.forward_intermediates(x), theirs.forward_intermediates(x)
        assert relative_error(ours.forward_head(final), theirs.forward_head(their_final)) < 1e-5
        for a, b in zip([final, *maps], [their_final, *their_maps], strict=True):
            assert a.shape == b.shape
            assert relative_error(a, b) < 1e-5


@pytest.mark.parametrize("arch_name", ["tf_efficientnet_b0", "mixnet_s"])
@pytest.mark.parametrize("output_stride", [8, 16])
def test_output_stride_trades_stride_for_dilation(arch_name, output_stride):
    timm = pytest.importorskip("timm")
    theirs = randomize(timm.create_model(arch_name, num_classes=7, output_stride=output_stride)).eval()
    ours = opsin.create_model(arch_name, num_classes=7, output_stride=output_stride).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps = ours.forward_intermediates(x, intermediates_only=True)
        assert relative_error(ours(x), theirs(x)) < 1e-5
    assert [row["reduction"] for row in ours.feature_info] == [64 // m.shape[-2] for m in maps]
    assert maps[-1].shape[-2] == 64 // output_stride
    with pytest.raises(ValueError, match="output_stride=4"):
        opsin.create_model(arch_name, output_stride=4)


def test_strings_of_the_field_give_our_tables():
    rows = decode_arch_def(
        [["ir_r2_k3.5_a1.1_p1.1_s2_e6_c40_se0.25_nsw"], ["er_r1_k5_e4_c24_fc16_noskip"], ["cn_k1_c8_skip"]]
    )
    assert rows[0][0] == {
        "block_type": "ir", "repeats": 2, "dw_kernel_size": [3, 5], "exp_kernel_size": [1, 1], "pw_kernel_size": [1, 1],
        "stride": 2, "exp_ratio": 6.0, "out_chs": 40, "se_ratio": 0.25, "act_layer": "silu",
    }  # fmt: skip
    assert rows[1][0] == {
        "block_type": "er", "repeats": 1, "exp_kernel_size": 5, "exp_ratio": 4.0, "out_chs": 24, "force_in_chs": 16,
        "noskip": True,
    }  # fmt: skip
    assert rows[2][0] == {"block_type": "cn", "repeats": 1, "kernel_size": 1, "out_chs": 8, "skip": True}
    for wrong in ("ir_r2_q3", "ir_nxx", "ir_3"):
        with pytest.raises(UnknownArgumentError, match=wrong.split("_")[-1]):
            decode_arch_def([[wrong]])


def repeats(stages):
    return [[row.get("repeats", 1) for row in rows] for rows in stages]


def test_depth_is_shared_among_the_rows_of_a_stage():
    stages = arch("ir_c8 ir_c8+ir_r3_c8 ir_r4_c8")
    assert repeats(deepen(stages, 1.2)) == [[2], [1, 4], [5]]
    assert repeats(deepen(stages, 1.2, "round")) == [[1], [1, 4], [5]]
    assert repeats(deepen(stages, 2.0)) == [[2], [2, 6], [8]]
    assert repeats(deepen(stages, 2.0, keep=(0, -1))) == [[1], [2, 6], [4]]
    assert repeats(deepen(stages, 0.1)) == [[1], [1, 1], [1]]
    assert repeats(stages) == [[1], [1, 3], [4]]  # what is given stays as it is
    assert repeats(decode_arch_def([["ir_c8"], ["ir_r3_c8"], ["ir_c8"]], 2.0, fix_first_last=True)) == [[1], [6], [1]]


def test_width_rounding():
    assert round_channels(1280, 1.1, 8, None) == 1408
    assert round_channels(24, 0.35) == 8
    assert round_channels(16, 1.1) == 16
    assert round_channels(100, 0.84, 16) == 80
    assert round_channels(100, 0.715, 16) == 80
    assert round_channels(100, 0.715, 16, round_limit=0.0) == 64
    assert round_channels(8, 0.5, 8, 16) == 16
    assert stem(small(channel_multiplier=1.4)) == 16
    assert stem(small(channel_multiplier=1.4, round_limit=0.0)) == 8


def test_built_directly_with_the_keywords_of_the_field():
    model = EfficientNet(
        block_args=[
            [{"block_type": "ds", "out_chs": 16, "stride": 1, "dw_kernel_size": 3, "se_ratio": None}],
            [{"block_type": "ir", "out_chs": 24, "stride": 2, "exp_ratio": 4.0, "act_layer": nn.ReLU6}] * 2,
        ],
        num_features=round_channels(64, 1.5),
        stem_size=16,
        round_chs_fn=partial(round_channels, multiplier=1.5),
        norm_layer=partial(nn.BatchNorm2d, eps=1e-3),
        act_layer=nn.SiLU,
        num_classes=3,
        drop_rate=0.2,
    )
    assert (model.conv_stem.out_channels, model.bn1.eps, type(model.bn1.act)) == (24, 1e-3, nn.SiLU)
    assert [block.conv_dw.stride for block in model.blocks[1]] == [(2, 2), (1, 1)]
    assert isinstance(model.blocks[1][0].bn1.act, nn.ReLU6)
    assert model.num_features == 96
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert isinstance(model.classifier, nn.Linear)  # the module, not its path
    assert EfficientNet(SMALL, 3, 16, 1).conv_stem.in_channels == 1  # by place


def test_wrong_tables_say_what_is_wrong():
    with pytest.raises(UnknownArgumentError, match="out_chs"):
        small(block_args=[[{"block_type": "ir", "out_ch": 8}]])
    with pytest.raises(UnknownArgumentError, match="'irr'"):
        small(block_args=[[{"block_type": "irr", "out_chs": 8}]])
    with pytest.raises(ValueError, match="block_args"):
        EfficientNet()
    with pytest.raises(ValueError, match="group_size=7"):
        small(block_args=change(SMALL, 2, group_size=7))
    with pytest.raises(UnknownArgumentError, match="no se_layer 'sse'"):
        small(se_layer="sse")


def test_stochastic_depth_rises_over_the_blocks_that_have_a_shortcut():
    blocks = [b for stage in small(drop_path_rate=0.6).blocks for b in stage]
    rates = [getattr(b.drop_path, "drop_prob", 0.0) for b in blocks]
    assert rates == pytest.approx([0.0, 0.0, 0.0, 0.3, 0.0, 0.0])  # block 3 of 6 alone neither strides nor widens


def test_noskip_and_skip():
    x = torch.randn(1, 8, 8, 8)
    with_skip, without = (small(block_args=arch(t)).eval().blocks[0][0] for t in ("ir_c8_e2", "ir_c8_e2_noskip"))
    without.load_state_dict(with_skip.state_dict())
    assert torch.allclose(with_skip(x), without(x) + x)
    assert small(block_args=arch("cn_c8_skip")).blocks[0][0].has_skip
    assert not small(block_args=arch("cn_c8")).blocks[0][0].has_skip
    assert not small(block_args=arch("dsa_c8")).blocks[0][0].has_skip


def stem(model):
    return model.conv_stem.out_channels


def third(model):
    return model.blocks[2][0].conv_pwl.out_channels


def groups(model):
    return getattr(model.bn1, "num_groups", None)


def blurs(model):
    return sum(isinstance(module, BlurPool2d) for module in model.modules())


EFFECTS = {  # option: where its effect shows
    "pad_type": ({"pad_type": "same"}, lambda m: type(m.conv_stem), nn.Conv2d, Conv2dSame),
    "multiplier": ({"channel_multiplier": 2.0}, lambda m: (stem(m), third(m)), (8, 16), (16, 32)),
    "fix_stem": ({"fix_stem": True, "channel_multiplier": 2.0}, lambda m: (stem(m), third(m)), (8, 16), (8, 32)),
    "divisor": ({"divisor": 16}, stem, 8, 16),
    "stem_kernel_size": ({"stem_kernel_size": 5}, lambda m: m.conv_stem.kernel_size, (3, 3), (5, 5)),
    "num_features": ({"num_features": 0}, lambda m: m.classifier.in_features, 32, 24),
    "norm": ({"norm_layer": "groupnorm", "norm_args": {"group_size": 4}}, groups, None, 2),
    "norm_args": ({"norm_args": {"eps": 0.5}}, lambda m: m.bn2.eps, 1e-5, 0.5),
    "aa_layer": (
        {"aa_layer": "blurpc"},
        lambda m: (m.blocks[1][0].conv_exp.stride, blurs(m)),
        ((2, 2), 0),
        ((1, 1), 4),
    ),
    "se_layer": ({"se_layer": "gc"}, lambda m: type(m.blocks[2][0].se), SqueezeExcite, GlobalContext),
    "act_layer": ({"act_layer": "hard_swish"}, lambda m: type(m.bn1.act), nn.ReLU, nn.Hardswish),
}


@pytest.mark.parametrize("option", EFFECTS)
def test_each_option_has_its_effect(option):
    change_of, look, before, after = EFFECTS[option]
    assert look(small()) == before
    model = small(**change_of).eval()
    assert look(model) == after
    assert model(torch.randn(1, 3, 37, 64)).shape == (1, 5)


def test_initial_values_go_by_fan_out():
    torch.manual_seed(0)
    model = opsin.create_model("efficientnet_b0", num_classes=400)
    block = next(b for b in model.blocks[5] if isinstance(b, InvertedResidual))
    assert block.conv_pw.weight.std().item() == pytest.approx((2 / block.conv_pw.out_channels) ** 0.5, rel=0.05)
    assert block.conv_dw.weight.std().item() == pytest.approx((2 / 25) ** 0.5, rel=0.05)  # a depthwise kernel: its own
    assert model.classifier.weight.abs().max().item() == pytest.approx(400**-0.5, rel=1e-3)
    assert model.classifier.bias.abs().max() == 0


def test_levels_of_space_to_depth_begin_at_the_stem():
    with torch.device("meta"):
        model = efficientnet.EfficientNet(block_args=efficientnet.X, num_features=0)
    assert [row["module"] for row in model.feature_info] == ["bn1", "blocks.1", "blocks.2", "blocks.4", "blocks.6"]
    assert [row["reduction"] for row in model.feature_info] == [2, 4, 8, 16, 32]


def test_feature_nets_keep_the_names_of_the_model():
    net = opsin.create_model("test_efficientnet", features_only=True, out_indices=(1, 3))
    whole = opsin.create_model("test_efficientnet").state_dict()
    assert set(net.state_dict()) < set(whole)
    assert {k.split(".")[1] for k in net.state_dict() if k.startswith("blocks")} == {"0", "1", "2", "3"}


def test_config_survives_json():
    for name in ("tf_mixnet_s", "efficientnet_cc_b0_4e", "test_efficientnet_evos"):
        config = json.loads(json.dumps(efficientnet.VARIANTS[name].to_dict()))
        with torch.device("meta"):
            again = EfficientNet(**config)
            first = opsin.create_model(name)
        assert {k: v.shape for k, v in again.state_dict().items()} == {
            k: v.shape for k, v in first.state_dict().items()
        }
