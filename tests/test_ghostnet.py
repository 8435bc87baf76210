"""GhostNet and RepGhostNet: options, merging of branches, the layout of V3's authors."""

import pytest
import torch
from support import randomize, relative_error
from torch import nn

import opsin
from opsin.errors import UnknownArgumentError
from opsin.inference.optimize import prepare_for_inference, report
from opsin.layers.reparam import merge_branches
from opsin.models.ghostnet import GhostNet, adapt
from opsin.models.repghost import RepGhostNet

ROWS = (((3, 16, 16, 0, 1), (3, 24, 24, 0.25, 2)), ((5, 32, 32, 0, 2), (3, 40, 32, 0, 1)))


def ghost(**kwargs):
    torch.manual_seed(0)
    return GhostNet(**({"cfgs": ROWS, "num_classes": 5} | kwargs))


@pytest.mark.parametrize("kind", ["v3", "rep"])
def test_merging_keeps_the_numbers(kind):
    model = ghost(version="v3") if kind == "v3" else RepGhostNet(cfgs=ROWS, num_classes=5)
    model = randomize(model).eval().double()
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    ready = prepare_for_inference(model, example_input=x)
    assert not [name for name, _ in ready.named_modules() if "rpr" in name or "fusion" in name]
    assert report(ready).reparameterized > 0
    assert not report(ready).undone
    with torch.inference_mode():
        assert relative_error(ready(x), model(x)) < 1e-9


def test_branches_of_all_kinds_merge_into_one_convolution():
    for groups, stride in ((1, 1), (4, 1), (8, 2)):
        convs = [nn.Conv2d(8, 8, k, stride, k // 2, groups=groups, bias=k == 3).double() for k in (1, 5, 3)]
        norms = [randomize(nn.BatchNorm2d(8)).double().eval() for _ in convs]
        pairs = [*zip(convs[:2], norms[:2], strict=True), (convs[2], None)]
        if stride == 1:
            pairs += [(None, norms[2]), (None, None)]
        x = torch.randn(1, 8, 9, 11, dtype=torch.float64)
        parts = [conv(x) if conv else x for conv, _ in pairs]
        expected = sum(norm(part) if norm else part for part, (_, norm) in zip(parts, pairs, strict=True))
        merged = merge_branches(pairs)
        assert merged.kernel_size == (5, 5)
        assert torch.allclose(merged(x), expected, atol=1e-12)


def test_versions():
    gated = [[block.ghost1.short_conv is not None for stage in ghost(version=v).blocks[:2] for block in stage]
             for v in ("v1", "v2", "v3")]  # fmt: skip
    assert gated == [[False] * 4, [False, False, True, True], [False, False, True, True]]
    assert not any("rpr" in key for v in ("v1", "v2") for key in ghost(version=v).state_dict())
    assert any("rpr" in key for key in ghost(version="v3").state_dict())
    with pytest.raises(UnknownArgumentError, match="v4"):
        ghost(version="v4")
    with pytest.raises(ValueError, match="cfgs"):
        ghost(cfgs=())


def test_width_and_reparam():
    wide, narrow = ghost(), ghost(width=0.5)
    assert (wide.conv_stem.out_channels, narrow.conv_stem.out_channels) == (16, 8)
    assert (wide.num_features, narrow.num_features, narrow.head_hidden_size) == (40, 20, 1280)
    plain = RepGhostNet(cfgs=ROWS, reparam=False)
    assert plain.num_features == 80
    assert not any("fusion" in key for key in plain.state_dict())
    assert plain.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 1000)


def test_the_layout_of_the_authors():
    judge = pytest.importorskip("timm.models.ghostnet")
    model = opsin.create_model("ghostnetv3_050")
    today = model.state_dict()
    old = {k if k.startswith("blocks.9") else k.replace(".bn1.", ".bn."): v for k, v in today.items()}
    old |= {"total_ops": torch.zeros(1), "blocks.0.0.ghost1.total_params": torch.zeros(1)}
    assert set(old) != set(today)
    for given in (old, {"state_dict": old}, dict(today)):
        ours, theirs = adapt(given, model), judge.checkpoint_filter_fn(given, model)
        assert list(ours) == list(theirs) == list(today)
        assert all(ours[key] is theirs[key] for key in ours)
