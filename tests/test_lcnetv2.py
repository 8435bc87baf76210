"""PP-LCNetV2: options, merging of branches."""

import pytest
import torch
from support import randomize, relative_error
from torch import nn

from opsin.inference.optimize import prepare_for_inference, report
from opsin.models.lcnetv2 import LCNetV2

X = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def small(**kwargs):
    torch.manual_seed(0)
    return LCNetV2(**({"scale": 0.125, "depths": (1, 1, 2, 2), "head_hidden_size": 32, "num_classes": 5} | kwargs))


def test_merging_keeps_the_numbers():
    model = randomize(small()).eval().double()
    ready = prepare_for_inference(model, example_input=X.double())
    assert report(ready).reparameterized == 4
    assert not report(ready).undone
    assert not [m for m in ready.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.inference_mode():
        assert relative_error(ready(X.double()), model(X.double())) < 1e-12


def test_other_norms_stay_as_they_are():
    model = randomize(small(norm_layer="layernorm2d")).eval()
    ready = prepare_for_inference(model, example_input=X)
    assert len(ready.stages[3][1].dw_conv_list) == 3
    with torch.inference_mode():
        assert relative_error(ready(X), model(X)) < 1e-5


def test_options():
    assert [row["num_chs"] for row in small(scale=0.25).feature_info] == [32, 64, 128, 256]
    assert [len(stage) for stage in small(depths=(1, 2, 1, 3)).stages] == [1, 2, 1, 3]
    assert small(head_hidden_size=64).classifier.in_features == 64
    assert isinstance(small(act_layer="hard_swish").stem[0].bn.act, nn.Hardswish)
    assert small()(X).shape == (2, 5)
    with pytest.raises(ValueError, match="num_classes=0"):
        small(global_pool="")


def test_branches_by_stage():
    sizes = [[conv.conv.kernel_size[0] for conv in block.dw_conv_list] for block in small().stages[2]]
    assert sizes == [[5, 3], [5, 3, 1]]
    assert [block.skip for stage in small().stages for block in stage] == [False] * 5 + [True]
