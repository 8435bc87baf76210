"""`timm.loss` under the alias: values and gradients beside timm's own."""

import inspect

import pytest
import torch

from opsin.errors import OpsinError
from opsin.integrations.timm_alias import _loss as ours

theirs = pytest.importorskip("timm.loss")

B, K = 12, 7
WEIGHTS = torch.arange(1, K + 1) / 3
CASES = [
    *[("LabelSmoothingCrossEntropy", o, ["classes"]) for o in ({}, {"smoothing": 0.3})],
    ("SoftTargetCrossEntropy", {}, ["shares"]), ("JsdCrossEntropy", {}, ["classes"]),
    ("JsdCrossEntropy", {"num_splits": 2, "alpha": 3, "smoothing": 0.2}, ["classes"]),
    *[("BinaryCrossEntropy", o, ["classes", "shares", "labels"]) for o in (
        {}, {"smoothing": 0.3}, {"target_threshold": 0.2}, {"sum_classes": True}, {"reduction": "sum"},
        {"reduction": "none"}, {"smooth_dense": True}, {"weight": WEIGHTS}, {"pos_weight": 2.0},
        {"pos_weight": WEIGHTS},
        {"smooth_dense": True, "target_threshold": 0.3, "sum_classes": True, "reduction": "none"},
    )],
    *[("PolyCrossEntropy", o, ["classes", "shares"]) for o in (
        {}, {"epsilon": 1.0, "smoothing": 0.1}, {"reduction": "none"}, {"reduction": "sum"},
    )],
    *[("PolyBinaryCrossEntropy", o, ["labels"]) for o in (
        {}, {"gamma": 2.0}, {"alpha": 0.3}, {"smoothing": 0.1}, {"reduction": "sum"}, {"reduction": "none"},
        {"epsilon": 1.0, "gamma": 1.0, "alpha": 0.3, "smoothing": 0.1, "reduction": "batchmean"},
    )],
    *[("AsymmetricLossMultiLabel", o, ["labels"]) for o in (
        {}, {"gamma_neg": 2.0, "gamma_pos": 0.0}, {"clip": None}, {"clip": 0.2}, {"eps": 0.1}, {"smoothing": 0.1},
        {"disable_torch_grad_focal_loss": True}, {"reduction": "mean"}, {"reduction": "sum"}, {"reduction": "none"},
        {"weight": WEIGHTS}, {"pos_weight": 2.0}, {"pos_weight": WEIGHTS, "smoothing": 0.1},
    )],
    *[("AsymmetricLossSingleLabel", o, ["classes"]) for o in (
        {}, {"gamma_pos": 2, "gamma_neg": 3}, {"eps": 0.0}, {"reduction": "none"},
    )],
    ("ZlprLoss", {}, ["labels"]), ("TwoWayLoss", {}, ["labels"]), ("TwoWayLoss", {"tp": 2.0, "tn": 3.0}, ["labels"]),
]  # fmt: skip


def targets(kind):
    generator = torch.Generator().manual_seed(3)
    if kind == "classes":
        return torch.randint(K, (B,), generator=generator)
    values = torch.rand(B, K, generator=generator)
    return values.softmax(1) if kind == "shares" else (values > 0.6).float()


@pytest.mark.parametrize(("name", "options", "kinds"), CASES, ids=lambda value: str(value)[:60])
def test_values_and_gradients(name, options, kinds):
    for kind in kinds:
        found = []
        for module in (ours, theirs):
            x = (torch.randn(B, K, generator=torch.Generator().manual_seed(0)) * 3).requires_grad_()
            y = targets(kind)
            if name == "JsdCrossEntropy" and module is theirs:
                y = y[: B // options.get("num_splits", 3)]
            value = getattr(module, name)(**options)(x, y)
            value.sum().backward()
            found.append((value.detach(), x.grad))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ours.__all__)
def test_arguments_in_order(name):
    mine, judge = (inspect.signature(getattr(module, name).__init__).parameters for module in (ours, theirs))
    if name not in ("SoftTargetCrossEntropy", "ZlprLoss"):  # these take none
        assert [(p.name, p.default) for p in mine.values()] == [(p.name, p.default) for p in judge.values()]


def test_more_dimensions_and_evaluation():
    x, y = torch.randn(4, 5, K), torch.rand(4, 5, K).softmax(-1)
    assert torch.allclose(ours.SoftTargetCrossEntropy()(x, y), theirs.SoftTargetCrossEntropy()(x, y))
    x, y = torch.randn(B, K), targets("classes")
    assert torch.allclose(ours.JsdCrossEntropy().eval()(x, y), theirs.JsdCrossEntropy().eval()(x, y[:4]))
    nothing = torch.zeros(B, K)
    assert torch.allclose(ours.TwoWayLoss()(x, nothing), theirs.TwoWayLoss()(x, nothing))
    assert list(ours.BinaryCrossEntropy(weight=WEIGHTS).state_dict()) == ["weight"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ours.BinaryCrossEntropy(smoothing=1.0), "smoothing must be"),
        (lambda: ours.BinaryCrossEntropy(reduction="men"), "no reduction 'men'. Did you mean mean"),
        (lambda: ours.AsymmetricLossMultiLabel(reduction="batch"), "Did you mean batchmean"),
        (lambda: ours.PolyCrossEntropy(reduction="batchmean"), "no reduction"),
        (lambda: ours.PolyBinaryCrossEntropy(reduction="men"), "no reduction"),
    ],
)
def test_says_what_is_wrong(call, said):
    with pytest.raises((OpsinError, TypeError), match=said):
        call()
