"""Networks written down as tables of blocks.

GENet (https://arxiv.org/abs/2006.14090), RepVGG (https://arxiv.org/abs/2101.03697), MobileOne
(https://arxiv.org/abs/2206.04040), RegNetZ (https://arxiv.org/abs/2103.06877) with and without batch norm
(https://arxiv.org/abs/2004.02967), ResNeXts with channel attention or bilinear attentional transforms, the ResNets of
CLIP (https://arxiv.org/abs/2103.00020), and ResNets with stems of three or four convolutions from training in timm.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from opsin.layers.attention_pool2d import AttentionPool2d
from opsin.models._byob import ByoBlockCfg, ByobNet, Config, resample
from opsin.models._byob_blocks import (
    BasicBlock,
    BottleneckBlock,
    DarkBlock,
    EdgeBlock,
    Figures,
    MobileOneBlock,
    RepVggBlock,
    SelfAttnBlock,
)
from opsin.models._family import Family

__all__ = [
    "BasicBlock",
    "BottleneckBlock",
    "ByoBlockCfg",
    "ByobNet",
    "Config",
    "DarkBlock",
    "EdgeBlock",
    "Figures",
    "MobileOneBlock",
    "RepVggBlock",
    "SelfAttnBlock",
]

Block = ByoBlockCfg


def bottles(depths: Sequence[int], chs: Sequence[int], *, s: int = 1, br: float = 0.25, gs: int = 0) -> tuple[Any, ...]:
    """A bottleneck stage each; `s` is the stride of the first."""
    rows = zip(depths, chs, (s, 2, 2, 2), strict=True)
    return tuple(Block("bottle", d=d, c=c, s=stride, gs=gs, br=br) for d, c, stride in rows)


def rep(depths: Sequence[int], width: float, last: float, *, groups: int = 0) -> tuple[Any, ...]:
    """RepVGG: every second convolution, counted through all stages, has groups."""
    stages, count = [], 0
    for depth, base, factor in zip(depths, (64, 128, 256, 512), (width, width, width, last), strict=True):
        c = int(base * factor)
        grouped = [bool(groups) and (count + i) % 2 == 1 for i in range(depth)]
        stages.append(tuple(Block("rep", d=1, c=c, gs=c // groups if odd else 0) for odd in grouped))
        count += depth
    return tuple(stages)


def one(factors: Sequence[float], *, branches: int = 1, se: Sequence[int] = (0, 0, 0, 0)) -> dict[str, Any]:
    """MobileOne: pairs of a depthwise and a 1x1 convolution; the last `se` pairs of a stage squeeze and excite."""
    stages, c = [], int(64 * min(1, factors[0]))
    stem = c
    for base, factor, depth, squeezed in zip((64, 128, 256, 512), factors, (2, 8, 10, 1), se, strict=True):
        row = []
        for i in range(depth):
            attn = "se" if i >= depth - squeezed else None
            row.append(Block("one", d=1, c=c, gs=1, attn_layer=attn, block_kwargs={"num_conv_branches": branches}))
            c, point = int(base * factor), {"kernel_size": 1, "num_conv_branches": branches}
            row.append(Block("one", d=1, c=c, gs=0, attn_layer=attn, block_kwargs=point))
        stages.append(tuple(row))
    return {"blocks": tuple(stages), "stem_type": "one", "stem_chs": stem}


def gernet(*rows: tuple[str, int, int, float]) -> tuple[Any, ...]:
    """GENet: type, depth, width and bottle ratio; wide bottlenecks are depthwise, and the fifth stage keeps the map."""
    depthwise = [ratio > 1 for *_, ratio in rows]
    return tuple(
        Block(kind, d=d, c=c, s=1 if i == 4 else 2, gs=int(depthwise[i]), br=ratio)
        for i, (kind, d, c, ratio) in enumerate(rows)
    )


WIDE = (256, 512, 1024, 2048)
TIERED: dict[str, Any] = {"stem_type": "tiered", "stem_chs": 64}
X26: dict[str, Any] = {
    **TIERED, "blocks": bottles((2, 2, 2, 2), WIDE, gs=32), "stem_pool": "maxpool", "act_layer": "silu",
}  # fmt: skip
R32: dict[str, Any] = {**TIERED, "blocks": bottles((2, 3, 3, 2), (256, 512, 1536, 1536)), "act_layer": "silu"}
R33: dict[str, Any] = {**R32, "num_features": 1280}
X50: dict[str, Any] = {**X26, "blocks": bottles((3, 4, 6, 3), WIDE, gs=32)}
QUAD: dict[str, Any] = {"stem_chs": 128, "num_features": 2048, "act_layer": "silu"}
Z: dict[str, Any] = {
    "downsample": "", "act_layer": "silu", "attn_layer": "se", "attn_kwargs": {"rd_ratio": 0.25},
    "block_kwargs": {"bottle_in": True, "linear_out": True},
}  # fmt: skip
EVOS: dict[str, Any] = {"norm_layer": "evonorm2ds0a", "norm_args": {"group_size": 16}}
ZB: dict[str, Any] = {**Z, "blocks": bottles((2, 6, 12, 2), (48, 96, 192, 288), s=2, br=3, gs=16), "num_features": 1536}
ZC: dict[str, Any] = {**ZB, "blocks": bottles((2, 6, 12, 2), (48, 96, 192, 288), s=2, br=4, gs=16)}
ZD: dict[str, Any] = {**Z, **TIERED, "num_features": 1792}
ZD8: dict[str, Any] = {**ZD, "blocks": bottles((3, 6, 12, 3), (64, 128, 256, 384), br=4, gs=8)}
Clip = partial(Config, downsample="avg", stem_type="", stem_pool="avg2", stem_chs=(32, 32, 64), aa_layer="avg")
Attn = partial(Clip, head_type="attn_abs", global_pool="token", img_size=224)
R50, R101 = bottles((3, 4, 6, 3), WIDE), bottles((3, 4, 23, 3), WIDE)
R4, R16, R64 = bottles((4, 6, 10, 6), WIDE), bottles((6, 8, 18, 8), WIDE), bottles((3, 15, 36, 10), WIDE)
A, B, D2 = (2, 4, 14, 1), (4, 6, 16, 1), (8, 14, 24, 1)
Rep = partial(Config, stem_type="rep", stem_chs=64)

VARIANTS = {
    "bat_resnext26ts": Config(**X26, attn_layer="bat", attn_kwargs={"block_size": 8}),
    "eca_resnet33ts": Config(**R33, attn_layer="eca"),
    "eca_resnext26ts": Config(**X26, attn_layer="eca"),
    "gcresnet33ts": Config(**R33, attn_layer="gca"),
    "gcresnet50t": Config(**TIERED, blocks=R50, attn_layer="gca"),
    "gcresnext26ts": Config(**X26, attn_layer="gca"),
    "gcresnext50ts": Config(**X50, attn_layer="gca"),
    "gernet_l": Config(
        blocks=gernet(
            ("basic", 1, 128, 1), ("basic", 2, 192, 1), ("bottle", 6, 640, 0.25), ("bottle", 5, 640, 3),
            ("bottle", 4, 640, 3),
        ),
        num_features=2560,
    ),
    "gernet_m": Config(
        blocks=gernet(
            ("basic", 1, 128, 1), ("basic", 2, 192, 1), ("bottle", 6, 640, 0.25), ("bottle", 4, 640, 3),
            ("bottle", 1, 640, 3),
        ),
        num_features=2560,
    ),
    "gernet_s": Config(
        blocks=gernet(
            ("basic", 1, 48, 1), ("basic", 3, 48, 1), ("bottle", 7, 384, 0.25), ("bottle", 2, 560, 3),
            ("bottle", 1, 256, 3),
        ),
        stem_chs=13,
        num_features=1920,
    ),
    "mobileone_s0": Config(**one((0.75, 1, 1, 2), branches=4)),
    "mobileone_s1": Config(**one((1.5, 1.5, 2, 2.5))),
    "mobileone_s2": Config(**one((1.5, 2, 2.5, 4))),
    "mobileone_s3": Config(**one((2, 2.5, 3, 4))),
    "mobileone_s4": Config(**one((3, 3.5, 3.5, 4), se=(0, 0, 5, 1))),
    "regnetz_b16": Config(**ZB),
    "regnetz_b16_evos": Config(**ZB, **EVOS),
    "regnetz_c16": Config(**ZC),
    "regnetz_c16_evos": Config(**ZC, **EVOS),
    "regnetz_d8": Config(**ZD8),
    "regnetz_d8_evos": Config(**{**ZD8, "stem_type": "deep"}, **EVOS),
    "regnetz_d32": Config(**ZD, blocks=bottles((3, 6, 12, 3), (64, 128, 256, 384), br=4, gs=32)),
    "regnetz_e8": Config(
        **{**ZD, "num_features": 2048}, blocks=bottles((3, 8, 16, 3), (96, 192, 384, 512), br=4, gs=8)
    ),
    "repvgg_a0": Config(stem_type="rep", stem_chs=48, blocks=rep(A, 0.75, 2.5)),
    "repvgg_a1": Rep(blocks=rep(A, 1, 2.5)),
    "repvgg_a2": Rep(blocks=rep(A, 1.5, 2.75)),
    "repvgg_b0": Rep(blocks=rep(B, 1, 2.5)),
    "repvgg_b1": Rep(blocks=rep(B, 2, 4)),
    "repvgg_b1g4": Rep(blocks=rep(B, 2, 4, groups=4)),
    "repvgg_b2": Rep(blocks=rep(B, 2.5, 5)),
    "repvgg_b2g4": Rep(blocks=rep(B, 2.5, 5, groups=4)),
    "repvgg_b3": Rep(blocks=rep(B, 3, 5)),
    "repvgg_b3g4": Rep(blocks=rep(B, 3, 5, groups=4)),
    "repvgg_d2se": Rep(
        blocks=rep(D2, 2.5, 5), attn_layer="se", attn_kwargs={"rd_ratio": 0.0625, "rd_divisor": 1}
    ),
    "resnet32ts": Config(**R32),
    "resnet33ts": Config(**R33),
    "resnet50_clip": Attn(blocks=R50),
    "resnet50_clip_gap": Clip(blocks=R50),
    "resnet50_mlp": Clip(blocks=R50, head_type="mlp", head_hidden_size=1024),
    "resnet50x4_clip": Attn(blocks=R4, width_factor=1.25, img_size=288),
    "resnet50x4_clip_gap": Clip(blocks=R4, width_factor=1.25),
    "resnet50x16_clip": Attn(blocks=R16, width_factor=1.5, img_size=384),
    "resnet50x16_clip_gap": Clip(blocks=R16, width_factor=1.5),
    "resnet50x64_clip": Attn(blocks=R64, width_factor=2.0, img_size=448),
    "resnet50x64_clip_gap": Clip(blocks=R64, width_factor=2.0),
    "resnet51q": Config(
        **QUAD,
        stem_type="quad2",
        blocks=(
            *bottles((2, 4, 6, 4), (256, 512, 1536, 1536), gs=32)[:3],
            Block("bottle", d=4, c=1536, gs=1, br=1.0),
        ),
    ),
    "resnet61q": Config(
        **QUAD,
        stem_type="quad",
        blocks=(
            Block("edge", d=1, c=256, s=1, block_kwargs={}),
            *bottles((1, 4, 6, 4), (256, 512, 1536, 1536), gs=32)[1:3],
            Block("bottle", d=4, c=1536, gs=1, br=1.0),
        ),
        block_kwargs={"extra_conv": True},
    ),
    "resnet101_clip": Attn(blocks=R101),
    "resnet101_clip_gap": Clip(blocks=R101),
    "resnext26ts": Config(**X26),
    "seresnet33ts": Config(**R33, attn_layer="se"),
    "seresnext26ts": Config(**X26, attn_layer="se"),
    "test_byobnet": Config(
        blocks=(
            Block("edge", d=1, c=32, br=0.5),
            Block("dark", d=1, c=64, br=0.5),
            Block("basic", d=1, c=128, gs=32, br=0.25),
            Block("bottle", d=1, c=256, gs=64, br=0.25),
        ),
        downsample="avg",
        stem_chs=24,
        attn_layer="se",
        attn_kwargs={"rd_ratio": 0.25},
    ),
}  # fmt: skip

CLIP_RULES = (
    (r"^(conv|bn)(\d)\.", r"stem.conv\2.\1."),
    (r"^layer(\d)\.", lambda found: f"stages.{int(found[1]) - 1}."),
    (r"^(stages.*)\.(conv|bn)([13])\.", r"\1.conv\3_1x1.\2."),
    (r"^(stages.*)\.(conv|bn)2\.", r"\1.conv2_kxk.\2."),
    (r"\.downsample\.0\.", ".shortcut.conv.conv."),
    (r"\.downsample\.1\.", ".shortcut.conv.bn."),
    (r"^attnpool\.positional_embedding$", "head.pos_embed"),
    (r"^attnpool\.c_proj\.", "head.proj."),
    (r"^attnpool\.([qkv])_proj\.", r"head.\1."),
)  # of the image tower in CLIP's own code and in OpenCLIP's


def adapt(state_dict: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """Today's names for the image tower of CLIP; positions for the model's image size."""
    if "visual.conv1.weight" in state_dict:
        pools = isinstance(model.get_submodule("head"), AttentionPool2d)
        state = {}
        for key, value in state_dict.items():
            name = key.removeprefix("visual.")
            if name != key and (pools or not name.startswith("attnpool.")):
                for old, new in CLIP_RULES:
                    name = re.sub(old, new, name)
                state[name] = value
        state_dict = state
    return resample(state_dict, model)


family = Family(ByobNet, VARIANTS, adapt, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
