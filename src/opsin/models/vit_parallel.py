"""ViTs of other blocks: parallel ones (https://arxiv.org/abs/2203.09795), attention and MLP on one projection (ViT-22B,
https://arxiv.org/abs/2302.05442), norms behind (Swin V2), differential attention (https://arxiv.org/abs/2410.05258).
"""

from functools import partial
from typing import Any

from opsin.models._family import Family
from opsin.models._vit_adapt import adapt
from opsin.models.vision_transformer import Config, VisionTransformer

__all__ = ["VARIANTS"]

Xp = partial(
    Config,
    pre_norm=True,
    no_embed_class=True,
    norm_layer="rmsnorm",
    block_fn="ParallelScalingBlock",
    qkv_bias=False,
    qk_norm=True,
)
Reg = partial(
    Config, img_size=256, class_token=False, no_embed_class=True, reg_tokens=1, global_pool="avg", init_values=1e-5
)
L: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
THINGS: dict[str, Any] = {"init_values": 1e-5, "block_fn": "ParallelThingsBlock"}
H: dict[str, Any] = {"embed_dim": 1280, "depth": 32, "num_heads": 16}
LITTLE: dict[str, Any] = {"embed_dim": 320, "depth": 14, "num_heads": 5, "mlp_ratio": 5.6}
WEE: dict[str, Any] = {"embed_dim": 256, "depth": 14, "num_heads": 4, "mlp_ratio": 5}
PWEE: dict[str, Any] = {"embed_dim": 256, "depth": 16, "num_heads": 4, "mlp_ratio": 5}

VARIANTS = {
    "vit_base_patch16_18x2_224": Config(depth=18, **THINGS),
    "vit_base_patch16_rpn_224": Config(
        qkv_bias=False, init_values=1e-5, class_token=False, block_fn="ResPostBlock", global_pool="avg"
    ),
    "vit_base_patch16_xp_224": Xp(),
    "vit_dlittle_patch16_reg1_gap_256": Reg(**LITTLE, attn_layer="diff"),
    "vit_dpwee_patch16_reg1_gap_256": Reg(**PWEE, block_fn="DiffParallelScalingBlock"),
    "vit_dwee_patch16_reg1_gap_256": Reg(**WEE, attn_layer="diff"),
    "vit_huge_patch14_xp_224": Xp(patch_size=14, **H),
    "vit_large_patch14_xp_224": Xp(patch_size=14, **L),
    "vit_pwee_patch16_reg1_gap_256": Reg(**PWEE, block_fn="ParallelScalingBlock"),
    "vit_small_patch16_18x2_224": Config(embed_dim=384, depth=18, num_heads=6, **THINGS),
    "vit_small_patch16_36x1_224": Config(embed_dim=384, depth=36, num_heads=6, init_values=1e-5),
}

family = Family(VisionTransformer, VARIANTS, adapt=adapt, out_indices=3, feature_cls="getter")
__getattr__ = family.module_getattr(__name__)
