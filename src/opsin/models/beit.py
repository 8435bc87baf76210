"""BEiT (https://arxiv.org/abs/2106.08254) and BEiT v2 (https://arxiv.org/abs/2208.06366): vision transformers with
relative position biases in every block, pre-trained on masked images."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.layers.attention import add_bias, mask_args
from opsin.layers.drop import DropPath, drop_path_rates
from opsin.layers.glu import SwiGLU
from opsin.layers.mlp import Mlp
from opsin.layers.norm import LayerNorm, get_norm_layer
from opsin.layers.patch_embed import PatchEmbed
from opsin.layers.pos_embed import resample_abs_pos_embed, resample_patch_embed, resize_rel_pos_bias_table
from opsin.layers.rel_pos_bias import RelPosTable
from opsin.layers.weight_init import trunc_normal_
from opsin.models._chain import Stage, as_it_was_on_error
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._token import TokenModel, global_pool_nlc
from opsin.models._vit_init import init_plain

__all__ = ["Attention", "Beit", "Block", "Config", "RelativePositionBias"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Position embeddings, biases per block and a bias shared by all blocks go together in any way."""

    global_pool: str = "avg"  # avg, token, max, avgmax or "" (all tokens)
    img_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True  # of queries and values
    swiglu_mlp: bool = False
    scale_mlp: bool = False  # a norm before the second layer of the MLP
    init_values: float | None = None  # start of the layer scale
    use_abs_pos_emb: bool = True
    use_rel_pos_bias: bool = False  # a table of biases in each block
    use_shared_rel_pos_bias: bool = False  # one table for all blocks
    use_fc_norm: bool | None = None  # the final norm behind the pool; None: where it is "avg"
    head_init_scale: float = 0.001
    norm_layer: Any = "layernorm"
    pos_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0


class RelativePositionBias(RelPosTable):
    """The table that all blocks share; gives `(1, heads, 1 + N, 1 + N)`."""

    def __init__(self, window_size: tuple[int, int], num_heads: int) -> None:
        super().__init__()
        self.init_table(window_size, num_heads, class_token=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.relative_position_bias_table)

    def forward(self) -> Tensor:
        return self.position_bias()


class Attention(RelPosTable):
    """Self-attention over `(B, 1 + N, dim)`, with a table of position biases where a `window_size` is given."""

    k_bias: Tensor | None

    def __init__(
        self, dim: int, num_heads: int = 8, *, qkv_bias: bool = False, attn_drop: float = 0.0, proj_drop: float = 0.0,
        window_size: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_heads, self.has_table = num_heads, window_size is not None
        self.q_bias = nn.Parameter(torch.empty(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.empty(dim)) if qkv_bias else None
        self.register_buffer("k_bias", torch.zeros(dim) if qkv_bias else None, persistent=False)
        if window_size is not None:
            self.init_table(window_size, num_heads, class_token=True)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for name, parameter in self.named_parameters(recurse=False):
            if name in ("q_bias", "v_bias", "relative_position_bias_table"):
                nn.init.zeros_(parameter)

    def reset_buffers(self) -> None:
        """Compute index and key bias again."""
        if self.has_table:
            super().reset_buffers()
        if self.k_bias is not None:
            self.k_bias = torch.zeros_like(self.k_bias, device=self.qkv.weight.device)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        whole = None
        if (
            self.q_bias is not None and self.k_bias is not None and self.v_bias is not None
        ):  # a bias of keys would shift all scores alike
            whole = torch.cat((self.q_bias, self.k_bias, self.v_bias))
        qkv = F.linear(x, self.qkv.weight, whole)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.has_table:
            attn_mask, is_causal = add_bias(self.position_bias(), attn_mask, is_causal), False
        drop = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(q, k, v, attn_mask, drop, is_causal)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """Attention and MLP, each behind its norm and with a layer scale, on `(B, 1 + N, dim)`."""

    def __init__(
        self, dim: int, num_heads: int, *, qkv_bias: bool = False, mlp_ratio: float = 4.0, scale_mlp: bool = False,
        swiglu_mlp: bool = False, proj_drop: float = 0.0, attn_drop: float = 0.0, drop_path: float = 0.0,
        init_values: float | None = None, norm_layer: Any = LayerNorm, window_size: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.init_values = init_values
        self.gamma_1 = nn.Parameter(torch.empty(dim)) if init_values else None
        self.gamma_2 = nn.Parameter(torch.empty(dim)) if init_values else None
        self.norm1 = norm_layer(dim)
        self.attn = Attention(
            dim, num_heads, qkv_bias=qkv_bias, attn_drop=attn_drop, proj_drop=proj_drop, window_size=window_size
        )
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = norm_layer(dim)
        mlp: Any = SwiGLU if swiglu_mlp else Mlp
        self.mlp = mlp(dim, int(dim * mlp_ratio), norm_layer=norm_layer if scale_mlp else None, drop=proj_drop)
        self.drop_path2 = DropPath(drop_path)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for gamma in (self.gamma_1, self.gamma_2):
            if gamma is not None:
                nn.init.constant_(gamma, self.init_values)  # type: ignore[arg-type]

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        y = self.attn(self.norm1(x), attn_mask, is_causal)
        x = x + self.drop_path1(y if self.gamma_1 is None else self.gamma_1 * y)
        y = self.mlp(self.norm2(x))
        return x + self.drop_path2(y if self.gamma_2 is None else self.gamma_2 * y)


class Beit(TokenModel, config=Config):
    """A class token and patches, blocks with position biases, a pooled linear head."""

    positional = (
        "img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth", "num_heads",
        "qkv_bias", "mlp_ratio",
    )  # fmt: skip
    num_prefix_tokens = 1

    def build(self, c: Config) -> None:
        self.num_features = self.head_hidden_size = self.embed_dim = c.embed_dim
        norm = get_norm_layer(c.norm_layer)
        self.cls_token = nn.Parameter(torch.empty(1, 1, c.embed_dim))
        self.patch_embed = PatchEmbed(c.img_size, c.patch_size, c.in_chans, c.embed_dim)
        grid, count = self.patch_embed.grid_size, self.patch_embed.num_patches
        assert grid is not None
        assert count is not None
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + count, c.embed_dim)) if c.use_abs_pos_emb else None
        self.pos_drop = nn.Dropout(c.pos_drop_rate)
        self.rel_pos_bias = RelativePositionBias(grid, c.num_heads) if c.use_shared_rel_pos_bias else None
        shared = {name: getattr(c, name) for name in BLOCK_FIELDS} | {"norm_layer": norm}
        shared |= {"proj_drop": c.proj_drop_rate, "attn_drop": c.attn_drop_rate}
        window = grid if c.use_rel_pos_bias else None
        self.blocks = nn.Sequential(
            *(
                Block(c.embed_dim, c.num_heads, drop_path=rate, window_size=window, **shared)
                for rate in drop_path_rates(c.drop_path_rate, (c.depth,))[0]
            )
        )
        behind = c.global_pool == "avg" if c.use_fc_norm is None else c.use_fc_norm
        self.norm = nn.Identity() if behind else norm(c.embed_dim)
        self.fc_norm = norm(c.embed_dim) if behind else nn.Identity()
        self.build_head(c)
        parts = ("patch_embed", "cls_token", "pos_embed", "rel_pos_bias")
        owners = tuple(name for name in parts if getattr(self, name) is not None)
        levels = [Stage((f"blocks.{i}",), c.embed_dim, max(self.patch_embed.patch_size)) for i in range(c.depth)]
        closing = [] if behind else [Stage(("norm",), any_depth=True)]
        self.chain = (Stage(("embed",), params=owners, checkpoint=False), *levels, *closing)

    def build_head(self, c: Config) -> None:
        self.global_pool = c.global_pool
        self.head = nn.Linear(c.embed_dim, c.num_classes) if c.num_classes else nn.Identity()

    def embed(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to all tokens (B, 1 + N, embed_dim)."""
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), self.patch_embed(x)), 1)
        return self.pos_drop(x if self.pos_embed is None else x + self.pos_embed)

    def block_args(self, attn_mask: Tensor | None, is_causal: bool) -> dict[str, Any]:
        if self.rel_pos_bias is None:
            return mask_args(attn_mask, is_causal)
        return {"attn_mask": add_bias(self.rel_pos_bias(), attn_mask, is_causal)}

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool all tokens and classify; `pre_logits` stops at the embedding."""
        x = self.fc_norm(global_pool_nlc(x, self.global_pool, 1))
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.head(x)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As for every model; the final norm stays before or behind the pool, where its trained values belong."""
        with as_it_was_on_error(self):
            self.config = replace(self.config, use_fc_norm=not isinstance(self.fc_norm, nn.Identity))
            super().reset_classifier(num_classes, global_pool)

    def remove_head(self) -> None:
        super().remove_head()
        self.fc_norm = nn.Identity()

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Make the model take another image or patch size; kernels, position embeddings and biases are resampled."""
        super().set_input_size(img_size, patch_size)
        for module in self.modules():
            if isinstance(module, RelPosTable) and hasattr(module, "window_size"):
                module.set_window_size(self.patch_embed.grid_size)

    def no_weight_decay(self) -> set[str]:
        tables = {name for name, _ in self.named_parameters() if name.endswith("relative_position_bias_table")}
        return {"pos_embed", "cls_token"} | tables

    def init_module(self, module: nn.Module, name: str) -> bool:
        if module is self:
            for token in (self.cls_token, self.pos_embed):
                if token is not None:
                    trunc_normal_(token, std=0.02)
            return True
        return init_plain(module, name, self.num_classes)

    def init_last(self) -> None:
        for i, block in enumerate(self.blocks):
            for path in ("attn.proj", "mlp.fc2"):
                block.get_parameter(f"{path}.weight").div_(math.sqrt(2.0 * (i + 1)))
        if isinstance(self.head, nn.Linear):
            self.head.weight.mul_(self.config.head_init_scale)


BLOCK_FIELDS = ("qkv_bias", "mlp_ratio", "scale_mlp", "swiglu_mlp", "init_values")


def adapt(state_dict: Mapping[str, Tensor], model: Any) -> Mapping[str, Tensor]:
    """Read checkpoints of the papers' own code, and those for another image or patch size."""
    state = {}
    for key, value in state_dict.items():
        if key.endswith("relative_position_index"):
            continue
        if key == "patch_embed.proj.weight":
            value = resample_patch_embed(value, model.patch_embed.patch_size)
        elif key == "pos_embed" and model.pos_embed is not None and value.shape != model.pos_embed.shape:
            value = resample_abs_pos_embed(value, model.patch_embed.grid_size, num_prefix_tokens=1)
        elif key.endswith("relative_position_bias_table"):
            grid = model.patch_embed.grid_size
            value = resize_rel_pos_bias_table(value, grid, num_extra=3, interpolation="geometric")
        state[key] = value
    return state


B: dict[str, Any] = {"use_abs_pos_emb": False, "use_rel_pos_bias": True}
L: dict[str, Any] = B | {"embed_dim": 1024, "depth": 24, "num_heads": 16, "init_values": 1e-5}

VARIANTS = {
    "beit_base_patch16_224": Config(**B, init_values=0.1),
    "beit_base_patch16_384": Config(img_size=384, **B, init_values=0.1),
    "beit_large_patch16_224": Config(**L),
    "beit_large_patch16_384": Config(img_size=384, **L),
    "beit_large_patch16_512": Config(img_size=512, **L),
    "beitv2_base_patch16_224": Config(**B, init_values=1e-5),
    "beitv2_large_patch16_224": Config(**L),
}

family = Family(Beit, VARIANTS, adapt=adapt, out_indices=3, feature_cls="getter")
__getattr__ = family.module_getattr(__name__)
