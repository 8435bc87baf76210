"""LeViT (https://arxiv.org/abs/2104.01136): attention on the small maps that a convolutional stem leaves.

`levit_conv` holds the same networks with their linear layers stored as 1x1 convolutions.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError
from opsin.layers.act import create_act
from opsin.layers.drop import DropPath
from opsin.layers.patch_embed import to_2tuple
from opsin.layers.tuples import to_ntuple
from opsin.layers.weight_init import trunc_normal_
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._model import Model
from opsin.models._token import global_pool_nlc

__all__ = ["Attention", "AttentionDownsample", "Config", "Levit", "LevitBlock", "LevitDistilled", "LevitDownsample"]

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """`embed_dim` and `depth` are per stage; `num_heads` and the ratios one for all or one per stage."""

    global_pool: str = "avg"  # avg, max, avgmax or "" (all positions)
    img_size: int | tuple[int, int] = 224
    embed_dim: tuple[int, ...] = (192,)
    depth: tuple[int, ...] = (12,)
    num_heads: int | tuple[int, ...] = 3
    key_dim: int = 64  # of each head
    attn_ratio: float | tuple[float, ...] = 2.0  # width of the values of a head, in key_dim
    mlp_ratio: float | tuple[float, ...] = 2.0
    stem_type: str = "s16"  # the stride of the stem: s16 or s8
    act_layer: Any = "hard_swish"
    attn_act_layer: Any = None  # in front of the projection of attention; None: act_layer
    use_conv: bool = False  # linear layers as 1x1 convolutions
    drop_path_rate: float = 0.0  # the same for all blocks


class ConvNorm(nn.Module):
    """Convolution and batch norm, whose gain starts at `gain`."""

    def __init__(self, in_chs: int, out_chs: int, kernel: int = 1, stride: int = 1, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.linear = nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_chs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.linear(x))


class LinearNorm(nn.Module):
    """The same for a linear layer at each position of a map `(B, C, H, W)`."""

    def __init__(self, in_chs: int, out_chs: int, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.linear = nn.Linear(in_chs, out_chs, bias=False)
        self.bn: Any = nn.BatchNorm1d(out_chs)

    @torch.no_grad()
    def reparameterize(self) -> None:
        """Take the norm, as it is in evaluation, into the linear layer; a second call finds nothing to do."""
        if isinstance(self.bn, nn.Identity):
            return
        old, bn = self.linear, self.bn
        gain = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
        self.linear = nn.Linear(old.in_features, old.out_features).to(old.weight)
        self.linear.weight.copy_(old.weight * gain[:, None])
        self.linear.bias.copy_(bn.bias - bn.running_mean * gain)
        self.bn = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x.permute(0, 2, 3, 1))
        return self.bn(x.flatten(0, 2)).view_as(x).permute(0, 3, 1, 2)


class NormLinear(nn.Module):
    """Batch norm, dropout and classifier."""

    def __init__(self, width: int, num_classes: int, drop: float = 0.0) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(drop)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.drop(self.bn(x)))


def build_stem(in_chans: int, out_chs: int, count: int, act_layer: Any) -> nn.Sequential:
    """Strided 3x3 convolutions, each twice as wide as the one before."""
    parts: dict[str, nn.Module] = {}
    for i in range(1, count + 1):
        width = out_chs // 2 ** (count - i)
        parts[f"conv{i}"] = ConvNorm(in_chans, width, 3, 2)
        if i < count:
            parts[f"act{i}"] = create_act(act_layer)
        in_chans = width
    return nn.Sequential(OrderedDict(parts))


class BiasedAttention(nn.Module):
    """Base of attention on maps with a learned bias for each head and each distance of two positions."""

    attention_bias_idxs: Tensor

    def __init__(self, key_dim: int, num_heads: int, attn_ratio: float, resolution: Size, stride: int = 1) -> None:
        super().__init__()
        self.num_heads, self.key_dim, self.val_dim = num_heads, key_dim, int(attn_ratio * key_dim)
        self.resolution, self.stride = resolution, stride
        self.attention_biases = nn.Parameter(torch.empty(num_heads, resolution[0] * resolution[1]))
        self.register_buffer("attention_bias_idxs", self.distances(), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.attention_biases)

    def distances(self) -> Tensor:
        """Rows of the biases (queries, keys); queries are every `stride`-th position of the map."""
        height, width = self.resolution
        y, x = torch.arange(height), torch.arange(width)
        dy, dx = (y[:: self.stride, None] - y).abs(), (x[:: self.stride, None] - x).abs()
        index = dy[:, None, :, None] * width + dx[None, :, None, :]  # query rows, columns, key rows, columns
        return index.flatten(2).flatten(0, 1)

    def reset_buffers(self) -> None:
        """Compute the index again."""
        self.attention_bias_idxs = self.distances().to(self.attention_biases.device)

    def check(self, x: Tensor) -> None:
        """Refuse a map of another size."""
        size = (x.shape[2], x.shape[3])
        if size != self.resolution:
            raise ValueError(
                f"a map of {size[0]}x{size[1]} came where the model is built for {self.resolution[0]}x"
                f"{self.resolution[1]}. Resize the images, or create it with the img_size of yours"
            )

    def split(self, x: Tensor, *widths: int) -> tuple[Tensor, ...]:
        """`(B, heads * sum(widths), H, W)` to `(B, heads, H * W, width)` each."""
        return x.flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3).split(widths, -1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, size: Size) -> Tensor:
        """A map `(B, heads * val_dim, *size)`."""
        bias = self.attention_biases[:, self.attention_bias_idxs][None]
        x = F.scaled_dot_product_attention(q, k, v, bias, scale=self.key_dim**-0.5)
        return x.transpose(2, 3).flatten(1, 2).unflatten(2, size)


class Attention(BiasedAttention):
    """Self-attention on a map `(B, dim, H, W)`; `layer` is `ConvNorm` or `LinearNorm`."""

    def __init__(
        self, dim: int, key_dim: int, num_heads: int, attn_ratio: float, resolution: Size, layer: Any, act_layer: Any
    ) -> None:
        super().__init__(key_dim, num_heads, attn_ratio, resolution)
        values = self.val_dim * num_heads
        self.qkv = layer(dim, values + 2 * key_dim * num_heads)
        self.proj = nn.Sequential(OrderedDict(act=create_act(act_layer), ln=layer(values, dim, gain=0.0)))

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        q, k, v = self.split(self.qkv(x), self.key_dim, self.key_dim, self.val_dim)
        return self.proj(self.attend(q, k, v, self.resolution))


class AttentionDownsample(BiasedAttention):
    """Attention from every second position to all: `(B, in_dim, H, W)` to half the size and `out_dim` channels."""

    def __init__(
        self, in_dim: int, out_dim: int, key_dim: int, num_heads: int, attn_ratio: float, resolution: Size, layer: Any,
        act_layer: Any,
    ) -> None:  # fmt: skip
        super().__init__(key_dim, num_heads, attn_ratio, resolution, stride=2)
        values = self.val_dim * num_heads
        self.kv = layer(in_dim, values + key_dim * num_heads)
        down = nn.AvgPool2d(1, self.stride)
        self.q = nn.Sequential(OrderedDict(down=down, ln=layer(in_dim, key_dim * num_heads)))
        self.proj = nn.Sequential(OrderedDict(act=create_act(act_layer), ln=layer(values, out_dim)))

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        k, v = self.split(self.kv(x), self.key_dim, self.val_dim)
        (q,) = self.split(self.q(x), self.key_dim)
        return self.proj(self.attend(q, k, v, half(self.resolution)))


def half(size: Size) -> Size:
    return -(-size[0] // 2), -(-size[1] // 2)


def mlp(dim: int, ratio: float, layer: Any, act_layer: Any) -> nn.Sequential:
    hidden = int(dim * ratio)
    return nn.Sequential(
        OrderedDict(ln1=layer(dim, hidden), act=create_act(act_layer), ln2=layer(hidden, dim, gain=0.0))
    )


class LevitBlock(nn.Module):
    """Attention and MLP with shortcuts, on a map `(B, dim, H, W)`."""

    def __init__(
        self, dim: int, key_dim: int, num_heads: int, attn_ratio: float, mlp_ratio: float, resolution: Size, layer: Any,
        act_layer: Any, attn_act_layer: Any, drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.attn = Attention(dim, key_dim, num_heads, attn_ratio, resolution, layer, attn_act_layer)
        self.drop_path1 = DropPath(drop_path)
        self.mlp = mlp(dim, mlp_ratio, layer, act_layer)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(x))
        return x + self.drop_path2(self.mlp(x))


class LevitDownsample(nn.Module):
    """Shrinking attention without a shortcut, then an MLP with one."""

    def __init__(
        self, in_dim: int, out_dim: int, key_dim: int, resolution: Size, layer: Any, act_layer: Any,
        attn_act_layer: Any, drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        heads = in_dim // key_dim
        self.attn_downsample = AttentionDownsample(
            in_dim, out_dim, key_dim, heads, 4.0, resolution, layer, attn_act_layer
        )
        self.mlp = mlp(out_dim, 2.0, layer, act_layer)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn_downsample(x)
        return x + self.drop_path(self.mlp(x))


class ToTokens(nn.Module):
    """`(B, C, H, W)` to `(B, H * W, C)`."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class Levit(Model, config=Config):
    """Stem, stages of attention with shrinking attention in front, pooled linear head behind a batch norm.

    The features that leave it are `(B, N, C)`, or with `use_conv` a map.
    """

    classifier_path: ClassVar[str | tuple[str, ...]] = "head"
    first_conv = "stem.conv1.linear"

    def build(self, c: Config) -> None:
        count = len(c.embed_dim)
        heads, attn_ratio, mlp_ratio = (to_ntuple(count)(v) for v in (c.num_heads, c.attn_ratio, c.mlp_ratio))
        if not len(c.depth) == len(heads) == len(attn_ratio) == len(mlp_ratio) == count:
            raise ValueError(f"embed_dim={c.embed_dim}: depth, num_heads and ratios are needed for {count} stages")
        if c.stem_type not in ("s16", "s8"):
            raise UnknownArgumentError(f"stem_type={c.stem_type!r}: s16 or s8")
        self.num_features = self.head_hidden_size = c.embed_dim[-1]
        size, convs = to_2tuple(c.img_size), 4 if c.stem_type == "s16" else 3
        self.stem = build_stem(c.in_chans, c.embed_dim[0], convs, c.act_layer)
        stride = 2**convs
        resolution = (-(-size[0] // stride), -(-size[1] // stride))
        attn_act = c.attn_act_layer or c.act_layer
        shared: dict[str, Any] = {
            "key_dim": c.key_dim,
            "layer": ConvNorm if c.use_conv else LinearNorm,
            "act_layer": c.act_layer,
        }
        shared |= {"attn_act_layer": attn_act, "drop_path": c.drop_path_rate}
        self.stages = nn.Sequential()
        chain = [Stage(tuple(f"stem.{name}" for name, _ in self.stem.named_children()), checkpoint=False)]
        for i, dim in enumerate(c.embed_dim):
            down: nn.Module = nn.Identity()
            if i:
                down = LevitDownsample(c.embed_dim[i - 1], dim, resolution=resolution, **shared)
                resolution, stride = half(resolution), 2 * stride
            figures = {"num_heads": heads[i], "attn_ratio": attn_ratio[i], "mlp_ratio": mlp_ratio[i]}
            blocks = [LevitBlock(dim, resolution=resolution, **figures, **shared) for _ in range(c.depth[i])]
            self.stages.append(nn.Sequential(OrderedDict(downsample=down, blocks=nn.Sequential(*blocks))))
            chain.append(Stage((f"stages.{i}",), dim, stride))
        self.tokens = nn.Identity() if c.use_conv else ToTokens()
        self.chain = (*chain, Stage(("tokens",), checkpoint=False, to_tokens=True))
        self.build_head(c)

    def build_head(self, c: Config) -> None:
        self.global_pool = c.global_pool
        self.head = self.classifier_of(c)

    def classifier_of(self, c: Config) -> nn.Module:
        return NormLinear(self.num_features, c.num_classes, c.drop_rate) if c.num_classes else nn.Identity()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        if self.global_pool:
            x = global_pool_nlc(x.flatten(2).transpose(1, 2) if x.ndim == 4 else x, self.global_pool, 0)
        return x if pre_logits else self.classify(x)

    def classify(self, x: Tensor) -> Any:
        return self.head(x)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith("attention_biases")}

    def init_module(self, module: nn.Module, name: str) -> bool:
        if not isinstance(module, nn.Linear) or not name.startswith("head"):
            return False
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
        return True

    def init_last(self) -> None:
        for module in self.modules():
            if isinstance(module, ConvNorm | LinearNorm):
                nn.init.constant_(module.bn.weight, module.gain)


class LevitDistilled(Levit):
    """With a second head that learns from a teacher; the answer is the mean of both.

    After `set_distilled_training()` a pass in training mode returns both heads' logits apart.
    """

    classifier_path = ("head", "head_dist")
    distilled_training = False

    def build_head(self, c: Config) -> None:
        super().build_head(c)
        self.head_dist = self.classifier_of(c)

    def set_distilled_training(self, enable: bool = True) -> None:
        """Return both heads' logits apart while training."""
        self.distilled_training = enable

    def classify(self, x: Tensor) -> Any:
        logits = self.head(x), self.head_dist(x)
        return logits if self.distilled_training and self.training else (logits[0] + logits[1]) / 2

    def forward_logits(self, embedding: Tensor) -> Any:
        return self.classify(embedding)


def adapt(state_dict: Mapping[str, Tensor], model: Any) -> Mapping[str, Tensor]:
    """Leave out the index that others store; take linear layers as convolutions and back."""
    wanted, state = model.state_dict(), {}
    for key, value in state_dict.items():
        if key.endswith("attention_bias_idxs"):
            continue
        target = wanted.get(key)
        if target is not None and {value.ndim, target.ndim} == {2, 4} and value.shape[:2] == target.shape[:2]:
            value = value.reshape(target.shape)
        state[key] = value
    return state


K32 = partial(Config, key_dim=32, depth=(4, 4, 4))
Silu32, Silu64 = partial(K32, act_layer="silu"), partial(K32, act_layer="silu", key_dim=64)
D128 = partial(K32, embed_dim=(128, 256, 384), key_dim=16)
D384: dict[str, Any] = {"embed_dim": (384, 512, 768), "num_heads": (6, 9, 12)}

FIGURES = {
    "128": D128(num_heads=(4, 8, 12)),
    "128s": D128(depth=(2, 3, 4), num_heads=(4, 6, 8)),
    "192": K32(embed_dim=(192, 288, 384), num_heads=(3, 5, 6)),
    "256": K32(embed_dim=(256, 384, 512), num_heads=(4, 6, 8)),
    "256d": Silu32(embed_dim=(256, 384, 512), depth=(4, 8, 6), num_heads=(4, 6, 8)),
    "384": K32(**D384),
    "384_s8": Silu32(**D384, stem_type="s8"),
    "512": Silu64(embed_dim=(512, 768, 1024), num_heads=(8, 12, 16)),
    "512_s8": Silu64(embed_dim=(512, 640, 896), num_heads=(8, 10, 14), stem_type="s8"),
    "512d": Silu64(embed_dim=(512, 640, 768), depth=(4, 8, 6), num_heads=(8, 10, 12)),
}
PLAIN = ("256d", "512", "512_s8", "512d")  # those without a second head

VARIANTS = {f"levit_{name}": config for name, config in FIGURES.items()}

family = Family(
    LevitDistilled,
    VARIANTS,
    adapt=adapt,
    models={f"levit_{name}": Levit for name in PLAIN},
    feature_cls="getter",
)
__getattr__ = family.module_getattr(__name__)
