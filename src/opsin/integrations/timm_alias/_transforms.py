"""`create_transform` as code for timm knows it: parts in a list, each a step of opsin's transforms on Pillow images.

Such code takes parts out, puts others in, and calls some of them alone, so each takes and gives a picture until one
makes a tensor of it. Chance comes from torch's global generator.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from opsin.catalog import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from opsin.data import preprocess
from opsin.data.images import with_channels
from opsin.data.preprocess import Preprocess
from opsin.data.transforms import TrainTransform
from opsin.errors import OpsinError
from opsin.integrations.timm_alias._augment import RandomErasing
from opsin.integrations.timm_alias._pictures import (
    Normalize,
    Picture,
    PILToTensor,
    ToTensor,
    TrimBorder,
    fresh_rng,
    interp_mode_to_str,
    to_picture,
    to_pixels,
    two,
)

__all__ = ["Compose", "create_transform", "transforms_imagenet_eval", "transforms_imagenet_train"]


class Compose:
    """Parts one after the other. `transforms` is their list, which may be changed."""

    def __init__(self, transforms: Iterable[Callable[[Any], Any]]) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: Any) -> Any:
        for part in self.transforms:
            image = part(image)
        return image

    @property
    def reads_bytes(self) -> bool:
        """Whether an encoded picture may go in, of which no more is decoded than is needed."""
        return bool(self.transforms) and isinstance(self.transforms[0], Crop)

    def __repr__(self) -> str:
        return "\n    ".join(["Compose(", *map(repr, self.transforms)]) + "\n)"


# --- parts -----------------------------------------------------------------------------------------------------------


class Fit:
    """The geometry of the evaluation transform."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    def __call__(self, image: Picture) -> Picture:
        return to_picture(self.preprocess.to_uint8(image).permute(1, 2, 0).numpy())

    def __repr__(self) -> str:
        fit = self.preprocess
        return f"Fit(size={fit.input_size[1:]}, {fit.interpolation}, crop_pct={fit.crop_pct}, {fit.crop_mode})"


class Crop:
    """The first step of the training transform: a random crop, resized. Takes encoded pictures too."""

    def __init__(self, steps: TrainTransform) -> None:
        self.steps = steps

    def __call__(self, image: Picture | bytes) -> Picture:
        if isinstance(image, Image.Image):  # as its pixels lie
            image = np.array(with_channels(image, len(self.steps.mean)))
        return to_picture(self.steps.crop(image, fresh_rng()))

    def __repr__(self) -> str:
        steps = self.steps
        return f"Crop({steps.size}, {steps.train_crop_mode}, scale={steps.scale}, ratio={steps.ratio})"


class Flip:
    """The second step: mirrored left and right, top and bottom."""

    def __init__(self, steps: TrainTransform) -> None:
        self.steps = steps

    def __call__(self, image: Picture) -> Picture:
        return to_picture(self.steps.flip(to_pixels(image), fresh_rng()))

    def __repr__(self) -> str:
        return f"Flip(hflip={self.steps.hflip}, vflip={self.steps.vflip})"


class Colours:
    """The third step: a policy, or colour jitter; grey and blur."""

    def __init__(self, steps: TrainTransform) -> None:
        self.steps = steps

    def __call__(self, image: Picture) -> Picture:
        return to_picture(self.steps.augment(to_pixels(image), fresh_rng()))

    def __repr__(self) -> str:
        return f"Colours(auto_augment={self.steps.auto_augment}, color_jitter={self.steps.color_jitter})"


# --- transforms ------------------------------------------------------------------------------------------------------

ONLY = {"tf_preprocessing": False, "naflex": False, "patchify": False}
WITH_NAFLEX = ("patch_size", "max_seq_len", "patchify_channels_last", "patchify_flatten")  # timm reads them with naflex


def refuse(others: dict[str, Any], *, owner: str) -> None:
    """Raise for what opsin does not have, and for arguments that nobody knows."""
    for name, value in others.items():
        if name in ONLY and value != ONLY[name]:
            raise OpsinError(f"{owner}({name}={value}): opsin has {name}={ONLY[name]} only")
        if name not in ONLY and name not in WITH_NAFLEX:
            raise TypeError(f"{owner}() got an unexpected keyword argument {name!r}")


def _ending(
    fit: Preprocess, use_prefetcher: bool, normalize: bool, erase: RandomErasing | None = None
) -> list[Callable[[Any], Any]]:
    """From a picture to what goes into a batch: the prefetcher takes uint8, and normalises on the device."""
    if use_prefetcher or not normalize:
        return [PILToTensor()]
    ending: list[Callable[[Any], Any]] = [ToTensor(), Normalize(fit.mean, fit.std)]
    return [*ending, erase] if erase else ending


def _preprocess(size: Any, mean: Sequence[float], std: Sequence[float], **figures: Any) -> Preprocess:
    made = preprocess.create_transform(size, mean=mean, std=std, **figures)
    assert isinstance(made, Preprocess)
    return made


def transforms_imagenet_eval(
    img_size: int | Sequence[int] = 224,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    crop_border_pixels: int | None = None,
    interpolation: str = "bilinear",
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    use_prefetcher: bool = False,
    normalize: bool = True,
    **others: Any,
) -> Compose:
    """The evaluation transform, whose values are timm's to the bit; see `opsin.data.Preprocess`."""
    refuse(others, owner="transforms_imagenet_eval")
    name = interp_mode_to_str(interpolation)
    fit = _preprocess(img_size, mean, std, crop_pct=crop_pct, crop_mode=crop_mode, interpolation=name)
    trim = [TrimBorder(crop_border_pixels)] if crop_border_pixels else []
    return Compose([*trim, Fit(fit), *_ending(fit, use_prefetcher, normalize)])


def transforms_noaug_train(
    img_size: int | Sequence[int] = 224,
    interpolation: str = "bilinear",
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    use_prefetcher: bool = False,
    normalize: bool = True,
) -> Compose:
    """For training without augmentation: resized to the size itself (its short side, if it is square), the middle."""
    height, width = two(img_size)
    fit = _preprocess(
        img_size,
        mean,
        std,
        crop_pct=1.0,
        crop_mode="center" if height == width else "squash",
        interpolation="bilinear" if interpolation == "random" else interp_mode_to_str(interpolation),
    )
    return Compose([Fit(fit), *_ending(fit, use_prefetcher, normalize)])


def transforms_imagenet_train(
    img_size: int | Sequence[int] = 224,
    scale: tuple[float, float] | None = None,
    ratio: tuple[float, float] | None = None,
    train_crop_mode: str | None = None,
    hflip: float = 0.5,
    vflip: float = 0.0,
    color_jitter: float | Sequence[float] | None = 0.4,
    color_jitter_prob: float | None = None,
    force_color_jitter: bool = False,
    grayscale_prob: float = 0.0,
    gaussian_blur_prob: float = 0.0,
    auto_augment: str | None = None,
    interpolation: str = "random",
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    re_prob: float = 0.0,
    re_mode: str = "const",
    re_count: int = 1,
    re_num_splits: int = 0,
    use_prefetcher: bool = False,
    normalize: bool = True,
    separate: bool = False,
    **others: Any,
) -> Compose | tuple[Compose, Compose, Compose]:
    """The steps of `opsin.data.TrainTransform`, then a tensor, erased at `re_prob`.

    With `separate` three transforms: crop and flip, colours, and to a tensor. With a prefetcher uint8 comes out, which
    the loader normalises and erases.
    """
    refuse(others, owner="transforms_imagenet_train")
    name = interp_mode_to_str(interpolation)
    fit = _preprocess(img_size, mean, std)
    after: dict[str, Any] = {"grayscale_prob": grayscale_prob, "gaussian_blur_prob": gaussian_blur_prob}
    jitter: dict[str, Any] = {"color_jitter": color_jitter, "color_jitter_prob": color_jitter_prob}
    common: dict[str, Any] = {"mean": fit.mean, "interpolation": name}
    apart = bool(force_color_jitter and auto_augment and "3a" not in auto_augment)  # jitter beside any other policy
    steps = TrainTransform(
        fit.input_size[1:],
        scale=scale and (scale[0], scale[1]),
        ratio=ratio and (ratio[0], ratio[1]),
        train_crop_mode=train_crop_mode or "rrc",
        hflip=hflip,
        vflip=vflip,
        auto_augment=auto_augment or None,
        **common,
        **({} if apart else jitter | after),
    )
    flips = [Flip(steps)] if hflip or vflip else []
    colours = [Colours(steps)] if auto_augment or steps.color_jitter or grayscale_prob or gaussian_blur_prob else []
    if apart:
        colours.append(Colours(TrainTransform(fit.input_size[1:], **common, **jitter, **after)))
    erase = RandomErasing(re_prob, mode=re_mode, max_count=re_count, num_splits=re_num_splits) if re_prob else None
    ending = _ending(fit, use_prefetcher, normalize, erase)
    if separate:
        return Compose([Crop(steps), *flips]), Compose(colours), Compose(ending)
    return Compose([Crop(steps), *flips, *colours, *ending])


TRAINING = (
    *("train_crop_mode", "scale", "ratio", "hflip", "vflip", "color_jitter", "color_jitter_prob", "grayscale_prob"),
    *("gaussian_blur_prob", "auto_augment", "re_prob", "re_mode", "re_count", "re_num_splits"),
)
EVALUATION = ("crop_pct", "crop_mode", "crop_border_pixels")


def create_transform(
    input_size: int | Sequence[int] = 224,
    is_training: bool = False,
    no_aug: bool = False,
    train_crop_mode: str | None = None,
    scale: tuple[float, float] | None = None,
    ratio: tuple[float, float] | None = None,
    hflip: float = 0.5,
    vflip: float = 0.0,
    color_jitter: float | Sequence[float] | None = 0.4,
    color_jitter_prob: float | None = None,
    grayscale_prob: float = 0.0,
    gaussian_blur_prob: float = 0.0,
    auto_augment: str | None = None,
    interpolation: str = "bilinear",
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    re_prob: float = 0.0,
    re_mode: str = "const",
    re_count: int = 1,
    re_num_splits: int = 0,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    crop_border_pixels: int | None = None,
    use_prefetcher: bool = False,
    normalize: bool = True,
    separate: bool = False,
    **others: Any,
) -> Compose | tuple[Compose, Compose, Compose]:
    """A callable from a picture to a normalised float tensor (C, H, W), of the figures of `resolve_data_config`.

    Figures of training are passed over for evaluation and the other way round, as in timm; what would change the
    result and is not to be had raises.
    """
    given = dict(locals())
    refuse(others, owner="create_transform")
    common = {name: given[name] for name in ("interpolation", "mean", "std", "use_prefetcher", "normalize")}
    if separate and (no_aug or not is_training):
        raise OpsinError("create_transform(separate=True) parts the steps of augmentation; there is none here")
    if not is_training:
        return transforms_imagenet_eval(input_size, **{name: given[name] for name in EVALUATION}, **common)
    if no_aug:
        return transforms_noaug_train(input_size, **common)
    training = {name: given[name] for name in TRAINING}
    return transforms_imagenet_train(input_size, separate=separate, **training, **common)
