"""Vision Transformer (https://arxiv.org/abs/2010.11929), plain and as in AugReg (https://arxiv.org/abs/2106.10270).

The class serves more lineages; each has its own table: `vit_clip`, `vit_siglip`, `vit_dinov2`, `vit_reg`,
`vit_parallel`, `vit_jepa`, `vit_radio`, `vit_aimv2`, `vit_beit3`, `vit_flexi`, and `deit`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, did_you_mean
from opsin.layers.attention import Attention
from opsin.layers.attn_pool import AttentionPoolLatent
from opsin.layers.drop import drop_path_rates
from opsin.layers.layer_scale import LayerScale
from opsin.layers.mlp import Mlp
from opsin.layers.norm import get_norm_layer
from opsin.layers.patch_dropout import PatchDropout
from opsin.layers.patch_embed import PatchEmbed
from opsin.layers.pos_embed import resample_abs_pos_embed
from opsin.layers.weight_init import trunc_normal_
from opsin.models._chain import Stage, as_it_was_on_error
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._index import MODELS
from opsin.models._token import POOLS, TokenModel, global_pool_nlc
from opsin.models._vit_adapt import adapt, checkpoint_filter_fn
from opsin.models._vit_blocks import (
    BLOCKS,
    Block,
    DiffParallelScalingBlock,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    by_name,
)
from opsin.models._vit_init import INITIALISERS

__all__ = [
    "Attention",
    "Block",
    "Config",
    "DiffParallelScalingBlock",
    "LayerScale",
    "Mlp",
    "ParallelScalingBlock",
    "ParallelThingsBlock",
    "PatchEmbed",
    "ResPostBlock",
    "VisionTransformer",
    "checkpoint_filter_fn",
    "global_pool_nlc",
]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Layers, norms and activations are named (`"SwiGLU"`, `"rmsnorm"`, `"gelu_tanh"`), or given as classes."""

    global_pool: str = "token"  # token, avg, avgmax, max, map (attention pooling) or "" (all tokens)
    img_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    proj_bias: bool = True  # of attention output and MLP
    qk_norm: bool = False
    scale_attn_norm: bool = False  # a norm before the output projection of attention
    scale_mlp_norm: bool = False  # a norm before the second layer of the MLP
    init_values: float | None = None  # start of the layer scale
    class_token: bool = True
    pos_embed: str = "learn"  # or "none"
    no_embed_class: bool = False  # no position embedding for prefix tokens
    reg_tokens: int = 0  # register tokens (https://arxiv.org/abs/2309.16588)
    pre_norm: bool = False  # a norm before the blocks; the patch projection then has no bias
    final_norm: bool = True
    fc_norm: bool | None = None  # the final norm behind the pool instead of before; None: where the pool reduces
    pool_include_prefix: bool = False  # reduce over prefix tokens as well
    dynamic_img_size: bool = False  # take any size, resampling the position embedding in each pass
    dynamic_img_pad: bool = False  # pad images to whole patches
    pos_drop_rate: float = 0.0
    patch_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    weight_init: str = (
        ""  # "", jax, jax_nlhb (head bias -log(classes)), moco, reset (torch's defaults) or skip (the same)
    )
    fix_init: bool = False  # scale the last projections of block i by 1 / sqrt(2 (i + 1))
    embed_layer: Any = PatchEmbed
    embed_norm_layer: Any = None
    norm_layer: Any = "layernorm"
    norm_eps: float | None = None  # of all norms; None leaves them theirs (1e-6)
    act_layer: Any = "gelu"
    block_fn: Any = "Block"
    mlp_layer: Any = "Mlp"
    attn_layer: Any = "attn"
    # how the position embedding of a checkpoint is resampled: interpolation, antialias, align_corners
    resample: Mapping[str, Any] = field(default_factory=dict)


class VisionTransformer(TokenModel, config=Config):
    """Patch tokens, prefix tokens, `depth` blocks, a pooled linear head."""

    positional: ClassVar[tuple[str, ...]] = (
        "img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth", "num_heads",
        "mlp_ratio", "qkv_bias", "qk_norm", "scale_attn_norm", "scale_mlp_norm", "proj_bias", "init_values",
        "class_token",
    )  # fmt: skip

    def build(self, c: Config) -> None:
        check(c)
        self.embed_dim = self.num_features = self.head_hidden_size = c.embed_dim
        self.has_class_token, self.no_embed_class = c.class_token, c.no_embed_class
        self.num_reg_tokens = c.reg_tokens
        self.num_prefix_tokens = self.count_prefix_tokens(c)
        self.dynamic_img_size, self.pool_include_prefix = c.dynamic_img_size, c.pool_include_prefix
        norm = bind_norm(c.norm_layer or "layernorm", c.norm_eps)
        self.build_embed(c)
        self.norm_pre = norm(c.embed_dim) if c.pre_norm else nn.Identity()
        self.blocks = nn.Sequential(*self.build_blocks(c, norm))
        behind = c.global_pool in ("avg", "avgmax", "max") if c.fc_norm is None else c.fc_norm
        self.norm = norm(c.embed_dim) if c.final_norm and not behind else nn.Identity()
        self.attn_pool: nn.Module | None = None
        self.fc_norm = norm(c.embed_dim) if c.final_norm and behind else nn.Identity()
        self.head_drop = nn.Dropout(c.drop_rate)
        self.build_head(c)
        self.chain = self.declare_chain(c)

    def count_prefix_tokens(self, c: Config) -> int:
        return int(c.class_token) + c.reg_tokens

    def build_embed(self, c: Config) -> None:
        """Patch projection, prefix tokens, position embedding."""
        extra: dict[str, Any] = {"strict_img_size": False, "output_fmt": "NHWC"} if c.dynamic_img_size else {}
        if c.embed_norm_layer:
            extra["norm_layer"] = bind_norm(c.embed_norm_layer, c.norm_eps)
        token = lambda count: nn.Parameter(torch.empty(1, count, c.embed_dim)) if count else None  # noqa: E731
        self.cls_token = token(int(c.class_token))
        self.reg_token = token(c.reg_tokens)
        self.patch_embed = by_name(c.embed_layer, {"PatchEmbed": PatchEmbed}, "patch embedding")(
            img_size=c.img_size, patch_size=c.patch_size, in_chans=c.in_chans, embed_dim=c.embed_dim,
            bias=not c.pre_norm, dynamic_img_pad=c.dynamic_img_pad, **extra,
        )  # fmt: skip
        learned = c.pos_embed not in ("", "none")
        count = self.patch_embed.num_patches + (0 if c.no_embed_class else self.num_prefix_tokens)
        self.pos_embed = token(count if learned else 0)
        self.pos_drop = nn.Dropout(c.pos_drop_rate)
        dropped = c.patch_drop_rate > 0
        self.patch_drop = PatchDropout(c.patch_drop_rate, self.num_prefix_tokens) if dropped else nn.Identity()

    def build_blocks(self, c: Config, norm: Any) -> list[nn.Module]:
        make = by_name(c.block_fn, BLOCKS, "block")
        return [
            make(
                dim=c.embed_dim, num_heads=c.num_heads, mlp_ratio=c.mlp_ratio, qkv_bias=c.qkv_bias, qk_norm=c.qk_norm,
                scale_attn_norm=c.scale_attn_norm, scale_mlp_norm=c.scale_mlp_norm, proj_bias=c.proj_bias,
                init_values=c.init_values, proj_drop=c.proj_drop_rate, attn_drop=c.attn_drop_rate, drop_path=rate,
                norm_layer=norm, act_layer=c.act_layer or "gelu", mlp_layer=c.mlp_layer, attn_layer=c.attn_layer,
                depth=i,
            )
            for i, rate in enumerate(drop_path_rates(c.drop_path_rate, (c.depth,))[0])
        ]  # fmt: skip

    def declare_chain(self, c: Config) -> tuple[Stage, ...]:
        owners = ("patch_embed", *(name for name in TOKENS if getattr(self, name, None) is not None), "norm_pre")
        ratio = self.patch_embed.feat_ratio()
        levels = [Stage((f"blocks.{i}",), c.embed_dim, ratio) for i in range(c.depth)]
        closing = [] if isinstance(self.norm, nn.Identity) else [Stage(("norm",), any_depth=True)]
        return (Stage(("embed",), params=owners, checkpoint=False), *levels, *closing)

    def build_head(self, c: Config) -> None:
        check(c)
        if c.global_pool != "map":
            self.attn_pool = None
        elif self.attn_pool is None:
            self.attn_pool = AttentionPoolLatent(
                c.embed_dim, num_heads=c.num_heads, mlp_ratio=c.mlp_ratio, act_layer=c.act_layer or "gelu",
                norm_layer=bind_norm(c.norm_layer or "layernorm", c.norm_eps),
            )  # fmt: skip
        self.global_pool = c.global_pool
        self.head = nn.Linear(c.embed_dim, c.num_classes) if c.num_classes else nn.Identity()

    # -- running ---------------------------------------------------------------------------------------------------

    def embed(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to all tokens (B, N, embed_dim), ready for the blocks."""
        return self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))

    def prefix_tokens(self) -> list[Tensor]:
        return [token for token in (self.cls_token, self.reg_token) if token is not None]

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Add positions, put the prefix tokens first; takes tokens, or a map (B, h, w, C) where sizes are dynamic."""
        prefix = [token.expand(x.shape[0], -1, -1) for token in self.prefix_tokens()]
        table: Tensor | None = self.pos_embed
        if x.ndim == 4:
            if table is not None:
                count = 0 if self.no_embed_class else self.num_prefix_tokens
                grid = (x.shape[1], x.shape[2])
                table = resample_abs_pos_embed(table, grid, self.patch_embed.grid_size, count)
            x = x.flatten(1, 2)
        if table is None:
            return self.pos_drop(torch.cat((*prefix, x), 1) if prefix else x)
        if self.no_embed_class:
            x = x + table
            return self.pos_drop(torch.cat((*prefix, x), 1) if prefix else x)
        return self.pos_drop((torch.cat((*prefix, x), 1) if prefix else x) + table)

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """Pool all tokens to (B, embed_dim) in the model's own way, or in the one named; "" leaves them."""
        pool_type = self.global_pool if pool_type is None else pool_type
        if pool_type == "map":
            if self.attn_pool is None:
                raise UnknownArgumentError(
                    "the model has no attention pooling: reset_classifier(n, 'map') gives it one"
                )
            return self.attn_pool(x if self.pool_include_prefix else x[:, self.num_prefix_tokens :])
        return global_pool_nlc(x, pool_type, self.num_prefix_tokens, self.pool_include_prefix)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool all tokens and classify; `pre_logits` stops at the embedding."""
        x = self.head_drop(self.fc_norm(self.pool(x)))
        return x if pre_logits else self.head(x)

    # -- services --------------------------------------------------------------------------------------------------

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token", "dist_token", "reg_token"}

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As for every model; the final norm stays before or behind the pool, where its trained values belong."""
        with as_it_was_on_error(self):
            self.settle_norms()
            super().reset_classifier(num_classes, global_pool)

    def settle_norms(self) -> None:
        """Make the config say where the final norm is."""
        self.config = replace(self.config, fc_norm=not isinstance(self.fc_norm, nn.Identity))

    def prune_intermediate_layers(
        self, indices: Any = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        chosen = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if prune_head:
            self.fc_norm = nn.Identity()
        return chosen

    # -- initial values --------------------------------------------------------------------------------------------

    def init_module(self, module: nn.Module, name: str) -> bool:
        if module is self:
            self.init_tokens()
            return True
        return INITIALISERS[self.config.weight_init](module, name, self.num_classes)

    def init_tokens(self) -> None:
        if self.pos_embed is not None:
            trunc_normal_(self.pos_embed, std=0.02)
        for token in self.prefix_tokens():
            nn.init.normal_(token, std=1e-6)

    def init_last(self) -> None:
        for i, block in enumerate(self.blocks):
            if isinstance(block, ResPostBlock):
                block.init_last()
            if self.config.fix_init:
                for path in ("attn.proj", "mlp.fc2"):
                    block.get_parameter(f"{path}.weight").div_(math.sqrt(2.0 * (i + 1)))


TOKENS = ("cls_token", "reg_token", "dist_token", "pos_embed")


def check(c: Config) -> None:
    """Refuse figures that do not go together."""
    if c.global_pool not in POOLS:
        near = did_you_mean(c.global_pool, POOLS)
        raise UnknownArgumentError(f"no global_pool {c.global_pool!r}.{near} Known: token, avg, max, avgmax, map, ''")
    if c.global_pool == "token" and not c.class_token:
        raise UnknownArgumentError("global_pool='token' needs class_token=True; a model without one pools with 'avg'")
    if c.pos_embed not in ("", "none", "learn"):
        raise UnknownArgumentError(f"pos_embed={c.pos_embed!r}: 'learn' or 'none'")
    if c.weight_init not in INITIALISERS:
        raise UnknownArgumentError(f"weight_init={c.weight_init!r}: {', '.join(map(repr, INITIALISERS))}")


def bind_norm(norm_layer: Any, eps: float | None) -> Any:
    return get_norm_layer(norm_layer) if eps is None else get_norm_layer(norm_layer, eps=eps)


TI: dict[str, Any] = {"embed_dim": 192, "num_heads": 3}
S: dict[str, Any] = {"embed_dim": 384, "num_heads": 6}
L: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
H: dict[str, Any] = {"embed_dim": 1280, "depth": 32, "num_heads": 16}
G: dict[str, Any] = {"embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 48 / 11}
GG: dict[str, Any] = {"embed_dim": 1664, "depth": 48, "num_heads": 16, "mlp_ratio": 64 / 13}

VARIANTS = {
    "eva_large_patch14_196": Config(img_size=196, patch_size=14, **L, global_pool="avg"),
    "eva_large_patch14_336": Config(img_size=336, patch_size=14, **L, global_pool="avg"),
    "test_vit": Config(img_size=160, embed_dim=64, depth=6, num_heads=2, mlp_ratio=3, dynamic_img_size=True),
    "test_vit2": Config(
        img_size=160,
        embed_dim=64,
        depth=8,
        num_heads=2,
        mlp_ratio=3,
        class_token=False,
        reg_tokens=1,
        global_pool="avg",
        init_values=1e-5,
        dynamic_img_size=True,
    ),
    "test_vit3": Config(
        img_size=160,
        embed_dim=96,
        depth=9,
        num_heads=3,
        mlp_ratio=2,
        class_token=False,
        reg_tokens=1,
        global_pool="map",
        pool_include_prefix=True,
        init_values=1e-5,
    ),
    "test_vit4": Config(
        img_size=160,
        embed_dim=96,
        depth=9,
        num_heads=3,
        mlp_ratio=3,
        class_token=False,
        reg_tokens=1,
        global_pool="avg",
        init_values=1e-5,
        dynamic_img_size=True,
        norm_layer="rmsnorm",
    ),
    "vit_base_patch8_224": Config(patch_size=8),
    "vit_base_patch16_224": Config(),
    "vit_base_patch16_224_miil": Config(qkv_bias=False),
    "vit_base_patch16_384": Config(img_size=384),
    "vit_base_patch16_plus_240": Config(img_size=240, embed_dim=896, num_heads=14, init_values=1e-5),
    "vit_base_patch32_224": Config(patch_size=32),
    "vit_base_patch32_384": Config(img_size=384, patch_size=32),
    "vit_base_patch32_plus_256": Config(img_size=256, patch_size=32, embed_dim=896, num_heads=14, init_values=1e-5),
    "vit_giant_patch14_224": Config(patch_size=14, **G),
    "vit_gigantic_patch14_224": Config(patch_size=14, **GG),
    "vit_huge_patch14_224": Config(patch_size=14, **H),
    "vit_huge_patch16_224": Config(**H),
    "vit_huge_patch32_384": Config(img_size=384, patch_size=32, **H),
    "vit_intern300m_patch14_448": Config(
        img_size=448, patch_size=14, **L, init_values=0.1, final_norm=False, dynamic_img_size=True
    ),
    "vit_large_patch14_224": Config(patch_size=14, **L),
    "vit_large_patch16_224": Config(**L),
    "vit_large_patch16_384": Config(img_size=384, **L),
    "vit_large_patch32_224": Config(patch_size=32, **L),
    "vit_large_patch32_384": Config(img_size=384, patch_size=32, **L),
    "vit_small_patch8_224": Config(patch_size=8, **S),
    "vit_small_patch16_224": Config(**S),
    "vit_small_patch16_384": Config(img_size=384, **S),
    "vit_small_patch32_224": Config(patch_size=32, **S),
    "vit_small_patch32_384": Config(img_size=384, patch_size=32, **S),
    "vit_tiny_patch16_224": Config(**TI),
    "vit_tiny_patch16_384": Config(img_size=384, **TI),
}

family = Family(VisionTransformer, VARIANTS, adapt=adapt, out_indices=3, feature_cls="getter")
_own = family.module_getattr(__name__)


def __getattr__(name: str) -> Any:
    """This file's variants by name, and those of the other lineages of the class."""
    home = MODELS.get(name, "")
    return getattr(import_module(f"opsin.models.{home}"), name) if home.startswith("vit_") else _own(name)
