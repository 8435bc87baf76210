"""RepViT (https://arxiv.org/abs/2307.09283): mobile networks in the order of transformers, with branches that merge."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opsin.layers import SelectAdaptivePool2d, SEModule, create_act, trunc_normal_
from opsin.layers.reparam import merge_branches
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._model import Model

__all__ = ["Config", "RepVit"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """`embed_dim` and `depth`: width and number of blocks of each stage."""

    embed_dim: tuple[int, ...] = (48,)
    depth: tuple[int, ...] = (2,)
    mlp_ratio: float = 2.0
    kernel_size: int = 3  # of the depthwise convolutions
    act_layer: Any = "gelu"
    distillation: bool = True  # a second head that learns from a teacher; the answer is the mean of both
    legacy: bool = False  # norms in each branch, as in the first edition of the paper


class ConvNorm(nn.Module):
    """Convolution that keeps the size (divided by `stride`), and norm."""

    def __init__(self, in_chs: int, out_chs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_chs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.c(x))


class RepVggDw(nn.Module):
    """Depthwise convolutions, a large and a 1x1 one, beside the input as it is."""

    def __init__(self, channels: int, kernel: int, legacy: bool) -> None:
        super().__init__()
        self.conv = ConvNorm(channels, channels, kernel, groups=channels)
        if legacy:
            self.conv1: Any = ConvNorm(channels, channels, groups=channels)
        else:
            self.conv1 = nn.Conv2d(channels, channels, 1, groups=channels)
        self.bn = nn.Identity() if legacy else nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x) + self.conv1(x) + x)

    def reparameterize(self) -> nn.Conv2d:
        """One convolution that does the same in evaluation."""
        legacy = isinstance(self.conv1, ConvNorm)
        small = (self.conv1.c, self.conv1.bn) if legacy else (self.conv1, None)
        merged = merge_branches([(self.conv.c, self.conv.bn), small, (None, None)])
        return merged if legacy else merge_branches([(merged, self.bn)])


class RepVitMlp(nn.Module):
    """1x1 convolutions to `hidden` channels and back."""

    def __init__(self, channels: int, hidden: int, act_layer: Any) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, hidden)
        self.act = create_act(act_layer)
        self.conv2 = ConvNorm(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.act(self.conv1(x)))


class RepVitBlock(nn.Module):
    """Mixes positions, then channels."""

    def __init__(self, channels: int, c: Config, *, squeeze: bool) -> None:
        super().__init__()
        self.token_mixer = RepVggDw(channels, c.kernel_size, c.legacy)
        self.se = SEModule(channels, 0.25) if squeeze else nn.Identity()
        self.channel_mixer = RepVitMlp(channels, int(channels * c.mlp_ratio), c.act_layer)

    def forward(self, x: Tensor) -> Tensor:
        x = self.se(self.token_mixer(x))
        return x + self.channel_mixer(x)


class RepVitDownsample(nn.Module):
    """A block, half the size, other channels, a residual MLP."""

    def __init__(self, in_chs: int, out_chs: int, c: Config) -> None:
        super().__init__()
        self.pre_block = RepVitBlock(in_chs, c, squeeze=False)
        self.spatial_downsample = ConvNorm(in_chs, in_chs, c.kernel_size, 2, in_chs)
        self.channel_downsample = ConvNorm(in_chs, out_chs)
        self.ffn = RepVitMlp(out_chs, int(out_chs * c.mlp_ratio), c.act_layer)

    def forward(self, x: Tensor) -> Tensor:
        x = self.channel_downsample(self.spatial_downsample(self.pre_block(x)))
        return x + self.ffn(x)


class NormLinear(nn.Module):
    """Batch norm of an embedding, and a linear layer."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(width)
        self.l = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.l(self.bn(x))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of one linear layer that does the same in evaluation."""
        bn: Any = self.bn
        scale = bn.weight.double() * torch.rsqrt(bn.running_var.double() + bn.eps)
        weight = self.l.weight.double()
        return weight * scale, self.l.bias.double() + weight @ (bn.bias.double() - bn.running_mean.double() * scale)


class RepVitClassifier(nn.Module):
    """One head, or the mean of two; while `distilled_training` is set, both apart in training mode."""

    def __init__(self, width: int, num_classes: int, *, distillation: bool, drop_rate: float) -> None:
        super().__init__()
        self.distilled_training = False
        self.head_drop = nn.Dropout(drop_rate)
        self.head = NormLinear(width, num_classes)
        self.head_dist = NormLinear(width, num_classes) if distillation else None

    def forward(self, x: Tensor) -> Any:
        x = self.head_drop(x)
        if self.head_dist is None:
            return self.head(x)
        logits = self.head(x), self.head_dist(x)
        return logits if self.distilled_training and self.training else (logits[0] + logits[1]) / 2

    @torch.no_grad()
    def reparameterize(self) -> nn.Linear:
        """One linear layer that does the same in evaluation."""
        heads = [self.head.folded()] + ([self.head_dist.folded()] if self.head_dist is not None else [])
        like = self.head.l
        merged = nn.Linear(like.in_features, like.out_features).to(device=like.weight.device, dtype=like.weight.dtype)
        merged.weight.copy_(torch.stack([weight for weight, _ in heads]).mean(0))
        merged.bias.copy_(torch.stack([bias for _, bias in heads]).mean(0))
        return merged.train(self.training).requires_grad_(like.weight.requires_grad)


class RepVit(Model, config=Config):
    """Stem of stride 4, stages of blocks, pooled head."""

    positional = ("in_chans",)
    classifier_path = ("head.head.l", "head.head_dist.l")
    first_conv = "stem.conv1.c"

    def build(self, c: Config) -> None:
        width = c.embed_dim[0]
        stem = {"conv1": ConvNorm(c.in_chans, width // 2, 3, 2), "act1": create_act(c.act_layer)}
        self.stem = nn.Sequential(OrderedDict(stem, conv2=ConvNorm(width // 2, width, 3, 2)))
        self.stages = nn.Sequential()
        chain = [Stage(("stem",), checkpoint=False)]
        for i, (dim, depth) in enumerate(zip(c.embed_dim, c.depth, strict=True)):
            down = RepVitDownsample(width, dim, c) if i else nn.Identity()
            blocks = nn.Sequential(*[RepVitBlock(dim, c, squeeze=j % 2 == 0) for j in range(depth)])
            self.stages.append(nn.Sequential(OrderedDict(downsample=down, blocks=blocks)))
            chain.append(Stage((f"stages.{i}",), dim, 4 * 2**i))
            width = dim
        self.num_features = self.head_hidden_size = width
        self.chain = tuple(chain)
        self.build_head(c)

    def build_head(self, c: Config) -> None:
        if c.num_classes and not c.global_pool:
            raise ValueError("global_pool='' leaves a map: it needs num_classes=0")
        self.global_pool = SelectAdaptivePool2d(pool_type=c.global_pool, flatten=bool(c.global_pool))
        width = self.num_features * self.global_pool.feat_mult()
        args: dict[str, Any] = {"distillation": c.distillation, "drop_rate": c.drop_rate}
        self.head = RepVitClassifier(width, c.num_classes, **args) if c.num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """The whole head: it gives the logits; Identity for `num_classes=0`."""
        return self.head

    def set_distilled_training(self, enable: bool = True) -> None:
        """Return both heads' logits apart while training."""
        if not isinstance(self.head, RepVitClassifier) or self.head.head_dist is None:
            raise ValueError("distilled training needs distillation=True and num_classes above 0")
        self.head.distilled_training = enable

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        x = self.global_pool(x)
        return x if pre_logits else self.head(x)

    def init_module(self, module: nn.Module, name: str) -> bool:
        if not isinstance(module, nn.Linear):
            return False
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
        return True

    def init_last(self) -> None:
        for module in self.modules():  # residual branches start at zero
            if isinstance(module, RepVitMlp):
                nn.init.zeros_(module.conv2.bn.weight)


VARIANTS = {
    "repvit_m0_9": Config(embed_dim=(48, 96, 192, 384), depth=(2, 2, 14, 2)),
    "repvit_m1": Config(embed_dim=(48, 96, 192, 384), depth=(2, 2, 14, 2), legacy=True),
    "repvit_m1_0": Config(embed_dim=(56, 112, 224, 448), depth=(2, 2, 14, 2)),
    "repvit_m1_1": Config(embed_dim=(64, 128, 256, 512), depth=(2, 2, 12, 2)),
    "repvit_m1_5": Config(embed_dim=(64, 128, 256, 512), depth=(4, 4, 24, 4)),
    "repvit_m2": Config(embed_dim=(64, 128, 256, 512), depth=(2, 2, 12, 2), legacy=True),
    "repvit_m2_3": Config(embed_dim=(80, 160, 320, 640), depth=(6, 6, 34, 2)),
    "repvit_m3": Config(embed_dim=(64, 128, 256, 512), depth=(4, 4, 18, 2), legacy=True),
}

family = Family(RepVit, VARIANTS, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
