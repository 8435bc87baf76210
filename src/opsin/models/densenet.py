"""DenseNet (https://arxiv.org/abs/1608.06993): every layer reads the maps of all layers before it in its block."""

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from opsin.layers import create_aa
from opsin.layers.norm_act import get_norm_act_layer
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._model import Model

__all__ = ["Config", "DenseLayer", "DenseNet"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """`block_config` are layers per block; each adds `growth_rate` channels. The stem has twice as many."""

    growth_rate: int = 32
    block_config: tuple[int, ...] = (6, 12, 24, 16)
    bn_size: int = 4  # width of the bottleneck, in growth rates
    stem_type: str = ""  # "", "deep" (three 3x3) or "deep_tiered" (the first two narrower)
    act_layer: Any = "relu"
    norm_layer: Any = "batchnorm2d"
    aa_layer: Any = None  # anti-aliased downsampling
    aa_stem_only: bool = True  # in the stem only, not in the transitions
    proj_drop_rate: float = 0.0  # dropout behind each layer
    memory_efficient: bool = False  # compute concatenation and bottleneck again in the backward pass


def norm_act(c: Config, chs: int) -> nn.Module:
    return get_norm_act_layer(c.norm_layer)(chs, act_layer=c.act_layer)


class DenseLayer(nn.Module):
    """1x1 bottleneck and 3x3, each behind a norm; its output is put behind its input."""

    def __init__(self, in_chs: int, c: Config) -> None:
        super().__init__()
        mid_chs = c.bn_size * c.growth_rate
        self.norm1 = norm_act(c, in_chs)
        self.conv1 = nn.Conv2d(in_chs, mid_chs, 1, bias=False)
        self.norm2 = norm_act(c, mid_chs)
        self.conv2 = nn.Conv2d(mid_chs, c.growth_rate, 3, 1, 1, bias=False)
        self.drop_rate = c.proj_drop_rate
        self.memory_efficient = c.memory_efficient

    def bottleneck(self, x: Tensor) -> Tensor:
        return self.conv1(self.norm1(x))

    def forward(self, x: Tensor) -> Tensor:
        if self.memory_efficient and x.requires_grad:
            y = checkpoint(self.bottleneck, x, use_reentrant=False)
        else:
            y = self.bottleneck(x)
        y = self.conv2(self.norm2(y))
        return torch.cat((x, F.dropout(y, self.drop_rate, self.training)), 1)


def transition(in_chs: int, out_chs: int, c: Config) -> nn.Sequential:
    """Norm, 1x1 convolution, half the size."""
    pool = nn.AvgPool2d(2) if c.aa_stem_only or not c.aa_layer else create_aa(c.aa_layer, out_chs)
    conv = nn.Conv2d(in_chs, out_chs, 1, bias=False)
    return nn.Sequential(OrderedDict(norm=norm_act(c, in_chs), conv=conv, pool=pool))


class DenseNet(Model, config=Config):
    """Stem, dense blocks with transitions between them, a closing norm, pooled linear head."""

    positional = ("growth_rate", "block_config", "num_classes", "in_chans", "global_pool")
    classifier_path = "classifier"
    first_conv = "features.conv0"

    def build(self, c: Config) -> None:
        self.features = nn.Sequential(OrderedDict())
        width = 2 * c.growth_rate
        stem = tuple(f"features.{name}" for name in self.build_stem(c, width))
        chain = [Stage(stem, width, 2, checkpoint=False)]
        before, stride, last = "pool0", 4, len(c.block_config)
        for i, depth in enumerate(c.block_config, 1):
            layers = {f"denselayer{j + 1}": DenseLayer(width + j * c.growth_rate, c) for j in range(depth)}
            self.features.add_module(f"denseblock{i}", nn.Sequential(OrderedDict(layers)))
            width += depth * c.growth_rate
            run = (f"features.{before}", f"features.denseblock{i}")
            if i < last:
                chain.append(Stage(run, width, stride))
                before, stride = f"transition{i}", 2 * stride
                self.features.add_module(before, transition(width, width // 2, c))
                width //= 2
            else:
                self.features.add_module("norm5", norm_act(c, width))
                chain.append(Stage((*run, "features.norm5"), width, stride))
        self.chain = tuple(chain)
        self.num_features = self.head_hidden_size = width
        self.build_head(c)

    def build_stem(self, c: Config, width: int) -> list[str]:
        """Stride 2, then `pool0`; returns the names of what comes before the pool."""
        if c.stem_type not in ("", "deep", "deep_tiered"):
            raise ValueError(f"stem_type={c.stem_type!r}: '', 'deep' or 'deep_tiered'")
        quarter = c.growth_rate // 4
        first, second = (3 * quarter, 6 * quarter) if c.stem_type == "deep_tiered" else (c.growth_rate, c.growth_rate)
        names, in_chs = [], c.in_chans
        for i, chs in enumerate((first, second, width) if c.stem_type else (width,)):
            kernel = 3 if c.stem_type else 7
            conv = nn.Conv2d(in_chs, chs, kernel, 1 if i else 2, kernel // 2, bias=False)
            self.features.add_module(f"conv{i}", conv)
            self.features.add_module(f"norm{i}", norm_act(c, chs))
            names += [f"conv{i}", f"norm{i}"]
            in_chs = chs
        pool: nn.Module = nn.MaxPool2d(3, 2, 1)
        if c.aa_layer:
            pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), create_aa(c.aa_layer, width))
        self.features.add_module("pool0", pool)
        return names

    def init_module(self, module: nn.Module, name: str) -> bool:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Linear):
            module.reset_parameters()
            nn.init.zeros_(module.bias)
        else:
            return False
        return True


def adapt(state_dict: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """The older names of torchvision's files: `denselayer1.norm.1` for `denselayer1.norm1`."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", k): v for k, v in state_dict.items()}


VARIANTS = {
    "densenet121": Config(),
    "densenet121d": Config(stem_type="deep"),
    "densenet161": Config(growth_rate=48, block_config=(6, 12, 36, 24)),
    "densenet169": Config(block_config=(6, 12, 32, 32)),
    "densenet201": Config(block_config=(6, 12, 48, 32)),
    "densenet264": Config(growth_rate=48, block_config=(6, 12, 64, 48)),
    "densenet264d": Config(growth_rate=48, block_config=(6, 12, 64, 48), stem_type="deep"),
    "densenetblur121d": Config(stem_type="deep", aa_layer="blur"),
}

family = Family(DenseNet, VARIANTS, adapt=adapt, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
