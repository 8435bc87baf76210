"""Models that have been through `prepare_for_inference`: the example they are tried on, and that they stay ready."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from support import randomize, relative_error
from torch import nn

import opsin
from opsin.errors import OpsinError
from opsin.inference.optimize import prepare_for_inference, report


def picture(size=64):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_the_example_has_the_size_of_the_model_inside():
    """Whatever wraps it: a feature net, a row with layers of the user's own."""
    slim = {"embed_dim": 24, "num_heads": (1, 1, 1, 1), "features_only": True}
    small = {"img_size": 64, "depth": 2}
    inside = opsin.create_model("vit_tiny_patch16_224", num_classes=8, **small)
    assert report(prepare_for_inference(nn.Sequential(inside, nn.Linear(8, 2)))).error < 1e-5
    features = opsin.create_model("vit_tiny_patch16_224", features_only=True, out_indices=(0, 1), **small)
    assert report(prepare_for_inference(features)).error < 1e-5
    windows = opsin.create_model("swinv2_tiny_window8_256", img_size=64, window_size=2, depths=(1, 1, 1, 1), **slim)
    assert report(prepare_for_inference(windows)).error < 1e-5
    with pytest.raises(OpsinError, match=r"shape \(2, 3, 96, 96\): .*example_input="):
        prepare_for_inference(inside, example_input=picture(96))


@pytest.mark.parametrize("name", ["test_vit", "densenet121", "levit_128s"])
def test_prepared_models_stay_in_evaluation(name):
    """Also in a model that trains, in a copy, in a second preparation; norms that are kept keep their statistics."""
    size = {} if name == "densenet121" else {"img_size": 64}
    model = randomize(opsin.create_model(name, **size)).eval()
    ready = prepare_for_inference(model, example_input=picture())
    again = prepare_for_inference(ready, example_input=picture())
    assert report(again).reparameterized == report(again).removed == 0
    expected = model(picture())
    for one in (ready, again, copy.deepcopy(ready), pickle.loads(pickle.dumps(ready))):
        assert one.train() is one
        nn.Sequential(one, nn.Dropout()).train()
        assert not any(module.training for module in one.modules())
        assert relative_error(one(picture()), expected) < 1e-5
    assert [one.train.model() is one for one in (again, copy.deepcopy(again))] == [True, True]
    attention = [m for m in ready.modules() if hasattr(m, "attn_drop")]
    assert all(isinstance(m.attn_drop, nn.Dropout) for m in attention), "its rate is read"


def test_a_prepared_model_goes_when_nobody_holds_it():
    ready = prepare_for_inference(opsin.create_model("test_resnet"))
    gc.collect()
    gc.disable()
    try:
        last = weakref.ref(ready)
        del ready
        assert last() is None, "a circle keeps its memory until the next collection"
        with pytest.raises(OpsinError, match="leave train"):
            prepare_for_inference(opsin.create_model("test_resnet")).train()
    finally:
        gc.enable()
