"""VGG: what its arguments do, torchvision's layout, and in-place layers under checkpointing."""

import copy

import pytest
import torch
from support import randomize, relative_error
from torch import nn

import opsin
from opsin.models._registry import find_family

timm = pytest.importorskip("timm")
SMALL = {"mlp_ratio": 1 / 64, "num_classes": 3}


@pytest.mark.parametrize(
    ("size", "words", "classes"),
    [
        ((96, 64), {}, {}),
        ((256, 224), {"global_pool": "max"}, {}),
        ((64, 64), {"act_layer": "silu"}, {"act_layer": nn.SiLU}),
    ],
)
def test_arguments_and_sizes_act_as_in_the_judge(size, words, classes):
    theirs = randomize(timm.create_model("vgg11", **SMALL, **(words | classes))).eval().double()
    ours = opsin.create_model("vgg11", **SMALL, **words).eval().double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.inference_mode():
        assert relative_error(ours(x), theirs(x)) < 1e-9


def test_dropout_of_the_hidden_layers():
    model = opsin.create_model("vgg11", **SMALL, drop_rate=0.5)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]


def test_layers_that_work_in_place_are_computed_again_from_their_own_input():
    torch.manual_seed(0)
    cfg = (8, "M", 8, 8, "M")
    plain = randomize(opsin.create_model("vgg11_bn", **SMALL, cfg=cfg, act_layer="silu")).train()
    again = copy.deepcopy(plain)
    again.set_grad_checkpointing()
    x = torch.randn(2, 3, 32, 32)
    for model in (plain, again):
        model(x).square().sum().backward()
    for ours, theirs in zip(again.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_torchvision_layout():
    model = opsin.create_model("vgg11_bn", **SMALL, cfg=(16, "M", 512, "M"))
    today = model.state_dict()
    names = {"pre_logits.fc1.": "classifier.0.", "pre_logits.fc2.": "classifier.3.", "head.fc.": "classifier.6."}
    original = {}
    for key, value in today.items():
        for new, old in names.items():
            if key.startswith(new):
                key, value = key.replace(new, old), value.flatten(1) if value.ndim == 4 else value
        original[key] = value
    adapt = find_family("vgg11_bn").adapt
    ours, judged = adapt(original, model), timm.models.vgg._filter_fn(dict(original))
    assert list(ours) == list(judged) == list(today)
    assert all(torch.equal(ours[k], today[k]) for k in today)
    assert all(a is b for a, b in zip(adapt(today, model).values(), today.values(), strict=True))


@pytest.mark.parametrize("cfg", [(), (64,), ("M", 64)])
def test_impossible_figures_are_refused(cfg):
    with pytest.raises(ValueError, match="cfg="):
        opsin.create_model("vgg11", cfg=cfg)
