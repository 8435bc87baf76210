"""GhostNet: half of a layer's channels are computed, the other half derived from them by a depthwise convolution.

GhostNet (https://arxiv.org/abs/1911.11907), V2 with long-range gates (https://arxiv.org/abs/2211.12905), V3 with
branches that merge after training (https://arxiv.org/abs/2404.11202).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import check_known
from opsin.layers import make_divisible
from opsin.layers.norm_act import BatchNormAct2d
from opsin.layers.reparam import merge_branches
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._conv_head import ConvHead
from opsin.models._efficientnet_blocks import SqueezeExcite
from opsin.models._family import Family

__all__ = ["Config", "GhostNet"]

# one stage a line; of each block: kernel size, width inside, width at the end, squeeze ratio, stride
STAGES = (
    ((3, 16, 16, 0, 1),),
    ((3, 48, 24, 0, 2),),
    ((3, 72, 24, 0, 1),),
    ((5, 72, 40, 0.25, 2),),
    ((5, 120, 40, 0.25, 1),),
    ((3, 240, 80, 0, 2),),
    ((3, 200, 80, 0, 1), (3, 184, 80, 0, 1), (3, 184, 80, 0, 1), (3, 480, 112, 0.25, 1), (3, 672, 112, 0.25, 1)),
    ((5, 672, 160, 0.25, 2),),
    ((5, 960, 160, 0, 1), (5, 960, 160, 0.25, 1), (5, 960, 160, 0, 1), (5, 960, 160, 0.25, 1)),
)


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """`cfgs` has the blocks of each stage: kernel size, width inside, width at the end, squeeze ratio, stride."""

    cfgs: tuple[tuple[tuple[float, ...], ...], ...] = STAGES
    width: float = 1.0  # multiplies all widths but that behind the pooling
    version: str = "v1"  # v2 gates the wide layers, v3 has branches besides
    drop_rate: float = 0.2


def conv_bn(in_chs: int, out_chs: int, kernel: int | tuple[int, int] = 1, stride: int = 1, groups: int = 1) -> Any:
    """A convolution that keeps the size (divided by `stride`) and a norm."""
    height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    conv = nn.Conv2d(in_chs, out_chs, kernel, stride, (height // 2, width // 2), groups=groups, bias=False)
    return conv, nn.BatchNorm2d(out_chs)


class GhostModule(nn.Module):
    """`out_chs` channels, the second half of them depthwise convolutions of the first.

    With `gated` they are weighted by what a depthwise cross of 5 sees of the input at half its size.
    """

    def __init__(self, in_chs: int, out_chs: int, *, act: bool, gated: bool = False) -> None:
        super().__init__()
        self.build(in_chs, out_chs // 2, nn.ReLU if act else nn.Identity)
        self.short_conv: nn.Module | None = None
        if gated:
            cross = (conv_bn(out_chs, out_chs, kernel, groups=out_chs) for kernel in ((1, 5), (5, 1)))
            self.short_conv = nn.Sequential(*conv_bn(in_chs, out_chs), *(layer for pair in cross for layer in pair))

    def build(self, in_chs: int, half: int, act: type[nn.Module]) -> None:
        self.primary_conv = nn.Sequential(*conv_bn(in_chs, half), act())
        self.cheap_operation = nn.Sequential(*conv_bn(half, half, 3, groups=half), act())

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.primary_conv(x)
        return first, self.cheap_operation(first)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.cat(self.halves(x), 1)
        if self.short_conv is None:
            return out
        gate = torch.sigmoid(self.short_conv(F.avg_pool2d(x, 2)))
        return out * F.interpolate(gate, out.shape[-2:])


class ConvBn(nn.Module):
    """One branch: convolution and norm; with an activation the last layer of the body."""

    def __init__(self, in_chs: int, out_chs: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn1 = BatchNormAct2d(out_chs, apply_act=act)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv(x))


def branches(in_chs: int, out_chs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.ModuleList:
    return nn.ModuleList(ConvBn(in_chs, out_chs, kernel, stride, groups) for _ in range(3))


class BranchedGhostModule(GhostModule):
    """Both halves as sums of branches while training."""

    def build(self, in_chs: int, half: int, act: type[nn.Module]) -> None:
        self.primary_rpr_conv = branches(in_chs, half)
        self.act = act()
        self.cheap_rpr_skip = nn.BatchNorm2d(half)
        self.cheap_rpr_conv = branches(half, half, 3, groups=half)
        self.cheap_rpr_scale = ConvBn(half, half, groups=half)

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.act(sum(branch(x) for branch in self.primary_rpr_conv))
        small = self.cheap_rpr_scale(first) + self.cheap_rpr_skip(first)
        return first, self.act(sum((branch(first) for branch in self.cheap_rpr_conv), small))

    def reparameterize(self) -> GhostModule:
        """A module without branches that does the same in evaluation."""
        plain = GhostModule.__new__(GhostModule)
        nn.Module.__init__(plain)
        primary = merge_branches([(b.conv, b.bn1) for b in self.primary_rpr_conv])  # type: ignore[misc]
        cheap: list[Any] = [(b.conv, b.bn1) for b in (*self.cheap_rpr_conv, self.cheap_rpr_scale)]
        plain.primary_conv = nn.Sequential(primary, self.act)
        plain.cheap_operation = nn.Sequential(merge_branches([*cheap, (None, self.cheap_rpr_skip)]), self.act)
        plain.short_conv = self.short_conv
        return plain.train(self.training)


class GhostBottleneck(nn.Module):
    """A wide ghost module, a depthwise convolution where it strides, squeeze and excitation, a narrow ghost module."""

    module: type[GhostModule] = GhostModule

    def __init__(
        self, in_chs: int, mid_chs: int, out_chs: int, kernel: int, stride: int, se_ratio: float, gated: bool
    ) -> None:
        super().__init__()
        self.ghost1 = self.module(in_chs, mid_chs, act=True, gated=gated)
        self.strides = stride > 1
        if self.strides:
            self.build_depthwise(mid_chs, kernel, stride)
        self.se = squeeze(mid_chs, se_ratio)
        self.ghost2 = self.module(mid_chs, out_chs, act=False)
        self.shortcut = shortcut(in_chs, out_chs, kernel, stride)

    def build_depthwise(self, channels: int, kernel: int, stride: int) -> None:
        self.conv_dw, self.bn_dw = conv_bn(channels, channels, kernel, stride, channels)

    def depthwise(self, x: Tensor) -> Tensor:
        return self.bn_dw(self.conv_dw(x))

    def forward(self, x: Tensor) -> Tensor:
        out = self.ghost1(x)
        if self.strides:
            out = self.depthwise(out)
        return self.ghost2(self.se(out)) + self.shortcut(x)


class BranchedGhostBottleneck(GhostBottleneck):
    """Made of branches while training."""

    module = BranchedGhostModule

    def build_depthwise(self, channels: int, kernel: int, stride: int) -> None:
        self.dw_rpr_conv = branches(channels, channels, kernel, stride, channels)
        self.dw_rpr_scale = ConvBn(channels, channels, 1, stride, channels)

    def depthwise(self, x: Tensor) -> Tensor:
        return sum((branch(x) for branch in self.dw_rpr_conv), self.dw_rpr_scale(x))

    def reparameterize(self) -> GhostBottleneck:
        """A block without branches of its own that does the same in evaluation; ghost modules merge themselves."""
        plain = GhostBottleneck.__new__(GhostBottleneck)
        nn.Module.__init__(plain)
        plain.ghost1, plain.ghost2 = self.ghost1, self.ghost2
        plain.strides, plain.se, plain.shortcut = self.strides, self.se, self.shortcut
        if self.strides:
            parts: list[Any] = [*self.dw_rpr_conv, self.dw_rpr_scale]
            plain.conv_dw = merge_branches([(branch.conv, branch.bn1) for branch in parts])
            plain.bn_dw = nn.Identity()
        return plain.train(self.training)


def squeeze(channels: int, ratio: float) -> nn.Module:
    round_fn = partial(make_divisible, divisor=4)
    return SqueezeExcite(channels, ratio, gate_layer="hard_sigmoid", rd_round_fn=round_fn) if ratio else nn.Identity()


def shortcut(in_chs: int, out_chs: int, kernel: int, stride: int) -> nn.Sequential:
    """Depthwise and 1x1 convolutions where a block changes the shape; else nothing."""
    if in_chs == out_chs and stride == 1:
        return nn.Sequential()
    return nn.Sequential(*conv_bn(in_chs, in_chs, kernel, stride, in_chs), *conv_bn(in_chs, out_chs))


BLOCKS = {"v1": GhostBottleneck, "v2": GhostBottleneck, "v3": BranchedGhostBottleneck}


class GhostNet(ConvHead, config=Config):
    """Stem, stages of ghost bottlenecks, a 1x1 convolution, and a convolution behind the pooling."""

    positional = ("cfgs", "num_classes", "width", "in_chans")
    first_conv = "conv_stem"
    last_factor: ClassVar[int] = 1  # width of the last 1x1 convolution over that inside the last block

    def build(self, c: Any) -> None:
        if not c.cfgs:
            raise ValueError(f"{type(self).__name__} needs cfgs: the blocks of each stage")
        stem = width = make_divisible(16 * c.width, 4)
        self.conv_stem = nn.Conv2d(c.in_chans, stem, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.act1 = nn.ReLU(inplace=True)
        chain = [Stage(("conv_stem",), stem, 2, checkpoint=False), Stage(("bn1", "act1"), checkpoint=False)]
        self.blocks, stride, count = nn.Sequential(), 2, 0
        for i, rows in enumerate(c.cfgs):
            stage = nn.Sequential()
            for kernel, inside, after, se_ratio, step in rows:
                mid, out = (make_divisible(chs * c.width, 4) for chs in (inside, after))
                stage.append(self.block(c, count, width, mid, out, kernel=kernel, stride=step, se_ratio=se_ratio))
                width, stride, count = out, stride * step, count + 1
            self.blocks.append(stage)
            chain.append(Stage((f"blocks.{i}",), width if any(row[-1] > 1 for row in rows) else None, stride))
        self.num_features = make_divisible(self.last_factor * c.cfgs[-1][-1][1] * c.width, 4)
        self.head_hidden_size = 1280
        self.blocks.append(nn.Sequential(ConvBn(width, self.num_features, act=True)))
        self.chain = (*chain, Stage((f"blocks.{len(c.cfgs)}",)))
        self.build_head(c)

    def block(self, c: Any, index: int, in_chs: int, mid_chs: int, out_chs: int, **args: Any) -> nn.Module:
        """The block number `index`; `args` are kernel, stride and se_ratio."""
        check_known([c.version], BLOCKS, owner="GhostNet(version=)")
        gated = c.version != "v1" and index > 1
        return BLOCKS[c.version](in_chs, mid_chs, out_chs, gated=gated, **args)

    def conv_head_parts(self, in_chs: int) -> tuple[nn.Module, nn.Module]:
        return nn.Conv2d(in_chs, self.head_hidden_size, 1), nn.ReLU(inplace=True)

    def init_module(self, module: nn.Module, name: str) -> bool:
        if not isinstance(module, nn.Conv2d):
            return False
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        return True


def adapt(state_dict: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """Read the layout of V3's authors: norms of branches go by `bn` there, and operations are counted in buffers."""
    state_dict = state_dict.get("state_dict", state_dict)  # type: ignore[assignment]
    out = {}
    for key, value in state_dict.items():
        if "total" not in key:
            in_branch = ".ghost" in key or ".dw_rpr_" in key
            out[key.replace(".bn.", ".bn1.") if in_branch else key] = value
    return out


VARIANTS = {
    "ghostnet_050": Config(width=0.5),
    "ghostnet_100": Config(width=1.0),
    "ghostnet_130": Config(width=1.3),
    "ghostnetv2_100": Config(width=1.0, version="v2"),
    "ghostnetv2_130": Config(width=1.3, version="v2"),
    "ghostnetv2_160": Config(width=1.6, version="v2"),
    "ghostnetv3_050": Config(width=0.5, version="v3"),
    "ghostnetv3_100": Config(width=1.0, version="v3"),
    "ghostnetv3_130": Config(width=1.3, version="v3"),
    "ghostnetv3_160": Config(width=1.6, version="v3"),
}

family = Family(GhostNet, VARIANTS, adapt=adapt, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
