"""Blocks of EVA: attention without a key bias, with or without rotary positions; norms before or behind."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, did_you_mean
from opsin.layers.drop import DropPath, drop_path_rates
from opsin.layers.glu import SwiGLU, SwiGLUPacked
from opsin.layers.mlp import Mlp
from opsin.layers.norm import LayerNorm
from opsin.layers.rope import AttentionRope, Rope, create_rope_embed

__all__ = ["EvaAttention", "EvaBlock", "EvaBlockPostNorm", "build_eva_blocks", "build_rope"]


class EvaAttention(AttentionRope):
    """Attention without a bias of the keys, which would shift all scores of a query alike."""

    k_bias: Tensor | None

    def build_qkv(self, dim: int, bias: bool, fused: bool) -> None:
        super().build_qkv(dim, bias and not fused, fused)
        self.q_bias = nn.Parameter(torch.empty(dim)) if bias and fused else None
        self.v_bias = nn.Parameter(torch.empty(dim)) if bias and fused else None
        self.register_buffer("k_bias", torch.zeros(dim) if bias and fused else None, persistent=False)
        if not fused:
            self.k_proj = nn.Linear(dim, self.num_kv_heads * self.head_dim, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.q_bias is not None and self.v_bias is not None:
            nn.init.zeros_(self.q_bias)
            nn.init.zeros_(self.v_bias)

    def reset_buffers(self) -> None:
        """Compute the key bias again."""
        if self.k_bias is not None:
            self.k_bias = torch.zeros_like(self.k_bias, device=self.proj.weight.device)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.q_bias is None or self.k_bias is None or self.v_bias is None:
            return super().project(x)
        bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
        return F.linear(x, self.qkv.weight, bias).chunk(3, -1)  # type: ignore[union-attr]


ATTNS: dict[str, type[AttentionRope]] = {"eva": EvaAttention, "rope": AttentionRope}


class EvaBlock(nn.Module):
    """Attention and MLP, each behind its norm and with a layer scale, on `(B, N, dim)`.

    Args:
        attn_type: "eva" has no key bias, "rope" is plain; both turn queries and keys by a `rope` if they get one.
        qkv_fused: one layer for queries, keys and values. num_kv_heads: fewer heads of keys and values.
        scale_attn_inner, scale_mlp: a norm before the last projection of attention and MLP.
        swiglu_mlp: gated, packed in one layer; in two where it has a norm, or a width that `swiglu_align_to` divides.
        attn_only_layer_scale: none on the MLP.
        gated_attn: a sigmoid of the input on what was attended to.
        rope_index: its entry in a rope that differs from block to block.
    """

    def __init__(
        self, dim: int, num_heads: int, *, qkv_bias: bool = True, qkv_fused: bool = True, mlp_ratio: float = 4.0,
        swiglu_mlp: bool = False, swiglu_align_to: int = 0, scale_mlp: bool = False, scale_attn_inner: bool = False,
        num_prefix_tokens: int = 1, attn_type: str = "eva", rotate_half: bool = False, qk_norm: bool = False,
        num_kv_heads: int | None = None, proj_drop: float = 0.0, attn_drop: float = 0.0, drop_path: float = 0.0,
        init_values: float | None = None, attn_only_layer_scale: bool = False, gated_attn: bool = False,
        act_layer: Any = "gelu", norm_layer: Any = LayerNorm, rope_index: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if attn_type not in ATTNS:
            near = did_you_mean(attn_type, ATTNS)
            raise UnknownArgumentError(f"no attn_type {attn_type!r}.{near} Known: {', '.join(ATTNS)}")
        self.init_values, self.rope_index = init_values, rope_index
        scaled = init_values is not None
        self.gamma_1 = nn.Parameter(torch.empty(dim)) if scaled else None
        self.gamma_2 = nn.Parameter(torch.empty(dim)) if scaled and not attn_only_layer_scale else None
        attn = ATTNS[attn_type](
            dim, num_heads, qkv_bias=qkv_bias, qkv_fused=qkv_fused, num_prefix_tokens=num_prefix_tokens,
            attn_drop=attn_drop, proj_drop=proj_drop, norm_layer=norm_layer, qk_norm=qk_norm,
            scale_norm=scale_attn_inner, rotate_half=rotate_half, gated=gated_attn, num_kv_heads=num_kv_heads,
        )  # fmt: skip
        hidden = int(dim * mlp_ratio)
        args = {"norm_layer": norm_layer if scale_mlp else None, "drop": proj_drop}
        mlp: nn.Module
        if not swiglu_mlp:
            mlp = Mlp(dim, hidden, act_layer=act_layer, **args)  # type: ignore[arg-type]
        elif scale_mlp or swiglu_align_to:
            mlp = SwiGLU(dim, hidden + -hidden % (swiglu_align_to or 1), **args)  # type: ignore[arg-type]
        else:
            mlp = SwiGLUPacked(dim, 2 * hidden, **args)  # type: ignore[arg-type]
        self.add_parts(attn, mlp, norm_layer(dim), norm_layer(dim))
        self.drop_path1, self.drop_path2 = DropPath(drop_path), DropPath(drop_path)
        self.reset_parameters()

    def add_parts(self, attn: nn.Module, mlp: nn.Module, norm1: nn.Module, norm2: nn.Module) -> None:
        """In the order in which checkpoints list them."""
        self.norm1, self.attn, self.norm2, self.mlp = norm1, attn, norm2, mlp

    def reset_parameters(self) -> None:
        for gamma in (self.gamma_1, self.gamma_2):
            if gamma is not None:
                nn.init.constant_(gamma, self.init_values)  # type: ignore[arg-type]

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        y = self.attend(self.norm1(x), rope, attn_mask, is_causal)
        x = x + self.drop_path1(y if self.gamma_1 is None else self.gamma_1 * y)
        y = self.mlp(self.norm2(x))
        return x + self.drop_path2(y if self.gamma_2 is None else self.gamma_2 * y)

    def attend(self, x: Tensor, rope: Tensor | None, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
        if rope is not None and self.rope_index is not None:
            rope = rope[self.rope_index]
        return self.attn(x, rope, attn_mask, is_causal)


class EvaBlockPostNorm(EvaBlock):
    """The same with the norms behind attention and MLP, in place of layer scales."""

    def __init__(self, dim: int, num_heads: int, **kwargs: Any) -> None:
        if kwargs.get("init_values") is not None:
            raise UnknownArgumentError("use_post_norm leaves no place for a layer scale: init_values=None")
        super().__init__(dim, num_heads, **kwargs)

    def add_parts(self, attn: nn.Module, mlp: nn.Module, norm1: nn.Module, norm2: nn.Module) -> None:
        self.attn, self.norm1, self.mlp, self.norm2 = attn, norm1, mlp, norm2

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        x = x + self.drop_path1(self.norm1(self.attend(x, rope, attn_mask, is_causal)))
        return x + self.drop_path2(self.norm2(self.mlp(x)))


SHARED = (
    "num_heads", "qkv_bias", "qkv_fused", "qk_norm", "mlp_ratio", "swiglu_mlp", "swiglu_align_to", "init_values",
    "attn_only_layer_scale",
)  # fmt: skip


def build_eva_blocks(make: Callable[..., EvaBlock], c: Any, rope: Rope | None, **args: Any) -> list[nn.Module]:
    """`c.depth` blocks of a config, with further arguments in `args`."""
    heads = c.num_kv_heads if isinstance(c.num_kv_heads, Sequence) else (c.num_kv_heads,) * c.depth
    if len(heads) != c.depth:
        raise UnknownArgumentError(f"num_kv_heads has {len(heads)} entries for {c.depth} blocks")
    args |= {name: getattr(c, name) for name in SHARED}
    args |= {"proj_drop": c.proj_drop_rate, "attn_drop": c.attn_drop_rate}
    args["rotate_half"] = rope is not None and rope.rotate_half
    rates = drop_path_rates(c.drop_path_rate, (c.depth,))[0]
    own = rope is not None and c.rope_type == "mixed"
    return [
        make(c.embed_dim, num_kv_heads=heads[i], drop_path=rates[i], rope_index=i if own else None, **args)
        for i in range(c.depth)
    ]


def build_rope(c: Any, rope_type: str, feat_shape: Sequence[int] | None, ref_feat_shape: Sequence[int] | None) -> Rope:
    """The rope of a config, of whose figures each kind knows some."""
    args: dict[str, Any] = {"feat_shape": feat_shape, "temperature": c.rope_temperature}
    args |= {name: getattr(c, f"rope_{name}") for name in ("shift_coords", "jitter_coords", "rescale_coords")}
    args["grid_indexing"] = c.rope_grid_indexing
    if rope_type in ("cat", "dinov3"):
        args |= {"grid_offset": c.rope_grid_offset, "rotate_half": c.rope_rotate_half}
    if rope_type == "cat":
        args["ref_feat_shape"] = ref_feat_shape
    if rope_type == "mixed":
        args["depth"] = c.depth
    if rope_type == "mrope" and c.rope_mrope_section is not None:
        args["mrope_section"] = c.rope_mrope_section
    return create_rope_embed(rope_type, c.embed_dim, c.num_heads, **args)
