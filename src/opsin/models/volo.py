"""VOLO, vision outlooker (https://arxiv.org/abs/2106.13112), with the token labels of LV-ViT
(https://arxiv.org/abs/2104.10858)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError
from opsin.layers.attention import Attention, split_heads
from opsin.layers.drop import DropPath, drop_path_rates
from opsin.layers.mlp import Mlp
from opsin.layers.norm import get_norm_layer
from opsin.layers.patch_embed import to_2tuple
from opsin.layers.pos_embed import resample_abs_pos_embed_nhwc
from opsin.layers.weight_init import trunc_normal_
from opsin.models._chain import Stage, run_stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._model import Model, Outputs
from opsin.models._token import global_pool_nlc
from opsin.models._vit_init import init_plain

__all__ = ["VOLO", "Config", "OutlookAttention", "Outlooker"]

Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Tuples have one entry per stage."""

    global_pool: str = "token"  # token, avg, max, avgmax (all of them reduce all tokens) or ""
    layers: tuple[int, ...] = ()
    img_size: int | tuple[int, int] = 224
    patch_size: int = 8
    stem_hidden_dim: int = 64
    embed_dims: tuple[int, ...] = (192, 384, 384, 384)
    num_heads: tuple[int, ...] = (6, 12, 12, 12)
    downsamples: tuple[bool, ...] = (True, False, False, False)  # halve the map behind a stage
    outlook_attention: tuple[bool, ...] = (True, False, False, False)
    mlp_ratio: float = 3.0
    qkv_bias: bool = False
    pos_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    norm_layer: Any = "layernorm"  # named ones have an epsilon of 1e-5
    post_layers: tuple[str, ...] | None = ("ca", "ca")  # class attention; None for no class token
    use_aux_head: bool = True  # classify each token as well; the strongest answers are added to that of the class token
    use_mix_token: bool = False  # `forward_train` swaps a box of patches between the images of a batch
    pooling_scale: int = 2  # positions, and such boxes, are those of a map this much smaller than the patches'


class PatchEmbed(nn.Module):
    """Three convolutions, the first one strided, then patches: `(B, C, H, W)` to `(B, H / patch, W / patch, dim)`."""

    def __init__(self, in_chans: int, hidden: int, patch_size: int, dim: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for kernel, stride, width in ((7, 2, in_chans), (3, 1, hidden), (3, 1, hidden)):
            conv = nn.Conv2d(width, hidden, kernel, stride, kernel // 2, bias=False)
            parts += [conv, nn.BatchNorm2d(hidden), nn.ReLU(inplace=True)]
        self.conv = nn.Sequential(*parts)
        self.proj = nn.Conv2d(hidden, dim, patch_size // 2, patch_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.conv(x)).permute(0, 2, 3, 1)


class Downsample(nn.Module):
    """A 2x2 convolution of stride 2 on `(B, H, W, C)`."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(dim, out_dim, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class OutlookAttention(nn.Module):
    """Each place of `(B, H, W, dim)` says how its 3x3 neighbours look at one another; every second place is asked.

    The weights come from a linear layer on that place alone; what overlapping windows give is added up.
    """

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = False, attn_drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.attn = nn.Linear(dim, 9 * 9 * num_heads)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1], x.shape[2]
        seen = F.unfold(self.v(x).permute(0, 3, 1, 2), 3, padding=1, stride=2)  # (B, dim * 9, N)
        values = seen.unflatten(1, (self.num_heads, -1, 9)).permute(0, 1, 4, 3, 2)  # (B, heads, N, 9, head dim)
        asked = F.avg_pool2d(x.permute(0, 3, 1, 2), 2, 2, ceil_mode=True).flatten(2).transpose(1, 2)
        weights = self.attn(asked).unflatten(2, (self.num_heads, 9, 9)).transpose(1, 2)  # (B, heads, N, 9, 9)
        weights = self.attn_drop((weights * self.scale).softmax(-1))
        x = (weights @ values).permute(0, 1, 4, 3, 2).flatten(1, 3)
        x = F.fold(x, (height, width), 3, padding=1, stride=2)
        return self.proj(x.permute(0, 2, 3, 1))


class MapAttention(Attention):
    """Attention over all places of `(B, H, W, dim)`."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x.flatten(1, 2)).unflatten(1, x.shape[1:3])


class ClassAttention(nn.Module):
    """What the first of the tokens `(B, N, dim)` sees in all of them: `(B, 1, dim)`."""

    def __init__(self, dim: int, num_heads: int, *, qkv_bias: bool = False, attn_drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.num_heads) for part in (self.q(x[:, :1]), *self.kv(x).chunk(2, -1)))
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop.p if self.training else 0.0)
        return self.proj(x.transpose(1, 2).flatten(2))


class Outlooker(nn.Module):
    """Attention and MLP behind their norms; `attn_layer` makes the attention."""

    def __init__(
        self, c: Config, dim: int, num_heads: int, *, attn_layer: Any = OutlookAttention, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        norm = named_norm(c)
        self.norm1 = norm(dim)
        self.attn = attn_layer(dim, num_heads, qkv_bias=c.qkv_bias, attn_drop=c.attn_drop_rate)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = norm(dim)
        self.mlp = Mlp(dim, int(dim * c.mlp_ratio))
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class ClassBlock(Outlooker):
    """The same for the class token alone: the other tokens `(B, 1 + N, dim)` stay as they are."""

    def forward(self, x: Tensor) -> Tensor:
        token = x[:, :1] + self.drop_path1(self.attn(self.norm1(x)))
        token = token + self.drop_path2(self.mlp(self.norm2(token)))
        return torch.cat((token, x[:, 1:]), 1)


def named_norm(c: Config) -> Any:
    return get_norm_layer(c.norm_layer, **({"eps": 1e-5} if isinstance(c.norm_layer, str) else {}))


class VOLO(Model, config=Config):
    """Outlookers on a fine map, transformer blocks on a coarse one, class attention; one classifier or two."""

    layout = "NHWC"
    first_conv = "patch_embed.conv.0"
    positional = (
        "layers", "img_size", "in_chans", "num_classes", "global_pool", "patch_size", "stem_hidden_dim", "embed_dims",
        "num_heads", "downsamples", "outlook_attention", "mlp_ratio", "qkv_bias",
    )  # fmt: skip
    cls_token: nn.Parameter | None

    def build(self, c: Config) -> None:
        rows = (c.layers, c.embed_dims, c.num_heads, c.downsamples, c.outlook_attention)
        if len({len(row) for row in rows}) > 1 or c.patch_size % 2:
            raise UnknownArgumentError(
                "layers, embed_dims, num_heads, downsamples and outlook_attention need one entry per stage, and "
                f"patch_size={c.patch_size} an even number"
            )
        width = self.num_features = self.head_hidden_size = c.embed_dims[-1]
        size, coarse = to_2tuple(c.img_size), c.patch_size * c.pooling_scale
        self.pos_embed = nn.Parameter(torch.empty(1, size[0] // coarse, size[1] // coarse, width))
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if c.post_layers else None
        self.pos_drop = nn.Dropout(c.pos_drop_rate)
        self.patch_embed = PatchEmbed(c.in_chans, c.stem_hidden_dim, c.patch_size, c.embed_dims[0])
        self.network = nn.ModuleList()
        self.chain = (Stage(("patch_embed",), checkpoint=False), *self.build_stages(c), *self.build_closing(c))
        self.aux_head: nn.Module = nn.Identity()
        self.norm = named_norm(c)(width)
        self.build_head(c)

    def build_stages(self, c: Config) -> list[Stage]:
        """The stages and what halves the map between them; positions come in front of the third part."""
        parts: list[Stage] = []
        stride = c.patch_size
        for i, drops in enumerate(drop_path_rates(c.drop_path_rate, tuple(c.layers))):
            attn = OutlookAttention if c.outlook_attention[i] else MapAttention
            figures = (c, c.embed_dims[i], c.num_heads[i])
            blocks = (Outlooker(*figures, attn_layer=attn, drop_path=rate) for rate in drops)
            parts.append(Stage((f"network.{len(parts)}",), c.embed_dims[i], stride))
            self.network.append(nn.Sequential(*blocks))
            if c.downsamples[i]:
                parts.append(Stage((f"network.{len(parts)}",)))
                self.network.append(Downsample(c.embed_dims[i], c.embed_dims[min(i + 1, len(c.layers) - 1)]))
                stride *= 2
        return [*parts[:2], Stage(("add_positions",), params=("pos_embed",), checkpoint=False), *parts[2:]]

    def build_closing(self, c: Config) -> list[Stage]:
        """Class attention and the closing norm."""
        if not c.post_layers:
            return [Stage(("add_class", "norm"), params=("norm",), to_tokens=True)]
        if set(c.post_layers) != {"ca"}:
            raise UnknownArgumentError(f"post_layers={c.post_layers}: 'ca' (class attention), once or more, or None")
        heads = c.num_heads[-1]
        blocks = (ClassBlock(c, self.num_features, heads, attn_layer=ClassAttention) for _ in c.post_layers)
        self.post_network = nn.Sequential(*blocks)
        params = ("cls_token", "post_network", "norm")
        return [Stage(("add_class", "post_network", "norm"), params=params, to_tokens=True)]

    def build_head(self, c: Config) -> None:
        if c.global_pool not in POOLS or (c.global_pool == "token" and not c.post_layers):
            raise UnknownArgumentError(
                f"global_pool={c.global_pool!r}: token (with post_layers), avg, max, avgmax or ''"
            )
        if c.num_classes and not c.global_pool:
            raise ValueError("global_pool='' leaves all tokens: it needs num_classes=0")
        linear = lambda: nn.Linear(self.num_features, c.num_classes) if c.num_classes else nn.Identity()  # noqa: E731
        self.global_pool = c.global_pool
        self.aux_head = linear() if c.use_aux_head else nn.Identity()
        self.head = linear()
        self.classifier_path = ("head", "aux_head") if c.use_aux_head else "head"  # type: ignore[misc]

    # -- running ---------------------------------------------------------------------------------------------------

    def add_positions(self, x: Tensor) -> Tensor:
        """Add the position embedding to `(B, H, W, C)`."""
        if x.shape[1:3] != self.pos_embed.shape[1:3]:
            (height, width), known = x.shape[1:3], self.pos_embed.shape
            raise ValueError(
                f"the position embedding is for maps of {known[1]}x{known[2]}, not {height}x{width}: resize the "
                "images, or create the model with their img_size"
            )
        return self.pos_drop(x + self.pos_embed)

    def add_class(self, x: Tensor) -> Tensor:
        """`(B, H, W, C)` to tokens, the class token first."""
        x = x.flatten(1, 2)
        return x if self.cls_token is None else torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), 1)

    def embedding(self, x: Tensor) -> Tensor:
        """The pooled tokens, or all of them."""
        if x.ndim == 4 and self.global_pool:  # the closing layers were pruned
            x = x.flatten(1, 2)
        x = global_pool_nlc(x, self.global_pool, reduce_include_prefix=True)
        return F.dropout(x, self.drop_rate, self.training)

    def token_logits(self, x: Tensor) -> Tensor:
        """Logits (B, N, num_classes) of each patch, of the final tokens."""
        return self.aux_head(x if self.cls_token is None else x[:, 1:])

    def classify(self, embedding: Tensor, tokens: Tensor) -> Tensor:
        """The classifier's logits, and half of each class's strongest ones among the patches."""
        logits = self.head(embedding)
        if not self.config.use_aux_head or not self.num_classes:
            return logits
        return logits + 0.5 * self.token_logits(tokens).amax(1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool all tokens and classify; `pre_logits` stops at the embedding."""
        embedding = self.embedding(x)
        return embedding if pre_logits else self.classify(embedding, x)

    def forward_outputs(self, x: Tensor, indices: Any = None) -> Outputs:
        final, features = self.forward_intermediates(x, indices)
        embedding = self.embedding(final)
        return Outputs(features, embedding, self.classify(embedding, final))

    def forward_train(self, x: Tensor) -> Any:
        """For training with token labels: logits (B, classes), logits of each patch (B, N, classes), and a box.

        With `use_mix_token` the patches in that box (top, left, bottom, right) were swapped between the first and the
        last image of the batch, the second and the last but one, and so on. The logits of patches are swapped back;
        those of images are of mixtures. In evaluation, or without the second classifier, the same as `forward`.
        """
        if not self.training or not self.config.use_aux_head:
            return self(x)
        x, box = self.patch_embed(x), (0, 0, 0, 0)
        scale = self.config.pooling_scale
        grid = (x.shape[1] // scale, x.shape[2] // scale)
        if self.config.use_mix_token:
            box = random_box(grid)
            x = swap_box(x, tuple(scale * side for side in box))
        for stage in self.chain[1:]:
            x = run_stage(self, stage, x, self.grad_checkpointing)
        patches = self.token_logits(x)
        if self.config.use_mix_token:
            patches = swap_box(patches.unflatten(1, grid), box).flatten(1, 2)
        return self.head(self.embedding(x)), patches, box

    # -- services --------------------------------------------------------------------------------------------------

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "cls_token"}

    def init_module(self, module: nn.Module, name: str) -> bool:
        if module is self:
            for token in (self.pos_embed, self.cls_token):
                if token is not None:
                    trunc_normal_(token, std=0.02)
            return True
        return init_plain(module, name, self.num_classes)


POOLS = ("token", "avg", "max", "avgmax", "")


def random_box(grid: tuple[int, int]) -> Box:
    """A box (top, left, bottom, right) whose share of the grid is uniform, cut at the borders (CutMix)."""
    share = (1 - torch.rand(()).item()) ** 0.5
    box = []
    for side in grid:
        half, centre = int(side * share) // 2, int(torch.randint(side, ()))
        box.append((max(centre - half, 0), min(centre + half, side)))
    (top, bottom), (left, right) = box
    return top, left, bottom, right


def swap_box(x: Tensor, box: Box) -> Tensor:
    """`(B, H, W, C)` with the box exchanged between each image and the one at the same place from the other end."""
    top, left, bottom, right = box
    out = x.clone()
    out[:, top:bottom, left:right] = x.flip(0)[:, top:bottom, left:right]
    return out


def adapt(state_dict: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """The position embedding for another image size."""
    state = dict(state_dict)
    if "pos_embed" in state and model.pos_embed is not None:
        state["pos_embed"] = resample_abs_pos_embed_nhwc(state["pos_embed"], model.pos_embed.shape[1:3])
    return state


D1: dict[str, Any] = {"layers": (4, 4, 8, 2)}
WIDE: dict[str, Any] = {"embed_dims": (256, 512, 512, 512), "num_heads": (8, 16, 16, 16)}
WIDER: dict[str, Any] = {"embed_dims": (384, 768, 768, 768), "num_heads": (12, 16, 16, 16)}
D2: dict[str, Any] = WIDE | {"layers": (6, 4, 10, 4)}
D3: dict[str, Any] = WIDE | {"layers": (8, 8, 16, 4)}
D4: dict[str, Any] = WIDER | {"layers": (8, 8, 16, 4)}
D5: dict[str, Any] = WIDER | {"layers": (12, 12, 20, 4), "mlp_ratio": 4.0, "stem_hidden_dim": 128}

VARIANTS = {
    "volo_d1_224": Config(**D1),
    "volo_d1_384": Config(img_size=384, **D1),
    "volo_d2_224": Config(**D2),
    "volo_d2_384": Config(img_size=384, **D2),
    "volo_d3_224": Config(**D3),
    "volo_d3_448": Config(img_size=448, **D3),
    "volo_d4_224": Config(**D4),
    "volo_d4_448": Config(img_size=448, **D4),
    "volo_d5_224": Config(**D5),
    "volo_d5_448": Config(img_size=448, **D5),
    "volo_d5_512": Config(img_size=512, **D5),
}

family = Family(VOLO, VARIANTS, adapt=adapt, out_indices=3, feature_cls="getter")
__getattr__ = family.module_getattr(__name__)
