"""EfficientNet and the networks that share its blocks.

EfficientNet (https://arxiv.org/abs/1905.11946), V2 (https://arxiv.org/abs/2104.00298), X (https://arxiv.org/abs/2102.05610),
EdgeTPU and Lite forms (Google, 2019 and 2020), CondConv (https://arxiv.org/abs/1904.04971), AdvProp
(https://arxiv.org/abs/1911.09665), NoisyStudent (https://arxiv.org/abs/1911.04252), MobileNet V1
(https://arxiv.org/abs/1704.04861) and V2 (https://arxiv.org/abs/1801.04381), MnasNet (https://arxiv.org/abs/1807.11626),
MixNet (https://arxiv.org/abs/1907.09595), FBNet (https://arxiv.org/abs/1812.03443), Single-Path NAS
(https://arxiv.org/abs/1904.02877), TinyNet (https://arxiv.org/abs/2010.14819).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from opsin.layers import SelectAdaptivePool2d
from opsin.models._chain import Stage
from opsin.models._efficientnet_body import BodyConfig, BodyModel
from opsin.models._efficientnet_tables import Rows, arch, change, decode_arch_def, deepen, round_channels
from opsin.models._family import Family
from opsin.models._pruning import apply_pruning

__all__ = ["Config", "EfficientNet", "decode_arch_def", "round_channels"]


@dataclass(frozen=True, kw_only=True)
class Config(BodyConfig):
    """`num_features=0` leaves the last 1x1 convolution out."""

    stem_kernel_size: int = 3
    pruned: str = ""  # name of the table of widths this network was pruned to


class EfficientNet(BodyModel, config=Config):
    """Stem, stages of blocks given by a table, a 1x1 convolution to many channels, pooled linear head."""

    def build(self, c: Config) -> None:
        parts, chain, width = self.build_body(c, c.stem_kernel_size)
        if c.num_features:
            self.conv_head = parts.conv(width, c.num_features, 1)
            self.bn2 = parts.norm(c.num_features)
            chain.append(Stage(("conv_head", "bn2")))
        self.num_features = self.head_hidden_size = c.num_features or width
        self.chain = tuple(chain)
        self.build_head(c)
        if c.pruned:
            apply_pruning(self, c.pruned)

    def build_head(self, c: Config) -> None:
        pool = SelectAdaptivePool2d(pool_type=c.global_pool, flatten=bool(c.global_pool))
        self.build_classifier(c, self.num_features * pool.feat_mult(), pool)


# -- tables: block type, r(epeats), k(ernel), s(tride), e(xpansion), c(hannels), se, …; see `decode_row` ---------------

B0 = arch(
    "ds_c16_se0.25 ir_r2_s2_e6_c24_se0.25 ir_r2_k5_s2_e6_c40_se0.25 ir_r3_s2_e6_c80_se0.25 "
    "ir_r3_k5_e6_c112_se0.25 ir_r4_k5_s2_e6_c192_se0.25 ir_e6_c320_se0.25"
)
LITE = change(B0, se_ratio=0.0)
X = arch(
    "ds_c16_se0.25_d1 er_r2_s2_e6_c24_se0.25_nre er_r2_k5_s2_e6_c40_se0.25_nre ir_r3_s2_e6_c80_se0.25 "
    "ir_r3_k5_e6_c112_se0.25 ir_r4_k5_s2_e6_c192_se0.25 ir_e6_c320_se0.25"
)
H = [X[0], *change(X[1:4], exp_ratio=4.0), *X[4:]]
EDGE = arch(
    "er_e4_c24_fc24_noskip er_r2_s2_e8_c32 er_r4_s2_e8_c48 ir_r5_k5_s2_e8_c96 ir_r4_k5_e8_c144 ir_r2_k5_s2_e8_c192"
)
V2_BASE = arch(
    "cn_c16_skip er_r2_s2_e4_c32 er_r2_s2_e4_c48 ir_r3_s2_e4_c96_se0.25 ir_r5_e6_c112_se0.25 ir_r8_s2_e6_c192_se0.25"
)
V2_S = arch(
    "cn_r2_c24_skip er_r4_s2_e4_c48 er_r4_s2_e4_c64 ir_r6_s2_e4_c128_se0.25 ir_r9_e6_c160_se0.25 "
    "ir_r15_s2_e6_c256_se0.25"
)
V2_M = arch(
    "cn_r3_c24_skip er_r5_s2_e4_c48 er_r5_s2_e4_c80 ir_r7_s2_e4_c160_se0.25 ir_r14_e6_c176_se0.25 "
    "ir_r18_s2_e6_c304_se0.25 ir_r5_e6_c512_se0.25"
)
V2_L = arch(
    "cn_r4_c32_skip er_r7_s2_e4_c64 er_r7_s2_e4_c96 ir_r10_s2_e4_c192_se0.25 ir_r19_e6_c224_se0.25 "
    "ir_r25_s2_e6_c384_se0.25 ir_r7_e6_c640_se0.25"
)
V2_XL = arch(
    "cn_r4_c32_skip er_r8_s2_e4_c64 er_r8_s2_e4_c96 ir_r16_s2_e4_c192_se0.25 ir_r24_e6_c256_se0.25 "
    "ir_r32_s2_e6_c512_se0.25 ir_r8_e6_c640_se0.25"
)
RW_T = [*V2_S[:5], *arch("ir_r14_s2_e6_c256_se0.25")]
RW_S = [*arch("er_r2_c24"), *V2_S[1:5], *arch("ir_r15_s2_e6_c272_se0.25")]
RW_M = [*deepen(RW_S[:4], 1.2), *deepen(RW_S[4:], 1.6)]
TEST = arch("cn_c16_skip er_s2_e4_c24 er_s2_e4_c32 ir_s2_e4_c48_se0.25 ir_s2_e4_c64_se0.25")

MOBILE_V1 = arch("dsa_c64 dsa_r2_s2_c128 dsa_r2_s2_c256 dsa_r6_s2_c512 dsa_r2_s2_c1024")
MOBILE_V2 = arch("ds_c16 ir_r2_s2_e6_c24 ir_r3_s2_e6_c32 ir_r4_s2_e6_c64 ir_r3_e6_c96 ir_r3_s2_e6_c160 ir_e6_c320")
MNAS_B1 = arch(
    "ds_c16_noskip ir_r3_s2_e3_c24 ir_r3_k5_s2_e3_c40 ir_r3_k5_s2_e6_c80 ir_r2_e6_c96 ir_r4_k5_s2_e6_c192 "
    "ir_e6_c320_noskip"
)
MNAS_A1 = arch(
    "ds_c16_noskip ir_r2_s2_e6_c24 ir_r3_k5_s2_e3_c40_se0.25 ir_r4_s2_e6_c80 ir_r2_e6_c112_se0.25 "
    "ir_r3_k5_s2_e6_c160_se0.25 ir_e6_c320"
)
MNAS_SMALL = arch(
    "ds_c8 ir_s2_e3_c16 ir_r2_s2_e6_c16 ir_r4_k5_s2_e6_c32_se0.25 ir_r3_e6_c32_se0.25 ir_r3_k5_s2_e6_c88_se0.25 "
    "ir_e6_c144"
)
FBNET_C = arch(
    "ir_c16 ir_s2_e6_c24+ir_r2_c24 ir_k5_s2_e6_c32+ir_k5_e3_c32+ir_k5_e6_c32+ir_e6_c32 "
    "ir_k5_s2_e6_c64+ir_k5_e3_c64+ir_r2_k5_e6_c64 ir_r3_k5_e6_c112+ir_k5_e3_c112 ir_r4_k5_s2_e6_c184 ir_e6_c352"
)
SPNAS = arch(
    "ds_c16_noskip ir_r3_s2_e3_c24 ir_k5_s2_e6_c40+ir_r3_e3_c40 ir_k5_s2_e6_c80+ir_r3_e3_c80 "
    "ir_k5_e6_c96+ir_r3_k5_e3_c96 ir_r4_k5_s2_e6_c192 ir_e6_c320_noskip"
)
MIX_S = arch(
    "ds_c16 ir_a1.1_p1.1_s2_e6_c24+ir_a1.1_p1.1_e3_c24 "
    "ir_k3.5.7_s2_e6_c40_se0.5_nsw+ir_r3_k3.5_a1.1_p1.1_e6_c40_se0.5_nsw "
    "ir_k3.5.7_p1.1_s2_e6_c80_se0.25_nsw+ir_r2_k3.5_p1.1_e6_c80_se0.25_nsw "
    "ir_k3.5.7_a1.1_p1.1_e6_c120_se0.5_nsw+ir_r2_k3.5.7.9_a1.1_p1.1_e3_c120_se0.5_nsw "
    "ir_k3.5.7.9.11_s2_e6_c200_se0.5_nsw+ir_r2_k3.5.7.9_p1.1_e6_c200_se0.5_nsw"
)
MIX_M = arch(
    "ds_c24 ir_k3.5.7_a1.1_p1.1_s2_e6_c32+ir_a1.1_p1.1_e3_c32 "
    "ir_k3.5.7.9_s2_e6_c40_se0.5_nsw+ir_r3_k3.5_a1.1_p1.1_e6_c40_se0.5_nsw "
    "ir_k3.5.7_s2_e6_c80_se0.25_nsw+ir_r3_k3.5.7.9_a1.1_p1.1_e6_c80_se0.25_nsw "
    "ir_e6_c120_se0.5_nsw+ir_r3_k3.5.7.9_a1.1_p1.1_e3_c120_se0.5_nsw "
    "ir_k3.5.7.9_s2_e6_c200_se0.5_nsw+ir_r3_k3.5.7.9_p1.1_e6_c200_se0.5_nsw"
)
EDGETPU = arch(
    "cn_k1_c16 er_s2_e8_c32+er_r3_e4_c32 er_s2_e8_c48+er_r3_e4_c48 ir_s2_e8_c96+ir_r3_e4_c96 "
    "ir_e8_c96_noskip+ir_r3_e4_c96 ir_k5_s2_e8_c160+ir_r3_k5_e4_c160 ir_e8_c192"
)


def edgetpu_v2(widths: tuple[int, ...], gs: int) -> list[Rows]:
    """Width of each stage, channels per group of its grouped convolutions."""
    a, b, c, d, e, f, g = widths
    return arch(
        f"cn_k1_c{a} er_s2_e8_c{b}+er_e4_c{b}_gs{gs} er_s2_e8_c{c}+er_e4_c{c}_gs{gs}+er_e4_c{c}+er_e4_c{c}_gs{gs} "
        f"er_s2_e8_c{d}+ir_r3_e4_c{d} ir_e8_c{e}+ir_r3_e4_c{e} ir_s2_e8_c{f}+ir_r3_e4_c{f} ir_e8_c{g}"
    )


# -- variants ----------------------------------------------------------------------------------------------------------

TF: dict[str, Any] = {"pad_type": "same", "norm_args": {"eps": 1e-3}}  # as trained in TensorFlow


def scaled(stages: list[Rows], width: float = 1.0, depth: float = 1.0, **more: Any) -> Config:
    """Compound scaling: width and depth by their factors, the last convolution by that of the width."""
    head = round_channels(1280, width, more.get("divisor", 8))
    config: dict[str, Any] = {"num_features": head, "act_layer": "silu", "channel_multiplier": width} | more
    return Config(block_args=deepen(stages, depth), **config)


def lite(width: float = 1.0, depth: float = 1.0, **more: Any) -> Config:
    """Lite: stem, head, first and last stage as they are, no squeeze and excitation, ReLU6."""
    stages = deepen(LITE, depth, keep=(0, -1))
    return Config(block_args=stages, fix_stem=True, act_layer="relu6", channel_multiplier=width, **more)


def tiny(width: float, depth: float) -> Config:
    stages = deepen(B0, depth, "round")
    return Config(block_args=stages, fix_stem=True, act_layer="silu", channel_multiplier=width)


def mobile(width: float = 1.0, depth: float = 1.0, **more: Any) -> Config:
    stages = deepen(MOBILE_V2, depth, keep=(0, -1))
    return Config(block_args=stages, act_layer="relu6", channel_multiplier=width, **more)


def mixnet(stages: list[Rows], width: float = 1.0, depth: float = 1.0, **more: Any) -> Config:
    stages, head = deepen(stages, depth, "round"), {"num_features": 1536, "stem_size": 24}
    return Config(block_args=stages, channel_multiplier=width, **(head | more))


B = partial(scaled, B0)
Edge = partial(scaled, EDGE, act_layer="relu")
Mnas, SeMnas = partial(Config, block_args=MNAS_B1), partial(Config, block_args=MNAS_A1)
V1 = partial(Config, block_args=MOBILE_V1, act_layer="relu6")
V2 = partial(Config, act_layer="silu")
V2B: Any = partial(scaled, V2_BASE, round_limit=0.0, **TF)
GN8: dict[str, Any] = {"norm_layer": "groupnorm", "norm_args": {"group_size": 8}}
GN16: dict[str, Any] = {"norm_layer": "groupnorm", "norm_args": {"group_size": 16}}
EVO8: dict[str, Any] = {"norm_layer": "evonorm2ds0", "norm_args": {"group_size": 8}}
Test = partial(Config, block_args=TEST, act_layer="silu", stem_size=24, num_features=256, round_limit=0.0)

VARIANTS = {
    "efficientnet_b0": B(),
    "efficientnet_b0_g8_gn": scaled(change(B0, group_size=8), **GN8),
    "efficientnet_b0_g16_evos": scaled(change(B0, group_size=16), divisor=16),  # batch norm, for all its name
    "efficientnet_b0_gn": B(**GN8),
    "efficientnet_b1": B(1.0, 1.1),
    "efficientnet_b1_pruned": B(1.0, 1.1, **TF, pruned="efficientnet_b1_pruned"),
    "efficientnet_b2": B(1.1, 1.2),
    "efficientnet_b2_pruned": B(1.1, 1.2, **TF, pruned="efficientnet_b2_pruned"),
    "efficientnet_b3": B(1.2, 1.4),
    "efficientnet_b3_g8_gn": scaled(change(B0, group_size=8), 1.2, 1.4, divisor=16, **GN16),
    "efficientnet_b3_gn": B(1.2, 1.4, divisor=16, **GN16),
    "efficientnet_b3_pruned": B(1.2, 1.4, **TF, pruned="efficientnet_b3_pruned"),
    "efficientnet_b4": B(1.4, 1.8),
    "efficientnet_b5": B(1.6, 2.2),
    "efficientnet_b6": B(1.8, 2.6),
    "efficientnet_b7": B(2.0, 3.1),
    "efficientnet_b8": B(2.2, 3.6),
    "efficientnet_blur_b0": B(aa_layer="blurpc"),
    "efficientnet_cc_b0_4e": scaled(change(B0, 4, num_experts=4)),
    "efficientnet_cc_b0_8e": scaled(change(B0, 4, num_experts=8)),
    "efficientnet_cc_b1_8e": scaled(change(B0, 4, num_experts=8), 1.0, 1.1),
    "efficientnet_el": Edge(1.2, 1.4),
    "efficientnet_el_pruned": Edge(1.2, 1.4),  # pruned within the kernels: the shapes are those of the whole
    "efficientnet_em": Edge(1.0, 1.1),
    "efficientnet_es": Edge(),
    "efficientnet_es_pruned": Edge(),
    "efficientnet_h_b5": scaled(H, 1.92, 2.2),
    "efficientnet_l2": B(4.3, 5.3),
    "efficientnet_lite0": lite(),
    "efficientnet_lite1": lite(1.0, 1.1),
    "efficientnet_lite2": lite(1.1, 1.2),
    "efficientnet_lite3": lite(1.2, 1.4),
    "efficientnet_lite4": lite(1.4, 1.8),
    "efficientnet_x_b3": scaled(X, 1.2, 1.4),
    "efficientnet_x_b5": scaled(X, 1.6, 2.2),
    "efficientnetv2_l": V2(block_args=V2_L),
    "efficientnetv2_m": V2(block_args=V2_M, stem_size=24),
    "efficientnetv2_rw_m": V2(block_args=RW_M, stem_size=24, channel_multiplier=1.2, num_features=2152),
    "efficientnetv2_rw_s": V2(block_args=RW_S, stem_size=24, num_features=1792),
    "efficientnetv2_rw_t": V2(block_args=RW_T, stem_size=24, channel_multiplier=0.8, num_features=1024),
    "efficientnetv2_s": V2(block_args=V2_S, stem_size=24),
    "efficientnetv2_xl": V2(block_args=V2_XL),
    "fbnetc_100": Config(block_args=FBNET_C, stem_size=16, num_features=1984),
    "gc_efficientnetv2_rw_t": V2(
        block_args=RW_T, stem_size=24, channel_multiplier=0.8, num_features=1024, se_layer="gc"
    ),
    "mixnet_l": mixnet(MIX_M, 1.3),
    "mixnet_m": mixnet(MIX_M),
    "mixnet_s": mixnet(MIX_S, stem_size=16),
    "mixnet_xl": mixnet(MIX_M, 1.6, 1.2),
    "mixnet_xxl": mixnet(MIX_M, 2.4, 1.3),
    "mnasnet_050": Mnas(channel_multiplier=0.5),
    "mnasnet_075": Mnas(channel_multiplier=0.75),
    "mnasnet_100": Mnas(),
    "mnasnet_140": Mnas(channel_multiplier=1.4),
    "mnasnet_small": Config(block_args=MNAS_SMALL, stem_size=8),
    "mobilenet_edgetpu_100": Config(block_args=EDGETPU),
    "mobilenet_edgetpu_v2_l": Config(
        block_args=edgetpu_v2((32, 64, 96, 192, 240, 256, 384), 128), stem_size=64, stem_kernel_size=7,
        num_features=1408,
    ),
    "mobilenet_edgetpu_v2_m": Config(
        block_args=edgetpu_v2((32, 64, 80, 160, 192, 240, 320), 64), stem_size=64, stem_kernel_size=5,
        num_features=1344,
    ),
    "mobilenet_edgetpu_v2_s": Config(
        block_args=edgetpu_v2((24, 48, 64, 128, 160, 192, 256), 64), stem_size=64, stem_kernel_size=5
    ),
    "mobilenet_edgetpu_v2_xs": Config(block_args=edgetpu_v2((16, 32, 48, 96, 144, 160, 192), 64)),
    "mobilenetv1_100": V1(num_features=0),
    "mobilenetv1_100h": V1(num_features=1024),
    "mobilenetv1_125": V1(num_features=0, channel_multiplier=1.25),
    "mobilenetv2_035": mobile(0.35),
    "mobilenetv2_050": mobile(0.5),
    "mobilenetv2_075": mobile(0.75),
    "mobilenetv2_100": mobile(),
    "mobilenetv2_110d": mobile(1.1, 1.2, fix_stem=True),
    "mobilenetv2_120d": mobile(1.2, 1.4, fix_stem=True),
    "mobilenetv2_140": mobile(1.4, num_features=1792),
    "semnasnet_050": SeMnas(channel_multiplier=0.5),
    "semnasnet_075": SeMnas(channel_multiplier=0.75),
    "semnasnet_100": SeMnas(),
    "semnasnet_140": SeMnas(channel_multiplier=1.4),
    "spnasnet_100": Config(block_args=SPNAS),
    "test_efficientnet": Test(),
    "test_efficientnet_evos": Test(**EVO8),
    "test_efficientnet_gn": Test(**GN8),
    "test_efficientnet_ln": Test(norm_layer="layernorm2d"),
    "tf_efficientnet_b0": B(**TF),
    "tf_efficientnet_b1": B(1.0, 1.1, **TF),
    "tf_efficientnet_b2": B(1.1, 1.2, **TF),
    "tf_efficientnet_b3": B(1.2, 1.4, **TF),
    "tf_efficientnet_b4": B(1.4, 1.8, **TF),
    "tf_efficientnet_b5": B(1.6, 2.2, **TF),
    "tf_efficientnet_b6": B(1.8, 2.6, **TF),
    "tf_efficientnet_b7": B(2.0, 3.1, **TF),
    "tf_efficientnet_b8": B(2.2, 3.6, **TF),
    "tf_efficientnet_cc_b0_4e": scaled(change(B0, 4, num_experts=4), **TF),
    "tf_efficientnet_cc_b0_8e": scaled(change(B0, 4, num_experts=8), **TF),
    "tf_efficientnet_cc_b1_8e": scaled(change(B0, 4, num_experts=8), 1.0, 1.1, **TF),
    "tf_efficientnet_el": Edge(1.2, 1.4, **TF),
    "tf_efficientnet_em": Edge(1.0, 1.1, **TF),
    "tf_efficientnet_es": Edge(**TF),
    "tf_efficientnet_l2": B(4.3, 5.3, **TF),
    "tf_efficientnet_lite0": lite(**TF),
    "tf_efficientnet_lite1": lite(1.0, 1.1, **TF),
    "tf_efficientnet_lite2": lite(1.1, 1.2, **TF),
    "tf_efficientnet_lite3": lite(1.2, 1.4, **TF),
    "tf_efficientnet_lite4": lite(1.4, 1.8, **TF),
    "tf_efficientnetv2_b0": V2B(),
    "tf_efficientnetv2_b1": V2B(1.0, 1.1),
    "tf_efficientnetv2_b2": V2B(1.1, 1.2),
    "tf_efficientnetv2_b3": V2B(1.2, 1.4),
    "tf_efficientnetv2_l": V2(block_args=V2_L, **TF),
    "tf_efficientnetv2_m": V2(block_args=V2_M, stem_size=24, **TF),
    "tf_efficientnetv2_s": V2(block_args=V2_S, stem_size=24, **TF),
    "tf_efficientnetv2_xl": V2(block_args=V2_XL, **TF),
    "tf_mixnet_l": mixnet(MIX_M, 1.3, **TF),
    "tf_mixnet_m": mixnet(MIX_M, **TF),
    "tf_mixnet_s": mixnet(MIX_S, stem_size=16, **TF),
    "tinynet_a": tiny(1.0, 1.2),
    "tinynet_b": tiny(0.75, 1.1),
    "tinynet_c": tiny(0.54, 0.85),
    "tinynet_d": tiny(0.54, 0.695),
    "tinynet_e": tiny(0.51, 0.6),
}  # fmt: skip

family = Family(EfficientNet, VARIANTS)
__getattr__ = family.module_getattr(__name__)
