"""From a picture, encoded or not, to the uint8 tensor that goes into a batch: for evaluation and for training.

Both transforms are called `transform(image, rng=rng, size=None)` and give (C, H, W). They decode, resize and crop only
what they need, which changes pixels by a few grey levels at most; `exact=True` gives those of Pillow and torchvision.
All chance comes from `rng`. The names of the training options, and their distributions, are those of `timm`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from opsin.catalog.pretrained import IMAGENET_DEFAULT_MEAN
from opsin.data.augment import ops
from opsin.data.augment.erase import RandomErasing
from opsin.data.augment.policies import Policy, parse_policy
from opsin.data.decode import Picture, open_picture
from opsin.data.images import with_channels
from opsin.data.preprocess import FILTERS, HUGE, Preprocess, centred
from opsin.data.resample import SUPPORT, largest_reduction, resize, resize_to_window
from opsin.errors import OpsinError, check_choice, warn_user

__all__ = ["EvalTransform", "TrainTransform", "TrainingPreprocess", "anywhere", "draw_crop", "draw_size"]

Source = bytes | np.ndarray | Image.Image
CROP_MODES = ("rrc", "rkrc", "rkrr")
RANDOM = ("bilinear", "bicubic")  # what interpolation="random" chooses from
TRIES = 10  # to place a random crop before a central one is taken
BLUR_RADIUS, BLUR_SIGMA = 11, (0.1, 2.0)  # pixels


@dataclass(frozen=True)
class EvalTransform:
    """The published evaluation transform, for batches: the geometry of `preprocess`, a uint8 tensor.

    With `exact` the pixels are those of `Preprocess.to_uint8`, bit for bit. Otherwise bilinear and bicubic resizing
    computes only the crop, with torch, and of a JPEG that becomes at least five times smaller a half, a quarter or an
    eighth is decoded.
    """

    preprocess: Preprocess
    exact: bool = False

    def __call__(
        self, image: Source, *, rng: np.random.Generator | None = None, size: tuple[int, int] | None = None
    ) -> Tensor:
        """uint8 (C, H, W). `size` (height, width) stands in for the model's; `rng` is there for the call's sake.

        Raises:
            ImageError: the picture cannot be read, or has not the channels the model takes.
        """
        fit = self.preprocess
        if size is not None:
            fit = replace(fit, input_size=(fit.channels, *size))
        picture = open_picture(image, channels=fit.channels)
        full = fit.resized(picture.height, picture.width)
        if self.exact or fit.interpolation not in SUPPORT or math.prod(full) > HUGE:
            pixels = picture.decode()[0]
            return fit.to_uint8(Image.fromarray(pixels) if fit.channels == 3 else pixels)
        height, width = fit.input_size[1:]
        offset = (centred(full[0], height), centred(full[1], width))
        return _tensor(resize_to_window(picture, full, offset, (height, width), fit.interpolation, fill=fit.border))


class TrainTransform:
    """Random crop, flips, then augmentation: a policy, or colour jitter; grey and blur.

    Args:
        size: side, or (height, width), of what comes out; a call may ask for another.
        scale: share of the picture's area that a crop covers, least and most; (0.08, 1) for `rrc`, (0.8, 1) for the
            others, where it is of the largest crop of the size's aspect.
        ratio: aspect ratios of the crops, (3/4, 4/3) for `rrc`. For the others the aspect factor; (0.9, 1/0.9).
        train_crop_mode: `rrc`: a crop of random area and aspect, resized (Inception). `rkrc`, `rkrr`: the short side
            fits, half of the time each with a random change of scale and of aspect, then the middle (`rkrc`) or a
            random part (`rkrr`) is cut out, the picture mirrored where it is smaller.
        interpolation: a filter of `Preprocess`, or `random`: bilinear or bicubic, drawn for each picture.
        hflip, vflip: probabilities to mirror left and right, top and bottom.
        auto_augment: a policy's string, as `parse_policy` takes it.
        color_jitter: brightness, contrast, saturation and, if there is a fourth, hue (at most 0.5) vary by this much,
            in random order; one number is for the first three, None for never. Other policies than `3a` go without.
        color_jitter_prob: how often to do so; None is always.
        grayscale_prob, gaussian_blur_prob: of a grey picture; of a blur with a deviation of 0.1 to 2 pixels.
        num_aug_splits: 0, or at least 2: that many versions (S, C, H, W) of the one crop, the first of them without
            augmentation.
        mean: of the model, one value in 0..1 a channel: the colour that policies bring in from outside, and the number
            of channels.
        exact: pixels as Pillow and torchvision make them, at several times the time.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        *,
        scale: tuple[float, float] | None = None,
        ratio: tuple[float, float] | None = None,
        train_crop_mode: str = "rrc",
        interpolation: str = "random",
        hflip: float = 0.5,
        vflip: float = 0.0,
        auto_augment: str | None = None,
        color_jitter: float | Sequence[float] | None = 0.4,
        color_jitter_prob: float | None = None,
        grayscale_prob: float = 0.0,
        gaussian_blur_prob: float = 0.0,
        num_aug_splits: int = 0,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        exact: bool = False,
    ) -> None:
        check_choice(interpolation, (*FILTERS, "random"), what="interpolation")
        check_choice(train_crop_mode, CROP_MODES, what="train_crop_mode")
        self.size = _size(size)
        whole = train_crop_mode == "rrc"
        self.scale = _range("scale", scale or ((0.08, 1.0) if whole else (0.8, 1.0)))
        self.ratio = _range("ratio", ratio or ((3 / 4, 4 / 3) if whole else (0.9, 1 / 0.9)))
        if whole and self.scale[1] > 1:
            raise OpsinError(f"scale is a share of the area: at most 1, not {self.scale[1]}")
        self.train_crop_mode, self.interpolation = train_crop_mode, interpolation
        self.hflip, self.vflip = _probability("hflip", hflip), _probability("vflip", vflip)
        self.auto_augment, self.mean, self.exact = auto_augment, tuple(mean), exact
        jitter = auto_augment is None or "3a" in auto_augment
        if color_jitter_prob is not None and not jitter:
            warn_user(
                f"color_jitter_prob changes nothing beside auto_augment={auto_augment!r}, which goes without jitter"
            )
        self.color_jitter = _jitter_strengths(color_jitter) if jitter else ()
        self.color_jitter_prob = _probability(
            "color_jitter_prob", 1.0 if color_jitter_prob is None else color_jitter_prob
        )
        self.grayscale_prob = _probability("grayscale_prob", grayscale_prob)
        self.gaussian_blur_prob = _probability("gaussian_blur_prob", gaussian_blur_prob)
        if num_aug_splits < 0 or num_aug_splits == 1:
            raise OpsinError(f"num_aug_splits must be 0, or at least 2, not {num_aug_splits}")
        self.num_aug_splits = num_aug_splits
        self._policies: dict[tuple[int, int], Policy] = {}
        if auto_augment is not None:
            self._policy(self.size)  # a string that is wrong is told here, not in a worker

    def __call__(self, image: Source, *, rng: np.random.Generator, size: tuple[int, int] | None = None) -> Tensor:
        """uint8 (C, H, W), or (S, C, H, W) with splits. `size` (height, width) stands in for the transform's own.

        Raises:
            ImageError: the picture cannot be read, or has not as many channels as `mean` has values.
        """
        pixels = self.flip(self.crop(image, rng, size), rng)
        if not self.num_aug_splits:
            return _tensor(self.augment(pixels, rng))
        others = (self.augment(pixels, rng) for _ in range(self.num_aug_splits - 1))
        return torch.stack([_tensor(pixels), *map(_tensor, others)])

    # --- geometry

    def crop(self, image: Source, rng: np.random.Generator, size: tuple[int, int] | None = None) -> np.ndarray:
        """The first step alone: the pixels (H, W, C) of a random crop, resized."""
        picture = open_picture(image, channels=len(self.mean))
        cut = self._resized_crop if self.train_crop_mode == "rrc" else self._kept_ratio
        return cut(picture, self.size if size is None else size, rng)

    def _filter(self, rng: np.random.Generator) -> str:
        return RANDOM[rng.integers(2)] if self.interpolation == "random" else self.interpolation

    def _resized_crop(self, picture: Picture, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        top, left, height, width = draw_crop(rng, picture.height, picture.width, scale=self.scale, ratio=self.ratio)
        interpolation = self._filter(rng)
        reduce = 1
        if interpolation in SUPPORT and not self.exact:
            reduce = largest_reduction(picture, min(height / size[0], width / size[1]))
        pixels, reduced = picture.decode(reduce)
        rows, columns = (
            slice(round(start / reduced), round((start + length) / reduced))
            for start, length in ((top, height), (left, width))
        )
        return resize(pixels[rows, columns], size, interpolation, exact=self.exact)

    def _kept_ratio(self, picture: Picture, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        full = draw_size(rng, picture.height, picture.width, size, scale=self.scale, ratio=self.ratio, area=True)
        interpolation = self._filter(rng)
        down, right = (
            anywhere(have, want, rng) if self.train_crop_mode == "rkrr" else centred(have, want)
            for have, want in zip(full, size, strict=True)
        )
        return resize_to_window(picture, full, (down, right), size, interpolation, fill=None, exact=self.exact)

    def flip(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The second step alone: pixels (H, W, C), mirrored by chance."""
        axes = [axis for axis, p in ((2, self.hflip), (1, self.vflip)) if rng.random() < p]
        # torch mirrors interleaved pixels many times faster than NumPy copies a mirrored view
        return torch.from_numpy(pixels).permute(2, 0, 1).flip(axes).permute(1, 2, 0).numpy() if axes else pixels

    # --- colours

    def _policy(self, size: tuple[int, int]) -> Policy:
        if size not in self._policies:
            assert self.auto_augment is not None
            fill = tuple(min(255, round(255 * value)) for value in self.mean)
            self._policies[size] = parse_policy(
                self.auto_augment, img_size=size, mean=fill, interpolation=self.interpolation, exact=self.exact
            )
        return self._policies[size]

    def augment(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The last step alone: pixels (H, W, C) after policy, jitter, grey and blur."""
        if self.auto_augment is not None:
            height, width, _ = pixels.shape
            pixels = self._policy((height, width))(np.ascontiguousarray(pixels), rng)
        if self.color_jitter and rng.random() < self.color_jitter_prob:
            for i, amount in draw_jitter(rng, self.color_jitter):
                pixels = ADJUSTMENTS[i](pixels, amount)
        if rng.random() < self.grayscale_prob:
            pixels = ops.desaturate(pixels, 1.0)
        if rng.random() < self.gaussian_blur_prob:
            pixels = gaussian_blur(pixels, rng.uniform(*BLUR_SIGMA), exact=self.exact)
        return pixels


class TrainingPreprocess:
    """A `TrainTransform` as timm's users call one: from a picture to a normalised float tensor, erased if asked for.

    Chance comes from torch's global generator, which `torch.manual_seed` sets and `DataLoader` seeds for each worker,
    or from `generator`. A Pillow image is taken as its pixels lie, as `Preprocess` does.
    """

    def __init__(
        self,
        transform: TrainTransform,
        preprocess: Preprocess,
        *,
        erase: RandomErasing | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.transform, self.preprocess, self.erase, self.generator = transform, preprocess, erase, generator

    def __call__(self, image: Source) -> Tensor:
        """float32 (C, H, W), or (S, C, H, W) with splits."""
        if isinstance(image, Image.Image):
            image = np.array(with_channels(image, self.preprocess.channels))
        seed = int(torch.randint(2**63 - 1, (), generator=self.generator))
        pixels = self.transform(image, rng=np.random.default_rng(seed))
        batch = self.preprocess.normalize(pixels if pixels.ndim == 4 else pixels[None])
        if self.erase is not None:
            batch = self.erase(batch, torch.Generator().manual_seed(seed))
        return batch if pixels.ndim == 4 else batch[0]


# --- chance -----------------------------------------------------------------------------------------------------------


def draw_crop(
    rng: np.random.Generator, height: int, width: int, *, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random crop: even in area and in the logarithm of its aspect.

    When ten of them do not fit, the largest in the middle whose aspect is allowed (Szegedy et al. 2015, Inception).
    """
    for _ in range(TRIES):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = max(round(math.sqrt(area * aspect)), 1), max(round(math.sqrt(area / aspect)), 1)
        if w <= width and h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, max(round(height * aspect), 1)), min(height, max(round(width / aspect), 1))
    return (height - h) // 2, (width - w) // 2, h, w


def draw_size(
    rng: np.random.Generator,
    height: int,
    width: int,
    target: tuple[int, int],
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    scale_prob: float = 0.5,
    ratio_prob: float = 0.5,
    longest: float = 0.0,
    area: bool = False,
) -> tuple[int, int]:
    """(height, width) to resize to: what covers `target`, at these probabilities with another scale and other aspect.

    `longest` from 0 to 1 goes from the size that covers the target to the one that lies in it. `scale` is of the sides,
    or with `area` the share of the picture that the target then covers.
    """
    covers, lies_in = sorted((height / target[0], width / target[1]))
    shrink = covers + longest * (lies_in - covers)
    factor = rng.uniform(*scale) if rng.random() < scale_prob else 1.0
    if area:
        factor = 1 / math.sqrt(factor)
    stretch = 1.0
    if rng.random() < ratio_prob:
        stretch = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])) / 2)
    return max(round(height * factor / stretch / shrink), 1), max(round(width * factor * stretch / shrink), 1)


def anywhere(have: int, want: int, rng: np.random.Generator) -> int:
    """An offset that leaves a length inside a canvas of length `want`, or the canvas inside it."""
    gap = want - have
    return int(rng.integers(min(gap, 0), max(gap, 0), endpoint=True))


def draw_jitter(rng: np.random.Generator, strengths: Sequence[float]) -> list[tuple[int, float]]:
    """What to adjust (a place in `ADJUSTMENTS`) and by how much, in the order it is to be done."""
    ranges = [(-s, s) if i == HUE else (max(1 - s, 0), 1 + s) for i, s in enumerate(strengths)]
    return [(int(i), rng.uniform(*ranges[i])) for i in rng.permutation(len(strengths)) if strengths[i]]


# --- operations that policies lack ------------------------------------------------------------------------------------


def hue(image: np.ndarray, turn: float) -> np.ndarray:
    """Turn the colours by this part of the circle, -0.5 to 0.5. Only three channels have a hue."""
    if image.shape[2] != 3:
        return image
    hsv = np.array(Image.fromarray(image).convert("HSV"))
    hsv[..., 0] += np.uint8(int(turn * 255) % 256)  # wraps around
    return np.array(Image.fromarray(hsv, "HSV").convert("RGB"))


def gaussian_blur(image: np.ndarray, sigma: float, *, exact: bool = False) -> np.ndarray:
    """A Gaussian of deviation `sigma` pixels, cut at 11, the picture mirrored at its edges.

    Computed as rows, then columns, where it is above a millionth; `exact` sums the whole square at once.
    """
    radius = BLUR_RADIUS if exact else min(BLUR_RADIUS, math.ceil(5 * sigma))
    radius = min(radius, *(side - 1 for side in image.shape[:2]))  # there is no more to mirror
    line = torch.exp(-0.5 * (torch.arange(-radius, radius + 1.0) / sigma) ** 2)
    line /= line.sum()
    planes = F.pad(torch.from_numpy(image).permute(2, 0, 1).float()[None], (radius,) * 4, mode="reflect")
    for kernel in [line[:, None] * line] if exact else [line[:, None], line[None]]:
        planes = F.conv2d(planes, kernel.expand(len(planes[0]), 1, -1, -1), groups=len(planes[0]))
    return planes[0].round_().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


ADJUSTMENTS = (ops.brightness, ops.contrast, ops.color, hue)
HUE = ADJUSTMENTS.index(hue)

# --- shared -----------------------------------------------------------------------------------------------------------


def _tensor(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _size(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise OpsinError(f"size must be a side or (height, width), at least 1, not {size}")
    return int(height), int(width)


def _range(what: str, values: Sequence[float]) -> tuple[float, float]:
    low, high = values
    if not 0 < low <= high:
        raise OpsinError(f"{what} must be (least, most), above 0, not {tuple(values)}")
    return low, high


def _probability(what: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise OpsinError(f"{what} is a probability, not {value}")
    return value


def _jitter_strengths(values: float | Sequence[float] | None) -> tuple[float, ...]:
    strengths = () if not values else (values,) * 3 if isinstance(values, int | float) else tuple(values)
    if len(strengths) not in (0, 3, 4) or min(strengths, default=0) < 0 or max(strengths[HUE:], default=0) > 0.5:
        raise OpsinError(
            f"color_jitter: brightness, contrast, saturation and perhaps hue (at most 0.5), or one number, not {values}"
        )
    return strengths
