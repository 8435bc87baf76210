"""RegNet: the rule of widths, each argument beside the judge, and the layouts of torchvision and SEER."""

import pytest
import torch
from support import randomize, relative_error

import opsin
from opsin.errors import UnknownArgumentError
from opsin.models.regnet import Config, adapt, stage_plan

timm = pytest.importorskip("timm")

SMALL = {"w0": 16, "wa": 16.0, "wm": 2.0, "depth": 8, "group_size": 8, "num_classes": 5}
PATHS = {
    "plain": {},
    "avg": {"downsample": "avg"},
    "no_shortcut": {"downsample": ""},
    "avg_stride_8": {"downsample": "avg", "output_stride": 8},
    "stride_16": {"output_stride": 16},
    "preact": {"preact": True, "act_layer": "silu", "se_ratio": 0.25},
    "preact_avg_stride_8": {"preact": True, "downsample": "avg", "output_stride": 8},
    "preact_closing": {"preact": True, "num_features": 40},
    "linear": {"linear_out": True, "bottle_ratio": 2.0},
    "closing": {"linear_out": True, "num_features": 40, "stem_width": 16},
    "torchvision_rule": {"group_min_ratio": 0.9, "w0": 24, "wa": 24.0, "group_size": 20},
    "max_pool": {"global_pool": "max"},
}


@pytest.mark.parametrize("path", PATHS)
@torch.no_grad()
def test_same_numbers(path):
    args = SMALL | PATHS[path]
    theirs = randomize(timm.create_model("regnetx_002", **args)).eval()
    ours = opsin.create_model("regnetx_002", **args).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 62, 95, generator=torch.Generator().manual_seed(0))
    (final_a, maps_a), (final_b, maps_b) = ours.forward_intermediates(x), theirs.forward_intermediates(x)
    for a, b in zip([ours(x), final_a, *maps_a], [theirs(x), final_b, *maps_b], strict=True):
        assert relative_error(a, b) < 1e-5
    assert [f["reduction"] for f in ours.feature_info] == [f["reduction"] for f in theirs.feature_info]


def test_the_rule_of_widths():
    assert stage_plan(Config(depth=13, w0=24, wa=36.44, wm=2.49, group_size=8)) == [
        (24, 1, 8),
        (56, 1, 8),
        (152, 4, 8),
        (368, 7, 8),
    ]
    with pytest.raises(ValueError, match="multiple of 8"):
        stage_plan(Config(w0=20))
    with pytest.raises(UnknownArgumentError, match="conv1x1"):
        opsin.create_model("regnetx_002", downsample="average")


def test_zeroed_ends_and_norm_arguments():
    block = opsin.create_model("regnetx_002").s1.b1
    assert not block.conv3.bn.weight.any()
    assert opsin.create_model("regnetx_002", zero_init_last=False).s1.b1.conv3.bn.weight.all()
    named = opsin.create_model("regnetx_002", norm_layer="groupnorm", norm_args={"group_size": 4})
    assert named.s1.b1.conv1.bn.num_groups == 6
    drops = opsin.create_model("regnetx_002", drop_path_rate=0.5)
    assert drops.s4.b7.drop_path.drop_prob == 0.5


PAIRS = {  # of one stage: torchvision's part, today's
    "proj.0.weight": "downsample.conv.weight",
    "proj.1.running_mean": "downsample.bn.running_mean",
    "f.a.0.weight": "conv1.conv.weight",
    "f.a.1.bias": "conv1.bn.bias",
    "f.b.0.weight": "conv2.conv.weight",
    "f.b.1.weight": "conv2.bn.weight",
    "f.c.0.weight": "conv3.conv.weight",
    "f.c.1.weight": "conv3.bn.weight",
}


def same(ours, theirs):
    assert list(ours) == list(theirs)
    assert all(ours[k] is theirs[k] for k in ours)


def test_torchvision_layout():
    from timm.models.regnet import _filter_fn

    parts = [*PAIRS, "f.se.fc1.weight", "f.se.fc2.bias"]
    names = [f"trunk_output.block{s}.block{s}-{b}.{part}" for s in (1, 4) for b in (0, 11) for part in parts]
    names += ["stem.0.weight", "stem.1.num_batches_tracked", "fc.weight", "fc.bias"]
    state = {name: torch.randn(2) for name in names}
    adapted = adapt(state, None)
    same(adapted, _filter_fn(state))
    assert adapted["s4.b12.se.fc2.bias"] is state["trunk_output.block4.block4-11.f.se.fc2.bias"]
    for theirs, ours in PAIRS.items():
        assert adapted[f"s1.b1.{ours}"] is state[f"trunk_output.block1.block1-0.{theirs}"]


def test_seer_layout():
    from timm.models.regnet import _filter_fn

    parts = ["proj.weight", "bn.weight", "f.a.0.weight", "f.a.1.bias", "f.b.0.weight", "f.b.1.weight"]
    parts += ["f.c.weight", "f.final_bn.weight", "f.se.excitation.0.weight", "f.se.excitation.2.bias"]
    names = [f"_feature_blocks.res{s + 1}.block{s}-{b}.{part}" for s in (1, 4) for b in (0, 10) for part in parts]
    names += ["_feature_blocks.conv1.stem.0.weight", "_feature_blocks.conv1.stem.1.running_var"]
    trunk = {name: torch.randn(2) for name in names}
    heads = {
        k: torch.randn(2) for k in ("0.clf.0.weight", "0.clf.0.bias", "0.projection_head.0.weight", "prototypes.0")
    }
    state = {"classy_state_dict": {"base_model": {"model": {"trunk": trunk, "heads": heads}}}}
    adapted = adapt(state, None)
    same(adapted, _filter_fn(state))
    assert adapted["s4.b11.downsample.bn.weight"] is trunk["_feature_blocks.res5.block4-10.bn.weight"]
    assert "head.fc.bias" in adapted


def test_todays_layout_stays():
    state = opsin.create_model("regnety_002").state_dict()
    assert adapt(state, None) is state
