"""Global pooling by name, and anti-aliased downsampling (https://arxiv.org/abs/1904.11486)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, did_you_mean
from opsin.layers.conv import pad_same

__all__ = ["BlurPool2d", "MaxPool2dSame", "SelectAdaptivePool2d", "avg_pool_down", "create_aa"]

POOLS = ("", "avg", "max", "avgmax", "catavgmax")


class SelectAdaptivePool2d(nn.Module):
    """Pool a map to `output_size`: `avg`, `max`, `avgmax` (their mean), `catavgmax` (both), or "" for none.

    Takes `(B, C, H, W)`, or `(B, H, W, C)` with `input_fmt="NHWC"`, which pools to one value per channel. Returns
    `(B, C * feat_mult(), *output_size)`, in the layout it came in, or with `flatten` one row a picture.
    """

    def __init__(
        self, output_size: int | tuple[int, int] = 1, pool_type: str = "fast", flatten: bool = False,
        input_fmt: str = "NCHW",
    ) -> None:  # fmt: skip
        super().__init__()
        fast = pool_type.startswith("fast")  # an older name for one value per channel, in published configs
        if fast:
            pool_type = pool_type.removeprefix("fast") or "avg"
        if pool_type not in POOLS:
            near = did_you_mean(pool_type, POOLS)
            raise UnknownArgumentError(f"no global pooling {pool_type!r}.{near} Known: {', '.join(map(repr, POOLS))}")
        if output_size not in (1, (1, 1)) and (fast or input_fmt != "NCHW"):
            raise UnknownArgumentError(f"output_size={output_size}: fast pooling, and that of {input_fmt}, has 1 alone")
        self.pool_type, self.output_size, self.flatten = pool_type, output_size, flatten
        self.dims = (2, 3) if input_fmt == "NCHW" else (1, 2)
        self.channel_dim = 1 if input_fmt == "NCHW" else -1

    def feat_mult(self) -> int:
        """How many times as many channels come out."""
        return 2 if self.pool_type == "catavgmax" else 1

    def is_identity(self) -> bool:
        return not self.pool_type

    def forward(self, x: Tensor) -> Tensor:
        if self.output_size not in (1, (1, 1)):
            return self._pool_to(x)
        if not self.pool_type:
            return x.flatten(1) if self.flatten else x
        keep = not self.flatten
        if self.pool_type == "avg":
            return x.mean(self.dims, keepdim=keep)
        if self.pool_type == "max":
            return x.amax(self.dims, keepdim=keep)
        avg, top = x.mean(self.dims, keepdim=keep), x.amax(self.dims, keepdim=keep)
        if self.pool_type == "avgmax":
            return (avg + top) * 0.5
        return torch.cat((avg, top), self.channel_dim if keep else 1)

    def _pool_to(self, x: Tensor) -> Tensor:
        if self.pool_type == "avg":
            x = F.adaptive_avg_pool2d(x, self.output_size)
        elif self.pool_type == "max":
            x = F.adaptive_max_pool2d(x, self.output_size)
        elif self.pool_type:
            avg, top = F.adaptive_avg_pool2d(x, self.output_size), F.adaptive_max_pool2d(x, self.output_size)
            x = (avg + top) * 0.5 if self.pool_type == "avgmax" else torch.cat((avg, top), 1)
        return x.flatten(1) if self.flatten else x

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, pool_type={self.pool_type!r}, flatten={self.flatten}"


class BlurPool2d(nn.Module):
    """Binomial blur, then subsampling. The filter is a computed buffer and not part of checkpoints."""

    filt: Tensor

    def __init__(self, channels: int, filt_size: int = 3, stride: int = 2, pad_mode: str = "reflect") -> None:
        super().__init__()
        self.channels, self.stride, self.pad_mode, self.filt_size = channels, stride, pad_mode, filt_size
        self.padding = ((stride - 1 + filt_size - 1) // 2,) * 4
        self.register_buffer("filt", self._filter(), persistent=False)

    def _filter(self) -> Tensor:
        row = torch.ones(1)
        for _ in range(self.filt_size - 1):
            row = F.pad(row, (0, 1)) + F.pad(row, (1, 0))
        row = row / row.sum()
        return (row[:, None] * row[None, :])[None, None].repeat(self.channels, 1, 1, 1)

    def reset_buffers(self) -> None:
        """Compute the filter again, after a build on the meta device."""
        self.filt = self._filter().to(self.filt.device if not self.filt.is_meta else "cpu")

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(
            F.pad(x, self.padding, self.pad_mode), self.filt.to(x.dtype), stride=self.stride, groups=self.channels
        )


class MaxPool2dSame(nn.MaxPool2d):
    """Max pooling with TensorFlow's SAME padding: output `ceil(size / stride)`."""

    def __init__(self, kernel_size: int, stride: int) -> None:
        super().__init__(kernel_size, stride)
        self.window = ((kernel_size, kernel_size), (stride, stride), (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad_same(x, *self.window, value=-torch.inf))


def avg_pool_down(stride: int, dilation: int = 1) -> nn.Module:
    """The 2x2 average ahead of the 1x1 convolution of a shortcut (ResNet-D); Identity where the block keeps the map.

    Where dilation stands in for stride the map keeps its size: zeros are put at its far sides.
    """
    if dilation > 1:
        return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, 1))
    return nn.Identity() if stride == 1 else nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False)


def create_aa(aa_layer, channels: int, *, stride: int = 2, enable: bool = True) -> nn.Module:
    """An anti-aliasing downsampler by name (`avg`, `blur`, `blurpc`) or class; Identity when there is nothing to do."""
    if not aa_layer or not enable or stride == 1:
        return nn.Identity()
    if aa_layer in ("avg", "avgpool", nn.AvgPool2d):
        return nn.AvgPool2d(stride)
    if aa_layer in ("blur", "blurpool", BlurPool2d):
        return BlurPool2d(channels, stride=stride)
    if aa_layer == "blurpc":  # constant (zero) padding
        return BlurPool2d(channels, stride=stride, pad_mode="constant")
    if isinstance(aa_layer, str):
        raise UnknownArgumentError(f"no anti-aliasing layer {aa_layer!r}. Known: avg, blur, blurpc")
    return aa_layer(channels=channels, stride=stride)
