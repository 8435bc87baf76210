"""RepGhostNet (https://arxiv.org/abs/2211.06088): ghost modules that add instead of concatenating, and so merge."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from opsin.layers.reparam import merge_branches
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models.ghostnet import GhostNet, conv_bn, shortcut, squeeze

__all__ = ["Config", "RepGhostNet"]

# as in GhostNet; half the width inside
STAGES = (
    ((3, 8, 16, 0, 1),),
    ((3, 24, 24, 0, 2),),
    ((3, 36, 24, 0, 1),),
    ((5, 36, 40, 0.25, 2),),
    ((5, 60, 40, 0.25, 1),),
    ((3, 120, 80, 0, 2),),
    ((3, 100, 80, 0, 1), (3, 120, 80, 0, 1), (3, 120, 80, 0, 1), (3, 240, 112, 0.25, 1), (3, 336, 112, 0.25, 1)),
    ((5, 336, 160, 0.25, 2),),
    ((5, 480, 160, 0, 1), (5, 480, 160, 0.25, 1), (5, 480, 160, 0, 1), (5, 480, 160, 0.25, 1)),
)


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """`cfgs` as in GhostNet."""

    cfgs: tuple[tuple[tuple[float, ...], ...], ...] = STAGES
    width: float = 1.0  # multiplies all widths but that behind the pooling
    drop_rate: float = 0.2
    reparam: bool = True  # with the branch that only training needs


class RepGhostModule(nn.Module):
    """A 1x1 convolution, then a depthwise one beside (with `reparam`) a norm alone."""

    def __init__(self, in_chs: int, out_chs: int, *, act: bool, reparam: bool) -> None:
        super().__init__()
        self.primary_conv = nn.Sequential(*conv_bn(in_chs, out_chs), nn.ReLU(inplace=True) if act else nn.Identity())
        self.fusion_bn = nn.Sequential(*([nn.BatchNorm2d(out_chs)] if reparam else []))
        self.cheap_operation = nn.Sequential(*conv_bn(out_chs, out_chs, 3, groups=out_chs))
        self.relu = nn.ReLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary_conv(x)
        out = self.cheap_operation(x)
        for norm in self.fusion_bn:
            out = out + norm(x)
        return self.relu(out)

    def reparameterize(self) -> nn.Sequential:
        """Three layers that do the same in evaluation."""
        branches: list[Any] = [tuple(self.cheap_operation), *((None, norm) for norm in self.fusion_bn)]
        return nn.Sequential(self.primary_conv, merge_branches(branches), self.relu).train(self.training)


class RepGhostBottleneck(nn.Module):
    """As in GhostNet, of modules that keep the width inside."""

    def __init__(
        self, in_chs: int, mid_chs: int, out_chs: int, *, kernel: int, stride: int, se_ratio: float, reparam: bool
    ) -> None:
        super().__init__()
        self.ghost1 = RepGhostModule(in_chs, mid_chs, act=True, reparam=reparam)
        self.strides = stride > 1
        if self.strides:
            self.conv_dw, self.bn_dw = conv_bn(mid_chs, mid_chs, kernel, stride, mid_chs)
        self.se = squeeze(mid_chs, se_ratio)
        self.ghost2 = RepGhostModule(mid_chs, out_chs, act=False, reparam=reparam)
        self.shortcut = shortcut(in_chs, out_chs, kernel, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.ghost1(x)
        if self.strides:
            out = self.bn_dw(self.conv_dw(out))
        return self.ghost2(self.se(out)) + self.shortcut(x)


class RepGhostNet(GhostNet, config=Config):
    """Stem, stages of bottlenecks, a 1x1 convolution, and a convolution behind the pooling."""

    last_factor = 2

    def block(self, c: Config, index: int, in_chs: int, mid_chs: int, out_chs: int, **args: Any) -> nn.Module:
        return RepGhostBottleneck(in_chs, mid_chs, out_chs, reparam=c.reparam, **args)


VARIANTS = {
    "repghostnet_050": Config(width=0.5),
    "repghostnet_058": Config(width=0.58),
    "repghostnet_080": Config(width=0.8),
    "repghostnet_100": Config(width=1.0),
    "repghostnet_111": Config(width=1.11),
    "repghostnet_130": Config(width=1.3),
    "repghostnet_150": Config(width=1.5),
    "repghostnet_200": Config(width=2.0),
}

family = Family(RepGhostNet, VARIANTS, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
