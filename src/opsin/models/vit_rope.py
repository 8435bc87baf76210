"""RoPE-ViT (https://arxiv.org/abs/2403.13298): rotary positions along the axes or in learned directions ("mixed"),
alone or beside a position embedding ("ape"); and ViTs with registers that pool by the mean.
"""

from functools import partial
from typing import Any

from opsin.models._eva_adapt import adapt
from opsin.models._family import Family
from opsin.models.eva import Config, Eva

__all__ = ["VARIANTS"]

Rope = partial(
    Config, attn_type="rope", init_values=1e-5, global_pool="token", use_abs_pos_emb=False, use_rot_pos_emb=True,
    rope_grid_indexing="xy", rope_temperature=100.0,
)  # fmt: skip
Ape = partial(Rope, use_abs_pos_emb=True, no_embed_class=True)
Mixed = partial(Rope, rope_type="mixed", rope_temperature=10.0)
MixedApe = partial(Mixed, use_abs_pos_emb=True, no_embed_class=True)
Gap = partial(
    Config, img_size=256, init_values=1e-5, class_token=False, num_reg_tokens=1, use_abs_pos_emb=False,
    use_rot_pos_emb=True, ref_feat_shape=16,
)  # fmt: skip
S: dict[str, Any] = {"embed_dim": 384, "num_heads": 6}
M: dict[str, Any] = {"embed_dim": 512, "num_heads": 8}
BETWIXT: dict[str, Any] = {"embed_dim": 640, "num_heads": 10}
L: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 16}

VARIANTS = {
    "vit_base_patch16_rope_224": Rope(),
    "vit_base_patch16_rope_ape_224": Ape(),
    "vit_base_patch16_rope_mixed_224": Mixed(),
    "vit_base_patch16_rope_mixed_ape_224": MixedApe(),
    "vit_base_patch16_rope_reg1_gap_256": Gap(),
    "vit_betwixt_patch16_rope_reg4_gap_256": Gap(**BETWIXT, num_reg_tokens=4),
    "vit_large_patch16_rope_224": Rope(**L),
    "vit_large_patch16_rope_ape_224": Ape(**L),
    "vit_large_patch16_rope_mixed_224": Mixed(**L),
    "vit_large_patch16_rope_mixed_ape_224": MixedApe(**L),
    "vit_medium_patch16_rope_reg1_gap_256": Gap(**M),
    "vit_mediumd_patch16_rope_reg1_gap_256": Gap(**M, depth=20, qkv_bias=False),
    "vit_small_patch16_rope_224": Rope(**S),
    "vit_small_patch16_rope_ape_224": Ape(**S),
    "vit_small_patch16_rope_mixed_224": Mixed(**S),
    "vit_small_patch16_rope_mixed_ape_224": MixedApe(**S),
}

family = Family(Eva, VARIANTS, adapt=adapt, out_indices=3, feature_cls="getter")
__getattr__ = family.module_getattr(__name__)
