"""PVT v2, the pyramid vision transformer with overlapping patches (https://arxiv.org/abs/2106.13797).

Attention looks at a map that a strided convolution has made small; in the linear form pooling makes it 7x7 always.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError
from opsin.layers.attention import split_heads
from opsin.layers.drop import DropPath, drop_path_rates
from opsin.layers.norm import get_norm_layer
from opsin.layers.weight_init import init_pyramid_
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._model import Model

__all__ = ["Config", "PyramidVisionTransformerV2"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Tuples have one entry per stage; `linear` is attention whose cost grows linearly with the image."""

    depths: tuple[int, ...] = (3, 4, 6, 3)
    embed_dims: tuple[int, ...] = (64, 128, 256, 512)
    num_heads: tuple[int, ...] = (1, 2, 4, 8)
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)  # keys and values come from a map this much smaller
    mlp_ratios: tuple[float, ...] = (8.0, 8.0, 4.0, 4.0)
    qkv_bias: bool = True
    linear: bool = False
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    norm_layer: Any = "layernorm"


class PatchEmbed(nn.Module):
    """Overlapping patches: `(B, C, H, W)` to normed `(B, H / stride, W / stride, dim)`."""

    def __init__(self, in_chans: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class ToChannelsFirst(nn.Module):
    """`(B, H, W, C)` to `(B, C, H, W)`."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2).contiguous()


class ReducedAttention(nn.Module):
    """Attention over the positions of `(B, H, W, dim)`, with keys and values from a smaller map."""

    def __init__(self, dim: int, num_heads: int, sr_ratio: int, c: Config) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, bias=c.qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=c.qkv_bias)
        self.attn_drop = nn.Dropout(c.attn_drop_rate)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(c.proj_drop_rate)
        self.pool = nn.AdaptiveAvgPool2d(7) if c.linear else nn.Identity()
        self.reduced = c.linear or sr_ratio > 1
        if self.reduced:
            kernel = 1 if c.linear else sr_ratio
            self.sr = nn.Conv2d(dim, dim, kernel, kernel)
            self.norm = nn.LayerNorm(dim)
            self.act = nn.GELU() if c.linear else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        size, x = x.shape[1:3], x.flatten(1, 2)
        source = x
        if self.reduced:
            grid = x.transpose(1, 2).unflatten(2, size)
            source = self.act(self.norm(self.sr(self.pool(grid)).flatten(2).transpose(1, 2)))
        q, k, v = (split_heads(part, self.num_heads) for part in (self.q(x), *self.kv(source).chunk(2, -1)))
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2))).unflatten(1, size)


class DepthwiseMlp(nn.Module):
    """An MLP on `(B, H, W, dim)` whose depthwise convolution tells the positions apart."""

    def __init__(self, dim: int, hidden: int, c: Config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.relu = nn.ReLU() if c.linear else nn.Identity()
        self.dwconv = nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(c.proj_drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dwconv(self.relu(self.fc1(x)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.drop(self.fc2(self.drop(self.act(x))))


class Block(nn.Module):
    """Attention and MLP behind their norms, on `(B, H, W, dim)`."""

    def __init__(
        self, dim: int, c: Config, *, num_heads: int, sr_ratio: int, mlp_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        norm = get_norm_layer(c.norm_layer)
        self.norm1 = norm(dim)
        self.attn = ReducedAttention(dim, num_heads, sr_ratio, c)
        self.norm2 = norm(dim)
        self.mlp = DepthwiseMlp(dim, int(dim * mlp_ratio), c)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PyramidVisionTransformerV2(Model, config=Config):
    """Four stages, each of patches, blocks and a norm; average pooling, linear head."""

    positional = ("in_chans", "num_classes", "global_pool")
    classifier_path = "head"
    first_conv = "patch_embed.proj"

    def build(self, c: Config) -> None:
        rows = (
            c.embed_dims,
            c.num_heads,
            c.sr_ratios,
            c.mlp_ratios,
            drop_path_rates(c.drop_path_rate, tuple(c.depths)),
        )
        if len({len(row) for row in rows}) > 1:
            raise UnknownArgumentError(
                "depths, embed_dims, num_heads, sr_ratios and mlp_ratios need one entry per stage"
            )
        self.patch_embed = PatchEmbed(c.in_chans, c.embed_dims[0], 7, 4)
        self.stages = nn.Sequential()
        chain = [Stage(("patch_embed",), checkpoint=False)]
        width, norm = c.embed_dims[0], get_norm_layer(c.norm_layer)
        for i, (dim, heads, ratio, mlp_ratio, rates) in enumerate(zip(*rows, strict=True)):
            parts: list[tuple[str, nn.Module]] = [("downsample", PatchEmbed(width, dim, 3, 2))] if i else []
            shape: dict[str, Any] = {"num_heads": heads, "sr_ratio": ratio, "mlp_ratio": mlp_ratio}
            blocks = nn.Sequential(*(Block(dim, c, **shape, drop_path=rate) for rate in rates))
            parts += [("blocks", blocks), ("norm", norm(dim)), ("to_map", ToChannelsFirst())]
            self.stages.append(nn.Sequential(OrderedDict(parts)))
            chain.append(Stage((f"stages.{i}",), dim, 4 * 2**i))
            width = dim
        self.num_features = self.head_hidden_size = width
        self.chain = tuple(chain)
        self.build_head(c)

    def init_module(self, module: nn.Module, name: str) -> bool:
        return init_pyramid_(module)


PARTS = {"patch_embed": "downsample", "block": "blocks", "norm": "norm"}


def _of_today(key: str) -> str:
    """The name of today for one of the paper's code, where the parts of a stage end in its number: `block3.0.attn`."""
    part, _, rest = key.partition(".")
    kind = part.rstrip("1234")
    if kind == part:
        return key
    stage = int(part.removeprefix(kind)) - 1
    owner = f"stages.{stage}.{PARTS[kind]}" if stage or kind != "patch_embed" else kind
    return f"{owner}.{rest}".replace("dwconv.dwconv.", "dwconv.")


def adapt(state_dict: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """Read the layout of the paper's own code."""
    if not any(key.startswith("patch_embed1.") for key in state_dict):
        return state_dict
    return {_of_today(key): value for key, value in state_dict.items()}


Wide = partial(Config, embed_dims=(64, 128, 320, 512), num_heads=(1, 2, 5, 8))

VARIANTS = {
    "pvt_v2_b0": Config(depths=(2, 2, 2, 2), embed_dims=(32, 64, 160, 256), num_heads=(1, 2, 5, 8)),
    "pvt_v2_b1": Wide(depths=(2, 2, 2, 2)),
    "pvt_v2_b2": Wide(depths=(3, 4, 6, 3)),
    "pvt_v2_b2_li": Wide(depths=(3, 4, 6, 3), linear=True),
    "pvt_v2_b3": Wide(depths=(3, 4, 18, 3)),
    "pvt_v2_b4": Wide(depths=(3, 8, 27, 3)),
    "pvt_v2_b5": Wide(depths=(3, 6, 40, 3), mlp_ratios=(4, 4, 4, 4)),
}

family = Family(PyramidVisionTransformerV2, VARIANTS, adapt=adapt, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
