"""NaFlex ViT: a vision transformer for images of any size and shape, side by side in one batch of patches (NaViT,
https://arxiv.org/abs/2307.06304; FlexiViT, https://arxiv.org/abs/2212.08013; SigLIP 2,
https://arxiv.org/abs/2502.14786; RADIO, https://arxiv.org/abs/2312.06709).

It takes images (B, C, H, W), or patches: a dict of `patches` (B, N, P * P * C), `patch_coord` (B, N, 2), rows first,
and `patch_valid` (B, N), which is False for padding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError
from opsin.layers.attention import mask_args
from opsin.layers.norm import get_norm_layer
from opsin.layers.patch_dropout import PatchDropout
from opsin.layers.rope import keep_rope
from opsin.models import vision_transformer as vit
from opsin.models._chain import Stage, run_stage
from opsin.models._config import ModelConfig
from opsin.models._eva_blocks import EvaBlock, build_eva_blocks, build_rope
from opsin.models._family import Family
from opsin.models._model import Outputs
from opsin.models._naflex import (
    NaFlexEmbeds,
    batch_patchify,
    create_attention_mask,
    global_pool_naflex,
    read_patches,
)
from opsin.models._naflex_adapt import adapt, checkpoint_filter_fn

__all__ = ["Config", "NaFlexEmbeds", "NaFlexVit", "NaFlexVitCfg", "batch_patchify", "checkpoint_filter_fn"]

Patches = Tensor | Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Layers, norms and activations are named, or given as classes."""

    global_pool: str = "map"  # map (attention pooling), token, avg, avgmax, max or "" (all tokens)
    img_size: int | tuple[int, int] | None = None  # sets the position table where pos_embed_grid_size is None
    patch_size: int | tuple[int, int] = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    num_kv_heads: int | tuple[int, ...] | None = None  # of attn_type "rope": one number, or one for each block
    mlp_ratio: float = 4.0
    scale_mlp_norm: bool = False  # a norm before the second layer of the MLP
    qkv_bias: bool = True
    qkv_fused: bool = True
    qk_norm: bool = False
    proj_bias: bool = True
    scale_attn_inner_norm: bool = False  # a norm before the output projection of attention
    use_key_only_attn_mask: bool = False  # padding looks at patches too, which saves memory
    init_values: float | None = None  # start of the layer scale
    attn_only_layer_scale: bool = False
    pos_drop_rate: float = 0.0
    patch_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    class_token: bool = False
    reg_tokens: int = 0
    pos_embed: str = "learned"  # learned, factorized or none
    pos_embed_grid_size: tuple[int, int] | None = (16, 16)
    pos_embed_interp_mode: str = "bicubic"
    pos_embed_ar_preserving: bool = False
    pos_embed_antialias: bool = True
    pos_embed_align_corners: bool = False
    pos_embed_use_grid_sample: bool = False  # for batches of patches: no table for each grid
    rope_type: str = ""  # axial or cat, dinov3, mixed, mrope: see opsin.layers.rope; none or ""
    rope_temperature: float = 10000.0
    rope_ref_feat_shape: tuple[int, int] | None = None
    rope_grid_offset: float = 0.0
    rope_grid_indexing: str = "ij"
    rope_rotate_half: bool = False
    rope_shift_coords: float | None = None
    rope_jitter_coords: float | None = None
    rope_rescale_coords: float | None = None
    rope_mrope_section: tuple[int, int, int] | None = None
    dynamic_img_pad: bool = False  # pad images to whole patches
    patchify_channels_last: bool = True  # the order of values in a flat patch
    enable_patch_interpolator: bool = False  # take patches (B, N, P, P, C) of other sizes
    embed_proj_type: str = "linear"  # or "conv"
    input_norm_layer: Any = None
    embed_norm_layer: Any = None
    pre_norm: bool = False  # a norm before the blocks; the patch projection then has no bias
    final_norm: bool = True
    fc_norm: bool | None = None  # the final norm behind the pool instead of before; None: where it is "avg"
    pool_include_prefix: bool = False
    attn_pool_num_heads: int | None = None
    attn_pool_mlp_ratio: float | None = None
    weight_init: str = ""
    fix_init: bool = True  # scale the last projections of block i by 1 / sqrt(2 (i + 1))
    norm_layer: Any = None
    act_layer: Any = None
    block_fn: Any = None
    mlp_layer: Any = None
    attn_layer: Any = None
    attn_type: str = "standard"  # eva and rope: see opsin.models.eva
    attn_gated: bool = False
    swiglu_mlp: bool = False
    swiglu_align_to: int = 0


NaFlexVitCfg = Config


class NaFlexVit(vit.VisionTransformer, config=Config):
    """A vision transformer over the patches of images of any size. `cfg` gives the figures, keywords change them."""

    positional: ClassVar[tuple[str, ...]] = ("in_chans", "num_classes", "img_size")
    first_conv = "embeds.proj"

    def __init__(self, cfg: Config | None = None, *args: Any, **kwargs: Any) -> None:
        placed = self.positional[: len(args)]
        given = {} if cfg is None else {f.name: getattr(cfg, f.name) for f in fields(cfg) if f.name not in placed}
        super().__init__(*args, **(given | kwargs))

    def build(self, c: Config) -> None:  # type: ignore[override]
        vit.check(as_vit(c))
        self.embed_dim = self.num_features = self.head_hidden_size = c.embed_dim
        self.has_class_token, self.num_reg_tokens = c.class_token, c.reg_tokens
        self.num_prefix_tokens, self.pool_include_prefix = int(c.class_token) + c.reg_tokens, c.pool_include_prefix
        norm = get_norm_layer(c.norm_layer or "layernorm")
        self.embeds = NaFlexEmbeds(c)
        order = "space_to_depth" if c.patchify_channels_last else "pixel_unshuffle"
        self.in_chans_strategy = order if self.embeds.linear else None  # type: ignore[misc]
        self.norm_pre = norm(c.embed_dim) if c.pre_norm else nn.Identity()
        self.patch_drop: PatchDropout = PatchDropout(c.patch_drop_rate, self.num_prefix_tokens)
        kind = "cat" if c.rope_type == "axial" else c.rope_type
        self.rope = None if kind in ("", "none") else build_rope(c, kind, None, c.rope_ref_feat_shape)
        self.blocks = nn.Sequential(*self.build_blocks(c, norm))
        behind = c.global_pool == "avg" if c.fc_norm is None else c.fc_norm
        self.norm = norm(c.embed_dim) if c.final_norm and not behind else nn.Identity()
        self.attn_pool: nn.Module | None = None
        self.fc_norm = norm(c.embed_dim) if c.final_norm and behind else nn.Identity()
        self.build_head(c)
        owners = ("embeds", "norm_pre", *(() if self.rope is None else ("rope",)))
        levels = [Stage((f"blocks.{i}",), c.embed_dim, max(self.embeds.patch_size)) for i in range(c.depth)]
        closing = [] if isinstance(self.norm, nn.Identity) else [Stage(("norm",), any_depth=True)]
        self.chain = (Stage((), params=owners, checkpoint=False), *levels, *closing)  # `enter` embeds

    def build_blocks(self, c: Config, norm: Any) -> list[nn.Module]:  # type: ignore[override]
        special = c.attn_gated or c.swiglu_mlp or c.attn_only_layer_scale or c.attn_type != "standard"
        if self.rope is None and not special:
            return super().build_blocks(as_vit(c), norm)
        if c.block_fn or c.mlp_layer or c.attn_layer or not c.proj_bias:
            raise UnknownArgumentError(
                "block_fn, mlp_layer, attn_layer and proj_bias=False are for the plain blocks of attn_type 'standard'"
            )
        kind = c.attn_type if c.attn_type != "standard" else "eva" if self.rope is None else "rope"
        return build_eva_blocks(
            EvaBlock, c, self.rope, attn_type=kind, gated_attn=c.attn_gated, scale_mlp=c.scale_mlp_norm,
            scale_attn_inner=c.scale_attn_inner_norm, norm_layer=norm, act_layer=c.act_layer or "gelu",
            num_prefix_tokens=self.num_prefix_tokens,
        )  # fmt: skip

    def build_head(self, c: Config) -> None:  # type: ignore[override]
        heads, ratio = c.attn_pool_num_heads or c.num_heads, c.attn_pool_mlp_ratio or c.mlp_ratio
        super().build_head(replace(as_vit(c), num_heads=heads, mlp_ratio=ratio))

    # -- running ---------------------------------------------------------------------------------------------------

    def enter(
        self, x: Patches, patch_coord: Tensor | None, patch_valid: Tensor | None, attn_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        """All tokens ready for the blocks, the validity of their patches, and the keywords of all blocks."""
        patches, patch_coord, patch_valid = read_patches(x, patch_coord, patch_valid)
        tokens, grid = self.embeds(patches, patch_coord)
        tokens, keep = self.patch_drop.drop(tokens)
        if keep is not None and patch_valid is not None:
            patch_valid = patch_valid.gather(1, keep)
        if attn_mask is None and patch_valid is not None:
            symmetric = not self.config.use_key_only_attn_mask
            attn_mask = create_attention_mask(patch_valid, self.num_prefix_tokens, symmetric, tokens.dtype)
        args = mask_args(attn_mask, False)
        if self.rope is not None:
            if patch_coord is None:
                rope = self.rope.get_embed(grid)
                args["rope"] = rope if keep is None else keep_rope(rope, keep)
            else:
                coord = patch_coord if keep is None else patch_coord.gather(1, keep[..., None].expand(-1, -1, 2))
                args["rope"] = self.rope.embed(coord, grid)
        return self.norm_pre(tokens), patch_valid, args

    def forward_features(  # type: ignore[override]
        self,
        patches: Patches,
        patch_coord: Tensor | None = None,
        patch_valid: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Any:
        """All tokens after the closing norm; of a batch of patches a dict of them (`patches`) and of `patch_valid`.

        `attn_mask` is used in place of the one that hides padding, as for scaled dot product attention.
        """
        x, valid, args = self.enter(patches, patch_coord, patch_valid, attn_mask)
        for stage in self.chain:
            x = run_stage(self, stage, x, self.grad_checkpointing, args)
        return x if valid is None else {"patches": x, "patch_valid": valid}

    def forward_head(self, patches: Patches, pre_logits: bool = False, patch_valid: Tensor | None = None) -> Tensor:
        """Pool what `forward_features` gives and classify it; `pre_logits` stops at the embedding."""
        if isinstance(patches, Mapping):
            whole: Mapping[str, Tensor] = patches
            patches, patch_valid = whole["patches"], whole["patch_valid"]
        x = self.fc_norm(self.pool(patches, patch_valid=patch_valid))
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.head(x)

    def pool(self, x: Tensor, pool_type: str | None = None, patch_valid: Tensor | None = None) -> Tensor:
        """Pool all tokens to (B, embed_dim) in the model's own way, or in the one named; padding does not count."""
        kind = self.global_pool if pool_type is None else pool_type
        if patch_valid is not None and kind in ("avg", "max", "avgmax"):
            return global_pool_naflex(x, patch_valid, kind, self.num_prefix_tokens, self.pool_include_prefix)
        if patch_valid is not None and kind == "map" and self.attn_pool is not None:
            prefix = self.num_prefix_tokens if self.pool_include_prefix else 0
            mask = create_attention_mask(patch_valid, prefix, symmetric=False, dtype=x.dtype)
            return self.attn_pool(x[:, self.num_prefix_tokens - prefix :], mask)
        return super().pool(x, kind)

    def forward(  # type: ignore[override]
        self,
        x: Patches,
        patch_coord: Tensor | None = None,
        patch_valid: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits of images (B, C, H, W), or of patches: in a dict, or apart with `patch_coord` and `patch_valid`."""
        return self.forward_head(self.forward_features(x, patch_coord, patch_valid, attn_mask))

    def forward_outputs(self, x: Patches, indices: int | Sequence[int] | None = None) -> Outputs:
        """Features at `indices` (all by default), embedding and logits from one pass."""
        fmt = "NCHW" if isinstance(x, Tensor) else "NLC"
        out = self.forward_intermediates(x, indices, output_fmt=fmt, output_dict=True)
        embedding = self.forward_head(out["image_features"], True, out.get("patch_valid"))
        return Outputs(out["image_intermediates"], embedding, self.forward_logits(embedding))

    def forward_intermediates(  # type: ignore[override]
        self,
        x: Patches,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        patch_coord: Tensor | None = None,
        patch_valid: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Any:
        """The tokens of feature levels, of images as maps; see `TokenModel.forward_intermediates`.

        Args:
            output_fmt: NCHW or NHWC for maps, NLC for patch tokens (B, N, C), the only one for batches of patches.
            output_dict: give a dict of `image_features`, `image_intermediates`, `image_intermediates_prefix` (those
                asked for) and, of a batch of patches, `patch_valid`.
        """
        self.check_output_fmt(output_fmt)
        if stop_early and not intermediates_only:
            raise UnknownArgumentError("stop_early leaves no final features: pass intermediates_only=True with it")
        if self.training and self.patch_drop.prob:
            raise ValueError("patch dropout leaves holes while training: use eval(), or build with patch_drop_rate=0")
        patches, patch_coord, patch_valid = read_patches(x, patch_coord, patch_valid)
        if patch_valid is not None and output_fmt != "NLC":
            raise UnknownArgumentError("patches of many images make no maps of one size: output_fmt='NLC'")
        size = (patches.shape[-2], patches.shape[-1])
        tokens, valid, args = self.enter(patches, patch_coord, patch_valid, attn_mask)
        final, taken = self.run_chain(tokens, indices, norm=norm, stop_early=stop_early, block_args=args)
        maps = [self.as_map(level, size, output_fmt) for level in taken]
        prefixes = [level[:, : self.num_prefix_tokens] for level in taken] if return_prefix_tokens else None
        if output_dict:
            parts = {
                "image_features": None if intermediates_only else final,
                "image_intermediates": maps,
                "image_intermediates_prefix": prefixes,
                "patch_valid": valid,
            }
            return {name: part for name, part in parts.items() if part is not None}
        got: list[Any] = maps if prefixes is None else list(zip(maps, prefixes, strict=True))
        return got if intermediates_only else (final, got)

    # -- services --------------------------------------------------------------------------------------------------

    @property
    def patch_embed(self) -> NaFlexEmbeds:
        return self.embeds

    def prefix_tokens(self) -> list[Tensor]:
        return [token for token in (self.embeds.cls_token, self.embeds.reg_token) if token is not None]

    def get_patch_size(self) -> tuple[int, int]:
        return self.embeds.patch_size

    def set_input_size(self, img_size: Any = None, patch_size: Any = None) -> None:
        """There is nothing to set: images of any size are taken."""
        raise UnknownArgumentError(
            "a NaFlex model takes images of any size as it is; for another patch size create one"
        )

    def no_weight_decay(self) -> set[str]:
        tables = ("pos_embed", "cls_token", "reg_token")
        return {f"embeds.{name}" for name in tables} | ({"rope.freqs"} if self.config.rope_type == "mixed" else set())

    def init_module(self, module: nn.Module, name: str) -> bool:
        return module is self or super().init_module(module, name)


def as_vit(c: Config) -> vit.Config:
    """The same figures under the names of the plain vision transformer."""
    same = {name: getattr(c, name) for name in vit.Config.names() if name in c.names() and name != "pos_embed"}
    layers = {"block_fn": "Block", "mlp_layer": "Mlp", "attn_layer": "attn", "act_layer": "gelu"}
    named = {name: getattr(c, name) or plain for name, plain in layers.items()}
    return vit.Config(**(same | named), scale_attn_norm=c.scale_attn_inner_norm)


Gap = partial(Config, init_values=1e-5, fc_norm=True, global_pool="avg")
Par = partial(Gap, reg_tokens=4, pos_embed_ar_preserving=True)
Siglip = partial(Config, pos_embed_interp_mode="bilinear", act_layer="gelu_tanh")
Radio = partial(
    Config, class_token=True, reg_tokens=7, pos_embed_grid_size=(128, 128), pos_embed_interp_mode="bilinear",
    pos_embed_ar_preserving=True, pos_embed_antialias=False, final_norm=False, global_pool="token",
)  # fmt: skip
L: dict[str, Any] = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
H: dict[str, Any] = {"embed_dim": 1280, "depth": 32, "num_heads": 16}
GIANT: dict[str, Any] = {"embed_dim": 1536, "depth": 40, "num_heads": 24}
SO150M2: dict[str, Any] = {"embed_dim": 832, "depth": 21, "num_heads": 13, "mlp_ratio": 34 / 13, "qkv_bias": False}
SO400M: dict[str, Any] = {"embed_dim": 1152, "depth": 27, "num_heads": 16}

VARIANTS = {
    "naflexvit_base_patch16_gap": Gap(reg_tokens=4),
    "naflexvit_base_patch16_map": Config(init_values=1e-5, reg_tokens=1),
    "naflexvit_base_patch16_par_gap": Par(),
    "naflexvit_base_patch16_parfac_gap": Par(pos_embed="factorized"),
    "naflexvit_base_patch16_radio_v3": Radio(init_values=1e-5, pos_embed_align_corners=True),
    "naflexvit_base_patch16_siglip": Siglip(),
    "naflexvit_giant_patch16_radio_v3": Radio(**GIANT),
    "naflexvit_huge_patch16_radio_v3": Radio(**H, pos_embed_align_corners=True),
    "naflexvit_huge_patch16_radio_v4": Radio(**H, reg_tokens=9),
    "naflexvit_large_patch16_radio_v3": Radio(**L, init_values=1e-5),
    "naflexvit_so150m2_patch16_reg1_gap": Gap(**SO150M2, reg_tokens=1),
    "naflexvit_so150m2_patch16_reg1_map": Config(**SO150M2, init_values=1e-5, reg_tokens=1),
    "naflexvit_so400m_patch16_radio_v4": Radio(**SO400M, mlp_ratio=269 / 72, reg_tokens=9),
    "naflexvit_so400m_patch16_siglip": Siglip(**SO400M, mlp_ratio=3.7362),
}

family = Family(NaFlexVit, VARIANTS, adapt=adapt, out_indices=3, feature_cls="getter")
__getattr__ = family.module_getattr(__name__)
