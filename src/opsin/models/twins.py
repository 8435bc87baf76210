"""Twins (https://arxiv.org/abs/2104.13840): PVT with positions from convolutions (PCPVT), and with attention in windows
in every other block (SVT)."""

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError
from opsin.layers.attention import Attention
from opsin.layers.drop import DropPath, drop_path_rates
from opsin.layers.mlp import Mlp
from opsin.layers.norm import get_norm_layer
from opsin.layers.patch_embed import to_2tuple
from opsin.layers.weight_init import init_pyramid_
from opsin.models import pvt_v2
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._model import Model
from opsin.models._swin import departition, partition
from opsin.models._token import global_pool_nlc

__all__ = ["Block", "Config", "Twins"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Tuples have one entry per stage. Any image fits: `img_size` only says how many patches `patch_embeds` count."""

    img_size: int | tuple[int, int] = 224
    patch_size: int = 4  # of the first stage
    embed_dims: tuple[int, ...] = (64, 128, 256, 512)
    num_heads: tuple[int, ...] = (1, 2, 4, 8)
    mlp_ratios: tuple[float, ...] = (4.0, 4.0, 4.0, 4.0)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)  # keys and values come from a map this much smaller
    wss: tuple[int, ...] | None = None  # sides of the windows in every other block; None for no windows
    pos_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    norm_layer: Any = "layernorm"


class PatchEmbed(nn.Module):
    """Patches: `(B, H, W, C)` to normed `(B, H / patch, W / patch, dim)`; the first one takes images `(B, C, H, W)`."""

    def __init__(self, size: tuple[int, int], patch: int, in_chans: int, dim: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.grid_size = (size[0] // patch, size[1] // patch)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        self.proj = nn.Conv2d(in_chans, dim, patch, patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x if self.first else x.permute(0, 3, 1, 2))
        return self.norm(x.permute(0, 2, 3, 1))


class PosConv(nn.Module):
    """A depthwise convolution on top of `(B, H, W, C)`: its zero padding tells where the borders are."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Conv2d(dim, dim, 3, 1, 1, groups=dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class WindowAttention(Attention):
    """Attention inside windows of `(B, H, W, dim)`; the last ones are filled up with zeros, which take part."""

    def __init__(self, dim: int, num_heads: int, window: int, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, qkv_bias=True, **kwargs)
        self.window = (window, window)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        height, width = x.shape[1], x.shape[2]
        x = F.pad(x, (0, 0, 0, -width % self.window[1], 0, -height % self.window[0]))
        parts = super().forward(partition(x, self.window))
        return departition(parts, self.window, x.shape[1], x.shape[2])[:, :height, :width]


class Block(nn.Module):
    """Attention and MLP behind their norms, on `(B, H, W, dim)`; `window` None attends to a reduced map."""

    def __init__(
        self, c: Config, dim: int, num_heads: int, mlp_ratio: float, sr_ratio: int, window: int | None, drop_path: float
    ) -> None:
        super().__init__()
        norm, drops = get_norm_layer(c.norm_layer), {"attn_drop": c.attn_drop_rate, "proj_drop": c.proj_drop_rate}
        self.norm1 = norm(dim)
        self.attn: nn.Module
        if window is None:
            like = pvt_v2.Config(attn_drop_rate=c.attn_drop_rate, proj_drop_rate=c.proj_drop_rate)
            self.attn = pvt_v2.ReducedAttention(dim, num_heads, sr_ratio, like)
        else:
            self.attn = WindowAttention(dim, num_heads, window, **drops)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = norm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=c.proj_drop_rate)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class Twins(Model, config=Config):
    """Stages of patches and blocks, positions behind the first block of each; norm, pooled linear head."""

    layout = "NHWC"
    classifier_path = "head"
    first_conv = "patch_embeds.0.proj"
    positional = (
        "img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dims", "num_heads", "mlp_ratios",
        "depths", "sr_ratios", "wss",
    )  # fmt: skip

    def build(self, c: Config) -> None:
        drops = drop_path_rates(c.drop_path_rate, tuple(c.depths))
        rows = (c.embed_dims, c.num_heads, c.mlp_ratios, c.sr_ratios, c.wss or (None,) * len(c.depths), drops)
        if len({len(row) for row in rows}) > 1:
            raise UnknownArgumentError("embed_dims, num_heads, mlp_ratios, depths, sr_ratios, wss: one entry per stage")
        self.patch_embeds, self.pos_drops = nn.ModuleList(), nn.ModuleList()
        self.blocks, self.pos_block = nn.ModuleList(), nn.ModuleList()
        size, width, stride, chain = to_2tuple(c.img_size), c.in_chans, 1, []
        for i, (dim, heads, mlp_ratio, sr_ratio, window, rates) in enumerate(zip(*rows, strict=True)):
            patch = 2 if i else c.patch_size
            embed = PatchEmbed(size, patch, width, dim, first=i == 0)
            self.patch_embeds.append(embed)
            self.pos_drops.append(nn.Dropout(c.pos_drop_rate))
            windows = [None if j % 2 else window for j in range(len(rates))]
            figures = (c, dim, heads, mlp_ratio, sr_ratio)
            self.blocks.append(nn.Sequential(*(Block(*figures, w, r) for w, r in zip(windows, rates, strict=True))))
            self.pos_block.append(PosConv(dim))
            size, width, stride = embed.grid_size, dim, stride * patch
            chain.append(stage_of(i, len(rates), dim, stride))
        self.norm = get_norm_layer(c.norm_layer)(width)
        self.chain = (*chain, Stage(("norm", "tokens"), params=("norm",), to_tokens=True))
        self.num_features = self.head_hidden_size = width
        self.build_head(c)

    def build_head(self, c: Config) -> None:
        if c.global_pool not in POOLS:
            raise UnknownArgumentError(f"global_pool={c.global_pool!r}: {', '.join(map(repr, POOLS))}")
        self.global_pool = c.global_pool
        self.head = nn.Linear(self.num_features, c.num_classes) if c.num_classes else nn.Identity()

    def tokens(self, x: Tensor) -> Tensor:
        """`(B, H, W, C)` to `(B, H * W, C)`."""
        return x.flatten(1, 2)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool all tokens and classify; `pre_logits` stops at the embedding."""
        if x.ndim == 4 and self.global_pool:  # the closing norm was pruned
            x = x.flatten(1, 2)
        x = F.dropout(global_pool_nlc(x, self.global_pool, 0), self.drop_rate, self.training)
        return x if pre_logits else self.head(x)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.startswith("pos_block.")}

    def init_module(self, module: nn.Module, name: str) -> bool:
        return init_pyramid_(module)


POOLS = ("avg", "max", "avgmax", "")


def stage_of(i: int, depth: int, dim: int, stride: int) -> Stage:
    """Patches, the first block, positions, the other blocks."""
    blocks = [f"blocks.{i}.{j}" for j in range(depth)]
    run = (f"patch_embeds.{i}", f"pos_drops.{i}", blocks[0], f"pos_block.{i}", *blocks[1:])
    owners = (f"patch_embeds.{i}", f"blocks.{i}", f"pos_block.{i}")
    return Stage(run, dim, stride, module=f"block.{i}", params=owners)


P: dict[str, Any] = {
    "embed_dims": (64, 128, 320, 512), "num_heads": (1, 2, 5, 8), "mlp_ratios": (8.0, 8.0, 4.0, 4.0),
}  # fmt: skip
S: dict[str, Any] = {"wss": (7, 7, 7, 7)}

VARIANTS = {
    "twins_pcpvt_base": Config(**P, depths=(3, 4, 18, 3)),
    "twins_pcpvt_large": Config(**P, depths=(3, 8, 27, 3)),
    "twins_pcpvt_small": Config(**P, depths=(3, 4, 6, 3)),
    "twins_svt_base": Config(**S, embed_dims=(96, 192, 384, 768), num_heads=(3, 6, 12, 24), depths=(2, 2, 18, 2)),
    "twins_svt_large": Config(**S, embed_dims=(128, 256, 512, 1024), num_heads=(4, 8, 16, 32), depths=(2, 2, 18, 2)),
    "twins_svt_small": Config(**S, num_heads=(2, 4, 8, 16), depths=(2, 2, 10, 4)),
}

family = Family(Twins, VARIANTS, out_indices=4, feature_cls="getter")
__getattr__ = family.module_getattr(__name__)
