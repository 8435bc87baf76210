"""What a magnitude means to each operation of a policy, and an operation as a policy holds it.

Magnitudes run from 0 to 10 and, where a policy says so, beyond. The names are those of policies in the papers and in
`timm`. Those that end in Increasing are the same operations with magnitudes turned so that more of it always means a
stronger effect.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from opsin.data.augment import ops

__all__ = ["OPERATIONS", "Operation", "Setting"]

UNIT = 10  # the magnitude at which an operation has its full strength


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the geometric operations of a policy share."""

    fill: tuple[int, ...]  # colour of what comes from outside, one value a channel
    interpolation: tuple[str, ...]  # one of them is drawn each time
    translate_pixels: float  # how far TranslateX/Y go at magnitude 10
    translate_share: float  # how far TranslateX/YRel go at magnitude 10, of the image's width or height
    exact: bool = False  # shear and translate as Pillow does, to the bit


Apply = Callable[[np.ndarray, float, Setting, np.random.Generator], np.ndarray]  # level is the magnitude over 10


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One operation by its name, how often it is done and how strongly.

    The magnitude is `magnitude` itself; with `deviation` it is drawn from a normal distribution about it, and with an
    infinite one evenly between 0 and it. It is kept to 0..`maximum`.
    """

    name: str
    setting: Setting
    magnitude: float = UNIT
    probability: float = 1.0
    deviation: float = 0.0
    maximum: float = UNIT

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if self.probability < 1 and rng.random() >= self.probability:
            return image
        return OPERATIONS[self.name](image, self.draw_magnitude(rng) / UNIT, self.setting, rng)

    def draw_magnitude(self, rng: np.random.Generator) -> float:
        drawn = self.magnitude
        if math.isinf(self.deviation):
            drawn = rng.uniform(0, drawn)
        elif self.deviation:
            drawn = rng.normal(drawn, self.deviation)
        return min(max(drawn, 0), self.maximum)


def _signed(value: float, rng: np.random.Generator) -> float:
    return value if rng.random() < 0.5 else -value


def _plain(function: Callable[[np.ndarray], np.ndarray]) -> Apply:
    return lambda image, level, setting, rng: function(image)


def _with(function: Callable[..., np.ndarray], argument: Callable[[float], float]) -> Apply:
    """An operation whose one argument follows from the level."""
    return lambda image, level, setting, rng: function(image, argument(level))


def _factor(function: Callable[[np.ndarray, float], np.ndarray]) -> Apply:
    """Factors from 0.1 (least) to 1.9 (most); the image itself is in the middle."""
    return _with(function, lambda level: level * 1.8 + 0.1)


def _factor_increasing(function: Callable[[np.ndarray, float], np.ndarray]) -> Apply:
    """Factors from the 1 of the image itself, either up or down, to 1.9 and 0.1."""
    return lambda image, level, setting, rng: function(image, max(0.1, 1 + _signed(level * 0.9, rng)))


def _moved(
    function: Callable[..., np.ndarray], amount: Callable[[float, Setting, np.ndarray], float], *, hasty: bool = True
) -> Apply:
    """A geometric operation, either way, by the amount that follows from level, setting and image.

    `hasty`: it has a way that is faster than the exact one.
    """

    def apply(image: np.ndarray, level: float, setting: Setting, rng: np.random.Generator) -> np.ndarray:
        signed = _signed(amount(level, setting, image), rng)
        names = setting.interpolation
        interpolation = names[rng.integers(len(names))] if len(names) > 1 else names[0]
        options = {"exact": setting.exact} if hasty else {}
        return function(image, signed, fill=setting.fill, interpolation=interpolation, **options)

    return apply


def _blur_up_to(image: np.ndarray, level: float, setting: Setting, rng: np.random.Generator) -> np.ndarray:
    low, high = sorted((0.1, 2.0 * min(level, 1)))
    return ops.gaussian_blur(image, rng.uniform(low, high))


OPERATIONS: dict[str, Apply] = {
    "AutoContrast": _plain(ops.auto_contrast),
    "Equalize": _plain(ops.equalize),
    "Invert": _plain(ops.invert),
    "Rotate": _moved(ops.rotate, lambda level, setting, image: level * 30, hasty=False),
    "Posterize": _with(ops.posterize, lambda level: int(level * 4)),
    "PosterizeIncreasing": _with(ops.posterize, lambda level: 4 - int(level * 4)),
    "PosterizeOriginal": _with(ops.posterize, lambda level: 4 + int(level * 4)),
    "Solarize": _with(ops.solarize, lambda level: min(256, int(level * 256))),
    "SolarizeIncreasing": _with(ops.solarize, lambda level: 256 - min(256, int(level * 256))),
    "SolarizeAdd": _with(ops.solarize_add, lambda level: min(128, int(level * 110))),
    "Color": _factor(ops.color),
    "ColorIncreasing": _factor_increasing(ops.color),
    "Contrast": _factor(ops.contrast),
    "ContrastIncreasing": _factor_increasing(ops.contrast),
    "Brightness": _factor(ops.brightness),
    "BrightnessIncreasing": _factor_increasing(ops.brightness),
    "Sharpness": _factor(ops.sharpness),
    "SharpnessIncreasing": _factor_increasing(ops.sharpness),
    "ShearX": _moved(ops.shear_x, lambda level, setting, image: level * 0.3),
    "ShearY": _moved(ops.shear_y, lambda level, setting, image: level * 0.3),
    "TranslateX": _moved(ops.translate_x, lambda level, setting, image: level * setting.translate_pixels),
    "TranslateY": _moved(ops.translate_y, lambda level, setting, image: level * setting.translate_pixels),
    "TranslateXRel": _moved(
        ops.translate_x, lambda level, setting, image: level * setting.translate_share * image.shape[1]
    ),
    "TranslateYRel": _moved(
        ops.translate_y, lambda level, setting, image: level * setting.translate_share * image.shape[0]
    ),
    "Desaturate": _with(ops.desaturate, lambda level: min(1, 0.5 + 0.5 * level)),
    "GaussianBlur": _with(ops.gaussian_blur, lambda level: min(2, 0.1 + 1.9 * level)),
    "GaussianBlurRand": _blur_up_to,
}
