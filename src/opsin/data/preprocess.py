"""From a picture to the tensor a model was trained on: resize, crop, scale, normalise.

The published figures of these models rest on one evaluation transform, made of torchvision's and timm's parts.
`Preprocess` computes the same values bit for bit with Pillow and torch alone. The three functions at the end take the
names and arguments under which timm's users know it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from opsin.catalog.pretrained import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PretrainedCfg
from opsin.data.images import with_channels
from opsin.errors import OpsinError, UnknownArgumentError, check_known, did_you_mean

if TYPE_CHECKING:
    from opsin.data.transforms import TrainingPreprocess

__all__ = ["Preprocess", "centred", "create_transform", "resolve_data_config", "resolve_model_data_config"]

FILTERS = {
    name: Image.Resampling[name.upper()] for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
}
CROP_MODES = ("center", "border", "squash")
DEFAULT_CROP_PCT = 0.875
# Scaled to fit its short side, a strip a few pixels wide would fill the memory, only to be cut to its middle. Above
# this many pixels the ends of a strip go first, which the published transform does not do.
HUGE, STRIP = 200_000_000, 64


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """The evaluation transform of one model.

    `input_size` is (channels, height, width). The picture is resized to `input_size / crop_pct` with `interpolation`
    (a Pillow filter: nearest, box, bilinear, hamming, bicubic, lanczos), then the middle is cut out. `crop_mode`:

    - `center`: the short side fits, what is over at the long side is cut away;
    - `border`: the long side fits, the rest is filled with the mean colour;
    - `squash`: both sides fit, the aspect ratio is lost.

    `mean` and `std` are of values in 0..1, one per channel.
    """

    input_size: tuple[int, int, int] = (3, 224, 224)
    interpolation: str = "bicubic"
    crop_pct: float = DEFAULT_CROP_PCT
    crop_mode: str = "center"
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD

    def __post_init__(self) -> None:
        for what, value, known in (
            ("interpolation", self.interpolation, FILTERS),
            ("crop_mode", self.crop_mode, CROP_MODES),
        ):
            if value not in known:
                hint = did_you_mean(str(value), known) or f" It can be {', '.join(known)}."
                raise UnknownArgumentError(f"no {what} {value!r}.{hint}")
        if len(self.input_size) != 3 or min(self.input_size) < 1:
            raise OpsinError(f"input_size must be (channels, height, width), not {self.input_size}")
        if not self.crop_pct > 0:
            raise OpsinError(f"crop_pct must be above 0, not {self.crop_pct}")
        if not len(self.mean) == len(self.std) == self.channels:
            raise OpsinError(f"{len(self.mean)} means and {len(self.std)} deviations for {self.channels} channels")
        if min(self.std) <= 0:
            raise OpsinError(f"std must be above 0, not {self.std}")

    @property
    def channels(self) -> int:
        return self.input_size[0]

    @property
    def border(self) -> tuple[int, ...]:
        """The colour, 0..255 a channel, around a picture that is smaller than `input_size`."""
        return tuple(round(255 * m) for m in self.mean) if self.crop_mode == "border" else (0,) * self.channels

    @classmethod
    def from_cfg(
        cls,
        cfg: PretrainedCfg | Mapping[str, Any],
        *,
        use_test_size: bool = False,
        input_size: Sequence[int] | None = None,
        in_chans: int | None = None,
    ) -> "Preprocess":
        """Build from the record of a weight tag (fields that say nothing of preprocessing are passed over).

        Args:
            cfg: the record, as `model.pretrained_cfg` holds it.
            use_test_size: the size and crop the publishers tested with, where the record names them.
            input_size: (channels, height, width) or (height, width) in place of the record's.
            in_chans: channels in place of the record's. `mean` and `std` follow: one channel takes the average of the
                colours, more repeat them in turn, as the kernels of an adapted first convolution are repeated.
        """
        record = cfg.to_dict() if isinstance(cfg, PretrainedCfg) else cfg
        test = "test_" if use_test_size else ""
        size = input_size or record.get(f"{test}input_size") or record.get("input_size") or (3, 224, 224)
        if len(size) == 2:
            size = (record.get("input_size", (3,))[0], *size)
        channels = in_chans or size[0]
        return cls(
            input_size=(channels, size[1], size[2]),
            interpolation=record.get("interpolation") or "bicubic",
            crop_pct=record.get(f"{test}crop_pct") or record.get("crop_pct") or DEFAULT_CROP_PCT,
            crop_mode=record.get("crop_mode") or "center",
            mean=_for_channels(record.get("mean") or IMAGENET_DEFAULT_MEAN, channels),
            std=_for_channels(record.get("std") or IMAGENET_DEFAULT_STD, channels),
        )

    @classmethod
    def from_model(cls, model: Any, *, use_test_size: bool = False) -> "Preprocess":
        """What a model needs: its record (`pretrained_cfg`), for the channels and image size it was built with."""
        return cls.from_cfg(model.pretrained_cfg, use_test_size=use_test_size, **_built_for(model))

    def __call__(self, image: Image.Image | np.ndarray) -> Tensor:
        """The normalised float32 tensor (C, H, W) of a picture, taken as `to_uint8` takes it."""
        return self.normalize(self.to_uint8(image))

    def to_uint8(self, image: Image.Image | np.ndarray) -> Tensor:
        """The resized and cropped pixels (C, H, W), 0..255.

        `image` is a Pillow image of any mode, or a uint8 array (H, W, C) with this transform's channels. A file's
        EXIF orientation is for `open_image` to respect; here pixels are taken as they lie.
        """
        if isinstance(image, Image.Image):
            image = with_channels(image, self.channels)
        if isinstance(image, Image.Image):
            pixels = np.array(self._fit(image))
            pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        else:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != self.channels:
                raise OpsinError(f"expected a uint8 array (H, W, {self.channels}), got {image.shape} {image.dtype}")
            planes = [self._fit(Image.fromarray(image[..., i]), i) for i in range(self.channels)]
            pixels = np.stack([np.asarray(plane) for plane in planes], axis=-1)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 pixels (..., C, H, W) to float32, minus the mean, over the deviation."""
        mean, std = (
            torch.tensor(v, dtype=torch.float32, device=pixels.device)[:, None, None] for v in (self.mean, self.std)
        )
        out = torch.empty_like(pixels, dtype=torch.float32)
        # one picture after the other stays in a processor's cache, which halves the time
        one_by_one = pixels.ndim > 3 and pixels.device.type == "cpu"
        for values, given in zip(out, pixels, strict=True) if one_by_one else [(out, pixels)]:
            values.copy_(given).div_(255).sub_(mean).div_(std)
        return out

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that a picture of these sides is resized to, before it is cropped or bordered."""
        scale_h, scale_w = (max(math.floor(side / self.crop_pct), 1) for side in self.input_size[1:])
        if self.crop_mode == "squash":
            return scale_h, scale_w
        if self.crop_mode == "center" and scale_h == scale_w:
            # the long side rounds down here and to the nearest below: the published transform has both
            new_w = scale_w if width <= height else int(scale_w * width / height)
            return scale_h if height <= width else int(scale_h * height / width), new_w
        ratio = (max if self.crop_mode == "border" else min)(height / scale_h, width / scale_w)
        return max(round(height / ratio), 1), max(round(width / ratio), 1)

    def _fit(self, image: Image.Image, plane: int | None = None) -> Image.Image:
        """Resize and crop; `plane` says which channel a single-channel image is when there are several."""
        target_h, target_w = self.input_size[1:]
        w, h = image.size
        new_h, new_w = self.resized(h, w)
        if new_w * new_h > HUGE and max(w, h) > STRIP * min(w, h):
            keep_w, keep_h = min(w, STRIP * h), min(h, STRIP * w)
            left, top = (w - keep_w) // 2, (h - keep_h) // 2
            return self._fit(image.crop((left, top, left + keep_w, top + keep_h)), plane)
        if (new_w, new_h) != (w, h):
            image = image.resize((new_w, new_h), FILTERS[self.interpolation])
        colour = self.border if plane is None else self.border[plane : plane + 1]
        canvas = Image.new(image.mode, (target_w, target_h), colour)
        canvas.paste(image, (centred(new_w, target_w), centred(new_h, target_h)))
        return canvas


def centred(have: int, want: int) -> int:
    """Where a length goes on a canvas of length `want` to be centred: 0 or less when it is cut, else the border."""
    return (want - have) // 2 if have < want else -round((have - want) / 2)


def _built_for(model: Any) -> dict[str, Any]:
    """Channels, and image size where that is part of the model (position embeddings); None is as the record says."""
    config = getattr(model, "config", None)
    size = getattr(config, "img_size", None)
    size = (size, size) if isinstance(size, int) else size
    return {"in_chans": getattr(config, "in_chans", None), "input_size": size}


def _for_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    if len(values) == channels:
        return tuple(values)
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[i % len(values)] for i in range(channels))


# --- the names timm's users know ------------------------------------------------------------------------------------

DATA_ARGS = ("in_chans", "chans", "input_size", "img_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


def resolve_model_data_config(
    model: nn.Module,
    args: Mapping[str, Any] | None = None,
    pretrained_cfg: Mapping[str, Any] | PretrainedCfg | None = None,
    use_test_size: bool = False,
    verbose: bool = False,
) -> dict[str, Any]:
    """What `create_transform` needs for this model, as a dict; for the channels and image size it was built with."""
    return resolve_data_config(args, pretrained_cfg, model, use_test_size, verbose)


def resolve_data_config(
    args: Mapping[str, Any] | None = None,
    pretrained_cfg: Mapping[str, Any] | PretrainedCfg | None = None,
    model: nn.Module | None = None,
    use_test_size: bool = False,
    verbose: bool = False,
) -> dict[str, Any]:
    """The preprocessing of a model or record, each figure overridden by `args` (a script's `vars(args)`) if set there.

    Returns a dict of input_size, interpolation, mean, std, crop_pct, crop_mode; `verbose` prints it.
    """
    given = {k: v for k, v in (args or {}).items() if k in DATA_ARGS and v is not None}
    if not (model is not None or args or pretrained_cfg):
        raise OpsinError("resolve_data_config needs a model, args or a pretrained_cfg")
    cfg = pretrained_cfg or getattr(model, "pretrained_cfg", None) or {}
    record = dict(cfg.to_dict() if isinstance(cfg, PretrainedCfg) else cfg)
    built = _built_for(model)
    size = given.get("input_size", built["input_size"])
    in_chans = given.get("in_chans", given.get("chans", built["in_chans"]))
    if "input_size" in given:
        in_chans = size[0]
    elif "img_size" in given:
        size = (given["img_size"],) * 2 if isinstance(given["img_size"], int) else given["img_size"]
    for key in ("mean", "std"):
        if key in given:
            record[key] = tuple(given[key])
    for key in ("interpolation", "crop_pct", "crop_mode"):
        if given.get(key):
            record[key] = record[f"test_{key}"] = given[key]
    made = Preprocess.from_cfg(record, use_test_size=use_test_size, input_size=size, in_chans=in_chans)
    names = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    config = {name: getattr(made, name) for name in names}
    if verbose:
        print("preprocessing:", ", ".join(f"{k}={v}" for k, v in config.items()))
    return config


def create_transform(
    input_size: int | Sequence[int] = 224,
    is_training: bool = False,
    *,
    interpolation: str = "bilinear",
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    re_prob: float = 0.0,
    re_mode: str = "const",
    re_count: int = 1,
    **training: Any,
) -> "Preprocess | TrainingPreprocess":
    """The transform from these figures: a callable from a Pillow image to a normalised float tensor (C, H, W).

    Args:
        input_size: a side, (height, width) or (channels, height, width); channels follow `mean` unless it names them.
        is_training: with augmentation: `TrainTransform`'s options are taken, and random erasing's probability, mode
            and greatest count. Otherwise the evaluation transform, which has `crop_pct` and `crop_mode`.
        interpolation: a filter's name; for training also `random`.
        mean, std: of values in 0..1, one per channel.
    """
    size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    channels = size[0] if len(size) == 3 else len(mean)
    fit = Preprocess(
        input_size=(channels, size[-2], size[-1]),
        interpolation="bilinear" if is_training else interpolation,
        crop_pct=crop_pct or DEFAULT_CROP_PCT,
        crop_mode=crop_mode or "center",
        mean=_for_channels(mean, channels),
        std=_for_channels(std, channels),
    )
    if not is_training:
        unused = [*training, *(["re_prob"] if re_prob else [])]
        if unused:
            raise UnknownArgumentError(f"the evaluation transform takes no {', '.join(unused)}")
        return fit
    from opsin.data.augment.erase import RandomErasing
    from opsin.data.transforms import TrainingPreprocess, TrainTransform

    check_known(training, signature(TrainTransform).parameters, owner="the training transform")
    erase = RandomErasing(re_prob, mode=re_mode, max_count=re_count) if re_prob else None
    transform = TrainTransform(size[-2:], mean=fit.mean, interpolation=interpolation, **training)
    return TrainingPreprocess(transform, fit, erase=erase)
