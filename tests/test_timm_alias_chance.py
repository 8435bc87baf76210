"""What `timm.data`, answered by opsin, draws: distributions beside real timm, and arguments that act."""

import pickle
import random
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from support import photo
from timm.data import auto_augment as judge_augment
from timm.data import mixup as judge_mixup
from timm.data.random_erasing import RandomErasing as JudgeErasing

from opsin.errors import OpsinError
from opsin.integrations.timm_alias import _augment, _pictures, _transforms


@pytest.fixture(autouse=True)
def seeded() -> None:
    """timm draws from all three."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


# --- the same distributions ------------------------------------------------------------------------------------------


def places(height: int = 200, width: int = 300) -> Image.Image:
    """A picture whose red says how far right a pixel lies, and green how far down."""
    right, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([right, down, np.zeros_like(right)], -1).astype(np.uint8))


def crop_figures(transform: Any, count: int = 400) -> np.ndarray:
    """Of many draws: the crop's share of the area, the logarithm of its aspect, whether it is mirrored each way."""
    rows = []
    for _ in range(count):
        image = transform(places()).permute(1, 2, 0).numpy().astype(float)
        middle = image[:, image.shape[1] // 2, 1], image[image.shape[0] // 2, :, 0]
        (down, right) = (line[-1] - line[0] for line in middle)
        tall, wide = abs(down) / 255 * 200, abs(right) / 255 * 300
        rows.append((tall * wide / 60000, np.log(wide / tall), right < 0, down < 0))
    return np.array(rows)


@pytest.mark.parametrize(
    "options",
    [
        {"hflip": 0.3, "vflip": 0.6},
        {"scale": (0.2, 0.5), "ratio": (0.5, 1.5)},
        {"train_crop_mode": "rkrc", "scale": (1.2, 2.0), "ratio": (0.7, 1.3)},
    ],
)
def test_crops_and_flips_are_as_often_as_timms(options: dict[str, Any]) -> None:
    options = {"color_jitter": None, "use_prefetcher": True, "is_training": True, **options}
    ours, theirs = (
        crop_figures(make(64, **options)) for make in (_transforms.create_transform, timm.data.create_transform)
    )
    assert np.allclose(ours.mean(0), theirs.mean(0), atol=0.09)
    assert np.allclose(ours.std(0), theirs.std(0), atol=0.06)
    assert np.allclose(
        np.quantile(ours[:, :2], (0.05, 0.95), 0), np.quantile(theirs[:, :2], (0.05, 0.95), 0), atol=0.12
    )


def test_random_crop_or_pad_lies_as_timms() -> None:
    picture = places(60, 80)
    for size in ((40, 100), (70, 60)):
        both = []
        for module in (_pictures, timm.data):
            step = module.RandomCropOrPad(size, fill=0)
            both.append(np.array([np.asarray(step(picture)).mean((0, 1)) for _ in range(1500)]))
        assert np.allclose(both[0].mean(0), both[1].mean(0), atol=4)
        assert np.allclose(both[0].std(0), both[1].std(0), atol=3)


@pytest.mark.parametrize("options", [{}, {"max_area": 0.1, "max_count": 3}, {"min_aspect": 0.1, "mode": "pixel"}])
def test_erasing_takes_as_much_as_timms(options: dict[str, Any]) -> None:
    shares = []
    for kind in (_augment.RandomErasing, JudgeErasing):
        erased = kind(0.5, device="cpu", **options)(torch.full((600, 1, 40, 40), 7.0)) != 7
        share = erased.float().mean((1, 2, 3))
        shares.append((share.gt(0).float().mean(), share[share > 0].mean(), share[share > 0].std()))
    assert np.allclose(*shares, atol=0.06)


MIXES = [
    {"mixup_alpha": 0.4, "mode": "elem", "prob": 0.7},
    {"mixup_alpha": 1.0, "cutmix_alpha": 0.5, "mode": "pair", "switch_prob": 0.8},
    {"mixup_alpha": 0.0, "cutmix_minmax": (0.2, 0.6), "mode": "elem"},
    {"mixup_alpha": 0.0, "cutmix_alpha": 1.0, "mode": "batch", "correct_lam": False},
]


@pytest.mark.parametrize("options", MIXES)
def test_mixing_is_distributed_as_timms(options: dict[str, Any]) -> None:
    figures = []
    images, targets = torch.zeros(16, 1, 24, 24), torch.arange(16)
    images[targets % 2 == 1] = 1.0  # partners, counted from the end, differ
    for kind in (_augment.Mixup, judge_mixup.Mixup):
        mix = kind(label_smoothing=0.0, num_classes=16, **options)
        rows, means, whole = [], [], []
        for _ in range(60 if options["mode"] != "batch" else 500):
            mixed, soft = mix(images.clone(), targets)
            rows.append(soft.diagonal())
            means.append((mixed.mean((1, 2, 3)) - images.mean((1, 2, 3))).abs())
            whole.append(((mixed == 0) | (mixed == 1)).all(-1).all(-1).all(-1).float())
        lam, share = torch.cat(rows), torch.cat(means)
        both = (lam, share, torch.cat(whole))
        figures.append([f for values in both for f in (values.mean(), values.std())])
    assert np.allclose(*figures, atol=0.07), figures


def test_mixup_turned_off_smooths_alone() -> None:
    mix = _augment.Mixup(1.0, num_classes=3, label_smoothing=0.3)
    images = torch.rand(5, 3, 4, 4)  # an odd number too
    assert not torch.equal(mix(images, torch.arange(5) % 3)[0], images)
    mix.mixup_enabled = False
    mixed, rows = mix(images, torch.arange(5) % 3)
    assert torch.equal(mixed, images)
    assert torch.allclose(rows, judge_mixup.mixup_target(torch.arange(5) % 3, 3, 1.0, 0.3))
    ours = _augment.mixup_target(torch.tensor([0, 1, 1]), 3, 0.7, 0.1)
    assert torch.allclose(ours, judge_mixup.mixup_target(torch.tensor([0, 1, 1]), 3, 0.7, 0.1))
    x = torch.tensor([1, 0])
    assert torch.equal(_augment.one_hot(x, 3, 0.9, 0.05), judge_mixup.one_hot(x, 3, 0.9, 0.05))


@pytest.mark.parametrize("mode", ["batch", "pair", "elem", "half"])
def test_collate_mixes_bytes(mode: str) -> None:
    batch = [(np.full((3, 8, 8), value, np.uint8), target) for target, value in enumerate((10, 90, 170, 250))]
    images, rows = _augment.FastCollateMixup(1.0, num_classes=4, label_smoothing=0.0, mode=mode)(batch)
    judge, _ = timm.data.FastCollateMixup(1.0, num_classes=4, label_smoothing=0.0, mode=mode)(batch)
    assert (images.shape, images.dtype) == (judge.shape, judge.dtype)
    expected = rows @ torch.tensor([10.0, 90.0, 170.0, 250.0])
    assert (images[:, 0, 0, 0] - expected).abs().max() <= 0.51
    assert images[:, 0, 0, 0].float().sub(torch.tensor([10.0, 90, 170, 250])[: len(images)]).abs().max() > 1


# --- policies --------------------------------------------------------------------------------------------------------

FACTORIES = {"rand": "rand_augment_transform", "augmix": "augment_and_mix_transform"}


@pytest.mark.parametrize("config", ["rand-m6-n3-inc1", "augmix-m5-w2", "original", "3a", "rand-m5-tweights"])
def test_policies_change_as_much_as_timms(config: str) -> None:
    name = FACTORIES.get(config.partition("-")[0], "auto_augment_transform")
    hparams = {"translate_const": 30, "img_mean": (120, 110, 100)}
    picture, changes = photo(), []
    for module in (_augment, judge_augment):
        policy = getattr(module, name)(config, dict(hparams))
        drawn = [np.abs(np.asarray(policy(picture)).astype(float) - np.asarray(picture)).mean() for _ in range(250)]
        changes.append((np.mean(drawn), np.mean(np.array(drawn) == 0) * 50))
    assert np.allclose(*changes, rtol=0.25, atol=5), changes


def test_hparams_act() -> None:
    picture = Image.new("RGB", (40, 40), (200, 200, 200))

    def moved(**hparams: Any) -> np.ndarray:
        policy = _augment.rand_augment_transform("rand-m10-n1-p1", hparams, transforms=["TranslateX"])
        return np.asarray(policy(picture))

    assert {tuple(c) for c in moved(translate_const=10, img_mean=(1, 2, 3)).reshape(-1, 3)} == {(1, 2, 3), (200,) * 3}
    assert (moved(translate_const=10) == 128).all(2).mean() == pytest.approx(0.25, abs=0.03)
    assert (moved(translate_const=20) == 128).all(2).mean() == pytest.approx(0.5, abs=0.03)
    op = _augment.AugmentOp("TranslateXRel", 1.0, 10, {"translate_pct": 0.5})
    assert (np.asarray(op(picture)) == 128).all(2).mean() == pytest.approx(0.5, abs=0.03)
    amounts = {
        (
            np.asarray(_augment.rand_augment_transform("rand-m5-n1-p1-mstd0", hparams, ["TranslateX"])(picture)) == 128
        ).mean()
        for hparams in [{"translate_const": 20, "magnitude_std": 3, "magnitude_max": 7}] * 30
    }
    assert len(amounts) > 3
    assert max(amounts) == pytest.approx(0.35, abs=0.05)
    for mode in (Image.BILINEAR, (Image.BILINEAR, Image.BICUBIC), "bicubic"):
        assert _augment.AugmentOp("Rotate", 1.0, 9, {"interpolation": mode})(photo()) != photo()
    with pytest.raises(TypeError, match="translate_const"):
        _augment.auto_augment_transform("v0", {"translate_cost": 10})
    with pytest.raises(TypeError, match="augmix"):
        _augment.augment_and_mix_transform("rand-m9")


def test_policies_from_their_operations() -> None:
    for kind in (_augment, judge_augment):
        ops = kind.rand_augment_ops(magnitude=10, prob=1.0, transforms=["Invert", "Solarize"])
        assert [op.name for op in ops] == ["Invert", "Solarize"]
        drawn = {kind.RandAugment(ops, 1, choice_weights=[1, 0])(photo()).tobytes() for _ in range(8)}
        assert drawn == {Image.fromarray(255 - np.asarray(photo())).tobytes()}
        auto = kind.AutoAugment([ops[:1] * 2])
        assert auto(photo()).tobytes() == photo().tobytes()
        mixed = kind.AugMixAugment(kind.augmix_ops(10, transforms=["Invert"]), width=1, depth=1, alpha=1000)
        assert abs(np.asarray(mixed(photo())).mean() - 127.5) < 4
    names = [[op.name for op in row] for row in _augment.auto_augment_policy("original")]
    assert names == [[op.name for op in row] for row in judge_augment.auto_augment_policy("original")]
    weighted = _augment.rand_augment_transform("rand-m9-n1-p1", None, {"Invert": 1.0, "Solarize": 0.0})
    assert weighted(photo()).tobytes() == Image.fromarray(255 - np.asarray(photo())).tobytes()


# --- arguments act ---------------------------------------------------------------------------------------------------

STILL = {"scale": (1, 1), "ratio": (4 / 3, 4 / 3), "hflip": 0.0, "color_jitter": None}


def drawn(**options: Any) -> np.ndarray:
    torch.manual_seed(0)
    transform = _transforms.create_transform(32, is_training=True, **{**STILL, **options})
    return np.stack([transform(photo()) for _ in range(3)])


@pytest.mark.parametrize(
    "options",
    [
        {"scale": (0.2, 0.3)},
        {"ratio": (0.5, 0.5), "scale": (0.4, 0.4)},
        {"hflip": 1.0},
        {"vflip": 1.0},
        {"color_jitter": 0.5},
        {"color_jitter": (0.0, 0.0, 0.0, 0.4)},
        {"grayscale_prob": 1.0},
        {"gaussian_blur_prob": 1.0},
        *({"auto_augment": name} for name in ("rand-m9-mstd0.5-inc1", "augmix-m9", "3a", "original")),
        {"interpolation": "nearest"},
        {"train_crop_mode": "rkrr", "scale": (1.5, 2.0)},
        {"re_prob": 1.0},
        {"mean": (0.1,) * 3},
        {"std": (0.1,) * 3},
        {"normalize": False},
        {"use_prefetcher": True},
    ],
)
def test_every_training_argument_acts(options: dict[str, Any]) -> None:
    assert not np.array_equal(drawn(**options), drawn())


def test_arguments_that_act_on_others() -> None:
    assert not np.array_equal(drawn(color_jitter=0.5, color_jitter_prob=0.0), drawn(color_jitter=0.5))
    assert not np.array_equal(drawn(re_prob=1.0, re_mode="pixel"), drawn(re_prob=1.0))
    counts = [(drawn(re_prob=1.0, re_count=n, re_mode="rand") == drawn()).mean() for n in (1, 8)]
    assert counts[0] != counts[1]
    jitter = {"auto_augment": "rand-m0-n1", "color_jitter": 0.9}
    assert len({one.tobytes() for one in drawn(**jitter)}) <= 3
    forced = _transforms.transforms_imagenet_train(32, force_color_jitter=True, **{**STILL, **jitter})
    assert [type(part).__name__ for part in forced.transforms[:3]] == ["Crop", "Colours", "Colours"]
    assert forced.transforms[2](photo()) != photo()
    parts = _transforms.create_transform(32, is_training=True, separate=True, auto_augment="rand-m9", re_prob=1.0)
    assert [len(part.transforms) for part in parts] == [2, 1, 3]
    assert pickle.loads(pickle.dumps(parts[0]))(photo()).size == (32, 32)  # workers may be spawned
    clean = _transforms.create_transform(32, is_training=True, re_prob=1.0, re_num_splits=2, separate=True)[2]
    with pytest.raises(OpsinError, match="2 parts"):
        clean(photo())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"naflex": True}, "naflex"),
        ({"patchify": True}, "patchify"),
        ({"tf_preprocessing": True}, "tf_preprocessing"),
        ({"hflop": 0.5}, "hflop"),
        ({"is_training": True, "auto_augment": "ran-m9"}, "Did you mean rand"),
        ({"is_training": True, "train_crop_mode": "rcr"}, "train_crop_mode"),
        ({"separate": True}, "separate"),
        ({"is_training": True, "no_aug": True, "separate": True}, "separate"),
    ],
)
def test_what_is_not_to_be_had_is_said_at_creation(options: dict[str, Any], words: str) -> None:
    with pytest.raises((OpsinError, TypeError), match=words):
        _transforms.create_transform(32, **options)
