"""Blocks of mobile networks, and how a table of rows becomes stages of them.

Depthwise separable (https://arxiv.org/abs/1704.04861), inverted residual (https://arxiv.org/abs/1801.04381), its fused
form for accelerators (https://arxiv.org/abs/2104.00298), conditional convolution (https://arxiv.org/abs/1904.04971),
universal inverted bottleneck and mobile attention (https://arxiv.org/abs/2404.10518).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import check_known
from opsin.layers import DropPath, create_aa, create_act, make_divisible
from opsin.layers.channel_attn import GlobalContext
from opsin.layers.conv import create_conv2d
from opsin.layers.layer_scale import LayerScale2d
from opsin.models._efficientnet_tables import Kernel, Row, Rows, decode_arch_def, round_channels

__all__ = ["SE_LAYERS", "Parts", "SqueezeExcite", "build_stages", "decode_arch_def", "round_channels"]

# -- blocks ------------------------------------------------------------------------------------------------------------


class SqueezeExcite(nn.Module):
    """Squeeze and excitation under the names these networks' checkpoints have.

    `rd_round_fn` makes a whole number of the squeezed width; `force_act_layer` stands in for the network's `act_layer`.
    """

    def __init__(
        self, channels: int, rd_ratio: float = 0.25, rd_channels: int | None = None, *, act_layer: Any = "relu",
        gate_layer: Any = "sigmoid", force_act_layer: Any = None, rd_round_fn: Callable[[float], int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        rd_channels = rd_channels or max(1, (rd_round_fn or round)(channels * rd_ratio))
        self.conv_reduce = nn.Conv2d(channels, rd_channels, 1)
        self.act1 = create_act(force_act_layer or act_layer, inplace=True)
        self.conv_expand = nn.Conv2d(rd_channels, channels, 1)
        self.gate = create_act(gate_layer)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.conv_expand(self.act1(self.conv_reduce(x.mean((2, 3), keepdim=True)))))


SE_LAYERS: dict[str, Callable[..., nn.Module]] = {"se": SqueezeExcite, "gc": GlobalContext}


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the layers of one network have in common."""

    norm_act: Callable[..., nn.Module]  # (channels, apply_act=, act_layer=)
    act_layer: Any
    pad_type: str = ""
    aa_layer: Any = None
    se_layer: Callable[..., nn.Module] = SqueezeExcite  # (channels, rd_ratio=, act_layer=)
    se_from_exp: bool = False  # the squeezed width goes by the width inside the block, not at its input
    layer_scale: float | None = None  # starting value, of the blocks of MobileNetV4

    def conv(self, in_chs: int, out_chs: int, kernel: Kernel, **more: Any) -> nn.Module:
        return create_conv2d(in_chs, out_chs, kernel, **({"pad_type": self.pad_type} | more))

    def norm(self, channels: int, act: bool = True) -> nn.Module:
        return self.norm_act(channels, apply_act=act, act_layer=self.act_layer)

    def se(self, channels: int, in_chs: int, ratio: float) -> nn.Module:
        """Squeeze and excitation of `channels`, in a block with `in_chs` at its input."""
        if not ratio:
            return nn.Identity()
        if not self.se_from_exp:
            ratio *= in_chs / channels
        return self.se_layer(channels, rd_ratio=ratio, act_layer=self.act_layer)

    def scale(self, channels: int) -> nn.Module:
        return nn.Identity() if self.layer_scale is None else LayerScale2d(channels, self.layer_scale)

    def strided(self, channels: int, stride: int) -> tuple[int, nn.Module]:
        """The stride of a convolution, and the anti-aliased downsampling that takes its place where there is one."""
        blurred = bool(self.aa_layer) and stride > 1
        aa = create_aa(self.aa_layer, channels, stride=stride, enable=blurred)
        return (1 if blurred else stride), aa


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a block stands: widths before and after it, the width inside, stride, dilation, stochastic depth."""

    in_chs: int
    mid_chs: int
    out_chs: int
    stride: int = 1
    dilation: int = 1
    drop_path: float = 0.0
    s2d: bool = False


class Block(nn.Module):
    """A branch, and its input added to it where shapes allow and the row does not forbid."""

    def __init__(self, at: Place, skip: bool) -> None:
        super().__init__()
        self.has_skip = skip and at.stride == 1 and at.in_chs == at.out_chs
        self.drop_path = DropPath(at.drop_path) if at.drop_path and self.has_skip else nn.Identity()

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError("a block says what its branch is")

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        return self.drop_path(out) + x if self.has_skip else out


class ConvNormAct(Block):
    """One convolution."""

    def __init__(self, at: Place, r: Row, parts: Parts) -> None:
        super().__init__(at, r.skip)
        stride, aa = parts.strided(at.out_chs, at.stride)
        groups = groups_of(at.in_chs, r.group_size)
        self.conv = parts.conv(at.in_chs, at.out_chs, r.kernel_size, stride=stride, dilation=at.dilation, groups=groups)
        self.bn1 = parts.norm(at.out_chs)
        self.aa = aa

    def branch(self, x: Tensor) -> Tensor:
        return self.aa(self.bn1(self.conv(x)))


class DepthwiseSeparable(Block):
    """Depthwise, squeeze and excitation, 1x1; with `s2d` first a 2x2 of stride 2 to four times the width."""

    def __init__(self, at: Place, r: Row, parts: Parts) -> None:
        super().__init__(at, not r.noskip and r.block_type != "dsa")
        width, kernel, pad_type = at.in_chs, r.dw_kernel_size, parts.pad_type
        self.s2d = at.s2d
        if at.s2d:
            width, kernel, pad_type = 4 * width, (r.dw_kernel_size + 1) // 2, "same"  # type: ignore[operator]
            self.conv_s2d = parts.conv(at.in_chs, width, 2, stride=2, pad_type="same")
            self.bn_s2d = parts.norm(width)
        stride, aa = parts.strided(width, 1 if at.s2d else at.stride)
        groups = groups_of(width, r.group_size or 1)
        self.conv_dw = parts.conv(
            width, width, kernel, stride=stride, dilation=at.dilation, groups=groups, pad_type=pad_type
        )
        self.bn1 = parts.norm(width)
        self.aa = aa
        self.se = parts.se(width, at.in_chs, r.se_ratio)
        self.conv_pw = parts.conv(width, at.out_chs, r.pw_kernel_size)
        self.bn2 = parts.norm(at.out_chs, act=r.pw_act or r.block_type == "dsa")

    def branch(self, x: Tensor) -> Tensor:
        if self.s2d:
            x = self.bn_s2d(self.conv_s2d(x))
        x = self.aa(self.bn1(self.conv_dw(x)))
        return self.bn2(self.conv_pw(self.se(x)))


class InvertedResidual(Block):
    """1x1 to a wider space, depthwise, squeeze and excitation, 1x1 back. With experts all three are conditional."""

    def __init__(self, at: Place, r: Row, parts: Parts) -> None:
        super().__init__(at, not r.noskip)
        conv = partial(parts.conv, num_experts=r.num_experts)
        stride, aa = parts.strided(at.mid_chs, at.stride)
        groups = groups_of(at.mid_chs, r.group_size or 1)
        self.conv_pw = conv(at.in_chs, at.mid_chs, r.exp_kernel_size)
        self.bn1 = parts.norm(at.mid_chs)
        self.conv_dw = conv(
            at.mid_chs, at.mid_chs, r.dw_kernel_size, stride=stride, dilation=at.dilation, groups=groups
        )
        self.bn2 = parts.norm(at.mid_chs)
        self.aa = aa
        self.se = parts.se(at.mid_chs, at.in_chs, r.se_ratio)
        self.conv_pwl = conv(at.mid_chs, at.out_chs, r.pw_kernel_size)
        self.bn3 = parts.norm(at.out_chs, act=False)
        self.routing_fn = nn.Linear(at.in_chs, r.num_experts) if r.num_experts else None

    def branch(self, x: Tensor) -> Tensor:
        routing = () if self.routing_fn is None else (torch.sigmoid(self.routing_fn(x.mean((2, 3)))),)
        x = self.bn1(self.conv_pw(x, *routing))
        x = self.aa(self.bn2(self.conv_dw(x, *routing)))
        return self.bn3(self.conv_pwl(self.se(x), *routing))


class EdgeResidual(Block):
    """An inverted residual whose first two convolutions are fused into one."""

    def __init__(self, at: Place, r: Row, parts: Parts) -> None:
        super().__init__(at, not r.noskip)
        stride, aa = parts.strided(at.mid_chs, at.stride)
        groups = groups_of(at.mid_chs, r.group_size)
        self.conv_exp = parts.conv(
            at.in_chs, at.mid_chs, r.exp_kernel_size, stride=stride, dilation=at.dilation, groups=groups
        )
        self.bn1 = parts.norm(at.mid_chs)
        self.aa = aa
        self.se = parts.se(at.mid_chs, at.in_chs, r.se_ratio)
        self.conv_pwl = parts.conv(at.mid_chs, at.out_chs, r.pw_kernel_size)
        self.bn2 = parts.norm(at.out_chs, act=False)

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv_pwl(self.se(self.aa(self.bn1(self.conv_exp(x))))))


class ConvNorm(nn.Module):
    """Convolution and norm, with or without an activation."""

    def __init__(
        self, in_chs: int, out_chs: int, kernel: int, parts: Parts, *, stride: int = 1, dilation: int = 1,
        groups: int = 1, act: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        stride, aa = parts.strided(out_chs, stride)
        self.conv = parts.conv(in_chs, out_chs, kernel, stride=stride, dilation=dilation, groups=groups)
        self.bn = parts.norm(out_chs, act=act)
        self.aa = aa

    def forward(self, x: Tensor) -> Tensor:
        return self.aa(self.bn(self.conv(x)))


class UniversalInvertedResidual(Block):
    """1x1 to a wider space and back, with depthwise convolutions (each as the row says) before, between and behind."""

    def __init__(self, at: Place, r: Row, parts: Parts) -> None:
        super().__init__(at, not r.noskip)

        def depthwise(channels: int, kernel: int, stride: int, act: bool) -> nn.Module:
            if not kernel:
                return nn.Identity()
            groups = groups_of(channels, r.group_size or 1)
            place = {"stride": stride, "dilation": at.dilation}
            return ConvNorm(channels, channels, kernel, parts, **place, groups=groups, act=act)

        if at.stride > 1 and not (r.dw_kernel_size_start or r.dw_kernel_size_mid or r.dw_kernel_size_end):
            raise ValueError("a uir block with a stride needs a depthwise convolution to take it")
        strides = {"start": 1, "mid": 1, "end": 1}
        kernels = {"mid": r.dw_kernel_size_mid, "start": r.dw_kernel_size_start, "end": r.dw_kernel_size_end}
        strides[next((name for name, kernel in kernels.items() if kernel), "end")] = at.stride
        self.dw_start = depthwise(at.in_chs, r.dw_kernel_size_start, strides["start"], act=False)
        self.pw_exp = ConvNorm(at.in_chs, at.mid_chs, 1, parts)
        self.dw_mid = depthwise(at.mid_chs, r.dw_kernel_size_mid, strides["mid"], act=True)
        self.se = parts.se(at.mid_chs, at.in_chs, r.se_ratio)
        self.pw_proj = ConvNorm(at.mid_chs, at.out_chs, 1, parts, act=False)
        self.dw_end = depthwise(at.out_chs, r.dw_kernel_size_end, strides["end"], act=False)
        self.layer_scale = parts.scale(at.out_chs)

    def branch(self, x: Tensor) -> Tensor:
        x = self.se(self.dw_mid(self.pw_exp(self.dw_start(x))))
        return self.layer_scale(self.dw_end(self.pw_proj(x)))


class Projection(nn.Module):
    """A 1x1 convolution; for keys and values of a smaller map behind a strided depthwise one and a norm."""

    def __init__(self, in_chs: int, out_chs: int, parts: Parts, kernel: Kernel = 3, stride: int = 1) -> None:
        super().__init__()
        if stride > 1:
            self.down_conv = parts.conv(in_chs, in_chs, kernel, stride=stride, groups=in_chs)
            self.norm = parts.norm(in_chs, act=False)
        self.proj = parts.conv(in_chs, out_chs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.norm(self.down_conv(x)) if hasattr(self, "norm") else x)


class MultiQueryAttention(nn.Module):
    """Attention among the positions of `(B, C, H, W)`: several heads ask, of one set of keys and values."""

    def __init__(self, in_chs: int, out_chs: int, r: Row, parts: Parts) -> None:
        super().__init__()
        self.num_heads = r.num_heads
        key_dim = r.key_dim or out_chs // r.num_heads
        value_dim = r.value_dim or key_dim
        self.query = Projection(in_chs, r.num_heads * key_dim, parts)
        self.key = Projection(in_chs, key_dim, parts, r.dw_kernel_size, r.kv_stride)
        self.value = Projection(in_chs, value_dim, parts, r.dw_kernel_size, r.kv_stride)
        self.output = Projection(r.num_heads * value_dim, out_chs, parts)

    def forward(self, x: Tensor) -> Tensor:
        q = self.query(x).flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3)  # (B, heads, HW, key_dim)
        k, v = (part(x).flatten(2).transpose(1, 2).unsqueeze(1) for part in (self.key, self.value))
        k, v = (t.expand(-1, self.num_heads, -1, -1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.output(mixed.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:]))


class MobileAttention(Block):
    """Norm and multi-query attention."""

    def __init__(self, at: Place, r: Row, parts: Parts) -> None:
        super().__init__(at, not r.noskip)
        if at.stride > 1:
            raise ValueError("an mqa block keeps the size of the map: give the stride to a block before it")
        self.norm = parts.norm(at.in_chs, act=False)
        self.attn = MultiQueryAttention(at.in_chs, at.out_chs, r, parts)
        self.layer_scale = parts.scale(at.out_chs)

    def branch(self, x: Tensor) -> Tensor:
        return self.layer_scale(self.attn(self.norm(x)))


BLOCKS: dict[str, Callable[[Place, Row, Parts], Block]] = {
    "cn": ConvNormAct,
    "ds": DepthwiseSeparable,
    "dsa": DepthwiseSeparable,
    "ir": InvertedResidual,
    "er": EdgeResidual,
    "uir": UniversalInvertedResidual,
    "mqa": MobileAttention,
}


def groups_of(channels: int, group_size: int) -> int:
    """How many groups of that size; one for size 0."""
    if not group_size:
        return 1
    if channels % group_size:
        raise ValueError(f"group_size={group_size} does not divide {channels} channels")
    return channels // group_size


# -- from table to stages ----------------------------------------------------------------------------------------------


def build_stages(
    block_args: Sequence[Rows],
    in_chs: int,
    parts: Parts,
    *,
    stride: int,
    round_chs: Callable[[float], int],
    output_stride: int = 32,
    drop_path_rate: float = 0.0,
) -> list[tuple[nn.Sequential, int, int, int]]:
    """Each stage with its width, its stride to the image, and the stride it asked for by itself."""
    table = [[r for values in rows for r in [Row.make(values)] * values.get("repeats", 1)] for rows in block_args]
    total, count, dilation = sum(map(len, table)), 0, 1
    after_s2d, stages = False, []
    for rows in table:
        s2d = rows[0].s2d
        asked = 2 if s2d else 1 if after_s2d else rows[0].stride
        step, first_dilation = asked, dilation
        if stride * asked > output_stride:  # dilate instead; the first block still sees the old grid
            step, dilation = 1, dilation * asked
        stride *= step
        blocks = []
        for i, r in enumerate(rows):
            check_known([r.block_type], BLOCKS, owner="block_args")
            out_chs = round_chs(r.out_chs) * (4 if s2d else 1)
            exp_ratio = r.exp_ratio / 4 if after_s2d and i == 0 else r.exp_ratio  # by the width without the fourfold
            base = round_chs(r.force_in_chs) if r.force_in_chs else in_chs
            at = Place(
                in_chs=in_chs,
                mid_chs=make_divisible(base * exp_ratio),
                out_chs=out_chs,
                stride=step if i == 0 else 1,
                dilation=dilation if i else first_dilation,
                drop_path=drop_path_rate * count / total,
                s2d=s2d and i == 0,
            )
            own = replace(parts, act_layer=r.act_layer) if r.act_layer else parts
            blocks.append(BLOCKS[r.block_type](at, r, own))
            in_chs, count = out_chs, count + 1
        stages.append((nn.Sequential(*blocks), in_chs, stride, asked))
        after_s2d = s2d
    return stages
