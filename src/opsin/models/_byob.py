"""ByobNet, "bring your own blocks": a network that is written down as a table of blocks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, check_known, did_you_mean
from opsin.layers import (
    ClassifierHead,
    NormMlpClassifierHead,
    create_act,
    create_attn,
    drop_path_rates,
    get_norm_layer,
    make_divisible,
)
from opsin.layers.attention_pool2d import AttentionPool2d, RotAttentionPool2d
from opsin.layers.bottleneck_attn import BottleneckAttn
from opsin.layers.conv_norm_act import ConvNormAct
from opsin.layers.halo_attn import HaloAttn
from opsin.layers.lambda_layer import LambdaLayer
from opsin.layers.norm_act import get_norm_act_layer
from opsin.layers.pos_embed import resample_abs_pos_embed, resize_rel_pos_bias_table
from opsin.layers.tuples import to_2tuple
from opsin.layers.weight_init import lecun_normal_
from opsin.models._byob_blocks import BLOCKS, Figures, MobileOneBlock, RepVggBlock, Residual
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._headed import HeadedModel

__all__ = ["ByoBlockCfg", "ByobNet", "Config", "resample"]


@dataclass(frozen=True)
class ByoBlockCfg:
    """`d` blocks of one kind. What is None is taken from the network's config."""

    type: Any  # bottle, basic, dark, edge, rep, one, self_attn, or a class that takes `Figures` and `block_kwargs`
    d: int  # how many
    c: int  # output channels
    s: int = 2  # stride of the first one, if it opens a stage
    gs: int | None = None  # channels per group; None or 0 for one group
    br: float = 1.0  # width inside to that outside
    attn_layer: str | None = None
    attn_kwargs: Mapping[str, Any] | None = None
    self_attn_layer: str | None = None
    self_attn_kwargs: Mapping[str, Any] | None = None
    block_kwargs: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, given: Any) -> Any:
        """From its plain form, as configs in files have it."""
        if not isinstance(given, Mapping):
            return given
        check_known(given, [f.name for f in fields(cls)], owner=cls.__name__)
        return cls(**given)


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """`blocks` has one entry per stage: a `ByoBlockCfg`, or a row of them."""

    blocks: tuple[Any, ...] = ()
    downsample: str = "conv1x1"  # the shortcut where the map changes: "conv1x1", "avg" (pool first), "" for none
    # one convolution ("3x3", "7x7"), several (those of STEMS; "" with a width for each), or a branched block (rep, one)
    stem_type: str = "3x3"
    stem_pool: str = ""  # maxpool, max2, avg2, or "": then the last of several convolutions is strided
    stem_chs: int | tuple[int, ...] = 32
    width_factor: float = 1.0
    num_features: int = 0  # width of a closing 1x1 convolution; 0 for none
    act_layer: Any = "relu"
    norm_layer: Any = "batchnorm2d"
    norm_args: Mapping[str, Any] = field(default_factory=dict)  # further arguments of the norms
    aa_layer: Any = None  # anti-aliasing in strided blocks: "avg", "blur"
    attn_layer: Any = None  # channel attention in the blocks
    attn_kwargs: Mapping[str, Any] = field(default_factory=dict)
    self_attn_layer: Any = None  # bottleneck, halo, lambda, or a class called with channels, stride and feat_size
    self_attn_kwargs: Mapping[str, Any] = field(default_factory=dict)
    block_kwargs: Mapping[str, Any] = field(default_factory=dict)
    head_type: str = "classifier"  # classifier, mlp, attn_abs, attn_rot (attention pooling)
    head_hidden_size: int | None = None  # width of the hidden layer, or of the attention pooling
    img_size: int | tuple[int, int] | None = None  # where positions are learned for one size of the map
    output_stride: int = 32  # 8 or 16 trade stride for dilation
    drop_path_rate: float = 0.0
    zero_init_last: bool = True  # the last norm of each residual block starts at zero


STEMS: dict[str, tuple[float, ...]] = {  # widths of 3x3 convolutions, to the stem's
    "deep": (1, 1, 1),
    "tiered": (3 / 8, 1 / 2, 1),
    "quad": (1 / 8, 1 / 4, 1 / 2, 1),
    "quad2": (1 / 8, 1 / 4, 1 / 2, 1),  # the first two without norm and activation
}
POOLS: dict[str, Callable[[], nn.Module]] = {
    "maxpool": partial(nn.MaxPool2d, 3, 2, 1),
    "max2": partial(nn.MaxPool2d, 2),
    "avg2": partial(nn.AvgPool2d, 2),
}
BRANCHED: dict[str, tuple[Any, tuple[str, str]]] = {  # stems of one block, and where their first convolutions are
    "rep": (RepVggBlock, ("stem.conv_kxk.conv", "stem.conv_1x1.conv")),
    "one": (MobileOneBlock, ("stem.conv_kxk.0.conv", "stem.conv_scale.conv")),
}
SELF_ATTNS: dict[str, Any] = {"bottleneck": BottleneckAttn, "halo": HaloAttn, "lambda": LambdaLayer}
HEADS = {"classifier": "head.fc", "mlp": "head.fc", "attn_abs": "head.proj", "attn_rot": "head.proj"}  # the classifier


def find(table: Mapping[str, Any], name: Any, what: str) -> Any:
    """The entry of a name; what is no string is taken as it is."""
    if not isinstance(name, str):
        return name
    if name not in table:
        raise UnknownArgumentError(f"no {what} {name!r}.{did_you_mean(name, table)} Known: {', '.join(table)}")
    return table[name]


def expand(row: Any) -> list[Any]:
    """The blocks of one stage, an entry for each."""
    entries = row if isinstance(row, list | tuple) else [row]
    return [block for block in map(ByoBlockCfg.of, entries) for _ in range(block.d)]


def reduced(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """(height, width) behind a layer of some stride."""
    return -(-size[0] // stride), -(-size[1] // stride)


def layers(c: Config) -> dict[str, Any]:
    """Keywords of `ConvNormAct`."""
    return {"norm_layer": get_norm_act_layer(c.norm_layer, c.norm_args), "act_layer": c.act_layer}


def parts(c: Config, block: Any = None) -> dict[str, Any]:
    """The layers of a block: its own where it names them, else the network's."""

    def of(name: str) -> Any:
        own = getattr(block, name, None)
        return getattr(c, name) if own is None else own

    def attn(chs: int) -> nn.Module:
        return create_attn(of("attn_layer"), chs, **of("attn_kwargs")) or nn.Identity()

    def self_attn(chs: int, *, stride: int, feat_size: tuple[int, int] | None) -> nn.Module:
        if not of("self_attn_layer"):
            raise ValueError(f"a block of type self_attn needs self_attn_layer: {', '.join(SELF_ATTNS)}")
        layer = find(SELF_ATTNS, of("self_attn_layer"), "self-attention")
        size = {} if layer is HaloAttn else {"feat_size": feat_size}
        return layer(chs, stride=stride, **size, **of("self_attn_kwargs"))

    return {
        "downsample": c.downsample,
        "conv": partial(ConvNormAct, **layers(c), aa_layer=c.aa_layer),
        "norm_act": partial(get_norm_act_layer(c.norm_layer, c.norm_args), act_layer=c.act_layer),
        "act": partial(create_act, c.act_layer, inplace=True),
        "attn": attn,
        "self_attn": self_attn,
    }


class Stem(nn.Sequential):
    """Convolutions `conv1`, `conv2` …, the first of stride 2, and `pool`, or else the last one strided as well.

    The first `bare` of them are without norm and activation.
    """

    def __init__(self, in_chs: int, widths: Sequence[int], c: Config, *, kernel: int = 3, bare: int = 0) -> None:
        super().__init__()
        for i, width in enumerate(widths):
            stride = 2 if i == 0 or (i == len(widths) - 1 and not c.stem_pool) else 1
            if i < bare:
                conv: nn.Module = nn.Conv2d(in_chs, width, kernel, stride, kernel // 2, bias=False)
            else:
                conv = ConvNormAct(in_chs, width, kernel, stride, **layers(c))
            self.add_module(f"conv{i + 1}", conv)
            in_chs = width
        if c.stem_pool:
            self.pool = find(POOLS, c.stem_pool, "stem_pool")()


class ByobNet(HeadedModel, config=Config):
    """Stem, stages of blocks, a closing convolution, head."""

    def build(self, c: Config) -> None:
        if c.output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride={c.output_stride}: ByobNet has 8, 16 and 32")
        if not c.blocks:
            raise ValueError("ByobNet needs blocks: an entry for each stage")
        self.classifier_path = find(HEADS, c.head_type, "head_type")  # type: ignore[misc]
        width, stride, run, chain = self.build_stem(c)
        size = None if c.img_size is None else reduced(to_2tuple(c.img_size), stride)
        rows, dilation = [expand(row) for row in c.blocks], 1
        rates = drop_path_rates(c.drop_path_rate, tuple(map(len, rows)))
        self.stages = nn.Sequential()
        for i, (row, drops) in enumerate(zip(rows, rates, strict=True)):
            step = row[0].s
            if step != 1:
                chain.append(Stage(run, width, stride, "" if i else "stem", checkpoint=i > 0))
                run = ()
            if stride >= c.output_stride:
                dilation, step = dilation * step, 1
            stage, width = self.build_stage(c, row, width, drops, stride=step, dilation=dilation, feat_size=size)
            self.stages.append(stage)
            stride, size, run = stride * step, size and reduced(size, step), (*run, f"stages.{i}")
        closing = ConvNormAct(width, round(c.width_factor * c.num_features), **layers(c)) if c.num_features else None
        self.final_conv = closing or nn.Identity()
        self.num_features = round(c.width_factor * c.num_features) or width
        self.head_hidden_size = c.head_hidden_size or self.num_features
        self.chain = (*chain, Stage((*run, "final_conv"), self.num_features, stride))
        self.map_size = size
        self.build_head(c)
        sized = any(hasattr(module, name) for module in self.modules() for name in ("feat_size", "ref_feat_size"))
        if c.img_size is not None and not sized:
            raise ValueError("img_size has no effect: nothing in this network depends on the size of the images")

    def build_stem(self, c: Config) -> tuple[int, int, tuple[str, ...], list[Stage]]:
        """Width, stride, what of it has yet to run, and the chain up to there."""
        kind = c.stem_type
        find(dict.fromkeys(("", "3x3", "7x7", *STEMS, *BRANCHED)), kind, "stem_type")
        chs = c.stem_chs if isinstance(c.stem_chs, list | tuple) else (c.stem_chs,)
        if (kind == "") != (len(chs) > 1):
            raise ValueError(
                f"stem_type={kind!r} with stem_chs={c.stem_chs}: several widths go with '', one with others"
            )
        if kind in BRANCHED and c.stem_pool:
            raise ValueError(f"stem_pool={c.stem_pool!r}: a stem of type {kind!r} has no pool")
        widths = [round(c.width_factor * width) for width in chs]
        widths = [int(share * widths[-1]) for share in STEMS[kind]] if kind in STEMS else widths
        kernel = 7 if kind == "7x7" else 3
        if kind in BRANCHED:
            block, self.first_conv = BRANCHED[kind]  # type: ignore[misc]
            self.stem = block(Figures(in_chs=c.in_chans, out_chs=widths[0], stride=2, **parts(c)))
            return widths[0], 2, ("stem",), []
        if len(widths) == 1 and not c.stem_pool:
            self.first_conv = "stem.conv"  # type: ignore[misc]
            self.stem = ConvNormAct(c.in_chans, widths[0], kernel, 2, **layers(c))
            return widths[0], 2, ("stem",), []
        bare = 2 if kind == "quad2" else 0
        self.first_conv = "stem.conv1" if bare else "stem.conv1.conv"  # type: ignore[misc]
        self.stem = Stem(c.in_chans, widths, c, kernel=kernel, bare=bare)
        *names, last = [f"stem.{name}" for name, _ in self.stem.named_children()]
        half = widths[-1] if c.stem_pool else widths[-2]
        return widths[-1], 4, (last,), [Stage(tuple(names), half, 2, checkpoint=False)]

    def build_stage(
        self, c: Config, row: list[Any], width: int, drops: list[float], *, stride: int, dilation: int,
        feat_size: tuple[int, int] | None,
    ) -> tuple[nn.Sequential, int]:  # fmt: skip
        """The blocks and their width."""
        blocks: list[nn.Module] = []
        first_dilation = max(dilation // 2, 1)
        for block, drop in zip(row, drops, strict=True):
            f = Figures(
                in_chs=width,
                out_chs=make_divisible(block.c * c.width_factor),
                stride=stride,
                dilation=dilation,
                first_dilation=first_dilation,
                group_size=block.gs or 0,
                bottle_ratio=block.br,
                drop_path=drop,
                feat_size=feat_size,
                **parts(c, block),
            )
            kwargs = c.block_kwargs if block.block_kwargs is None else block.block_kwargs
            blocks.append(find(BLOCKS, block.type, "block")(f, **kwargs))
            feat_size = feat_size and reduced(feat_size, stride)
            width, stride, first_dilation = f.out_chs, 1, dilation
        return nn.Sequential(*blocks), width

    def make_head(self, c: Config) -> nn.Module:
        args: dict[str, Any] = {"pool_type": c.global_pool, "drop_rate": c.drop_rate}
        if c.head_type == "classifier":
            if c.head_hidden_size:
                raise ValueError("head_hidden_size has no effect with head_type='classifier': there is no hidden layer")
            return ClassifierHead(self.num_features, c.num_classes, **args)
        if c.head_type == "mlp":
            norm = get_norm_layer(c.norm_layer, **c.norm_args)
            args |= {"hidden_size": c.head_hidden_size, "norm_layer": norm, "act_layer": c.act_layer}
            return NormMlpClassifierHead(self.num_features, c.num_classes, **args)
        args |= {"out_features": c.num_classes, "embed_dim": c.head_hidden_size, "qkv_separate": True}
        if c.head_type == "attn_rot":
            return RotAttentionPool2d(self.num_features, ref_feat_size=self.map_size or 7, **args)
        if self.map_size is None:
            raise ValueError("head_type='attn_abs' learns positions for one size of the map: give img_size")
        return AttentionPool2d(self.num_features, self.map_size, **args)

    def remove_head(self) -> None:
        self.head = ClassifierHead(self.num_features, 0, pool_type="")
        self.classifier_path = "head.fc"  # type: ignore[misc]
        super().remove_head()

    def init_module(self, module: nn.Module, name: str) -> bool:
        attends = ".self_attn." in name or name in ("head.q", "head.k", "head.v")
        if attends and isinstance(module, nn.Conv2d | nn.Linear):
            lecun_normal_(module.weight)
        elif isinstance(module, nn.Conv3d):  # of a lambda layer
            nn.init.normal_(module.weight, std=module.out_channels**-0.5)
        elif isinstance(module, nn.Conv2d):
            fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        else:
            return False
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        return True

    def init_last(self) -> None:
        for module in self.modules():
            if isinstance(module, RepVggBlock):
                for norm in module.norms():
                    nn.init.normal_(norm.weight, 0.1, 0.1)
                    nn.init.normal_(norm.bias, 0.0, 0.1)
            elif isinstance(module, Residual) and module.shortcut is not None and self.config.zero_init_last:
                nn.init.zeros_(module.last_norm().weight)  # type: ignore[arg-type]


def resample(state: Mapping[str, Tensor], model: Any) -> Mapping[str, Tensor]:
    """Positions learned for one size of the map, for that of the model."""
    wanted = {k: v.shape for k, v in model.state_dict().items()}
    changed = {}
    for key in [k for k, v in state.items() if k in wanted and v.shape != wanted[k]]:
        owner, _, name = key.rpartition(".")
        value, module = state[key], model.get_submodule(owner)
        if name == "pos_embed":
            changed[key] = resample_abs_pos_embed(value[None], module.feat_size)[0]
        elif name == "pos_emb":
            changed[key] = resize_rel_pos_bias_table(value.permute(2, 0, 1), module.feat_size).permute(1, 2, 0)
        elif name in ("height_rel", "width_rel"):
            side = (wanted[key][0] + 1) // 2
            changed[key] = resize_rel_pos_bias_table(value.T.unsqueeze(-1), (side, 1)).squeeze(-1).T
    return {**state, **changed} if changed else state
