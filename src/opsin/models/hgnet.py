"""PP-HGNet and PP-HGNetV2, networks of plain dense convolutions made for GPUs (PaddleClas, Apache 2.0).

A block keeps what leaves each of its convolutions and mixes all of it at the end (https://arxiv.org/abs/1904.09730).
V2 has a stem of two branches, depthwise convolutions in late stages, and in its small networks a learned scale and
shift behind activations (LAB, the learnable affine block).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError
from opsin.layers.drop import DropPath, drop_path_rates
from opsin.layers.pool import SelectAdaptivePool2d
from opsin.layers.weight_init import init_conv_net_
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._headed import HeadedModel

__all__ = ["Config", "HighPerfGpuNet"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """`cfg` has `stem_type` (v1 or v2), `stem_chs`, and a row for each of `stage1` to `stage4`, see `StageRow`."""

    cfg: Mapping[str, Any] = field(default_factory=dict)
    head_hidden_size: int | None = 2048  # width of the 1x1 convolution behind the pooling; None for none
    drop_path_rate: float = 0.0
    use_lab: bool = False


class StageRow(NamedTuple):
    """The figures of a stage, in the order in which they are written."""

    in_chs: int
    mid_chs: int  # of each convolution in a block
    out_chs: int
    depth: int
    downsample: bool
    light: bool  # pairs of 1x1 and depthwise convolutions instead of dense ones
    kernel: int
    layers: int  # convolutions in a block


class Lab(nn.Module):
    """One learned scale and one shift for the whole map."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(1))
        self.bias = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.bias


class ConvNormAct(nn.Module):
    """Convolution, batch norm, and where asked for ReLU and LAB."""

    def __init__(
        self, in_chs: int, out_chs: int, kernel: int = 1, stride: int = 1, *, groups: int = 1,
        padding: int | None = None, use_act: bool = True, use_lab: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        padding = (kernel - 1) // 2 if padding is None else padding
        self.conv = nn.Conv2d(in_chs, out_chs, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_chs)
        self.act = nn.ReLU() if use_act else nn.Identity()
        self.lab = Lab() if use_act and use_lab else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.lab(self.act(self.bn(self.conv(x))))


class LightConv(nn.Module):
    """A linear 1x1 convolution, then a depthwise one."""

    def __init__(self, in_chs: int, out_chs: int, kernel: int, use_lab: bool) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(in_chs, out_chs, use_act=False)
        self.conv2 = ConvNormAct(out_chs, out_chs, kernel, groups=out_chs, use_lab=use_lab)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class Squeeze(nn.Module):
    """Effective squeeze and excitation: each channel gated by a look at all channel means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv(x.mean((2, 3), keepdim=True)).sigmoid()


class StemV1(nn.Module):
    """3x3 convolutions and a max pool: stride 4."""

    def __init__(self, widths: tuple[int, ...], use_lab: bool) -> None:
        super().__init__()
        pairs = enumerate(pairwise(widths))
        self.stem = nn.Sequential(*(ConvNormAct(a, b, 3, 1 if i else 2, use_lab=use_lab) for i, (a, b) in pairs))
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.stem(x))


class StemV2(nn.Module):
    """Two 2x2 convolutions beside a max pool between strided 3x3 ones: stride 4."""

    def __init__(self, widths: tuple[int, ...], use_lab: bool) -> None:
        super().__init__()
        in_chs, mid_chs, out_chs = widths
        self.stem1 = ConvNormAct(in_chs, mid_chs, 3, 2, use_lab=use_lab)
        self.stem2a = ConvNormAct(mid_chs, mid_chs // 2, 2, padding=0, use_lab=use_lab)
        self.stem2b = ConvNormAct(mid_chs // 2, mid_chs, 2, padding=0, use_lab=use_lab)
        self.stem3 = ConvNormAct(2 * mid_chs, mid_chs, 3, 2, use_lab=use_lab)
        self.stem4 = ConvNormAct(mid_chs, out_chs, use_lab=use_lab)
        self.pool = nn.MaxPool2d(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.stem1(x), (0, 1, 0, 1))  # what the even windows lose, at the right and at the bottom
        deep = self.stem2b(F.pad(self.stem2a(x), (0, 1, 0, 1)))
        return self.stem4(self.stem3(torch.cat((self.pool(x), deep), 1)))


class Block(nn.Module):
    """Convolutions in a row; the input and what leaves each are mixed by 1x1 convolutions."""

    def __init__(self, in_chs: int, row: StageRow, c: Config, *, residual: bool, drop_path: float) -> None:
        super().__init__()
        widths = (in_chs,) + (row.mid_chs,) * row.layers
        if row.light:
            layers: Any = (LightConv(a, b, row.kernel, c.use_lab) for a, b in pairwise(widths))
        else:
            layers = (ConvNormAct(a, b, row.kernel, use_lab=c.use_lab) for a, b in pairwise(widths))
        self.layers = nn.ModuleList(layers)
        total, out = sum(widths), row.out_chs
        if c.cfg["stem_type"] == "v1":
            self.aggregation = nn.Sequential(ConvNormAct(total, out, use_lab=c.use_lab), Squeeze(out))
        else:
            squeeze = ConvNormAct(total, out // 2, use_lab=c.use_lab)
            self.aggregation = nn.Sequential(squeeze, ConvNormAct(out // 2, out, use_lab=c.use_lab))
        self.residual = residual
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        kept = [x]
        for layer in self.layers:
            kept.append(layer(kept[-1]))
        out = self.aggregation(torch.cat(kept, 1))
        return self.drop_path(out) + x if self.residual else out


class Head(nn.Module):
    """Pool, a 1x1 convolution with ReLU, drop out, classify. `(B, C, H, W)` to `(B, num_classes)`."""

    def __init__(self, in_chs: int, c: Config) -> None:
        super().__init__()
        self.in_chs, self.hidden, self.use_lab = in_chs, c.head_hidden_size, c.use_lab
        self.num_features = c.head_hidden_size or in_chs
        self.drop = nn.Dropout(c.drop_rate)
        self.last_conv: nn.Module = nn.Identity()
        if self.hidden:
            conv = nn.Conv2d(in_chs, self.hidden, 1, bias=False)
            self.last_conv = nn.Sequential(conv, nn.ReLU(), *([Lab()] if c.use_lab else []))
        self.reset(c.num_classes, c.global_pool)

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """A fresh classifier for `num_classes` (0: none), and another pooling if named."""
        if pool_type is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=pool_type)
            if self.global_pool.feat_mult() != 1:
                raise UnknownArgumentError(
                    f"global_pool={pool_type!r} changes the width of the map: use avg, max, avgmax"
                )
        if num_classes and not self.global_pool.pool_type:
            raise ValueError("global_pool='' leaves a map: it needs num_classes=0")
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(self.last_conv(self.global_pool(x)))
        x = x.flatten(1) if self.global_pool.pool_type else x
        return x if pre_logits else self.fc(x)


class HighPerfGpuNet(HeadedModel, config=Config):
    """Stem of stride 4, four stages with a strided depthwise convolution in front of the later ones, pooled head."""

    positional = ("cfg", "in_chans", "num_classes", "global_pool", "head_hidden_size")
    first_conv = "stem.stem1.conv"

    def build(self, c: Config) -> None:
        kind = c.cfg.get("stem_type")
        if kind not in ("v1", "v2"):
            raise UnknownArgumentError(f"cfg['stem_type']={kind!r}: v1 or v2")
        if kind == "v1":
            self.first_conv = "stem.stem.0.conv"  # type: ignore[misc]
        widths = (c.in_chans, *c.cfg["stem_chs"])
        self.stem = (StemV1 if kind == "v1" else StemV2)(widths, c.use_lab)
        rows = [StageRow(*c.cfg[f"stage{i}"]) for i in range(1, 5)]
        chain, stride = [Stage(("stem",), checkpoint=False)], 4
        self.stages = nn.Sequential()
        rates = drop_path_rates(c.drop_path_rate, tuple(row.depth for row in rows))
        for i, (row, drops) in enumerate(zip(rows, rates, strict=True)):
            stage = nn.Sequential()
            if row.downsample:
                stride *= 2
                down = ConvNormAct(row.in_chs, row.in_chs, 3, 2, groups=row.in_chs, use_act=False)
                stage.add_module("downsample", down)
            inputs = [row.in_chs] + [row.out_chs] * (row.depth - 1)
            pairs = enumerate(zip(inputs, drops, strict=True))
            blocks = (Block(width, row, c, residual=j > 0, drop_path=drop) for j, (width, drop) in pairs)
            stage.add_module("blocks", nn.Sequential(*blocks))
            self.stages.append(stage)
            chain.append(Stage((f"stages.{i}",), row.out_chs, stride))
        self.num_features = rows[-1].out_chs
        self.chain = tuple(chain)
        self.build_head(c)
        self.head_hidden_size = self.head.num_features

    def make_head(self, config: Any) -> Head:
        return Head(self.num_features, config)

    def remove_head(self) -> None:
        super().remove_head()
        self.head.last_conv = nn.Identity()

    def init_module(self, module: nn.Module, name: str) -> bool:
        if isinstance(module, nn.Linear):
            return False
        return init_conv_net_(module)


def v1(stem: tuple[int, ...], *stages: tuple[int, int, int, int], layers: int) -> Config:
    """Stages as (in, middle, out, depth); all of dense 3x3 convolutions."""
    rows = {f"stage{i + 1}": (*row, i > 0, False, 3, layers) for i, row in enumerate(stages)}
    return Config(cfg={"stem_type": "v1", "stem_chs": stem, **rows})


def v2(stem: tuple[int, ...], *stages: tuple[int, int, int, int], layers: int, use_lab: bool = False) -> Config:
    """Stages as (in, middle, out, depth); the last two are light, with 5x5 kernels."""
    rows = {f"stage{i + 1}": (*row, i > 0, i > 1, 5 if i > 1 else 3, layers) for i, row in enumerate(stages)}
    return Config(cfg={"stem_type": "v2", "stem_chs": stem, **rows}, use_lab=use_lab)


# fmt: off
VARIANTS = {
    "hgnet_base": v1((96, 96, 160), (160, 192, 320, 1), (320, 224, 640, 2), (640, 256, 960, 3), (960, 288, 1280, 2),
                     layers=7),
    "hgnet_small": v1((64, 64, 128), (128, 128, 256, 1), (256, 160, 512, 1), (512, 192, 768, 2), (768, 224, 1024, 1),
                      layers=6),
    "hgnet_tiny": v1((48, 48, 96), (96, 96, 224, 1), (224, 128, 448, 1), (448, 160, 512, 2), (512, 192, 768, 1),
                     layers=5),
    "hgnetv2_b0": v2((16, 16), (16, 16, 64, 1), (64, 32, 256, 1), (256, 64, 512, 2), (512, 128, 1024, 1),
                     layers=3, use_lab=True),
    "hgnetv2_b1": v2((24, 32), (32, 32, 64, 1), (64, 48, 256, 1), (256, 96, 512, 2), (512, 192, 1024, 1),
                     layers=3, use_lab=True),
    "hgnetv2_b2": v2((24, 32), (32, 32, 96, 1), (96, 64, 384, 1), (384, 128, 768, 3), (768, 256, 1536, 1),
                     layers=4, use_lab=True),
    "hgnetv2_b3": v2((24, 32), (32, 32, 128, 1), (128, 64, 512, 1), (512, 128, 1024, 3), (1024, 256, 2048, 1),
                     layers=5, use_lab=True),
    "hgnetv2_b4": v2((32, 48), (48, 48, 128, 1), (128, 96, 512, 1), (512, 192, 1024, 3), (1024, 384, 2048, 1),
                     layers=6),
    "hgnetv2_b5": v2((32, 64), (64, 64, 128, 1), (128, 128, 512, 2), (512, 256, 1024, 5), (1024, 512, 2048, 2),
                     layers=6),
    "hgnetv2_b6": v2((48, 96), (96, 96, 192, 2), (192, 192, 512, 3), (512, 384, 1024, 6), (1024, 768, 2048, 3),
                     layers=6),
}
# fmt: on

family = Family(HighPerfGpuNet, VARIANTS, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
