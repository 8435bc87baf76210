"""EVA (https://arxiv.org/abs/2211.07636), EVA-CLIP (https://arxiv.org/abs/2303.15389) and EVA-02
(https://arxiv.org/abs/2303.11331): vision transformers, most with rotary positions.

The class serves more lineages; each has its own table: `vit_rope`, `vit_pe` (Perception Encoder) and `vit_dinov3`.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any, ClassVar

from torch import Tensor, nn

from opsin.layers.attention import mask_args
from opsin.layers.patch_dropout import PatchDropout
from opsin.layers.patch_embed import to_2tuple
from opsin.layers.rope import Rope, keep_rope
from opsin.layers.weight_init import trunc_normal_
from opsin.models import vision_transformer as vit
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._eva_adapt import adapt, checkpoint_filter_fn
from opsin.models._eva_blocks import EvaAttention, EvaBlock, EvaBlockPostNorm, build_eva_blocks, build_rope
from opsin.models._family import Family
from opsin.models._index import MODELS
from opsin.models._vit_init import init_plain

__all__ = ["Config", "Eva", "EvaAttention", "EvaBlock", "EvaBlockPostNorm", "checkpoint_filter_fn"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """`norm_layer` is named, or given as a class."""

    global_pool: str = "avg"  # avg, token, max, avgmax, map (attention pooling) or "" (all tokens)
    img_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    num_kv_heads: int | tuple[int, ...] | None = None  # heads of keys and values: one number, or one for each block
    qkv_bias: bool = True
    qkv_fused: bool = True  # one layer for queries, keys and values
    qk_norm: bool = False
    mlp_ratio: float = 4.0
    swiglu_mlp: bool = False
    swiglu_align_to: int = 0  # a hidden width that this divides
    scale_mlp: bool = False  # a norm before the second layer of the MLP
    scale_attn_inner: bool = False  # a norm before the output projection of attention
    attn_type: str = "eva"  # no key bias; "rope" has one
    pos_drop_rate: float = 0.0
    patch_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    norm_layer: Any = "layernorm"
    norm_eps: float | None = None  # of all norms; None leaves them theirs (1e-6)
    init_values: float | None = None  # start of the layer scale
    attn_only_layer_scale: bool = False
    class_token: bool = True
    num_reg_tokens: int = 0
    no_embed_class: bool = False  # no position embedding for prefix tokens
    use_abs_pos_emb: bool = True
    use_rot_pos_emb: bool = False
    rope_type: str = "cat"  # cat, dinov3, mixed, mrope: see opsin.layers.rope
    rope_grid_offset: float = 0.0
    rope_grid_indexing: str = "ij"
    rope_temperature: float = 10000.0
    rope_rotate_half: bool = False
    rope_shift_coords: float | None = None
    rope_jitter_coords: float | None = None
    rope_rescale_coords: float | None = None
    rope_mrope_section: tuple[int, int, int] | None = None
    use_post_norm: bool = False  # norms behind attention and MLP
    use_pre_transformer_norm: bool = False  # a norm before the blocks; the patch projection then has no bias
    use_post_transformer_norm: bool | None = None  # a norm behind them; None: where there is none behind the pool
    use_fc_norm: bool | None = None  # a norm behind the pool; None: where it is "avg"
    attn_pool_num_heads: int | None = None  # None: as in the blocks
    attn_pool_mlp_ratio: float | None = None
    dynamic_img_size: bool = False  # take any size; position embeddings and ropes follow it
    dynamic_img_pad: bool = False  # pad images to whole patches
    ref_feat_shape: int | tuple[int, int] | None = None  # the grid to which coordinates of the rope "cat" are stretched
    head_init_scale: float = 0.001


class Eva(vit.VisionTransformer, config=Config):
    """A vision transformer whose blocks may be given rotary positions."""

    positional: ClassVar[tuple[str, ...]] = (
        "img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth", "num_heads",
        "num_kv_heads", "qkv_bias", "qkv_fused", "qk_norm", "mlp_ratio",
    )  # fmt: skip
    rope: Rope | None

    def build(self, c: Config) -> None:  # type: ignore[override]
        like = as_vit(c)
        self.embed_dim = self.num_features = self.head_hidden_size = c.embed_dim
        self.has_class_token, self.no_embed_class = c.class_token, c.no_embed_class
        self.num_reg_tokens, self.num_prefix_tokens = c.num_reg_tokens, self.count_prefix_tokens(like)
        self.dynamic_img_size, self.pool_include_prefix = c.dynamic_img_size, False
        norm = vit.bind_norm(c.norm_layer, c.norm_eps)
        self.build_embed(like)
        self.norm_pre = norm(c.embed_dim) if c.use_pre_transformer_norm else nn.Identity()
        grid = None if c.dynamic_img_size else self.patch_embed.grid_size
        ref = None if c.ref_feat_shape is None else to_2tuple(c.ref_feat_shape)
        self.rope = build_rope(c, c.rope_type, grid, ref) if c.use_rot_pos_emb else None
        self.blocks = nn.Sequential(*self.build_blocks(c, norm))
        behind = c.global_pool == "avg" if c.use_fc_norm is None else c.use_fc_norm
        closing = not behind if c.use_post_transformer_norm is None else c.use_post_transformer_norm
        self.norm = norm(c.embed_dim) if closing else nn.Identity()
        self.attn_pool: nn.Module | None = None
        self.fc_norm = norm(c.embed_dim) if behind else nn.Identity()
        self.head_drop = nn.Dropout(c.drop_rate)
        self.build_head(c)
        embed, *rest = self.declare_chain(like)
        owners = embed.owners + (("rope",) if isinstance(self.rope, nn.Module) else ())
        self.chain = (Stage((), params=owners, checkpoint=False), *rest)  # `begin` embeds

    def build_blocks(self, c: Config, norm: Any) -> list[nn.Module]:  # type: ignore[override]
        return build_eva_blocks(
            EvaBlockPostNorm if c.use_post_norm else EvaBlock, c, self.rope, scale_mlp=c.scale_mlp, norm_layer=norm,
            scale_attn_inner=c.scale_attn_inner, attn_type=c.attn_type, num_prefix_tokens=self.num_prefix_tokens,
        )  # fmt: skip

    def build_head(self, c: Config) -> None:  # type: ignore[override]
        heads, ratio = c.attn_pool_num_heads or c.num_heads, c.attn_pool_mlp_ratio or c.mlp_ratio
        super().build_head(replace(as_vit(c), num_heads=heads, mlp_ratio=ratio))

    # -- running ---------------------------------------------------------------------------------------------------

    def begin(self, x: Tensor, attn_mask: Tensor | None, is_causal: bool) -> tuple[Tensor, dict[str, Any]]:
        """All tokens (B, N, embed_dim), ready for the blocks, and the rope of those that were not dropped."""
        x = self.patch_embed(x)
        grid = tuple(x.shape[1:3]) if x.ndim == 4 else self.patch_embed.grid_size
        x, keep = self._pos_embed(x), None
        if isinstance(self.patch_drop, PatchDropout):
            x, keep = self.patch_drop.drop(x)
        args = mask_args(attn_mask, is_causal)
        if self.rope is not None:
            rope = self.rope.get_embed(grid)
            args["rope"] = rope if keep is None else keep_rope(rope, keep)
        return self.norm_pre(x), args

    def pool(self, x: Tensor, pool_type: str | None = None) -> Tensor:
        """Pool all tokens to (B, embed_dim) in the model's own way, or in the one named; "map" reads all of them."""
        pool_type = self.global_pool if pool_type is None else pool_type
        return self.attn_pool(x) if pool_type == "map" and self.attn_pool else super().pool(x, pool_type)

    # -- services --------------------------------------------------------------------------------------------------

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Make the model take another image or patch size; kernels, position embeddings and rope follow."""
        super().set_input_size(img_size, patch_size)
        if self.rope is not None:
            self.rope.update_feat_shape(self.patch_embed.grid_size)

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {name for name, _ in self.named_parameters() if name == "rope.freqs"}

    def settle_norms(self) -> None:
        norms = self.fc_norm, getattr(self, "norm", nn.Identity())  # pruning may have removed the second
        behind, closing = (not isinstance(norm, nn.Identity) for norm in norms)
        self.config = replace(self.config, use_fc_norm=behind, use_post_transformer_norm=closing)

    # -- initial values --------------------------------------------------------------------------------------------

    def init_module(self, module: nn.Module, name: str) -> bool:
        return super().init_module(module, name) if module is self else init_plain(module, name, self.num_classes)

    def init_tokens(self) -> None:
        for token in (*self.prefix_tokens(), self.pos_embed):
            if token is not None:
                trunc_normal_(token, std=0.02)

    def init_last(self) -> None:
        for i, block in enumerate(self.blocks):
            for path in ("attn.proj", "mlp.fc2"):
                block.get_parameter(f"{path}.weight").div_(math.sqrt(2.0 * (i + 1)))
        if isinstance(self.head, nn.Linear):
            self.head.weight.mul_(self.config.head_init_scale)


def as_vit(c: Config) -> vit.Config:
    """The same figures under the names of the plain vision transformer."""
    same = {name: getattr(c, name) for name in vit.Config.names() if name in c.names()}
    learned = "learn" if c.use_abs_pos_emb else "none"
    return vit.Config(**same, reg_tokens=c.num_reg_tokens, pre_norm=c.use_pre_transformer_norm, pos_embed=learned)


Eva02 = partial(Config, patch_size=14, swiglu_mlp=True, mlp_ratio=8 / 3, use_rot_pos_emb=True, ref_feat_shape=16)
Apart = partial(Eva02, qkv_fused=False, scale_mlp=True)
Clip = partial(Apart, scale_attn_inner=True, global_pool="token")
TI: dict[str, Any] = {"embed_dim": 192, "num_heads": 3}
S: dict[str, Any] = {"embed_dim": 384, "num_heads": 6}
L: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
G: dict[str, Any] = {"embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 48 / 11}
E: dict[str, Any] = {"embed_dim": 1792, "depth": 64, "num_heads": 16, "mlp_ratio": 60 / 7}

VARIANTS = {
    "eva02_base_patch14_224": Apart(),
    "eva02_base_patch14_448": Apart(img_size=448),
    "eva02_base_patch16_clip_224": Clip(patch_size=16),
    "eva02_enormous_patch14_clip_224": Config(patch_size=14, **E, use_post_norm=True, global_pool="token"),
    "eva02_large_patch14_224": Apart(**L),
    "eva02_large_patch14_448": Apart(img_size=448, **L),
    "eva02_large_patch14_clip_224": Clip(**L),
    "eva02_large_patch14_clip_336": Clip(img_size=336, **L),
    "eva02_small_patch14_224": Eva02(**S),
    "eva02_small_patch14_336": Eva02(img_size=336, **S),
    "eva02_tiny_patch14_224": Eva02(**TI),
    "eva02_tiny_patch14_336": Eva02(img_size=336, **TI),
    "eva_giant_patch14_224": Config(patch_size=14, **G),
    "eva_giant_patch14_336": Config(img_size=336, patch_size=14, **G),
    "eva_giant_patch14_560": Config(img_size=560, patch_size=14, **G),
    "eva_giant_patch14_clip_224": Config(patch_size=14, **G, global_pool="token"),
}

family = Family(Eva, VARIANTS, adapt=adapt, out_indices=3, feature_cls="getter")
_own = family.module_getattr(__name__)


def __getattr__(name: str) -> Any:
    """This file's variants by name, and those of the other lineages of the class."""
    home = MODELS.get(name, "")
    lineage = home in ("vit_rope", "vit_pe", "vit_dinov3")
    return getattr(import_module(f"opsin.models.{home}"), name) if lineage else _own(name)
