"""CaiT, class attention in image transformers (https://arxiv.org/abs/2103.17239): deep stacks of patch blocks with
layer scale and talking heads (https://arxiv.org/abs/2003.02436), then a class token that only looks."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError
from opsin.layers.attention import split_heads
from opsin.layers.drop import DropPath
from opsin.layers.mlp import Mlp
from opsin.layers.norm import LayerNorm, get_norm_layer
from opsin.layers.patch_embed import PatchEmbed
from opsin.layers.pos_embed import resample_abs_pos_embed
from opsin.layers.weight_init import trunc_normal_
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._token import PatchModel, global_pool_nlc, resize_input
from opsin.models._vit_blocks import MLPS, by_name
from opsin.models._vit_init import init_plain

__all__ = ["Cait", "ClassAttn", "Config", "LayerScaleBlock", "LayerScaleBlockClassAttn", "TalkingHeadAttn"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Blocks, attention, MLPs and norms are named, or given as classes; `token_only`: of the class attention."""

    global_pool: str = "token"  # token, avg, max, avgmax or "" (all tokens)
    img_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    embed_dim: int = 768
    depth: int = 12
    depth_token_only: int = 2
    num_heads: int = 12
    mlp_ratio: float = 4.0
    mlp_ratio_token_only: float = 4.0
    qkv_bias: bool = True
    init_values: float = 1e-4  # start of the layer scale
    pos_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0  # the same for all blocks
    block_layers: Any = "LayerScaleBlock"
    block_layers_token: Any = "LayerScaleBlockClassAttn"
    attn_block: Any = "TalkingHeadAttn"
    attn_block_token_only: Any = "ClassAttn"
    mlp_block: Any = "Mlp"
    mlp_block_token_only: Any = "Mlp"
    patch_layer: Any = "PatchEmbed"
    norm_layer: Any = "layernorm"
    act_layer: Any = "gelu"


class TalkingHeadAttn(nn.Module):
    """Self-attention over `(B, N, dim)` whose maps are mixed across heads before and after the softmax."""

    def __init__(
        self, dim: int, num_heads: int = 8, qkv_bias: bool = False, attn_drop: float = 0.0, proj_drop: float = 0.0
    ) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_l = nn.Linear(num_heads, num_heads)
        self.proj_w = nn.Linear(num_heads, num_heads)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, -1))
        scores = (q * self.scale) @ k.transpose(-2, -1)
        weights = self.proj_l(scores.permute(0, 2, 3, 1)).softmax(2)  # (B, N, N, heads)
        weights = self.attn_drop(self.proj_w(weights).permute(0, 3, 1, 2))
        return self.proj_drop(self.proj((weights @ v).transpose(1, 2).flatten(2)))


class ClassAttn(nn.Module):
    """What the first of `(B, N, dim)` tokens sees in all of them: `(B, 1, dim)`."""

    def __init__(
        self, dim: int, num_heads: int = 8, qkv_bias: bool = False, attn_drop: float = 0.0, proj_drop: float = 0.0
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.k = nn.Linear(dim, dim, bias=qkv_bias)
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.num_heads) for part in (self.q(x[:, :1]), self.k(x), self.v(x)))
        drop = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=drop)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


class LayerScaleBlock(nn.Module):
    """Attention and MLP, each behind its norm and with a layer scale, on `(B, N, dim)`."""

    def __init__(
        self, dim: int, num_heads: int, *, mlp_ratio: float = 4.0, qkv_bias: bool = False, proj_drop: float = 0.0,
        attn_drop: float = 0.0, drop_path: float = 0.0, norm_layer: Any = LayerNorm, act_layer: Any = "gelu",
        attn_block: Any = TalkingHeadAttn, mlp_block: Any = Mlp, init_values: float = 1e-4,
    ) -> None:  # fmt: skip
        super().__init__()
        self.init_values = init_values
        self.norm1 = norm_layer(dim)
        self.attn = attn_block(dim, num_heads=num_heads, qkv_bias=qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = norm_layer(dim)
        self.mlp = mlp_block(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=proj_drop)
        self.gamma_1 = nn.Parameter(torch.empty(dim))
        self.gamma_2 = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gamma_1, self.init_values)
        nn.init.constant_(self.gamma_2, self.init_values)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.gamma_1 * self.attn(self.norm1(x)))
        return x + self.drop_path(self.gamma_2 * self.mlp(self.norm2(x)))


class LayerScaleBlockClassAttn(LayerScaleBlock):
    """The same for the class token `(B, 1, dim)` alone, which looks at itself and the patches `(B, N, dim)`."""

    def forward(self, x: Tensor, token: Tensor) -> Tensor:  # type: ignore[override]
        token = token + self.drop_path(self.gamma_1 * self.attn(self.norm1(torch.cat((token, x), 1))))
        return token + self.drop_path(self.gamma_2 * self.mlp(self.norm2(token)))


PARTS: dict[str, Any] = {
    part.__name__: part for part in (LayerScaleBlock, LayerScaleBlockClassAttn, TalkingHeadAttn, ClassAttn, PatchEmbed)
}


class Cait(PatchModel, config=Config):
    """Patch tokens with position embeddings, blocks, class attention, norm, linear head."""

    positional = (
        "img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth", "num_heads",
        "mlp_ratio", "qkv_bias",
    )  # fmt: skip
    classifier_path = "head"
    first_conv = "patch_embed.proj"

    def build(self, c: Config) -> None:
        self.num_features = self.head_hidden_size = self.embed_dim = c.embed_dim
        norm = get_norm_layer(c.norm_layer)
        self.patch_embed = by_name(c.patch_layer, PARTS, "patch embedding")(
            img_size=c.img_size, patch_size=c.patch_size, in_chans=c.in_chans, embed_dim=c.embed_dim
        )
        self.cls_token: nn.Parameter | None = nn.Parameter(torch.empty(1, 1, c.embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, self.patch_embed.num_patches, c.embed_dim))
        self.pos_drop = nn.Dropout(c.pos_drop_rate)
        make = partial(
            by_name(c.block_layers, PARTS, "block"), c.embed_dim, c.num_heads, mlp_ratio=c.mlp_ratio,
            proj_drop=c.proj_drop_rate, attn_drop=c.attn_drop_rate, drop_path=c.drop_path_rate,
            attn_block=by_name(c.attn_block, PARTS, "attention"), mlp_block=by_name(c.mlp_block, MLPS, "MLP"),
        )  # fmt: skip
        make_token = partial(
            by_name(c.block_layers_token, PARTS, "block"), c.embed_dim, c.num_heads, mlp_ratio=c.mlp_ratio_token_only,
            attn_block=by_name(c.attn_block_token_only, PARTS, "attention"),
            mlp_block=by_name(c.mlp_block_token_only, MLPS, "MLP"),
        )  # fmt: skip
        shared = {name: getattr(c, name) for name in ("qkv_bias", "act_layer", "init_values")} | {"norm_layer": norm}
        self.blocks = nn.Sequential(*(make(**shared) for _ in range(c.depth)))
        self.blocks_token_only = nn.ModuleList(make_token(**shared) for _ in range(c.depth_token_only))
        self.norm = norm(c.embed_dim)
        self.build_head(c)
        levels = [Stage((f"blocks.{i}",), c.embed_dim, self.patch_embed.feat_ratio()) for i in range(c.depth)]
        self.chain = (
            Stage(("embed",), params=("patch_embed", "pos_embed"), checkpoint=False),
            *levels,
            Stage(("look",), params=("cls_token", "blocks_token_only"), to_tokens=True),
            Stage(("norm",), any_depth=True),
        )

    @property
    def num_prefix_tokens(self) -> int:
        return 0 if self.cls_token is None else 1

    def build_head(self, c: Config) -> None:
        if c.global_pool == "token" and self.cls_token is None:
            raise UnknownArgumentError("global_pool='token' needs the class token, which was pruned: use 'avg'")
        self.global_pool = c.global_pool
        self.head = nn.Linear(c.embed_dim, c.num_classes) if c.num_classes else nn.Identity()

    def embed(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to patch tokens (B, N, embed_dim)."""
        return self.pos_drop(self.patch_embed(x) + self.pos_embed)

    def look(self, x: Tensor) -> Tensor:
        """Patches (B, N, embed_dim) with the class token in front that has seen them (B, 1 + N, embed_dim)."""
        token = self.cls_token.expand(x.shape[0], -1, -1)  # type: ignore[union-attr]
        for block in self.blocks_token_only:
            token = block(x, token)
        return torch.cat((token, x), 1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool all tokens and classify; `pre_logits` stops at the embedding."""
        x = global_pool_nlc(x, self.global_pool, self.num_prefix_tokens)
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.head(x)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Make the model take another image size or patch size; kernels and position embeddings are resampled."""
        resize_input(self, img_size, patch_size, 0)

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token"}

    def init_module(self, module: nn.Module, name: str) -> bool:
        if module is self:
            for token in (self.pos_embed, self.cls_token):
                if token is not None:
                    trunc_normal_(token, std=0.02)
            return True
        return init_plain(module, name, self.num_classes)


def adapt(state_dict: Mapping[str, Tensor], model: Any) -> Mapping[str, Tensor]:
    """Read checkpoints saved from parallel training, and those for another image size."""
    state = {key.removeprefix("module."): value for key, value in state_dict.items()}
    table = state.get("pos_embed")
    if table is not None and table.shape != model.pos_embed.shape:
        state["pos_embed"] = resample_abs_pos_embed(table, model.patch_embed.grid_size, num_prefix_tokens=0)
    return state


XXS: dict[str, Any] = {"embed_dim": 192, "num_heads": 4, "init_values": 1e-5}
XS: dict[str, Any] = {"embed_dim": 288, "num_heads": 6, "init_values": 1e-5}
S: dict[str, Any] = {"embed_dim": 384, "num_heads": 8}
M: dict[str, Any] = {"embed_dim": 768, "num_heads": 16}

VARIANTS = {
    "cait_m36_384": Config(img_size=384, depth=36, **M, init_values=1e-6),
    "cait_m48_448": Config(img_size=448, depth=48, **M, init_values=1e-6),
    "cait_s24_224": Config(depth=24, **S, init_values=1e-5),
    "cait_s24_384": Config(img_size=384, depth=24, **S, init_values=1e-5),
    "cait_s36_384": Config(img_size=384, depth=36, **S, init_values=1e-6),
    "cait_xs24_384": Config(img_size=384, depth=24, **XS),
    "cait_xxs24_224": Config(depth=24, **XXS),
    "cait_xxs24_384": Config(img_size=384, depth=24, **XXS),
    "cait_xxs36_224": Config(depth=36, **XXS),
    "cait_xxs36_384": Config(img_size=384, depth=36, **XXS),
}

family = Family(Cait, VARIANTS, adapt=adapt, out_indices=3, feature_cls="getter")
__getattr__ = family.module_getattr(__name__)
