"""Image towers of CLIP (https://arxiv.org/abs/2103.00020), OpenCLIP (https://arxiv.org/abs/2212.07143), MetaCLIP, DFN
and their fine-tunings: a norm before the blocks, epsilon 1e-5; the first CLIPs with the quick GELU.
"""

from functools import partial
from typing import Any

from opsin.models._family import Family
from opsin.models._vit_adapt import adapt
from opsin.models.vision_transformer import Config, VisionTransformer

__all__ = ["VARIANTS"]

Clip = partial(Config, pre_norm=True, norm_eps=1e-5)
Quick = partial(Config, pre_norm=True, norm_eps=1e-5, act_layer="quick_gelu")
M: dict[str, Any] = {"embed_dim": 512, "num_heads": 8}
BETWIXT: dict[str, Any] = {"embed_dim": 640, "num_heads": 10}
L: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
H: dict[str, Any] = {"embed_dim": 1280, "depth": 32, "num_heads": 16}
G: dict[str, Any] = {"embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 48 / 11}
GG: dict[str, Any] = {"embed_dim": 1664, "depth": 48, "num_heads": 16, "mlp_ratio": 64 / 13}

VARIANTS = {
    "vit_base_patch16_clip_224": Clip(),
    "vit_base_patch16_clip_384": Clip(img_size=384),
    "vit_base_patch16_clip_quickgelu_224": Quick(),
    "vit_base_patch16_plus_clip_240": Clip(img_size=240, embed_dim=896, num_heads=14),
    "vit_base_patch32_clip_224": Clip(patch_size=32),
    "vit_base_patch32_clip_256": Clip(img_size=256, patch_size=32),
    "vit_base_patch32_clip_384": Clip(img_size=384, patch_size=32),
    "vit_base_patch32_clip_448": Clip(img_size=448, patch_size=32),
    "vit_base_patch32_clip_quickgelu_224": Quick(patch_size=32),
    "vit_betwixt_patch32_clip_224": Clip(patch_size=32, **BETWIXT),
    "vit_giant_patch14_clip_224": Clip(patch_size=14, **G),
    "vit_gigantic_patch14_clip_224": Clip(patch_size=14, **GG),
    "vit_gigantic_patch14_clip_378": Clip(img_size=378, patch_size=14, **GG),
    "vit_gigantic_patch14_clip_quickgelu_224": Quick(patch_size=14, **GG),
    "vit_huge_patch14_clip_224": Clip(patch_size=14, **H),
    "vit_huge_patch14_clip_336": Clip(img_size=336, patch_size=14, **H),
    "vit_huge_patch14_clip_378": Clip(img_size=378, patch_size=14, **H),
    "vit_huge_patch14_clip_quickgelu_224": Quick(patch_size=14, **H),
    "vit_huge_patch14_clip_quickgelu_378": Quick(img_size=378, patch_size=14, **H),
    "vit_large_patch14_clip_224": Clip(patch_size=14, **L),
    "vit_large_patch14_clip_336": Clip(img_size=336, patch_size=14, **L),
    "vit_large_patch14_clip_quickgelu_224": Quick(patch_size=14, **L),
    "vit_large_patch14_clip_quickgelu_336": Quick(img_size=336, patch_size=14, **L),
    "vit_medium_patch16_clip_224": Clip(**M),
    "vit_medium_patch32_clip_224": Clip(patch_size=32, **M),
    "vit_xsmall_patch16_clip_224": Clip(embed_dim=256, depth=10, num_heads=4),
}

family = Family(VisionTransformer, VARIANTS, adapt=adapt, out_indices=3, feature_cls="getter")
__getattr__ = family.module_getattr(__name__)
