"""Leaf building blocks, torch only. Import them from here or from their module."""

from opsin.layers.act import QuickGELU, create_act, get_act_layer
from opsin.layers.attention import Attention, DiffAttention
from opsin.layers.attn_pool import AttentionPoolLatent
from opsin.layers.channel_attn import EcaModule, SEModule, create_attn, make_divisible
from opsin.layers.classifier import ClassifierHead, NormMlpClassifierHead
from opsin.layers.drop import DropPath, drop_path, drop_path_rates
from opsin.layers.glu import GluMlp, SwiGLU, SwiGLUPacked
from opsin.layers.grn import GlobalResponseNorm, GlobalResponseNormMlp
from opsin.layers.layer_scale import LayerScale
from opsin.layers.mlp import Mlp
from opsin.layers.norm import (
    GroupNorm,
    GroupNorm1,
    LayerNorm,
    LayerNorm2d,
    RmsNorm,
    RmsNorm2d,
    SimpleNorm,
    SimpleNorm2d,
    get_norm_layer,
)
from opsin.layers.patch_dropout import PatchDropout
from opsin.layers.patch_embed import PatchEmbed, to_2tuple
from opsin.layers.pool import BlurPool2d, SelectAdaptivePool2d, create_aa
from opsin.layers.pos_embed import (
    resample_abs_pos_embed,
    resample_abs_pos_embed_nhwc,
    resample_patch_embed,
    resize_rel_pos_bias_table,
)
from opsin.layers.rel_pos_bias import RelPosBias, RelPosMlp, RelPosTable, log_offsets, relative_position_index
from opsin.layers.rope import (
    AttentionRope,
    RotaryEmbeddingCat,
    RotaryEmbeddingDinoV3,
    RotaryEmbeddingMixed,
    RotaryEmbeddingMRope,
    apply_rot_embed_cat,
    create_rope_embed,
)
from opsin.layers.weight_init import lecun_normal_, skip_init, trunc_normal_, variance_scaling_

__all__ = [
    "Attention",
    "AttentionPoolLatent",
    "AttentionRope",
    "BlurPool2d",
    "ClassifierHead",
    "DiffAttention",
    "DropPath",
    "EcaModule",
    "GlobalResponseNorm",
    "GlobalResponseNormMlp",
    "GluMlp",
    "GroupNorm",
    "GroupNorm1",
    "LayerNorm",
    "LayerNorm2d",
    "LayerScale",
    "Mlp",
    "NormMlpClassifierHead",
    "PatchDropout",
    "PatchEmbed",
    "QuickGELU",
    "RelPosBias",
    "RelPosMlp",
    "RelPosTable",
    "RmsNorm",
    "RmsNorm2d",
    "RotaryEmbeddingCat",
    "RotaryEmbeddingDinoV3",
    "RotaryEmbeddingMRope",
    "RotaryEmbeddingMixed",
    "SEModule",
    "SelectAdaptivePool2d",
    "SimpleNorm",
    "SimpleNorm2d",
    "SwiGLU",
    "SwiGLUPacked",
    "apply_rot_embed_cat",
    "create_aa",
    "create_act",
    "create_attn",
    "create_rope_embed",
    "drop_path",
    "drop_path_rates",
    "get_act_layer",
    "get_norm_layer",
    "lecun_normal_",
    "log_offsets",
    "make_divisible",
    "relative_position_index",
    "resample_abs_pos_embed",
    "resample_abs_pos_embed_nhwc",
    "resample_patch_embed",
    "resize_rel_pos_bias_table",
    "skip_init",
    "to_2tuple",
    "trunc_normal_",
    "variance_scaling_",
]
