"""Batch norms exchanged for frozen and synchronised ones: the same numbers, activations included, and the way back."""

import copy

import pytest
import torch
from support import randomize, relative_error

import opsin
from opsin.inference.optimize import report
from opsin.layers.frozen_norm import freeze_batch_norm_2d, unfreeze_batch_norm_2d
from opsin.layers.sync_norm import convert_sync_batchnorm

# plain norms; norms with activations in a stem, in blocks, and behind blocks
NAMES = ["resnet10t", "test_efficientnet", "resnetv2_18", "densenet121", "mobilenetv3_small_050"]


@pytest.fixture(params=NAMES)
def model(request):
    return randomize(opsin.create_model(request.param, num_classes=5))


@pytest.mark.parametrize("exchange", [freeze_batch_norm_2d, convert_sync_batchnorm])
def test_the_same_numbers(model, exchange):
    x = torch.randn(2, 3, 64, 64)
    wanted = model.eval()(x)
    changed = exchange(copy.deepcopy(model))
    counters = exchange is convert_sync_batchnorm  # a frozen norm counts no batches
    assert list(changed.state_dict()) == [k for k in model.state_dict() if counters or "num_batches" not in k]
    assert relative_error(changed(x), wanted) < 1e-5
    prepared = opsin.prepare_for_inference(changed, example_input=x)
    assert relative_error(prepared(x), wanted) < 2e-5
    assert report(prepared).folded == report(opsin.prepare_for_inference(model, example_input=x)).folded


def test_statistics_of_one_process_are_its_own(model):
    """Without other processes a synchronised norm trains as a plain one."""
    x = torch.randn(4, 3, 64, 64)
    changed = convert_sync_batchnorm(copy.deepcopy(model))
    assert {id(p) for p in changed.parameters()}.isdisjoint(id(p) for p in model.parameters())
    assert relative_error(changed.train()(x), model.train()(x)) < 1e-5
    for key, value in model.state_dict().items():
        assert torch.allclose(changed.state_dict()[key], value, rtol=1e-4), key


def test_parameters_stay_the_same_objects(model):
    before = {name: id(p) for name, p in model.named_parameters()}
    convert_sync_batchnorm(model)
    assert {name: id(p) for name, p in model.named_parameters()} == before


def test_frozen_and_thawed(model):
    x = torch.randn(2, 3, 64, 64)
    wanted = model.eval()(x)
    frozen = freeze_batch_norm_2d(model).train()
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    frozen(x)
    assert all(torch.equal(v, before[k]) for k, v in frozen.state_dict().items())
    assert relative_error(unfreeze_batch_norm_2d(frozen).eval()(x), wanted) < 1e-5
