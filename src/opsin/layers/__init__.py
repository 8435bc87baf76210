"""Leaf building blocks, torch only. Import them from here or from their module."""

from opsin.layers.act import QuickGELU, create_act, get_act_layer
from opsin.layers.channel_attn import EcaModule, SEModule, create_attn, make_divisible
from opsin.layers.classifier import ClassifierHead, NormMlpClassifierHead
from opsin.layers.drop import DropPath, drop_path, drop_path_rates
from opsin.layers.grn import GlobalResponseNorm, GlobalResponseNormMlp
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
from opsin.layers.pool import BlurPool2d, SelectAdaptivePool2d, create_aa
from opsin.layers.weight_init import lecun_normal_, skip_init, trunc_normal_, variance_scaling_

__all__ = [
    "BlurPool2d",
    "ClassifierHead",
    "DropPath",
    "EcaModule",
    "GlobalResponseNorm",
    "GlobalResponseNormMlp",
    "GroupNorm",
    "GroupNorm1",
    "LayerNorm",
    "LayerNorm2d",
    "Mlp",
    "NormMlpClassifierHead",
    "QuickGELU",
    "RmsNorm",
    "RmsNorm2d",
    "SEModule",
    "SelectAdaptivePool2d",
    "SimpleNorm",
    "SimpleNorm2d",
    "create_aa",
    "create_act",
    "create_attn",
    "drop_path",
    "drop_path_rates",
    "get_act_layer",
    "get_norm_layer",
    "lecun_normal_",
    "make_divisible",
    "skip_init",
    "trunc_normal_",
    "variance_scaling_",
]
