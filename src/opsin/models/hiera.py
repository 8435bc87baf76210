"""Hiera (https://arxiv.org/abs/2306.00989): a transformer in stages without other parts, attention inside mask units or
over all tokens; with the position embeddings of https://arxiv.org/abs/2311.05613 ("abswin")."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, did_you_mean
from opsin.layers.drop import DropPath, drop_path_rates
from opsin.layers.layer_scale import LayerScale
from opsin.layers.mlp import Mlp
from opsin.layers.norm import get_norm_layer
from opsin.layers.patch_embed import to_2tuple
from opsin.layers.pos_embed import resample_abs_pos_embed
from opsin.layers.weight_init import trunc_normal_
from opsin.models._chain import Stage, run_stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._headed import HeadedModel
from opsin.models._token import global_pool_nlc
from opsin.models._vit_init import INITIALISERS

__all__ = ["Config", "Hiera"]

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Sizes are a side or (height, width); those of mask units are in patches."""

    global_pool: str = "avg"  # avg, max, avgmax or "" (all tokens)
    img_size: int | Size = 224
    embed_dim: int = 96
    num_heads: int = 1  # in the first stage
    stages: tuple[int, ...] = (2, 3, 16, 3)  # blocks in each
    q_pool: int = 3  # stages, after the first, that begin by pooling
    q_stride: int | Size = 2
    mask_unit_size: int | Size = 8  # in the first stage
    mask_unit_attn: tuple[bool, ...] = (True, True, False, False)  # by stage: attention inside mask units
    use_expand_proj: bool = True  # shortcuts to a greater width by a linear layer, not by maximum and mean
    dim_mul: float = 2.0  # growth of width and heads from stage to stage
    head_mul: float = 2.0
    patch_kernel: int | Size = 7
    patch_stride: int | Size = 4
    patch_padding: int | Size = 3
    mlp_ratio: float = 4.0
    init_values: float | None = None  # start of the layer scale
    norm_layer: Any = "layernorm"
    abs_win_pos_embed: bool = False  # embeddings of a coarse map, resampled, and of the places in a mask unit
    global_pos_size: Size = (14, 14)  # of that coarse map
    weight_init: str = ""
    fix_init: bool = True  # layers that end a branch start smaller with depth
    head_init_scale: float = 0.001
    patch_drop_rate: float = 0.0  # share of mask units that training leaves out
    drop_path_rate: float = 0.0


def pool(x: Tensor, unit: Size, stride: Size, reduce: str = "amax") -> Tensor:
    """Tokens `(B, N, C)`, unit by unit, with the largest (or the mean) of each `stride` of neighbours in a unit."""
    (height, width), (rows, columns) = unit, stride
    x = x.unflatten(1, (-1, height // rows, rows, width // columns, columns))
    return getattr(x, reduce)((3, 5)).flatten(1, 3)


class MaskUnitAttention(nn.Module):
    """Self-attention over `(B, N, dim)` to `(B, N', dim_out)`, inside mask units or among all tokens.

    With `stride` above 1 queries are pooled. `unit` is the size of a mask unit before that.
    """

    def __init__(
        self, dim: int, dim_out: int, num_heads: int, *, unit: Size, stride: Size = (1, 1), inside: bool
    ) -> None:
        super().__init__()
        if dim_out % num_heads:
            raise ValueError(f"a width of {dim_out} cannot be split into {num_heads} heads")
        self.num_heads, self.unit, self.stride, self.inside = num_heads, unit, stride, inside
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.proj = nn.Linear(dim_out, dim_out)

    def heads(self, x: Tensor, unit_tokens: int) -> Tensor:
        """`(groups, heads, tokens, D)`, a group being what attends to each other."""
        if self.inside:
            x = x.reshape(-1, unit_tokens, x.shape[-1])
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.stride != (1, 1):
            q = pool(q, self.unit, self.stride)
        batch, count, _ = q.shape
        tokens = math.prod(self.unit)
        q = self.heads(q, tokens // math.prod(self.stride))
        x = F.scaled_dot_product_attention(q, self.heads(k, tokens), self.heads(v, tokens))
        return self.proj(x.transpose(1, 2).reshape(batch, count, -1))


class HieraBlock(nn.Module):
    """Attention and MLP on `(B, N, dim)`; the first block of a stage changes the width and may pool."""

    def __init__(
        self, dim: int, dim_out: int, num_heads: int, c: Config, *, unit: Size, stride: Size, inside: bool,
        drop_path: float,
    ) -> None:  # fmt: skip
        super().__init__()
        norm = get_norm_layer(c.norm_layer)
        self.unit, self.stride, self.grows = unit, stride, dim_out != dim
        self.norm1 = norm(dim)
        self.proj = nn.Linear(dim, dim_out) if self.grows and c.use_expand_proj else None
        if self.grows and not c.use_expand_proj and dim_out != 2 * dim:
            raise ValueError(f"use_expand_proj=False doubles the width: it needs dim_mul=2, not {dim} to {dim_out}")
        self.attn = MaskUnitAttention(dim, dim_out, num_heads, unit=unit, stride=stride, inside=inside)
        self.ls1 = LayerScale(dim_out, c.init_values) if c.init_values is not None else nn.Identity()
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = norm(dim_out)
        self.mlp = Mlp(dim_out, int(dim_out * c.mlp_ratio))
        self.ls2 = LayerScale(dim_out, c.init_values) if c.init_values is not None else nn.Identity()
        self.drop_path2 = DropPath(drop_path)

    def shortcut(self, x: Tensor, normed: Tensor) -> Tensor:
        """What attention is added to: the input, where the width stays."""
        if not self.grows:
            return x
        if self.proj is not None:
            return pool(self.proj(normed), self.unit, self.stride)
        return torch.cat([pool(x, self.unit, self.stride, reduce) for reduce in ("amax", "mean")], -1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = self.shortcut(x, normed) + self.drop_path1(self.ls1(self.attn(normed)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class PatchEmbed(nn.Module):
    """Images `(B, C, H, W)` to patches `(B, h, w, dim)`, which overlap."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        kernel, stride, padding = (to_2tuple(size) for size in (c.patch_kernel, c.patch_stride, c.patch_padding))
        self.img_size = to_2tuple(c.img_size)
        self.proj = nn.Conv2d(c.in_chans, c.embed_dim, kernel, stride, padding)
        self.grid_size = tuple(
            (self.img_size[i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in (0, 1)
        )  # what the convolution gives

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if (height, width) != self.img_size:
            h, w = self.img_size
            raise ValueError(
                f"the model is built for {h}x{w} images and got {height}x{width}. Resize the images, or create it with "
                f"img_size=({height}, {width})"
            )
        return self.proj(x).permute(0, 2, 3, 1)


class Head(nn.Module):
    """Pool `(B, N, dim)`, norm, drop out, classify."""

    def __init__(self, dim: int, c: Config) -> None:
        super().__init__()
        self.dim = dim
        self.norm: nn.Module = get_norm_layer(c.norm_layer)(dim)
        self.drop = nn.Dropout(c.drop_rate)
        self.reset(c.num_classes, c.global_pool)

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """A fresh classifier for `num_classes` (0: none), and another pooling if named."""
        if pool_type is not None:
            if pool_type not in POOLS:
                near = did_you_mean(pool_type, POOLS)
                raise UnknownArgumentError(
                    f"no global pooling {pool_type!r} of tokens.{near} Known: avg, max, avgmax, ''"
                )
            self.pool_type = pool_type
        if num_classes and not self.pool_type:
            raise ValueError("global_pool='' leaves all tokens: it needs num_classes=0")
        self.fc = nn.Linear(self.dim, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(self.norm(global_pool_nlc(x, self.pool_type, 0)))
        return x if pre_logits else self.fc(x)


POOLS = ("avg", "max", "avgmax", "")


class Hiera(HeadedModel, config=Config):
    """Overlapping patches, stages of blocks, pooled and normed linear head.

    Along the chain run tokens `(B, N, C)`, mask unit by mask unit, row by row in each.
    """

    layout = "NLC"
    first_conv = "patch_embed.proj"
    positional = (
        "img_size", "in_chans", "embed_dim", "num_heads", "num_classes", "global_pool", "stages", "q_pool", "q_stride",
    )  # fmt: skip

    pos_embed_win: nn.Parameter | None

    def build(self, c: Config) -> None:
        if not 0 <= c.patch_drop_rate < 1:
            raise ValueError(f"patch_drop_rate={c.patch_drop_rate}: 0 or more, and below 1")
        if len(c.mask_unit_attn) < len(c.stages):
            raise ValueError(f"stages={c.stages}: mask_unit_attn must have as many entries, not {c.mask_unit_attn}")
        self.patch_embed = PatchEmbed(c)
        self.unit = unit = to_2tuple(c.mask_unit_size)
        grid: Any = self.patch_embed.grid_size
        if grid[0] % unit[0] or grid[1] % unit[1]:
            raise ValueError(f"{grid[0]}x{grid[1]} patches are no whole mask units of {unit[0]}x{unit[1]}: img_size")
        self.units = grid[0] // unit[0], grid[1] // unit[1]
        if c.abs_win_pos_embed:
            self.pos_embed = nn.Parameter(torch.empty(1, c.embed_dim, *c.global_pos_size))
            self.pos_embed_win = nn.Parameter(torch.empty(1, c.embed_dim, *unit))
        else:
            self.pos_embed = nn.Parameter(torch.empty(1, math.prod(grid), c.embed_dim))
            self.pos_embed_win = None
        self.patch_drop_rate = c.patch_drop_rate
        owners = ("patch_embed", "pos_embed", *(["pos_embed_win"] if c.abs_win_pos_embed else []))
        levels = self.build_blocks(c)
        self.chain = (Stage(("embed",), params=owners, checkpoint=False), *levels)
        self.num_features = self.head_hidden_size = levels[-1].num_chs or 0
        self.build_head(c)

    def build_blocks(self, c: Config) -> list[Stage]:
        """Create `blocks`; the feature levels are where stages end."""
        unit, stride = self.unit, to_2tuple(c.q_stride)
        dim, heads, reduction = c.embed_dim, c.num_heads, max(to_2tuple(c.patch_stride))
        self.unit_sizes, self.blocks, levels = [unit], nn.ModuleList(), []
        for i, rates in enumerate(drop_path_rates(c.drop_path_rate, tuple(c.stages))):
            dim_out, heads = (int(dim * c.dim_mul), int(heads * c.head_mul)) if i else (dim, heads)
            pools = 0 < i <= c.q_pool
            if pools and (unit[0] % stride[0] or unit[1] % stride[1]):
                raise ValueError(f"mask units of {unit[0]}x{unit[1]} cannot be pooled by {stride}: q_pool={c.q_pool}")
            start = len(self.blocks)
            for j, rate in enumerate(rates):
                # the block that pools still attends as the stage before it
                inside = c.mask_unit_attn[i - 1 if i and not j else i]
                args: dict[str, Any] = {"unit": unit, "stride": stride if pools and not j else (1, 1)}
                self.blocks.append(HieraBlock(dim, dim_out, heads, c, inside=inside, drop_path=rate, **args))
                dim = dim_out
                if pools and not j:
                    unit, reduction = (unit[0] // stride[0], unit[1] // stride[1]), reduction * max(stride)
            self.unit_sizes.append(unit)
            levels.append(Stage(tuple(f"blocks.{b}" for b in range(start, len(self.blocks))), dim, reduction))
        return levels

    def make_head(self, config: Any) -> Head:
        return Head(self.num_features, config)

    def remove_head(self) -> None:
        super().remove_head()
        self.head.norm = nn.Identity()

    def positions(self) -> Tensor:
        """Embeddings of all patches, `(1, h, w, C)` or `(1, h * w, C)`."""
        if self.pos_embed_win is None:
            return self.pos_embed
        coarse = self.pos_embed.to(torch.promote_types(self.pos_embed.dtype, torch.float32))  # half is not resampled
        coarse = F.interpolate(coarse, self.patch_embed.grid_size, mode="bicubic", antialias=True)
        return (coarse.to(self.pos_embed.dtype) + self.pos_embed_win.tile(self.units)).permute(0, 2, 3, 1)

    def embed(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) to tokens (B, N, C), mask unit by mask unit; of those that `mask` (B, units) keeps."""
        if mask is None and self.training and self.patch_drop_rate:
            order = torch.rand(x.shape[0], math.prod(self.units), device=x.device).argsort(1)
            mask = order < max(1, int(order.shape[1] * (1 - self.patch_drop_rate)))
        if mask is not None:  # patches overlap: what is left out must not be seen from beside it
            seen = mask.view(-1, 1, *self.units).to(x.dtype)
            x = x * F.interpolate(seen, x.shape[-2:])
        x = self.patch_embed(x)
        x = x + self.positions().reshape(1, *x.shape[1:])
        x = x.unflatten(2, (self.units[1], -1)).unflatten(1, (self.units[0], -1)).transpose(2, 3).flatten(1, 2)
        if mask is not None:
            x = x[mask].unflatten(0, (x.shape[0], -1))
        return x.flatten(1, 3)

    def forward_features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """All tokens, mask unit by mask unit; of those units alone that `mask`, (B, units) bool, keeps.

        Each sample must keep as many units.
        """
        x = self.embed(x, mask)
        for stage in self.chain[1:]:
            x = run_stage(self, stage, x, self.grad_checkpointing)
        return x

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits; with a `mask` the tokens of what it keeps, as masked autoencoders want them."""
        x = self.forward_features(x, mask)
        return self.forward_head(x) if mask is None else x

    def as_map(self, x: Tensor, image_size: Size, output_fmt: str = "NCHW") -> Tensor:
        tokens = {math.prod(unit): unit for unit in self.unit_sizes}
        unit = tokens.get(x.shape[1] // math.prod(self.units))
        if unit is None or (self.training and self.patch_drop_rate):
            raise ValueError(
                "patch dropout leaves holes in the maps while training: use eval(), or build with patch_drop_rate=0"
            )
        x = x.unflatten(1, (*self.units, *unit)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return x if output_fmt == "NHWC" else x.permute(0, 3, 1, 2).contiguous()

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed"}

    def init_module(self, module: nn.Module, name: str) -> bool:
        c = self.config
        if module is self:
            for table in (self.pos_embed, self.pos_embed_win):
                if table is not None:
                    trunc_normal_(table, std=0.02)
            return True
        if c.weight_init:
            if c.weight_init not in INITIALISERS:
                near = did_you_mean(c.weight_init, INITIALISERS)
                raise UnknownArgumentError(f"no weight_init {c.weight_init!r}.{near} Known: {', '.join(INITIALISERS)}")
            return INITIALISERS[c.weight_init](module, name, self.num_classes)
        if not isinstance(module, nn.Linear | nn.Conv2d):
            return False
        trunc_normal_(module.weight, std=0.02)
        nn.init.constant_(module.bias, 0.02)  # type: ignore[arg-type]
        return True

    def init_last(self) -> None:
        for i, block in enumerate(self.blocks if self.config.fix_init else []):
            for path in ("attn.proj", "mlp.fc2"):
                block.get_parameter(f"{path}.weight").div_(math.sqrt(2.0 * (i + 1)))
        for parameter in self.head.fc.parameters():
            parameter.mul_(self.config.head_init_scale)


def adapt(state_dict: Mapping[str, Tensor], model: Any) -> Mapping[str, Tensor]:
    """Read the layout of the paper's own code, and position embeddings of another image size."""
    state = {}
    for key, value in state_dict.items():
        key = re.sub(r"^(?:encoder_)?norm\.", "head.norm.", re.sub(r"^head\.projection\.", "head.fc.", key))
        if key == "pos_embed" and value.ndim == 3 and value.shape != model.pos_embed.shape:
            value = resample_abs_pos_embed(value, model.patch_embed.grid_size, num_prefix_tokens=0)
        state[key] = value
    return state


AbsWin = partial(Config, img_size=256, abs_win_pos_embed=True, init_values=1e-5, weight_init="jax")

VARIANTS = {
    "hiera_base_224": Config(),
    "hiera_base_abswin_256": AbsWin(),
    "hiera_base_plus_224": Config(embed_dim=112, num_heads=2),
    "hiera_huge_224": Config(embed_dim=256, num_heads=4, stages=(2, 6, 36, 4)),
    "hiera_large_224": Config(embed_dim=144, num_heads=2, stages=(2, 6, 36, 4)),
    "hiera_small_224": Config(stages=(1, 2, 11, 2)),
    "hiera_small_abswin_256": AbsWin(stages=(1, 2, 11, 2), global_pos_size=(16, 16), use_expand_proj=False),
    "hiera_tiny_224": Config(stages=(1, 2, 7, 2)),
}

family = Family(Hiera, VARIANTS, adapt=adapt, out_indices=4, feature_cls="getter")
__getattr__ = family.module_getattr(__name__)
