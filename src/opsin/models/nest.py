"""NesT (https://arxiv.org/abs/2105.12723): transformer layers inside blocks of a map, and between levels a convolution
and a pool that make one block of four. The `jx` variants pad as the paper's JAX code does."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, WeightsError
from opsin.layers.attention import Attention
from opsin.layers.conv import create_conv2d
from opsin.layers.drop import drop_path_rates
from opsin.layers.norm import get_norm_layer
from opsin.layers.patch_embed import to_2tuple
from opsin.layers.pool import MaxPool2dSame
from opsin.layers.pos_embed import resample_abs_pos_embed_nhwc
from opsin.layers.tuples import to_ntuple
from opsin.layers.weight_init import trunc_normal_
from opsin.models._chain import Row, Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._model import Model
from opsin.models._swin import departition, partition
from opsin.models._vit_blocks import Block

__all__ = ["Config", "ConvPool", "Nest", "NestLevel"]

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Tuples have one entry per level; a single number is for all. The last level is one block, each before it four
    times as many as the next."""

    img_size: int | Size = 224
    patch_size: int | Size = 4
    num_levels: int = 3
    embed_dims: int | tuple[int, ...] = (128, 256, 512)
    num_heads: int | tuple[int, ...] = (4, 8, 16)
    depths: int | tuple[int, ...] = (2, 2, 20)
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.5
    norm_layer: Any = "layernorm"
    act_layer: Any = "gelu"
    pad_type: str = ""  # between levels: "" symmetric, "same" as in JAX
    weight_init: str = ""  # "nlhb": the head's bias starts at -log(classes)


class PatchEmbed(nn.Module):
    """Images `(B, C, H, W)` to a map `(B, dim, h, w)` of patches."""

    def __init__(self, img_size: Size, patch_size: Size, in_chans: int, dim: int) -> None:
        super().__init__()
        self.img_size, self.patch_size = img_size, patch_size
        self.grid_size = (img_size[0] // patch_size[0], img_size[1] // patch_size[1])
        self.num_patches = math.prod(self.grid_size)
        self.proj = nn.Conv2d(in_chans, dim, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if (height, width) != self.img_size:
            h, w = self.img_size
            raise ValueError(
                f"the model is built for {h}x{w} images and got {height}x{width}. Resize the images, or create it with "
                f"img_size=({height}, {width})"
            )
        return self.proj(x)


class ToChannelsLast(nn.Module):
    """`(B, C, H, W)` to `(B, H, W, C)`."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class ToChannelsFirst(nn.Module):
    """`(B, H, W, C)` to `(B, C, H, W)`."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


class ConvPool(nn.Module):
    """Tell neighbouring blocks of each other, and make one of four: `(B, in, H, W)` to `(B, out, H / 2, W / 2)`."""

    def __init__(self, in_chs: int, out_chs: int, norm_layer: Any, pad_type: str = "") -> None:
        super().__init__()
        self.conv = create_conv2d(in_chs, out_chs, 3, pad_type=pad_type, bias=True)
        self.norm = norm_layer(out_chs)
        self.pool = MaxPool2dSame(3, 2) if pad_type == "same" else nn.MaxPool2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x).permute(0, 2, 3, 1))
        return self.pool(x.permute(0, 3, 1, 2))


class BlockAttention(Attention):
    """Attention inside each block of `(B, blocks, N, dim)`. The published layers join the heads number by number: first
    the first numbers of all heads."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        qkv = self.qkv(x).flatten(0, 1).unflatten(-1, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        drop = self.attn_drop.p if self.training else 0.0
        heads = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, dropout_p=drop, scale=self.scale)
        return self.proj_drop(self.proj(self.norm(heads.permute(0, 2, 3, 1).reshape(x.shape))))


class NestLevel(Row):
    """`(B, in, H, W)` to `(B, dim, h, w)`: fewer blocks (where `pool` makes them), positions, layers in each block.

    `count` is how many blocks stand side by side, (rows, columns), and `size` that of a block in patches.
    """

    parts = ("pool", "to_blocks", "transformer_encoder", "to_map")

    def __init__(self, pool: nn.Module, layers: Sequence[nn.Module], count: Size, size: Size, dim: int) -> None:
        super().__init__()
        self.count, self.size = count, size
        self.pos_embed = nn.Parameter(torch.empty(1, math.prod(count), math.prod(size), dim))
        self.pool = pool
        self.transformer_encoder = nn.Sequential(*layers)

    def reset_parameters(self) -> None:
        trunc_normal_(self.pos_embed, std=0.02)

    def to_blocks(self, x: Tensor) -> Tensor:
        """A map `(B, dim, h, w)` to `(B, blocks, N, dim)`, row by row in both, with positions."""
        x = partition(x.permute(0, 2, 3, 1), self.size)
        return x.unflatten(0, (-1, self.pos_embed.shape[1])) + self.pos_embed

    def to_map(self, x: Tensor) -> Tensor:
        """The reverse, positions left in."""
        (rows, columns), (height, width) = self.count, self.size
        return departition(x, self.size, rows * height, columns * width).permute(0, 3, 1, 2)


class Nest(Model, config=Config):
    """Patches, levels of blocks, norm, pooled linear head."""

    classifier_path = "head"
    first_conv = "patch_embed.proj"
    positional = (
        "img_size", "in_chans", "patch_size", "num_levels", "embed_dims", "num_heads", "depths", "num_classes",
    )  # fmt: skip

    def build(self, c: Config) -> None:
        count, per_level = c.num_levels, to_ntuple(c.num_levels)
        dims, heads, depths = per_level(c.embed_dims), per_level(c.num_heads), per_level(c.depths)
        if count < 1 or {len(dims), len(heads), len(depths)} != {count}:
            raise UnknownArgumentError(
                f"embed_dims, num_heads and depths need one entry for each of num_levels={count} levels, or one number"
            )
        if c.weight_init not in ("", "nlhb"):
            raise UnknownArgumentError(f"weight_init={c.weight_init!r}: '' or 'nlhb'")
        self.patch_embed = PatchEmbed(to_2tuple(c.img_size), to_2tuple(c.patch_size), c.in_chans, dims[0])
        norm, size, reduction = get_norm_layer(c.norm_layer), self.block_size(), max(self.patch_embed.patch_size)
        self.levels = nn.Sequential()
        chain = [Stage(("patch_embed",), checkpoint=False)]
        layer: dict[str, Any] = {"qkv_bias": c.qkv_bias, "proj_drop": c.proj_drop_rate, "attn_drop": c.attn_drop_rate}
        layer |= {"act_layer": c.act_layer, "norm_layer": norm, "attn_layer": BlockAttention}
        for i, rates in enumerate(drop_path_rates(c.drop_path_rate, depths)):
            pool = ConvPool(dims[i - 1], dims[i], norm, c.pad_type) if i else nn.Identity()
            layers = [Block(dims[i], heads[i], c.mlp_ratio, drop_path=rate, **layer) for rate in rates]
            side = 2 ** (count - 1 - i)
            self.levels.append(NestLevel(pool, layers, (side, side), size, dims[i]))
            chain.append(Stage((f"levels.{i}",), dims[i], reduction * 2**i))
        self.norm, self.to_last, self.to_first = norm(dims[-1]), ToChannelsLast(), ToChannelsFirst()
        self.chain = (*chain, Stage(("to_last", "norm", "to_first"), params=("norm",)))
        self.num_features = self.head_hidden_size = dims[-1]
        self.build_head(c)

    def block_size(self) -> Size:
        """(height, width) of a block in patches, the same in all levels."""
        across = 2 ** (self.config.num_levels - 1)  # blocks side by side in the first level
        patch = self.patch_embed.patch_size
        height, width = self.patch_embed.img_size
        if height % (across * patch[0]) or width % (across * patch[1]):
            raise UnknownArgumentError(
                f"img_size=({height}, {width}) does not make {across}x{across} whole blocks of patches: height and "
                f"width must be multiples of {across * patch[0]} and {across * patch[1]}"
            )
        return height // (across * patch[0]), width // (across * patch[1])

    def no_weight_decay(self) -> set[str]:
        return {f"levels.{i}.pos_embed" for i in range(len(self.levels))}

    def init_module(self, module: nn.Module, name: str) -> bool:
        if not isinstance(module, nn.Linear | nn.Conv2d):
            return False
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            unlikely = name == self.classifier_path and self.config.weight_init == "nlhb"
            nn.init.constant_(module.bias, -math.log(self.num_classes) if unlikely else 0.0)
        return True


def adapt(state_dict: Mapping[str, Tensor], model: Any) -> Mapping[str, Tensor]:
    """Position embeddings for another image size, resampled as one map of all blocks."""
    state = dict(state_dict)
    for i, level in enumerate(model.levels):
        key = f"levels.{i}.pos_embed"
        table = state.get(key)
        if table is not None and table.ndim == 4 and table.shape[1] == level.pos_embed.shape[1]:
            state[key] = resample_blocks(table, level.count, level.size)
    return state


def resample_blocks(table: Tensor, count: Size, size: Size) -> Tensor:
    """Position embeddings `(1, blocks, N, C)` of square blocks for blocks of `size`; `count` stand side by side."""
    places = table.shape[2]
    if places == math.prod(size):
        return table
    side = math.isqrt(places)
    if side * side != places:
        raise WeightsError(
            f"the checkpoint has {places} positions in a block, which is no square: build the model with the img_size "
            "it was trained at"
        )
    whole = departition(table[0], (side, side), count[0] * side, count[1] * side)
    whole = resample_abs_pos_embed_nhwc(whole, (count[0] * size[0], count[1] * size[1]), antialias=False)
    return partition(whole, size)[None]


Tiny = partial(Config, embed_dims=(96, 192, 384), num_heads=(3, 6, 12), depths=(2, 2, 8))
Small = partial(Config, embed_dims=(96, 192, 384), num_heads=(3, 6, 12), depths=(2, 2, 20))
Base = partial(Config, embed_dims=(128, 256, 512), num_heads=(4, 8, 16), depths=(2, 2, 20))

VARIANTS = {
    "nest_base": Base(),
    "nest_base_jx": Base(pad_type="same"),
    "nest_small": Small(),
    "nest_small_jx": Small(pad_type="same"),
    "nest_tiny": Tiny(),
    "nest_tiny_jx": Tiny(pad_type="same"),
}

family = Family(Nest, VARIANTS, adapt=adapt, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
