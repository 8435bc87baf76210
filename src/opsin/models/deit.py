"""DeiT (https://arxiv.org/abs/2012.12877), with and without distillation token, and DeiT III (https://arxiv.org/abs/2204.07118)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError
from opsin.layers.weight_init import trunc_normal_
from opsin.models._family import Family
from opsin.models._model import Outputs
from opsin.models._vit_adapt import adapt, checkpoint_filter_fn
from opsin.models.vision_transformer import Config, VisionTransformer

__all__ = ["VisionTransformerDistilled", "checkpoint_filter_fn"]


class VisionTransformerDistilled(VisionTransformer):
    """ViT with a second prefix token and head that learn from a teacher; the answer is the mean of both heads.

    After `set_distilled_training()` a pass in training mode returns both heads' logits apart.
    """

    classifier_path = ("head", "head_dist")

    def count_prefix_tokens(self, c: Config) -> int:
        if c.reg_tokens or not c.class_token:
            raise UnknownArgumentError("a distilled model has just a class and a distillation token")
        return 2

    def build_embed(self, c: Config) -> None:
        super().build_embed(c)
        self.distilled_training = False
        self.dist_token = nn.Parameter(torch.empty(1, 1, c.embed_dim))

    def build_head(self, c: Config) -> None:
        if c.global_pool not in ("token", ""):
            raise UnknownArgumentError(
                f"a distilled model reads its two tokens: global_pool={c.global_pool!r} is not for it"
            )
        super().build_head(c)
        self.head_dist = nn.Linear(c.embed_dim, c.num_classes) if c.num_classes else nn.Identity()

    def init_tokens(self) -> None:
        super().init_tokens()
        trunc_normal_(self.dist_token, std=0.02)

    def set_distilled_training(self, enable: bool = True) -> None:
        """Return both heads' logits apart while training."""
        self.distilled_training = enable

    def prefix_tokens(self) -> list[Tensor]:
        return [self.cls_token, self.dist_token]  # type: ignore[list-item]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        tokens = self.head_drop(x[:, 0]), self.head_drop(x[:, 1])
        if pre_logits:
            return (tokens[0] + tokens[1]) / 2
        logits = self.head(tokens[0]), self.head_dist(tokens[1])
        return logits if self.distilled_training and self.training else (logits[0] + logits[1]) / 2

    def forward_outputs(self, x: Tensor, indices: int | Sequence[int] | None = None) -> Outputs:
        """As for every model; the logits come from both tokens, not from their mean."""
        final, features = self.forward_intermediates(x, indices)
        return Outputs(features, self.forward_head(final, pre_logits=True), self.forward_head(final))


Deit3 = partial(Config, no_embed_class=True, init_values=1e-6)
TI: dict[str, Any] = {"embed_dim": 192, "num_heads": 3}
S: dict[str, Any] = {"embed_dim": 384, "num_heads": 6}
M: dict[str, Any] = {"embed_dim": 512, "num_heads": 8}
L: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
H: dict[str, Any] = {"embed_dim": 1280, "depth": 32, "num_heads": 16}

VARIANTS = {
    "deit3_base_patch16_224": Deit3(),
    "deit3_base_patch16_384": Deit3(img_size=384),
    "deit3_huge_patch14_224": Deit3(patch_size=14, **H),
    "deit3_large_patch16_224": Deit3(**L),
    "deit3_large_patch16_384": Deit3(img_size=384, **L),
    "deit3_medium_patch16_224": Deit3(**M),
    "deit3_small_patch16_224": Deit3(**S),
    "deit3_small_patch16_384": Deit3(img_size=384, **S),
    "deit_base_distilled_patch16_224": Config(),
    "deit_base_distilled_patch16_384": Config(img_size=384),
    "deit_base_patch16_224": Config(),
    "deit_base_patch16_384": Config(img_size=384),
    "deit_small_distilled_patch16_224": Config(**S),
    "deit_small_patch16_224": Config(**S),
    "deit_tiny_distilled_patch16_224": Config(**TI),
    "deit_tiny_patch16_224": Config(**TI),
}

family = Family(
    VisionTransformer,
    VARIANTS,
    adapt=adapt,
    models={name: VisionTransformerDistilled for name in VARIANTS if "_distilled_" in name},
    out_indices=3,
    feature_cls="getter",
)
__getattr__ = family.module_getattr(__name__)
