"""XCiT (https://arxiv.org/abs/2106.09681): attention between channels instead of positions, so its cost grows linearly
with the image; small convolutions let neighbouring patches talk, and a class token looks at the end."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError
from opsin.layers.act import create_act
from opsin.layers.attention import split_heads
from opsin.layers.drop import DropPath
from opsin.layers.mlp import Mlp
from opsin.layers.norm import get_norm_layer
from opsin.layers.patch_embed import to_2tuple
from opsin.layers.weight_init import trunc_normal_
from opsin.models._chain import Stage, to_map
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._token import PatchModel, global_pool_nlc
from opsin.models.cait import ClassAttn

__all__ = ["Config", "Xcit"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Any image fits: `img_size` only says how many patches `patch_embed.num_patches` counts."""

    global_pool: str = "token"  # token, avg, max, avgmax or "" (all tokens)
    img_size: int | tuple[int, int] = 224
    patch_size: int = 16  # 8 or 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    pos_drop_rate: float = 0.0
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0  # the same for all blocks
    act_layer: Any = "gelu"
    norm_layer: Any = "layernorm"
    cls_attn_layers: int = 2
    use_pos_embed: bool = True
    eta: float | None = 1.0  # start of the layer scale; None for none
    tokens_norm: bool = False  # class attention ends with a norm over all tokens, not the class token alone


class FourierPositions(nn.Module):
    """Sines and cosines of row and column, projected to `dim`: `(1, dim, H, W)` for any size."""

    def __init__(self, dim: int, hidden: int = 32, temperature: float = 10000.0) -> None:
        super().__init__()
        self.hidden, self.temperature = hidden, temperature
        self.token_projection = nn.Conv2d(2 * hidden, dim, 1)

    def forward(self, size: tuple[int, int]) -> Tensor:
        weight = self.token_projection.weight
        pairs = torch.arange(self.hidden, device=weight.device).div(2, rounding_mode="floor").to(torch.float32)
        period = self.temperature ** (2 * pairs / self.hidden)
        waves = []
        for side in size:
            place = torch.arange(1, side + 1, device=weight.device, dtype=torch.float32)
            phase = (place / (side + 1e-6) * (2 * math.pi))[:, None] / period
            waves.append(torch.stack((phase[:, 0::2].sin(), phase[:, 1::2].cos()), -1).flatten(1))
        rows = waves[0][:, None].expand(*size, -1)
        columns = waves[1][None].expand(*size, -1)
        grid = torch.cat((rows, columns), -1).permute(2, 0, 1)[None]
        return self.token_projection(grid.to(weight.dtype))


class ConvPatchEmbed(nn.Module):
    """Strided 3x3 convolutions, each of which halves the map: `(B, C, H, W)` to `(B, dim, H / patch, W / patch)`."""

    def __init__(
        self, img_size: int | tuple[int, int], patch_size: int, in_chans: int, dim: int, act_layer: Any
    ) -> None:
        super().__init__()
        if patch_size not in (8, 16):
            raise UnknownArgumentError(f"patch_size={patch_size}: XCiT has 8 and 16")
        self.img_size, self.patch_size = to_2tuple(img_size), to_2tuple(patch_size)
        self.grid_size = self.dynamic_feat_size(self.img_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        halvings = int(math.log2(patch_size))
        widths = [in_chans, *(dim // 2**i for i in reversed(range(halvings)))]
        layers: list[nn.Module] = []
        for i in range(halvings):
            conv = nn.Conv2d(widths[i], widths[i + 1], 3, 2, 1, bias=False)
            layers += [nn.Sequential(conv, nn.BatchNorm2d(widths[i + 1])), create_act(act_layer)]
        self.proj = nn.Sequential(*layers[:-1])

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches in an image; the convolutions pad, so a started patch counts."""
        return -(-img_size[0] // self.patch_size[0]), -(-img_size[1] // self.patch_size[1])

    def feat_ratio(self) -> int:
        return self.patch_size[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class CrossCovarianceAttn(nn.Module):
    """Attention between the channels of each head, over `(B, N, dim)`: maps are D x D whatever N is."""

    def __init__(self, dim: int, c: Config) -> None:
        super().__init__()
        self.num_heads = c.num_heads
        self.temperature = nn.Parameter(torch.empty(c.num_heads, 1, 1))
        self.qkv = nn.Linear(dim, 3 * dim, bias=c.qkv_bias)
        self.attn_drop = nn.Dropout(c.attn_drop_rate)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(c.proj_drop_rate)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.temperature)

    def forward(self, x: Tensor) -> Tensor:
        parts = (split_heads(part, self.num_heads).transpose(-2, -1) for part in self.qkv(x).chunk(3, -1))
        q, k, v = parts  # (B, heads, D, N)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        x = self.attn_drop((scores * self.temperature).softmax(-1)) @ v
        return self.proj_drop(self.proj(x.flatten(1, 2).transpose(1, 2)))


class LocalPatchInteraction(nn.Module):
    """Two depthwise convolutions over the patches of `(B, N, dim)` laid out in rows."""

    def __init__(self, dim: int, act_layer: Any, kernel: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.act = create_act(act_layer)
        self.bn = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = self.conv1(x.transpose(1, 2).unflatten(2, size))
        return self.conv2(self.bn(self.act(x))).flatten(2).transpose(1, 2)


class Scaled(nn.Module):
    """A block whose branches have layer scales `gamma1`, `gamma2`, … ."""

    def make_gammas(self, names: tuple[str, ...], c: Config) -> None:
        self.eta, self.gammas = c.eta, names
        for name in names:
            self.register_parameter(name, None if c.eta is None else nn.Parameter(torch.empty(c.embed_dim)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for name in self.gammas:
            if getattr(self, name) is not None:
                nn.init.constant_(getattr(self, name), self.eta)  # type: ignore[arg-type]

    def scaled(self, gamma: Any, x: Tensor) -> Tensor:
        return x if gamma is None else gamma * x


class XCABlock(Scaled):
    """Channel attention, patch interaction, MLP on patches `(B, H, W, dim)`."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        dim, norm = c.embed_dim, get_norm_layer(c.norm_layer)
        self.norm1 = norm(dim)
        self.attn = CrossCovarianceAttn(dim, c)
        self.norm3 = norm(dim)
        self.local_mp = LocalPatchInteraction(dim, c.act_layer)
        self.norm2 = norm(dim)
        self.mlp = Mlp(dim, int(dim * c.mlp_ratio), act_layer=c.act_layer, drop=c.proj_drop_rate)
        self.drop_path = DropPath(c.drop_path_rate)
        self.make_gammas(("gamma1", "gamma3", "gamma2"), c)

    def forward(self, x: Tensor) -> Tensor:
        size, x = (x.shape[1], x.shape[2]), x.flatten(1, 2)
        x = x + self.drop_path(self.scaled(self.gamma1, self.attn(self.norm1(x))))
        x = x + self.drop_path(self.scaled(self.gamma3, self.local_mp(self.norm3(x), size)))
        x = x + self.drop_path(self.scaled(self.gamma2, self.mlp(self.norm2(x))))
        return x.unflatten(1, size)


class ClassAttentionBlock(Scaled):
    """The class token looks at all of `(B, 1 + N, dim)`, and goes through an MLP alone."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        dim, norm = c.embed_dim, get_norm_layer(c.norm_layer)
        self.tokens_norm = c.tokens_norm
        self.norm1 = norm(dim)
        drops = {"attn_drop": c.attn_drop_rate, "proj_drop": c.proj_drop_rate}
        self.attn = ClassAttn(dim, num_heads=c.num_heads, qkv_bias=c.qkv_bias, **drops)
        self.norm2 = norm(dim)
        self.mlp = Mlp(dim, int(dim * c.mlp_ratio), act_layer=c.act_layer, drop=c.proj_drop_rate)
        self.make_gammas(("gamma1", "gamma2"), c)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        # patches take part in the first residual too, with their norm as the branch: so the weights were trained
        x = x + self.scaled(self.gamma1, torch.cat((self.attn(normed), normed[:, 1:]), 1))
        token, patches = x[:, :1], x[:, 1:]
        token, patches = self.norm2(token), self.norm2(patches) if self.tokens_norm else patches
        return torch.cat((token + self.scaled(self.gamma2, self.mlp(token)), 2 * patches), 1)


class Xcit(PatchModel, config=Config):
    """Patch maps with Fourier positions, blocks, class attention, norm, linear head."""

    positional = (
        "img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth", "num_heads",
        "mlp_ratio", "qkv_bias",
    )  # fmt: skip
    classifier_path = "head"
    first_conv = "patch_embed.proj.0.0"
    layout = "NHWC"

    def build(self, c: Config) -> None:
        self.num_features = self.head_hidden_size = self.embed_dim = c.embed_dim
        self.patch_embed = ConvPatchEmbed(c.img_size, c.patch_size, c.in_chans, c.embed_dim, c.act_layer)
        self.cls_token: nn.Parameter | None = nn.Parameter(torch.empty(1, 1, c.embed_dim))
        self.pos_embed = FourierPositions(c.embed_dim) if c.use_pos_embed else None
        self.pos_drop = nn.Dropout(c.pos_drop_rate)
        self.blocks = nn.Sequential(*(XCABlock(c) for _ in range(c.depth)))
        self.cls_attn_blocks = nn.Sequential(*(ClassAttentionBlock(c) for _ in range(c.cls_attn_layers)))
        self.norm = get_norm_layer(c.norm_layer)(c.embed_dim)
        self.build_head(c)
        levels = [Stage((f"blocks.{i}",), c.embed_dim, self.patch_embed.feat_ratio()) for i in range(c.depth)]
        parts = ("patch_embed", *(("pos_embed",) if c.use_pos_embed else ()))
        self.chain = (
            Stage(("embed",), params=parts, checkpoint=False),
            *levels,
            Stage(("with_token", "cls_attn_blocks"), params=("cls_token", "cls_attn_blocks"), to_tokens=True),
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
        """Images (B, C, H, W) to patches (B, H, W, embed_dim)."""
        x = self.patch_embed(x)
        if self.pos_embed is not None:
            x = x + self.pos_embed((x.shape[2], x.shape[3]))
        return self.pos_drop(x.permute(0, 2, 3, 1))

    def with_token(self, x: Tensor) -> Tensor:
        """Patches (B, H, W, embed_dim) as a row behind the class token (B, 1 + H * W, embed_dim)."""
        token = self.cls_token.expand(x.shape[0], -1, -1)  # type: ignore[union-attr]
        return torch.cat((token, x.flatten(1, 2)), 1)

    def as_map(self, x: Tensor, image_size: tuple[int, int], output_fmt: str = "NCHW") -> Tensor:
        if output_fmt == "NLC":
            return x.flatten(1, 2)
        return to_map(x, self.layout, output_fmt)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool all tokens and classify; `pre_logits` stops at the embedding."""
        if x.ndim == 4:  # the class token was pruned
            x = x.flatten(1, 2)
        x = global_pool_nlc(x, self.global_pool, self.num_prefix_tokens)
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.head(x)

    def no_weight_decay(self) -> set[str]:
        return {"cls_token", "pos_embed.*"}

    def init_module(self, module: nn.Module, name: str) -> bool:
        if module is self:
            if self.cls_token is not None:
                trunc_normal_(self.cls_token, std=0.02)
            return True
        if not isinstance(module, nn.Linear):
            return False
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        return True


def adapt(state_dict: Mapping[str, Tensor], model: Any) -> Mapping[str, Tensor]:
    """Read the layout of the paper's own code: other name of the positions, one matrix for the class attention."""
    joint = [key for key in state_dict if key.startswith("cls_attn_blocks.") and ".attn.qkv." in key]
    places = [key for key in state_dict if key.startswith("pos_embeder.")]
    if not joint and not places:
        return state_dict
    state = dict(state_dict)
    for key in joint:
        for letter, rows in zip("qkv", state.pop(key).unflatten(0, (3, -1)), strict=True):
            state[key.replace("qkv", letter)] = rows.clone()
    for key in places:
        value = state.pop(key)
        if model.pos_embed is not None:  # a model built without positions has no use for them
            state[key.replace("pos_embeder", "pos_embed")] = value
    return state


NANO: dict[str, Any] = {"embed_dim": 128, "num_heads": 4}
TINY: dict[str, Any] = {"embed_dim": 192, "num_heads": 4, "tokens_norm": True}
SMALL: dict[str, Any] = {"embed_dim": 384, "num_heads": 8, "tokens_norm": True}
MEDIUM: dict[str, Any] = {"embed_dim": 512, "num_heads": 8, "tokens_norm": True}
LARGE: dict[str, Any] = {"embed_dim": 768, "num_heads": 16, "tokens_norm": True}
DEEP: dict[str, Any] = {"depth": 24, "eta": 1e-5}

VARIANTS = {
    "xcit_large_24_p16_224": Config(**LARGE, **DEEP),
    "xcit_large_24_p16_384": Config(**LARGE, **DEEP),
    "xcit_large_24_p8_224": Config(patch_size=8, **LARGE, **DEEP),
    "xcit_large_24_p8_384": Config(patch_size=8, **LARGE, **DEEP),
    "xcit_medium_24_p16_224": Config(**MEDIUM, **DEEP),
    "xcit_medium_24_p16_384": Config(**MEDIUM, **DEEP),
    "xcit_medium_24_p8_224": Config(patch_size=8, **MEDIUM, **DEEP),
    "xcit_medium_24_p8_384": Config(patch_size=8, **MEDIUM, **DEEP),
    "xcit_nano_12_p16_224": Config(**NANO),
    "xcit_nano_12_p16_384": Config(img_size=384, **NANO),
    "xcit_nano_12_p8_224": Config(patch_size=8, **NANO),
    "xcit_nano_12_p8_384": Config(patch_size=8, **NANO),
    "xcit_small_12_p16_224": Config(**SMALL),
    "xcit_small_12_p16_384": Config(**SMALL),
    "xcit_small_12_p8_224": Config(patch_size=8, **SMALL),
    "xcit_small_12_p8_384": Config(patch_size=8, **SMALL),
    "xcit_small_24_p16_224": Config(**SMALL, **DEEP),
    "xcit_small_24_p16_384": Config(**SMALL, **DEEP),
    "xcit_small_24_p8_224": Config(patch_size=8, **SMALL, **DEEP),
    "xcit_small_24_p8_384": Config(patch_size=8, **SMALL, **DEEP),
    "xcit_tiny_12_p16_224": Config(**TINY),
    "xcit_tiny_12_p16_384": Config(**TINY),
    "xcit_tiny_12_p8_224": Config(patch_size=8, **TINY),
    "xcit_tiny_12_p8_384": Config(patch_size=8, **TINY),
    "xcit_tiny_24_p16_224": Config(**TINY, **DEEP),
    "xcit_tiny_24_p16_384": Config(**TINY, **DEEP),
    "xcit_tiny_24_p8_224": Config(patch_size=8, **TINY, **DEEP),
    "xcit_tiny_24_p8_384": Config(patch_size=8, **TINY, **DEEP),
}

family = Family(Xcit, VARIANTS, adapt=adapt, out_indices=3, feature_cls="getter")
__getattr__ = family.module_getattr(__name__)
