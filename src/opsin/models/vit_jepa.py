"""I-JEPA (https://arxiv.org/abs/2301.08243) and other ViTs without a class token: the mean of the normed patches."""

from functools import partial
from typing import Any

from opsin.models._family import Family
from opsin.models._vit_adapt import adapt
from opsin.models.vision_transformer import Config, VisionTransformer

__all__ = ["VARIANTS"]

Gap = partial(Config, class_token=False, global_pool="avg", fc_norm=False)
H: dict[str, Any] = {"embed_dim": 1280, "depth": 32, "num_heads": 16}
G: dict[str, Any] = {"embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 48 / 11}

VARIANTS = {
    "vit_base_patch16_gap_224": Gap(num_heads=16),
    "vit_giant_patch16_gap_224": Gap(**G),
    "vit_huge_patch14_gap_224": Gap(patch_size=14, **H),
    "vit_huge_patch16_gap_448": Gap(img_size=448, **H),
}

family = Family(VisionTransformer, VARIANTS, adapt=adapt, out_indices=3, feature_cls="getter")
__getattr__ = family.module_getattr(__name__)
