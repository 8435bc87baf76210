"""Swin Transformer (https://arxiv.org/abs/2103.14030), and S3, the same with windows found by search
(https://arxiv.org/abs/2111.14725)."""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError
from opsin.layers.drop import DropPath
from opsin.layers.mlp import Mlp
from opsin.layers.rel_pos_bias import RelPosTable
from opsin.layers.weight_init import trunc_normal_
from opsin.models._family import Family
from opsin.models._swin import Size, SwinConfig, SwinModel, WindowBlock, adapt, per_stage
from opsin.models._vit_init import INITIALISERS

__all__ = ["Config", "SwinBlock", "SwinTransformer", "WindowAttention"]


@dataclass(frozen=True, kw_only=True)
class Config(SwinConfig):
    head_dim: int | tuple[int | None, ...] | None = None  # width of a head, None for dim / num_heads; or one per stage
    weight_init: str = ""  # "", jax, jax_nlhb (head bias -log(classes)), moco, reset (torch's defaults) or skip


class WindowAttention(RelPosTable):
    """Self-attention over `(windows, N, dim)` with a learned bias for each head and each offset of two positions."""

    def __init__(
        self, dim: int, num_heads: int, window_size: Size, *, head_dim: int | None = None, qkv_bias: bool = True,
        attn_drop: float = 0.0, proj_drop: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_heads = num_heads
        inner = num_heads * (head_dim or dim // num_heads)
        self.init_table(window_size, num_heads)
        self.qkv = nn.Linear(dim, 3 * inner, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(inner, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        count, area, _ = x.shape
        q, k, v = self.qkv(x).reshape(count, area, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.position_bias()
        if mask is not None:  # all windows of an image, then the next image
            bias = (bias + mask[:, None]).repeat(count // mask.shape[0], 1, 1, 1)
        drop = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, bias, drop)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


class SwinBlock(WindowBlock):
    """Window attention and MLP, each behind its norm, on `(B, H, W, dim)`."""

    def __init__(
        self, dim: int, num_heads: int, *, feat_size: Size, window_size: Size, shifted: bool = False,
        always_partition: bool = False, dynamic: bool = False, mlp_ratio: float = 4.0, head_dim: int | None = None,
        qkv_bias: bool = True, attn_drop: float = 0.0, proj_drop: float = 0.0, drop_path: float = 0.0,
        norm_layer: Any = nn.LayerNorm,
    ) -> None:  # fmt: skip
        super().__init__(feat_size, window_size, shifted, always_partition, dynamic)
        self.norm1 = norm_layer(dim)
        self.attn = WindowAttention(
            dim, num_heads, self.window_size, head_dim=head_dim, qkv_bias=qkv_bias, attn_drop=attn_drop,
            proj_drop=proj_drop,
        )  # fmt: skip
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = norm_layer(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=proj_drop)
        self.drop_path2 = DropPath(drop_path)
        self.reset_buffers()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attend(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class SwinTransformer(SwinModel, config=Config):
    """Norms in front of attention and MLP, a table of position biases."""

    def build_block(self, c: Config, stage: int, **kwargs: Any) -> WindowBlock:
        if c.weight_init not in INITIALISERS:
            raise UnknownArgumentError(f"weight_init={c.weight_init!r}: {', '.join(map(repr, INITIALISERS))}")
        return SwinBlock(head_dim=per_stage(c.head_dim, stage), **kwargs)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}

    def init_module(self, module: nn.Module, name: str) -> bool:
        return INITIALISERS[self.config.weight_init](module, name, self.num_classes)


B: dict[str, Any] = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)}
L: dict[str, Any] = {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)}

VARIANTS = {
    "swin_base_patch4_window7_224": Config(**B),
    "swin_base_patch4_window12_384": Config(**B, window_size=12, img_size=384),
    "swin_large_patch4_window7_224": Config(**L),
    "swin_large_patch4_window12_384": Config(**L, window_size=12, img_size=384),
    "swin_s3_base_224": Config(depths=(2, 2, 30, 2), window_size=(7, 7, 14, 7)),
    "swin_s3_small_224": Config(depths=(2, 2, 18, 2), window_size=(14, 14, 14, 7)),
    "swin_s3_tiny_224": Config(window_size=(7, 7, 14, 7)),
    "swin_small_patch4_window7_224": Config(depths=(2, 2, 18, 2)),
    "swin_tiny_patch4_window7_224": Config(),
}

family = Family(SwinTransformer, VARIANTS, adapt=adapt, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
