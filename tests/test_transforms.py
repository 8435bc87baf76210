"""Transforms: geometry and pixels as the judges (timm, torchvision) have them; how far fast pixels are from exact."""

import math
import pickle

import numpy as np
import pytest
import timm.data.transforms as judge
import torch
from photo_kit import BIG, PHOTO, PLAIN, SMALL, Always, as_tensor, difference, encode, rng
from PIL import Image, ImageOps
from skimage import data as photos
from timm.data import create_transform as judge_transform
from torch.utils.data import DataLoader
from torchvision.transforms import GaussianBlur, InterpolationMode
from torchvision.transforms import functional as TF

from opsin.data import transforms
from opsin.data.augment.policies import parse_policy
from opsin.data.decode import decode, open_picture
from opsin.data.preprocess import FILTERS, Preprocess, create_transform
from opsin.data.resample import largest_reduction
from opsin.data.transforms import EvalTransform, TrainingPreprocess, TrainTransform, draw_crop
from opsin.errors import ImageError, OpsinError, UnknownArgumentError

# --- evaluation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop_mode", ["center", "border", "squash"])
@pytest.mark.parametrize("interpolation", FILTERS)
def test_eval_geometry_is_that_of_preprocess(crop_mode, interpolation):
    for width, height in ((120, 90), (90, 121), (64, 64), (31, 77), (50, 20), (73, 73), (1, 9)):
        image = PHOTO.resize((width, height))
        for size, crop_pct in (((64, 64), 0.875), ((64, 64), 1.2), ((40, 56), 0.9), ((96, 80), 1.0)):
            fit = Preprocess(input_size=(3, *size), interpolation=interpolation, crop_mode=crop_mode, crop_pct=crop_pct)
            expected = fit.to_uint8(image)
            assert torch.equal(EvalTransform(fit, exact=True)(image), expected)
            got = EvalTransform(fit)(image)
            assert got.dtype == torch.uint8
            assert got.is_contiguous()
            mean, greatest = difference(got, expected)
            assert mean < 0.5
            assert greatest <= 3, (width, height, size, crop_pct)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_eval_of_a_photo_of_the_usual_size_is_within_three_grey_levels(interpolation):
    for image in (PHOTO, PHOTO.rotate(90, expand=True), Image.fromarray(photos.chelsea())):
        for size, crop_pct in ((224, 0.875), (224, 0.95), (288, 1.0)):
            fit = Preprocess(input_size=(3, size, size), crop_pct=crop_pct, interpolation=interpolation)
            data = encode(image)
            expected = fit.to_uint8(Image.fromarray(decode(data)))
            assert torch.equal(EvalTransform(fit, exact=True)(data), expected)
            mean, greatest = difference(EvalTransform(fit)(data), expected)
            assert mean < 0.1
            assert greatest <= 3


@pytest.mark.parametrize("crop_mode", ["center", "border", "squash"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_eval_of_a_big_photo_differs_by_less_than_a_grey_level(crop_mode, interpolation):
    picture, reductions = Image.fromarray(decode(BIG)), set()
    for side in (224, 160, 80, 448):
        fit = Preprocess(input_size=(3, side, side), crop_mode=crop_mode, interpolation=interpolation, crop_pct=1.0)
        height, width = fit.resized(1802, 2403)
        reduction = largest_reduction(open_picture(BIG), min(1802 / height, 2403 / width))
        mean, greatest = difference(EvalTransform(fit)(BIG), fit.to_uint8(picture))
        assert mean < (0.8 if reduction > 1 else 0.1)
        assert greatest <= (20 if reduction > 1 else 3)
        assert (mean > 0.1) == (reduction > 1)  # less decoding has really happened
        reductions.add(reduction)
    assert reductions >= {2, 4, 8}


def test_eval_sizes_channels_and_sources():
    fit = Preprocess(input_size=(3, 160, 160))
    transform = EvalTransform(fit)
    assert torch.equal(transform(SMALL, size=(32, 48)), EvalTransform(Preprocess(input_size=(3, 32, 48)))(SMALL))
    array = decode(SMALL)
    for source in (array, Image.fromarray(array)):
        assert torch.equal(transform(source, rng=rng()), transform(SMALL))
    grey = Preprocess(input_size=(1, 160, 160), mean=(0.4,), std=(0.2,))
    assert difference(EvalTransform(grey)(SMALL), grey.to_uint8(Image.fromarray(array)))[1] <= 2
    many = Preprocess(input_size=(5, 64, 60), mean=(0.1, 0.2, 0.3, 0.4, 0.5), std=(1,) * 5, crop_mode="border")
    five = np.concatenate([array, array[..., :2]], axis=2)
    assert difference(EvalTransform(many)(five), many.to_uint8(five))[1] <= 2
    assert torch.equal(EvalTransform(many, exact=True)(five), many.to_uint8(five))
    same = decode(encode(PHOTO.resize((64, 64))))
    assert torch.equal(EvalTransform(Preprocess(input_size=(3, 64, 64), crop_pct=1.0))(same), as_tensor(same))
    with pytest.raises(ImageError, match="truncated"):
        transform(SMALL[:2000])


def test_eval_of_an_endless_strip(monkeypatch):
    monkeypatch.setattr(transforms, "HUGE", 10_000)
    fit = Preprocess(input_size=(3, 64, 64))
    strip = PHOTO.resize((400, 20))
    assert torch.equal(EvalTransform(fit)(strip), fit.to_uint8(strip))  # past the limit Preprocess decides


# --- training: pixels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("box", [(10, 20, 200, 300), (0, 0, 375, 500), (100, 7, 60, 45)])
def test_resized_crop_given_the_box(box, interpolation, monkeypatch):
    monkeypatch.setattr(transforms, "draw_crop", lambda *_, **__: box)
    array = decode(SMALL)
    mode = InterpolationMode(interpolation)
    expected = as_tensor(TF.resized_crop(Image.fromarray(array), *box, (96, 80), mode))
    options = {**PLAIN, "interpolation": interpolation}
    assert torch.equal(TrainTransform((96, 80), **options, exact=True)(SMALL, rng=rng()), expected)
    mean, greatest = difference(TrainTransform((96, 80), **options)(SMALL, rng=rng()), expected)
    assert mean < 0.05
    assert greatest <= 2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resized_crop_of_a_big_photo(interpolation, monkeypatch):
    """Of a reduced photo the box has corners at whole pixels of it; given that, the pixels are near the exact ones."""
    full = Image.fromarray(decode(BIG))
    for box, reduce in (((301, 403, 1201, 1403), 2), ((4, 8, 1790, 2390), 4), ((300, 400, 500, 500), 1)):
        monkeypatch.setattr(transforms, "draw_crop", lambda *_, box=box, **__: box)
        top, left, height, width = box
        y, x = round(top / reduce) * reduce, round(left / reduce) * reduce
        h, w = round((top + height) / reduce) * reduce - y, round((left + width) / reduce) * reduce - x
        expected = as_tensor(TF.resized_crop(full, y, x, h, w, (160, 160), InterpolationMode(interpolation)))
        got = TrainTransform(160, **PLAIN, interpolation=interpolation)(BIG, rng=rng())
        mean, greatest = difference(got, expected)
        assert mean < 0.8
        assert greatest <= (20 if reduce > 1 else 2)
        assert (mean > 0.05) == (reduce > 1)


@pytest.mark.parametrize("mode", ["rkrc", "rkrr"])
@pytest.mark.parametrize("size", [(64, 64), (48, 90)])
def test_kept_ratio_is_the_judges(mode, size, monkeypatch):
    still = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    for shape in ((120, 90), (90, 121), (64, 64), (31, 77)):
        image = PHOTO.resize(shape)
        options = {"interpolation": "bicubic", "train_crop_mode": mode, "hflip": 0.0, "color_jitter": None, **still}
        if mode == "rkrc":
            peer = judge_transform((3, *size), is_training=True, normalize=False, **options)
            expected = peer(image)
        else:  # the judge's resizing, and our place for the crop: the lowest one drawn
            resized = judge.ResizeKeepRatio(size, interpolation="bicubic")(image)
            down, right = (min(want - have, 0) for have, want in zip(resized.size[::-1], size, strict=True))
            expected = as_tensor(TF.crop(resized, -down, -right, *size))
        got = TrainTransform(size, **options, exact=True)(image, rng=rng() if mode == "rkrc" else Always())
        assert torch.equal(got, expected)
        fast = TrainTransform(size, **options)(image, rng=rng() if mode == "rkrc" else Always())
        assert difference(fast, expected)[1] <= 3
    places = {transforms.anywhere(70, 64, rng(i)) for i in range(200)}
    assert places == set(range(-6, 1))
    assert {transforms.anywhere(60, 64, rng(i)) for i in range(200)} == set(range(5))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])  # a part of the picture, or mirrored around it
def test_kept_ratio_takes_the_share_that_the_judges_takes(scale, exact):
    options = {"train_crop_mode": "rkrc", "scale": (scale, scale), "ratio": (1.4, 1.4)}
    options |= {"interpolation": "bilinear", "hflip": 0.0, "color_jitter": None}
    peer = judge_transform(64, is_training=True, normalize=False, **options)
    peer.transforms[0].random_scale_prob = peer.transforms[0].random_aspect_prob = 1.0
    got = TrainTransform(64, **options, exact=exact)(PHOTO, rng=Always())
    assert difference(got, peer(PHOTO))[1] <= (0 if exact else 3)


@pytest.mark.parametrize("exact", [False, True])
def test_flips(exact):
    array = decode(SMALL)[:64, :48]
    whole = {"train_crop_mode": "rkrc", "scale": (1, 1), "ratio": (1, 1), "exact": exact, "color_jitter": None}
    for options, expected in (
        ({"hflip": 1.0}, ImageOps.mirror),
        ({"hflip": 0.0, "vflip": 1.0}, ImageOps.flip),
        ({"hflip": 1.0, "vflip": 1.0}, lambda image: image.rotate(180)),
    ):
        got = TrainTransform((64, 48), **whole, **options)(array, rng=rng())
        assert torch.equal(got, as_tensor(expected(Image.fromarray(array))))


@pytest.mark.parametrize("factor", [0.0, 0.37, 1.0, 1.81])
def test_adjustments_are_torchvisions(factor):
    array = decode(SMALL)
    image = Image.fromarray(array)
    peers = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation)
    for ours, peer in zip(transforms.ADJUSTMENTS, peers, strict=False):
        assert np.array_equal(ours(array, factor), np.asarray(peer(image, factor)))
    for turn in (factor / 4, -factor / 4):
        assert np.array_equal(transforms.hue(array, turn), np.asarray(TF.adjust_hue(image, turn)))
    assert np.array_equal(transforms.hue(array[..., :1], 0.3), array[..., :1])


def test_jitter_gray_and_blur_in_place_and_order(monkeypatch):
    array = decode(SMALL)[:96, :96]
    monkeypatch.setattr(transforms, "draw_jitter", lambda *_: [(3, 0.1), (1, 1.3), (2, 0.4), (0, 0.8)])
    options = {"hflip": 0.0, "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "interpolation": "bilinear"}
    got = TrainTransform(96, **options, grayscale_prob=1.0, gaussian_blur_prob=1.0, exact=True)(array, rng=Always())
    image = TF.adjust_contrast(TF.adjust_hue(Image.fromarray(array), 0.1), 1.3)
    image = TF.to_grayscale(TF.adjust_brightness(TF.adjust_saturation(image, 0.4), 0.8), 3)
    assert torch.equal(got, as_tensor(GaussianBlur(23, (0.1, 0.1))(image)))


@pytest.mark.parametrize("sigma", [0.1, 0.6, 2.0])
def test_blur_is_torchvisions(sigma):
    array = decode(SMALL)[:50, :71]
    expected = torch.from_numpy(np.asarray(GaussianBlur(23, (sigma, sigma))(Image.fromarray(array))).copy())
    assert torch.equal(torch.from_numpy(transforms.gaussian_blur(array, sigma, exact=True)), expected)
    mean, greatest = difference(torch.from_numpy(transforms.gaussian_blur(array, sigma)), expected)
    assert mean < 0.001
    assert greatest <= 1


def test_blur_of_a_picture_smaller_than_its_kernel():
    array = decode(SMALL)[:6, :9]
    for exact in (False, True):
        blurred = transforms.gaussian_blur(array, 2.0, exact=exact)
        assert blurred.shape == (6, 9, 3)
        assert blurred.std() < array.std()
    assert np.array_equal(transforms.gaussian_blur(array[:1, :1], 2.0), array[:1, :1])


@pytest.mark.parametrize("exact", [False, True])
def test_policy_works_on_the_flipped_crop(exact):
    array = decode(SMALL)
    policy = parse_policy(
        "rand-m9-n3-p1", img_size=(64, 48), mean=(124, 116, 104), interpolation="bilinear", exact=exact
    )
    options = {"interpolation": "bilinear", "hflip": 1.0, "scale": (0.5, 0.5), "exact": exact}
    plain = TrainTransform((64, 48), color_jitter=None, **options)
    for seed in range(20):
        r = rng(seed)
        crop = np.ascontiguousarray(plain(array, rng=rng(seed)).permute(1, 2, 0).numpy())
        expected = policy(crop, _after(plain, array, r))
        got = TrainTransform((64, 48), auto_augment="rand-m9-n3-p1", **options)(array, rng=rng(seed))
        assert torch.equal(got, as_tensor(expected))


def _after(transform: TrainTransform, image: np.ndarray, r: np.random.Generator) -> np.random.Generator:
    """The generator as it is when the policy's turn comes."""
    height, width = image.shape[:2]
    draw_crop(r, height, width, scale=transform.scale, ratio=transform.ratio)
    r.random(), r.random()  # the flips
    return r


def test_splits_share_the_crop():
    transform = TrainTransform(64, auto_augment="augmix-m5-w2", num_aug_splits=3)
    got = transform(SMALL, rng=rng(1))
    assert got.shape == (3, 3, 64, 64)
    assert torch.equal(got[0], TrainTransform(64, color_jitter=None)(SMALL, rng=rng(1)))
    assert not torch.equal(got[1], got[2])
    assert difference(got[1], got[0])[0] < 60
    for size in ((32, 40), (64, 64)):
        assert transform(SMALL, rng=rng(), size=size).shape == (3, 3, *size)


def test_only_the_generator_decides():
    transform = TrainTransform(48, auto_augment="rand-m9-mstd0.5-inc1", grayscale_prob=0.5, gaussian_blur_prob=0.5)
    torch.manual_seed(0)
    np.random.seed(0)
    first = [transform(SMALL, rng=rng(i)) for i in range(10)]
    torch.manual_seed(1)
    np.random.seed(1)
    copied = pickle.loads(pickle.dumps(transform))  # as it goes to a spawned worker
    assert all(torch.equal(a, copied(SMALL, rng=rng(i))) for i, a in enumerate(first))
    assert not torch.equal(first[0], first[1])


def test_channels_follow_the_mean():
    array = np.concatenate([decode(SMALL)] * 2, axis=2)[..., :5]
    options = {"mean": (0.5,) * 5, "auto_augment": "rand-m9-n3-p1", "grayscale_prob": 0.5, "gaussian_blur_prob": 0.5}
    for exact in (False, True):
        for seed in range(5):
            assert TrainTransform(40, **options, exact=exact)(array, rng=rng(seed)).shape == (5, 40, 40)
    assert TrainTransform(40, mean=(0.5,))(SMALL, rng=rng()).shape == (1, 40, 40)
    with pytest.raises(ImageError, match="3 channels, but the model takes 5"):
        TrainTransform(40, **options)(SMALL, rng=rng())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"interpolation": "bicubik"}, "bicubic"),
        ({"train_crop_mode": "rcc"}, "rrc"),
        ({"auto_augment": "rnd-m9"}, "rand"),
        ({"hflip": 1.5}, "hflip is a probability"),
        ({"color_jitter": (0.1, 0.2)}, "color_jitter"),
        ({"color_jitter": (0.1, 0.2, 0.3, 0.7)}, "0.5"),
        ({"scale": (0.5, 2.0)}, "share of the area"),
        ({"ratio": (2.0, 1.0)}, "ratio"),
        ({"num_aug_splits": 1}, "num_aug_splits"),
        ({"size": (0, 4)}, "size"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(OpsinError, match=words):
        TrainTransform(**{"size": 32, **options})


# --- by the name timm's users know ------------------------------------------------------------------------------------


class Repeated(torch.utils.data.Dataset):
    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 8

    def __getitem__(self, _):
        return self.transform(PHOTO)


def test_create_transform_for_training():
    transform = create_transform(
        (3, 48, 40), is_training=True, auto_augment="rand-m9-mstd0.5-inc1", interpolation="random", crop_pct=0.9
    )
    assert isinstance(transform, TrainingPreprocess)
    torch.manual_seed(3)
    first, second = transform(PHOTO), transform(PHOTO)
    assert first.shape == (3, 48, 40)
    assert first.dtype == torch.float32
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(transform(PHOTO), first)
    still = {"scale": (1, 1), "ratio": (1, 1), **PLAIN}
    plain = create_transform(48, is_training=True, mean=(0.5,) * 3, std=(0.25,) * 3, **still)
    square = PHOTO.resize((48, 48))
    assert torch.allclose(plain(square), (as_tensor(square) / 255 - 0.5) / 0.25)
    assert create_transform(48, is_training=True, mean=(0.5,), std=(0.5,))(PHOTO).shape == (1, 48, 48)
    splits = create_transform(48, is_training=True, auto_augment="augmix-m3", num_aug_splits=2)
    assert splits(PHOTO).shape == (2, 3, 48, 48)


def test_create_transform_erases():
    for options, check in (
        ({"re_prob": 1.0}, lambda t: (t == 0).all(0).any()),
        ({"re_prob": 1.0, "re_mode": "pixel"}, lambda t: not (t == 0).all(0).any()),
        ({"re_prob": 0.0}, lambda t: not (t == 0).all(0).any()),
    ):
        assert check(create_transform(48, is_training=True, **options)(PHOTO))
    many = create_transform(48, is_training=True, re_prob=1.0, re_count=5)
    few = create_transform(48, is_training=True, re_prob=1.0)
    assert math.isclose(_erased(many), _erased(few), rel_tol=0.5)  # several share the area
    assert _erased(many) != _erased(few)
    with pytest.raises(UnknownArgumentError, match="re_prob"):
        create_transform(48, re_prob=0.5)
    with pytest.raises(UnknownArgumentError, match="hflip"):
        create_transform(48, is_training=True, hflop=0.5)


def _erased(transform: TrainingPreprocess) -> float:
    torch.manual_seed(0)
    return float(np.mean([(transform(PHOTO) == 0).all(0).float().mean() for _ in range(60)]))


def test_workers_draw_apart():
    transform = create_transform(24, is_training=True)
    batches = list(DataLoader(Repeated(transform), batch_size=1, num_workers=2))
    assert len({batch.numpy().tobytes() for batch in batches}) == 8
