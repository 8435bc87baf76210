"""MobileViT (https://arxiv.org/abs/2110.02178) and MobileViTv2 (https://arxiv.org/abs/2206.02680): inverted
bottlenecks, and blocks in which the pixels at one place of all patches attend to each other."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.layers import Mlp, get_norm_layer
from opsin.models._byob import ByoBlockCfg, ByobNet, Config
from opsin.models._byob_blocks import BLOCKS, Figures
from opsin.models._family import Family
from opsin.models._vit_blocks import Block

__all__ = [
    "ByobNet",
    "Config",
    "LinearSelfAttention",
    "LinearTransformerBlock",
    "MobileVitBlock",
    "MobileVitV2Block",
]


class PatchMixer(nn.Module):
    """Base of both: a map cut into patches, for the pixels at one place in each to look at each other."""

    align_corners = False  # how a map that is no whole number of patches is stretched to one

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size

    def mix(self, x: Tensor) -> Tensor:
        """On `(B, C, places in a patch, patches)`."""
        raise NotImplementedError(f"{type(self).__name__} must say how patches mix")

    def resize(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if tuple(x.shape[2:]) == size:
            return x
        return F.interpolate(x, size, mode="bilinear", align_corners=self.align_corners)

    def stretch(self, x: Tensor) -> Tensor:
        """To whole patches."""
        side = self.patch_size
        return self.resize(x, (-(-x.shape[2] // side) * side, -(-x.shape[3] // side) * side))

    def through_patches(self, x: Tensor) -> Tensor:
        """Cut, `mix`, and put together again."""
        side, rows, columns = self.patch_size, x.shape[2] // self.patch_size, x.shape[3] // self.patch_size
        x = x.unflatten(3, (columns, side)).unflatten(2, (rows, side))  # (B, C, row, y, column, x)
        x = self.mix(x.permute(0, 1, 3, 5, 2, 4).flatten(4, 5).flatten(2, 3))
        x = x.unflatten(3, (rows, columns)).unflatten(2, (side, side)).permute(0, 1, 4, 2, 5, 3)
        return x.flatten(4, 5).flatten(2, 3)


class MobileVitBlock(PatchMixer):
    """Convolutions to `transformer_dim` channels, transformer blocks, convolutions back, fused with the input."""

    def __init__(
        self, f: Figures, *, kernel_size: int = 3, mlp_ratio: float = 2.0, transformer_dim: int | None = None,
        transformer_depth: int = 2, patch_size: int = 8, num_heads: int = 4, attn_drop: float = 0.0, drop: float = 0.0,
        no_fusion: bool = False, transformer_norm_layer: Any = nn.LayerNorm,
    ) -> None:  # fmt: skip
        super().__init__(patch_size)
        dim, norm = transformer_dim or f.inner(f.in_chs), get_norm_layer(transformer_norm_layer)
        groups = f.groups(f.in_chs)
        self.conv_kxk = f.conv(f.in_chs, f.in_chs, kernel_size, f.stride, groups=groups, dilation=f.first_dilation)
        self.conv_1x1 = nn.Conv2d(f.in_chs, dim, 1, bias=False)
        rates: dict[str, Any] = {"attn_drop": attn_drop, "proj_drop": drop, "drop_path": f.drop_path}
        block = partial(Block, dim, num_heads, mlp_ratio, qkv_bias=True, act_layer=f.act, norm_layer=norm, **rates)
        self.transformer = nn.Sequential(*(block() for _ in range(transformer_depth)))
        self.norm = norm(dim)
        self.conv_proj = f.conv(dim, f.out_chs)
        self.conv_fusion = None if no_fusion else f.conv(f.in_chs + f.out_chs, f.out_chs, kernel_size)

    def mix(self, x: Tensor) -> Tensor:
        places = x.shape[2]
        x = self.norm(self.transformer(x.permute(0, 2, 3, 1).flatten(0, 1)))
        return x.unflatten(0, (-1, places)).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_1x1(self.conv_kxk(x))
        size = (y.shape[2], y.shape[3])
        y = self.conv_proj(self.resize(self.through_patches(self.stretch(y)), size))
        return y if self.conv_fusion is None else self.conv_fusion(torch.cat((x, y), 1))


class LinearSelfAttention(nn.Module):
    """Every position of `(B, C, P, N)` gets one mean over the N, weighted by a score of each: linear in N."""

    def __init__(self, embed_dim: int, attn_drop: float = 0.0, proj_drop: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.qkv_proj = nn.Conv2d(embed_dim, 1 + 2 * embed_dim, 1, bias=bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.out_proj = nn.Conv2d(embed_dim, embed_dim, 1, bias=bias)
        self.out_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        score, key, value = self.qkv_proj(x).split([1, self.embed_dim, self.embed_dim], 1)
        context = (key * self.attn_drop(score.softmax(-1))).sum(-1, keepdim=True)
        return self.out_drop(self.out_proj(value.relu() * context))


class LinearTransformerBlock(nn.Module):
    """Linear attention and MLP, each behind its norm, on `(B, C, P, N)`."""

    def __init__(
        self, embed_dim: int, mlp_ratio: float = 2.0, drop: float = 0.0, attn_drop: float = 0.0, *,
        path: Any = nn.Identity, act_layer: Any = "silu", norm_layer: Any = "groupnorm1",
    ) -> None:  # fmt: skip
        super().__init__()
        norm = get_norm_layer(norm_layer)
        self.norm1 = norm(embed_dim)
        self.attn = LinearSelfAttention(embed_dim, attn_drop, drop)
        self.drop_path1 = path()
        self.norm2 = norm(embed_dim)
        self.mlp = Mlp(embed_dim, int(embed_dim * mlp_ratio), act_layer=act_layer, drop=drop, use_conv=True)
        self.drop_path2 = path()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class MobileVitV2Block(PatchMixer):
    """Convolutions to `transformer_dim` channels, blocks of linear attention, a convolution back.

    A map that is no whole number of patches is stretched ahead of it all and stays so.
    """

    align_corners = True

    def __init__(
        self, f: Figures, *, kernel_size: int = 3, mlp_ratio: float = 2.0, transformer_dim: int | None = None,
        transformer_depth: int = 2, patch_size: int = 8, attn_drop: float = 0.0, drop: float = 0.0,
        transformer_norm_layer: Any = "groupnorm1",
    ) -> None:  # fmt: skip
        super().__init__(patch_size)
        dim, norm = transformer_dim or f.inner(f.in_chs), get_norm_layer(transformer_norm_layer)
        groups = f.groups(f.in_chs)
        self.conv_kxk = f.conv(f.in_chs, f.in_chs, kernel_size, f.stride, groups=groups, dilation=f.first_dilation)
        self.conv_1x1 = nn.Conv2d(f.in_chs, dim, 1, bias=False)
        block = partial(
            LinearTransformerBlock, dim, mlp_ratio, drop, attn_drop, path=f.path, act_layer=f.act, norm_layer=norm
        )
        self.transformer = nn.Sequential(*(block() for _ in range(transformer_depth)))
        self.norm = norm(dim)
        self.conv_proj = f.conv(dim, f.out_chs, apply_act=False)

    def mix(self, x: Tensor) -> Tensor:
        return self.norm(self.transformer(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_proj(self.through_patches(self.conv_1x1(self.conv_kxk(self.stretch(x)))))


BLOCKS.update(mobilevit=MobileVitBlock, mobilevit2=MobileVitV2Block)

PLAIN: dict[str, Any] = {"downsample": "", "act_layer": "silu"}
INVERTED = {"bottle_in": True, "linear_out": True}


def bottle(c: int, br: float, *, d: int = 1, s: int = 2) -> ByoBlockCfg:
    return ByoBlockCfg("bottle", d=d, c=c, s=s, gs=1, br=br, block_kwargs=INVERTED)


def stages(kind: str, chs: tuple[int, ...], br: float, second: int, **own: tuple[Any, ...]) -> tuple[Any, ...]:
    """Two stages of bottlenecks (`second`: how many in the second), three that end in a block of `kind`.

    `own` are figures of these blocks, one for each.
    """
    first, then, *late = chs
    rows: list[Any] = [bottle(first, br, s=1), bottle(then, br, d=second)]
    for c, depth, *figures in zip(late, (2, 4, 3), *own.values(), strict=True):
        kwargs = {"transformer_depth": depth, "patch_size": 2, **dict(zip(own, figures, strict=True))}
        wide: dict[str, Any] = {"gs": 1, "br": 0.5} if kind == "mobilevit2" else {}
        rows.append((bottle(c, br), ByoBlockCfg(kind, d=1, c=c, s=1, **wide, block_kwargs=kwargs)))
    return tuple(rows)


def v1(chs: tuple[int, ...], dims: tuple[int, int, int], last: int, *, br: float = 4.0) -> Config:
    """MobileViT; `last` is the width of the closing convolution."""
    blocks = stages("mobilevit", chs, br, 3, transformer_dim=dims)
    return Config(**PLAIN, blocks=blocks, stem_chs=16, num_features=last)


def v2(width: float) -> Config:
    """MobileViTv2, of `width` times the channels."""
    chs = tuple(int(c * width) for c in (64, 128, 256, 384, 512))
    return Config(**PLAIN, blocks=stages("mobilevit2", chs, 2.0, 2), stem_chs=int(32 * width))


VARIANTS = {
    "mobilevit_s": v1((32, 64, 96, 128, 160), (144, 192, 240), 640),
    "mobilevit_xs": v1((32, 48, 64, 80, 96), (96, 120, 144), 384),
    "mobilevit_xxs": v1((16, 24, 48, 64, 80), (64, 80, 96), 320, br=2.0),
    "mobilevitv2_050": v2(0.5),
    "mobilevitv2_075": v2(0.75),
    "mobilevitv2_100": v2(1.0),
    "mobilevitv2_125": v2(1.25),
    "mobilevitv2_150": v2(1.5),
    "mobilevitv2_175": v2(1.75),
    "mobilevitv2_200": v2(2.0),
}

family = Family(ByobNet, VARIANTS, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
