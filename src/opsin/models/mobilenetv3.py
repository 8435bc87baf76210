"""MobileNetV3 and the networks whose last convolution comes after pooling.

MobileNetV3 (https://arxiv.org/abs/1905.02244), V4 (https://arxiv.org/abs/2404.10518), FBNetV3
(https://arxiv.org/abs/2006.02049), PP-LCNet (https://arxiv.org/abs/2109.15099).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from opsin.layers import create_act
from opsin.models._conv_head import ConvHead
from opsin.models._efficientnet_body import BodyConfig, BodyModel, find_se_layer
from opsin.models._efficientnet_tables import Rows, arch, change, deepen, round_channels
from opsin.models._family import Family

__all__ = ["Config", "MobileNetV3"]


@dataclass(frozen=True, kw_only=True)
class Config(BodyConfig):
    """`num_features` is the width behind the pooling."""

    stem_size: int = 16
    head_bias: bool = True  # of the convolution behind the pooling
    head_norm: bool = False  # a norm behind it
    se_args: Mapping[str, Any] = field(default_factory=dict)  # gate_layer, force_act_layer, rd_round_fn
    se_from_exp: bool = True  # squeezed widths go by the width inside a block, not at its input …
    se_rounded: bool = False  # … and are rounded as all widths are
    layer_scale_init_value: float | None = None  # of the blocks of MobileNetV4


class MobileNetV3(ConvHead, BodyModel, config=Config):
    """Stem, stages of blocks given by a table, pooling, a 1x1 convolution, linear classifier."""

    positional = ("block_args", "num_classes", "in_chans", "stem_size", "fix_stem", "num_features")

    def build(self, c: Config) -> None:
        args = dict(c.se_args)
        if c.se_rounded:
            args["rd_round_fn"] = partial(round_channels, divisor=c.divisor, round_limit=c.round_limit)
        self.parts, chain, width = self.build_body(
            c,
            se_layer=partial(find_se_layer(c.se_layer or "se"), **args),
            se_from_exp=c.se_from_exp,
            layer_scale=c.layer_scale_init_value,
        )
        self.num_features, self.head_hidden_size = width, c.num_features
        self.chain = tuple(chain)
        self.build_head(c)

    def conv_head_parts(self, in_chs: int) -> tuple[nn.Module, nn.Module]:
        c, parts = self.config, self.parts
        conv = parts.conv(in_chs, c.num_features, 1, bias=c.head_bias)
        return conv, parts.norm(c.num_features) if c.head_norm else create_act(parts.act_layer)


# -- tables: see `decode_row` for the letters --------------------------------------------------------------------------

LARGE = arch(
    "ds_c16_nre ir_s2_e4_c24_nre+ir_e3_c24_nre ir_r3_k5_s2_e3_c40_se0.25_nre ir_s2_e6_c80+ir_e2.5_c80+ir_r2_e2.3_c80 "
    "ir_r2_e6_c112_se0.25 ir_r3_k5_s2_e6_c160_se0.25 cn_k1_c960"
)
SMALL = arch(
    "ds_s2_c16_se0.25_nre ir_s2_e4.5_c24_nre+ir_e3.67_c24_nre ir_k5_s2_e4_c40_se0.25+ir_r2_k5_e6_c40_se0.25 "
    "ir_r2_k5_e3_c48_se0.25 ir_r3_k5_s2_e6_c96_se0.25 cn_k1_c576"
)
FBNET_B = arch(
    "ds_r2_c16 ir_k5_s2_e4_c24+ir_r3_k5_e2_c24 ir_k5_s2_e5_c40_se0.25+ir_r4_k5_e3_c40_se0.25 "
    "ir_k5_s2_e5_c72+ir_r4_e3_c72 ir_e5_c120_se0.25+ir_r5_k5_e3_c120_se0.25 "
    "ir_s2_e6_c184_se0.25+ir_r5_k5_e4_c184_se0.25+ir_k5_e6_c224_se0.25 cn_k1_c1344"
)
FBNET_D = arch(
    "ds_r2_c16 ir_s2_e5_c24+ir_r5_e2_c24 ir_k5_s2_e4_c40_se0.25+ir_r4_e3_c40_se0.25 ir_s2_e5_c72+ir_r4_e3_c72 "
    "ir_e5_c128_se0.25+ir_r6_k5_e3_c128_se0.25 ir_s2_e6_c208_se0.25+ir_r5_k5_e5_c208_se0.25+ir_k5_e6_c240_se0.25 "
    "cn_k1_c1440"
)
FBNET_G = arch(
    "ds_r3_c24 ir_k5_s2_e4_c40+ir_r4_k5_e2_c40 ir_k5_s2_e4_c56_se0.25+ir_r4_k5_e3_c56_se0.25 "
    "ir_k5_s2_e5_c104+ir_r4_e3_c104 ir_e5_c160_se0.25+ir_r8_k5_e3_c160_se0.25 "
    "ir_s2_e6_c264_se0.25+ir_r6_k5_e5_c264_se0.25+ir_r2_k5_e6_c288_se0.25 cn_k1_c1728"
)
LCNET = arch("dsa_c32 dsa_r2_s2_c64 dsa_r2_s2_c128 dsa_s2_c256+dsa_k5_c256 dsa_r4_k5_c256 dsa_r2_k5_s2_c512_se0.25")
V4_S = arch(
    "cn_s2_c32+cn_k1_c32 cn_s2_c96+cn_k1_c64 uir_a5_k5_s2_e3_c96+uir_r4_e2_c96+uir_a3_k0_e4_c96 "
    "uir_a3_s2_e6_c128+uir_a5_k5_e4_c128+uir_k5_e4_c128+uir_k5_e3_c128+uir_r2_e4_c128 cn_k1_c960"
)
V4_M = arch(
    "er_s2_e4_c48 uir_a3_k5_s2_e4_c80+uir_a3_e2_c80 "
    "uir_a3_k5_s2_e6_c160+uir_r2_a3_e4_c160+uir_a3_k5_e4_c160+uir_a3_e4_c160+uir_a3_k0_e4_c160+uir_k0_e2_c160+"
    "uir_a3_k0_e4_c160 "
    "uir_a5_k5_s2_e6_c256+uir_a5_k5_e4_c256+uir_r2_a3_k5_e4_c256+uir_k0_e4_c256+uir_a3_k0_e4_c256+uir_a3_k5_e2_c256+"
    "uir_a5_k5_e4_c256+uir_r2_k0_e4_c256+uir_a5_k0_e2_c256 cn_k1_c960"
)
V4_L = arch(
    "er_s2_e4_c48 uir_a3_k5_s2_e4_c96+uir_a3_e4_c96 "
    "uir_a3_k5_s2_e4_c192+uir_r3_a3_e4_c192+uir_a3_k5_e4_c192+uir_r5_a5_e4_c192+uir_a3_k0_e4_c192 "
    "uir_r4_a5_k5_s2_e4_c512+uir_a5_k0_e4_c512+uir_a5_e4_c512+uir_r2_a5_k0_e4_c512+uir_a5_e4_c512+uir_a5_k5_e4_c512+"
    "uir_r3_a5_k0_e4_c512 cn_k1_c960"
)
V4_HYBRID_M = arch(
    "er_s2_e4_c48 uir_a3_k5_s2_e4_c80+uir_a3_e2_c80 "
    "uir_a3_k5_s2_e6_c160+uir_k0_e2_c160+uir_a3_e4_c160+uir_a3_k5_e4_c160+mqa_h4_d64_v2_c160+uir_a3_e4_c160+"
    "mqa_h4_d64_v2_c160+uir_a3_k0_e4_c160+mqa_h4_d64_v2_c160+uir_a3_e4_c160+mqa_h4_d64_v2_c160+uir_a3_k0_e4_c160 "
    "uir_a5_k5_s2_e6_c256+uir_a5_k5_e4_c256+uir_r2_a3_k5_e4_c256+uir_k0_e2_c256+uir_a3_k5_e2_c256+uir_k0_e2_c256+"
    "uir_k0_e4_c256+mqa_h4_d64_c256+uir_a3_k0_e4_c256+mqa_h4_d64_c256+uir_a5_k5_e4_c256+mqa_h4_d64_c256+"
    "uir_a5_k0_e4_c256+mqa_h4_d64_c256+uir_a5_k0_e4_c256 cn_k1_c960"
)
V4_HYBRID_L = arch(
    "er_s2_e4_c48 uir_a3_k5_s2_e4_c96+uir_a3_e4_c96 "
    "uir_a3_k5_s2_e4_c192+uir_r3_a3_e4_c192+uir_a3_k5_e4_c192+uir_r2_a5_e4_c192+"
    + 3
    * "mqa_h8_d48_v2_c192+uir_a5_e4_c192+"
    + "mqa_h8_d48_v2_c192+uir_a3_k0_e4_c192 "
    "uir_r4_a5_k5_s2_e4_c512+uir_a5_k0_e4_c512+uir_a5_e4_c512+uir_r2_a5_k0_e4_c512+uir_a5_e4_c512+uir_a5_k5_e4_c512"
    + 4 * "+mqa_h8_d64_c512+uir_a5_k0_e4_c512"
    + " cn_k1_c960"
)


def minimal(stages: list[Rows]) -> list[Rows]:
    """Without squeeze and excitation, large kernels and any activation but the network's own."""
    plain = change(stages, se_ratio=0.0, act_layer=None)
    return [[row | ({"dw_kernel_size": 3} if "dw_kernel_size" in row else {}) for row in rows] for rows in plain]


# -- variants ----------------------------------------------------------------------------------------------------------

TF: dict[str, Any] = {"pad_type": "same", "norm_args": {"eps": 1e-3}}  # as trained in TensorFlow
HARD = {"gate_layer": "hard_sigmoid", "force_act_layer": "relu"}
V3 = partial(Config, act_layer="hard_swish", se_args=HARD, se_rounded=True)
Large, Small = partial(V3, block_args=LARGE), partial(V3, block_args=SMALL, num_features=1024)
FB = partial(
    Config, num_features=1984, head_bias=False, round_limit=0.95, se_from_exp=False, se_rounded=True,
    act_layer="hard_swish", se_args={"gate_layer": "hard_sigmoid"},
)  # fmt: skip
LC = partial(Config, block_args=LCNET, act_layer="hard_swish", se_args=HARD)
V4 = partial(Config, head_bias=False, head_norm=True, stem_size=32)
Hybrid = partial(V4, layer_scale_init_value=1e-5)
NARROW: dict[str, Any] = {"fix_stem": True, "channel_multiplier": 0.75}

Rw = partial(
    Config, block_args=[*change(LARGE[:1], noskip=True), *LARGE[1:]], head_bias=False, norm_args={"eps": 1e-3},
    act_layer="hard_swish", se_args={"gate_layer": "hard_sigmoid"},
)  # fmt: skip
VARIANTS = {
    "fbnetv3_b": FB(block_args=FBNET_B),
    "fbnetv3_d": FB(block_args=FBNET_D, stem_size=24),
    "fbnetv3_g": FB(block_args=FBNET_G, stem_size=32),
    "lcnet_035": LC(channel_multiplier=0.35),
    "lcnet_050": LC(channel_multiplier=0.5),
    "lcnet_075": LC(channel_multiplier=0.75),
    "lcnet_100": LC(),
    "lcnet_150": LC(channel_multiplier=1.5),
    "mobilenetv3_large_075": Large(channel_multiplier=0.75),
    "mobilenetv3_large_100": Large(),
    "mobilenetv3_large_150d": V3(block_args=deepen(LARGE, 1.2), channel_multiplier=1.5),
    "mobilenetv3_050": Rw(channel_multiplier=0.5),
    "mobilenetv3_rw": Rw(),
    "mobilenetv3_small_050": Small(channel_multiplier=0.5, fix_stem=True),
    "mobilenetv3_small_075": Small(channel_multiplier=0.75),
    "mobilenetv3_small_100": Small(),
    "mobilenetv4_conv_aa_large": V4(block_args=V4_L, stem_size=24, aa_layer="avg"),
    "mobilenetv4_conv_aa_medium": V4(block_args=V4_M, aa_layer="avg"),
    "mobilenetv4_conv_blur_medium": V4(block_args=V4_M, aa_layer="blurpc"),
    "mobilenetv4_conv_large": V4(block_args=V4_L, stem_size=24),
    "mobilenetv4_conv_medium": V4(block_args=V4_M),
    "mobilenetv4_conv_small": V4(block_args=V4_S),
    "mobilenetv4_conv_small_035": V4(block_args=V4_S, fix_stem=True, channel_multiplier=0.35),
    "mobilenetv4_conv_small_050": V4(block_args=V4_S, fix_stem=True, channel_multiplier=0.5),
    "mobilenetv4_hybrid_large": Hybrid(block_args=V4_HYBRID_L, stem_size=24, act_layer="gelu"),
    "mobilenetv4_hybrid_large_075": Hybrid(block_args=V4_HYBRID_L, stem_size=24, act_layer="gelu", **NARROW),
    "mobilenetv4_hybrid_medium": Hybrid(block_args=V4_HYBRID_M),
    "mobilenetv4_hybrid_medium_075": Hybrid(block_args=V4_HYBRID_M, **NARROW),
    "tf_mobilenetv3_large_075": Large(channel_multiplier=0.75, **TF),
    "tf_mobilenetv3_large_100": Large(**TF),
    "tf_mobilenetv3_large_minimal_100": V3(block_args=minimal(LARGE), **TF | {"act_layer": "relu"}),
    "tf_mobilenetv3_small_075": Small(channel_multiplier=0.75, **TF),
    "tf_mobilenetv3_small_100": Small(**TF),
    "tf_mobilenetv3_small_minimal_100": V3(
        block_args=minimal(SMALL), num_features=1024, **TF | {"act_layer": "relu"}
    ),
}  # fmt: skip

family = Family(MobileNetV3, VARIANTS)
__getattr__ = family.module_getattr(__name__)
