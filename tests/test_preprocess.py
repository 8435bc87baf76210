"""The evaluation transform against the judge (timm on torchvision): equal to the last bit of every float."""

import random
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform as judge_transform
from timm.data import resolve_data_config as judge_config

from opsin.catalog.pretrained import PretrainedCfg
from opsin.data import preprocess
from opsin.data.preprocess import FILTERS, Preprocess
from opsin.errors import ImageError, OpsinError, UnknownArgumentError

HALF = (0.5, 0.5, 0.5)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise over a gradient: every filter and offset leaves its mark."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 160, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
    return Image.fromarray((ramp + rng.integers(0, 36, (height, width, 3))).astype(np.uint8))


def assert_same(cfg: dict, image: Image.Image, *, use_test_size: bool = False) -> None:
    judge = judge_transform(**judge_config(pretrained_cfg=cfg, use_test_size=use_test_size))
    ours = Preprocess.from_cfg(cfg, use_test_size=use_test_size)
    expected, got = judge(image), ours(image)
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    assert torch.equal(got, expected), (cfg, image.size)


@pytest.mark.parametrize("crop_mode", ["center", "border", "squash"])
@pytest.mark.parametrize("crop_pct", [0.5, 0.875, 0.965, 1.0, 1.15])
@pytest.mark.parametrize("size", [(3, 64, 64), (3, 48, 80), (3, 81, 33)])
def test_equals_judge_for_every_filter(crop_mode, crop_pct, size):
    for interpolation in FILTERS:
        cfg = {"input_size": size, "crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation}
        for shape in [(97, 60), (60, 97), (64, 64), (33, 31), (3, 5), (1, 1), (128, 128), (73, 74)]:
            assert_same(cfg | {"mean": HALF, "std": HALF}, picture(*shape))


@settings(max_examples=300, deadline=None)
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    side=st.tuples(st.integers(1, 140), st.integers(1, 140)) | st.integers(1, 140).map(lambda s: (s, s)),
    crop_pct=st.floats(0.3, 1.5),
    crop_mode=st.sampled_from(["center", "squash", "border"]),
    interpolation=st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
)
def test_equals_judge_at_any_size(width, height, side, crop_pct, crop_mode, interpolation):
    cfg = {"input_size": (3, *side), "crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation}
    image = picture(width, height)
    try:
        expected = judge_transform(**judge_config(pretrained_cfg=cfg))(image)
    except (ValueError, ZeroDivisionError) as refusal:  # a side that would shrink to nothing; ours keeps a pixel of it
        assert re.search("must be > 0|division by zero", str(refusal))  # noqa: PT017
        assert Preprocess.from_cfg(cfg)(image).shape == (3, *side)
    else:
        assert torch.equal(Preprocess.from_cfg(cfg)(image), expected)


@pytest.mark.parametrize("shape", [(500, 375), (375, 500), (1000, 40), (4000, 3000), (224, 224), (256, 256)])
def test_equals_judge_on_photo_sizes(shape):
    image = picture(*shape)
    for cfg in [
        {"crop_pct": 0.875},
        {"crop_pct": 0.95, "test_crop_pct": 1.0, "input_size": (3, 224, 224), "test_input_size": (3, 288, 288)},
        {"crop_pct": 0.9, "mean": HALF, "std": HALF, "input_size": (3, 384, 384)},
        {"crop_pct": 1.0, "crop_mode": "squash", "input_size": (3, 384, 384)},
        {"crop_pct": 1.0, "crop_mode": "border", "input_size": (3, 256, 192), "interpolation": "bilinear"},
    ]:
        for use_test_size in (False, True):
            assert_same(cfg, image, use_test_size=use_test_size)


def test_batch_normalisation_equals_one_by_one():
    ours = Preprocess()
    pixels = [ours.to_uint8(picture(300, 200, seed)) for seed in range(5)]
    assert pixels[0].dtype == torch.uint8
    expected = torch.stack([ours(picture(300, 200, seed)) for seed in range(5)])
    assert torch.equal(ours.normalize(torch.stack(pixels)), expected)


def test_record_object_and_dict_agree():
    cfg = PretrainedCfg(input_size=(3, 240, 240), crop_pct=0.9, test_input_size=(3, 288, 288), interpolation="bilinear")
    assert Preprocess.from_cfg(cfg) == Preprocess.from_cfg(cfg.to_dict())
    assert Preprocess.from_cfg(cfg, use_test_size=True).input_size == (3, 288, 288)
    assert Preprocess.from_cfg(cfg, input_size=(100, 90)).input_size == (3, 100, 90)


def test_one_channel_takes_the_average_colour():
    ours = Preprocess.from_cfg({}, in_chans=1)
    assert ours.mean == pytest.approx((0.449,))
    image = picture(90, 70).convert("L")
    assert ours(image).shape == (1, 224, 224)
    # the grey picture is the judge's, given the same one-channel figures
    judge = judge_transform(input_size=(1, 224, 224), mean=ours.mean, std=ours.std, interpolation="bicubic")
    assert torch.equal(ours(image), judge(image))


def test_many_channels_repeat_the_colours_and_resize_alike():
    rgb = picture(120, 77)
    array = np.concatenate([np.asarray(rgb)] * 2 + [np.asarray(rgb)[..., :1]], axis=-1)
    for mode in ("center", "border", "squash"):
        three = Preprocess.from_cfg({"crop_mode": mode})
        seven = Preprocess.from_cfg({"crop_mode": mode}, in_chans=7)
        assert seven.mean == three.mean * 2 + three.mean[:1]
        expected = three(rgb)
        assert torch.equal(seven(array), torch.cat([expected, expected, expected[:1]]))


def test_a_strip_does_not_fill_the_memory():
    strip = Image.new("RGB", (1, 150_000), "red")  # 224 x 33,600,000 pixels if scaled whole
    strip.paste("blue", (0, 74_900, 1, 75_100))
    for image in (strip, strip.rotate(90, expand=True)):
        assert (Preprocess().to_uint8(image).permute(1, 2, 0) == torch.tensor([0, 0, 255])).all()


def test_wrong_figures_are_refused():
    with pytest.raises(UnknownArgumentError, match="bicubic"):
        Preprocess(interpolation="bicubik")
    with pytest.raises(UnknownArgumentError, match="center"):
        Preprocess(crop_mode="centre")
    with pytest.raises(OpsinError, match="1 means"):
        Preprocess(mean=(0.5,))
    with pytest.raises(OpsinError, match="crop_pct"):
        Preprocess(crop_pct=-1)
    with pytest.raises(OpsinError, match="std"):
        Preprocess(std=(0.0, 1.0, 1.0))
    with pytest.raises(ImageError, match="3 channels, but the model takes 5"):
        Preprocess.from_cfg({}, in_chans=5)(picture(9, 9))


# --- the names timm's users know


@pytest.mark.parametrize(
    ("args", "use_test_size"),
    [
        ({}, False),
        ({}, True),
        ({"img_size": 99}, False),
        ({"input_size": (3, 50, 60)}, True),
        ({"crop_pct": 0.5, "interpolation": "nearest", "crop_mode": "border"}, True),
        ({"mean": (0.1, 0.2, 0.3), "std": [0.5]}, False),
        ({"mean": None, "lr": 0.1, "img_size": None}, False),
    ],
)
def test_resolve_data_config_equals_judge(args, use_test_size):
    cfg = {"input_size": (3, 224, 224), "test_input_size": (3, 288, 288), "crop_pct": 0.95, "test_crop_pct": 1.0}
    expected = judge_config(args, pretrained_cfg=cfg, use_test_size=use_test_size)
    got = preprocess.resolve_data_config(args, pretrained_cfg=cfg, use_test_size=use_test_size)
    assert {k: list(v) if isinstance(v, tuple) else v for k, v in got.items()} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in expected.items()
    }
    image = picture(77, 140)
    assert torch.equal(preprocess.create_transform(**got)(image), judge_transform(**expected)(image))


def test_create_transform_defaults_equal_judge():
    for kwargs in ({}, {"input_size": 65}, {"input_size": (60, 40), "crop_mode": "squash"}, {"is_training": False}):
        image = picture(random.Random(1).randint(50, 99), 81)
        assert torch.equal(preprocess.create_transform(**kwargs)(image), judge_transform(**kwargs)(image))


def test_batches_are_normalised_as_their_pictures():
    transform = Preprocess(input_size=(3, 40, 30))
    pixels = torch.stack([transform.to_uint8(picture(50, 60, seed)) for seed in range(4)])
    expected = torch.stack([transform(picture(50, 60, seed)) for seed in range(4)])
    assert torch.equal(transform.normalize(pixels), expected)
    assert torch.equal(transform.normalize(pixels[None]), expected[None])
    layout = transform.normalize(pixels.contiguous(memory_format=torch.channels_last))
    assert torch.equal(layout, expected)


def test_create_transform_says_what_it_does_not_do():
    with pytest.raises(UnknownArgumentError, match="re_prob"):
        preprocess.create_transform(224, re_prob=0.25)


def test_model_config_follows_the_models_channels():
    class Model(torch.nn.Module):
        pretrained_cfg = PretrainedCfg(crop_pct=0.9)
        config = type("Config", (), {"in_chans": 1})

    data = preprocess.resolve_model_data_config(Model())
    assert data["input_size"] == (1, 224, 224)
    assert len(data["mean"]) == 1
    assert data["crop_pct"] == 0.9
    Model.config.img_size = 96
    data = preprocess.resolve_model_data_config(Model(), use_test_size=True)
    assert data["input_size"] == (1, 96, 96)
    assert preprocess.create_transform(**data) == Preprocess.from_model(Model())
