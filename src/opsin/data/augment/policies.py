"""Augmentation policies by their strings: AutoAugment, RandAugment, 3-Augment, AugMix.

A string is a policy's name and options joined by `-`, an option is its key and value: `rand-m9-mstd0.5-inc1`. They
mean what they mean in `timm`:

- `rand`: RandAugment (Cubuk et al. 2020): `n` operations (2), each done with probability `p` (0.5), drawn evenly from
  a set. `m` is the magnitude (10), `mstd` its deviation (0; above 100 is even between 0 and `m`), `mmax` its limit
  (10). `inc1` takes the Increasing set. `tweights`, `t3a` and `t3aw` take the sets of those names; in the weighted
  ones no operation is drawn twice for a picture. `w0` weighs the set that `inc` chose as `tweights` does. Operations
  by name make a set of one's own: `tRotate+Invert`.
- `original`, `v0`: AutoAugment (Cubuk et al. 2019), the ImageNet policy of the paper and that of the TPU code;
  `originalr`, `v0r` have Posterize the right way round. `3a`: 3-Augment (Touvron et al. 2022). Option: `mstd`.
- `augmix`: AugMix (Hendrycks et al. 2020): `w` chains (3) of `d` operations (1 to 3 at random), mixed by weights drawn
  with concentration `a` (1). `m` is 3, and drawn evenly from 0 up to it unless `mstd` says otherwise. `b1` mixes in 8
  bits, step by step, which is faster and rounds coarser.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from opsin.data.augment.magnitudes import OPERATIONS, Operation, Setting
from opsin.data.augment.ops import blend
from opsin.data.preprocess import FILTERS
from opsin.errors import OpsinError, check_choice

__all__ = ["AugMix", "AutoAugment", "Policy", "RandAugment", "make_policy", "parse_policy", "subpolicies"]

Policy = Callable[[np.ndarray, np.random.Generator], np.ndarray]

# --- the tables -------------------------------------------------------------------------------------------------------

RAND = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "SolarizeAdd", "Color", "Contrast"),
    *("Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
)
HAS_INCREASING = ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")
RAND_INCREASING = tuple(f"{name}Increasing" if name in HAS_INCREASING else name for name in RAND)
AUGMIX = tuple(name for name in RAND_INCREASING if name not in ("Invert", "SolarizeAdd"))

WEIGHTS = {
    "Rotate": 3,
    **dict.fromkeys(("ShearX", "ShearY"), 2),
    **dict.fromkeys(("TranslateXRel", "TranslateYRel"), 1),
    **dict.fromkeys(("ColorIncreasing", "SharpnessIncreasing", "AutoContrast"), 0.25),
    **dict.fromkeys(("SolarizeIncreasing", "SolarizeAdd", "ContrastIncreasing", "BrightnessIncreasing"), 0.05),
    **dict.fromkeys(("Equalize", "PosterizeIncreasing", "Invert"), 0.05),
}
THREE = ("SolarizeIncreasing", "Desaturate", "GaussianBlur")
SETS: dict[str, dict[str, float] | tuple[str, ...]] = {
    "weights": WEIGHTS,
    "3a": THREE,
    "3aw": {
        **dict.fromkeys(THREE, 6),
        "Rotate": 3,
        **dict.fromkeys(("ShearX", "ShearY"), 2),
        **dict.fromkeys(("PosterizeIncreasing", "AutoContrast", "ColorIncreasing", "SharpnessIncreasing"), 1),
        **dict.fromkeys(("ContrastIncreasing", "BrightnessIncreasing", "Equalize", "Invert"), 1),
    },
}

# one sub-policy a line: operation, probability, magnitude, twice (once in 3-Augment)
ORIGINAL = """
    Posterize 0.4 8 Rotate 0.6 9
    Solarize 0.6 5 AutoContrast 0.6 5
    Equalize 0.8 8 Equalize 0.6 3
    Posterize 0.6 7 Posterize 0.6 6
    Equalize 0.4 7 Solarize 0.2 4
    Equalize 0.4 4 Rotate 0.8 8
    Solarize 0.6 3 Equalize 0.6 7
    Posterize 0.8 5 Equalize 1 2
    Rotate 0.2 3 Solarize 0.6 8
    Equalize 0.6 8 Posterize 0.4 6
    Rotate 0.8 8 Color 0.4 0
    Rotate 0.4 9 Equalize 0.6 2
    Equalize 0 7 Equalize 0.8 8
    Invert 0.6 4 Equalize 1 8
    Color 0.6 4 Contrast 1 8
    Rotate 0.8 8 Color 1 2
    Color 0.8 8 Solarize 0.8 7
    Sharpness 0.4 7 Invert 0.6 8
    ShearX 0.6 5 Equalize 1 9
    Color 0.4 0 Equalize 0.6 3
    Equalize 0.4 7 Solarize 0.2 4
    Solarize 0.6 5 AutoContrast 0.6 5
    Invert 0.6 4 Equalize 1 8
    Color 0.6 4 Contrast 1 8
    Equalize 0.8 8 Equalize 0.6 3
"""
V0 = """
    Equalize 0.8 1 ShearY 0.8 4
    Color 0.4 9 Equalize 0.6 3
    Color 0.4 1 Rotate 0.6 8
    Solarize 0.8 3 Equalize 0.4 7
    Solarize 0.4 2 Solarize 0.6 2
    Color 0.2 0 Equalize 0.8 8
    Equalize 0.4 8 SolarizeAdd 0.8 3
    ShearX 0.2 9 Rotate 0.6 8
    Color 0.6 1 Equalize 1 2
    Invert 0.4 9 Rotate 0.6 0
    Equalize 1 9 ShearY 0.6 3
    Color 0.4 7 Equalize 0.6 0
    Posterize 0.4 6 AutoContrast 0.4 7
    Solarize 0.6 8 Color 0.6 9
    Solarize 0.2 4 Rotate 0.8 9
    Rotate 1 7 TranslateYRel 0.8 9
    ShearX 0 0 Solarize 0.8 4
    ShearY 0.8 0 Color 0.6 4
    Color 1 0 Rotate 0.6 2
    Equalize 0.8 4 Equalize 0 8
    Equalize 1 4 AutoContrast 0.6 2
    ShearY 0.4 7 SolarizeAdd 0.6 7
    Posterize 0.8 2 Solarize 0.6 10
    Solarize 0.6 8 Equalize 0.6 1
    Color 0.8 6 Rotate 0.4 5
"""
AUTO = {
    "original": ORIGINAL.replace("Posterize", "PosterizeOriginal"),
    "originalr": ORIGINAL.replace("Posterize", "PosterizeIncreasing"),
    "v0": V0,
    "v0r": V0.replace("Posterize", "PosterizeIncreasing"),
    "3a": "Solarize 1 5\nDesaturate 1 10\nGaussianBlurRand 1 10",
}

# --- the policies -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """`count` of the operations, each drawn anew, or by `weights` and then none of them twice."""

    operations: Sequence[Operation]
    count: int
    weights: np.ndarray | None = None  # sum to 1

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        n = len(self.operations)
        if self.weights is None:
            drawn = rng.integers(n, size=self.count)
        else:
            drawn = rng.choice(n, size=self.count, replace=False, p=self.weights)
        return _in_turn(image, [self.operations[i] for i in drawn], rng)


@dataclass(frozen=True)
class AutoAugment:
    """One of the sub-policies, its operations in their order."""

    subpolicies: Sequence[Sequence[Operation]]

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return _in_turn(image, self.subpolicies[int(rng.integers(len(self.subpolicies)))], rng)


@dataclass(frozen=True, kw_only=True)
class AugMix:
    """`width` chains of `depth` operations (0: 1 to 3 at random), mixed with each other and with the image.

    Weights of the chains are Dirichlet, the share of the mixture beside the image is Beta, both of concentration
    `alpha`. `blended` mixes 8-bit pictures one after the other.
    """

    operations: Sequence[Operation]
    alpha: float = 1.0
    width: int = 3
    depth: int = 0
    blended: bool = False

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        weights = rng.dirichlet([self.alpha] * self.width)
        share = rng.beta(self.alpha, self.alpha)
        chains = (self._chain(image, rng) for _ in range(self.width))
        if self.blended:
            mixed, given = image, 1 - share
            for weight, chain in zip(weights * share, chains, strict=True):
                given += weight  # of the picture mixed so far, `weight / given` is the newest chain
                mixed = blend(mixed, chain, weight / given)
            return mixed
        total = np.zeros(image.shape, np.float32)
        for weight, chain in zip(weights, chains, strict=True):
            total += np.float32(weight) * chain
        return blend(image, total.clip(0, 255).astype(np.uint8), share)

    def _chain(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        depth = self.depth or rng.integers(1, 4)
        drawn = rng.integers(len(self.operations), size=depth)
        return _in_turn(image, [self.operations[i] for i in drawn], rng)


def _in_turn(image: np.ndarray, operations: Sequence[Operation], rng: np.random.Generator) -> np.ndarray:
    for operation in operations:
        image = operation(image, rng)
    return image


# --- the strings ------------------------------------------------------------------------------------------------------

# key: default, least and greatest value; the default's type is the value's
RAND_KEYS: dict[str, Any] = {
    "m": (10.0, 0, 1000),
    "n": (2, 1, 100),
    "p": (0.5, 0, 1),
    "mstd": (0.0, 0, math.inf),
    "mmax": (10.0, 0, 1000),
    "inc": (False, 0, 1),
    "w": (-1, 0, 0),
    "t": ("", "", ""),
}
AUGMIX_KEYS: dict[str, Any] = {
    "m": (3.0, 0, 1000),
    "w": (3, 1, 100),
    "d": (0, 0, 100),
    "a": (1.0, 0.001, 1000),
    "b": (False, 0, 1),
    "mstd": (math.inf, 0, math.inf),
}
AUTO_KEYS: dict[str, Any] = {"mstd": RAND_KEYS["mstd"]}
KEYS: dict[str, dict[str, Any]] = {"rand": RAND_KEYS, "augmix": AUGMIX_KEYS} | dict.fromkeys(AUTO, AUTO_KEYS)
UNIFORM_ABOVE = 100  # a deviation above this asks for an even distribution


def parse_policy(
    spec: str, *, img_size: tuple[int, int], mean: Sequence[int], interpolation: str, exact: bool = False
) -> Policy:
    """The policy that a string stands for (this module's docstring lists what it may say).

    Args:
        spec: such as `rand-m9-mstd0.5-inc1`, `v0`, `3a`, `augmix-m5-w4-d2`.
        img_size: (height, width) of the pictures; TranslateX/Y go up to 0.45 of the shorter side.
        mean: the colour, 0..255 a channel, of what geometric operations bring in from outside.
        interpolation: of geometric operations: `nearest`, `bilinear`, `bicubic`, or `random` for one of the latter two
            each time. Any other filter stands for `bicubic`.
        exact: shear and translate give the pixels of Pillow to the bit, rather than to 3 grey levels, in several times
            the time. All else is so anyway.

    Returns:
        `policy(image, rng)`: a uint8 array (H, W, C) to another of the same shape. All chance comes from `rng`; the
        image is not written to, but may be returned as it is.

    Raises:
        OpsinError: an unknown policy, key or set, a value that makes no sense; names the nearest right one.
    """
    check_choice(interpolation, (*FILTERS, "random"), what="interpolation")
    setting = Setting(
        fill=tuple(mean),
        interpolation=("bilinear", "bicubic") if interpolation == "random" else (interpolation,),
        translate_pixels=int(min(img_size) * 0.45),
        translate_share=translate_share(spec),
        exact=exact,
    )
    return make_policy(spec, setting)


def translate_share(spec: str) -> float:
    """How far TranslateX/YRel go at magnitude 10 in the policy of a string."""
    return 0.3 if spec.partition("-")[0] == "augmix" else 0.45


def make_policy(spec: str, setting: Setting) -> Policy:
    """The policy that a string stands for, its geometric operations as the setting says; see `parse_policy`."""
    kind, *words = spec.split("-")
    check_choice(kind, KEYS, what="augmentation policy", where=spec)
    options = _read_options(kind, words, spec)
    deviation = math.inf if options["mstd"] > UNIFORM_ABOVE else options["mstd"]
    make = partial(Operation, setting=setting, deviation=deviation)
    if kind == "rand":
        return _rand(options, make, spec)
    if kind == "augmix":
        operations = [make(name=name, magnitude=options["m"]) for name in AUGMIX]
        return AugMix(
            operations=operations, alpha=options["a"], width=options["w"], depth=options["d"], blended=options["b"]
        )
    return AutoAugment(
        [
            [make(name=name, probability=probability, magnitude=magnitude) for name, probability, magnitude in row]
            for row in subpolicies(kind)
        ]
    )


def subpolicies(kind: str) -> list[list[tuple[str, float, float]]]:
    """The rows of an AutoAugment policy: of each operation its name, probability and magnitude."""
    rows = [line.split() for line in AUTO[kind].strip().splitlines()]
    return [
        [(name, float(p), float(m)) for name, p, m in zip(row[::3], row[1::3], row[2::3], strict=True)] for row in rows
    ]


def _rand(options: Mapping[str, Any], make: Callable[..., Operation], spec: str) -> RandAugment:
    names: Any = RAND_INCREASING if options["inc"] else RAND
    if options["t"]:
        names = SETS.get(options["t"], options["t"].split("+"))
        for name in names:
            check_choice(name, (*SETS, *OPERATIONS), what="operation or set of them", where=spec)
    if options["w"] == 0:
        names = {name: WEIGHTS[name if name in WEIGHTS else f"{name}Increasing"] for name in names}
    weights = None
    if isinstance(names, dict):
        weights = np.array(list(names.values())) / sum(names.values())
        if options["n"] > len(names):
            raise OpsinError(f"n{options['n']} in {spec!r}: there are {len(names)} operations, none is drawn twice")
    operations = [
        make(name=name, magnitude=options["m"], probability=options["p"], maximum=options["mmax"]) for name in names
    ]
    return RandAugment(operations=operations, count=options["n"], weights=weights)


def _read_options(kind: str, words: Sequence[str], spec: str) -> dict[str, Any]:
    known = KEYS[kind]
    options = {key: default for key, (default, _, _) in known.items()}
    given = set()
    for word in words:
        found = re.fullmatch(r"(t)(.+)|([a-z]+?)(inf|\d+\.?\d*|\.\d+)", word)
        if not found:
            raise OpsinError(f"{word!r} in {spec!r}: an option is a key and its value, such as mstd0.5")
        key, text = found[1] or found[3], found[2] or found[4]
        check_choice(key, known, what=f"{kind} option", where=spec)
        if key in given:
            raise OpsinError(f"{key} is given twice in {spec!r}")
        given.add(key)
        default, low, high = known[key]
        options[key] = text if key == "t" else _number(text, default, low, high, f"{word} in {spec!r}")
    if given >= {"t", "w"}:
        raise OpsinError(f"w and t both choose the weights in {spec!r}; give one of them")
    return options


def _number(text: str, default: float, low: float, high: float, where: str) -> float:
    number = float(text)
    whole = isinstance(default, int)  # bool too
    if not low <= number <= high or (whole and not number.is_integer()):
        span = f"{low:g}" if low == high else f"from {low:g} to {high:g}"
        raise OpsinError(f"{where}: must be {'a whole number ' if whole else ''}{span}")
    return type(default)(number)
