"""MetaFormer: PoolFormer (https://arxiv.org/abs/2111.11418), and with StarReLU and residual scales PoolFormerV2,
ConvFormer and CAFormer (https://arxiv.org/abs/2210.13452). What mixes tokens is exchangeable: pooling, separable
convolutions, attention."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, did_you_mean
from opsin.layers.attention import split_heads
from opsin.layers.drop import DropPath, drop_path_rates
from opsin.layers.mlp import Mlp
from opsin.layers.norm import LayerNorm, get_norm_layer
from opsin.layers.pool import SelectAdaptivePool2d
from opsin.layers.weight_init import trunc_normal_
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._headed import HeadedModel

__all__ = ["Config", "MetaFormer"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Mixers, norms and scales are one for all stages or one per stage."""

    depths: tuple[int, ...] = (2, 2, 6, 2)
    dims: tuple[int, ...] = (64, 128, 320, 512)
    token_mixers: Any = "Pooling"  # Pooling, SepConv, Attention or a class
    mlp_act: Any = "StarReLU"
    mlp_bias: bool = False
    drop_path_rate: float = 0.0
    proj_drop_rate: float = 0.0
    layer_scale_init_values: Any = None  # start of a scale on the branches; None for none
    res_scale_init_values: Any | None = (None, None, 1.0, 1.0)  # and on what they are added to
    downsample_norm: Any | None = "LayerNorm2dNoBias"
    norm_layers: Any = "LayerNorm2dNoBias"
    output_norm: Any = "layernorm2d"
    use_mlp_head: bool = True  # a hidden layer in the classifier


class LayerNormNoBias(nn.LayerNorm):
    """Layer norm over the last dimension without shift."""

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__(num_channels, eps=eps, bias=False)


class LayerNorm2dNoBias(LayerNormNoBias):
    """The same over the channels of `(B, C, H, W)`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GroupNorm1NoBias(nn.GroupNorm):
    """Norm over all of each sample, with a weight per channel and no shift."""

    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__(1, num_channels, eps=eps)
        self.bias = None  # type: ignore[assignment]

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class StarReLU(nn.Module):
    """`scale * relu(x) ** 2 + bias`, both learned; the start keeps mean 0 and variance 1 of a normal input."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(1))
        self.bias = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.scale, 0.8944)
        nn.init.constant_(self.bias, -0.4472)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.relu() ** 2 + self.bias


class Scale(nn.Module):
    """A learned gain per channel; of `(B, C, H, W)`, or of the last dimension unless `maps`."""

    def __init__(self, dim: int, start: float, maps: bool) -> None:
        super().__init__()
        self.start, self.maps = start, maps
        self.scale = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.scale, self.start)

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.scale.view(-1, 1, 1) if self.maps else self.scale)


class Pooling(nn.Module):
    """What the mean of the neighbourhood adds to each position of `(B, C, H, W)`."""

    def __init__(self, dim: int, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) - x


class SepConv(nn.Module):
    """An inverted separable convolution, 7x7 at twice the width, on `(B, C, H, W)`."""

    def __init__(self, dim: int, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.pwconv1 = nn.Conv2d(dim, 2 * dim, 1, bias=False)
        self.act1 = StarReLU()
        self.dwconv = nn.Conv2d(2 * dim, 2 * dim, 7, 1, 3, groups=2 * dim, bias=False)
        self.pwconv2 = nn.Conv2d(2 * dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pwconv2(self.dwconv(self.act1(self.pwconv1(x))))


class Attention(nn.Module):
    """Self-attention over `(B, N, dim)` with heads of width 32."""

    def __init__(self, dim: int, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads = max(dim // 32, 1)
        width = 32 * self.num_heads
        self.qkv = nn.Linear(dim, 3 * width, bias=False)
        self.proj = nn.Linear(width, dim, bias=False)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, -1))
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


class Block(nn.Module):
    """Token mixer and MLP on `(B, C, H, W)`; attention sees the positions as a row."""

    def __init__(
        self, dim: int, c: Config, *, mixer: Any, norm: Any, layer_scale: float | None, res_scale: float | None,
        drop_path: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.row = isinstance(mixer, type) and issubclass(mixer, Attention)

        def scale(start: float | None) -> nn.Module:
            return nn.Identity() if start is None else Scale(dim, start, maps=not self.row)

        act = ACTS.get(c.mlp_act, c.mlp_act) if isinstance(c.mlp_act, str) else c.mlp_act
        mlp = partial(Mlp, dim, 4 * dim, act_layer=act, bias=c.mlp_bias, drop=c.proj_drop_rate, use_conv=not self.row)
        self.norm1 = norm(dim)
        self.token_mixer = mixer(dim, proj_drop=c.proj_drop_rate)
        self.drop_path = DropPath(drop_path)
        self.layer_scale1, self.res_scale1 = scale(layer_scale), scale(res_scale)
        self.norm2 = norm(dim)
        self.mlp = mlp()
        self.layer_scale2, self.res_scale2 = scale(layer_scale), scale(res_scale)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        x = x.flatten(2).transpose(1, 2) if self.row else x
        x = self.res_scale1(x) + self.layer_scale1(self.drop_path(self.token_mixer(self.norm1(x))))
        x = self.res_scale2(x) + self.layer_scale2(self.drop_path(self.mlp(self.norm2(x))))
        return x.transpose(1, 2).unflatten(2, size) if self.row else x


class MlpHead(nn.Module):
    """A classifier with a hidden layer of four times the width: `(B, dim)` to `(B, num_classes)`."""

    def __init__(self, dim: int, num_classes: int, drop_rate: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.norm = LayerNorm(4 * dim)
        self.fc2 = nn.Linear(4 * dim, num_classes) if num_classes else nn.Identity()
        self.head_drop = nn.Dropout(drop_rate)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.head_drop(self.norm(self.fc1(x).relu().square()))
        return x if pre_logits else self.fc2(x)


ACTS: dict[str, Any] = {"StarReLU": StarReLU}
MIXERS: dict[str, Any] = {"Pooling": Pooling, "SepConv": SepConv, "Attention": Attention}
NORMS: dict[str, Any] = {
    "LayerNormNoBias": LayerNormNoBias, "LayerNorm2dNoBias": LayerNorm2dNoBias, "GroupNorm1NoBias": GroupNorm1NoBias,
}  # fmt: skip


def per_stage(value: Any, count: int, what: str) -> list[Any]:
    """One value per stage: of a row, its entries; of a single value, that one each time."""
    values = list(value) if isinstance(value, list | tuple) else [value] * count
    if len(values) != count:
        raise UnknownArgumentError(f"{what} has {len(values)} entries for {count} stages")
    return values


def find_mixer(mixer: Any) -> Any:
    """The token mixer of a name, or the class itself."""
    if not isinstance(mixer, str):
        return mixer
    if mixer not in MIXERS:
        raise UnknownArgumentError(f"no token mixer {mixer!r}.{did_you_mean(mixer, MIXERS)} Known: {', '.join(MIXERS)}")
    return MIXERS[mixer]


def find_norm(norm: Any) -> Any:
    """The norm of a name; None is none."""
    if norm is None:
        return nn.Identity
    return NORMS[norm] if isinstance(norm, str) and norm in NORMS else get_norm_layer(norm)


def sampling(in_chs: int, out_chs: int, c: Config, kernel: int, stride: int, padding: int, *, stem: bool) -> nn.Module:
    """A strided convolution, with the norm behind it in the stem and before it between stages."""
    conv = nn.Conv2d(in_chs, out_chs, kernel, stride, padding)
    norm = find_norm(c.downsample_norm)(out_chs if stem else in_chs)
    parts: dict[str, nn.Module] = {"conv": conv, "norm": norm} if stem else {"norm": norm, "conv": conv}
    return nn.Sequential(OrderedDict(parts))


class Head(nn.Module):
    """Pool, norm, drop out, classify. `(B, C, H, W)` to `(B, num_classes)`."""

    def __init__(self, dim: int, c: Config) -> None:
        super().__init__()
        self.dim, self.use_mlp = dim, c.use_mlp_head
        self.norm = find_norm(c.output_norm)(dim)
        self.drop = nn.Dropout(0.0 if c.use_mlp_head else c.drop_rate)  # else it is in the hidden layer
        self.drop_rate = c.drop_rate
        self.reset(c.num_classes, c.global_pool)

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """A fresh classifier for `num_classes` (0: none), and another pooling if named."""
        if pool_type is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=pool_type)
            if self.global_pool.feat_mult() != 1:
                raise UnknownArgumentError(f"global_pool={pool_type!r} changes the width: use avg, max or avgmax")
        if num_classes and not self.global_pool.pool_type:
            raise ValueError("global_pool='' leaves a map: it needs num_classes=0")
        self.fc: nn.Module = nn.Identity()
        if num_classes:
            hidden = self.use_mlp
            self.fc = MlpHead(self.dim, num_classes, self.drop_rate) if hidden else nn.Linear(self.dim, num_classes)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.norm(self.global_pool(x))
        x = self.drop(x.flatten(1) if self.global_pool.pool_type else x)
        return x if pre_logits else self.fc(x)


class MetaFormer(HeadedModel, config=Config):
    """Strided stem, four stages of mixers and MLPs, pooled and normed head."""

    positional = ("in_chans", "num_classes", "global_pool", "depths", "dims", "token_mixers")
    first_conv = "stem.conv"

    def build(self, c: Config) -> None:
        count = len(c.depths)
        fields = ("token_mixers", "norm_layers", "layer_scale_init_values", "res_scale_init_values")
        choices = zip(*(per_stage(getattr(c, name), count, name) for name in fields), strict=True)
        rates = drop_path_rates(c.drop_path_rate, tuple(c.depths))
        self.stem = sampling(c.in_chans, c.dims[0], c, 7, 4, 2, stem=True)
        self.stages = nn.Sequential()
        chain, width = [Stage(("stem",), checkpoint=False)], c.dims[0]
        dims = per_stage(tuple(c.dims), count, "dims")
        for i, (dim, (mixer, norm, layer, res), drops) in enumerate(zip(dims, choices, rates, strict=True)):
            down = sampling(width, dim, c, 3, 2, 1, stem=False) if i else nn.Identity()
            kind: dict[str, Any] = {"mixer": find_mixer(mixer), "norm": find_norm(norm)}
            kind |= {"layer_scale": layer, "res_scale": res}
            blocks = nn.Sequential(*(Block(dim, c, **kind, drop_path=drop) for drop in drops))
            self.stages.append(nn.Sequential(OrderedDict(downsample=down, blocks=blocks)))
            chain.append(Stage((f"stages.{i}",), dim, 4 * 2**i))
            width = dim
        self.num_features = self.head_hidden_size = width
        self.chain = tuple(chain)
        self.build_head(c)

    def make_head(self, config: Any) -> Head:
        return Head(self.num_features, config)

    def remove_head(self) -> None:
        super().remove_head()
        self.head.norm = nn.Identity()

    def init_module(self, module: nn.Module, name: str) -> bool:
        if not isinstance(module, nn.Conv2d | nn.Linear):
            return False
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        return True


def _of_poolformer(key: str) -> str:
    """The name of today for one of PoolFormer's code: stages and what is between them share one row, `network`."""
    if key.startswith("network."):
        _, place, rest = key.split(".", 2)
        stage, between = (int(place) + 1) // 2, int(place) % 2
        key = (
            f"stages.{stage}.downsample.{rest.replace('proj', 'conv')}" if between else f"stages.{stage}.blocks.{rest}"
        )
    for number in "12":
        key = key.replace(f"layer_scale_{number}", f"layer_scale{number}.scale")
    return key.replace("patch_embed.proj", "stem.conv")


def _of_metaformer(key: str) -> str:
    """The name of today for one of the later models' code: what is before each stage stands in a row of its own."""
    part, _, rest = key.partition(".")
    if part == "stages":
        stage, _, rest = rest.partition(".")
        return f"stages.{stage}.blocks.{rest}"
    if part == "downsample_layers":
        stage, _, rest = rest.partition(".")
        rest = rest.removeprefix("pre_").removeprefix("post_")
        return f"stages.{stage}.downsample.{rest}" if int(stage) else f"stem.{rest}"
    return key


def adapt(state_dict: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """Read the layouts of the papers' own code; there MLPs hold 1x1 convolutions as matrices."""
    if any(key.startswith("network.") for key in state_dict):
        rename = _of_poolformer
    elif any(key.startswith("downsample_layers.") for key in state_dict):
        rename = _of_metaformer
    else:
        return state_dict
    state, wanted = {}, model.state_dict()
    for key, value in state_dict.items():
        new = rename(key)
        if key.startswith(("norm.", "head.")):
            new = f"head.{key}" if key.startswith("norm.") else key.replace("head.", "head.fc.", 1)
        if new in wanted and wanted[new].numel() == value.numel():
            value = value.view_as(wanted[new])
        state[new] = value
    return state


NO_BIAS, MAPS = "LayerNormNoBias", "LayerNorm2dNoBias"
Pool = partial(
    Config, downsample_norm=None, mlp_act="gelu", mlp_bias=True, norm_layers="groupnorm1",
    layer_scale_init_values=1e-6, res_scale_init_values=None, use_mlp_head=False,
)  # fmt: skip
PoolV2 = partial(Config, norm_layers="GroupNorm1NoBias", use_mlp_head=False)
Conv = partial(Config, token_mixers="SepConv")
MIXED = ("SepConv", "SepConv", "Attention", "Attention")
ConvAttn = partial(Config, token_mixers=MIXED, norm_layers=(MAPS, MAPS, NO_BIAS, NO_BIAS))

VARIANTS = {
    "caformer_b36": ConvAttn(depths=(3, 12, 18, 3), dims=(128, 256, 512, 768)),
    "caformer_m36": ConvAttn(depths=(3, 12, 18, 3), dims=(96, 192, 384, 576)),
    "caformer_s18": ConvAttn(depths=(3, 3, 9, 3)),
    "caformer_s36": ConvAttn(depths=(3, 12, 18, 3)),
    "convformer_b36": Conv(depths=(3, 12, 18, 3), dims=(128, 256, 512, 768)),
    "convformer_m36": Conv(depths=(3, 12, 18, 3), dims=(96, 192, 384, 576)),
    "convformer_s18": Conv(depths=(3, 3, 9, 3)),
    "convformer_s36": Conv(depths=(3, 12, 18, 3)),
    "poolformer_m36": Pool(depths=(6, 6, 18, 6), dims=(96, 192, 384, 768)),
    "poolformer_m48": Pool(depths=(8, 8, 24, 8), dims=(96, 192, 384, 768)),
    "poolformer_s12": Pool(depths=(2, 2, 6, 2), layer_scale_init_values=1e-5),
    "poolformer_s24": Pool(depths=(4, 4, 12, 4), layer_scale_init_values=1e-5),
    "poolformer_s36": Pool(depths=(6, 6, 18, 6)),
    "poolformerv2_m36": PoolV2(depths=(6, 6, 18, 6), dims=(96, 192, 384, 768)),
    "poolformerv2_m48": PoolV2(depths=(8, 8, 24, 8), dims=(96, 192, 384, 768)),
    "poolformerv2_s12": PoolV2(depths=(2, 2, 6, 2)),
    "poolformerv2_s24": PoolV2(depths=(4, 4, 12, 4)),
    "poolformerv2_s36": PoolV2(depths=(6, 6, 18, 6)),
}

family = Family(MetaFormer, VARIANTS, adapt=adapt, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
