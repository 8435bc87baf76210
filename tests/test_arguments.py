"""Arguments of models: what stands for the default, what is refused and how, what an error leaves."""

import copy
from dataclasses import fields

import numpy as np
import pytest
import torch
from support import FAMILIES, smallest
from torch import nn

import opsin
from opsin.models._registry import find_family
from opsin.models.convnext import ConvNeXt
from opsin.models.resnet import BasicBlock, ResNet


def test_none_is_the_default_of_a_class():
    model = ResNet(BasicBlock, [1, 1, 1, 1], block_args=None, num_classes=None, norm_layer=None, drop_rate=None)
    assert model.config == ResNet(BasicBlock, [1, 1, 1, 1]).config
    small = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}
    model = ConvNeXt(**small, norm_layer=None, ls_init_value=None)
    assert model.config.norm_layer == ConvNeXt(**small).config.norm_layer
    assert model.stages[0].blocks[0].gamma is None, "None is a value where the type names it"


@pytest.mark.parametrize("family", FAMILIES)
def test_variants_can_be_made_from_their_fields(family):
    """A field that is None in a variant says so in its type, or its default would take its place."""
    found = find_family(smallest(family))
    for arch, config in found.variants.items():
        given = {f.name: getattr(config, f.name) for f in fields(config)}
        assert type(config).make(arch, **given) == config, arch


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_classes": -1}, "num_classes=-1: give a whole number from 0 on"),
        ({"num_classes": "10"}, "num_classes='10': give a whole number"),
        ({"num_classes": 2.5}, "num_classes=2.5: give a whole number"),
        ({"num_classes": True}, "num_classes=True: give a whole number"),
        ({"in_chans": 0}, "in_chans=0: give a whole number from 1 on"),
        ({"in_chans": "3"}, "in_chans='3': give a whole number"),
        ({"drop_rate": 2.0}, r"drop_rate=2\.0: give a number from 0 to 1"),
        ({"drop_rate": "x"}, "drop_rate='x': give a number from 0 to 1"),
        ({"drop_path_rate": -0.1}, r"drop_path_rate=-0\.1: give a number from 0 to 1"),
    ],
)
def test_numbers_that_cannot_be(given, message):
    with pytest.raises((ValueError, TypeError), match=message):
        opsin.create_model("test_resnet", **given)


def test_numbers_of_numpy_are_numbers():
    model = opsin.create_model("test_resnet", num_classes=np.int64(3), drop_rate=np.float32(0.5))
    assert type(model.config.num_classes) is int
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3)
    with pytest.raises(ValueError, match="img_size=0: give a whole number from 1 on"):
        opsin.create_model("test_vit", img_size=(64, 0))


@pytest.mark.parametrize("arch", ["test_resnet", "test_vit", "test_convnext", "mobilenetv3_small_050"])
@pytest.mark.parametrize("given", [(3, "maxx"), (3, ""), (-1, None)])
def test_a_failed_head_reset_leaves_the_model_as_it_was(arch, given):
    model = opsin.create_model(arch).eval()
    x = torch.randn(1, 3, *model.pretrained_cfg["input_size"][1:])
    expected, before = model(x), copy.deepcopy(model)
    if arch == "test_vit" and given == (3, ""):  # tokens without pooling can be classified
        given = (3, "nope")
    with pytest.raises((ValueError, TypeError)):
        model.reset_classifier(*given)
    assert model.config == before.config
    assert model.num_classes == 1000
    assert [(n, repr(m)) for n, m in model.named_modules()] == [(n, repr(m)) for n, m in before.named_modules()]
    assert torch.equal(model(x), expected)
    model.reset_classifier(4)
    assert model(x).shape == (1, 4)


def test_an_error_late_in_a_reset_is_undone_as_well():
    class Late(ResNet):
        def build_head(self, config):
            super().build_head(config)
            if config.num_classes == 3:
                self.extra, self.layer4[0].conv1 = nn.Linear(1, 1), nn.Identity()
                raise ValueError("late")

    model = Late(BasicBlock, [1, 1, 1, 1], num_classes=5)
    with pytest.raises(ValueError, match="late"):
        model.reset_classifier(3)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    assert not hasattr(model, "extra")
