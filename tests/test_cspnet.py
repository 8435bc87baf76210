"""CSPNet: what its arguments do."""

import pytest
import torch
from support import randomize, relative_error
from torch import nn

import opsin
from opsin.errors import UnknownArgumentError

timm = pytest.importorskip("timm")


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("cs3darknet_focus_s", {"output_stride": 8}),
        ("cs3darknet_focus_s", {"act_layer": "relu"}),
        ("darknet17", {"aa_layer": "avg", "output_stride": 16}),
        ("cspresnet50", {"output_stride": 16, "norm_layer": "groupnorm"}),
    ],
)
def test_arguments_act_as_in_the_judge(name, args):
    theirs = randomize(timm.create_model(name, num_classes=3, **args)).eval().double()
    ours = opsin.create_model(name, num_classes=3, **args).eval().double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        assert relative_error(ours(x), theirs(x)) < 1e-9
    assert [row["reduction"] for row in ours.feature_info] == [row["reduction"] for row in theirs.feature_info]


def test_residual_branches_start_at_zero_and_drop():
    model = opsin.create_model("cs3darknet_focus_s", drop_path_rate=0.2)
    block = model.stages[-1].blocks[-1]
    assert not block.conv2.bn.weight.any()
    assert block.drop_path.drop_prob == pytest.approx(0.2)
    model = opsin.create_model("cs3darknet_focus_s", zero_init_last=False)
    assert model.stages[-1].blocks[-1].conv2.bn.weight.all()


def test_default_levels_are_the_published_ones():
    with torch.device("meta"):
        net = opsin.create_model("sedarknet21", features_only=True)
    assert net.feature_info.out_indices == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ({"output_stride": 4}, ValueError),
        ({"stage_type": "cs4"}, UnknownArgumentError),
        ({"num_blocks": (1, 1)}, ValueError),
        ({"block_ratio": 0.4}, ValueError),
        ({"stem_stride": 3}, ValueError),
    ],
)
def test_impossible_figures_are_refused(args, error):
    with pytest.raises(error), torch.device("meta"):
        opsin.create_model("cspresnet50", **args)


def test_dropout_of_the_head():
    assert any(
        isinstance(m, nn.Dropout) and m.p == 0.3 for m in opsin.create_model("darknet17", drop_rate=0.3).modules()
    )
