"""ResNeSt: ResNet with split attention (https://arxiv.org/abs/2004.08955)."""

from functools import partial

from torch import Tensor, nn

from opsin.layers import create_act, get_norm_layer, make_divisible
from opsin.models._family import Family
from opsin.models.resnet import Config, ResidualBlock, ResNet

__all__ = ["Config", "ResNeSt", "ResNestBottleneck", "SplitAttn"]


class SplitAttn(nn.Module):
    """A 3x3 convolution to `radix` branches of `channels` each, summed with weights that depend on their channel means.

    The weights of a channel are a softmax over the branches, or with a single branch a sigmoid.
    """

    def __init__(
        self, channels: int, c: Config, *, radix: int = 2, stride: int = 1, dilation: int = 1, rd_ratio: float = 0.25
    ) -> None:
        super().__init__()
        self.radix, self.groups = radix, c.cardinality
        norm, act = get_norm_layer(c.norm_layer), partial(create_act, c.act_layer, inplace=True)
        wide = channels * radix
        hidden = make_divisible(wide * rd_ratio, min_value=32)
        self.conv = nn.Conv2d(channels, wide, 3, stride, dilation, dilation, c.cardinality * radix, bias=False)
        self.bn0 = norm(wide)
        self.act0 = act()
        self.fc1 = nn.Conv2d(channels, hidden, 1, groups=c.cardinality)
        self.bn1 = norm(hidden)
        self.act1 = act()
        self.fc2 = nn.Conv2d(hidden, wide, 1, groups=c.cardinality)

    def forward(self, x: Tensor) -> Tensor:
        branches = self.act0(self.bn0(self.conv(x))).unflatten(1, (self.radix, -1))
        means = branches.sum(1).mean((2, 3), keepdim=True)
        # each group decides over its own branches: (B, groups, radix, C / groups)
        scores = self.fc2(self.act1(self.bn1(self.fc1(means)))).flatten(1).unflatten(1, (self.groups, self.radix, -1))
        weights = scores.softmax(2) if self.radix > 1 else scores.sigmoid()
        weights = weights.transpose(1, 2).flatten(2)[..., None, None]
        return (branches * weights).sum(1)


class ResNestBottleneck(ResidualBlock):
    """1x1, split attention, 1x1; with `avd` an average pool takes over the stride, before or after the attention."""

    expansion = 4

    def build(
        self, in_chs: int, planes: int, c: Config, *, stride: int, dilation: int, first_dilation: int,
        radix: int = 2, avd: bool = False, avd_first: bool = False,
    ) -> None:  # fmt: skip
        if c.aa_layer or c.block_reduce_first != 1 or radix < 1:
            raise ValueError("ResNestBottleneck takes radix >= 1, and neither aa_layer nor block_reduce_first")
        norm = get_norm_layer(c.norm_layer)
        width, out_chs = planes * c.base_width // 64 * c.cardinality, planes * self.expansion
        pools = avd and stride > 1
        pool = nn.AvgPool2d(3, stride, 1) if pools else nn.Identity()
        self.conv1 = nn.Conv2d(in_chs, width, 1, bias=False)
        self.bn1 = norm(width)
        self.act1 = create_act(c.act_layer, inplace=True)
        self.avd_first = pool if avd_first else nn.Identity()
        self.conv2 = SplitAttn(width, c, radix=radix, stride=1 if pools else stride, dilation=first_dilation)
        self.avd_last = nn.Identity() if avd_first else pool
        self.conv3 = nn.Conv2d(width, out_chs, 1, bias=False)
        self.bn3 = norm(out_chs)

    def residual(self, x: Tensor) -> Tensor:
        x = self.avd_first(self.act1(self.bn1(self.conv1(x))))
        return self.bn3(self.conv3(self.avd_last(self.conv2(x))))

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.bn3.weight)  # type: ignore[arg-type]


class ResNeSt(ResNet):
    """ResNet-D with split attention; `block_args` takes `radix`, `avd` and `avd_first`."""

    blocks = {**ResNet.blocks, "ResNestBottleneck": ResNestBottleneck}


Nest = partial(Config, block="ResNestBottleneck", stem_type="deep", stem_width=32, avg_down=True)
R2 = {"radix": 2, "avd": True}

VARIANTS = {
    "resnest14d": Nest(layers=(1, 1, 1, 1), block_args=R2),
    "resnest26d": Nest(layers=(2, 2, 2, 2), block_args=R2),
    "resnest50d": Nest(layers=(3, 4, 6, 3), block_args=R2),
    "resnest50d_1s4x24d": Nest(
        layers=(3, 4, 6, 3), base_width=24, cardinality=4, block_args={"radix": 1, "avd": True, "avd_first": True}
    ),
    "resnest50d_4s2x40d": Nest(
        layers=(3, 4, 6, 3), base_width=40, cardinality=2, block_args={"radix": 4, "avd": True, "avd_first": True}
    ),
    "resnest101e": Nest(layers=(3, 4, 23, 3), stem_width=64, block_args=R2),
    "resnest200e": Nest(layers=(3, 24, 36, 3), stem_width=64, block_args=R2),
    "resnest269e": Nest(layers=(3, 30, 48, 8), stem_width=64, block_args=R2),
}

family = Family(ResNeSt, VARIANTS)
__getattr__ = family.module_getattr(__name__)
