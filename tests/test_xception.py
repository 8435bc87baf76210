"""Xception: levels that lie inside of blocks, dilation for stride, and the fields of its config."""

import pytest
import torch
from support import build, images, randomize, relative_error

import opsin

timm = pytest.importorskip("timm")


@pytest.mark.parametrize(("arch", "stride"), [("xception71", 32), ("xception41", 16), ("xception41p", 8)])
@torch.inference_mode()
def test_tables_and_dilation_beside_the_judge(arch, stride):
    theirs = randomize(timm.create_model(arch, num_classes=3, output_stride=stride)).eval().double()
    ours = opsin.create_model(arch, num_classes=3, output_stride=stride).eval().double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, maps = ours.forward_intermediates(x)
    for a, b in zip(maps, theirs.forward_intermediates(x, intermediates_only=True), strict=True):
        assert a.shape == b.shape
        assert relative_error(a, b) < 1e-9
    assert [row["reduction"] for row in ours.feature_info] == [row["reduction"] for row in theirs.feature_info]


def test_feature_nets_have_the_names_of_the_judges():
    theirs = timm.create_model("xception41", features_only=True)
    ours = opsin.create_model("xception41", features_only=True)
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_a_level_inside_of_a_block_keeps_that_block():
    net = build("xception_aligned", features_only=True, out_indices=(1,))
    assert [name for name, _ in net.named_children()] == ["stem_0", "stem_1", "blocks_0", "blocks_1"]
    net = build("xception", features_only=True, out_indices=(1,))
    assert [name for name, _ in net.named_children()][-1] == "block1"


@pytest.mark.parametrize("change", [{"act_layer": "silu"}, {"norm_eps": 0.3}, {"output_stride": 16}])
def test_fields_act(change):
    x = images("xception_aligned", batch=1)
    plain = randomize(build("xception_aligned")).eval()
    changed = build("xception_aligned", **change).eval()
    changed.load_state_dict(plain.state_dict())
    assert not torch.equal(changed(x), plain(x))


def test_stochastic_depth_and_norms():
    model = build("xception_aligned", drop_path_rate=0.2)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.blocks]
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0.2)
    assert not any("running_mean" in key for key in build("xception_aligned", norm_layer="layernorm2d").state_dict())
    with pytest.raises(ValueError, match="output_stride"):
        build("xception_aligned", output_stride=4)
