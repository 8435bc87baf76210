"""The blocks that ByobNets are built from; attributes are named as in published checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from opsin.errors import UnknownArgumentError
from opsin.layers import DropPath, make_divisible
from opsin.layers.pool import avg_pool_down
from opsin.layers.reparam import merge_branches

__all__ = [
    "BLOCKS",
    "BasicBlock",
    "BottleneckBlock",
    "DarkBlock",
    "EdgeBlock",
    "Figures",
    "MobileOneBlock",
    "RepVggBlock",
    "SelfAttnBlock",
]


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one block is built from."""

    in_chs: int
    out_chs: int
    stride: int = 1
    dilation: int = 1
    first_dilation: int = 1
    group_size: int = 0  # channels per group of the kxk convolutions; 0 for one group
    bottle_ratio: float = 1.0
    drop_path: float = 0.0
    feat_size: tuple[int, int] | None = None  # of the map that enters, where the image size is known
    downsample: str = "conv1x1"
    conv: Callable[..., Any]  # ConvNormAct with the network's layers
    norm_act: Callable[..., Any]
    act: Callable[[], nn.Module]
    attn: Callable[[int], nn.Module]  # channel attention
    self_attn: Callable[..., nn.Module]

    def inner(self, chs: int | None = None) -> int:
        """The width inside."""
        return make_divisible((chs or self.out_chs) * self.bottle_ratio)

    def groups(self, chs: int) -> int:
        if self.group_size and chs % self.group_size:
            raise ValueError(f"groups of {self.group_size} do not divide {chs} channels")
        return chs // self.group_size if self.group_size else 1

    def path(self) -> nn.Module:
        return DropPath(self.drop_path) if self.drop_path else nn.Identity()

    @property
    def keeps_map(self) -> bool:
        return self.in_chs == self.out_chs and self.stride == 1 and self.dilation == self.first_dilation

    def identity(self) -> nn.Module | None:
        """A norm for the input as it is, where that has the shape of the output."""
        return self.norm_act(self.out_chs, apply_act=False) if self.keeps_map else None

    def shortcut(self) -> nn.Module | None:
        """How the input reaches the end of the block; None where it does not."""
        if self.downsample not in ("conv1x1", "avg", ""):
            raise UnknownArgumentError(f"downsample={self.downsample!r}: 'conv1x1', 'avg', or '' for none")
        if self.keeps_map:
            return nn.Identity()
        if self.downsample == "conv1x1":
            return self.conv(self.in_chs, self.out_chs, 1, self.stride, apply_act=False)
        return DownsampleAvg(self) if self.downsample else None


class DownsampleAvg(nn.Module):
    """2x2 average, then 1x1 convolution (ResNet-D)."""

    def __init__(self, f: Figures) -> None:
        super().__init__()
        self.pool = avg_pool_down(f.stride, f.first_dilation)
        self.conv = f.conv(f.in_chs, f.out_chs, 1, apply_act=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pool(x))


class Residual(nn.Module):
    """Base of residual blocks: a shortcut, a branch that ends without activation, an activation behind the sum."""

    shortcut: nn.Module | None

    def finish(self, f: Figures, linear_out: bool) -> None:
        self.drop_path = f.path()
        self.act = nn.Identity() if linear_out else f.act()

    def residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must say what its residual branch is")

    def last_norm(self) -> nn.Module:
        """The norm that starts at zero, so that the block starts as its shortcut."""
        raise NotImplementedError(f"{type(self).__name__} must name its last norm")

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop_path(self.residual(x))
        return self.act(y if self.shortcut is None else y + self.shortcut(x))


class BasicBlock(Residual):
    """Two kxk convolutions; channel attention behind the last one, or (`attn_last=False`) between them."""

    def __init__(self, f: Figures, *, kernel_size: int = 3, attn_last: bool = True, linear_out: bool = False) -> None:
        super().__init__()
        mid = f.inner()
        self.shortcut = f.shortcut()
        self.conv1_kxk = f.conv(f.in_chs, mid, kernel_size, f.stride, dilation=f.first_dilation)
        self.attn = nn.Identity() if attn_last else f.attn(mid)
        spread: dict[str, int] = {"dilation": f.dilation, "groups": f.groups(mid)}
        self.conv2_kxk = f.conv(mid, f.out_chs, kernel_size, **spread, apply_act=False)
        self.attn_last = f.attn(f.out_chs) if attn_last else nn.Identity()
        self.finish(f, linear_out)

    def residual(self, x: Tensor) -> Tensor:
        return self.attn_last(self.conv2_kxk(self.attn(self.conv1_kxk(x))))

    def last_norm(self) -> nn.Module:
        return self.conv2_kxk.bn


class BottleneckBlock(Residual):
    """1x1, kxk (grouped, strided; twice with `extra_conv`), channel attention, 1x1.

    `bottle_in` takes the inner width from that of the input, `attn_last` puts the attention at the end.
    """

    def __init__(
        self, f: Figures, *, kernel_size: int = 3, attn_last: bool = False, linear_out: bool = False,
        extra_conv: bool = False, bottle_in: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        mid = f.inner(f.in_chs if bottle_in else None)
        groups = f.groups(mid)
        self.shortcut = f.shortcut()
        self.conv1_1x1 = f.conv(f.in_chs, mid)
        self.conv2_kxk = f.conv(mid, mid, kernel_size, f.stride, dilation=f.first_dilation, groups=groups)
        again = partial(f.conv, mid, mid, kernel_size, dilation=f.dilation, groups=groups)
        self.conv2b_kxk = again() if extra_conv else nn.Identity()
        self.attn = nn.Identity() if attn_last else f.attn(mid)
        self.conv3_1x1 = f.conv(mid, f.out_chs, apply_act=False)
        self.attn_last = f.attn(f.out_chs) if attn_last else nn.Identity()
        self.finish(f, linear_out)

    def residual(self, x: Tensor) -> Tensor:
        x = self.attn(self.conv2b_kxk(self.conv2_kxk(self.conv1_1x1(x))))
        return self.attn_last(self.conv3_1x1(x))

    def last_norm(self) -> nn.Module:
        return self.conv3_1x1.bn


class DarkBlock(Residual):
    """1x1, kxk (grouped, strided); channel attention as in `BasicBlock`."""

    def __init__(self, f: Figures, *, kernel_size: int = 3, attn_last: bool = True, linear_out: bool = False) -> None:
        super().__init__()
        mid = f.inner()
        self.shortcut = f.shortcut()
        self.conv1_1x1 = f.conv(f.in_chs, mid)
        self.attn = nn.Identity() if attn_last else f.attn(mid)
        spread: dict[str, int] = {"dilation": f.first_dilation, "groups": f.groups(mid)}
        self.conv2_kxk = f.conv(mid, f.out_chs, kernel_size, f.stride, **spread, apply_act=False)
        self.attn_last = f.attn(f.out_chs) if attn_last else nn.Identity()
        self.finish(f, linear_out)

    def residual(self, x: Tensor) -> Tensor:
        return self.attn_last(self.conv2_kxk(self.attn(self.conv1_1x1(x))))

    def last_norm(self) -> nn.Module:
        return self.conv2_kxk.bn


class EdgeBlock(Residual):
    """kxk (grouped, strided), channel attention, 1x1."""

    def __init__(self, f: Figures, *, kernel_size: int = 3, attn_last: bool = False, linear_out: bool = False) -> None:
        super().__init__()
        mid = f.inner()
        self.shortcut = f.shortcut()
        spread: dict[str, int] = {"dilation": f.first_dilation, "groups": f.groups(mid)}
        self.conv1_kxk = f.conv(f.in_chs, mid, kernel_size, f.stride, **spread)
        self.attn = nn.Identity() if attn_last else f.attn(mid)
        self.conv2_1x1 = f.conv(mid, f.out_chs, apply_act=False)
        self.attn_last = f.attn(f.out_chs) if attn_last else nn.Identity()
        self.finish(f, linear_out)

    def residual(self, x: Tensor) -> Tensor:
        return self.attn_last(self.conv2_1x1(self.attn(self.conv1_kxk(x))))

    def last_norm(self) -> nn.Module:
        return self.conv2_1x1.bn


class SelfAttnBlock(Residual):
    """1x1, self-attention (strided), norm and activation, 1x1; with `extra_conv` a strided kxk ahead of it."""

    def __init__(
        self, f: Figures, *, kernel_size: int = 3, linear_out: bool = False, extra_conv: bool = False,
        bottle_in: bool = False, post_attn_na: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        mid = f.inner(f.in_chs if bottle_in else None)
        self.shortcut = f.shortcut()
        self.conv1_1x1 = f.conv(f.in_chs, mid)
        size, stride = f.feat_size, f.stride
        self.conv2_kxk: nn.Module = nn.Identity()
        if extra_conv:
            spread: dict[str, int] = {"dilation": f.first_dilation, "groups": f.groups(mid)}
            self.conv2_kxk, stride = f.conv(mid, mid, kernel_size, stride, **spread), 1
            size = size and (-(-size[0] // f.stride), -(-size[1] // f.stride))
        self.self_attn = f.self_attn(mid, stride=stride, feat_size=size)
        self.post_attn = f.norm_act(mid) if post_attn_na else nn.Identity()
        self.conv3_1x1 = f.conv(mid, f.out_chs, apply_act=False)
        self.finish(f, linear_out)

    def residual(self, x: Tensor) -> Tensor:
        return self.conv3_1x1(self.post_attn(self.self_attn(self.conv2_kxk(self.conv1_1x1(x)))))

    def last_norm(self) -> nn.Module:
        return self.conv3_1x1.bn


class Branched(nn.Module):
    """Base of blocks whose branches are one convolution in the end: convolutions with norms, a norm of the input."""

    identity: nn.Module | None

    def finish(self, f: Figures) -> None:
        self.drop_path = f.path() if self.identity is not None else nn.Identity()
        self.attn = f.attn(f.out_chs)
        self.act = f.act()

    def branches(self) -> list[Any]:
        """The branches that convolve."""
        raise NotImplementedError(f"{type(self).__name__} must list its branches")

    def norms(self) -> list[Any]:
        """Those of the branches, then that of the input."""
        return [branch.bn for branch in self.branches()] + [self.identity] * (self.identity is not None)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.branches()
        y = first(x)
        for branch in others:
            y = y + branch(x)
        if self.identity is not None:
            y = self.drop_path(y) + self.identity(x)
        return self.act(self.attn(y))

    def reparameterize(self) -> nn.Module:
        """One convolution that does the same in evaluation, and what follows; the block where a norm is not batch's."""
        convs = [branch.conv for branch in self.branches()] + [None]
        norms = self.norms()
        if not all(isinstance(norm, nn.BatchNorm2d) for norm in norms):
            return self
        merged = merge_branches(list(zip(convs, norms, strict=False)))
        return nn.Sequential(merged, self.branches()[0].aa, self.attn, self.act)


class RepVggBlock(Branched):
    """kxk and 1x1 convolutions beside the input as it is, a norm in each (https://arxiv.org/abs/2101.03697)."""

    def __init__(self, f: Figures, *, kernel_size: int = 3) -> None:
        super().__init__()
        groups = f.groups(f.in_chs)
        spread: dict[str, Any] = {"dilation": f.first_dilation, "groups": groups, "apply_act": False}
        self.identity = f.identity()
        self.conv_kxk = f.conv(f.in_chs, f.out_chs, kernel_size, f.stride, **spread)
        self.conv_1x1 = f.conv(f.in_chs, f.out_chs, 1, f.stride, groups=groups, apply_act=False)
        self.finish(f)

    def branches(self) -> list[Any]:
        return [self.conv_1x1, self.conv_kxk]


class MobileOneBlock(Branched):
    """Several kxk convolutions, a 1x1, and the input as it is, a norm in each (https://arxiv.org/abs/2206.04040)."""

    def __init__(self, f: Figures, *, kernel_size: int = 3, num_conv_branches: int = 1) -> None:
        super().__init__()
        groups = f.groups(f.in_chs)
        spread: dict[str, Any] = {"dilation": f.first_dilation, "groups": groups, "apply_act": False}
        self.identity = f.identity()
        self.conv_kxk = nn.ModuleList(
            f.conv(f.in_chs, f.out_chs, kernel_size, f.stride, **spread) for _ in range(num_conv_branches)
        )
        scale = partial(f.conv, f.in_chs, f.out_chs, 1, f.stride, groups=groups, apply_act=False)
        self.conv_scale = scale() if kernel_size > 1 else None
        self.finish(f)

    def branches(self) -> list[Any]:
        return [*([self.conv_scale] if self.conv_scale is not None else []), *self.conv_kxk]


BLOCKS: dict[str, Callable[..., nn.Module]] = {
    "basic": BasicBlock,
    "bottle": BottleneckBlock,
    "dark": DarkBlock,
    "edge": EdgeBlock,
    "rep": RepVggBlock,
    "one": MobileOneBlock,
    "self_attn": SelfAttnBlock,
}
