"""ResNet and its descendants.

ResNet (https://arxiv.org/abs/1512.03385), ResNeXt (https://arxiv.org/abs/1611.05431), wide ResNet
(https://arxiv.org/abs/1605.07146), SENet (https://arxiv.org/abs/1709.01507), ECA-Net (https://arxiv.org/abs/1910.03151),
the stems and shortcuts of "Bag of Tricks" (https://arxiv.org/abs/1812.01187), anti-aliasing
(https://arxiv.org/abs/1904.11486), ResNet-RS (https://arxiv.org/abs/2103.07579).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, did_you_mean
from opsin.layers import (
    DropPath,
    create_aa,
    create_act,
    create_attn,
    drop_path_rates,
    get_act_layer,
    get_norm_layer,
)
from opsin.layers.pool import avg_pool_down
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._model import Model
from opsin.models._pruning import apply_pruning

__all__ = ["BasicBlock", "Bottleneck", "Config", "ResNet", "ResidualBlock"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """`block` is BasicBlock or Bottleneck (one, or one per stage); `layers` the blocks per stage."""

    block: Any = None
    layers: tuple[int, ...] = ()
    channels: tuple[int, ...] = (64, 128, 256, 512)  # base width of each stage
    cardinality: int = 1  # groups of the 3x3 convolution
    base_width: int = 64  # width per group where a stage has 64 channels
    output_stride: int = 32  # 8 or 16 trade stride for dilation
    stem_width: int = 64
    stem_type: str = ""  # "", "deep" (three 3x3) or "deep_tiered" (the first one narrower)
    replace_stem_pool: bool = False  # a strided convolution instead of the max pool
    block_reduce_first: int = 1  # divides the width of a block's first convolution
    down_kernel_size: int = 1
    avg_down: bool = False  # average pool, then 1x1 convolution, in the shortcut
    act_layer: Any = "relu"
    norm_layer: Any = "batchnorm2d"
    aa_layer: Any = None  # anti-aliased downsampling: "avg", "blur"
    drop_path_rate: float = 0.0
    zero_init_last: bool = True  # the last norm of each block starts at zero
    block_args: Mapping[str, Any] = field(default_factory=dict)  # attn_layer: "se", "eca" or a class; attn_args for it
    pruned: str = ""  # name of the table of widths this network was pruned to


class ResidualBlock(nn.Module):
    """What both blocks share: shortcut, channel attention, stochastic depth, and the last norm to start at zero.

    A kind of block says in `build` what its parts are; arguments of its own come in there.
    """

    expansion = 1
    last_act: ClassVar[str] = "act"  # the name of the activation behind the sum

    def __init__(
        self, inplanes: int, planes: int, stride: int = 1, downsample: nn.Module | None = None, cardinality: int = 1,
        base_width: int = 64, reduce_first: int = 1, dilation: int = 1, first_dilation: int | None = None,
        act_layer: Any = "relu", norm_layer: Any = "batchnorm2d", attn_layer: Any = None, aa_layer: Any = None,
        drop_path: nn.Module | None = None, *, attn_args: Mapping[str, Any] | None = None, **own: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        c = Config(
            cardinality=cardinality, base_width=base_width, block_reduce_first=reduce_first, act_layer=act_layer,
            norm_layer=norm_layer, aa_layer=aa_layer,
        )  # fmt: skip
        self.stride, self.dilation = stride, dilation
        spacing = {"stride": stride, "dilation": dilation, "first_dilation": first_dilation or dilation}
        self.build(inplanes, planes, c, **spacing, **own)
        self.se = create_attn(attn_layer, planes * self.expansion, **(attn_args or {}))
        self.downsample = downsample
        self.add_module(self.last_act, create_act(act_layer, inplace=True))
        self.drop_path = nn.Identity() if drop_path is None else drop_path

    def build(self, *args: Any, **kwargs: Any) -> None:
        """Of `in_chs`, `planes` and figures `c`; by name `stride`, `dilation`, `first_dilation` and the block's own."""
        raise NotImplementedError("BasicBlock and Bottleneck say what they are made of")

    def residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError("BasicBlock and Bottleneck say what the residual branch is")

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.residual(x)
        if self.se is not None:
            x = self.se(x)
        return getattr(self, self.last_act)(self.drop_path(x).add_(shortcut))


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions."""

    last_act = "act2"

    def build(self, in_chs: int, planes: int, c: Config, *, stride: int, dilation: int, first_dilation: int) -> None:
        if c.cardinality != 1 or c.base_width != 64:
            raise ValueError("BasicBlock has cardinality 1 and base_width 64; use Bottleneck for others")
        norm = get_norm_layer(c.norm_layer)
        mid_chs = planes // c.block_reduce_first
        aa = bool(c.aa_layer) and (stride == 2 or first_dilation != dilation)
        self.conv1 = conv3x3(in_chs, mid_chs, stride=1 if aa else stride, dilation=first_dilation)
        self.bn1 = norm(mid_chs)
        self.act1 = create_act(c.act_layer, inplace=True)
        self.aa = create_aa(c.aa_layer, mid_chs, stride=stride, enable=aa)
        self.conv2 = conv3x3(mid_chs, planes, dilation=dilation)
        self.bn2 = norm(planes)

    def residual(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.aa(self.act1(self.bn1(self.conv1(x))))))

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.bn2.weight)  # type: ignore[arg-type]


class Bottleneck(ResidualBlock):
    """1x1, 3x3 (grouped, strided), 1x1 with four times the channels."""

    expansion = 4
    last_act = "act3"

    def build(self, in_chs: int, planes: int, c: Config, *, stride: int, dilation: int, first_dilation: int) -> None:
        norm = get_norm_layer(c.norm_layer)
        width = planes * c.base_width // 64 * c.cardinality
        first, out_chs = width // c.block_reduce_first, planes * self.expansion
        aa = bool(c.aa_layer) and (stride == 2 or first_dilation != dilation)
        self.conv1 = nn.Conv2d(in_chs, first, 1, bias=False)
        self.bn1 = norm(first)
        self.act1 = create_act(c.act_layer, inplace=True)
        self.conv2 = conv3x3(first, width, stride=1 if aa else stride, dilation=first_dilation, groups=c.cardinality)
        self.bn2 = norm(width)
        self.act2 = create_act(c.act_layer, inplace=True)
        self.aa = create_aa(c.aa_layer, width, stride=stride, enable=aa)
        self.conv3 = nn.Conv2d(width, out_chs, 1, bias=False)
        self.bn3 = norm(out_chs)

    def residual(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.aa(self.act2(self.bn2(self.conv2(x))))
        return self.bn3(self.conv3(x))

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.bn3.weight)  # type: ignore[arg-type]


def conv3x3(in_chs: int, out_chs: int, *, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_chs, out_chs, 3, stride, dilation, dilation, groups, bias=False)


def shortcut(in_chs: int, out_chs: int, c: Config, stride: int, dilation: int, first_dilation: int) -> nn.Sequential:
    """The projection of a block that changes stride or channels."""
    norm = get_norm_layer(c.norm_layer)
    if c.avg_down:
        pool = avg_pool_down(stride, dilation)
        return nn.Sequential(pool, nn.Conv2d(in_chs, out_chs, 1, bias=False), norm(out_chs))
    kernel = 1 if stride == 1 and dilation == 1 else c.down_kernel_size
    spread = first_dilation if kernel > 1 else 1
    pad = spread * (kernel - 1) // 2
    conv = nn.Conv2d(in_chs, out_chs, kernel, stride, pad, spread, bias=False)
    return nn.Sequential(conv, norm(out_chs))


class ResNet(Model, config=Config):
    """Stem, four stages of residual blocks, pooled linear head."""

    blocks: ClassVar[Mapping[str, type[ResidualBlock]]] = {"BasicBlock": BasicBlock, "Bottleneck": Bottleneck}
    positional = ("block", "layers", "num_classes", "in_chans", "output_stride", "global_pool")

    def build(self, c: Config) -> None:
        if c.output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride={c.output_stride}: ResNet has 8, 16 and 32")
        norm = get_norm_layer(c.norm_layer)
        width = self.build_stem(c)
        self.bn1 = norm(width)
        self.act1 = create_act(c.act_layer, inplace=True)
        self.maxpool = self.stem_pool(c, width)
        stages = [Stage(("conv1", "bn1", "act1"), width, 2, checkpoint=False)]
        blocks = c.block if isinstance(c.block, list | tuple) else [c.block] * len(c.layers)
        rates = drop_path_rates(c.drop_path_rate, tuple(c.layers))
        stride, dilation = 4, 1
        for i, (block, planes, drop) in enumerate(zip(blocks, c.channels, rates, strict=False)):
            step, first_dilation = 2 if i else 1, dilation
            if stride >= c.output_stride:
                dilation, step = dilation * step, 1
            stride *= step
            block = self.find_block(block)
            layer = self.build_stage(block, width, planes, c, step, dilation, first_dilation, drop)
            self.add_module(f"layer{i + 1}", layer)
            width = planes * block.expansion
            stages.append(Stage((*(("maxpool",) if i == 0 else ()), f"layer{i + 1}"), width, stride))
        self.num_features = self.head_hidden_size = width
        self.chain = tuple(stages)
        self.build_head(c)
        if c.pruned:
            apply_pruning(self, c.pruned)

    def find_block(self, block: str | type[ResidualBlock]) -> Any:
        """The block class of a name, or the class itself."""
        if not isinstance(block, str):
            return block
        if block not in self.blocks:
            near = did_you_mean(block, self.blocks)
            raise UnknownArgumentError(f"no block {block!r}.{near} Known: {', '.join(self.blocks)}")
        return self.blocks[block]

    def build_stem(self, c: Config) -> int:
        """Stride 2; returns the width."""
        if not c.stem_type:
            self.conv1: nn.Module = nn.Conv2d(c.in_chans, 64, 7, 2, 3, bias=False)
            return 64
        if c.stem_type not in ("deep", "deep_tiered"):
            raise ValueError(f"stem_type={c.stem_type!r}: '', 'deep' or 'deep_tiered'")
        norm, act = get_norm_layer(c.norm_layer), partial(create_act, c.act_layer, inplace=True)
        first, second = (3 * c.stem_width // 4 if c.stem_type == "deep_tiered" else c.stem_width), c.stem_width
        width = 2 * c.stem_width
        self.conv1 = nn.Sequential(
            conv3x3(c.in_chans, first, stride=2), norm(first), act(),
            conv3x3(first, second), norm(second), act(),
            conv3x3(second, width),
        )  # fmt: skip
        return width

    def stem_pool(self, c: Config, width: int) -> nn.Module:
        norm = get_norm_layer(c.norm_layer)
        if c.replace_stem_pool:
            aa = create_aa(c.aa_layer, width, stride=2) if c.aa_layer else None
            parts = [conv3x3(width, width, stride=1 if aa else 2), *([aa] if aa else []), norm(width)]
            return nn.Sequential(*parts, create_act(c.act_layer, inplace=True))
        if c.aa_layer in ("avg", nn.AvgPool2d):
            return nn.AvgPool2d(2)
        if c.aa_layer:
            return nn.Sequential(nn.MaxPool2d(3, 1, 1), create_aa(c.aa_layer, width))
        return nn.MaxPool2d(3, 2, 1)

    def build_stage(
        self, block: Any, in_chs: int, planes: int, c: Config, stride: int, dilation: int, first_dilation: int,
        drop: list[float],
    ) -> nn.Sequential:  # fmt: skip
        out_chs = planes * block.expansion
        figures: dict[str, Any] = {
            "cardinality": c.cardinality, "base_width": c.base_width, "reduce_first": c.block_reduce_first,
            "act_layer": get_act_layer(c.act_layer), "norm_layer": get_norm_layer(c.norm_layer),
            "aa_layer": c.aa_layer, **c.block_args,
        }  # fmt: skip
        blocks = []
        for i, rate in enumerate(drop):
            step, first = (stride, first_dilation) if i == 0 else (1, dilation)
            changes = i == 0 and (stride != 1 or in_chs != out_chs)
            down = shortcut(in_chs, out_chs, c, stride, dilation, first_dilation) if changes else None
            spacing = {"stride": step, "dilation": dilation, "first_dilation": first}
            drop_path = DropPath(rate) if rate else None
            blocks.append(block(in_chs, planes, downsample=down, drop_path=drop_path, **spacing, **figures))
            in_chs = out_chs
        return nn.Sequential(*blocks)

    def init_module(self, module: nn.Module, name: str) -> bool:
        if isinstance(module, nn.Conv2d) and ".se." not in name:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            return True
        return False

    def init_last(self) -> None:
        if self.config.zero_init_last:
            for module in self.modules():
                if isinstance(module, ResidualBlock):
                    module.zero_init_last()  # type: ignore[operator]


Basic, Bottle = partial(Config, block=BasicBlock), partial(Config, block=Bottleneck)
D: dict[str, Any] = {"stem_width": 32, "stem_type": "deep", "avg_down": True}  # ResNet-D
T: dict[str, Any] = {"stem_width": 32, "stem_type": "deep_tiered", "avg_down": True}
SE, ECA, SE_RS = {"attn_layer": "se"}, {"attn_layer": "eca"}, {"attn_layer": "se", "attn_args": {"rd_ratio": 0.25}}

VARIANTS = {
    "ecaresnet26t": Bottle(layers=(2, 2, 2, 2), **T, block_args=ECA),
    "ecaresnet18": Basic(layers=(2, 2, 2, 2), block_args=ECA),
    "ecaresnet50": Bottle(layers=(3, 4, 6, 3), block_args=ECA),
    "ecaresnet50d": Bottle(layers=(3, 4, 6, 3), **D, block_args=ECA),
    "ecaresnet50d_pruned": Bottle(layers=(3, 4, 6, 3), **D, pruned="ecaresnet50d_pruned", block_args=ECA),
    "ecaresnet50t": Bottle(layers=(3, 4, 6, 3), **T, block_args=ECA),
    "ecaresnet101d": Bottle(layers=(3, 4, 23, 3), **D, block_args=ECA),
    "ecaresnet101d_pruned": Bottle(layers=(3, 4, 23, 3), **D, pruned="ecaresnet101d_pruned", block_args=ECA),
    "ecaresnet200d": Bottle(layers=(3, 24, 36, 3), **D, block_args=ECA),
    "ecaresnet269d": Bottle(layers=(3, 30, 48, 8), **D, block_args=ECA),
    "ecaresnetlight": Bottle(layers=(1, 1, 11, 3), stem_width=32, avg_down=True, block_args=ECA),
    "ecaresnext26t_32x4d": Bottle(layers=(2, 2, 2, 2), **T, cardinality=32, base_width=4, block_args=ECA),
    "ecaresnext50t_32x4d": Bottle(layers=(3, 4, 6, 3), **T, cardinality=32, base_width=4, block_args=ECA),
    "resnet10t": Basic(layers=(1, 1, 1, 1), **T),
    "resnet14t": Bottle(layers=(1, 1, 1, 1), **T),
    "resnet18": Basic(layers=(2, 2, 2, 2)),
    "resnet18d": Basic(layers=(2, 2, 2, 2), **D),
    "resnet26": Bottle(layers=(2, 2, 2, 2)),
    "resnet26d": Bottle(layers=(2, 2, 2, 2), **D),
    "resnet26t": Bottle(layers=(2, 2, 2, 2), **T),
    "resnet34": Basic(layers=(3, 4, 6, 3)),
    "resnet34d": Basic(layers=(3, 4, 6, 3), **D),
    "resnet50": Bottle(layers=(3, 4, 6, 3)),
    "resnet50_gn": Bottle(layers=(3, 4, 6, 3), norm_layer="groupnorm"),
    "resnet50c": Bottle(layers=(3, 4, 6, 3), stem_width=32, stem_type="deep"),
    "resnet50d": Bottle(layers=(3, 4, 6, 3), **D),
    "resnet50s": Bottle(layers=(3, 4, 6, 3), stem_width=64, stem_type="deep"),
    "resnet50t": Bottle(layers=(3, 4, 6, 3), **T),
    "resnet101": Bottle(layers=(3, 4, 23, 3)),
    "resnet101c": Bottle(layers=(3, 4, 23, 3), stem_width=32, stem_type="deep"),
    "resnet101d": Bottle(layers=(3, 4, 23, 3), **D),
    "resnet101s": Bottle(layers=(3, 4, 23, 3), stem_width=64, stem_type="deep"),
    "resnet152": Bottle(layers=(3, 8, 36, 3)),
    "resnet152c": Bottle(layers=(3, 8, 36, 3), stem_width=32, stem_type="deep"),
    "resnet152d": Bottle(layers=(3, 8, 36, 3), **D),
    "resnet152s": Bottle(layers=(3, 8, 36, 3), stem_width=64, stem_type="deep"),
    "resnet200": Bottle(layers=(3, 24, 36, 3)),
    "resnet200d": Bottle(layers=(3, 24, 36, 3), **D),
    "resnetaa34d": Basic(layers=(3, 4, 6, 3), **D, aa_layer="avg"),
    "resnetaa50": Bottle(layers=(3, 4, 6, 3), aa_layer="avg"),
    "resnetaa50d": Bottle(layers=(3, 4, 6, 3), **D, aa_layer="avg"),
    "resnetaa101d": Bottle(layers=(3, 4, 23, 3), **D, aa_layer="avg"),
    "resnetblur18": Basic(layers=(2, 2, 2, 2), aa_layer="blur"),
    "resnetblur50": Bottle(layers=(3, 4, 6, 3), aa_layer="blur"),
    "resnetblur50d": Bottle(layers=(3, 4, 6, 3), **D, aa_layer="blur"),
    "resnetblur101d": Bottle(layers=(3, 4, 23, 3), **D, aa_layer="blur"),
    "resnetrs50": Bottle(layers=(3, 4, 6, 3), **D, replace_stem_pool=True, block_args=SE_RS),
    "resnetrs101": Bottle(layers=(3, 4, 23, 3), **D, replace_stem_pool=True, block_args=SE_RS),
    "resnetrs152": Bottle(layers=(3, 8, 36, 3), **D, replace_stem_pool=True, block_args=SE_RS),
    "resnetrs200": Bottle(layers=(3, 24, 36, 3), **D, replace_stem_pool=True, block_args=SE_RS),
    "resnetrs270": Bottle(layers=(4, 29, 53, 4), **D, replace_stem_pool=True, block_args=SE_RS),
    "resnetrs350": Bottle(layers=(4, 36, 72, 4), **D, replace_stem_pool=True, block_args=SE_RS),
    "resnetrs420": Bottle(layers=(4, 44, 87, 4), **D, replace_stem_pool=True, block_args=SE_RS),
    "resnext50_32x4d": Bottle(layers=(3, 4, 6, 3), cardinality=32, base_width=4),
    "resnext50d_32x4d": Bottle(layers=(3, 4, 6, 3), **D, cardinality=32, base_width=4),
    "resnext101_32x4d": Bottle(layers=(3, 4, 23, 3), cardinality=32, base_width=4),
    "resnext101_32x8d": Bottle(layers=(3, 4, 23, 3), cardinality=32, base_width=8),
    "resnext101_32x16d": Bottle(layers=(3, 4, 23, 3), cardinality=32, base_width=16),
    "resnext101_32x32d": Bottle(layers=(3, 4, 23, 3), cardinality=32, base_width=32),
    "resnext101_32x48d": Bottle(layers=(3, 4, 23, 3), cardinality=32, base_width=48),
    "resnext101_64x4d": Bottle(layers=(3, 4, 23, 3), cardinality=64, base_width=4),
    "senet154": Bottle(
        layers=(3, 8, 36, 3),
        cardinality=64,
        base_width=4,
        stem_type="deep",
        down_kernel_size=3,
        block_reduce_first=2,
        block_args=SE,
    ),
    "seresnet18": Basic(layers=(2, 2, 2, 2), block_args=SE),
    "seresnet34": Basic(layers=(3, 4, 6, 3), block_args=SE),
    "seresnet50": Bottle(layers=(3, 4, 6, 3), block_args=SE),
    "seresnet50t": Bottle(layers=(3, 4, 6, 3), **T, block_args=SE),
    "seresnet101": Bottle(layers=(3, 4, 23, 3), block_args=SE),
    "seresnet152": Bottle(layers=(3, 8, 36, 3), block_args=SE),
    "seresnet152d": Bottle(layers=(3, 8, 36, 3), **D, block_args=SE),
    "seresnet200d": Bottle(layers=(3, 24, 36, 3), **D, block_args=SE),
    "seresnet269d": Bottle(layers=(3, 30, 48, 8), **D, block_args=SE),
    "seresnetaa50d": Bottle(layers=(3, 4, 6, 3), **D, aa_layer="avg", block_args=SE),
    "seresnext26d_32x4d": Bottle(layers=(2, 2, 2, 2), **D, cardinality=32, base_width=4, block_args=SE),
    "seresnext26t_32x4d": Bottle(layers=(2, 2, 2, 2), **T, cardinality=32, base_width=4, block_args=SE),
    "seresnext50_32x4d": Bottle(layers=(3, 4, 6, 3), cardinality=32, base_width=4, block_args=SE),
    "seresnext101_32x4d": Bottle(layers=(3, 4, 23, 3), cardinality=32, base_width=4, block_args=SE),
    "seresnext101_32x8d": Bottle(layers=(3, 4, 23, 3), cardinality=32, base_width=8, block_args=SE),
    "seresnext101_64x4d": Bottle(layers=(3, 4, 23, 3), cardinality=64, base_width=4, block_args=SE),
    "seresnext101d_32x8d": Bottle(layers=(3, 4, 23, 3), **D, cardinality=32, base_width=8, block_args=SE),
    "seresnextaa101d_32x8d": Bottle(
        layers=(3, 4, 23, 3), **D, cardinality=32, base_width=8, aa_layer="avg", block_args=SE
    ),
    "seresnextaa201d_32x8d": Bottle(
        layers=(3, 24, 36, 4),
        cardinality=32,
        base_width=8,
        stem_width=64,
        stem_type="deep",
        avg_down=True,
        aa_layer="avg",
        block_args=SE,
    ),
    "test_resnet": Config(
        block=(BasicBlock, BasicBlock, Bottleneck, BasicBlock),
        layers=(1, 1, 1, 1),
        stem_width=16,
        stem_type="deep",
        avg_down=True,
        channels=(32, 48, 48, 96),
    ),
    "wide_resnet50_2": Bottle(layers=(3, 4, 6, 3), base_width=128),
    "wide_resnet101_2": Bottle(layers=(3, 4, 23, 3), base_width=128),
}

family = Family(ResNet, VARIANTS)
__getattr__ = family.module_getattr(__name__)
