"""Inception networks: the second head of v3, and the tables of branches."""

import pytest
import torch
from support import build, images, randomize

import opsin
from opsin.models._inception import POOLS
from opsin.models._registry import find_family
from opsin.weights.load import load_into

timm = pytest.importorskip("timm")


@torch.inference_mode()
def test_the_second_head_is_the_judges():
    theirs = randomize(timm.create_model("inception_v3", aux_logits=True, num_classes=7)).eval().double()
    ours = opsin.create_model("inception_v3", aux_logits=True, num_classes=7).eval().double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 299, 310, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for a, b in zip(ours(x), theirs(x), strict=True):
        assert a.shape == b.shape == (1, 7)
        assert (a - b).abs().max() / b.abs().max() < 1e-9
    ours.reset_classifier(5)
    assert [tuple(logits.shape) for logits in ours(x)] == [(1, 5), (1, 5)]


def test_files_with_a_second_head_load_without_it():
    source = randomize(build("inception_v3", aux_logits=True)).eval()
    target = build("inception_v3").eval()
    adapt = find_family("inception_v3").adapt
    load_into(target, adapt(source.state_dict(), target))
    assert torch.equal(target.Mixed_7c.branch1x1.conv.weight, source.Mixed_7c.branch1x1.conv.weight)
    kept = adapt(source.state_dict(), source)
    assert list(kept) == list(source.state_dict())


def test_the_second_head_learns_and_freezes():
    model = build("inception_v3", aux_logits=True, num_classes=3).train()
    logits, second = model(torch.randn(2, 3, 299, 299))
    (logits.sum() + second.sum()).backward()
    assert model.AuxLogits.conv0.conv.weight.grad.abs().sum() > 0
    assert model.AuxLogits.fc.weight.std() < 0.002
    model.freeze_stages(None)
    assert model.AuxLogits.fc.weight.requires_grad


@pytest.mark.parametrize("family", ["inception_v3", "inception_v4", "inception_resnet_v2"])
def test_fields_act(family):
    plain = randomize(build(family)).eval()
    x = images(family, batch=1)
    for change in ({"norm_eps": 0.3}, {"act_layer": "silu"}):
        changed = build(family, **change).eval()
        changed.load_state_dict(plain.state_dict())
        assert not torch.equal(changed(x), plain(x))
    assert not any("running_mean" in key for key in build(family, norm_layer="layernorm2d").state_dict())


def test_pools_keep_or_halve_without_padding():
    x = torch.ones(1, 1, 9, 9)
    assert POOLS["max"](x).shape[2:] == (4, 4)
    assert POOLS["avg"](x)[0, 0, 0, 0] == pytest.approx(4 / 9)
    assert POOLS["avg_inside"](x)[0, 0, 0, 0] == 1
