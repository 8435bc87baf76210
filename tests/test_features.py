"""What feature extractors give and refuse."""

import numpy as np
import pytest
import torch
from support import randomize
from torch import nn

import opsin
from opsin.errors import UnknownArgumentError
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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"out_indice": [1]}, "Did you mean out_indices"),
        ({"feature_only": True}, "Did you mean features_only"),
        ({"norm": True}, "feature_cls='list' takes no norm. It goes with 'getter'"),
        ({"return_dict": True}, "'list' takes no return_dict. It goes with 'hook' or 'getter'"),
        ({"out_map": ("a",)}, "'list' takes no out_map. It goes with 'dict' or 'hook' or 'getter'"),
        ({"feature_cls": "dict", "return_dict": False}, "'dict' takes no return_dict"),
        ({"feature_cls": "hook", "output_fmt": "NHWC"}, "'hook' takes no output_fmt"),
        ({"feature_cls": "hok"}, "Did you mean hook"),
        ({"out_indices": "layer1"}, "'layer1' is no feature index"),
        ({"out_indices": ("layer1", 2)}, "a list of nothing but module names"),
        ({"out_indices": (1.5,)}, "1.5 is no feature index"),
        ({"out_indices": True}, "True is no feature index"),
    ],
)
def test_arguments_of_features_that_do_not_fit(given, message):
    with pytest.raises(UnknownArgumentError, match=message):
        opsin.create_model("test_resnet", features_only=True, **given)


def test_indices_of_numpy_are_indices():
    last = opsin.create_model("test_resnet", features_only=True, out_indices=np.int64(2))
    assert last.feature_info.out_indices == (3, 4)
    some = opsin.create_model("test_resnet", features_only=True, out_indices=np.array([3, 1]))
    assert some.feature_info.out_indices == (3, 1)


def test_models_that_make_their_own_maps_take_more():
    """Where the list form falls back on the model's own way, its arguments act."""
    net = opsin.create_model("test_vit", features_only=True, feature_cls="list", norm=True, return_dict=True)
    assert net.norm
    assert isinstance(net.eval()(torch.randn(1, 3, 160, 160)), dict)
