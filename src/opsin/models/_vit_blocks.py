"""Blocks of vision transformers: the plain one, and those that arrange norm, attention and MLP in other ways."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, did_you_mean
from opsin.layers.act import create_act
from opsin.layers.attention import Attention, DiffAttention, DiffLambda, mask_args, split_heads
from opsin.layers.drop import DropPath
from opsin.layers.glu import GluMlp, SwiGLU, SwiGLUPacked
from opsin.layers.layer_scale import LayerScale
from opsin.layers.mlp import Mlp
from opsin.layers.norm import LayerNorm, RmsNorm, get_norm_layer

__all__ = [
    "ATTNS",
    "BLOCKS",
    "MLPS",
    "Block",
    "DiffParallelScalingBlock",
    "ParallelScalingBlock",
    "ParallelThingsBlock",
    "ResPostBlock",
    "by_name",
]

Layer = str | Callable[..., nn.Module]

ATTNS: dict[str, Callable[..., nn.Module]] = {
    "attn": Attention,
    "Attention": Attention,
    "diff": DiffAttention,
    "DiffAttention": DiffAttention,
}
MLPS: dict[str, Callable[..., nn.Module]] = {
    "Mlp": Mlp,
    "GluMlp": GluMlp,
    "SwiGLU": SwiGLU,
    "SwiGLUPacked": SwiGLUPacked,
}


def by_name(layer: Layer, table: dict[str, Callable[..., nn.Module]], what: str) -> Callable[..., nn.Module]:
    """The class of a name in `table`, or the callable itself."""
    if not isinstance(layer, str):
        return layer
    if layer not in table:
        near = did_you_mean(layer, table)
        raise UnknownArgumentError(f"no {what} {layer!r}.{near} Known: {', '.join(table)}")
    return table[layer]


def _scale(dim: int, init_values: float | None) -> nn.Module:
    return nn.Identity() if init_values is None else LayerScale(dim, init_values)


def _drop(rate: float) -> nn.Module:
    return DropPath(rate) if rate else nn.Identity()


class Block(nn.Module):
    """Pre-norm transformer block over `(B, N, dim)`: `x + attention(norm(x))`, then `x + mlp(norm(x))`.

    Args:
        scale_attn_norm, scale_mlp_norm: a norm before the last projection of attention and MLP.
        init_values: start of the layer scale on both branches; None for none.
        depth: index of the block in its model, which differential attention starts from.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_attn_norm: bool = False,
        scale_mlp_norm: bool = False,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        init_values: float | None = None,
        drop_path: float = 0.0,
        act_layer: Layer = nn.GELU,
        norm_layer: Layer = LayerNorm,
        mlp_layer: Layer = Mlp,
        attn_layer: Layer = Attention,
        depth: int = 0,
    ) -> None:
        super().__init__()
        norm, attn = get_norm_layer(norm_layer), by_name(attn_layer, ATTNS, "attention")
        extra: dict[str, Any] = {"depth": depth} if attn is DiffAttention else {}
        mlp_norm = norm if scale_mlp_norm else None
        self.build(
            dim,
            norm,
            lambda: attn(
                dim, num_heads=num_heads, qkv_bias=qkv_bias, qk_norm=qk_norm, scale_norm=scale_attn_norm,
                proj_bias=proj_bias, attn_drop=attn_drop, proj_drop=proj_drop, norm_layer=norm, **extra,
            ),
            lambda: by_name(mlp_layer, MLPS, "MLP")(
                in_features=dim, hidden_features=int(dim * mlp_ratio), act_layer=act_layer, norm_layer=mlp_norm,
                bias=proj_bias, drop=proj_drop,
            ),
            init_values,
            drop_path,
        )  # fmt: skip

    def build(
        self,
        dim: int,
        norm: Callable[..., nn.Module],
        attn: Callable[[], nn.Module],
        mlp: Callable[[], nn.Module],
        init_values: float | None,
        drop_path: float,
    ) -> None:
        """Create the parts, in the order that the checkpoints list them."""
        self.norm1 = norm(dim)
        self.attn = attn()
        self.ls1 = _scale(dim, init_values)
        self.drop_path1 = _drop(drop_path)
        self.norm2 = norm(dim)
        self.mlp = mlp()
        self.ls2 = _scale(dim, init_values)
        self.drop_path2 = _drop(drop_path)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        attended = self.attn(self.norm1(x), **mask_args(attn_mask, is_causal))
        x = x + self.drop_path1(self.ls1(attended))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class ResPostBlock(Block):
    """Block with the norms behind attention and MLP (Swin V2, https://arxiv.org/abs/2111.09883).

    `init_values` is where those norms start; there is no layer scale.
    """

    def build(self, dim, norm, attn, mlp, init_values, drop_path) -> None:
        self.init_values = init_values
        self.attn = attn()
        self.norm1 = norm(dim)
        self.drop_path1 = _drop(drop_path)
        self.mlp = mlp()
        self.norm2 = norm(dim)
        self.drop_path2 = _drop(drop_path)
        self.init_last()

    def init_last(self) -> None:
        """The norms start at `init_values`; the model calls it once more after all parts have their values."""
        if self.init_values is not None:
            for norm in (self.norm1, self.norm2):
                nn.init.constant_(norm.get_parameter("weight"), self.init_values)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        x = x + self.drop_path1(self.norm1(self.attn(x, **mask_args(attn_mask, is_causal))))
        return x + self.drop_path2(self.norm2(self.mlp(x)))


class ParallelScalingBlock(nn.Module):
    """Attention and MLP side by side on one norm and one projection (ViT-22B, https://arxiv.org/abs/2302.05442)."""

    q_norm: nn.Module
    k_norm: nn.Module

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_attn_norm: bool = False,
        scale_mlp_norm: bool = False,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        init_values: float | None = None,
        drop_path: float = 0.0,
        act_layer: Layer = nn.GELU,
        norm_layer: Layer = LayerNorm,
        mlp_layer: Layer | None = None,
        attn_layer: Layer | None = None,
        depth: int = 0,
    ) -> None:
        super().__init__()
        refuse_parts(type(self).__name__, scale_attn_norm, scale_mlp_norm, mlp_layer, attn_layer)
        if dim % num_heads:
            raise ValueError(f"dim={dim} cannot be split into num_heads={num_heads} heads of equal width")
        hidden = int(dim * mlp_ratio)
        norm = get_norm_layer(norm_layer)
        self.init_attention(dim, num_heads, depth)
        if qkv_bias:
            self.register_parameter("mlp_bias", None)  # part of the bias of in_proj
        else:
            self.mlp_bias = nn.Parameter(torch.zeros(hidden))
        self.in_norm = norm(dim)
        self.in_proj = nn.Linear(dim, hidden + 3 * dim, bias=qkv_bias)
        self.in_split = (hidden, dim, dim, dim)
        self.q_norm = norm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = norm(self.head_dim) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.mlp_drop = nn.Dropout(proj_drop)
        self.mlp_act = create_act(act_layer)
        self.build_out(dim, hidden, proj_bias)
        self.ls = _scale(dim, init_values)
        self.drop_path = _drop(drop_path)

    def init_attention(self, dim: int, num_heads: int, depth: int) -> None:
        self.num_heads, self.head_dim = num_heads, dim // num_heads

    def build_out(self, dim: int, hidden: int, bias: bool) -> None:
        self.attn_out_proj = nn.Linear(dim, dim, bias=bias)
        self.mlp_out_proj = nn.Linear(hidden, dim, bias=bias)

    def reset_parameters(self) -> None:
        if self.mlp_bias is not None:
            nn.init.zeros_(self.mlp_bias)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
        q, k, v = (split_heads(part, self.num_heads) for part in (q, k, v))
        drop = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, attn_mask, drop, is_causal)
        return x.transpose(1, 2).flatten(2)

    def project(self, attended: Tensor, hidden: Tensor) -> Tensor:
        return self.attn_out_proj(attended) + self.mlp_out_proj(hidden)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        hidden, q, k, v = self.in_proj(self.in_norm(x)).split(self.in_split, -1)
        if self.mlp_bias is not None:
            hidden = hidden + self.mlp_bias
        hidden = self.mlp_drop(self.mlp_act(hidden))
        out = self.project(self.attend(q, k, v, attn_mask, is_causal), hidden)
        return x + self.drop_path(self.ls(out))


def refuse_parts(block: str, scale_attn_norm: bool, scale_mlp_norm: bool, mlp_layer: Any, attn_layer: Any) -> None:
    """A block that is its own attention and MLP takes no others."""
    if scale_attn_norm or scale_mlp_norm:
        raise UnknownArgumentError(f"{block} has no scale_attn_norm and no scale_mlp_norm")
    if mlp_layer not in (None, Mlp, "Mlp") or attn_layer not in (None, Attention, "Attention", "attn"):
        raise UnknownArgumentError(f"{block} is its own attention and MLP: leave attn_layer and mlp_layer out")


class DiffParallelScalingBlock(ParallelScalingBlock, DiffLambda):
    """`ParallelScalingBlock` with differential attention and one output projection for both."""

    def init_attention(self, dim: int, num_heads: int, depth: int) -> None:
        self.init_difference(dim, num_heads, depth)

    def build_out(self, dim: int, hidden: int, bias: bool) -> None:
        self.sub_norm = RmsNorm(2 * self.head_dim, eps=1e-5)
        self.out_proj = nn.Linear(dim + hidden, dim, bias=bias)

    def reset_parameters(self) -> None:
        DiffLambda.reset_parameters(self)
        if "mlp_bias" in self._parameters:  # not yet while the difference is being set up
            super().reset_parameters()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
        return self.difference(q, k, v, self.attn_drop.p if self.training else 0.0, attn_mask, is_causal)

    def project(self, attended: Tensor, hidden: Tensor) -> Tensor:
        return self.out_proj(torch.cat((attended, hidden), -1))


class _Branch(nn.Module):
    """Norm, one part (`attn` or `mlp`), layer scale and stochastic depth: what a parallel block adds up."""

    def __init__(self, name: str, norm: nn.Module, part: nn.Module, ls: nn.Module, drop_path: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.norm = norm
        self.add_module(name, part)
        self.ls = ls
        self.drop_path = drop_path

    def forward(self, x: Tensor, **mask: Any) -> Tensor:
        return self.drop_path(self.ls(getattr(self, self.name)(self.norm(x), **mask)))


class ParallelThingsBlock(nn.Module):
    """`num_parallel` attentions added up, then as many MLPs ("Three things", https://arxiv.org/abs/2203.09795)."""

    def __init__(
        self, dim: int, num_heads: int, num_parallel: int = 2, mlp_ratio: float = 4.0, qkv_bias: bool = False,
        qk_norm: bool = False, scale_attn_norm: bool = False, scale_mlp_norm: bool = False, proj_bias: bool = True,
        init_values: float | None = None, proj_drop: float = 0.0, attn_drop: float = 0.0, drop_path: float = 0.0,
        act_layer: Layer = nn.GELU, norm_layer: Layer = LayerNorm, mlp_layer: Layer = Mlp,
        attn_layer: Layer = Attention, depth: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_parallel = num_parallel
        parts = [
            Block(
                dim, num_heads, mlp_ratio, qkv_bias, qk_norm, scale_attn_norm, scale_mlp_norm, proj_bias, proj_drop,
                attn_drop, init_values, drop_path, act_layer, norm_layer, mlp_layer, attn_layer, depth,
            )
            for _ in range(num_parallel)
        ]  # fmt: skip
        self.attns = nn.ModuleList(_Branch("attn", b.norm1, b.attn, b.ls1, b.drop_path1) for b in parts)
        self.ffns = nn.ModuleList(_Branch("mlp", b.norm2, b.mlp, b.ls2, b.drop_path2) for b in parts)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        mask = mask_args(attn_mask, is_causal)
        x = x + sum(attn(x, **mask) for attn in self.attns)
        return x + sum(ffn(x) for ffn in self.ffns)


BLOCKS: dict[str, Callable[..., nn.Module]] = {
    "Block": Block,
    "ResPostBlock": ResPostBlock,
    "ParallelScalingBlock": ParallelScalingBlock,
    "DiffParallelScalingBlock": DiffParallelScalingBlock,
    "ParallelThingsBlock": ParallelThingsBlock,
}
