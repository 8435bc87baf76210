"""Image towers of SigLIP (https://arxiv.org/abs/2303.15343) and SigLIP 2 (https://arxiv.org/abs/2502.14786), which pool
by attention; the `gap` ones leave that out and take the mean.
"""

from functools import partial
from typing import Any

from opsin.models._family import Family
from opsin.models._vit_adapt import adapt
from opsin.models.vision_transformer import Config, VisionTransformer

__all__ = ["VARIANTS"]

SigLip = partial(Config, class_token=False, global_pool="map")
SigLip2 = partial(Config, class_token=False, global_pool="map", act_layer="gelu_tanh")
Gap = partial(Config, class_token=False, global_pool="avg", fc_norm=False)
Gap2 = partial(Config, class_token=False, global_pool="avg", fc_norm=False, act_layer="gelu_tanh")
L: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
SO400M: dict[str, Any] = {"embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.7362}
OPT: dict[str, Any] = {"embed_dim": 1536, "depth": 40, "num_heads": 16}

VARIANTS = {
    "vit_base_patch16_siglip_224": SigLip(),
    "vit_base_patch16_siglip_256": SigLip(img_size=256),
    "vit_base_patch16_siglip_384": SigLip(img_size=384),
    "vit_base_patch16_siglip_512": SigLip(img_size=512),
    "vit_base_patch16_siglip_gap_224": Gap(),
    "vit_base_patch16_siglip_gap_256": Gap(img_size=256),
    "vit_base_patch16_siglip_gap_384": Gap(img_size=384),
    "vit_base_patch16_siglip_gap_512": Gap(img_size=512),
    "vit_base_patch32_siglip_256": SigLip2(img_size=256, patch_size=32),
    "vit_base_patch32_siglip_gap_256": Gap2(img_size=256, patch_size=32),
    "vit_giantopt_patch16_siglip_256": SigLip2(img_size=256, **OPT),
    "vit_giantopt_patch16_siglip_384": SigLip2(img_size=384, **OPT),
    "vit_giantopt_patch16_siglip_gap_256": Gap2(img_size=256, **OPT),
    "vit_giantopt_patch16_siglip_gap_384": Gap2(img_size=384, **OPT),
    "vit_large_patch16_siglip_256": SigLip(img_size=256, **L),
    "vit_large_patch16_siglip_384": SigLip(img_size=384, **L),
    "vit_large_patch16_siglip_512": SigLip2(img_size=512, **L),
    "vit_large_patch16_siglip_gap_256": Gap(img_size=256, **L),
    "vit_large_patch16_siglip_gap_384": Gap(img_size=384, **L),
    "vit_large_patch16_siglip_gap_512": Gap2(img_size=512, **L),
    "vit_so400m_patch14_siglip_224": SigLip(patch_size=14, **SO400M),
    "vit_so400m_patch14_siglip_378": SigLip(img_size=378, patch_size=14, **SO400M),
    "vit_so400m_patch14_siglip_384": SigLip(img_size=384, patch_size=14, **SO400M),
    "vit_so400m_patch14_siglip_gap_224": Gap(patch_size=14, **SO400M),
    "vit_so400m_patch14_siglip_gap_378": Gap(img_size=378, patch_size=14, **SO400M),
    "vit_so400m_patch14_siglip_gap_384": Gap(img_size=384, patch_size=14, **SO400M),
    "vit_so400m_patch14_siglip_gap_448": Gap(img_size=448, patch_size=14, **SO400M),
    "vit_so400m_patch14_siglip_gap_896": Gap(img_size=896, patch_size=14, **SO400M),
    "vit_so400m_patch16_siglip_256": SigLip2(img_size=256, **SO400M),
    "vit_so400m_patch16_siglip_384": SigLip2(img_size=384, **SO400M),
    "vit_so400m_patch16_siglip_512": SigLip2(img_size=512, **SO400M),
    "vit_so400m_patch16_siglip_gap_256": Gap2(img_size=256, **SO400M),
    "vit_so400m_patch16_siglip_gap_384": Gap2(img_size=384, **SO400M),
    "vit_so400m_patch16_siglip_gap_512": Gap2(img_size=512, **SO400M),
}

family = Family(VisionTransformer, VARIANTS, adapt=adapt, out_indices=3, feature_cls="getter")
__getattr__ = family.module_getattr(__name__)
