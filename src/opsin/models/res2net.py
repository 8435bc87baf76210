"""Res2Net: residual blocks with scales inside (https://arxiv.org/abs/1904.01169)."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from opsin.layers import create_act, get_norm_layer
from opsin.models._family import Family
from opsin.models.resnet import Config, ResidualBlock, ResNet, conv3x3

__all__ = ["Bottle2neck", "Config", "Res2Net"]


class Bottle2neck(ResidualBlock):
    """Between the 1x1 convolutions the channels go in `scale` parts; each part but the last passes a 3x3 convolution.

    The result of each part is added to the next; not so in a block that changes the map.
    """

    expansion = 4

    def build(
        self, in_chs: int, planes: int, c: Config, *, stride: int, dilation: int, first_dilation: int,
        scale: int = 4,
    ) -> None:  # fmt: skip
        if c.aa_layer or c.block_reduce_first != 1 or scale < 2:
            raise ValueError("Bottle2neck takes scale >= 2, and neither aa_layer nor block_reduce_first")
        norm = get_norm_layer(c.norm_layer)
        part, out_chs = planes * c.base_width // 64 * c.cardinality, planes * self.expansion
        self.chained = stride == 1 and in_chs == planes * self.expansion
        self.conv1 = nn.Conv2d(in_chs, part * scale, 1, bias=False)
        self.bn1 = norm(part * scale)
        self.act1 = create_act(c.act_layer, inplace=True)
        spacing = {"stride": stride, "dilation": first_dilation, "groups": c.cardinality}
        self.convs = nn.ModuleList(conv3x3(part, part, **spacing) for _ in range(scale - 1))
        self.bns = nn.ModuleList(norm(part) for _ in range(scale - 1))
        self.pool = nn.Identity() if self.chained else nn.AvgPool2d(3, stride, 1)
        self.conv3 = nn.Conv2d(part * scale, out_chs, 1, bias=False)
        self.bn3 = norm(out_chs)

    def residual(self, x: Tensor) -> Tensor:
        *parts, last = self.act1(self.bn1(self.conv1(x))).chunk(len(self.convs) + 1, 1)
        done: list[Tensor] = []
        for part, conv, bn in zip(parts, self.convs, self.bns, strict=True):
            part = part + done[-1] if self.chained and done else part
            done.append(self.act1(bn(conv(part))))
        return self.bn3(self.conv3(torch.cat([*done, self.pool(last)], 1)))

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.bn3.weight)  # type: ignore[arg-type]


class Res2Net(ResNet):
    """ResNet with scales inside its blocks; `block_args` takes their number as `scale`."""

    blocks = {**ResNet.blocks, "Bottle2neck": Bottle2neck}


Res2 = partial(Config, block="Bottle2neck", base_width=26)
S4, S6, S8 = {"scale": 4}, {"scale": 6}, {"scale": 8}
D: dict[str, Any] = {"stem_width": 32, "stem_type": "deep", "avg_down": True}

VARIANTS = {
    "res2net50_14w_8s": Res2(layers=(3, 4, 6, 3), base_width=14, block_args=S8),
    "res2net50_26w_4s": Res2(layers=(3, 4, 6, 3), block_args=S4),
    "res2net50_26w_6s": Res2(layers=(3, 4, 6, 3), block_args=S6),
    "res2net50_26w_8s": Res2(layers=(3, 4, 6, 3), block_args=S8),
    "res2net50_48w_2s": Res2(layers=(3, 4, 6, 3), base_width=48, block_args={"scale": 2}),
    "res2net50d": Res2(layers=(3, 4, 6, 3), **D, block_args=S4),
    "res2net101_26w_4s": Res2(layers=(3, 4, 23, 3), block_args=S4),
    "res2net101d": Res2(layers=(3, 4, 23, 3), **D, block_args=S4),
    "res2next50": Res2(layers=(3, 4, 6, 3), base_width=4, cardinality=8, block_args=S4),
}

family = Family(Res2Net, VARIANTS)
__getattr__ = family.module_getattr(__name__)
