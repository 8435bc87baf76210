"""DINOv3 (https://arxiv.org/abs/2508.10104) and its kin: models taught by it (EUPE, LingBot), and Sapiens 2
(https://arxiv.org/abs/2604.21681), whose middle blocks have half as many heads of keys and values.
"""

from functools import partial
from typing import Any

from opsin.models._eva_adapt import adapt
from opsin.models._family import Family
from opsin.models.eva import Config, Eva

__all__ = ["VARIANTS"]

Dino = partial(
    Config, img_size=256, dynamic_img_size=True, qkv_bias=False, init_values=1e-5, use_abs_pos_emb=False,
    use_rot_pos_emb=True, rope_type="dinov3", rope_temperature=100.0, rope_rotate_half=True, num_reg_tokens=4,
    use_fc_norm=False, norm_eps=1e-5,
)  # fmt: skip
QkvBias = partial(Dino, qkv_bias=True)  # of queries and values
Lingbot = partial(Dino, img_size=512, global_pool="token", qkv_bias=True)
TI: dict[str, Any] = {"embed_dim": 192, "num_heads": 3}
S: dict[str, Any] = {"embed_dim": 384, "num_heads": 6}
L: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
GATED: dict[str, Any] = {"swiglu_mlp": True, "swiglu_align_to": 8}
H_PLUS: dict[str, Any] = {"embed_dim": 1280, "depth": 32, "num_heads": 20} | GATED
B7: dict[str, Any] = {"embed_dim": 4096, "depth": 40, "num_heads": 32, "mlp_ratio": 2.0}
GIANT: dict[str, Any] = {"embed_dim": 1536, "depth": 40, "num_heads": 24}


def sapiens(depth: int, num_heads: int, full: int, **kwargs: Any) -> Config:
    """The first and last `full` blocks have as many heads of keys and values as of queries, those between half."""
    middle = max(depth - 2 * full, 0)
    heads = (num_heads,) * (depth - middle)
    return Config(
        img_size=(1024, 768), dynamic_img_size=True, depth=depth, num_heads=num_heads, attn_type="rope",
        num_kv_heads=heads[:full] + (num_heads // 2,) * middle + heads[full:], qkv_fused=False, qk_norm=True,
        global_pool="token", swiglu_mlp=True, init_values=1.0, attn_only_layer_scale=True, use_abs_pos_emb=False,
        use_rot_pos_emb=True, rope_type="dinov3", rope_temperature=100.0, rope_rotate_half=True,
        rope_rescale_coords=2.0, num_reg_tokens=8, use_fc_norm=False, norm_layer="rmsnorm", **kwargs,
    )  # fmt: skip


VARIANTS = {
    "vit_5b_patch16_sapiens2": sapiens(56, 32, 8, embed_dim=2432),
    "vit_7b_patch16_dinov3": Dino(**B7, swiglu_mlp=True, swiglu_align_to=64),
    "vit_base_patch16_dinov3": Dino(),
    "vit_base_patch16_dinov3_qkvb": QkvBias(),
    "vit_base_patch16_lingbot": Lingbot(),
    "vit_base_patch16_sapiens2": sapiens(12, 12, 8),
    "vit_giant_patch16_lingbot": Lingbot(**GIANT, qkv_bias=False, mlp_ratio=8 / 3, **GATED),
    "vit_giant_patch16_sapiens2": sapiens(40, 24, 8, embed_dim=1536),
    "vit_huge_patch16_sapiens2": sapiens(32, 16, 8, embed_dim=1280),
    "vit_huge_plus_patch16_dinov3": Dino(**H_PLUS),
    "vit_huge_plus_patch16_dinov3_qkvb": QkvBias(**H_PLUS),
    "vit_large_patch16_dinov3": Dino(**L),
    "vit_large_patch16_dinov3_qkvb": QkvBias(**L),
    "vit_large_patch16_lingbot": Lingbot(**L),
    "vit_large_patch16_sapiens2": sapiens(24, 16, 8, embed_dim=1024),
    "vit_small_patch16_dinov3": Dino(**S),
    "vit_small_patch16_dinov3_qkvb": QkvBias(**S),
    "vit_small_patch16_lingbot": Lingbot(**S),
    "vit_small_plus_patch16_dinov3": Dino(**S, **GATED),
    "vit_small_plus_patch16_dinov3_qkvb": QkvBias(**S, **GATED),
    "vit_tiny_patch16_dinov3_qkvb": QkvBias(**TI),
}

family = Family(Eva, VARIANTS, adapt=adapt, out_indices=3, feature_cls="getter")
__getattr__ = family.module_getattr(__name__)
