"""VoVNet (https://arxiv.org/abs/1904.09730) and VoVNet V2 (https://arxiv.org/abs/1911.06667).

One-shot aggregation: the maps of all layers of a block meet once, at its end. V2 adds a shortcut and channel attention.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from opsin.layers import DropPath, create_attn, drop_path_rates
from opsin.layers.conv_norm_act import ConvNormAct
from opsin.layers.norm_act import get_norm_act_layer
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._headed import HeadedModel

__all__ = ["Config", "OsaBlock", "OsaStage", "SeparableConvNormAct", "VovNet"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Tuples have one entry per stage, `stem_chs` one per stem convolution."""

    stem_chs: tuple[int, ...] = (64, 64, 128)
    stage_conv_chs: tuple[int, ...] = (128, 160, 192, 224)  # of the layers in a block
    stage_out_chs: tuple[int, ...] = (256, 512, 768, 1024)
    layer_per_block: int = 5
    block_per_stage: tuple[int, ...] = (1, 1, 2, 2)
    residual: bool = True  # shortcuts past all blocks but the first of a stage
    depthwise: bool = False  # separable convolutions
    attn: Any = "ese"  # channel attention in the last block of a stage; "" for none
    act_layer: Any = "relu"
    norm_layer: Any = "batchnorm2d"  # evonorm2ds0 brings its own activation
    drop_path_rate: float = 0.0


class SeparableConvNormAct(nn.Module):
    """3x3 depthwise convolution, 1x1 convolution, norm, activation."""

    def __init__(self, in_chs: int, out_chs: int, stride: int, *, norm_layer: Any, act_layer: Any) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(in_chs, in_chs, 3, stride, 1, groups=in_chs, bias=False)
        self.conv_pw = nn.Conv2d(in_chs, out_chs, 1, bias=False)
        self.bn = get_norm_act_layer(norm_layer)(out_chs, act_layer=act_layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv_pw(self.conv_dw(x)))


def plain(c: Config, in_chs: int, out_chs: int, kernel_size: int = 3, stride: int = 1) -> nn.Module:
    return ConvNormAct(in_chs, out_chs, kernel_size, stride, norm_layer=c.norm_layer, act_layer=c.act_layer)


def layer(c: Config, in_chs: int, out_chs: int, stride: int = 1) -> nn.Module:
    """3x3 convolution of the kind that the config says."""
    if not c.depthwise:
        return plain(c, in_chs, out_chs, stride=stride)
    return SeparableConvNormAct(in_chs, out_chs, stride, norm_layer=c.norm_layer, act_layer=c.act_layer)


class OsaBlock(nn.Module):
    """Layers one after the other; input and all their outputs meet in a 1x1 convolution."""

    def __init__(
        self, in_chs: int, mid_chs: int, out_chs: int, c: Config, *, residual: bool, attn: Any, drop_path: float
    ) -> None:
        super().__init__()
        self.residual = residual
        reduced = c.depthwise and in_chs != mid_chs
        self.conv_reduction = plain(c, in_chs, mid_chs, 1) if reduced else None
        widths = [mid_chs if reduced else in_chs] + [mid_chs] * (c.layer_per_block - 1)
        self.conv_mid = nn.ModuleList(layer(c, width, mid_chs) for width in widths)
        self.conv_concat = plain(c, in_chs + c.layer_per_block * mid_chs, out_chs, 1)
        self.attn = create_attn(attn, out_chs) or nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        y = x if self.conv_reduction is None else self.conv_reduction(x)
        for conv in self.conv_mid:
            y = conv(y)
            maps.append(y)
        y = self.drop_path(self.attn(self.conv_concat(torch.cat(maps, 1))))
        return y + x if self.residual else y


class OsaStage(nn.Module):
    """Max pool (not in front of the first stage) and blocks."""

    def __init__(
        self, in_chs: int, mid_chs: int, out_chs: int, c: Config, *, downsample: bool, drop_path: list[float]
    ) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True) if downsample else nn.Identity()
        last = len(drop_path) - 1
        blocks = []
        for i, rate in enumerate(drop_path):
            options: dict[str, Any] = {"residual": c.residual and i > 0, "attn": c.attn if i == last else ""}
            blocks.append(OsaBlock(out_chs if i else in_chs, mid_chs, out_chs, c, **options, drop_path=rate))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.pool(x))


class VovNet(HeadedModel, config=Config):
    """Three stem convolutions, four stages of one-shot aggregation, pooled linear head."""

    first_conv = "stem.0.conv"

    def build(self, c: Config) -> None:
        per_stage = {len(c.stage_conv_chs), len(c.stage_out_chs), len(c.block_per_stage)}
        if len(per_stage) > 1 or len(c.stem_chs) != 3:
            raise ValueError(f"VovNet needs 3 stem_chs, and figures for the same number of stages, got {c}")
        first, second, width = c.stem_chs
        self.stem = nn.Sequential(
            plain(c, c.in_chans, first, stride=2), layer(c, first, second), layer(c, second, width, stride=2)
        )
        chain = [Stage(("stem.0", "stem.1"), second, 2, checkpoint=False)]
        before: tuple[str, ...] = ("stem.2",)
        self.stages = nn.Sequential()
        rates = drop_path_rates(c.drop_path_rate, tuple(c.block_per_stage))
        for i, (mid_chs, out_chs, rate) in enumerate(zip(c.stage_conv_chs, c.stage_out_chs, rates, strict=True)):
            self.stages.append(OsaStage(width, mid_chs, out_chs, c, downsample=i > 0, drop_path=rate))
            chain.append(Stage((*before, f"stages.{i}"), out_chs, 4 * 2**i))
            width, before = out_chs, ()
        self.chain = tuple(chain)
        self.num_features = self.head_hidden_size = width
        self.build_head(c)

    def init_module(self, module: nn.Module, name: str) -> bool:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            module.reset_parameters()
        else:
            return False
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        return True


V1 = partial(Config, residual=False, attn="")
V19 = partial(Config, layer_per_block=3, block_per_stage=(1, 1, 1, 1))
SLIM: dict[str, Any] = {"stage_conv_chs": (64, 80, 96, 112), "stage_out_chs": (112, 256, 384, 512)}
DW: dict[str, Any] = {"depthwise": True, "stem_chs": (64, 64, 64)}
VARIANTS = {
    "eca_vovnet39b": Config(attn="eca"),
    "ese_vovnet19b_dw": V19(**DW),
    "ese_vovnet19b_slim": V19(**SLIM),
    "ese_vovnet19b_slim_dw": V19(**SLIM, **DW),
    "ese_vovnet39b": Config(),
    "ese_vovnet39b_evos": Config(norm_layer="evonorm2ds0"),
    "ese_vovnet57b": Config(block_per_stage=(1, 1, 4, 3)),
    "ese_vovnet99b": Config(block_per_stage=(1, 3, 9, 3)),
    "vovnet39a": V1(),
    "vovnet57a": V1(block_per_stage=(1, 1, 4, 3)),
}

family = Family(VovNet, VARIANTS, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
