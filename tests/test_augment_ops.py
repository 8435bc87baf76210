"""Every augmentation operation beside timm's, at every magnitude; more and fewer channels than three."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import auto_augment as peer

from opsin.data.augment import ops
from opsin.data.augment.magnitudes import OPERATIONS, Setting
from opsin.errors import OpsinError

FILL = (124, 116, 104)
FILTERS = {name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic")}
GEOMETRY = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")


def setting(interpolation: str = "bicubic") -> Setting:
    return Setting(fill=FILL, interpolation=(interpolation,), translate_pixels=20, translate_share=0.45, exact=True)


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    photo = Image.open(Path(__file__).parents[1] / "docs/demo.jpg").convert("RGB").resize((75, 57))
    return {
        "photo": np.array(photo),
        "noise": rng.integers(0, 256, (33, 46, 3), dtype=np.uint8),
        "flat": np.full((12, 9, 3), 77, np.uint8),
        "dark": rng.integers(30, 60, (16, 21, 3), dtype=np.uint8),
        "tiny": rng.integers(0, 256, (2, 3, 3), dtype=np.uint8),
        "pixel": rng.integers(0, 256, (1, 1, 3), dtype=np.uint8),
    }


def peer_results(name: str, picture: Image.Image, magnitude: float, resample: Image.Resampling) -> list[np.ndarray]:
    """What timm makes of a picture, one for each sign that it may draw."""
    hparams = {"translate_const": 20, "translate_pct": 0.45}
    level = peer.LEVEL_TO_ARG[name]
    arguments = {level(magnitude, hparams) for _ in range(40)} if level else {()}
    if name.startswith("Posterize") and next(iter(arguments))[0] <= 0:  # which Pillow refuses from version 12 on
        return [np.zeros_like(np.asarray(picture))]
    kwargs = {"fillcolor": FILL if picture.mode == "RGB" else FILL[0], "resample": resample}
    return [np.asarray(peer.NAME_TO_OP[name](picture, *args, **kwargs)) for args in sorted(arguments)]


def test_the_names_are_those_of_timm():
    assert list(OPERATIONS) == list(peer.NAME_TO_OP)


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"GaussianBlurRand"}))
def test_pixels_equal_those_of_timm_at_every_magnitude(name, pictures):
    rng = np.random.default_rng(1)
    moves = name.startswith(("Rotate", "Shear", "Translate"))
    for interpolation in FILTERS if moves else ("bicubic",):
        for image in pictures.values():
            for magnitude in (0, 0.5, 1, 2, 3.3, 4, 5, 6.7, 7, 8, 9, 9.8, 10, 13, 20, 30):
                expected = peer_results(name, Image.fromarray(image), magnitude, FILTERS[interpolation])
                before = image.copy()
                results = [OPERATIONS[name](image, magnitude / 10, setting(interpolation), rng) for _ in range(3)]
                assert np.array_equal(image, before)
                for result in results:
                    assert result.dtype == np.uint8
                    assert any(np.array_equal(result, e) for e in expected), (interpolation, magnitude, image.shape)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y"])
def test_fast_moves_are_near_the_exact_ones(name, interpolation, pictures):
    """To a grey level (bilinear) or two, of noise three, and outside where they are outside."""
    move, differ = getattr(ops, name), False
    photo = np.array(Image.open(Path(__file__).parents[1] / "docs/demo.jpg").convert("RGB").resize((224, 160)))
    for kind, image in (pictures | {"large": photo}).items():
        side = image.shape[name.endswith("x")]
        for amount in (0.0, 0.031, -0.15, 0.27, -0.3) if name.startswith("shear") else (0, 3, -2.5, 0.37 * side, -side):
            options = {"fill": FILL, "interpolation": interpolation}
            before = image.copy()
            exact = move(image, amount, **options, exact=True).astype(int)
            fast = move(image, amount, **options)
            assert np.array_equal(image, before)
            assert fast.dtype == np.uint8
            apart = np.abs(fast - exact)
            assert apart.max() <= (1 if interpolation == "bilinear" else 2 if kind in ("large", "photo", "flat") else 3)
            assert apart.mean() < (0.1 if kind in ("large", "photo", "flat") else 0.4), (kind, amount)
            if kind == "flat":
                assert np.array_equal(fast == FILL, exact == FILL)
            differ |= apart.any()
    assert differ


def test_nearest_moves_are_exact_anyway(pictures):
    for name in GEOMETRY[1:]:
        results = [getattr(ops, name)(pictures["photo"], 0.3, interpolation="nearest", exact=e) for e in (False, True)]
        assert np.array_equal(*results)


@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
def test_both_directions_are_drawn(name, pictures):
    for suffix, count in (("Increasing", 2), ("", 1)):
        apply = OPERATIONS[name + suffix]
        outcomes = {apply(pictures["photo"], 0.4, setting(), np.random.default_rng(i)).tobytes() for i in range(20)}
        assert len(outcomes) == count


@pytest.mark.parametrize("name", ["Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY", "TranslateXRel"])
def test_both_ways_and_all_filters_are_drawn(name, pictures):
    several = Setting(fill=FILL, interpolation=("bilinear", "bicubic"), translate_pixels=20.3, translate_share=0.45)
    outcomes = {
        OPERATIONS[name](pictures["photo"], 0.47, several, np.random.default_rng(i)).tobytes() for i in range(40)
    }
    assert len(outcomes) == 4


def test_random_blur_takes_its_whole_range(pictures):
    photo = pictures["photo"]
    for level in (0, 0.3, 1, 2):
        sharp = [ops.gaussian_blur(photo, radius).std() for radius in (0.1, 2 * min(level, 1))]
        rng = np.random.default_rng(0)
        drawn = [OPERATIONS["GaussianBlurRand"](photo, level, setting(), rng).std() for _ in range(60)]
        assert min(sharp) <= min(drawn) <= max(drawn) <= max(sharp)
        assert max(drawn) - min(drawn) >= 0.8 * (max(sharp) - min(sharp))


def test_zero_bits_are_black_and_eight_are_all(pictures):
    photo = pictures["photo"]
    assert not ops.posterize(photo, 0).any()
    assert not ops.posterize(photo, -4).any()
    assert ops.posterize(photo, 8) is photo
    assert set(np.unique(ops.posterize(photo, 1))) == {0, 128}


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"GaussianBlurRand"}))
def test_grey_pictures(name, pictures):
    grey = Image.fromarray(pictures["photo"]).convert("L")
    one = replace(setting(), fill=FILL[:1])
    for magnitude in (2, 9):
        result = OPERATIONS[name](np.asarray(grey)[..., None], magnitude / 10, one, np.random.default_rng(0))
        expected = peer_results(name, grey, magnitude, FILTERS["bicubic"])
        assert result.shape == (57, 75, 1)
        assert any(np.array_equal(result[..., 0], e) for e in expected)


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_other_channels_are_treated_one_by_one(channels):
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (24, 31, channels), dtype=np.uint8)
    fill = tuple(range(10, 10 + channels))
    for function, argument in (
        *((getattr(ops, name), 7.3) for name in ("rotate", "translate_x", "translate_y")),
        *((getattr(ops, name), -0.13) for name in ("shear_x", "shear_y")),
    ):
        planes = [function(image[..., i : i + 1], argument, fill=fill[i : i + 1]) for i in range(channels)]
        assert np.array_equal(function(image, argument, fill=fill), np.concatenate(planes, axis=2))
    for function, arguments in (
        *((getattr(ops, name), ()) for name in ("auto_contrast", "equalize", "invert")),
        *((getattr(ops, name), (90,)) for name in ("solarize", "solarize_add")),
        *((getattr(ops, name), (1.6,)) for name in ("brightness", "sharpness", "gaussian_blur")),
        (ops.posterize, (3,)),
    ):
        planes = [function(image[..., i : i + 1], *arguments) for i in range(channels)]
        assert np.array_equal(function(image, *arguments), np.concatenate(planes, axis=2))
    grey = np.rint(image.mean(axis=2)).astype(np.uint8)
    assert np.array_equal(ops.desaturate(image, 1), np.repeat(grey[..., None], channels, axis=2))
    assert np.array_equal(ops.color(image, 1), image)
    assert np.array_equal(ops.contrast(image, 0), np.full_like(image, int(grey.mean() + 0.5)))


@pytest.mark.parametrize("name", GEOMETRY)
def test_a_fill_of_other_channels_is_refused(name, pictures):
    with pytest.raises(OpsinError, match=r"fill \(1, 2\) has 2 values for an image of 3 channels"):
        getattr(ops, name)(pictures["photo"], 0.2, fill=(1, 2))


def test_results_can_be_written_to(pictures):
    rng = np.random.default_rng(0)
    for name, apply in OPERATIONS.items():
        assert apply(pictures["photo"].copy(), 0.4, setting(), rng).flags.writeable, name


def test_views_are_read_as_they_are(pictures):
    """A picture that was flipped or cropped is no contiguous block of memory."""
    flipped, cropped = pictures["photo"][:, ::-1], pictures["photo"][3:40, 5:50]
    for view in (flipped, cropped):
        for name, apply in OPERATIONS.items():
            results = [apply(a, 0.4, setting(), np.random.default_rng(5)) for a in (view, np.ascontiguousarray(view))]
            assert np.array_equal(*results), name
