"""AIMv2 (https://arxiv.org/abs/2411.14402): RMS norms, SwiGLU, no biases."""

from functools import partial
from typing import Any

from opsin.models._family import Family
from opsin.models._vit_adapt import adapt
from opsin.models.vision_transformer import Config, VisionTransformer

__all__ = ["VARIANTS"]

Aim = partial(
    Config,
    patch_size=14,
    class_token=False,
    global_pool="avg",
    fc_norm=False,
    qkv_bias=False,
    proj_bias=False,
    act_layer="silu",
    norm_layer="rmsnorm",
    embed_norm_layer="rmsnorm",
    norm_eps=1e-5,
    mlp_layer="SwiGLU",
)
A1B: dict[str, Any] = {"embed_dim": 2048, "depth": 24, "num_heads": 16, "mlp_ratio": 2.75}
A3B: dict[str, Any] = {"embed_dim": 3072, "depth": 24, "num_heads": 24, "mlp_ratio": 2.6667}
AH: dict[str, Any] = {"embed_dim": 1536, "depth": 24, "mlp_ratio": 2.6667}
AL: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 8, "mlp_ratio": 2.75}

VARIANTS = {
    "aimv2_1b_patch14_224": Aim(**A1B),
    "aimv2_1b_patch14_336": Aim(img_size=336, **A1B),
    "aimv2_1b_patch14_448": Aim(img_size=448, **A1B),
    "aimv2_3b_patch14_224": Aim(**A3B),
    "aimv2_3b_patch14_336": Aim(img_size=336, **A3B),
    "aimv2_3b_patch14_448": Aim(img_size=448, **A3B),
    "aimv2_huge_patch14_224": Aim(**AH),
    "aimv2_huge_patch14_336": Aim(img_size=336, **AH),
    "aimv2_huge_patch14_448": Aim(img_size=448, **AH),
    "aimv2_large_patch14_224": Aim(**AL),
    "aimv2_large_patch14_336": Aim(img_size=336, **AL),
    "aimv2_large_patch14_448": Aim(img_size=448, **AL),
}

family = Family(VisionTransformer, VARIANTS, adapt=adapt, out_indices=3, feature_cls="getter")
__getattr__ = family.module_getattr(__name__)
