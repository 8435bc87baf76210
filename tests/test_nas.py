"""NASNet and PNASNet: padding as TensorFlow's or symmetric, sizes from few figures, hooks inside of cells."""

import pytest
import torch
from support import build, images, randomize, relative_error

import opsin
from opsin.errors import UnknownArgumentError

timm = pytest.importorskip("timm")
SMALL = {"stem_size": 8, "num_features": 192, "num_classes": 3}


@pytest.mark.parametrize("pad_type", ["same", ""])
@pytest.mark.parametrize("size", [(65, 72), (97, 130)])
@torch.inference_mode()
def test_paddings_beside_the_judge(pad_type, size):
    theirs = randomize(timm.models.nasnet.NASNetALarge(pad_type=pad_type, **SMALL)).eval().double()
    ours = opsin.create_model("nasnetalarge", pad_type=pad_type, **SMALL).eval().double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, maps = ours.forward_intermediates(x)
    for a, b in zip(maps, theirs.forward_intermediates(x, intermediates_only=True), strict=True):
        assert a.shape == b.shape
        assert relative_error(a, b) < 1e-9


def test_sizes_follow_from_few_figures():
    model = build("nasnet", channel_multiplier=3, num_features=6 * 9 * 12)
    assert [row["num_chs"] for row in model.feature_info] == [8, 4, 72, 216, 648]
    assert model.forward_features(images("nasnet")).shape[1] == model.num_features == 648
    assert model.conv0.conv.out_channels == 8
    assert [row["num_chs"] for row in build("pnasnet").feature_info] == [8, 10, 40, 80, 160]
    with pytest.raises(ValueError, match="3 channels"):
        build("nasnet", channel_multiplier=3, num_features=6 * 9 * 9)
    with pytest.raises(UnknownArgumentError, match="pad_type"):
        build("nasnet", pad_type="valid")


def test_cells_can_be_hooked_as_they_are():
    names = ["cell_3", "cell_stem_1.conv_1x1.act"]
    net = build("nasnet", features_only=True, out_indices=names).eval()
    cell, level = net(images("nasnet"))
    assert cell.min() < 0
    assert level.min() == 0
    assert net.feature_info.reduction() == [8, 4]


def test_pruning_ends_behind_the_level():
    net = build("nasnet", features_only=True, out_indices=(2,))
    names = [name for name, _ in net.named_children()]
    assert names[-1] == "cell_5"
