"""TResNet: its authors' layout, its tiles, and weights for other input channels."""

import pytest
import torch
from support import randomize, relative_error

import opsin
from opsin.models.tresnet import SpaceToDepth, adapt

SMALL = {"layers": (1, 2, 1, 1), "width_factor": 0.25, "num_classes": 5}


def authors(model):
    """The model's values under the names of the authors' layout."""
    state = {}
    for key, value in model.state_dict().items():
        blurs = ("layer2.0.conv1", "layer3.0.conv2", "layer4.0.conv2")
        depth = ".0" if any(f"{b}." in key for b in blurs) else ""
        for ours, theirs in (("conv", "0"), ("bn", "1")):
            for part in ("conv1", "conv2", "conv3", "downsample.0", "downsample.1"):
                key = key.replace(f"{part}.{ours}.", f"{part}{depth}.{theirs}.")
        state[key] = value
    return state


def test_authors_layout():
    tresnet = pytest.importorskip("timm.models.tresnet")
    for v2 in (False, True):
        model = randomize(opsin.create_model("tresnet_m", **SMALL, v2=v2)).eval()
        state = authors(model)
        assert "body.layer2.0.conv1.0.0.weight" in state or v2
        ours, theirs = adapt(state, model), tresnet.checkpoint_filter_fn(state, model)
        assert list(ours) == list(theirs) == list(model.state_dict())
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
        today = model.state_dict()
        assert adapt(today, model) is today


def test_tiles_keep_every_pixel():
    x = torch.arange(2 * 3 * 8 * 12.0).view(2, 3, 8, 12)
    out = SpaceToDepth()(x)
    assert out.shape == (2, 48, 2, 3)
    for row, column, colour in ((0, 0, 0), (1, 2, 1), (3, 3, 2)):
        assert torch.equal(out[:, (4 * row + column) * 3 + colour], x[:, colour, row::4, column::4])
    with pytest.raises(ValueError, match="9x12"):
        SpaceToDepth()(torch.zeros(1, 3, 9, 12))


@torch.no_grad()
def test_weights_for_one_channel():
    source = randomize(opsin.create_model("tresnet_m", **SMALL)).eval()
    grey = opsin.create_model("tresnet_m", pretrained=source.state_dict(), in_chans=1, **SMALL).eval()
    x = torch.randn(1, 1, 64, 64)
    assert relative_error(grey(x), source(x.expand(-1, 3, -1, -1))) < 1e-5


def test_arguments_act():
    model = opsin.create_model("tresnet_m", **(SMALL | {"width_factor": 0.5}), drop_path_rate=0.4, global_pool="fast")
    assert model.body.conv1.conv.out_channels == 32
    assert model.body.layer4[0].drop_path.drop_prob == pytest.approx(0.4)
    assert model.head.global_pool.pool_type == "avg"
    assert not model.body.layer2[1].conv2.bn.weight.any()
