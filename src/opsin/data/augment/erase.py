"""Random erasing (Zhong et al. 2020): rectangles of a picture replaced by black or by noise, on a normalised batch."""

import math

import numpy as np
import torch
from torch import Tensor

from opsin.data.augment.chance import device_generator, host_rng
from opsin.errors import OpsinError, check_choice

__all__ = ["RandomErasing"]

MODES = ("const", "rand", "pixel")
ATTEMPTS = 10  # to find a rectangle that fits into the picture; a large and long one may not


class RandomErasing:
    """Erase rectangles from some pictures of a batch, in place.

    Args:
        probability: how many of the pictures are touched.
        min_area: least area of a rectangle as a share of the picture's. With several to a picture each takes its part.
        max_area: greatest area.
        min_aspect: least height over width; drawn evenly on a logarithmic scale.
        max_aspect: greatest height over width; `1 / min_aspect` if None.
        mode: what a rectangle is filled with: zero, which is the mean colour (`const`), one normally distributed
            colour (`rand`), or a normally distributed value for each pixel and channel (`pixel`).
        min_count: least number of rectangles to a picture.
        max_count: greatest number; `min_count` if None.
        num_splits: of a batch that consists of so many parts (AugMix), the first is left clean; 0 or 1 is all one.
    """

    def __init__(
        self,
        probability: float = 0.5,
        min_area: float = 0.02,
        *,
        max_area: float = 1 / 3,
        min_aspect: float = 0.3,
        max_aspect: float | None = None,
        mode: str = "const",
        min_count: int = 1,
        max_count: int | None = None,
        num_splits: int = 0,
    ) -> None:
        if max_aspect is None:
            max_aspect = 1 / min_aspect if min_aspect > 0 else 0.0
        max_count = min_count if max_count is None else max_count
        check_choice(mode, MODES, what="erasing mode")
        for sound, message in (
            (0 <= probability <= 1, f"probability must be from 0 to 1, not {probability}"),
            (0 < min_area <= max_area <= 1, f"areas must be 0 < min <= max <= 1, not {min_area} and {max_area}"),
            (0 < min_aspect <= max_aspect, f"aspects must be 0 < min <= max, not {min_aspect} and {max_aspect}"),
            (1 <= min_count <= max_count, f"counts must be 1 <= min <= max, not {min_count} and {max_count}"),
            (num_splits >= 0, f"num_splits must be 0 or more, not {num_splits}"),
        ):
            if not sound:
                raise OpsinError(message)
        self.probability, self.mode, self.num_splits = probability, mode, num_splits
        self.area, self.count = (min_area, max_area), (min_count, max_count)
        self.log_aspect = (math.log(min_aspect), math.log(max_aspect))

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Erase in `images`, floats (B, C, H, W) on any device, and return them.

        Where and which comes from `generator` on the host: with one of the CPU it is the same on every device.
        """
        if images.ndim != 4 or not images.is_floating_point():
            raise OpsinError(f"expected floats (B, C, H, W), got {tuple(images.shape)} {images.dtype}")
        splits = max(self.num_splits, 1)
        if len(images) % splits:
            raise OpsinError(f"a batch of {len(images)} does not consist of {splits} equal parts")
        rng, noise = host_rng(generator), device_generator(generator, images.device)
        for image in images[len(images) // splits if splits > 1 else 0 :]:
            if rng.random() >= self.probability:
                continue
            count = int(rng.integers(*self.count, endpoint=True))
            for _ in range(count):
                box = self._draw_box(image.shape[1], image.shape[2], count, rng)
                if box is not None:
                    self._fill(image[:, *box], noise)
        return images

    def _draw_box(self, height: int, width: int, count: int, rng: np.random.Generator) -> tuple[slice, slice] | None:
        for _ in range(ATTEMPTS):
            area = rng.uniform(*self.area) * height * width / count
            aspect = math.exp(rng.uniform(*self.log_aspect))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                top, left = rng.integers(height - h, endpoint=True), rng.integers(width - w, endpoint=True)
                return slice(top, top + h), slice(left, left + w)
        return None

    def _fill(self, box: Tensor, generator: torch.Generator) -> None:
        if self.mode == "const":
            box.zero_()
        else:
            shape = box.shape if self.mode == "pixel" else (len(box), 1, 1)
            box.copy_(torch.randn(shape, generator=generator, device=box.device, dtype=box.dtype))
