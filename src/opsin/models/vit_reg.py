"""ViTs that pool by the mean, without class token, most with registers (https://arxiv.org/abs/2309.16588); some of
searched shape (SoViT, https://arxiv.org/abs/2305.13035).
"""

from functools import partial
from typing import Any

from opsin.models._family import Family
from opsin.models._vit_adapt import adapt
from opsin.models.vision_transformer import Config, VisionTransformer

__all__ = ["VARIANTS"]

Gap = partial(Config, class_token=False, global_pool="avg", qkv_bias=False, init_values=1e-6, fc_norm=False)
Reg1 = partial(Config, class_token=False, no_embed_class=True, reg_tokens=1, global_pool="avg", init_values=1e-5)
Reg4 = partial(Config, class_token=False, no_embed_class=True, reg_tokens=4, global_pool="avg", init_values=1e-5)
M: dict[str, Any] = {"embed_dim": 512, "num_heads": 8}
BETWIXT: dict[str, Any] = {"embed_dim": 640, "num_heads": 10}
LITTLE: dict[str, Any] = {"embed_dim": 320, "depth": 14, "num_heads": 5, "mlp_ratio": 5.6}
WEE: dict[str, Any] = {"embed_dim": 256, "depth": 14, "num_heads": 4, "mlp_ratio": 5}
SO150M: dict[str, Any] = {"embed_dim": 896, "depth": 18, "num_heads": 14, "mlp_ratio": 2.572}
SO150M2: dict[str, Any] = {"embed_dim": 832, "depth": 21, "num_heads": 13, "mlp_ratio": 34 / 13}

VARIANTS = {
    "vit_base_patch16_reg4_gap_256": Config(
        img_size=256, class_token=False, no_embed_class=True, global_pool="avg", reg_tokens=4
    ),
    "vit_betwixt_patch16_gap_256": Gap(img_size=256, **BETWIXT),
    "vit_betwixt_patch16_reg1_gap_256": Reg1(img_size=256, **BETWIXT),
    "vit_betwixt_patch16_reg4_gap_256": Reg4(img_size=256, **BETWIXT),
    "vit_betwixt_patch16_reg4_gap_384": Reg4(img_size=384, **BETWIXT),
    "vit_little_patch16_reg1_gap_256": Reg1(img_size=256, **LITTLE),
    "vit_little_patch16_reg4_gap_256": Reg4(img_size=256, **LITTLE),
    "vit_medium_patch16_gap_240": Gap(img_size=240, **M),
    "vit_medium_patch16_gap_256": Gap(img_size=256, **M),
    "vit_medium_patch16_gap_384": Gap(img_size=384, **M),
    "vit_medium_patch16_reg1_gap_256": Reg1(img_size=256, **M),
    "vit_medium_patch16_reg4_gap_256": Reg4(img_size=256, **M),
    "vit_mediumd_patch16_reg4_gap_256": Reg4(img_size=256, **M, depth=20),
    "vit_mediumd_patch16_reg4_gap_384": Reg4(img_size=384, **M, depth=20),
    "vit_so150m2_patch16_reg1_gap_256": Config(
        img_size=256, **SO150M2, init_values=1e-5, qkv_bias=False, class_token=False, reg_tokens=1, global_pool="avg"
    ),
    "vit_so150m2_patch16_reg1_gap_384": Config(
        img_size=384, **SO150M2, init_values=1e-5, qkv_bias=False, class_token=False, reg_tokens=1, global_pool="avg"
    ),
    "vit_so150m2_patch16_reg1_gap_448": Config(
        img_size=448, **SO150M2, init_values=1e-5, qkv_bias=False, class_token=False, reg_tokens=1, global_pool="avg"
    ),
    "vit_so150m_patch16_reg4_gap_256": Config(
        img_size=256, **SO150M, class_token=False, reg_tokens=4, global_pool="avg", fc_norm=False
    ),
    "vit_so150m_patch16_reg4_gap_384": Config(
        img_size=384, **SO150M, class_token=False, reg_tokens=4, global_pool="avg", fc_norm=False
    ),
    "vit_so150m_patch16_reg4_map_256": Config(
        img_size=256, **SO150M, class_token=False, reg_tokens=4, global_pool="map"
    ),
    "vit_wee_patch16_reg1_gap_256": Reg1(img_size=256, **WEE),
}

family = Family(VisionTransformer, VARIANTS, adapt=adapt, out_indices=3, feature_cls="getter")
__getattr__ = family.module_getattr(__name__)
