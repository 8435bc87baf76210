"""ResNets with another block: blocks by name, and what such a block cannot do is refused."""

import pytest

import opsin
from opsin.errors import UnknownArgumentError
from opsin.models.res2net import Bottle2neck, Res2Net
from opsin.models.resnest import ResNeSt, ResNestBottleneck
from opsin.models.sknet import SelectiveKernelBasic, SKNet

SMALL = {"layers": (1, 1, 1, 1), "channels": (8, 16, 16, 16), "num_classes": 3}
CASES = [
    (Res2Net, "Bottle2neck", Bottle2neck, "res2net50_26w_4s"),
    (ResNeSt, "ResNestBottleneck", ResNestBottleneck, "resnest14d"),
    (SKNet, "SelectiveKernelBasic", SelectiveKernelBasic, "skresnet18"),
]


@pytest.mark.parametrize(("model", "name", "block", "arch"), CASES)
def test_a_block_goes_by_name_or_class(model, name, block, arch):
    by_name, by_class = model(block=name, **SMALL), model(block=block, **SMALL)
    assert list(by_name.state_dict()) == list(by_class.state_dict())
    assert isinstance(by_name.layer1[0], block)
    assert by_class.config.to_dict()["block"] == name
    assert isinstance(opsin.create_model(arch, **SMALL), model)
    with pytest.raises(UnknownArgumentError, match=f"Did you mean {name}"):
        model(block=name[:-1], **SMALL)


@pytest.mark.parametrize("arch", ["res2net50_26w_4s", "resnest14d"])
@pytest.mark.parametrize("wish", [{"aa_layer": "avg"}, {"block_reduce_first": 2}])
def test_a_block_refuses_what_it_would_ignore(arch, wish):
    with pytest.raises(ValueError, match=next(iter(wish))):
        opsin.create_model(arch, **SMALL, **wish)


def test_block_args_act():
    def sizes(arch, **block_args):
        model = opsin.create_model(arch, **SMALL, block_args=block_args)
        return [tuple(p.shape) for p in model.parameters()]

    assert sizes("res2net50_26w_4s", scale=3) != sizes("res2net50_26w_4s", scale=5)
    assert sizes("resnest14d", radix=1) != sizes("resnest14d", radix=4)
    plain = opsin.create_model("resnest14d", **SMALL, block_args={})
    assert plain.layer2[0].conv2.conv.stride == (2, 2)
    for first in (True, False):
        pooled = opsin.create_model("resnest14d", **SMALL, block_args={"avd": True, "avd_first": first}).layer2[0]
        assert pooled.conv2.conv.stride == (1, 1)
        assert (pooled.avd_first if first else pooled.avd_last).stride == 2
