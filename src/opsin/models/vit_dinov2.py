"""DINOv2 (https://arxiv.org/abs/2304.07193), with registers (https://arxiv.org/abs/2309.16588), and TIPS v2."""

from functools import partial
from typing import Any

from opsin.models._family import Family
from opsin.models._vit_adapt import adapt
from opsin.models.vision_transformer import Config, VisionTransformer

__all__ = ["VARIANTS"]

Dino = partial(Config, patch_size=14, img_size=518, init_values=1e-5)
DinoReg = partial(Config, patch_size=14, img_size=518, init_values=1e-5, reg_tokens=4, no_embed_class=True)
Tips = partial(Config, patch_size=14, img_size=448, init_values=1.0, reg_tokens=1, no_embed_class=True)
S: dict[str, Any] = {"embed_dim": 384, "num_heads": 6}
L: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
GIANT2: dict[str, Any] = {"embed_dim": 1536, "depth": 40, "num_heads": 24}

VARIANTS = {
    "vit_base_patch14_dinov2": Dino(),
    "vit_base_patch14_reg1_tipsv2": Tips(),
    "vit_base_patch14_reg4_dinov2": DinoReg(),
    "vit_giant_patch14_dinov2": Dino(**GIANT2, mlp_ratio=5.33334, mlp_layer="SwiGLUPacked", act_layer="silu"),
    "vit_giant_patch14_reg1_tipsv2": Tips(**GIANT2, mlp_ratio=5.33334, mlp_layer="SwiGLUPacked", act_layer="silu"),
    "vit_giant_patch14_reg4_dinov2": DinoReg(**GIANT2, mlp_ratio=5.33334, mlp_layer="SwiGLUPacked", act_layer="silu"),
    "vit_large_patch14_dinov2": Dino(**L),
    "vit_large_patch14_reg1_tipsv2": Tips(**L),
    "vit_large_patch14_reg4_dinov2": DinoReg(**L),
    "vit_small_patch14_dinov2": Dino(**S),
    "vit_small_patch14_reg4_dinov2": DinoReg(**S),
    "vit_so400m_patch14_reg1_tipsv2": Tips(embed_dim=1152, depth=27, num_heads=16, mlp_ratio=4304 / 1152),
}

family = Family(VisionTransformer, VARIANTS, adapt=adapt, out_indices=3, feature_cls="getter")
__getattr__ = family.module_getattr(__name__)
