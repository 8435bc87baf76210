"""TinyViT (https://arxiv.org/abs/2207.10666): mobile convolutions, then attention in windows, which depthwise
convolutions connect."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from opsin.layers.act import create_act
from opsin.layers.classifier import NormMlpClassifierHead
from opsin.layers.conv_norm_act import ConvNormAct
from opsin.layers.drop import DropPath, drop_path_rates
from opsin.layers.norm import get_norm_layer
from opsin.layers.weight_init import trunc_normal_
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._headed import HeadedModel
from opsin.models._swin import departition, partition
from opsin.models.levit import BiasedAttention

__all__ = ["Config", "TinyVit"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """What is a tuple has one entry per stage; the first stage is of convolutions and looks at no heads or windows."""

    embed_dims: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_sizes: tuple[int, ...] = (7, 7, 14, 7)
    mlp_ratio: float = 4.0
    mbconv_expand_ratio: float = 4.0  # width inside the blocks of the first stage
    local_conv_size: int = 3  # kernel of the convolutions between attention and MLP
    act_layer: Any = "gelu"
    proj_drop_rate: float = 0.0
    drop_path_rate: float = 0.1


class MBConv(nn.Module):
    """An inverted bottleneck with a shortcut, and an activation behind both."""

    def __init__(self, dim: int, c: Config, drop_path: float) -> None:
        super().__init__()
        mid = int(dim * c.mbconv_expand_ratio)
        self.conv1 = ConvNormAct(dim, mid, act_layer=c.act_layer)
        self.conv2 = ConvNormAct(mid, mid, 3, groups=mid, act_layer=c.act_layer)
        self.conv3 = ConvNormAct(mid, dim, apply_act=False)
        self.drop_path = DropPath(drop_path)
        self.act = create_act(c.act_layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.drop_path(self.conv3(self.conv2(self.conv1(x)))))


class WindowAttention(BiasedAttention):
    """Normed self-attention on windows `(B, N, dim)`, with a learned bias for each distance of two positions."""

    def __init__(self, dim: int, num_heads: int, window: int, proj_drop: float) -> None:
        if dim % num_heads:
            raise ValueError(f"a width of {dim} cannot be split into {num_heads} heads")
        super().__init__(dim // num_heads, num_heads, 1.0, (window, window))
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2).chunk(3, -1)
        bias = self.attention_biases[:, self.attention_bias_idxs][None]
        x = F.scaled_dot_product_attention(q, k, v, bias)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


class NormMlp(nn.Module):
    """Norm and a two-layer perceptron over the last dimension."""

    def __init__(self, dim: int, hidden: int, act_layer: Any, drop: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.act = create_act(act_layer)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(self.norm(x))))))


class TinyVitBlock(nn.Module):
    """Attention in windows, a depthwise convolution, MLP, on `(B, C, H, W)`."""

    def __init__(self, dim: int, num_heads: int, window: int, c: Config, drop_path: float) -> None:
        super().__init__()
        self.window = (window, window)
        self.attn = WindowAttention(dim, num_heads, window, c.proj_drop_rate)
        self.drop_path1 = DropPath(drop_path)
        self.mlp = NormMlp(dim, int(dim * c.mlp_ratio), c.act_layer, c.proj_drop_rate)
        self.drop_path2 = DropPath(drop_path)
        self.local_conv = ConvNormAct(dim, dim, c.local_conv_size, groups=dim, apply_act=False)

    def attend(self, x: Tensor) -> Tensor:
        """Pad a map `(B, H, W, C)` with zeros to whole windows, attend inside each, crop."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % self.window[1], 0, -height % self.window[0]))
        out = self.attn(partition(x, self.window))
        return departition(out, self.window, x.shape[1], x.shape[2])[:, :height, :width]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attend(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        x = self.local_conv(x)
        return x + self.drop_path2(self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def build_downsample(in_chs: int, out_chs: int, act_layer: Any) -> nn.Sequential:
    """Half the size and `out_chs` channels, in three convolutions."""
    conv = partial(ConvNormAct, act_layer=act_layer)
    parts = {
        "conv1": conv(in_chs, out_chs),
        "conv2": conv(out_chs, out_chs, 3, 2, groups=out_chs),
        "conv3": conv(out_chs, out_chs, apply_act=False),
    }
    return nn.Sequential(OrderedDict(parts))


class TinyVit(HeadedModel, config=Config):
    """Stem of stride 4, a stage of convolutions, stages of window attention, pooled and normed linear head."""

    positional = ("in_chans", "num_classes", "global_pool", "embed_dims", "depths", "num_heads", "window_sizes")
    first_conv = "patch_embed.conv1.conv"

    def build(self, c: Config) -> None:
        if not len(c.depths) == len(c.embed_dims) == len(c.num_heads) == len(c.window_sizes):
            raise ValueError(f"depths={c.depths}: embed_dims, num_heads and window_sizes must have as many entries")
        width = c.embed_dims[0]
        conv1 = ConvNormAct(c.in_chans, width // 2, 3, 2, act_layer=c.act_layer)
        conv2 = ConvNormAct(width // 2, width, 3, 2, apply_act=False)
        self.patch_embed = nn.Sequential(OrderedDict(conv1=conv1, conv2=conv2))
        self.stages = nn.Sequential()
        chain = [Stage(("patch_embed",), checkpoint=False)]
        rates = drop_path_rates(c.drop_path_rate, tuple(c.depths))
        stages = zip(c.embed_dims, c.num_heads, c.window_sizes, rates, strict=True)
        for i, (dim, heads, window, drops) in enumerate(stages):
            down = build_downsample(width, dim, c.act_layer) if i else nn.Identity()
            blocks = [TinyVitBlock(dim, heads, window, c, drop) if i else MBConv(dim, c, drop) for drop in drops]
            self.stages.append(nn.Sequential(OrderedDict(downsample=down, blocks=nn.Sequential(*blocks))))
            chain.append(Stage((f"stages.{i}",), dim, 4 * 2**i))
            width = dim
        self.num_features = self.head_hidden_size = width
        self.chain = tuple(chain)
        self.build_head(c)

    def make_head(self, config: Any) -> NormMlpClassifierHead:
        norm = get_norm_layer("layernorm2d", eps=1e-5)
        args: dict[str, Any] = {"pool_type": config.global_pool, "drop_rate": config.drop_rate, "norm_layer": norm}
        return NormMlpClassifierHead(self.num_features, config.num_classes, **args)

    def remove_head(self) -> None:
        super().remove_head()
        self.head.remove()

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith("attention_biases")}

    def init_module(self, module: nn.Module, name: str) -> bool:
        if not isinstance(module, nn.Linear):
            return False
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        return True

    def init_last(self) -> None:
        for module in self.modules():  # the first stage starts as its shortcuts
            if isinstance(module, MBConv):
                nn.init.zeros_(module.get_parameter("conv3.bn.weight"))


def adapt(state_dict: Mapping[str, Tensor], model: Any) -> Mapping[str, Tensor]:
    """Resample the biases for other windows, and leave out the index that others store."""
    wanted, state = model.state_dict(), {}
    for key, value in state_dict.items():
        if key.endswith("attention_bias_idxs"):
            continue
        if key.endswith("attention_biases") and key in wanted and value.shape != wanted[key].shape:
            old, new = (round(count**0.5) for count in (value.shape[1], wanted[key].shape[1]))
            maps = value.float().unflatten(1, (old, old))[None]
            maps = F.interpolate(maps, (new, new), mode="bicubic", antialias=True)
            value = maps[0].flatten(1).to(value.dtype)
        state[key] = value
    return state


M21 = partial(Config, embed_dims=(96, 192, 384, 576), num_heads=(3, 6, 12, 18))

VARIANTS = {
    "tiny_vit_5m_224": Config(embed_dims=(64, 128, 160, 320), num_heads=(2, 4, 5, 10), drop_path_rate=0.0),
    "tiny_vit_11m_224": Config(embed_dims=(64, 128, 256, 448), num_heads=(2, 4, 8, 14)),
    "tiny_vit_21m_224": M21(drop_path_rate=0.2),
    "tiny_vit_21m_384": M21(window_sizes=(12, 12, 24, 12)),
    "tiny_vit_21m_512": M21(window_sizes=(16, 16, 32, 16)),
}

family = Family(TinyVit, VARIANTS, adapt=adapt, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
