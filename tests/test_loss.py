"""Losses: beside timm's, beside what their papers say in plain arithmetic, and what each argument does."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opsin.errors import OpsinError
from opsin.loss import (
    AsymmetricLoss,
    BinaryCrossEntropy,
    CrossEntropy,
    FeatureDistillation,
    FocalLoss,
    JsdLoss,
    LogitDistillation,
    PolyLoss,
    TokenDistillation,
    create_loss,
    list_losses,
)

B, K = 12, 7


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def logits():
    return torch.randn(B, K) * 3


def classes():
    return torch.randint(K, (B,))


def shares():
    return torch.rand(B, K).softmax(1)


def labels():
    return (torch.rand(B, K) > 0.6).float()


# --- beside timm ----------------------------------------------------------------------------------------------------


def pairs():
    timm = pytest.importorskip("timm.loss")
    return {
        "smooth": (CrossEntropy(0.1), timm.LabelSmoothingCrossEntropy(0.1), classes),
        "soft": (CrossEntropy(), timm.SoftTargetCrossEntropy(), shares),
        "bce": (BinaryCrossEntropy(0.1), timm.BinaryCrossEntropy(0.1), classes),
        "bce soft": (BinaryCrossEntropy(), timm.BinaryCrossEntropy(0.0), shares),
        "bce sum": (BinaryCrossEntropy(0.1, sum_classes=True), timm.BinaryCrossEntropy(0.1, sum_classes=True), classes),
        "bce threshold": (
            BinaryCrossEntropy(0.0, target_threshold=0.2), timm.BinaryCrossEntropy(0.0, target_threshold=0.2), shares,
        ),
        "jsd": (JsdLoss(3, 12.0, 0.1), timm.JsdCrossEntropy(3, 12, 0.1), classes),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["smooth", "soft", "bce", "bce soft", "bce sum", "bce threshold", "jsd"])
def test_numbers_and_gradients_of_timm(name):
    ours, theirs, make = pairs()[name]
    x, y = logits().requires_grad_(), make()
    other = x.detach().clone().requires_grad_()
    a, b = ours(x, y), theirs(other, y[: B // 3] if name == "jsd" else y)
    assert a.item() == pytest.approx(b.item(), rel=1e-5)
    a.backward()
    b.backward()
    assert torch.allclose(x.grad, other.grad, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"gamma_neg": 2.0, "gamma_pos": 0.0}, {"clip": 0.0}])
def test_asymmetric_as_in_timm(options):
    timm = pytest.importorskip("timm.loss")
    x, y = logits(), labels()
    theirs = timm.AsymmetricLossMultiLabel(**{"gamma_neg": 4, "gamma_pos": 1, "clip": 0.05} | options)
    assert AsymmetricLoss(**options)(x, y).item() == pytest.approx(theirs(x, y).item(), rel=1e-4)
    if "clip" not in options:
        theirs = timm.AsymmetricLossSingleLabel(**{"gamma_neg": 4, "gamma_pos": 1} | options, eps=0.1)
        ours = AsymmetricLoss(**options, single_label=True, smoothing=0.1)
        target = classes()
        assert ours(x, target).item() == pytest.approx(theirs(x, target).item(), rel=1e-4)


# --- beside plain arithmetic ----------------------------------------------------------------------------------------


def test_weighted_cross_entropy():
    x, y, w = logits(), classes(), torch.rand(K) + 0.5
    assert torch.allclose(CrossEntropy(weight=w)(x, y), F.cross_entropy(x, y, w))
    assert torch.allclose(CrossEntropy(weight=w)(x, F.one_hot(y, K).float()), F.cross_entropy(x, y, w))
    smooth = CrossEntropy(0.2, w)
    assert torch.allclose(smooth(x, F.one_hot(y, K).float()), F.cross_entropy(x, y, w, label_smoothing=0.2))


def test_focal():
    x, y = logits(), labels()
    p = x.sigmoid()
    each = -(y * 0.25 * (1 - p) ** 2 * p.log() + (1 - y) * 0.75 * p**2 * (1 - p).log())
    assert torch.allclose(FocalLoss()(x, y), each.sum(1).mean(), rtol=1e-4)
    plain = F.binary_cross_entropy_with_logits(x, y) * K
    assert torch.allclose(FocalLoss(gamma=0.0, alpha=None)(x, y), plain)
    assert FocalLoss(smoothing=0.1)(x, y) != FocalLoss()(x, y)
    assert torch.equal(FocalLoss()(x, y.argmax(1)), FocalLoss()(x, F.one_hot(y.argmax(1), K).float()))


def test_poly():
    x, y = logits(), classes()
    right = x.softmax(1)[torch.arange(B), y]
    assert torch.allclose(PolyLoss(2.0)(x, y), F.cross_entropy(x, y) + 2 * (1 - right).mean())
    assert PolyLoss(0.0, smoothing=0.1)(x, y).item() == pytest.approx(CrossEntropy(0.1)(x, y).item())
    assert PolyLoss(2.0, smoothing=0.1)(x, y) != PolyLoss(1.0, smoothing=0.1)(x, y)


def test_binary_options():
    x, y = logits(), labels()
    base = BinaryCrossEntropy(multi_label=True)
    assert torch.allclose(base(x, y), F.binary_cross_entropy_with_logits(x, y))
    weight = torch.rand(K)
    assert torch.allclose(
        BinaryCrossEntropy(weight=weight, multi_label=True)(x, y), F.binary_cross_entropy_with_logits(x, y, weight)
    )
    heavy = F.binary_cross_entropy_with_logits(x, y, pos_weight=torch.tensor(3.0))
    assert torch.allclose(BinaryCrossEntropy(pos_weight=3.0, multi_label=True)(x, y), heavy)
    smooth = F.binary_cross_entropy_with_logits(x, y * 0.8 + 0.1)
    assert torch.allclose(BinaryCrossEntropy(0.2, multi_label=True)(x, y), smooth)
    assert BinaryCrossEntropy(0.2)(x, y) != smooth  # there towards 1 / K


def test_jsd_judges_by_the_clean_part():
    loss, x, y = JsdLoss(3, alpha=5.0, smoothing=0.0), logits(), classes()
    same = torch.cat([x[:4]] * 3)
    assert loss(same, y).item() == pytest.approx(F.cross_entropy(x[:4], y[:4]).item(), abs=1e-5)
    assert loss(x, y) > F.cross_entropy(x[:4], y[:4])
    assert JsdLoss(3, alpha=9.0, smoothing=0.0)(x, y) > loss(x, y)
    assert torch.equal(loss.eval()(x, y), F.cross_entropy(x[:4], y[:4]))
    with pytest.raises(OpsinError, match="batch of 12 does not hold 5"):
        JsdLoss(5)(x, y)
    with pytest.raises(OpsinError, match="at least 2"):
        JsdLoss(1)


# --- distillation ---------------------------------------------------------------------------------------------------


def test_logits_of_a_teacher():
    x, y, t = logits().requires_grad_(), classes(), logits().requires_grad_()
    soft = F.kl_div((x / 2).log_softmax(1), (t / 2).softmax(1), reduction="batchmean") * 4
    loss = LogitDistillation(alpha=0.3, temperature=2.0)
    assert torch.allclose(loss(x, y, t), 0.7 * F.cross_entropy(x, y) + 0.3 * soft, rtol=1e-5)
    hard = LogitDistillation(alpha=1.0, hard=True)
    assert torch.allclose(hard(x, y, t), F.cross_entropy(x, t.argmax(1)))
    loss(x, y, t).backward()
    assert t.grad is None  # nothing reaches the teacher
    assert torch.equal(LogitDistillation(BinaryCrossEntropy(), alpha=0.0)(x, y, t), BinaryCrossEntropy()(x, y))
    with pytest.raises(OpsinError, match="alpha"):
        LogitDistillation(alpha=2.0)


@pytest.mark.parametrize("kind", [LogitDistillation, TokenDistillation])
def test_a_teacher_of_several_labels(kind):
    x, t = logits(), logits()
    y = (logits() > 0).float()
    given = (x, x) if kind is TokenDistillation else x
    options = {"loss": BinaryCrossEntropy(multi_label=True), "alpha": 0.3, "multi_label": True}
    own = 0.7 * F.binary_cross_entropy_with_logits(x, y)
    soft = F.binary_cross_entropy_with_logits(x / 2, (t / 2).sigmoid()) * 4
    assert torch.allclose(kind(**options, temperature=2.0, hard=False)(given, y, t), own + 0.3 * soft)
    hard = F.binary_cross_entropy_with_logits(x, (t.sigmoid() > 0.5).float())
    assert torch.allclose(kind(**options, hard=True)(given, y, t), own + 0.3 * hard)


def test_a_token_for_the_teacher():
    a, b, y, t = logits(), logits(), classes(), logits()
    loss = TokenDistillation(alpha=0.4)
    assert torch.allclose(loss((a, b), y, t), 0.6 * F.cross_entropy(a, y) + 0.4 * F.cross_entropy(b, t.argmax(1)))
    soft = TokenDistillation(alpha=0.4, hard=False, temperature=3.0)
    assert soft((a, b), y, t) != TokenDistillation(alpha=0.4, hard=False)((a, b), y, t)
    with pytest.raises(OpsinError, match="distillation token"):
        loss(a, y, t)


def test_features_of_a_teacher():
    loss = FeatureDistillation([4, 6], [5, 6])
    ours = [torch.randn(2, 4, 8, 8), torch.randn(2, 6)]
    theirs = [torch.randn(2, 5, 4, 4, requires_grad=True), torch.randn(2, 6)]
    value = loss(ours, theirs)
    value.backward()
    assert theirs[0].grad is None
    assert all(p.grad is not None for p in loss.parameters())
    same = FeatureDistillation([6], [6])
    nn.init.eye_(same.project[0].weight)
    nn.init.zeros_(same.project[0].bias)
    assert same([ours[1]], [ours[1] * 3]).item() == pytest.approx(0, abs=1e-12)  # lengths do not matter
    assert same([ours[1]], [-ours[1]]).item() == pytest.approx(4)  # nor does the number of channels
    with pytest.raises(OpsinError, match="one of the teacher's"):
        FeatureDistillation([4], [5, 6])


# --- by name --------------------------------------------------------------------------------------------------------


def test_by_name():
    assert isinstance(create_loss(), CrossEntropy)
    assert create_loss(smoothing=0.1).smoothing == 0.1
    assert create_loss(task="multi").multi_label
    assert isinstance(create_loss(task="regression"), nn.MSELoss)
    assert create_loss("jsd", num_splits=4, alpha=3.0).num_splits == 4
    assert create_loss("asymmetric").single_label
    assert not create_loss("asymmetric", task="multi").single_label
    for task, make in (("single", classes), ("multi", labels), ("regression", logits)):
        for name in list_losses(task):
            x = logits().requires_grad_()
            create_loss(name, task=task, num_splits=3)(x, make()).backward()
            assert x.grad.isfinite().all()
    assert "mse" not in list_losses("single")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("focl", {}, "Did you mean focal"),
        ("ce", {"task": "multi"}, "ce is not for multi targets; these are: bce"),
        ("auto", {"task": "singel"}, "Did you mean single"),
        ("focal", {"gama": 1.0}, "Did you mean gamma"),
        ("mse", {"task": "regression", "smoothing": 0.1}, "no argument 'smoothing'"),
        ("ce", {"smoothing": 1.5}, "smoothing must be"),
        ("bce", {"smoothing": -0.5}, "smoothing must be"),
    ],
)
def test_says_what_is_wrong(name, options, said):
    with pytest.raises(OpsinError, match=said):
        create_loss(name, **options)
