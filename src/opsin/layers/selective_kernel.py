"""Selective kernels (https://arxiv.org/abs/1903.06586): convolutions of several reaches, mixed per channel."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from opsin.layers.act import create_act
from opsin.layers.channel_attn import make_divisible
from opsin.layers.norm import get_norm_layer

__all__ = ["SelectiveKernel", "SelectiveKernelAttn"]

Layer = str | Callable[..., nn.Module]


class SelectiveKernelAttn(nn.Module):
    """Weights `(B, paths, C, 1, 1)` that sum to 1 over the paths, from the paths' maps `(B, paths, C, H, W)`."""

    def __init__(
        self, channels: int, num_paths: int = 2, attn_channels: int = 32, *, act_layer: Layer = "relu",
        norm_layer: Layer = "batchnorm2d",
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_paths = num_paths
        self.fc_reduce = nn.Conv2d(channels, attn_channels, 1, bias=False)
        self.bn = get_norm_layer(norm_layer)(attn_channels)
        self.act = create_act(act_layer, inplace=True)
        self.fc_select = nn.Conv2d(attn_channels, channels * num_paths, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.sum(1).mean((2, 3), keepdim=True)
        x = self.fc_select(self.act(self.bn(self.fc_reduce(x))))
        return x.unflatten(1, (self.num_paths, -1)).softmax(1)


class _Path(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, dilation: int, groups: int,
        act_layer: Layer, norm_layer: Layer,
    ) -> None:  # fmt: skip
        super().__init__()
        padding = dilation * (kernel_size - 1) // 2
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False)
        self.bn = get_norm_layer(norm_layer)(out_channels)
        self.act = create_act(act_layer, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class SelectiveKernel(nn.Module):
    """`(B, in_channels, H, W)` through one path per kernel size, then mixed.

    Args:
        kernel_size: of the paths, by default 3 and 5. keep_3x3: larger ones become 3x3 with dilation.
        rd_ratio, rd_channels, rd_divisor: width of the attention, as in `SEModule`.
        split_input: give each path its share of the input channels instead of all of them.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernel_size: int | Sequence[int] | None = None,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        rd_ratio: float = 1 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        keep_3x3: bool = True,
        split_input: bool = True,
        act_layer: Layer = "relu",
        norm_layer: Layer = "batchnorm2d",
    ) -> None:
        super().__init__()
        out_channels = out_channels or in_channels
        kernels = [kernel_size] * 2 if isinstance(kernel_size, int) else list(kernel_size or (3, 5))
        if even := [k for k in kernels if k % 2 == 0 or k < 3]:
            raise ValueError(f"kernel sizes of selective kernels are odd and at least 3, not {even}")
        dilations = [dilation * (k - 1) // 2 if keep_3x3 else dilation for k in kernels]
        kernels = [3] * len(kernels) if keep_3x3 else kernels
        self.split = in_channels // len(kernels) if split_input else None
        paths = [
            _Path(
                self.split or in_channels, out_channels, k, stride, d, min(groups, out_channels), act_layer, norm_layer
            )
            for k, d in zip(kernels, dilations, strict=True)
        ]
        self.paths = nn.ModuleList(paths)
        attn_channels = rd_channels or make_divisible(out_channels * rd_ratio, rd_divisor)
        self.attn = SelectiveKernelAttn(
            out_channels, len(paths), attn_channels, act_layer=act_layer, norm_layer=norm_layer
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split(self.split, 1) if self.split else [x] * len(self.paths)
        maps = torch.stack([path(part) for path, part in zip(self.paths, parts, strict=True)], 1)
        return (maps * self.attn(maps)).sum(1)
