"""What feature extractors give and refuse."""

import pytest
import torch
from support import randomize
from torch import nn

import opsin
from opsin.models.features import FeatureHookNet


@pytest.mark.parametrize("arch", ["resnet18", "nf_regnet_b0"])
@pytest.mark.parametrize("grad", [False, True])
def test_hooks_give_what_left_the_module(arch, grad):
    """Activations in place, behind the hook, do not reach what it gave."""
    model = randomize(opsin.create_model(arch)).eval()
    names = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)][:12]
    net = FeatureHookNet(model, names)
    left = {}
    for name in names:
        note = lambda m, args, out, name=name: left.update({name: out.detach().clone()})  # noqa: E731
        model.get_submodule(name).register_forward_hook(note)
    with torch.set_grad_enabled(grad):
        maps = net(torch.randn(1, 3, 64, 64))
    for name, value in zip(names, maps, strict=True):
        assert torch.equal(value, left[name]), name
    if grad:
        sum(value.sum() for value in maps).backward()
        assert all(model.get_submodule(name).weight.grad is not None for name in names)
