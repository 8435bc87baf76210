"""ResNet V2, with norm and activation ahead of the convolutions (https://arxiv.org/abs/1603.05027).

As Big Transfer (https://arxiv.org/abs/1912.11370) with group norm and standardised weights, as a trunk of hybrid vision
transformers (`preact=False`), and with batch norm, EvoNorm (https://arxiv.org/abs/2004.02967) or filter response norm
(https://arxiv.org/abs/1911.09737) by training in timm.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from opsin.errors import UnknownArgumentError
from opsin.layers import ClassifierHead, DropPath, create_act, drop_path_rates, make_divisible
from opsin.layers.norm_act import get_norm_act_layer
from opsin.layers.pool import MaxPool2dSame, avg_pool_down
from opsin.layers.std_conv import get_conv_layer
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._model import Model

__all__ = ["Bottleneck", "Config", "PreActBasic", "PreActBottleneck", "ResNetV2"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """`layers` are blocks per stage, `channels` what leaves each stage (before `width_factor`)."""

    layers: tuple[int, ...] = ()
    channels: tuple[int, ...] = (256, 512, 1024, 2048)
    output_stride: int = 32  # 8 or 16 trade stride for dilation
    width_factor: int = 1
    stem_chs: int = 64
    stem_type: str = ""  # 7x7, or three 3x3: "deep", "tiered"; "fixed" and "same" name the padding of the pool behind
    avg_down: bool = False  # average pool, then 1x1 convolution, in the shortcut
    preact: bool = True
    basic: bool = False  # blocks of two 3x3 convolutions, not bottlenecks
    bottle_ratio: float = 0.25
    act_layer: Any = "relu"
    norm_layer: Any = "groupnorm"
    conv_layer: Any = "std_conv2d"  # or "conv2d", "std_conv2d_same", or a class
    conv_args: Mapping[str, Any] = field(default_factory=dict)  # further arguments of the convolutions, such as eps
    drop_path_rate: float = 0.0
    zero_init_last: bool = False  # the residual branch starts at zero

    def conv(self) -> Callable[..., Any]:
        return get_conv_layer(self.conv_layer, **self.conv_args)

    def norm(self) -> Callable[..., Any]:
        return partial(get_norm_act_layer(self.norm_layer), act_layer=self.act_layer)


class Downsample(nn.Module):
    """The projection of a shortcut: 1x1 convolution, strided or behind an average pool; normed unless `preact`."""

    def __init__(self, in_chs: int, out_chs: int, c: Config, stride: int, dilation: int) -> None:
        super().__init__()
        self.pool = avg_pool_down(stride, dilation) if c.avg_down else nn.Identity()
        self.conv = c.conv()(in_chs, out_chs, 1, stride=1 if c.avg_down else stride)
        self.norm = nn.Identity() if c.preact else c.norm()(out_chs, apply_act=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.pool(x)))


class PreActBottleneck(nn.Module):
    """1x1, 3x3, 1x1, each behind a norm and activation; the shortcut's projection sees what the first norm gave."""

    def __init__(
        self, in_chs: int, out_chs: int, c: Config, *, stride: int = 1, dilation: int = 1, first_dilation: int = 1,
        first: bool = False, drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        conv, norm, mid_chs = c.conv(), c.norm(), make_divisible(out_chs * c.bottle_ratio)
        self.downsample = Downsample(in_chs, out_chs, c, stride, dilation) if first else None
        self.norm1 = norm(in_chs)
        self.conv1 = conv(in_chs, mid_chs, 1)
        self.norm2 = norm(mid_chs)
        self.conv2 = conv(mid_chs, mid_chs, 3, stride=stride, dilation=first_dilation)
        self.norm3 = norm(mid_chs)
        self.conv3 = conv(mid_chs, out_chs, 1)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.conv3.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.conv2(self.norm2(self.conv1(y)))
        return self.drop_path(self.conv3(self.norm3(y))) + shortcut


class PreActBasic(nn.Module):
    """Two 3x3 convolutions, each behind a norm and activation."""

    def __init__(
        self, in_chs: int, out_chs: int, c: Config, *, stride: int = 1, dilation: int = 1, first_dilation: int = 1,
        first: bool = False, drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        conv, norm, mid_chs = c.conv(), c.norm(), make_divisible(out_chs * c.bottle_ratio)
        changes = first and (stride != 1 or first_dilation != dilation or in_chs != out_chs)
        self.downsample = Downsample(in_chs, out_chs, c, stride, dilation) if changes else None
        self.norm1 = norm(in_chs)
        self.conv1 = conv(in_chs, mid_chs, 3, stride=stride, dilation=first_dilation)
        self.norm2 = norm(mid_chs)
        self.conv2 = conv(mid_chs, out_chs, 3, dilation=dilation)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        shortcut = x if self.downsample is None else self.downsample(y)
        return self.drop_path(self.conv2(self.norm2(self.conv1(y)))) + shortcut


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1, each before its norm, as in the first ResNet; for hybrid vision transformers."""

    def __init__(
        self, in_chs: int, out_chs: int, c: Config, *, stride: int = 1, dilation: int = 1, first_dilation: int = 1,
        first: bool = False, drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        conv, norm, mid_chs = c.conv(), c.norm(), make_divisible(out_chs * c.bottle_ratio)
        self.downsample = Downsample(in_chs, out_chs, c, stride, dilation) if first else None
        self.conv1 = conv(in_chs, mid_chs, 1)
        self.norm1 = norm(mid_chs)
        self.conv2 = conv(mid_chs, mid_chs, 3, stride=stride, dilation=first_dilation)
        self.norm2 = norm(mid_chs)
        self.conv3 = conv(mid_chs, out_chs, 1)
        self.norm3 = norm(out_chs, apply_act=False)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.act3 = create_act(c.act_layer, inplace=True)

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.norm3.weight)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.norm2(self.conv2(self.norm1(self.conv1(x))))
        return self.act3(self.drop_path(self.norm3(self.conv3(y))) + shortcut)


STEMS = ("", "fixed", "same", "deep", "deep_fixed", "deep_same", "tiered")


def build_stem(c: Config, width: int) -> nn.Sequential:
    """Convolutions of stride 2, and a max pool of stride 2."""
    if c.stem_type not in STEMS:
        raise UnknownArgumentError(f"stem_type={c.stem_type!r}: {', '.join(map(repr, STEMS))}")
    conv, norm = c.conv(), c.norm()
    stem: OrderedDict[str, nn.Module] = OrderedDict()
    if c.stem_type.startswith(("deep", "tiered")):
        first, second = 3 * width // 8 if c.stem_type == "tiered" else width // 2, width // 2
        stem["conv1"], stem["norm1"] = conv(c.in_chans, first, 3, stride=2), norm(first)
        stem["conv2"], stem["norm2"] = conv(first, second, 3), norm(second)
        stem["conv3"] = conv(second, width, 3)
        closing = "norm3"
    else:
        stem["conv"], closing = conv(c.in_chans, width, 7, stride=2), "norm"
    if not c.preact:
        stem[closing] = norm(width)
    if c.stem_type.endswith("fixed"):  # of BiT: zeros on all sides, where a pool would pad with minus infinity
        stem["pad"], stem["pool"] = nn.ConstantPad2d(1, 0.0), nn.MaxPool2d(3, 2)
    else:
        stem["pool"] = MaxPool2dSame(3, 2) if c.stem_type.endswith("same") else nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(stem)


class ResNetV2(Model, config=Config):
    """Stem, stages of pre-activated blocks, closing norm, pooled head that is a 1x1 convolution."""

    positional = ("layers", "channels", "num_classes", "in_chans", "global_pool", "output_stride")
    classifier_path = "head.fc"
    first_conv = "stem.conv"

    head: ClassifierHead

    def build(self, c: Config) -> None:
        if c.output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride={c.output_stride}: ResNetV2 has 8, 16 and 32")
        if c.basic and not c.preact:
            raise ValueError("basic blocks have their norms in front: leave preact=True")
        block: Any = PreActBasic if c.basic else PreActBottleneck if c.preact else Bottleneck
        width = make_divisible(c.stem_chs * c.width_factor)
        self.stem = build_stem(c, width)
        parts = [f"stem.{name}" for name, _ in self.stem.named_children()]
        stem, pool = [p for p in parts if "p" not in p[5:]], tuple(p for p in parts if "p" in p[5:])
        chain = [Stage(tuple(stem), width, 2, checkpoint=False)]
        self.stages = nn.Sequential()
        stride, dilation = 4, 1
        rates = drop_path_rates(c.drop_path_rate, tuple(c.layers))
        for i, (channels, drops) in enumerate(zip(c.channels, rates, strict=True)):
            out_chs, step = make_divisible(channels * c.width_factor), 2 if i else 1
            if stride >= c.output_stride:
                dilation, step = dilation * step, 1
            stride *= step
            first_dilation, blocks = 1 if dilation <= 2 else 2, nn.Sequential()
            for j, drop in enumerate(drops):
                spacing = {"stride": step, "dilation": dilation, "first_dilation": first_dilation}
                blocks.append(block(width, out_chs, c, first=j == 0, drop_path=drop, **spacing))
                width, step, first_dilation = out_chs, 1, dilation
            self.stages.append(nn.Sequential(OrderedDict(blocks=blocks)))
            chain.append(Stage((*(() if i else pool), f"stages.{i}"), width, stride))
        self.norm = c.norm()(width) if c.preact else nn.Identity()
        self.chain = (*chain, Stage(("norm",)))
        self.num_features = self.head_hidden_size = width
        self.build_head(c)

    def build_head(self, c: Config) -> None:
        if hasattr(self, "head"):
            self.head.reset(c.num_classes, c.global_pool)
        else:
            args: dict[str, Any] = {"pool_type": c.global_pool, "drop_rate": c.drop_rate, "use_conv": True}
            self.head = ClassifierHead(self.num_features, c.num_classes, **args)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)

    def forward_logits(self, embedding: Tensor) -> Tensor:
        return self.head.classify(embedding)

    def init_module(self, module: nn.Module, name: str) -> bool:
        if not isinstance(module, nn.Conv2d):
            return False
        if name == "head.fc":
            nn.init.normal_(module.weight, std=0.01)
        else:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        return True

    def init_last(self) -> None:
        if self.config.zero_init_last:
            for module in self.modules():
                if isinstance(module, PreActBasic | PreActBottleneck | Bottleneck):
                    module.zero_init_last()


# names in the authors' TensorFlow archives -> ours
NAMES = {
    "root_block/standardized_conv2d/kernel": "stem.conv.weight",
    "group_norm/gamma": "norm.weight",
    "group_norm/beta": "norm.bias",
    "head/conv2d/kernel": "head.fc.weight",
    "head/conv2d/bias": "head.fc.bias",
}
PARTS = {
    "a/standardized_conv2d/kernel": "conv1.weight",
    "b/standardized_conv2d/kernel": "conv2.weight",
    "c/standardized_conv2d/kernel": "conv3.weight",
    "a/proj/standardized_conv2d/kernel": "downsample.conv.weight",
    "a/group_norm/gamma": "norm1.weight",
    "a/group_norm/beta": "norm1.bias",
    "b/group_norm/gamma": "norm2.weight",
    "b/group_norm/beta": "norm2.bias",
    "c/group_norm/gamma": "norm3.weight",
    "c/group_norm/beta": "norm3.bias",
}


def adapt(state_dict: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """Read the TensorFlow layout of Big Transfer (`.npz`): its names, and kernels as (h, w, in, out)."""
    prefix = "resnet/"
    if f"{prefix}root_block/standardized_conv2d/kernel" not in state_dict:
        return state_dict
    state = {our_name(k.removeprefix(prefix)): v for k, v in state_dict.items() if k.startswith(prefix)}
    return {k: v.permute(3, 2, 0, 1).contiguous() if v.ndim == 4 else v for k, v in state.items()}


def our_name(key: str) -> str:
    """Today's name of a tensor in the authors' archive; a name unknown here stays, for the loader to report."""
    if found := re.match(r"^block(\d)/unit(\d+)/(.+)$", key):
        return f"stages.{int(found[1]) - 1}.blocks.{int(found[2]) - 1}.{PARTS.get(found[3], found[3])}"
    return NAMES.get(key, key)


BN = partial(Config, conv_layer="conv2d", norm_layer="batchnorm2d")
Basic = partial(BN, channels=(64, 128, 256, 512), basic=True, bottle_ratio=1.0)
BiT = partial(Config, stem_type="fixed", conv_args={"eps": 1e-8})
D: dict[str, Any] = {"stem_type": "deep", "avg_down": True}

VARIANTS = {
    "resnetv2_18": Basic(layers=(2, 2, 2, 2)),
    "resnetv2_18d": Basic(layers=(2, 2, 2, 2), **D),
    "resnetv2_34": Basic(layers=(3, 4, 6, 3)),
    "resnetv2_34d": Basic(layers=(3, 4, 6, 3), **D),
    "resnetv2_50": BN(layers=(3, 4, 6, 3)),
    "resnetv2_50d": BN(layers=(3, 4, 6, 3), **D),
    "resnetv2_50d_evos": BN(layers=(3, 4, 6, 3), **D, norm_layer="evonorm2ds0"),
    "resnetv2_50d_frn": BN(layers=(3, 4, 6, 3), **D, norm_layer="filterresponsenormtlu2d"),
    "resnetv2_50d_gn": BN(layers=(3, 4, 6, 3), **D, norm_layer="groupnorm"),
    "resnetv2_50t": BN(layers=(3, 4, 6, 3), stem_type="tiered", avg_down=True),
    "resnetv2_50x1_bit": BiT(layers=(3, 4, 6, 3)),
    "resnetv2_50x3_bit": BiT(layers=(3, 4, 6, 3), width_factor=3),
    "resnetv2_101": BN(layers=(3, 4, 23, 3)),
    "resnetv2_101d": BN(layers=(3, 4, 23, 3), **D),
    "resnetv2_101x1_bit": BiT(layers=(3, 4, 23, 3)),
    "resnetv2_101x3_bit": BiT(layers=(3, 4, 23, 3), width_factor=3),
    "resnetv2_152": BN(layers=(3, 8, 36, 3)),
    "resnetv2_152d": BN(layers=(3, 8, 36, 3), **D),
    "resnetv2_152x2_bit": BiT(layers=(3, 8, 36, 3), width_factor=2),
    "resnetv2_152x4_bit": BiT(layers=(3, 8, 36, 3), width_factor=4),
}

family = Family(ResNetV2, VARIANTS, adapt=adapt, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
