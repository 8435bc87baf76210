"""C-RADIO v3 and v4 (https://arxiv.org/abs/2412.07679).

Each teacher has a class token; all but the first act as registers. Position tables are resampled without antialias.
"""

from functools import partial
from typing import Any

from opsin.models._family import Family
from opsin.models._vit_adapt import adapt
from opsin.models.vision_transformer import Config, VisionTransformer

__all__ = ["VARIANTS"]

RadioV3 = partial(Config, img_size=512, reg_tokens=7, no_embed_class=True, final_norm=False)
RadioV4 = partial(Config, img_size=512, reg_tokens=9, no_embed_class=True, final_norm=False)
CENTRES: dict[str, Any] = {"interpolation": "bilinear", "antialias": False, "align_corners": False}
CORNERS: dict[str, Any] = CENTRES | {"align_corners": True}
L: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
H: dict[str, Any] = {"embed_dim": 1280, "depth": 32, "num_heads": 16}
GIANT2: dict[str, Any] = {"embed_dim": 1536, "depth": 40, "num_heads": 24}

VARIANTS = {
    "vit_base_patch16_radio_v3": RadioV3(init_values=1e-5, resample=CORNERS),
    "vit_giant_patch16_radio_v3": RadioV3(**GIANT2, resample=CENTRES),
    "vit_huge_patch16_radio_v3": RadioV3(**H, resample=CORNERS),
    "vit_huge_patch16_radio_v4": RadioV4(**H, resample=CENTRES),
    "vit_large_patch16_radio_v3": RadioV3(**L, init_values=1e-5, resample=CENTRES),
    "vit_so400m_patch16_radio_v4": RadioV4(
        embed_dim=1152,
        depth=27,
        num_heads=16,
        mlp_ratio=4304 / 1152,
        resample=CENTRES,
    ),
}

family = Family(VisionTransformer, VARIANTS, adapt=adapt, out_indices=3, feature_cls="getter")
__getattr__ = family.module_getattr(__name__)
