"""The vision branch of BEiT-3 (https://arxiv.org/abs/2208.10442): norms inside attention and MLP."""

from functools import partial
from typing import Any

from opsin.models._family import Family
from opsin.models._vit_adapt import adapt
from opsin.models.vision_transformer import Config, VisionTransformer

__all__ = ["VARIANTS"]

Beit3 = partial(Config, scale_attn_norm=True, scale_mlp_norm=True, global_pool="avg", norm_eps=1e-5)
L: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 16}

VARIANTS = {
    "beit3_base_patch16_224": Beit3(),
    "beit3_giant_patch14_224": Beit3(patch_size=14, embed_dim=1408, depth=40, num_heads=16, mlp_ratio=4.3637),
    "beit3_giant_patch14_336": Beit3(
        img_size=336, patch_size=14, embed_dim=1408, depth=40, num_heads=16, mlp_ratio=4.3637
    ),
    "beit3_large_patch16_224": Beit3(**L),
}

family = Family(VisionTransformer, VARIANTS, adapt=adapt, out_indices=3, feature_cls="getter")
__getattr__ = family.module_getattr(__name__)
