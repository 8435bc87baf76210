"""Assigning state dicts to models: every key accounted for."""

import pytest
import torch
from torch import nn

from opsin.errors import WeightsError
from opsin.weights.load import load_into


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)
        self.register_buffer("grid", torch.arange(4.0), persistent=False)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3, bias=False)
        self.b = nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight


def state():
    torch.manual_seed(1)
    return {k: v.clone() for k, v in Net().state_dict().items()}


def test_assign_takes_the_tensors_themselves():
    model, given = Net(), state()
    model.fc.bias.requires_grad_(False)
    report = load_into(model, given)
    assert model.conv.weight.data_ptr() == given["conv.weight"].data_ptr()
    assert isinstance(model.conv.weight, nn.Parameter)
    assert [p.requires_grad for p in model.fc.parameters()] == [True, False]
    assert set(report.loaded) == set(given)
    assert torch.equal(model.grid, torch.arange(4.0))


def test_copy_leaves_the_given_tensors_alone():
    model, given = Net(), state()
    own = model.conv.weight
    load_into(model, given, assign=False)
    assert model.conv.weight is own
    assert torch.equal(own, given["conv.weight"])
    own.data.zero_()
    assert given["conv.weight"].abs().sum() > 0


def test_the_model_keeps_its_types():
    model, given = Net(), {k: v.half() if v.is_floating_point() else v for k, v in state().items()}
    load_into(model, given)
    assert model.conv.weight.dtype == torch.float32
    half = Net().half()
    load_into(half, state())
    assert half.fc.weight.dtype == torch.float16
    assert half.bn.num_batches_tracked.dtype == torch.int64


def test_meta_built_models():
    with torch.device("meta"):
        model = Net()
    load_into(model, state())
    assert not any(t.is_meta for t in model.state_dict().values())
    assert torch.equal(model.conv.weight, state()["conv.weight"])


@pytest.mark.parametrize("assign", [True, False])
def test_ties_survive(assign):
    model = Tied()
    value = torch.randn(3, 3)
    load_into(model, {"a.weight": value, "b.weight": value.clone()}, assign=assign)
    assert model.a.weight is model.b.weight
    assert torch.equal(model.b.weight, value)
    with pytest.raises(WeightsError, match=r"a.weight and b.weight, but the file's two differ"):
        load_into(model, {"a.weight": value, "b.weight": value + 1}, assign=assign)
    load_into(model, {"b.weight": value + 1}, assign=assign)  # one name is enough
    assert model.a.weight is model.b.weight
    assert torch.equal(model.a.weight, value + 1)


def test_one_error_names_every_key():
    given = state()
    del given["conv.weight"], given["bn.running_mean"]
    given |= {"head.a": torch.ones(1), "head.b": torch.ones(2, 2), "fc.weight": torch.ones(5, 4)}
    model = Net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_into(model, given)
    text = str(caught.value)
    assert "2 missing: conv.weight (4, 3, 1, 1), bn.running_mean (4,)" in text
    assert "2 unexpected: head.a (1,), head.b (2, 2)" in text
    assert "1 of another shape: fc.weight: file (5, 4), model (2, 4)" in text
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # nothing was half done


def test_not_strict_reports_but_never_takes_a_wrong_shape():
    given = state()
    del given["fc.bias"]
    given["extra"] = torch.ones(1)
    report = load_into(Net(), given, strict=False)
    assert (report.missing, report.unexpected) == (("fc.bias",), ("extra",))
    with pytest.raises(WeightsError, match="of another shape"):
        load_into(Net(), {"fc.bias": torch.ones(7)}, strict=False)


def test_allowed_and_computed_keys():
    given = state()
    del given["fc.weight"], given["fc.bias"], given["bn.num_batches_tracked"]
    given["grid"] = torch.zeros(4)
    model = Net()
    report = load_into(model, given, allow_missing=["fc.weight", "fc.bias"])
    assert report.computed == ("grid",)
    assert torch.equal(model.grid, torch.arange(4.0))


def test_a_prefix_is_pointed_out():
    given = {f"backbone.{k}": v for k, v in state().items()}
    with pytest.raises(WeightsError, match="file's keys begin with 'backbone.'"):
        load_into(Net(), given)
