"""Blocks of mobile networks, and how a table of rows becomes stages of them.

Depthwise separable (https://arxiv.org/abs/1704.04861), inverted residual (https://arxiv.org/abs/1801.04381), its fused
form for accelerators (https://arxiv.org/abs/2104.00298), conditional convolution (https://arxiv.org/abs/1904.04971).
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, check_known
from opsin.layers import DropPath, create_aa, create_act, make_divisible
from opsin.layers.channel_attn import GlobalContext
from opsin.layers.conv import create_conv2d

__all__ = [
    "Parts",
    "Row",
    "SqueezeExcite",
    "arch",
    "build_stages",
    "change",
    "decode_arch_def",
    "deepen",
    "round_channels",
]

Kernel = int | Sequence[int]
Rows = list[dict[str, Any]]  # one stage


def round_channels(
    channels: float, multiplier: float = 1.0, divisor: int = 8, channel_min: int | None = None, round_limit: float = 0.9
) -> int:
    """Channels times the width multiplier, as a multiple of `divisor`."""
    return make_divisible(channels * multiplier, divisor, min_value=channel_min, round_limit=round_limit)


# -- tables ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of an architecture table: a block, and how often it repeats. Only a stage's first block has a stride."""

    block_type: str  # see BLOCKS
    out_chs: int  # before the width multiplier
    repeats: int = 1
    stride: int = 1
    kernel_size: int = 3  # cn
    dw_kernel_size: Kernel = 3  # ir, ds, dsa
    exp_kernel_size: Kernel = 1  # ir, er
    pw_kernel_size: Kernel = 1
    exp_ratio: float = 1.0  # width inside over width at the input
    se_ratio: float = 0.0  # squeezed width over width at the input
    act_layer: Any = None  # in place of the network's
    pw_act: bool = False  # ds: an activation behind the last convolution as well
    skip: bool = False  # cn: add the input where shapes allow
    noskip: bool = False  # the others: never add the input
    force_in_chs: int = 0  # er: width that exp_ratio goes by (before the multiplier)
    group_size: int = 0  # channels per group of the middle convolution
    num_experts: int = 0  # ir: conditional convolutions
    s2d: bool = False  # ds: the stage opens with space to depth, and the next one then keeps its stride

    @classmethod
    def make(cls, values: Mapping[str, Any]) -> "Row":
        """From a dict as `decode_arch_def` gives it; None stands for the default."""
        check_known(values, [f.name for f in fields(cls)], owner="a row of block_args")
        return cls(**{k: v for k, v in values.items() if v is not None})


def _kernel(text: str) -> Kernel:
    sizes = [int(size) for size in text.split(".")]
    return sizes[0] if len(sizes) == 1 else sizes


ACTS = {"re": "relu", "r6": "relu6", "hs": "hard_swish", "sw": "silu", "mi": "mish"}
CODES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "r": ("repeats", int), "s": ("stride", int), "c": ("out_chs", int), "e": ("exp_ratio", float),
    "se": ("se_ratio", float), "k": ("dw_kernel_size", _kernel), "a": ("exp_kernel_size", _kernel),
    "p": ("pw_kernel_size", _kernel), "n": ("act_layer", ACTS.__getitem__), "fc": ("force_in_chs", int),
    "gs": ("group_size", int), "cc": ("num_experts", int), "d": ("s2d", lambda text: text == "1"),
}  # fmt: skip
KERNEL_OF = {"cn": "kernel_size", "er": "exp_kernel_size"}  # what `k` means there


def decode_row(text: str) -> dict[str, Any]:
    """`ir_r2_k5_s2_e6_c40_se0.25`, as MnasNet and its heirs write it, as a dict of the fields of `Row`."""
    block, *words = text.split("_")
    row: dict[str, Any] = {"block_type": block}
    if block == "er":
        row["exp_kernel_size"] = 3
    for word in words:
        if word in ("skip", "noskip"):
            row[word] = True
            continue
        match = re.fullmatch(r"(n)(re|r6|hs|sw|mi)|([a-z]+)([\d.]+)", word)
        code, value = [part for part in match.groups() if part] if match else ("", "")
        if code not in CODES:
            raise UnknownArgumentError(
                f"cannot read {word!r} in the block {text!r}. Known: {', '.join(CODES)}, (no)skip"
            )
        name, convert = CODES[code]
        row[KERNEL_OF.get(block, name) if code == "k" else name] = convert(value)
    return row


def decode_arch_def(
    arch_def: Sequence[Sequence[str]],
    depth_multiplier: float = 1.0,
    depth_trunc: str = "ceil",
    *,
    fix_first_last: bool = False,
) -> list[Rows]:
    """Rows of each stage from strings, their repeats times `depth_multiplier` rounded up (`ceil`) or to the nearest
    (`round`); `fix_first_last` leaves the first and the last stage alone."""
    stages = [[decode_row(text) for text in stage] for stage in arch_def]
    return deepen(stages, depth_multiplier, depth_trunc, keep=(0, -1) if fix_first_last else ())


def arch(text: str) -> list[Rows]:
    """A whole table: blanks part the stages, a plus the rows of one."""
    return [[decode_row(row) for row in stage.split("+")] for stage in text.split()]


def deepen(stages: Sequence[Rows], factor: float, rounding: str = "ceil", *, keep: Sequence[int] = ()) -> list[Rows]:
    """Scale the repeats of each stage by `factor`, shared among its rows; stages in `keep` stay as they are."""
    whole: Callable[[float], int] = {"ceil": math.ceil, "round": lambda x: round(x)}[rounding]
    kept = {i % len(stages) for i in keep}
    return [rows if i in kept else _deepen_stage(rows, factor, whole) for i, rows in enumerate(stages)]


def _deepen_stage(rows: Rows, factor: float, whole: Callable[[float], int]) -> Rows:
    old = sum(r.get("repeats", 1) for r in rows)
    new = max(1, whole(old * factor))
    scaled: Rows = []
    for row in reversed(rows):  # from the back: what a later row takes, an earlier one does not
        repeats = row.get("repeats", 1)
        share = max(1, round(repeats / old * new))
        old, new = old - repeats, new - share
        scaled.insert(0, row | {"repeats": share})
    return scaled


def change(stages: Sequence[Rows], since: int = 0, **changes: Any) -> list[Rows]:
    """The table with other values in all rows from stage `since` on."""
    return [[row | changes for row in rows] if i >= since else rows for i, rows in enumerate(stages)]


# -- blocks ------------------------------------------------------------------------------------------------------------


class SqueezeExcite(nn.Module):
    """Squeeze and excitation under the names these networks' checkpoints have."""

    def __init__(
        self, channels: int, rd_channels: int, *, act_layer: Any = "relu", gate_layer: Any = "sigmoid"
    ) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, rd_channels, 1)
        self.act1 = create_act(act_layer, inplace=True)
        self.conv_expand = nn.Conv2d(rd_channels, channels, 1)
        self.gate = create_act(gate_layer)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.conv_expand(self.act1(self.conv_reduce(x.mean((2, 3), keepdim=True)))))


SE_LAYERS: dict[str, Callable[..., nn.Module]] = {
    "se": SqueezeExcite,
    "gc": lambda channels, rd_channels, act_layer: GlobalContext(
        channels, rd_channels=rd_channels, act_layer=act_layer
    ),
}


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the layers of one network have in common."""

    norm_act: Callable[..., nn.Module]  # (channels, apply_act=, act_layer=)
    act_layer: Any
    pad_type: str = ""
    aa_layer: Any = None
    se_layer: Callable[..., nn.Module] = SqueezeExcite  # (channels, squeezed channels, act_layer=)

    def conv(self, in_chs: int, out_chs: int, kernel: Kernel, **more: Any) -> nn.Module:
        return create_conv2d(in_chs, out_chs, kernel, **({"pad_type": self.pad_type} | more))

    def norm(self, channels: int, act: bool = True) -> nn.Module:
        return self.norm_act(channels, apply_act=act, act_layer=self.act_layer)

    def se(self, channels: int, in_chs: int, ratio: float) -> nn.Module:
        """Squeeze and excitation of `channels`; the squeezed width goes by the width at the block's input."""
        if not ratio:
            return nn.Identity()
        return self.se_layer(channels, max(1, round(in_chs * ratio)), act_layer=self.act_layer)

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


BLOCKS: dict[str, Callable[[Place, Row, Parts], Block]] = {
    "cn": ConvNormAct,
    "ds": DepthwiseSeparable,
    "dsa": DepthwiseSeparable,
    "ir": InvertedResidual,
    "er": EdgeResidual,
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
