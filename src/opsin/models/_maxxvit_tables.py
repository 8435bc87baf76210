"""The variants of CoAtNet, MaxViT and MaxxViT; a number behind the name is the image size it was trained at."""

from typing import Any

from opsin.models._maxxvit import Config

__all__ = ["VARIANTS"]

W64: dict[str, Any] = {"embed_dim": (64, 128, 256, 512)}
W128: dict[str, Any] = {"embed_dim": (128, 256, 512, 1024)}
W192: dict[str, Any] = {"embed_dim": (192, 384, 768, 1536)}
SHALLOW: dict[str, Any] = {"depths": (2, 2, 5, 2)}
DEEP: dict[str, Any] = {"depths": (2, 6, 14, 2)}
DEEPER: dict[str, Any] = {"depths": (2, 12, 28, 2)}
STEM32: dict[str, Any] = {"stem_width": (32, 64)}
STEM64: dict[str, Any] = {"stem_width": (64, 128)}
STEM96: dict[str, Any] = {"stem_width": (96, 192)}
TEST: dict[str, Any] = {"img_size": 160, "embed_dim": (32, 64, 96, 128), "stem_width": (16, 32)}

# "rw" variants of CoAtNet: narrower expansion, SiLU; then with the norms activated; then with early channel attention
RW: dict[str, Any] = {"conv_expand_output": False, "conv_act_layer": "silu", "transformer_expand_first": False}
RW_PRE: dict[str, Any] = RW | {"conv_pre_norm_act": True, "conv_output_bias": False}
RW_RELU: dict[str, Any] = RW_PRE | {"conv_attn_act_layer": "relu"}
RW_EARLY: dict[str, Any] = RW_RELU | {"conv_attn_early": True, "transformer_shortcut_bias": False}
POOLED: dict[str, Any] = {"conv_stride_mode": "pool"}
MLP: dict[str, Any] = {"transformer_rel_pos_type": "mlp"}
SCALE: dict[str, Any] = {"transformer_init_values": 1e-6}
C0_RW: dict[str, Any] = STEM32 | {"depths": (2, 3, 7, 2)}
NANO_RW: dict[str, Any] = W64 | STEM32 | {"depths": (3, 4, 6, 3)}
C2_RW: dict[str, Any] = W128 | DEEP | STEM64 | RW_PRE
C3_RW: dict[str, Any] = W192 | DEEP | STEM96 | RW_PRE | SCALE

M: dict[str, Any] = {"block_type": ("M", "M", "M", "M")}
# "tf": as in the original code
TF: dict[str, Any] = M | {
    "stem_bias": True, "conv_padding": "same", "conv_act_layer": "gelu_tanh", "conv_norm_eps": 1e-3,
    "transformer_head_first": False, "transformer_rel_pos_type": "bias_tf", "transformer_act_layer": "gelu_tanh",
    "transformer_norm_eps": 1e-5,
}  # fmt: skip
TINY_TF: dict[str, Any] = W64 | SHALLOW | TF | {"head_hidden_size": 512}
SMALL_TF: dict[str, Any] = SHALLOW | TF | {"head_hidden_size": 768}
BASE_TF: dict[str, Any] = DEEP | TF | {"head_hidden_size": 768}
LARGE_TF: dict[str, Any] = W128 | DEEP | TF | {"stem_width": 128, "head_hidden_size": 1024}
XLARGE_TF: dict[str, Any] = W192 | DEEP | TF | {"stem_width": 192, "head_hidden_size": 1536}

MAXVIT: dict[str, Any] = M | RW | {"conv_output_bias": False, "conv_attn_ratio": 1 / 16}
PICO: dict[str, Any] = SHALLOW | MAXVIT | {"embed_dim": (32, 64, 128, 256), "stem_width": (24, 32)}
NANO: dict[str, Any] = W64 | STEM32 | MAXVIT | {"depths": (1, 2, 3, 1)}
TINY: dict[str, Any] = W64 | STEM32 | SHALLOW | MAXVIT
SMALL_MLP: dict[str, Any] = STEM32 | SHALLOW | MAXVIT | MLP | SCALE
BASE_MLP: dict[str, Any] = STEM32 | DEEP | MAXVIT | MLP | {"head_hidden_size": 768}

CONVNEXT: dict[str, Any] = {
    "conv_block_type": "convnext", "conv_norm_layer": "layernorm2d", "conv_norm_eps": 1e-6,
    "transformer_expand_first": False,
}  # fmt: skip
MAXXVIT: dict[str, Any] = M | CONVNEXT | SCALE
GRID: dict[str, Any] = MAXXVIT | {"transformer_no_block_attn": True}
GRID_BASE: dict[str, Any] = W128 | STEM64 | GRID | MLP | {"depths": (2, 6, 12, 2)}
SHORT: dict[str, Any] = {"depths": (1, 2, 3, 1), "weight_init": "normal"}

VARIANTS = {
    "coatnet_0_224": Config(head_hidden_size=768),
    "coatnet_0_rw_224": Config(**C0_RW, **RW_EARLY, **POOLED),
    "coatnet_1_224": Config(**DEEP, head_hidden_size=768),
    "coatnet_1_rw_224": Config(**DEEP, **STEM32, **RW_EARLY),
    "coatnet_2_224": Config(**W128, **DEEP, stem_width=128, head_hidden_size=1024),
    "coatnet_2_rw_224": Config(**C2_RW),
    "coatnet_3_224": Config(**W192, **DEEP, stem_width=192, head_hidden_size=1536),
    "coatnet_3_rw_224": Config(**C3_RW),
    "coatnet_4_224": Config(**W192, **DEEPER, stem_width=192, head_hidden_size=1536),
    "coatnet_5_224": Config(embed_dim=(256, 512, 1280, 2048), **DEEPER, stem_width=192, head_hidden_size=2048),
    "coatnet_bn_0_rw_224": Config(**C0_RW, **RW_EARLY, transformer_norm_layer="batchnorm2d"),
    "coatnet_nano_cc_224": Config(**NANO_RW, **RW_RELU, **POOLED, block_type=("C", "C", ("C", "T"), ("C", "T"))),
    "coatnet_nano_rw_224": Config(**NANO_RW, **RW, **POOLED),
    "coatnet_pico_rw_224": Config(**W64, **STEM32, **RW),
    "coatnet_rmlp_0_rw_224": Config(**C0_RW, **RW_RELU, **MLP),
    "coatnet_rmlp_1_rw2_224": Config(**DEEP, **STEM32, **RW_RELU, **MLP),
    "coatnet_rmlp_1_rw_224": Config(
        **DEEP, **STEM32, **RW_EARLY, **POOLED, **MLP, transformer_rel_pos_dim=384, conv_pool_type="max",
        transformer_pool_type="max",
    ),
    "coatnet_rmlp_2_rw_224": Config(**C2_RW, **MLP, **SCALE),
    "coatnet_rmlp_2_rw_384": Config(img_size=384, **C2_RW, **MLP, **SCALE),
    "coatnet_rmlp_3_rw_224": Config(**C3_RW, **MLP),
    "coatnet_rmlp_nano_rw_224": Config(**NANO_RW, **RW, **MLP, transformer_rel_pos_dim=384),
    "coatnext_nano_rw_224": Config(**NANO_RW, **CONVNEXT, conv_init_values=1e-5, weight_init="normal"),
    "maxvit_base_tf_224": Config(**BASE_TF),
    "maxvit_base_tf_384": Config(img_size=384, **BASE_TF),
    "maxvit_base_tf_512": Config(img_size=512, **BASE_TF),
    "maxvit_large_tf_224": Config(**LARGE_TF),
    "maxvit_large_tf_384": Config(img_size=384, **LARGE_TF),
    "maxvit_large_tf_512": Config(img_size=512, **LARGE_TF),
    "maxvit_nano_rw_256": Config(img_size=256, **NANO),
    "maxvit_pico_rw_256": Config(img_size=256, **PICO),
    "maxvit_rmlp_base_rw_224": Config(**BASE_MLP),
    "maxvit_rmlp_base_rw_384": Config(img_size=384, **BASE_MLP),
    "maxvit_rmlp_nano_rw_256": Config(img_size=256, **NANO, **MLP),
    "maxvit_rmlp_pico_rw_256": Config(img_size=256, **PICO, **MLP),
    "maxvit_rmlp_small_rw_224": Config(**SMALL_MLP),
    "maxvit_rmlp_small_rw_256": Config(img_size=256, **SMALL_MLP),
    "maxvit_rmlp_tiny_rw_256": Config(img_size=256, **TINY, **MLP),
    "maxvit_small_tf_224": Config(**SMALL_TF),
    "maxvit_small_tf_384": Config(img_size=384, **SMALL_TF),
    "maxvit_small_tf_512": Config(img_size=512, **SMALL_TF),
    "maxvit_tiny_pm_256": Config(img_size=256, **(TINY | {"block_type": ("PM", "PM", "PM", "PM")})),
    "maxvit_tiny_rw_224": Config(**TINY),
    "maxvit_tiny_rw_256": Config(img_size=256, **TINY),
    "maxvit_tiny_tf_224": Config(**TINY_TF),
    "maxvit_tiny_tf_384": Config(img_size=384, **TINY_TF),
    "maxvit_tiny_tf_512": Config(img_size=512, **TINY_TF),
    "maxvit_xlarge_tf_224": Config(**XLARGE_TF),
    "maxvit_xlarge_tf_384": Config(img_size=384, **XLARGE_TF),
    "maxvit_xlarge_tf_512": Config(img_size=512, **XLARGE_TF),
    "maxxvit_rmlp_nano_rw_256": Config(img_size=256, **W64, **STEM32, **MAXXVIT, **MLP, **SHORT),
    "maxxvit_rmlp_small_rw_256": Config(img_size=256, **SHALLOW, **MAXXVIT, **MLP, stem_width=(48, 96)),
    "maxxvit_rmlp_tiny_rw_256": Config(img_size=256, **W64, **STEM32, **SHALLOW, **MAXXVIT, **MLP),
    "maxxvitv2_nano_rw_256": Config(img_size=256, **GRID, **SHORT, stem_width=(48, 96)),
    "maxxvitv2_rmlp_base_rw_224": Config(**GRID_BASE),
    "maxxvitv2_rmlp_base_rw_384": Config(img_size=384, **GRID_BASE),
    "maxxvitv2_rmlp_large_rw_224": Config(
        embed_dim=(160, 320, 640, 1280), depths=(2, 6, 16, 2), stem_width=(80, 160), head_hidden_size=1280, **GRID,
        **MLP,
    ),
    "test_coatnet": Config(**TEST, **RW, **POOLED, depths=(1, 1, 2, 1)),
    "test_maxvit": Config(**TEST, **MAXVIT, depths=(1, 1, 1, 1)),
}  # fmt: skip
