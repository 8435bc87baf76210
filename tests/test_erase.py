"""Random erasing: rectangles distributed as timm's, filled as asked, reproducible from one generator."""

import random

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, ks_2samp, kstest
from timm.data.random_erasing import RandomErasing as PeerErasing

from opsin.data.augment.erase import RandomErasing
from opsin.errors import OpsinError, UnknownArgumentError

HEIGHT, WIDTH = 24, 32


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ones(batch: int, channels: int = 1) -> torch.Tensor:
    return torch.ones(batch, channels, HEIGHT, WIDTH)


def measures(erased: torch.Tensor) -> dict[str, np.ndarray]:
    """Area, height, width, top and left of what is erased in each picture that is touched."""
    holes = (erased[:, 0] == 0).numpy()
    rows, columns = holes.any(2), holes.any(1)
    found = {"area": holes.sum((1, 2)), "height": rows.sum(1), "width": columns.sum(1)}
    found |= {"top": rows.argmax(1), "left": columns.argmax(1)}
    return {name: values[holes.any((1, 2))] for name, values in found.items()}


@pytest.mark.parametrize(
    "config",
    [
        {"probability": 0.25},
        {"probability": 1.0, "min_area": 0.1, "max_area": 0.2, "min_aspect": 0.5},
        {"probability": 1.0, "min_area": 0.3, "max_area": 0.9, "max_aspect": 1.5},
        {"probability": 0.7, "min_count": 3},
        {"probability": 1.0, "min_count": 1, "max_count": 4},
    ],
)
def test_rectangles_are_spread_as_in_timm(config):
    random.seed(0)
    expected = measures(PeerErasing(**config, device="cpu")(ones(3000)))
    got = measures(RandomErasing(**config)(ones(3000), generator()))
    touched = [len(found["area"]) for found in (expected, got)]
    assert abs(touched[0] - touched[1]) <= (150 if config["probability"] < 1 else 5)  # 4 deviations; what fits nowhere
    for name, values in got.items():
        assert ks_2samp(expected[name], values).pvalue > 1e-3, name


def test_one_rectangle_is_one_rectangle():
    found = measures(RandomErasing(1.0)(ones(500), generator()))
    assert np.array_equal(found["area"], found["height"] * found["width"])
    share = found["area"] / (HEIGHT * WIDTH)
    assert share.min() > 0.015
    assert share.max() < 0.36


def test_several_share_the_area():
    """Four rectangles have the area of one together, so each picture has more than one hole."""
    found = measures(RandomErasing(1.0, min_area=0.2, max_area=0.2, min_count=4)(ones(500), generator()))
    assert found["area"].max() <= 0.25 * HEIGHT * WIDTH
    assert (found["area"] < found["height"] * found["width"]).mean() > 0.95


def test_counts_are_even():
    """Single pixels far apart can be counted."""
    one = 1 / (HEIGHT * WIDTH)
    images = torch.ones(2000, 1, HEIGHT, WIDTH)
    for count in (1, 2, 3):
        erase = RandomErasing(1.0, min_area=one * count, max_area=one * count, min_aspect=1, min_count=count)
        assert (erase(images[:50].clone(), generator()) == 0).sum((1, 2, 3)).max() == count
    between = RandomErasing(1.0, min_area=3 * one, max_area=3 * one, min_aspect=1, min_count=1, max_count=3)
    holes = (between(images, generator()) == 0).sum((1, 2, 3))  # 1 of 2x2; 2 or 3 of 1x1, which may coincide
    assert chisquare([int((holes == n).sum()) for n in (4, 2, 3)]).pvalue > 1e-3


@pytest.mark.parametrize(("mode", "values"), [("const", 0), ("rand", 3), ("pixel", 3 * 12)])
def test_modes(mode, values):
    erase = RandomErasing(1.0, min_area=12 / 768, max_area=12 / 768, min_aspect=3 / 4, max_aspect=3 / 4, mode=mode)
    images = erase(torch.full((400, 3, HEIGHT, WIDTH), 7.0), generator())
    filled = [image[image != 7].reshape(3, -1) for image in images]
    assert all(f.shape == (3, 12) for f in filled)
    if mode == "const":
        assert all(not f.any() for f in filled)
        return
    assert all(len(f.unique()) == values for f in filled)
    noise = torch.stack(filled) if mode == "pixel" else torch.stack(filled)[..., 0]
    assert kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3


def test_the_first_split_stays_clean():
    images = RandomErasing(1.0, num_splits=3)(ones(30), generator())
    touched = (images == 0).any(dim=3).any(dim=2)[:, 0]
    assert touched.tolist() == [False] * 10 + [True] * 20
    with pytest.raises(OpsinError, match="a batch of 31 does not consist of 3 equal parts"):
        RandomErasing(num_splits=3)(ones(31), generator())


def test_works_in_place_and_from_the_generator_alone():
    first = [RandomErasing(mode="pixel")(ones(20, 3), generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    state = torch.get_rng_state()
    images, chance = ones(20), generator()
    assert RandomErasing()(images, chance) is images
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(RandomErasing()(ones(20), chance), images)  # it goes on, it does not repeat


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    for mode in ("const", "rand", "pixel"):
        images = RandomErasing(1.0, mode=mode)(ones(4, 3).to(dtype), generator())
        assert images.dtype == dtype
        assert (images != 1).any()


def test_nothing_fits():
    images = RandomErasing(1.0, min_area=1.0, max_area=1.0, min_aspect=1.0)(ones(5), generator())
    assert torch.equal(images, ones(5))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mode": "pixels"}, "no erasing mode 'pixels'. Did you mean pixel?"),
        ({"probability": 1.5}, "probability must be from 0 to 1, not 1.5"),
        ({"min_area": 0.5}, "areas must be"),
        ({"min_aspect": 2.0}, "aspects must be"),
        ({"min_aspect": 0}, "aspects must be"),
        ({"min_count": 3, "max_count": 2}, "counts must be"),
        ({"num_splits": -1}, "num_splits must be"),
    ],
)
def test_errors(config, message):
    with pytest.raises(OpsinError) as error:
        RandomErasing(**config)
    assert message in str(error.value)
    assert isinstance(error.value, UnknownArgumentError) == ("mode" in config)


@pytest.mark.parametrize("images", [torch.ones(3, 8, 8), torch.ones(2, 3, 8, 8, dtype=torch.uint8)])
def test_what_is_no_float_batch_is_refused(images):
    with pytest.raises(OpsinError, match=r"expected floats \(B, C, H, W\)"):
        RandomErasing()(images, generator())
