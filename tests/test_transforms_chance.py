"""Training transforms: what is drawn, and how often, as the judges (timm, torchvision) draw it."""

import numpy as np
import pytest
import timm.data.transforms as judge
import torch
from photo_kit import PLAIN, as_tensor, rng
from PIL import Image
from scipy.stats import ks_2samp, kstest
from timm.data import create_transform as judge_transform
from torchvision.transforms import ColorJitter

from opsin.data import transforms
from opsin.data.transforms import TrainTransform, draw_crop, draw_jitter, draw_size


@pytest.mark.parametrize(("width", "height"), [(500, 375), (200, 640)])
def test_crops_are_distributed_as_the_judges(width, height):
    options = {"scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)}
    peer = judge.RandomResizedCropAndInterpolation(224, **options)
    blank, r = Image.new("RGB", (width, height)), rng(1)
    torch.manual_seed(0)
    theirs = np.array([peer.get_params(blank, **options) for _ in range(3000)])
    ours = np.array([draw_crop(r, height, width, **options) for _ in range(3000)])
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()
    for a, b in ((ours, theirs), (ours[:, 2:3] * ours[:, 3:], theirs[:, 2:3] * theirs[:, 3:])):
        for column in range(a.shape[1]):
            assert ks_2samp(a[:, column], b[:, column]).pvalue > 0.001
    assert ks_2samp(ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]).pvalue > 0.001


@pytest.mark.parametrize("shape", [(10, 1000), (1000, 10), (64, 64), (90, 120)])
def test_crops_that_do_not_fit_fall_back_to_the_middle(shape):
    options = {"scale": (1.0, 1.0), "ratio": (3 / 4, 4 / 3)}
    height, width = shape
    options["scale"] = (5.0, 5.0)  # never fits
    peer = judge.RandomResizedCropAndInterpolation(224, **options)
    assert draw_crop(rng(), height, width, **options) == peer.get_params(Image.new("L", (width, height)), **options)
    assert draw_crop(rng(), 1, 1, scale=(0.01, 0.01), ratio=(1, 1)) == (0, 0, 1, 1)


def test_sizes_that_keep_the_ratio_are_distributed_as_the_judges():
    options = {"random_scale_prob": 0.5, "random_scale_range": (0.8, 1.0), "longest": 0.0}
    options |= {"random_aspect_prob": 0.5, "random_aspect_range": (0.9, 1 / 0.9)}
    r, drawn = rng(2), {"scale": (0.8, 1.0), "ratio": (0.9, 1 / 0.9)}
    blank = Image.new("RGB", (500, 375))
    theirs = np.array([judge.ResizeKeepRatio.get_params(blank, (224, 224), **options) for _ in range(3000)])
    ours = np.array([draw_size(r, 375, 500, (224, 224), **drawn) for _ in range(3000)])
    for column in (0, 1):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 0.001
    assert ks_2samp(ours[:, 1] / ours[:, 0], theirs[:, 1] / theirs[:, 0]).pvalue > 0.001


def test_jitter_is_drawn_as_the_judges():
    r, strengths = rng(3), (0.4, 0.3, 1.5, 0.1)
    drawn = [draw_jitter(r, strengths) for _ in range(2000)]
    for i, (low, high) in enumerate([(0.6, 1.4), (0.7, 1.3), (0.0, 2.5), (-0.1, 0.1)]):
        amounts = [amount for one in drawn for j, amount in one if j == i]
        assert kstest(amounts, "uniform", args=(low, high - low)).pvalue > 0.001
    peer = ColorJitter(*strengths)
    assert (tuple(peer.brightness), tuple(peer.saturation), tuple(peer.hue)) == ((0.6, 1.4), (0.0, 2.5), (-0.1, 0.1))
    counts = np.bincount([sum(j * 4**k for k, (j, _) in enumerate(one)) for one in drawn])
    assert (counts > 0).sum() == 24  # every order
    assert counts.max() < 2 * 2000 / 24
    assert [j for j, _ in draw_jitter(r, (0.4, 0.0, 0.0))] == [0]


def test_flips_blurs_and_the_like_come_as_often_as_asked(monkeypatch):
    array = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "interpolation": "bilinear"}
    seen = []
    monkeypatch.setattr(transforms, "gaussian_blur", lambda pixels, sigma, exact: seen.append(sigma) or pixels)
    for option, change in (
        ("hflip", lambda t: t.flip(2)),
        ("vflip", lambda t: t.flip(1)),
        ("grayscale_prob", lambda t: t.float().mean(0, keepdim=True).expand(3, -1, -1)),
    ):
        transform = TrainTransform(24, **{**PLAIN, **whole, option: 0.3})
        plain, changed = as_tensor(array), change(as_tensor(array)).float()
        near = [
            (t.float() - changed).abs().mean() < (t.float() - plain.float()).abs().mean()
            for t in (transform(array, rng=rng(i)) for i in range(400))
        ]
        assert 90 <= sum(near) <= 150, option
    transform, r = TrainTransform(24, **PLAIN, **whole, gaussian_blur_prob=0.3), rng()
    for _ in range(400):
        transform(array, rng=r)
    assert 90 <= len(seen) <= 150
    assert kstest(seen, "uniform", args=(0.1, 1.9)).pvalue > 0.001
    transform = TrainTransform(24, hflip=0, color_jitter_prob=0.3, color_jitter=0.9, **whole)
    same = sum(torch.equal(transform(array, rng=rng(i)), as_tensor(array)) for i in range(400))
    assert 250 <= same <= 310


def test_random_interpolation_is_even():
    drawn = [TrainTransform(8)._filter(rng(i)) for i in range(400)]
    assert 160 <= drawn.count("bilinear") <= 240
    assert set(drawn) == {"bilinear", "bicubic"}
    assert TrainTransform(8, interpolation="lanczos")._filter(rng()) == "lanczos"


@pytest.mark.parametrize(
    ("options", "on"),
    [
        ({}, True),
        ({"auto_augment": "rand-m9"}, False),
        ({"auto_augment": "3a"}, True),
        ({"auto_augment": "rand-m9-t3a"}, True),
        ({"color_jitter_prob": 0.5}, True),
        ({"color_jitter": None}, False),
        ({"color_jitter": (0.1, 0.2, 0.3, 0.4)}, True),
    ],
)
def test_jitter_is_on_when_the_judges_is(options, on):
    assert ("ColorJitter" in str(judge_transform(224, is_training=True, **options))) == on
    assert bool(TrainTransform(224, **options).color_jitter) == on


def test_a_probability_without_effect_is_mentioned():
    with pytest.warns(UserWarning, match="color_jitter_prob changes nothing beside auto_augment='v0'"):
        assert not TrainTransform(8, auto_augment="v0", color_jitter_prob=0.5).color_jitter
