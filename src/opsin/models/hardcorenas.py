"""HardCoRe-NAS (https://arxiv.org/abs/2102.11646): networks found under hard latency limits, in MobileNetV3's terms."""

from functools import partial

from opsin.models._efficientnet_tables import arch
from opsin.models._family import Family
from opsin.models.mobilenetv3 import HARD, Config, MobileNetV3

__all__: list[str] = []

HardCoRe = partial(Config, stem_size=32, act_layer="hard_swish", se_args=HARD, se_rounded=True)

TABLES = {
    "hardcorenas_a": (
        "ds_c16_nre ir_k5_s2_e3_c24_nre+ir_k5_e3_c24_se0.25_nre ir_k5_s2_e3_c40_nre+ir_k5_e6_c40_se0.25_nre "
        "ir_k5_s2_e6_c80_se0.25+ir_k5_e6_c80_se0.25 ir_r2_k5_e6_c112_se0.25 "
        "ir_k5_s2_e6_c192_se0.25+ir_k5_e6_c192_se0.25 cn_k1_c960"
    ),
    "hardcorenas_b": (
        "ds_c16_nre ir_k5_s2_e3_c24_nre+ir_k5_e3_c24_se0.25_nre+ir_e3_c24_nre "
        "ir_k5_s2_e3_c40_nre+ir_r2_k5_e3_c40_nre ir_k5_s2_e3_c80+ir_k5_e3_c80+ir_r2_e3_c80 "
        "ir_k5_e3_c112+ir_r3_e3_c112 ir_k5_s2_e6_c192_se0.25+ir_k5_e6_c192_se0.25+ir_e3_c192_se0.25 cn_k1_c960"
    ),
    "hardcorenas_c": (
        "ds_c16_nre ir_k5_s2_e3_c24_nre+ir_k5_e3_c24_se0.25_nre ir_k5_s2_e3_c40_nre+ir_r3_k5_e3_c40_nre "
        "ir_k5_s2_e4_c80+ir_k5_e6_c80_se0.25+ir_r2_e3_c80 ir_k5_e6_c112_se0.25+ir_r3_e3_c112 "
        "ir_k5_s2_e6_c192_se0.25+ir_k5_e6_c192_se0.25+ir_e3_c192_se0.25 cn_k1_c960"
    ),
    "hardcorenas_d": (
        "ds_c16_nre ir_k5_s2_e3_c24_se0.25_nre+ir_k5_e3_c24_se0.25_nre "
        "ir_k5_s2_e3_c40_se0.25_nre+ir_k5_e4_c40_se0.25_nre+ir_e3_c40_se0.25_nre "
        "ir_k5_s2_e4_c80_se0.25+ir_r3_e3_c80_se0.25 "
        "ir_e4_c112_se0.25+ir_k5_e4_c112_se0.25+ir_e3_c112_se0.25+ir_k5_e3_c112_se0.25 "
        "ir_k5_s2_e6_c192_se0.25+ir_r2_k5_e6_c192_se0.25+ir_e6_c192_se0.25 cn_k1_c960"
    ),
    "hardcorenas_e": (
        "ds_c16_nre ir_k5_s2_e3_c24_se0.25_nre+ir_k5_e3_c24_se0.25_nre "
        "ir_k5_s2_e6_c40_se0.25_nre+ir_r2_k5_e4_c40_se0.25_nre+ir_e3_c40_se0.25_nre "
        "ir_k5_s2_e4_c80_se0.25+ir_e6_c80_se0.25 ir_r3_k5_e6_c112_se0.25+ir_k5_e3_c112_se0.25 "
        "ir_k5_s2_e6_c192_se0.25+ir_r2_k5_e6_c192_se0.25+ir_e6_c192_se0.25 cn_k1_c960"
    ),
    "hardcorenas_f": (
        "ds_c16_nre ir_k5_s2_e3_c24_se0.25_nre+ir_k5_e3_c24_se0.25_nre "
        "ir_k5_s2_e6_c40_se0.25_nre+ir_k5_e6_c40_se0.25_nre "
        "ir_k5_s2_e6_c80_se0.25+ir_k5_e6_c80_se0.25+ir_r2_e3_c80_se0.25 "
        "ir_e6_c112_se0.25+ir_r2_k5_e6_c112_se0.25+ir_e3_c112_se0.25 "
        "ir_k5_s2_e6_c192_se0.25+ir_k5_e6_c192_se0.25+ir_r2_e6_c192_se0.25 cn_k1_c960"
    ),
}
VARIANTS = {name: HardCoRe(block_args=arch(table)) for name, table in TABLES.items()}

family = Family(MobileNetV3, VARIANTS)
__getattr__ = family.module_getattr(__name__)
