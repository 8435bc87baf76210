"""What `timm.data.transforms` shows: single steps on Pillow images (or tensors), each a call of opsin's own.

Chance comes from torch's global generator, which `torch.manual_seed` sets and a `DataLoader` seeds in each worker.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from opsin.data.augment.chance import host_rng
from opsin.data.images import MODES, with_channels
from opsin.data.preprocess import FILTERS, centred
from opsin.data.transforms import RANDOM, TrainTransform, anywhere, draw_crop, draw_size
from opsin.errors import OpsinError, check_choice

__all__ = ["CenterCropOrPad", "RandomCropOrPad", "RandomResizedCropAndInterpolation", "ResizeKeepRatio", "TrimBorder"]

Picture = Image.Image | np.ndarray
PADDING = ("constant", "edge", "reflect", "symmetric")


def fresh_rng() -> np.random.Generator:
    """Seeded by the next draw of torch's global generator."""
    return host_rng(torch.default_generator)


def to_pixels(image: Picture | Tensor) -> np.ndarray:
    """(H, W, C) of a Pillow image as its pixels lie, or of an array (H, W) or (H, W, C). Palettes and the like become
    RGB."""
    if isinstance(image, Image.Image) and image.mode not in MODES.values():
        image = with_channels(image, 3)
    pixels = np.array(image) if isinstance(image, Image.Image) else np.asarray(image)  # torch wants to be let write
    return pixels if pixels.ndim == 3 else pixels[..., None]


def to_picture(pixels: np.ndarray) -> Picture:
    """A Pillow image where there is one with so many channels, otherwise the array itself."""
    if pixels.shape[2] not in MODES:
        return pixels
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))


def two(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a side, or of what ends in a height and a width."""
    return (size, size) if isinstance(size, int) else (int(size[-2]), int(size[-1]))


# --- filters ---------------------------------------------------------------------------------------------------------


def str_to_pil_interp(mode_str: str) -> Any:
    """Pillow's filter of this name."""
    check_choice(mode_str, FILTERS, what="interpolation")
    return FILTERS[mode_str]


def str_to_interp_mode(mode_str: str) -> Any:
    """torchvision's filter of this name."""
    from torchvision.transforms import InterpolationMode

    check_choice(mode_str, FILTERS, what="interpolation")
    return InterpolationMode(mode_str)


def interp_mode_to_str(mode: Any) -> str:
    """The name of one of torchvision's or Pillow's filters; a name stays as it is, a pair of them is `random`."""
    if isinstance(mode, list | tuple):
        return "random" if len(mode) > 1 else interp_mode_to_str(mode[0])
    name = mode if isinstance(mode, str) else getattr(mode, "value", mode)  # Pillow's are numbers
    name = name if isinstance(name, str) else Image.Resampling(name).name.lower()
    check_choice(name, (*FILTERS, "random"), what="interpolation")
    return name


# --- to tensors ------------------------------------------------------------------------------------------------------


class ToNumpy:
    """A picture as uint8 (C, H, W), an array."""

    def __call__(self, image: Picture) -> np.ndarray:
        return np.ascontiguousarray(to_pixels(image).transpose(2, 0, 1))


class PILToTensor:
    """A picture as uint8 (C, H, W); a tensor stays as it is."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __call__(self, image: Picture | Tensor) -> Tensor:
        return image if isinstance(image, Tensor) else torch.from_numpy(ToNumpy()(image))


class ToTensor(PILToTensor):
    """A picture as float32 (C, H, W) from 0 to 1; a tensor stays as it is.

    transformers looks for this class name in `transforms` to know that pictures go in, not tensors.
    """

    def __call__(self, image: Picture | Tensor) -> Tensor:
        return image if isinstance(image, Tensor) else super().__call__(image).float().div_(255)


class ToRawTensor:
    """A picture as (C, H, W) of this type, its values as they are: `timm.data.ToTensor`."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype

    def __call__(self, image: Picture) -> Tensor:
        return torch.from_numpy(ToNumpy()(image)).to(self.dtype)


class Normalize:
    """Floats (..., C, H, W) less the mean, over the deviation."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = torch.tensor(mean), torch.tensor(std)

    def __call__(self, values: Tensor) -> Tensor:
        mean, std = (v[:, None, None].to(values.device, values.dtype) for v in (self.mean, self.std))
        return values.sub(mean).div_(std)

    def __repr__(self) -> str:
        return f"Normalize(mean={self.mean.tolist()}, std={self.std.tolist()})"


# --- geometry --------------------------------------------------------------------------------------------------------


class RandomResizedCropAndInterpolation:
    """A crop of random area and aspect, resized; see `opsin.data.TrainTransform`."""

    def __init__(
        self,
        size: int | Sequence[int],
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        interpolation: str = "bilinear",
    ) -> None:
        self.size, self.scale, self.ratio = two(size), scale, ratio
        self.interpolation = interpolation = interp_mode_to_str(interpolation)
        self.options: dict[str, Any] = {"scale": scale, "ratio": ratio, "interpolation": interpolation}
        self.steps: dict[int, TrainTransform] = {}
        self._steps(3)

    def _steps(self, channels: int) -> TrainTransform:
        if channels not in self.steps:
            self.steps[channels] = TrainTransform(self.size, mean=(0.5,) * channels, **self.options)
        return self.steps[channels]

    def __call__(self, image: Picture) -> Picture:
        pixels = to_pixels(image)
        return to_picture(self._steps(pixels.shape[2]).crop(pixels, fresh_rng()))

    @staticmethod
    def get_params(img: Picture, scale: tuple[float, float], ratio: tuple[float, float]) -> tuple[int, int, int, int]:
        """(top, left, height, width) of a crop."""
        height, width = to_pixels(img).shape[:2]
        return draw_crop(fresh_rng(), height, width, scale=scale, ratio=ratio)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size}, {', '.join(f'{k}={v}' for k, v in self.options.items())})"


class ResizeKeepRatio:
    """Resize so that the picture covers `size`, or at `longest` 1 lies in it; by chance at another scale and aspect.

    With `random_scale_area` the range is of the share of the picture's area that `size` then covers.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        longest: float = 0.0,
        interpolation: str = "bilinear",
        random_scale_prob: float = 0.0,
        random_scale_range: tuple[float, float] = (0.85, 1.05),
        random_scale_area: bool = False,
        random_aspect_prob: float = 0.0,
        random_aspect_range: tuple[float, float] = (0.9, 1.11),
    ) -> None:
        self.size, self.longest, self.interpolation = two(size), float(longest), interp_mode_to_str(interpolation)
        self.random_scale_prob, self.random_scale_range = random_scale_prob, random_scale_range
        self.random_scale_area = random_scale_area
        self.random_aspect_prob, self.random_aspect_range = random_aspect_prob, random_aspect_range

    def __call__(self, image: Image.Image) -> Image.Image:
        rng = fresh_rng()
        height, width = draw_size(
            rng,
            image.height,
            image.width,
            self.size,
            scale=self.random_scale_range,
            ratio=self.random_aspect_range,
            scale_prob=self.random_scale_prob,
            ratio_prob=self.random_aspect_prob,
            longest=self.longest,
            area=self.random_scale_area,
        )
        name = RANDOM[rng.integers(2)] if self.interpolation == "random" else self.interpolation
        return image.resize((width, height), FILTERS[name])


class CenterCropOrPad:
    """The middle of a picture or of a tensor (..., H, W), with a border where it is smaller than `size`.

    `fill` is the border's colour, one value or one a channel; `padding_mode` is constant, edge, reflect or symmetric.
    """

    def __init__(
        self, size: int | Sequence[int], fill: int | tuple[int, ...] = 0, padding_mode: str = "constant"
    ) -> None:
        check_choice(padding_mode, PADDING, what="padding_mode")
        self.size, self.fill, self.padding_mode = two(size), fill, padding_mode

    def offset(self, height: int, width: int) -> tuple[int, int]:
        """Where the picture's upper left corner goes: 0 or less where it is cut."""
        return centred(height, self.size[0]), centred(width, self.size[1])

    def __call__(self, image: Picture | Tensor) -> Any:
        if isinstance(image, Tensor):
            planes = image.movedim(-3, -1).cpu().numpy() if image.ndim > 2 else image.cpu().numpy()[..., None]
            framed = torch.from_numpy(self._framed(planes)).to(image.device)
            return framed.movedim(-1, -3).contiguous() if image.ndim > 2 else framed[..., 0]
        return to_picture(self._framed(to_pixels(image)))

    def _framed(self, pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[-3:-1]
        axes = []
        for start, have, want in zip(self.offset(height, width), (height, width), self.size, strict=True):
            axes.append((slice(max(-start, 0), max(-start, 0) + min(have, want)), start, want))
        inside = pixels[..., axes[0][0], axes[1][0], :]
        border = [(0, 0)] * (pixels.ndim - 3)
        for (_, start, want), have in zip(axes, inside.shape[-3:-1], strict=True):
            border.append((max(start, 0), want - have - max(start, 0)))
        if self.padding_mode != "constant":
            return np.pad(inside, [*border, (0, 0)], mode=self.padding_mode)  # type: ignore[call-overload]
        canvas = np.empty((*pixels.shape[:-3], *self.size, pixels.shape[-1]), pixels.dtype)
        canvas[...] = self.fill
        (top, _), (left, _) = border[-2:]
        canvas[..., top : top + inside.shape[-3], left : left + inside.shape[-2], :] = inside
        return canvas

    def __repr__(self) -> str:
        return f"{type(self).__name__}(size={self.size})"


class RandomCropOrPad(CenterCropOrPad):
    """As `CenterCropOrPad`, anywhere in the picture, or with the picture anywhere in the border."""

    def offset(self, height: int, width: int) -> tuple[int, int]:
        rng = fresh_rng()
        return anywhere(height, self.size[0], rng), anywhere(width, self.size[1], rng)


class TrimBorder:
    """A picture without this many pixels at each edge."""

    def __init__(self, border_size: int) -> None:
        self.border_size = border_size

    def __call__(self, image: Picture) -> Picture:
        pixels, cut = to_pixels(image), self.border_size
        if 2 * cut >= min(pixels.shape[:2]):
            raise OpsinError(
                f"a border of {cut} pixels leaves nothing of a picture of {pixels.shape[1]}x{pixels.shape[0]}"
            )
        return to_picture(pixels[cut : pixels.shape[0] - cut, cut : pixels.shape[1] - cut])
