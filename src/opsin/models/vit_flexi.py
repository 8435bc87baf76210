"""FlexiViT (https://arxiv.org/abs/2212.08013): trained over patch sizes, so that `patch_size` may be chosen at will."""

from functools import partial
from typing import Any

from opsin.models._family import Family
from opsin.models._vit_adapt import adapt
from opsin.models.vision_transformer import Config, VisionTransformer

__all__ = ["VARIANTS"]

Flexi = partial(Config, img_size=240, no_embed_class=True, resample={"interpolation": "bilinear", "antialias": False})
S: dict[str, Any] = {"embed_dim": 384, "num_heads": 6}
L: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 16}

VARIANTS = {
    "flexivit_base": Flexi(),
    "flexivit_large": Flexi(**L),
    "flexivit_small": Flexi(**S),
}

family = Family(VisionTransformer, VARIANTS, adapt=adapt, out_indices=3, feature_cls="getter")
__getattr__ = family.module_getattr(__name__)
