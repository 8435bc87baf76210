"""ReXNet (https://arxiv.org/abs/2007.00992): inverted bottlenecks whose width grows with every block.

`rexnetr` are the same with widths rounded to a multiple of 8 or 16.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from opsin.layers import ClassifierHead, DropPath, SEModule, create_act, make_divisible
from opsin.layers.conv_norm_act import ConvNormAct
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._headed import HeadedModel

__all__ = ["Config", "LinearBottleneck", "RexNet"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Widths run from `initial_chs` to `initial_chs + final_chs`, times `width_mult`."""

    output_stride: int = 32  # 8 or 16 trade stride for dilation
    initial_chs: int = 16
    final_chs: int = 180
    width_mult: float = 1.0
    depth_mult: float = 1.0
    se_ratio: float = 1 / 12  # squeeze and excitation from the third group of blocks on; 0 for none
    ch_div: int = 1  # widths are multiples of this
    act_layer: Any = "silu"
    dw_act_layer: Any = "relu6"  # behind the depthwise convolution
    drop_rate: float = 0.2
    drop_path_rate: float = 0.0


class LinearBottleneck(nn.Module):
    """Expand by 1x1, depthwise 3x3, squeeze and excitation, project by 1x1.

    The input is added to the first of the output's channels; the rest are new.
    """

    def __init__(
        self, in_chs: int, out_chs: int, c: Config, *, exp_ratio: int, stride: int = 1, dilation: int = 1,
        next_dilation: int = 1, se_ratio: float = 0.0, drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.use_shortcut = stride == 1 and dilation == next_dilation and in_chs <= out_chs
        wide = in_chs if exp_ratio == 1 else make_divisible(in_chs * exp_ratio, c.ch_div)
        self.conv_exp = ConvNormAct(in_chs, wide, 1, act_layer=c.act_layer) if exp_ratio != 1 else nn.Identity()
        self.conv_dw = ConvNormAct(wide, wide, 3, stride, dilation=dilation, groups=wide, apply_act=False)
        self.se: nn.Module = nn.Identity()
        if se_ratio:
            hidden = make_divisible(int(wide * se_ratio), c.ch_div)
            self.se = SEModule(wide, rd_channels=hidden, norm_layer="batchnorm2d")
        self.act_dw = create_act(c.dw_act_layer)
        self.conv_pwl = ConvNormAct(wide, out_chs, 1, apply_act=False)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_pwl(self.act_dw(self.se(self.conv_dw(self.conv_exp(x)))))
        if not self.use_shortcut:
            return y
        y, width = self.drop_path(y), x.shape[1]
        return torch.cat([y[:, :width] + x, y[:, width:]], 1)


def block_plan(c: Config) -> list[tuple[int, int, int, float]]:
    """(out channels, expansion, stride, squeeze-and-excitation ratio) of each block."""
    depths = [math.ceil(depth * c.depth_mult) for depth in (1, 2, 2, 3, 3, 5)]
    groups = [(i, j) for i, depth in enumerate(depths) for j in range(depth)]  # (group, place in it) of each block
    width = c.initial_chs / min(c.width_mult, 1.0)  # thin nets keep the width of their first block
    plan = []
    for group, place in groups:
        out_chs = make_divisible(round(width * c.width_mult), c.ch_div)
        stride = (1, 2, 2, 2, 1, 2)[group] if place == 0 else 1
        plan.append((out_chs, 6 if group else 1, stride, c.se_ratio if group > 1 else 0.0))
        width += c.final_chs / len(groups)
    return plan


class RexNet(HeadedModel, config=Config):
    """Strided stem, a row of blocks and a closing 1x1 convolution (all in `features`), pooled linear head."""

    positional = ("in_chans", "num_classes", "global_pool", "output_stride")
    first_conv = "stem.conv"

    head: ClassifierHead

    def build(self, c: Config) -> None:
        if c.output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride={c.output_stride}: RexNet has 8, 16 and 32")
        width = make_divisible(round(32 / min(c.width_mult, 1.0) * c.width_mult), c.ch_div)
        self.stem = ConvNormAct(c.in_chans, width, 3, 2, act_layer=c.act_layer)
        self.features = nn.Sequential()
        chain, run = [Stage(("stem",), checkpoint=False)], list[str]()
        stride, dilation, plan = 2, 1, block_plan(c)
        for i, (out_chs, exp_ratio, step, se_ratio) in enumerate(plan):
            if step > 1:  # a level ends where the next block is strided
                chain.append(Stage(tuple(run), width, stride))
                run = []
            next_dilation = dilation
            if step > 1 and stride >= c.output_stride:
                next_dilation, step = dilation * step, 1
            options: dict[str, Any] = {"exp_ratio": exp_ratio, "stride": step, "se_ratio": se_ratio}
            options |= {"dilation": dilation, "next_dilation": next_dilation}
            drop = c.drop_path_rate * i / (len(plan) - 1)
            self.features.append(LinearBottleneck(width, out_chs, c, drop_path=drop, **options))
            run.append(f"features.{i}")
            width, stride, dilation = out_chs, stride * step, next_dilation
        chain.append(Stage(tuple(run), width, stride))
        self.num_features = self.head_hidden_size = make_divisible(1280 * c.width_mult, c.ch_div)
        self.features.append(ConvNormAct(width, self.num_features, 1, act_layer=c.act_layer))
        self.chain = (*chain, Stage((f"features.{len(plan)}",)))
        self.build_head(c)

    def init_module(self, module: nn.Module, name: str) -> bool:
        if isinstance(module, nn.Conv2d):
            fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        elif isinstance(module, nn.Linear):
            nn.init.uniform_(module.weight, -(module.out_features**-0.5), module.out_features**-0.5)
        else:
            return False
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        return True


R8 = partial(Config, ch_div=8)

VARIANTS = {
    "rexnet_100": Config(),
    "rexnet_130": Config(width_mult=1.3),
    "rexnet_150": Config(width_mult=1.5),
    "rexnet_200": Config(width_mult=2.0),
    "rexnet_300": Config(width_mult=3.0),
    "rexnetr_100": R8(),
    "rexnetr_130": R8(width_mult=1.3),
    "rexnetr_150": R8(width_mult=1.5),
    "rexnetr_200": R8(width_mult=2.0),
    "rexnetr_300": Config(width_mult=3.0, ch_div=16),
}

family = Family(RexNet, VARIANTS, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
