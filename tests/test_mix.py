"""Mixup and CutMix beside timm: pixels and targets for a given proportion and rectangle, and how those are drawn."""

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from timm.data import mixup as peer

from opsin.data.augment.mix import Draw, Mix, soft_targets
from opsin.errors import OpsinError, UnknownArgumentError

BOX = (slice(2, 9), slice(3, 15))
CLASSES = 5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    chance = generator(seed)
    return torch.randn(size, 3, 12, 16, generator=chance), torch.randint(CLASSES, (size,), generator=chance)


def given(mix: Mix, draws: list[Draw]) -> Mix:
    """Mix with what it would draw laid down."""
    rest = iter(draws)
    mix._draw_one = lambda height, width, rng: next(rest)  # type: ignore[method-assign]
    return mix


# --- for a given proportion and rectangle


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_targets_equal_those_of_timm(lam, smoothing):
    images, targets = batch(6)
    mixed = given(Mix(num_classes=CLASSES, label_smoothing=smoothing), [Draw(lam)])(images, targets, generator())[1]
    expected = peer.mixup_target(targets, CLASSES, lam=lam, smoothing=smoothing)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "rows", [torch.eye(CLASSES)[[0, 3, 1, 1]] + torch.eye(CLASSES)[[2, 2, 2, 4]], torch.rand(4, 5)]
)
def test_several_labels_equal_those_of_timm(rows):
    for targets in (rows, rows.long()):
        mix = given(Mix(num_classes=CLASSES, multi_label=True), [Draw(0.3)])
        mixed = mix(batch(4)[0], targets, generator())[1]
        expected = peer.mixup_target(targets, CLASSES, lam=0.3, smoothing=0.1, multi_label=True)
        torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-7)


def test_soft_rows_are_smoothed_like_classes():
    targets = torch.tensor([0, 3, 3])
    rows = torch.eye(CLASSES)[targets]
    assert torch.equal(soft_targets(rows, CLASSES, smoothing=0.2), soft_targets(targets, CLASSES, smoothing=0.2))
    soft = torch.rand(3, CLASSES).softmax(1)
    torch.testing.assert_close(soft_targets(soft, CLASSES, smoothing=0.2).sum(1), torch.ones(3))
    assert torch.equal(soft_targets(soft, CLASSES), soft)


def peer_result(mode: str, draws: list[Draw], images: torch.Tensor, targets: torch.Tensor, monkeypatch):
    """timm with each picture's proportion and rectangle laid down; its proportions come in arrays."""
    cuts = np.array([draw.box is not None for draw in draws])
    lams = np.array([draw.lam for draw in draws], np.float32)
    boxes = iter([draw for draw in draws if draw.box is not None])

    def bbox(*_, **__):
        (rows, columns), lam = (lambda draw: (draw.box, draw.lam))(next(boxes))
        return (rows.start, rows.stop, columns.start, columns.stop), lam

    theirs = peer.Mixup(cutmix_alpha=1.0, mode=mode, num_classes=CLASSES, label_smoothing=0.1)
    monkeypatch.setattr(peer, "cutmix_bbox_and_lam", bbox)
    theirs._params_per_batch = lambda: (float(lams[0]), bool(cuts[0]))
    theirs._params_per_elem = lambda size: (lams.copy(), cuts)
    return theirs(images.clone(), targets)


@pytest.mark.parametrize("size", [2, 8])
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_pixels_equal_those_of_timm(mode, size, monkeypatch):
    images, targets = batch(size)
    count = {"batch": 1, "pair": size // 2, "elem": size}[mode]
    chance = np.random.default_rng(size)
    for kinds in ((0,), (1,), (0, 1, 2)):
        draws = []
        for _ in range(count):
            top, left = chance.integers(6), chance.integers(8)
            box = (slice(top, top + 5), slice(left, left + 7))
            lam = float(np.float32(chance.random()))
            draws.append([Draw(lam), Draw(1 - 35 / 192, box), Draw()][chance.choice(kinds)])
        before = images.clone()
        mixed, rows = given(Mix(cutmix_alpha=1.0, mode=mode, num_classes=CLASSES), draws)(images, targets, generator())
        expected, expected_rows = peer_result(mode, draws, images, targets, monkeypatch)
        torch.testing.assert_close(mixed, expected, rtol=0, atol=2e-6)
        torch.testing.assert_close(rows, expected_rows, rtol=0, atol=1e-6)
        assert torch.equal(images, before)


def test_half_is_the_first_half_of_elem():
    images, targets = batch(8)
    draws = [Draw(0.3), Draw(0.5, BOX), Draw(), Draw(0.9)]
    half = given(Mix(mode="half", num_classes=CLASSES), draws)(images, targets, generator())
    elem = given(Mix(mode="elem", num_classes=CLASSES), draws * 2)(images, targets, generator())
    for small, large in zip(half, elem, strict=True):
        assert len(small) == 4
        assert torch.equal(small, large[:4])


@pytest.mark.parametrize("mode", ["batch", "pair", "elem", "half"])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_odd_batches(mode, size):
    images, targets = batch(size)
    for draw in (Draw(0.3), Draw(1 - 84 / 192, BOX)):
        mix = given(Mix(mode=mode, num_classes=CLASSES, label_smoothing=0), [draw] * size)
        mixed, rows = mix(images, targets, generator())
        assert len(mixed) == len(rows) == ((size + 1) // 2 if mode == "half" else size)
        middle = size // 2
        torch.testing.assert_close(mixed[middle], images[middle])
        torch.testing.assert_close(rows[middle], torch.eye(CLASSES)[targets[middle]])
        if size > 1:
            assert not torch.allclose(mixed[0], images[0])
            inside = (slice(None), *BOX)
            other = images[-1][inside] if draw.box else torch.lerp(images[-1], images[0], draw.lam)[inside]
            torch.testing.assert_close(mixed[0][inside], other)


def test_pairs_share_what_is_drawn():
    images, targets = batch(6)
    mixed = Mix(0.0, 1.0, mode="pair", num_classes=CLASSES)(images, targets, generator())[0]
    torch.testing.assert_close(mixed + mixed.flip(0), images + images.flip(0))
    each = Mix(0.0, 1.0, mode="elem", num_classes=CLASSES)(images, targets, generator())[0]
    assert not torch.allclose(each + each.flip(0), images + images.flip(0))


def test_a_batch_shares_what_is_drawn():
    images, _ = batch(6)
    for alphas in ((1.0, 0.0), (0.0, 1.0)):
        mix = Mix(*alphas, num_classes=2, label_smoothing=0)
        rows = mix(images, torch.tensor([0, 0, 0, 1, 1, 1]), generator(3))[1]
        assert rows.unique(dim=0).shape[0] == 2


# --- what is drawn


def draws_of(count: int = 3000, size: tuple[int, int] = (20, 30), **config) -> list[Draw]:
    mix, rng = Mix(**config), np.random.default_rng(0)
    return [mix._draw_one(*size, rng) for _ in range(count)]


@pytest.mark.parametrize(
    "config",
    [
        {"mixup_alpha": 0.2},
        {"mixup_alpha": 0.8, "prob": 0.6},
        {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "switch_prob": 0.3},
        {"mixup_alpha": 0.0, "cutmix_alpha": 0.5},
        {"mixup_alpha": 0.0, "cutmix_alpha": 0.5, "correct_lam": False},
        {"mixup_alpha": 0.4, "cutmix_minmax": (0.2, 0.8)},
        {"mixup_alpha": 0.0, "cutmix_minmax": (0.3, 0.6), "correct_lam": False},
    ],
)
def test_draws_are_spread_as_in_timm(config):
    np.random.seed(0)
    theirs = peer.Mixup(**config)
    lams, cuts, boxes = [], [], []
    for _ in range(3000):
        lam, cut = theirs._params_per_batch()
        if cut:
            box, lam = peer.cutmix_bbox_and_lam((1, 3, 20, 30), lam, theirs.cutmix_minmax, theirs.correct_lam)
            boxes.append(box)
        cuts.append(cut)
        lams.append(lam)
    draws = draws_of(**config)
    assert ks_2samp(lams, [draw.lam for draw in draws]).pvalue > 1e-3
    ours = [(rows.start, rows.stop, columns.start, columns.stop) for rows, columns in (d.box for d in draws if d.box)]
    assert abs(len(ours) - sum(cuts)) <= 150
    for expected, got in zip(zip(*boxes, strict=True), zip(*ours, strict=True), strict=True):
        assert ks_2samp(expected, got).pvalue > 1e-3


def test_proportion_follows_the_rectangle():
    for draw in draws_of(200, mixup_alpha=0.0, cutmix_alpha=1.0):
        rows, columns = draw.box
        assert draw.lam == 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / 600
    uncorrected = draws_of(200, mixup_alpha=0.0, cutmix_alpha=1.0, correct_lam=False)
    assert len({draw.lam for draw in uncorrected}) == 200


def test_a_side_of_one_length():
    """timm refuses equal least and greatest sides."""
    for draw in draws_of(50, mixup_alpha=0.0, cutmix_minmax=(0.5, 0.5)):
        assert draw.lam == 0.75


def test_nothing_is_mixed_without_luck():
    images, targets = batch(6)
    mixed, rows = Mix(cutmix_alpha=1.0, prob=0.0, num_classes=CLASSES)(images, targets, generator())
    assert torch.equal(mixed, images)
    assert torch.equal(rows, soft_targets(targets, CLASSES, smoothing=0.1))


def test_chance_comes_from_the_generator_alone():
    images, targets = batch(6)
    for mode in ("batch", "pair", "elem", "half"):
        mix = Mix(cutmix_alpha=1.0, mode=mode, num_classes=CLASSES)
        results = [mix(images, targets, generator(seed))[0] for seed in (1, 1, 2)]
        assert torch.equal(results[0], results[1])
        assert not torch.equal(results[0], results[2])
    chance, state = generator(), torch.get_rng_state()
    first, second = (Mix(num_classes=CLASSES)(images, targets, chance)[0] for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    images, targets = batch(5)
    for mode in ("batch", "elem"):
        for alphas in ((1.0, 0.0), (0.0, 1.0)):
            mixed, rows = Mix(*alphas, mode=mode, num_classes=CLASSES)(images.to(dtype), targets, generator())
            assert mixed.dtype == dtype
            assert rows.dtype == torch.float32


# --- errors


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mode": "elm"}, "no mixing mode 'elm'. Did you mean elem?"),
        ({"prob": -0.1}, "prob must be from 0 to 1"),
        ({"switch_prob": 2}, "switch_prob must be"),
        ({"label_smoothing": 1.2}, "label_smoothing must be"),
        ({"mixup_alpha": 0.0}, "one of them above 0"),
        ({"mixup_alpha": -1.0, "cutmix_alpha": 1.0}, "must not be negative"),
        ({"cutmix_minmax": (0.8, 0.2)}, "cutmix_minmax must be"),
        ({"cutmix_minmax": (0.8,)}, "cutmix_minmax must be"),
    ],
)
def test_errors(config, message):
    with pytest.raises(OpsinError) as error:
        Mix(**config)
    assert message in str(error.value)
    assert isinstance(error.value, UnknownArgumentError) == ("mode" in config)


@pytest.mark.parametrize(
    ("targets", "multi_label", "message"),
    [
        (torch.tensor([0, 5]), False, "targets from 0 to 5, but classes are 0 to 4"),
        (torch.tensor([-1, 2]), False, "targets from -1 to 2"),
        (torch.tensor([0.5, 1]), False, r"classes \(B,\) or rows \(B, 5\), not \(2,\) torch.float32"),
        (torch.zeros(2, 4), False, r"not \(2, 4\)"),
        (torch.tensor([0, 1]), True, r"targets must be \(B, 5\), not \(2,\)"),
    ],
)
def test_targets_that_do_not_fit(targets, multi_label, message):
    with pytest.raises(OpsinError, match=message):
        Mix(num_classes=CLASSES, multi_label=multi_label)(batch(2)[0], targets, generator())


def test_images_that_do_not_fit():
    for images, targets in (
        (torch.ones(2, 3, 4, 4).byte(), [0, 1]),
        (torch.ones(3, 4, 4), [0, 1, 2]),
        (batch(2)[0], [0]),
    ):
        with pytest.raises(OpsinError, match=r"expected floats \(B, C, H, W\) and B targets"):
            Mix(num_classes=CLASSES)(images, torch.tensor(targets), generator())
