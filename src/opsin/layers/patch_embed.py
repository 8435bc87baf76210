"""Image to patch embedding: a convolution whose stride is its kernel."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError
from opsin.layers.norm import get_norm_layer
from opsin.layers.pos_embed import resample_patch_embed

__all__ = ["PatchEmbed", "to_2tuple"]

FORMATS = ("NCHW", "NHWC", "NLC", "NCL")


def to_2tuple(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """A number as a pair; a pair as it is."""
    if isinstance(size, tuple | list):
        if len(size) != 2:
            raise ValueError(f"a size is a number or (height, width), got {size}")
        return int(size[0]), int(size[1])
    return size, size


class PatchEmbed(nn.Module):
    """`(B, C, H, W)` images to `(B, N, embed_dim)` patch tokens, row by row.

    Args:
        img_size: height and width the model is built for; None takes any.
        norm_layer: applied to the tokens; by name or class.
        flatten: False keeps the map `(B, embed_dim, h, w)`. output_fmt: NCHW, NHWC, NLC or NCL instead.
        strict_img_size: refuse other sizes than `img_size`; otherwise any multiple of the patch is taken.
        dynamic_img_pad: pad the bottom and right edge with zeros to whole patches.

    Raises:
        ValueError: in forward, when the image does not fit.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] | None = 224,
        patch_size: int | tuple[int, int] = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        norm_layer: str | Callable[..., nn.Module] | None = None,
        flatten: bool = True,
        output_fmt: str | None = None,
        bias: bool = True,
        strict_img_size: bool = True,
        dynamic_img_pad: bool = False,
    ) -> None:
        super().__init__()
        output_fmt = output_fmt or ("NLC" if flatten else "NCHW")
        if output_fmt not in FORMATS:
            raise UnknownArgumentError(f"output_fmt={output_fmt!r}: one of {', '.join(FORMATS)}")
        self.patch_size = to_2tuple(patch_size)
        self.output_fmt = output_fmt
        self.strict_img_size, self.dynamic_img_pad = strict_img_size, dynamic_img_pad
        self._set_img_size(img_size)
        self.proj = nn.Conv2d(in_chans, embed_dim, self.patch_size, self.patch_size, bias=bias)
        self.norm = get_norm_layer(norm_layer)(embed_dim) if norm_layer else nn.Identity()

    def _set_img_size(self, img_size: int | tuple[int, int] | None) -> None:
        self.img_size = None if img_size is None else to_2tuple(img_size)
        self.grid_size = None
        self.num_patches = None
        if self.img_size is not None:
            self.grid_size = self.dynamic_feat_size(self.img_size)
            self.num_patches = self.grid_size[0] * self.grid_size[1]

    @torch.no_grad()
    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Another image size, patch size, or both; the kernels are resampled to a new patch size."""
        if patch_size is not None and to_2tuple(patch_size) != self.patch_size:
            self.patch_size = to_2tuple(patch_size)
            weight = resample_patch_embed(self.proj.weight, self.patch_size)
            self.proj.weight = nn.Parameter(weight, requires_grad=self.proj.weight.requires_grad)
            self.proj.kernel_size = self.proj.stride = self.patch_size
        self._set_img_size(self.img_size if img_size is None else img_size)

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Image pixels per patch: the larger side, or (height, width)."""
        return max(self.patch_size) if as_scalar else self.patch_size

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in patches of an image of `img_size`."""
        (h, w), (ph, pw) = img_size, self.patch_size
        return (math.ceil(h / ph), math.ceil(w / pw)) if self.dynamic_img_pad else (h // ph, w // pw)

    def _check(self, height: int, width: int) -> None:
        if self.img_size is None:
            return
        if self.strict_img_size:
            if (height, width) != self.img_size:
                h, w = self.img_size
                raise ValueError(
                    f"the model is built for {h}x{w} images and got {height}x{width}. Resize the images or create the "
                    f"model with img_size=({height}, {width}); vision transformers also take dynamic_img_size=True and "
                    f"set_input_size(({height}, {width}))"
                )
        elif not self.dynamic_img_pad and (height % self.patch_size[0] or width % self.patch_size[1]):
            raise ValueError(
                f"an image of {height}x{width} is not a whole number of {self.patch_size[0]}x{self.patch_size[1]} "
                "patches. Resize it, or create the model with dynamic_img_pad=True"
            )

    def project(self, x: Tensor) -> Tensor:
        """Images to a map (B, embed_dim, h, w)."""
        return self.proj(x)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        self._check(height, width)
        if self.dynamic_img_pad:
            x = F.pad(x, (0, -width % self.patch_size[1], 0, -height % self.patch_size[0]))
        x = self.project(x)
        if self.output_fmt == "NLC":
            x = x.flatten(2).transpose(1, 2)
        elif self.output_fmt == "NHWC":
            x = x.permute(0, 2, 3, 1)
        elif self.output_fmt == "NCL":
            x = x.flatten(2)
        return self.norm(x)
