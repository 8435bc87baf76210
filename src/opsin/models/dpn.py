"""Dual path networks (DPN, https://arxiv.org/abs/1707.01629): each block adds to some channels and appends others."""

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from opsin.layers import SelectAdaptivePool2d
from opsin.layers.classifier import ConvClassifier
from opsin.layers.conv_norm_act import ConvNormAct
from opsin.layers.norm_act import get_norm_act_layer
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._model import Model

__all__ = ["DPN", "Config", "DualPathBlock"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """`k_sec` are blocks per stage, `inc_sec` the channels that a block of each stage appends."""

    k_sec: tuple[int, ...] = (3, 4, 20, 3)
    inc_sec: tuple[int, ...] = (16, 32, 24, 128)
    k_r: int = 96  # width of the 3x3 convolution in the first stage; doubles with each
    groups: int = 32  # of that convolution
    small: bool = False  # a quarter of the residual channels, and a 3x3 stem
    num_init_features: int = 64  # of the stem
    b: bool = False  # the last 1x1 convolution is two, one per path
    act_layer: Any = "relu"  # of stem and closing norm; the blocks, as published, have ReLU whatever this says
    norm_layer: Any = "batchnorm2d"


def norm_act(c: Config, chs: int, act_layer: Any = "relu") -> nn.Module:
    return get_norm_act_layer(c.norm_layer, {"eps": 1e-3})(chs, act_layer=act_layer)


class NormAct(nn.Module):
    """Norm and activation, under the name `bn`."""

    def __init__(self, chs: int, c: Config, act_layer: Any = "relu") -> None:
        super().__init__()
        self.bn = norm_act(c, chs, act_layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x)


class NormActConv(NormAct):
    """Norm, activation, convolution."""

    def __init__(
        self, in_chs: int, out_chs: int, c: Config, *, kernel_size: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(in_chs, c)
        self.conv = nn.Conv2d(in_chs, out_chs, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(super().forward(x))


class DualPathBlock(nn.Module):
    """1x1, 3x3, 1x1. Of the channels that come in, `res_chs` are added to and the others kept; `inc` new ones follow.

    The first block of a stage projects its input, to `res_chs` and two times `inc`, and may halve the size.
    """

    def __init__(
        self, in_chs: int, width: int, res_chs: int, inc: int, c: Config, *, project: bool = False, stride: int = 1
    ) -> None:
        super().__init__()
        self.res_chs = res_chs
        self.project = f"c1x1_w_s{stride}" if project else ""
        if project:
            self.add_module(self.project, NormActConv(in_chs, res_chs + 2 * inc, c, stride=stride))
        self.c1x1_a = NormActConv(in_chs, width, c)
        self.c3x3_b = NormActConv(width, width, c, kernel_size=3, stride=stride, groups=c.groups)
        self.split = c.b
        if c.b:
            self.c1x1_c: nn.Module = NormAct(width, c)
            self.c1x1_c1 = nn.Conv2d(width, res_chs, 1, bias=False)
            self.c1x1_c2 = nn.Conv2d(width, inc, 1, bias=False)
        else:
            self.c1x1_c = NormActConv(width, res_chs + inc, c)

    def forward(self, x: Tensor) -> Tensor:
        old = getattr(self, self.project)(x) if self.project else x
        new = self.c1x1_c(self.c3x3_b(self.c1x1_a(x)))
        if self.split:
            added, appended = self.c1x1_c1(new), self.c1x1_c2(new)
        else:
            added, appended = new[:, : self.res_chs], new[:, self.res_chs :]
        return torch.cat((old[:, : self.res_chs] + added, old[:, self.res_chs :], appended), 1)


class DPN(Model, config=Config):
    """Stem, four stages of dual path blocks, closing norm, pooled head that is a 1x1 convolution."""

    positional = ("k_sec", "inc_sec", "k_r", "groups", "num_classes", "in_chans")
    classifier_path = "classifier"
    first_conv = "features.conv1_1.conv"

    def build(self, c: Config) -> None:
        if len(c.k_sec) != len(c.inc_sec):
            raise ValueError(f"k_sec={c.k_sec}, inc_sec={c.inc_sec}: one per stage is needed")
        norm = get_norm_act_layer(c.norm_layer, {"eps": 1e-3})
        width = c.num_init_features
        options: dict[str, Any] = {"norm_layer": norm, "act_layer": c.act_layer}
        stem = ConvNormAct(c.in_chans, width, 3 if c.small else 7, 2, **options)
        self.features = nn.Sequential(OrderedDict(conv1_1=stem, conv1_pool=nn.MaxPool2d(3, 2, 1)))
        chain = [Stage(("features.conv1_1",), width, 2, checkpoint=False)]
        run = ["features.conv1_pool"]
        for i, (depth, inc) in enumerate(zip(c.k_sec, c.inc_sec, strict=True)):
            res_chs = 2**i * (64 if c.small else 256)
            for j in range(depth):
                first: dict[str, Any] = {} if j else {"project": True, "stride": 2 if i else 1}
                block = DualPathBlock(width, 2**i * c.k_r, res_chs, inc, c, **first)
                width = width + inc if j else res_chs + 3 * inc
                self.features.add_module(f"conv{i + 2}_{j + 1}", block)
                run.append(f"features.conv{i + 2}_{j + 1}")
            chain.append(Stage(tuple(run), width, 4 * 2**i))
            run = []
        self.features.add_module("conv5_bn_ac", NormAct(width, c, c.act_layer))
        self.chain = (*chain, Stage(("features.conv5_bn_ac",)))
        self.num_features = self.head_hidden_size = width
        self.build_head(c)

    def build_head(self, c: Config) -> None:
        self.global_pool = SelectAdaptivePool2d(pool_type=c.global_pool, flatten=bool(c.global_pool))
        width = self.num_features * self.global_pool.feat_mult()
        self.classifier = ConvClassifier(width, c.num_classes) if c.num_classes else nn.Identity()

    def init_module(self, module: nn.Module, name: str) -> bool:
        if not isinstance(module, nn.Conv2d):
            return False
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        return True


Small = partial(Config, small=True, num_init_features=10, k_r=128, inc_sec=(16, 32, 32, 64))
VARIANTS = {
    "dpn48b": Small(b=True, k_sec=(3, 4, 6, 3), act_layer="silu"),
    "dpn68": Small(k_sec=(3, 4, 12, 3)),
    "dpn68b": Small(b=True, k_sec=(3, 4, 12, 3)),
    "dpn92": Config(),
    "dpn98": Config(num_init_features=96, k_r=160, groups=40, k_sec=(3, 6, 20, 3), inc_sec=(16, 32, 32, 128)),
    "dpn107": Config(num_init_features=128, k_r=200, groups=50, k_sec=(4, 8, 20, 3), inc_sec=(20, 64, 64, 128)),
    "dpn131": Config(num_init_features=128, k_r=160, groups=40, k_sec=(4, 8, 28, 3), inc_sec=(16, 32, 32, 128)),
}

family = Family(DPN, VARIANTS, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
