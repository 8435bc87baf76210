"""Aligned Xception (https://arxiv.org/abs/1802.02611, https://arxiv.org/abs/1809.02983): deeper, strides instead of
pools, a norm behind each part of a separable convolution; and its form with norm and activation first."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from opsin.layers import DropPath, create_act, drop_path_rates, get_norm_layer
from opsin.layers.conv_norm_act import ConvNormAct
from opsin.layers.norm_act import get_norm_act_layer
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._headed import HeadedModel

__all__ = ["Config", "PreXceptionModule", "XceptionAligned", "XceptionModule"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """A block of `block_cfg` has `in_chs`, `out_chs` (one, or one for each of its three convolutions), `stride`, and
    may have `no_skip` (no shortcut) and `start_with_relu=False` (activations behind its convolutions, not before)."""

    block_cfg: Sequence[Mapping[str, Any]] = ()
    output_stride: int = 32  # 8 or 16 trade stride for dilation
    preact: bool = False  # norm and activation before each convolution
    act_layer: Any = "relu"
    norm_layer: Any = "batchnorm2d"
    norm_eps: float = 1e-3
    drop_path_rate: float = 0.0


def norm_act(c: Config) -> Any:
    return get_norm_act_layer(c.norm_layer, {"eps": c.norm_eps})


def depthwise(chs: int, stride: int, dilation: int) -> nn.Conv2d:
    return nn.Conv2d(chs, chs, 3, stride, dilation, dilation, groups=chs, bias=False)


class SeparableConv2d(nn.Sequential):
    """A 3x3 on each channel and 1x1 across channels, a norm behind each, and activations if `act`."""

    def __init__(self, in_chs: int, out_chs: int, stride: int, dilation: int, c: Config, *, act: bool) -> None:
        norm = partial(get_norm_layer(c.norm_layer), eps=c.norm_eps)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv_dw"] = depthwise(in_chs, stride, dilation)
        layers["bn_dw"] = norm(in_chs)
        layers["act_dw"] = create_act(c.act_layer, inplace=True) if act else nn.Identity()
        layers["conv_pw"] = nn.Conv2d(in_chs, out_chs, 1, bias=False)
        layers["bn_pw"] = norm(out_chs)
        layers["act_pw"] = create_act(c.act_layer, inplace=True) if act else nn.Identity()
        super().__init__(layers)


class PreSeparableConv2d(nn.Sequential):
    """Norm and activation (unless `first`: the block has one), 3x3 on each channel, 1x1 across channels."""

    def __init__(self, in_chs: int, out_chs: int, stride: int, dilation: int, c: Config, *, first: bool) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["norm"] = nn.Identity() if first else norm_act(c)(in_chs, act_layer=c.act_layer)
        layers["conv_dw"] = depthwise(in_chs, stride, dilation)
        layers["conv_pw"] = nn.Conv2d(in_chs, out_chs, 1, bias=False)
        super().__init__(layers)


class XceptionModule(nn.Module):
    """Three separable convolutions, the last one strided, and a shortcut around them.

    A feature level is what reaches the strided convolution. `enter` runs up to there and gives (that map, the input of
    the shortcut), `leave` takes the two on.
    """

    level = "act3"  # the layer in `stack` whose output is the level

    def __init__(
        self, in_chs: int, out_chs: int | Sequence[int], c: Config, *, stride: int = 1, dilation: int = 1,
        no_skip: bool = False, start_with_relu: bool = True, drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        chs = [out_chs] * 3 if isinstance(out_chs, int) else list(out_chs)
        self.no_skip = no_skip
        self.mid_chs = chs[1]
        if not no_skip and (in_chs != chs[-1] or stride != 1):
            self.shortcut = self.build_shortcut(in_chs, chs[-1], stride, c)
        figures = [(in_chs, chs[0], 1, dilation), (chs[0], chs[1], 1, dilation), (chs[1], chs[2], stride, dilation)]
        self.build_stack(figures, c, start_with_relu)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def build_shortcut(self, in_chs: int, out_chs: int, stride: int, c: Config) -> nn.Module:
        norm = norm_act(c)
        return ConvNormAct(in_chs, out_chs, 1, stride, norm_layer=norm, act_layer=c.act_layer, apply_act=False)

    def build_stack(self, convs: list[tuple[int, int, int, int]], c: Config, start_with_relu: bool) -> None:
        self.stack = nn.Sequential()
        for i, shape in enumerate(convs, 1):
            if start_with_relu:  # the first must not change the input of the shortcut
                self.stack.add_module(f"act{i}", create_act(c.act_layer, inplace=i > 1))
            self.stack.add_module(f"conv{i}", SeparableConv2d(*shape, c, act=not start_with_relu))

    def enter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shortcut = x
        for layer in list(self.stack)[:-1]:
            x = layer(x)
        return x, shortcut

    def leave(self, maps: tuple[Tensor, Tensor]) -> Tensor:
        x, shortcut = maps
        x = self.drop_path(self.stack[-1](x))
        if self.no_skip:
            return x
        return x + (self.shortcut(shortcut) if hasattr(self, "shortcut") else shortcut)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.enter(x))


class PreXceptionModule(XceptionModule):
    """The same with norm and activation before each convolution; its own norm comes before the shortcut, too."""

    level = "conv2"

    def build_shortcut(self, in_chs: int, out_chs: int, stride: int, c: Config) -> nn.Module:
        return nn.Conv2d(in_chs, out_chs, 1, stride, bias=False)

    def build_stack(self, convs: list[tuple[int, int, int, int]], c: Config, start_with_relu: bool) -> None:
        self.norm = norm_act(c)(convs[0][0], act_layer=c.act_layer)
        layers = {f"conv{i}": PreSeparableConv2d(*shape, c, first=i == 1) for i, shape in enumerate(convs, 1)}
        self.stack = nn.Sequential(OrderedDict(layers))

    def enter(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().enter(self.norm(x))


class XceptionAligned(HeadedModel, config=Config):
    """Stem, blocks of three separable convolutions, pooled linear head."""

    positional = ("block_cfg", "num_classes", "in_chans", "output_stride", "preact")
    first_conv = "stem.0.conv"

    def build(self, c: Config) -> None:
        if c.output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride={c.output_stride}: Xception has 8, 16 and 32")
        conv = partial(ConvNormAct, norm_layer=norm_act(c), act_layer=c.act_layer)
        second = nn.Conv2d(32, 64, 3, 1, 1, bias=False) if c.preact else conv(32, 64, 3)
        self.stem = nn.Sequential(conv(c.in_chans, 32, 3, 2), second)
        self.blocks = nn.Sequential()
        chain = [Stage(("stem.0", "stem.1"), checkpoint=False)]
        stride, dilation, run, owners = 2, 1, [], []
        (rates,) = drop_path_rates(c.drop_path_rate, (len(c.block_cfg),))
        for i, (figures, rate) in enumerate(zip(c.block_cfg, rates, strict=True)):
            args = dict(figures)
            step, spread, path = args.pop("stride", 1), dilation, f"blocks.{i}"
            at, is_level = stride, step > 1
            if stride * step > c.output_stride:
                dilation, step = dilation * step, 1
            stride *= step
            kind = PreXceptionModule if c.preact else XceptionModule
            block = kind(
                args.pop("in_chs"), args.pop("out_chs"), c, stride=step, dilation=spread, drop_path=rate, **args
            )
            self.blocks.append(block)
            owners.append(path)
            run.append(f"{path}.enter" if is_level else path)
            if is_level:
                name = f"{path}.stack.{block.level}"
                chain.append(Stage(tuple(run), block.mid_chs, at, module=name, params=tuple(owners), item=0))
                run, owners = [f"{path}.leave"], []
        out_chs = c.block_cfg[-1]["out_chs"]
        self.num_features = self.head_hidden_size = out_chs if isinstance(out_chs, int) else out_chs[-1]
        name = f"blocks.{len(self.blocks) - 1}"
        chain.append(Stage(tuple(run), self.num_features, stride, module=name, params=tuple(owners)))
        self.act = create_act(c.act_layer) if c.preact else nn.Identity()
        self.chain = (*chain, Stage(("act",)))
        self.build_head(c)

    def init_module(self, module: nn.Module, name: str) -> bool:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            return True
        return False


def blocks(middle: int, *, preact: bool = False, entry: Sequence[tuple[int, int]] = ((128, 2), (256, 2), (728, 2))):
    """The figures of all blocks: `entry` as (channels, stride), `middle` blocks of 728 channels, and the exit."""
    rows: list[dict[str, Any]] = []
    width = 64
    for out_chs, stride in (*entry, *[(728, 1)] * middle):
        rows.append({"in_chs": width, "out_chs": out_chs, "stride": stride})
        width = out_chs
    rows.append({"in_chs": 728, "out_chs": (728, 1024, 1024), "stride": 2})
    last = {"in_chs": 1024, "out_chs": (1536, 1536, 2048), "stride": 1, "no_skip": True}
    return (*rows, last if preact else last | {"start_with_relu": False})


VARIANTS = {
    "xception41": Config(block_cfg=blocks(8)),
    "xception41p": Config(block_cfg=blocks(8, preact=True), preact=True, norm_eps=1e-5),
    "xception65": Config(block_cfg=blocks(16)),
    "xception65p": Config(block_cfg=blocks(16, preact=True), preact=True),
    "xception71": Config(block_cfg=blocks(16, entry=((128, 2), (256, 1), (256, 2), (728, 1), (728, 2)))),
}

family = Family(XceptionAligned, VARIANTS, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
