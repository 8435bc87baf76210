"""A U-Net on any model that has features."""

from typing import Any

import torch
import torch.nn.functional as F
from fastai.vision.all import BatchNorm, ConvLayer, NormType, PixelShuffle_ICNR, SelfAttention, SigmoidRange, apply_init
from torch import Tensor, nn

from opsin.catalog import model_facts
from opsin.factory import Pretrained
from opsin.integrations.fastai._body import Init, create, strip_head
from opsin.models._index import MODELS
from opsin.models._registry import resolve_name
from opsin.models.features import FeatureGetterNet

__all__ = ["Unet", "create_unet_model"]


class UpBlock(nn.Module):
    """Twice the size, or exactly that of the skip map, which is joined; then two convolutions."""

    def __init__(
        self, width: int, skip: int, out: int, *, blur: bool, attention: bool, init: Init, **layer: Any
    ) -> None:
        super().__init__()
        self.up = PixelShuffle_ICNR(width, out, blur=blur, **layer)
        self.norm = BatchNorm(skip) if skip else None
        self.convs = nn.Sequential(
            ConvLayer(out + skip, out, **layer),
            ConvLayer(out, out, xtra=SelfAttention(out) if attention else None, **layer),
        )
        if init is not None:
            apply_init(self.convs, init)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = self.up(x)
        if skip is None or self.norm is None:
            return self.convs(x)
        return self.convs(torch.cat([_resize(x, skip), self.norm(skip)], dim=1))


class Decoder(nn.Module):
    """From the deepest map back to the size of the image, by factors of two, past a skip map wherever one is.

    Called with the image and its maps, shallow to deep. Widths begin at half that of the deepest map, at most 256, and
    halve down to 32.
    """

    def __init__(
        self,
        channels: list[int],
        strides: list[int],
        n_out: int,
        n_in: int,
        *,
        blur: bool,
        self_attention: bool,
        last_cross: bool,
        init: Init,
        y_range: tuple[float, float] | None,
        **layer: Any,
    ) -> None:
        super().__init__()
        self.last_cross = last_cross
        self.skips, self.blocks = _skips(strides), nn.ModuleList()
        width, out = channels[-1], min(channels[-1], 512)
        for i, skip in enumerate(self.skips):
            out = max(out // 2, 32)
            attention = self_attention and i == len(self.skips) // 2
            join = 0 if skip is None else channels[skip]
            self.blocks.append(UpBlock(width, join, out, blur=blur, attention=attention, init=init, **layer))
            width = out
        cross = n_in if last_cross else 0
        self.last = nn.Sequential(ConvLayer(width + cross, width, **layer), nn.Conv2d(width, n_out, 1))
        if init is not None:
            apply_init(self.last, init)
        self.range = nn.Identity() if y_range is None else SigmoidRange(*y_range)

    def forward(self, image: Tensor, maps: list[Tensor]) -> Tensor:
        x = maps[-1]
        for block, skip in zip(self.blocks, self.skips, strict=True):
            x = block(x, None if skip is None else maps[skip])
        x = _resize(x, image)
        return self.range(self.last(torch.cat([x, image], dim=1) if self.last_cross else x))


def _skips(strides: list[int]) -> list[int | None]:
    """The steps from the deepest stride to 1: for each the map that joins there, or None where none has this size."""
    way: list[int | None] = []
    stride: float = strides[-1]
    while stride > 1:
        below = max((s for s in strides if s < stride), default=1)
        stride = max(below, stride / 2)
        way.append(strides.index(below) if below in strides and stride == below else None)
    return way


def _resize(x: Tensor, like: Tensor) -> Tensor:
    """`x` with the height and width of `like`."""
    return x if x.shape[-2:] == like.shape[-2:] else F.interpolate(x, size=like.shape[-2:])


class Unet(nn.Module):
    """A U-Net on any model: images (B, C, H, W) to (B, n_out, H, W).

    For the encoder the image grows by repeated edges to whole multiples of `stride`.
    """

    def __init__(self, encoder: FeatureGetterNet, decoder: Decoder, stride: int) -> None:
        super().__init__()
        self.encoder, self.decoder, self.stride = encoder, decoder, stride

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2], x.shape[-1]
        x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        return self.decoder(x, self.encoder(x))[..., :height, :width]


def _stride(arch: str) -> int:
    """The deepest stride of an architecture, or 32 where that is more or not known."""
    name = "" if ":" in arch else resolve_name(arch.removeprefix("timm/"))[0]
    return min(32, max(model_facts(name).feature_reductions)) if name in MODELS else 32


def create_unet_model(
    arch: str,
    n_out: int,
    pretrained: Pretrained = True,
    n_in: int = 3,
    *,
    init: Init = nn.init.kaiming_normal_,
    y_range: tuple[float, float] | None = None,
    blur: bool = False,
    self_attention: bool = False,
    last_cross: bool = True,
    act_cls: type[nn.Module] = nn.ReLU,
    norm_type: NormType = NormType.Batch,
    image_size: tuple[int, int] | None = None,
    **model_args: Any,
) -> Unet:
    """A U-Net with any model as its encoder; of the feature levels of one stride the last gives the skip map.

    Args:
        arch, pretrained, n_in, image_size, **model_args: as for `create_body`.
        init: initialises the decoder's convolutions; None leaves the values that its layers give themselves.
        y_range: outputs go through a sigmoid to this range.
        blur: a 2x2 average behind every upsampling, against checkerboards.
        self_attention: in the block halfway up.
        last_cross: the image itself is joined at the end.
        act_cls, norm_type: activation and norm of the decoder's convolutions.
    """
    stride = _stride(arch)
    if image_size is not None:
        image_size = (image_size[0] + -image_size[0] % stride, image_size[1] + -image_size[1] % stride)
    model = create(arch, pretrained, image_size, in_chans=n_in, **model_args)
    last_of_stride = {row["reduction"]: level for level, row in enumerate(model.feature_info)}
    encoder = FeatureGetterNet(model, sorted(last_of_stride.values()))
    strip_head(model)
    encoder.pretrained_cfg = model.pretrained_cfg  # type: ignore[assignment]
    info = encoder.feature_info
    args: dict[str, Any] = {"init": init, "y_range": y_range, "act_cls": act_cls, "norm_type": norm_type}
    args |= {"blur": blur, "self_attention": self_attention, "last_cross": last_cross}
    return Unet(encoder, Decoder(info.channels(), info.reduction(), n_out, n_in, **args), stride)
