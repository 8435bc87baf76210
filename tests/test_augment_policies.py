"""Policies by their strings: read and drawn as in timm, reproducible, kind about typing errors."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy.stats import chisquare, ks_2samp
from timm.data import auto_augment as peer

from opsin.data.augment.magnitudes import OPERATIONS, Operation, Setting
from opsin.data.augment.policies import AugMix, AutoAugment, RandAugment, parse_policy
from opsin.errors import OpsinError, UnknownArgumentError

FILL = (124, 116, 104)
SIZE = (40, 52)
RAND = (
    *("rand", "rand-m9-mstd0.5-inc1", "rand-m9-n3-mstd0.5", "rand-m7-p0.3", "rand-m9-mmax20-mstd2", "rand-m9-inc0"),
    *("rand-m12", "rand-m9-tweights-n4", "rand-m6-t3a", "rand-n3-t3aw-mstd101"),
)
AUTO = ("original", "originalr", "v0", "v0r", "3a", "3a-mstd0.5", "v0-mstd1", "original-mstd0.5")
AUGMIX = ("augmix", "augmix-m5-w4-d2", "augmix-m3-w3-d2-b1-a0.5", "augmix-m2-mstd1", "augmix-w1-d1-b0", "augmix-b1-w4")


def read(spec: str, interpolation: str = "bicubic", size: tuple[int, int] = SIZE):
    return parse_policy(spec, img_size=size, mean=FILL, interpolation=interpolation)


def peer_read(spec: str):
    hparams = {"translate_const": 18, "img_mean": FILL, "interpolation": Image.Resampling.BICUBIC}
    if spec.startswith("augmix"):
        return peer.augment_and_mix_transform(spec, hparams | {"translate_pct": 0.3})
    read = peer.rand_augment_transform if spec.startswith("rand") else peer.auto_augment_transform
    return read(spec, hparams)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    image = Image.open(Path(__file__).parents[1] / "docs/demo.jpg").convert("RGB")
    return np.array(image.resize(SIZE[::-1]))


@pytest.fixture
def forgiving(monkeypatch):
    """timm asks Pillow to keep 0 bits, which it refuses since version 12; black is what it gave before."""
    posterize = ImageOps.posterize
    monkeypatch.setattr(
        ImageOps, "posterize", lambda im, bits: posterize(im, bits) if bits > 0 else Image.new(im.mode, im.size)
    )


def plain(operation) -> tuple:
    """What an operation of either side does; a magnitude with nothing above it in timm goes up to 10."""
    if isinstance(operation, Operation):
        numbers = operation.probability, operation.magnitude, operation.deviation, operation.maximum
    else:
        numbers = operation.prob, operation.magnitude, operation.magnitude_std, operation.magnitude_max or 10
    return (operation.name, *map(float, numbers))


@pytest.mark.parametrize("spec", RAND)
def test_rand_strings(spec):
    ours, theirs = read(spec), peer_read(spec)
    assert isinstance(ours, RandAugment)
    assert [plain(o) for o in ours.operations] == [plain(o) for o in theirs.ops]
    assert ours.count == theirs.num_layers
    assert (ours.weights is None) == (theirs.choice_weights is None)
    if ours.weights is not None:
        assert ours.weights == pytest.approx(theirs.choice_weights)


@pytest.mark.parametrize("spec", AUTO)
def test_auto_strings(spec):
    ours, theirs = read(spec), peer_read(spec)
    assert isinstance(ours, AutoAugment)
    assert [[plain(o) for o in ops] for ops in ours.subpolicies] == [[plain(o) for o in ops] for ops in theirs.policy]


@pytest.mark.parametrize("spec", AUGMIX)
def test_augmix_strings(spec):
    ours, theirs = read(spec), peer_read(spec)
    assert isinstance(ours, AugMix)
    assert {plain(o) for o in ours.operations} == {plain(o) for o in theirs.ops}
    assert len(ours.operations) == len(theirs.ops)
    assert (ours.alpha, ours.width, ours.depth or -1, ours.blended) == (
        theirs.alpha, theirs.width, theirs.depth, theirs.blended,
    )  # fmt: skip


@pytest.mark.parametrize("spec", [*RAND, *AUTO, *AUGMIX])
def test_pictures_are_spread_as_in_timm(spec, photo, forgiving):
    """How far pictures are from the original, and how bright they are, has the same distribution."""
    count = 150 if spec.startswith("augmix") else 400
    random.seed(0), np.random.seed(0)
    theirs, picture = peer_read(spec), Image.fromarray(photo)
    expected = np.stack([np.asarray(theirs(picture), np.float32) for _ in range(count)])
    ours, rng = read(spec), np.random.default_rng(0)
    got = np.stack([ours(photo, rng).astype(np.float32) for _ in range(count)])
    for measure in (
        lambda x: np.abs(x - photo).mean((1, 2, 3)),
        lambda x: x.mean((1, 2, 3)),
        lambda x: x.std((1, 2))[:, 0],
    ):
        assert ks_2samp(measure(expected), measure(got)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("magnitude", "deviation", "maximum"), [(9, 0.5, 10), (5, 2, 6), (9, math.inf, 10), (18, 5, 20), (12, 0, 10)]
)
def test_magnitudes_are_spread_as_in_timm(magnitude, deviation, maximum):
    theirs = peer.AugmentOp("Rotate", 1, magnitude, {"magnitude_std": deviation, "magnitude_max": maximum})
    expected: list[float] = []
    theirs.aug_fn = lambda image, degrees, **_: expected.append(abs(degrees) / 3)
    random.seed(0)
    for _ in range(3000):
        theirs(None)
    ours = Operation(name="Rotate", setting=setting(), magnitude=magnitude, deviation=deviation, maximum=maximum)
    rng = np.random.default_rng(0)
    assert ks_2samp(expected, [ours.draw_magnitude(rng) for _ in range(3000)]).pvalue > 1e-3


def setting() -> Setting:
    return Setting(fill=FILL, interpolation=("bicubic",), translate_pixels=18, translate_share=0.45)


def drawn(policy: RandAugment, monkeypatch, times: int) -> list[list[str]]:
    """The names of the operations done each time."""
    seen: list[str] = []
    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, lambda image, *_, name=name: (seen.append(name), image)[1])
    rng, runs = np.random.default_rng(0), []
    for _ in range(times):
        policy(np.zeros((2, 2, 3), np.uint8), rng)
        runs.append(seen.copy())
        seen.clear()
    return runs


@pytest.mark.parametrize("spec", ["rand-n2-p1", "rand-n2-p1-tweights", "rand-n1-p1-w0", "rand-n1-p1-t3aw"])
def test_operations_are_drawn_by_weight(spec, monkeypatch):
    policy = read(spec)
    runs = drawn(policy, monkeypatch, 4000)
    names = [operation.name for operation in policy.operations]
    first = [[run[0] for run in runs].count(name) for name in names]
    expected = np.full(len(names), 1 / len(names)) if policy.weights is None else policy.weights
    assert chisquare(first, expected * len(runs)).pvalue > 1e-3
    twice = sum(len(set(run)) < len(run) for run in runs)
    assert (twice > 0) == (policy.weights is None)


def test_probability(monkeypatch):
    counts = [len(run) for run in drawn(read("rand-n1-p0.3"), monkeypatch, 4000)]
    assert np.mean(counts) == pytest.approx(0.3, abs=0.03)
    assert not any(drawn(read("rand-n2-p0"), monkeypatch, 50))


def test_w0_weighs_the_set_that_inc_chooses():
    weights = {
        o.name: w for o, w in zip(*(getattr(read("rand-tweights"), k) for k in ("operations", "weights")), strict=True)
    }
    for spec, suffix in (("rand-w0", ""), ("rand-w0-inc1", "Increasing")):
        policy = read(spec)
        assert policy.weights is not None
        assert [o.name for o in policy.operations] == [o.name for o in read(spec.replace("-w0", "")).operations]
        for operation, weight in zip(policy.operations, policy.weights, strict=True):
            name = operation.name
            assert weight == pytest.approx(weights[name if name in weights else f"{name}Increasing"])
        assert f"Solarize{suffix}" in {o.name for o in policy.operations}


def test_a_set_of_ones_own(photo):
    policy = read("rand-n1-p1-m10-tTranslateX+Invert")
    assert [o.name for o in policy.operations] == ["TranslateX", "Invert"]
    assert policy.weights is None


def test_translation_follows_the_size(photo):
    """0.45 of the shorter side, to either side."""
    for size, pixels in (((40, 52), 18), ((20, 52), 9)):
        result = read("rand-n1-p1-m10-tTranslateX", size=size)(photo, np.random.default_rng(0))
        outside = (result == FILL).all(axis=(0, 2))
        assert outside.sum() == pixels


def test_interpolation(photo):
    results = {}
    for interpolation in ("nearest", "bilinear", "bicubic", "lanczos", "random"):
        policy = read("rand-n1-p1-m8-tRotate", interpolation)
        results[interpolation] = {policy(photo, np.random.default_rng(i)).tobytes() for i in range(30)}
    assert [len(found) for found in results.values()] == [2, 2, 2, 2, 4]
    assert not results["nearest"] & results["bilinear"]
    assert results["random"] == results["bilinear"] | results["bicubic"]
    assert results["lanczos"] == results["bicubic"]
    with pytest.raises(UnknownArgumentError, match="no interpolation 'bicubik'. Did you mean bicubic"):
        read("rand", "bicubik")


def test_exact_policies_have_the_pixels_of_pillow(photo):
    transform = Image.Transform.AFFINE, (1, 0.3, 0, 0, 1, 0), Image.Resampling.BICUBIC
    expected = np.asarray(Image.fromarray(photo).transform(SIZE[::-1], *transform, fillcolor=FILL)).astype(int)
    apart = []
    for exact in (True, False):
        policy = parse_policy("rand-n1-p1-m10-tShearX", img_size=SIZE, mean=FILL, interpolation="bicubic", exact=exact)
        results = [policy(photo, np.random.default_rng(i)) for i in range(8)]  # either way
        apart.append(min(np.abs(result - expected).max() for result in results))
    assert apart[0] == 0
    assert 1 <= apart[1] <= 2


def test_mean_fills(photo):
    policy = parse_policy("rand-n1-p1-m10-tTranslateX", img_size=SIZE, mean=(1, 2, 3), interpolation="bicubic")
    assert (policy(photo, np.random.default_rng(0)) == (1, 2, 3)).all(axis=(0, 2)).sum() == 18


@pytest.mark.parametrize("spec", [*RAND, *AUTO, *AUGMIX])
def test_chance_comes_from_the_generator_alone(spec, photo):
    policy, before = read(spec, "random"), photo.copy()
    for seed in range(12):
        results = []
        for other in (1, 2):
            random.seed(other), np.random.seed(other)
            results.append(policy(photo, np.random.default_rng(seed)))
        assert np.array_equal(*results)
        assert results[0].shape == photo.shape
        assert results[0].dtype == np.uint8
    assert np.array_equal(photo, before)
    assert len({policy(photo, np.random.default_rng(seed)).tobytes() for seed in range(12)}) > 1


@pytest.mark.parametrize("blended", ["", "-b1"])
def test_augmix_weights(blended, photo, monkeypatch):
    """Chains that all paint white over black show the share of what was mixed."""
    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, lambda image, *_: np.full_like(image, 255))
    black = np.zeros((1, 1, 3), np.uint8)
    policy, rng = read("augmix-w3-a0.8" + blended), np.random.default_rng(0)
    shares = [policy(black, rng)[0, 0, 0] / 255 for _ in range(2000)]
    assert ks_2samp(shares, np.random.default_rng(1).beta(0.8, 0.8, 2000)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rnd-m9", "no augmentation policy 'rnd' (in 'rnd-m9'). Did you mean rand?"),
        ("orignal", "Did you mean original"),
        ("", "no augmentation policy ''"),
        ("rand-msdt0.5", "no rand option 'msdt' (in 'rand-msdt0.5'). Did you mean mstd?"),
        ("rand-m9-x2", "It can be m, n, p, mstd, mmax, inc, w, t."),
        ("v0-m9", "no v0 option 'm'"),
        ("augmix-inc1", "no augmix option 'inc'"),
        ("rand-m", "'m' in 'rand-m': an option is a key and its value"),
        ("v0-", "'' in 'v0-'"),
        ("rand-tweigths", "'weigths' (in 'rand-tweigths'). Did you mean weights?"),
        ("rand-tRotat+Invert", "Did you mean Rotate"),
        ("rand-m5-m9", "m is given twice"),
        ("rand-p1.5", "must be from 0 to 1"),
        ("rand-n0", "must be a whole number from 1"),
        ("rand-n2.5", "must be a whole number from 1"),
        ("rand-inc2", "must be a whole number from 0 to 1"),
        ("rand-w1", "must be a whole number 0"),
        ("rand-w0-t3a", "w and t both"),
        ("rand-n16-tweights", "there are 15 operations, none is drawn twice"),
        ("augmix-a0", "must be from 0.001"),
    ],
)
def test_errors_name_the_right_one(spec, message):
    with pytest.raises(OpsinError) as error:
        read(spec)
    assert message in str(error.value)
