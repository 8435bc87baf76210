"""Perception Encoder (https://arxiv.org/abs/2504.13181): the core with attention pooling, and its versions for language
models and dense tasks, which give all tokens as they leave the last block.
"""

from functools import partial
from typing import Any

from opsin.models._eva_adapt import adapt
from opsin.models._family import Family
from opsin.models.eva import Config, Eva

__all__ = ["VARIANTS"]

Pe = partial(
    Config, attn_type="rope", use_pre_transformer_norm=True, use_rot_pos_emb=True, rope_grid_indexing="xy",
    rope_grid_offset=1.0, norm_eps=1e-5,
)  # fmt: skip
Core = partial(Pe, global_pool="map", attn_pool_num_heads=8, attn_pool_mlp_ratio=4.0)
Dense = partial(Pe, use_post_transformer_norm=False, use_fc_norm=False, ref_feat_shape=32)
TI: dict[str, Any] = {"embed_dim": 192, "num_heads": 3}
S: dict[str, Any] = {"embed_dim": 384, "num_heads": 6}
L: dict[str, Any] = {"patch_size": 14, "embed_dim": 1024, "depth": 24, "num_heads": 16}
G: dict[str, Any] = {
    "img_size": 448, "patch_size": 14, "embed_dim": 1536, "depth": 50, "num_heads": 16, "mlp_ratio": 35 / 6,
    "class_token": False, "rope_grid_offset": 0.0,
}  # fmt: skip

VARIANTS = {
    "vit_pe_core_base_patch16_224": Core(ref_feat_shape=14),
    "vit_pe_core_gigantic_patch14_448": Core(**G, ref_feat_shape=32),
    "vit_pe_core_large_patch14_336": Core(img_size=336, **L, ref_feat_shape=24),
    "vit_pe_core_small_patch16_384": Core(img_size=384, **S, ref_feat_shape=24),
    "vit_pe_core_tiny_patch16_384": Core(img_size=384, **TI, ref_feat_shape=24),
    "vit_pe_lang_gigantic_patch14_448": Dense(**(G | {"depth": 47}), init_values=0.1),
    "vit_pe_lang_large_patch14_448": Dense(**(L | {"depth": 23}), img_size=448, init_values=0.1),
    "vit_pe_spatial_base_patch16_512": Dense(img_size=512),
    "vit_pe_spatial_gigantic_patch14_448": Dense(**G, init_values=0.1),
    "vit_pe_spatial_large_patch14_448": Dense(img_size=448, **L),
    "vit_pe_spatial_small_patch16_512": Dense(img_size=512, **S),
    "vit_pe_spatial_tiny_patch16_512": Dense(img_size=512, **TI),
}

family = Family(Eva, VARIANTS, adapt=adapt, out_indices=3, feature_cls="getter")
__getattr__ = family.module_getattr(__name__)
