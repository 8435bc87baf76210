"""DLA: the authors' files, and what its arguments do."""

import pytest
import torch

import opsin
from opsin.models._registry import find_family

SMALL = {"channels": (8, 8, 16, 16, 32, 32), "num_classes": 3}


def test_projections_that_nothing_reads_are_left_out():
    model = opsin.create_model("dla46_c")
    today = model.state_dict()
    unread = {"level3.project.0.weight": torch.ones(1), "level4.project.1.bias": torch.ones(1)}
    adapt = find_family("dla46_c").adapt
    assert list(adapt(today | unread, model)) == list(today)
    assert "level4.tree1.project.0.weight" in today
    opsin.create_model("dla46_c", pretrained=today | unread)
    with pytest.raises(opsin.errors.WeightsError, match="level3.stranger"):
        opsin.create_model("dla46_c", pretrained=today | {"level3.stranger.weight": torch.ones(1)})


def test_logits_as_a_map_without_pooling():
    model = opsin.create_model("dla46_c", **SMALL).eval()
    x = torch.randn(1, 3, 64, 96)
    maps = opsin.create_model("dla46_c", **SMALL, global_pool="").eval()
    maps.load_state_dict(model.state_dict())
    assert maps(x).shape == (1, 3, 2, 3)
    assert torch.allclose(maps(x).mean((2, 3)), model(x), atol=1e-5)


def test_shortcut_of_the_aggregation_nodes():
    torch.manual_seed(0)
    model = opsin.create_model("dla46_c", **SMALL).eval()
    other = opsin.create_model("dla46_c", **SMALL, shortcut_root=True).eval()
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert not torch.allclose(model(x), other(x))


@pytest.mark.parametrize("args", [{"block": "DlaBasic", "cardinality": 2}, {"levels": (1, 1, 1)}])
def test_impossible_figures_are_refused(args):
    with pytest.raises(ValueError):
        opsin.create_model("dla46_c", **args)
