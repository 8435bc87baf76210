"""TResNet (https://arxiv.org/abs/2003.13630): a ResNet made for throughput, and its second version.

Weights come from that paper and from "ImageNet-21K Pretraining for the Masses" (https://arxiv.org/abs/2104.10972).
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from opsin.layers import ClassifierHead, DropPath, SEModule, drop_path_rates
from opsin.layers.conv_norm_act import ConvNormAct
from opsin.layers.pool import avg_pool_down
from opsin.layers.weight_init import init_conv_net_
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._headed import HeadedModel

__all__ = ["BasicBlock", "Bottleneck", "Config", "SpaceToDepth", "TResNet"]

leaky = partial(nn.LeakyReLU, negative_slope=1e-3)


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """`layers` are blocks per stage."""

    layers: tuple[int, ...] = ()
    width_factor: float = 1.0
    v2: bool = False  # bottlenecks in all stages, not only in the last two; widths in multiples of 8
    drop_path_rate: float = 0.0


class SpaceToDepth(nn.Module):
    """`(B, C, H, W)` to `(B, 16 C, H / 4, W / 4)`: each 4x4 tile becomes channels, ordered (row, column, C)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] % 4 or x.shape[3] % 4:
            raise ValueError(f"TResNet cuts images into tiles of 4x4, but this one is {x.shape[2]}x{x.shape[3]}")
        tiles = x.unflatten(3, (-1, 4)).unflatten(2, (-1, 4))  # (B, C, h, 4, w, 4)
        return tiles.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and squeeze and excitation; a stride is a blur behind the first."""

    expansion: ClassVar[int] = 1

    def __init__(
        self, in_chs: int, planes: int, *, stride: int = 1, downsample: nn.Module | None = None, use_se: bool = True,
        drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.downsample = nn.Identity() if downsample is None else downsample
        self.conv1 = ConvNormAct(in_chs, planes, 3, stride, act_layer=leaky, aa_layer="blur")
        self.conv2 = ConvNormAct(planes, planes, 3, apply_act=False)
        self.se = SEModule(planes, rd_channels=max(planes // 4, 64)) if use_se else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.act = nn.ReLU(inplace=True)

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.conv2.bn.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(self.conv2(self.conv1(x)))
        return self.act(self.drop_path(y) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, squeeze and excitation, 1x1; a stride is a blur behind the 3x3."""

    expansion: ClassVar[int] = 4

    def __init__(
        self, in_chs: int, planes: int, *, stride: int = 1, downsample: nn.Module | None = None, use_se: bool = True,
        drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.downsample = nn.Identity() if downsample is None else downsample
        self.conv1 = ConvNormAct(in_chs, planes, 1, act_layer=leaky)
        self.conv2 = ConvNormAct(planes, planes, 3, stride, act_layer=leaky, aa_layer="blur")
        self.se = SEModule(planes, rd_channels=max(planes // 2, 64)) if use_se else nn.Identity()
        self.conv3 = ConvNormAct(planes, 4 * planes, 1, apply_act=False)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.act = nn.ReLU(inplace=True)

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.conv3.bn.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(self.se(self.conv2(self.conv1(x))))
        return self.act(self.drop_path(y) + self.downsample(x))


class TResNet(HeadedModel, config=Config):
    """Space to depth, four stages of blocks (the last without squeeze and excitation), pooled linear head."""

    positional = ("layers", "in_chans", "num_classes", "width_factor", "v2", "global_pool")
    first_conv = "body.conv1.conv"
    in_chans_strategy = "space_to_depth"

    head: ClassifierHead

    def build(self, c: Config) -> None:
        base = int(64 * c.width_factor)
        base = base // 8 * 8 if c.v2 else base
        stem = ConvNormAct(16 * c.in_chans, base, 3, act_layer="leaky_relu")
        self.body = nn.Sequential(OrderedDict[str, nn.Module](s2d=SpaceToDepth(), conv1=stem))
        chain = [Stage(("body.s2d", "body.conv1"), base, 4, checkpoint=False)]
        width, last = base, len(c.layers) - 1
        for i, drops in enumerate(drop_path_rates(c.drop_path_rate, tuple(c.layers))):
            block: Any = Bottleneck if c.v2 or i > 1 else BasicBlock
            planes, stride = base * 2**i, 2 if i else 1
            out_chs, stage = planes * block.expansion, nn.Sequential()
            down = shortcut(width, out_chs, stride) if stride > 1 or width != out_chs else None
            for drop in drops:
                stage.append(block(width, planes, stride=stride, downsample=down, use_se=i < last, drop_path=drop))
                width, stride, down = out_chs, 1, None
            self.body.add_module(f"layer{i + 1}", stage)
            chain.append(Stage((f"body.layer{i + 1}",), width, 4 * 2**i))
        self.chain = tuple(chain)
        self.num_features = self.head_hidden_size = width
        self.build_head(c)

    def init_module(self, module: nn.Module, name: str) -> bool:
        return init_conv_net_(module)

    def init_last(self) -> None:
        for module in self.modules():
            if isinstance(module, BasicBlock | Bottleneck):
                module.zero_init_last()


def shortcut(in_chs: int, out_chs: int, stride: int) -> nn.Sequential:
    """The projection of a block that changes stride or channels; a stride is an average pool in front."""
    conv = ConvNormAct(in_chs, out_chs, 1, apply_act=False)
    return nn.Sequential(avg_pool_down(stride), conv) if stride > 1 else nn.Sequential(conv)


def adapt(state_dict: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """Read the authors' layout, where norm and activation were one in-place module (InplaceABN)."""
    if "body.conv1.conv.weight" in state_dict or "body.conv1.0.weight" not in state_dict:
        return state_dict
    parts = ("conv", "bn")
    state = {}
    for key, value in state_dict.items():
        # the convolution and norm inside blocks stand in one Sequential or, where a blur follows, in two
        name = re.sub(r"(conv\d|downsample\.\d)\.(?:0\.)?([01])\.", lambda m: f"{m[1]}.{parts[int(m[2])]}.", key)
        # InplaceABN scales by the magnitude of its weight, kept off zero
        state[name] = value.abs() + 1e-5 if name.endswith("bn.weight") else value
    return state


VARIANTS = {
    "tresnet_l": Config(layers=(4, 5, 18, 3), width_factor=1.2),
    "tresnet_m": Config(layers=(3, 4, 11, 3)),
    "tresnet_v2_l": Config(layers=(3, 4, 23, 3), v2=True),
    "tresnet_xl": Config(layers=(4, 5, 24, 3), width_factor=1.3),
}

family = Family(TResNet, VARIANTS, adapt=adapt, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
