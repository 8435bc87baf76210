"""HRNet: several maps run along the chain side by side."""

import pytest
import torch
from support import build, images, randomize
from torch import nn

import opsin
from opsin.errors import UnknownArgumentError

timm = pytest.importorskip("timm")
ARCH = "hrnet_w18_small"


@pytest.mark.parametrize("location", ["incre", ""])
def test_feature_nets_as_the_judge_has_them(location):
    args = {"features_only": True, "feature_location": location}
    theirs = randomize(timm.create_model(ARCH, **args)).eval()
    ours = opsin.create_model(ARCH, **args).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert ours.feature_info.get_dicts() == theirs.feature_info.get_dicts()
    x = images("hrnet")
    with torch.inference_mode():
        for a, b in zip(ours(x), theirs(x), strict=True):
            assert torch.equal(a, b)


def test_levels_before_the_head_leave_the_logits_alone():
    x = images("hrnet")
    wide, plain = (randomize(build("hrnet", feature_location=where)).eval() for where in ("incre", ""))
    assert torch.equal(wide(x), plain(x))
    assert [row["num_chs"] for row in plain.feature_info] == [64, 16, 32, 64, 128]
    with pytest.raises(ValueError, match="feature_location"):
        build("hrnet", feature_location="stem")
    with pytest.raises(UnknownArgumentError, match="several maps leave stage2"):
        build("hrnet", feature_location="", features_only=True, out_indices=["stage2"])


def test_pruning_keeps_what_a_level_needs_and_no_more():
    net = build("hrnet", features_only=True, out_indices=(2,))
    assert [name for name, _ in net.incre_modules.named_children()] == ["0", "1"]
    assert not any(name.startswith(("downsamp_modules", "final_layer")) for name, _ in net.named_parameters())


def test_freezing_up_to_a_level_freezes_its_branch_only():
    model = build("hrnet")
    model.freeze_stages(2)
    learning = {name.rpartition(".")[0].split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {"incre_modules", "downsamp_modules", "final_layer", "classifier"}
    assert not model.incre_modules[0][0].conv1.weight.requires_grad
    assert model.incre_modules[1][0].conv1.weight.requires_grad


def test_sizes_that_do_not_halve_evenly():
    model = build("hrnet").eval()
    assert [tuple(m.shape[2:]) for m in model.forward_intermediates(torch.zeros(1, 3, 70, 90))[1]] == [
        (35, 45), (18, 23), (9, 12), (5, 6), (3, 3)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "key", "shape"),
    [
        ({"num_modules": (1, 2, 1, 1)}, "stage2.1.fuse_layers.0.1.0.weight", (16, 32, 1, 1)),
        ({"num_blocks": (2, 2, 2, 2)}, "layer1.1.conv1.weight", (32, 128, 1, 1)),
        ({"num_channels": (32, 24, 24, 24)}, "stage4.0.branches.3.0.conv1.weight", (192, 192, 3, 3)),
        ({"num_channels": (32, 16, 24, 24)}, "transition2.0.0.weight", (24, 16, 3, 3)),
    ],
)
def test_fields_act(change, key, shape):
    assert build("hrnet", **change).state_dict()[key].shape == shape
    model = build("hrnet", head_conv_bias=False)
    assert all(m.bias is None for m in model.modules() if isinstance(m, nn.Conv2d))
