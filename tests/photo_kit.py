"""Photos, and what tests of transforms compare them by."""

from io import BytesIO

import numpy as np
import torch
from PIL import Image
from skimage import data as photos

PHOTO = Image.fromarray(photos.coffee()).resize((500, 375))
PLAIN = {"color_jitter": None, "hflip": 0.0}


def encode(image: Image.Image, quality: int = 92) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def mosaic(width: int, height: int) -> Image.Image:
    """As sharp as pictures get: photos at their own resolution, side by side."""
    canvas = Image.new("RGB", (width, height))
    tiles = [Image.fromarray(photo()) for photo in (photos.astronaut, photos.chelsea, photos.coffee, photos.rocket)]
    for i, (x, y) in enumerate((x, y) for y in range(0, height, 300) for x in range(0, width, 450)):
        canvas.paste(tiles[i % 4], (x, y))
    return canvas


SMALL, BIG = encode(PHOTO), encode(mosaic(2403, 1802))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def difference(got: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Mean and greatest, in grey levels."""
    apart = (got.float() - expected.float()).abs()
    return apart.mean().item(), apart.max().item()


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class Always:
    """A generator for one outcome: every draw is the least there is."""

    def random(self) -> float:
        return 0.0

    def integers(self, low, high=None, **_) -> int:
        return 0 if high is None else low

    def uniform(self, low: float, high: float) -> float:
        return low
