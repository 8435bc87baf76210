"""DenseNet: what its arguments do, and torchvision's layout."""

import pytest
import torch
from support import randomize, relative_error

import opsin
from opsin.models._registry import find_family

timm = pytest.importorskip("timm")
SMALL = {"growth_rate": 8, "block_config": (2, 2, 2, 2), "num_classes": 3}


@pytest.mark.parametrize(
    "args",
    [
        {"stem_type": "deep_tiered", "act_layer": "silu"},
        {"bn_size": 2},
        {"norm_layer": "groupnorm", "growth_rate": 32},
    ],
)
def test_arguments_act_as_in_the_judge(args):
    theirs = randomize(timm.models.densenet.DenseNet(**(SMALL | args))).eval().double()
    ours = opsin.create_model("densenet121", **(SMALL | args)).eval().double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        assert relative_error(ours(x), theirs(x)) < 1e-9


def test_blur_in_the_transitions():
    model = opsin.create_model("densenet121", **SMALL, aa_layer="blur", aa_stem_only=False)
    assert "features.transition1.pool.filt" in dict(model.named_buffers())
    model = opsin.create_model("densenet121", **SMALL, aa_layer="blur")
    assert "features.transition1.pool.filt" not in dict(model.named_buffers())
    assert "features.pool0.1.filt" in dict(model.named_buffers())


def test_dropout_of_layers():
    model = opsin.create_model("densenet121", **SMALL, proj_drop_rate=0.5)
    x = torch.randn(2, 3, 64, 64)
    assert not torch.equal(model(x), model(x))
    layer = model.features.denseblock1.denselayer1
    out = layer.train()(torch.randn(1, 16, 8, 8))
    assert torch.equal(out[:, 16:] == 0, out[:, 16:].abs() < 1e-9)
    assert 0.3 < (out[:, 16:] == 0).float().mean() < 0.7


def test_memory_efficient_computes_again_and_gives_equal_gradients():
    x = torch.randn(2, 3, 64, 64)
    grads = []
    for efficient in (False, True):
        torch.manual_seed(0)
        model = opsin.create_model("densenet121", **SMALL, memory_efficient=efficient).train()
        calls = []
        model.features.denseblock4.denselayer2.norm1.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model(x).square().sum().backward()
        grads.append((len(calls), [p.grad for p in model.parameters()]))
    assert [count for count, _ in grads] == [1, 2]
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(grads[0][1], grads[1][1], strict=True))


def test_torchvision_layout():
    model = opsin.create_model("densenet121", **SMALL)
    today = model.state_dict()
    stored = {k: v for k, v in today.items() if not k.endswith("num_batches_tracked")}  # newer than these files
    original = {k.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): v for k, v in stored.items()}
    assert original.keys() != stored.keys()
    adapt = find_family("densenet121").adapt
    judged = timm.models.densenet._filter_torchvision_pretrained(original)
    ours = adapt(original, model)
    assert ours.keys() == judged.keys() == stored.keys()
    assert all(ours[k] is judged[k] for k in ours)
    assert list(adapt(today, model)) == list(today)
