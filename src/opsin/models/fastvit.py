"""FastViT (https://arxiv.org/abs/2303.14189) and the image towers of MobileCLIP (https://arxiv.org/abs/2311.17049,
https://arxiv.org/abs/2508.20691): convolutional branches that merge after training, attention in the last stages."""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, did_you_mean
from opsin.layers.act import create_act
from opsin.layers.channel_attn import SEModule
from opsin.layers.conv_norm_act import ConvNormAct
from opsin.layers.drop import DropPath, drop_path_rates
from opsin.layers.layer_scale import LayerScale
from opsin.layers.norm import get_norm_layer
from opsin.layers.reparam import merge_branches
from opsin.layers.weight_init import trunc_normal_
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._headed import HeadedModel

__all__ = ["Config", "FastVit", "RepConditionalPosEnc"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """What is a tuple has one entry per stage."""

    layers: tuple[int, ...] = (2, 2, 6, 2)
    token_mixers: tuple[str, ...] = ("repmixer",) * 4  # repmixer or attention
    embed_dims: tuple[int, ...] = (64, 128, 256, 512)
    mlp_ratios: tuple[float, ...] = (4, 4, 4, 4)
    downsamples: tuple[bool, ...] = (False, True, True, True)  # in front of the stage; always where the width changes
    se_downsamples: tuple[bool, ...] = (False, False, False, False)  # with squeeze and excitation
    pos_embs: tuple[Any, ...] = (None, None, None, None)  # RepConditionalPosEnc by name, or a class
    repmixer_kernel_size: int = 3
    down_patch_size: int = 7  # kernel of the downsampling convolutions
    down_stride: int = 2
    lkc_use_act: bool = False  # an activation behind the large kernels of the downsampling
    stem_use_scale_branch: bool = True  # 1x1 branches in the stem
    cls_ratio: float = 2.0  # width of the embedding, in that of the last map
    layer_scale_init_value: float | None = 1e-5  # None: no layer scale
    norm_layer: Any = "batchnorm2d"  # ahead of attention
    act_layer: Any = "gelu"
    proj_drop_rate: float = 0.0
    drop_path_rate: float = 0.0


class MobileOneBlock(nn.Module):
    """Branches that are summed: a norm (where the shape stays), a convolution, a 1x1 convolution; then SE, activation.

    Without a `kernel` there is just the norm.
    """

    def __init__(
        self, in_chs: int, out_chs: int, kernel: int | None, stride: int = 1, *, groups: int = 1,
        use_scale_branch: bool = True, se_ratio: float = 0.0, act_layer: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.se = SEModule(out_chs, se_ratio, rd_divisor=1) if se_ratio else nn.Identity()
        self.identity = nn.BatchNorm2d(out_chs) if in_chs == out_chs and stride == 1 else None
        self.conv_kxk = nn.ModuleList()
        self.conv_scale = None
        if kernel:
            conv = partial(ConvNormAct, in_chs, out_chs, stride=stride, groups=groups, apply_act=False)
            self.conv_kxk.append(conv(kernel_size=kernel))
            self.conv_scale = conv(kernel_size=1) if kernel > 1 and use_scale_branch else None
        self.act = create_act(act_layer) if act_layer else nn.Identity()

    def branches(self) -> list[nn.Module]:
        return [part for part in (self.identity, *self.conv_kxk, self.conv_scale) if part is not None]

    def forward(self, x: Tensor) -> Tensor:
        first, *others = (branch(x) for branch in self.branches())
        for other in others:
            first = first + other
        return self.act(self.se(first))

    def reparameterize(self) -> nn.Module:
        """One convolution, and what is behind it, that do the same in evaluation; a norm alone stays."""
        if not self.conv_kxk:
            return self.branches()[0]
        pairs = [(b.conv, b.bn) if isinstance(b, ConvNormAct) else (None, b) for b in self.branches()]
        return behind(merge_branches(pairs), self.se, self.act)


def behind(conv: nn.Conv2d, *parts: nn.Module) -> nn.Module:
    """A convolution and those of `parts` that do anything."""
    active = [part for part in parts if not isinstance(part, nn.Identity)]
    return nn.Sequential(conv, *active).train(conv.training) if active else conv


class ReparamLargeKernelConv(nn.Module):
    """A convolution with a large kernel beside one with a 3x3 kernel, then SE and activation."""

    def __init__(
        self, in_chs: int, out_chs: int, kernel: int, stride: int, *, groups: int, se: bool, act_layer: Any
    ) -> None:
        super().__init__()
        conv = partial(ConvNormAct, in_chs, out_chs, stride=stride, groups=groups, apply_act=False)
        self.large_conv, self.small_conv = conv(kernel_size=kernel), conv(kernel_size=3)
        self.se = SEModule(out_chs, 0.25, rd_divisor=1) if se else nn.Identity()
        self.act = create_act(act_layer) if act_layer else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.se(self.large_conv(x) + self.small_conv(x)))

    def reparameterize(self) -> nn.Module:
        """One convolution, and what is behind it, that do the same in evaluation."""
        return behind(merge_branches([(b.conv, b.bn) for b in (self.large_conv, self.small_conv)]), self.se, self.act)


class LayerScale2d(LayerScale):
    """A gain per channel of `(B, C, H, W)`, which checkpoints hold as `(C, 1, 1)`."""

    def __init__(self, dim: int, init_values: float) -> None:
        super().__init__(dim, init_values)
        self.gamma = nn.Parameter(self.gamma.detach()[:, None, None])


def layer_scale(dim: int, c: Config) -> nn.Module:
    return nn.Identity() if c.layer_scale_init_value is None else LayerScale2d(dim, c.layer_scale_init_value)


class RepMixer(nn.Module):
    """`x + scale * (mixed - normed)`: depthwise branches that become one depthwise convolution."""

    def __init__(self, dim: int, c: Config) -> None:
        super().__init__()
        self.norm: Any = MobileOneBlock(dim, dim, None)
        self.mixer: Any = MobileOneBlock(dim, dim, c.repmixer_kernel_size, groups=dim)
        self.layer_scale = layer_scale(dim, c)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer_scale(self.mixer(x) - self.norm(x))

    @torch.no_grad()
    def reparameterize(self) -> nn.Conv2d:
        """One convolution that does the same in evaluation, of `norm` and `mixer` as their own merging left them."""
        gain = getattr(self.layer_scale, "gamma", torch.ones_like(self.mixer.weight[:, 0, :1, :1]))
        self.mixer.weight.mul_(gain[..., None])
        self.mixer.bias.mul_(gain.flatten())
        self.norm.weight.mul_(-gain.flatten())
        self.norm.bias.mul_(-gain.flatten())
        return merge_branches([(self.mixer, None), (None, self.norm), (None, None)])


class ConvMlp(nn.Module):
    """A depthwise 7x7 convolution with norm, then 1x1 convolutions to `hidden` channels and back."""

    def __init__(self, dim: int, hidden: int, c: Config) -> None:
        super().__init__()
        self.conv = ConvNormAct(dim, dim, 7, groups=dim, apply_act=False)
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = create_act(c.act_layer)
        self.fc2 = nn.Conv2d(hidden, dim, 1)
        self.drop = nn.Dropout(c.proj_drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.act(self.fc1(self.conv(x))))
        return self.drop(self.fc2(x))


class Attention(nn.Module):
    """Self-attention between the positions of `(B, C, H, W)`, with heads of width 32."""

    def __init__(self, dim: int, c: Config) -> None:
        super().__init__()
        if dim % 32:
            raise ValueError(f"attention needs a width of whole heads of 32, not {dim}")
        self.num_heads = dim // 32
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(c.proj_drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        qkv = self.qkv(x.flatten(2).transpose(1, 2)).unflatten(-1, (3, self.num_heads, 32))
        x = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
        x = self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))
        return x.transpose(1, 2).unflatten(2, size)


class RepConditionalPosEnc(nn.Module):
    """Positions from what surrounds them: a depthwise convolution, added (https://arxiv.org/abs/2102.10882)."""

    def __init__(self, dim: int, spatial_shape: tuple[int, int] = (7, 7)) -> None:
        super().__init__()
        padding = (spatial_shape[0] // 2, spatial_shape[1] // 2)
        self.pos_enc = nn.Conv2d(dim, dim, spatial_shape, padding=padding, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.pos_enc(x) + x

    def reparameterize(self) -> nn.Conv2d:
        """One convolution that does the same."""
        return merge_branches([(self.pos_enc, None), (None, None)])


class RepMixerBlock(nn.Module):
    """RepMixer and MLP."""

    def __init__(self, dim: int, mlp_ratio: float, c: Config, drop_path: float) -> None:
        super().__init__()
        self.token_mixer = RepMixer(dim, c)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio), c)
        self.layer_scale = layer_scale(dim, c)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_mixer(x)
        return x + self.drop_path(self.layer_scale(self.mlp(x)))


class AttentionBlock(nn.Module):
    """Normed attention and MLP."""

    def __init__(self, dim: int, mlp_ratio: float, c: Config, drop_path: float) -> None:
        super().__init__()
        by_name = {"eps": 1e-5} if isinstance(c.norm_layer, str) else {}
        self.norm = get_norm_layer(c.norm_layer, **by_name)(dim)
        self.token_mixer = Attention(dim, c)
        self.layer_scale_1 = layer_scale(dim, c)
        self.drop_path1 = DropPath(drop_path)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio), c)
        self.layer_scale_2 = layer_scale(dim, c)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.layer_scale_1(self.token_mixer(self.norm(x))))
        return x + self.drop_path2(self.layer_scale_2(self.mlp(x)))


BLOCKS: dict[str, Callable[..., nn.Module]] = {"repmixer": RepMixerBlock, "attention": AttentionBlock}
POS_EMBS: dict[str, Callable[..., nn.Module]] = {"RepConditionalPosEnc": RepConditionalPosEnc}


def find(table: Mapping[str, Any], name: Any, what: str) -> Any:
    """The entry of a name, or what is no name as it is."""
    if isinstance(name, str) and name not in table:
        raise UnknownArgumentError(f"no {what} {name!r}.{did_you_mean(name, table)} Known: {', '.join(table)}")
    return table[name] if isinstance(name, str) else name


def build_stem(c: Config) -> nn.Sequential:
    dim = c.embed_dims[0]
    args: dict[str, Any] = {"use_scale_branch": c.stem_use_scale_branch, "act_layer": c.act_layer}
    return nn.Sequential(
        MobileOneBlock(c.in_chans, dim, 3, 2, **args),
        MobileOneBlock(dim, dim, 3, 2, groups=dim, **args),
        MobileOneBlock(dim, dim, 1, **args),
    )


def build_downsample(in_chs: int, out_chs: int, c: Config, *, se: bool) -> nn.Sequential:
    act = c.act_layer if c.lkc_use_act else None
    large = ReparamLargeKernelConv(
        in_chs, out_chs, c.down_patch_size, c.down_stride, groups=in_chs, se=se, act_layer=act
    )
    parts = large, MobileOneBlock(out_chs, out_chs, 1, act_layer=c.act_layer)
    return nn.Sequential(OrderedDict(proj=nn.Sequential(*parts)))


class FastVit(HeadedModel, config=Config):
    """Stem of stride 4, stages of blocks, a depthwise convolution that widens, pooled linear head."""

    positional = ("in_chans", "layers", "token_mixers", "embed_dims", "mlp_ratios", "downsamples", "se_downsamples")
    first_conv = ("stem.0.conv_kxk.0.conv", "stem.0.conv_scale.conv")

    def build(self, c: Config) -> None:
        if wrong := [name for name in PER_STAGE if len(getattr(c, name)) != len(c.layers)]:
            raise UnknownArgumentError(f"layers={c.layers}: {', '.join(wrong)} must have as many entries")
        per_stage = zip(*(getattr(c, name) for name in PER_STAGE), strict=True)
        rates = drop_path_rates(c.drop_path_rate, tuple(c.layers))
        self.stem = build_stem(c)
        self.stages = nn.Sequential()
        chain, width, stride = [Stage(("stem",), checkpoint=False)], c.embed_dims[0], 4
        for i, (drops, (dim, ratio, mixer, pos, down, se)) in enumerate(zip(rates, per_stage, strict=True)):
            parts: dict[str, nn.Module] = {"downsample": nn.Identity(), "pos_emb": nn.Identity()}
            if down or dim != width:
                parts["downsample"] = build_downsample(width, dim, c, se=se)
                stride *= c.down_stride
            if pos is not None:
                parts["pos_emb"] = find(POS_EMBS, pos, "position encoding")(dim)
            block = find(BLOCKS, mixer, "token mixer")
            parts["blocks"] = nn.Sequential(*(block(dim, ratio, c, drop) for drop in drops))
            self.stages.append(nn.Sequential(OrderedDict(parts)))
            chain.append(Stage((f"stages.{i}",), dim, stride))
            width = dim
        self.num_features = self.head_hidden_size = int(width * c.cls_ratio)
        self.final_conv = MobileOneBlock(
            width, self.num_features, 3, groups=width, se_ratio=1 / 16, act_layer=c.act_layer
        )
        self.chain = (*chain, Stage(("final_conv",)))
        self.build_head(c)

    def init_module(self, module: nn.Module, name: str) -> bool:
        if not isinstance(module, nn.Conv2d | nn.Linear):
            return False
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        return True


PER_STAGE = ("embed_dims", "mlp_ratios", "token_mixers", "pos_embs", "downsamples", "se_downsamples")

PREFIXES = ("image_encoder.model.", "visual.trunk.")  # of the image tower: MobileCLIP, OpenCLIP
RENAMED = (
    (r"^patch_embed\.", "stem."),
    (r"^conv_exp\.", "final_conv."),
    (r"\.pe\.", ".pos_enc."),
    (r"\.rbr_skip\.", ".identity."),
    (r"\.rbr_conv\.", ".conv_kxk."),
    (r"\.rbr_scale\.", ".conv_scale."),
    (r"\.lkb_origin\.", ".large_conv."),
    (r"\.se\.reduce\.", ".se.fc1."),
    (r"\.se\.expand\.", ".se.fc2."),
    (r"\.convffn\.", ".mlp."),
    (r"\.(layer_scale(?:_\d)?)$", r".\1.gamma"),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)


def adapt(state_dict: Mapping[str, Tensor], model: Any) -> Mapping[str, Tensor]:
    """Read the layouts of the papers' own code, and towers with their prefix.

    There the parts of all stages stand in one row, `network`; MobileCLIP projects into the shared space by a matrix.
    """
    for prefix in PREFIXES:
        if any(key.startswith(prefix) for key in state_dict):
            state_dict = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    if not any(key.startswith("patch_embed.") for key in state_dict):
        return state_dict
    row = [
        f"stages.{i}.{n}." for i, s in enumerate(model.stages) for n, m in s.named_children() if list(m.parameters())
    ]
    state: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        key = re.sub(r"^network\.(\d+)\.", lambda m: row[int(m[1])], key)
        for pattern, new in RENAMED:
            key = re.sub(pattern, new, key)
        if key == "head.proj":
            state |= {"head.fc.weight": value.T, "head.fc.bias": value.new_zeros(value.shape[1])}
        else:
            state[key] = value
    return state


ATTN = ("repmixer",) * 3 + ("attention",)
POS, CPE = (None,) * 3, "RepConditionalPosEnc"
SA = partial(Config, token_mixers=ATTN, pos_embs=(*POS, CPE))
MCI = partial(SA, mlp_ratios=(3, 3, 3, 3), se_downsamples=(False, False, True, True), lkc_use_act=True)
MCI5 = partial(
    Config, mlp_ratios=(4,) * 5, downsamples=(False, *(True,) * 4), se_downsamples=(False,) * 5, lkc_use_act=True,
    token_mixers=(*ATTN, "attention"), pos_embs=(*POS, CPE, CPE), norm_layer="layernorm2d", stem_use_scale_branch=False,
)  # fmt: skip

VARIANTS = {
    "fastvit_ma36": SA(layers=(6, 6, 18, 6), embed_dims=(76, 152, 304, 608)),
    "fastvit_mci0": MCI(layers=(2, 6, 10, 2)),
    "fastvit_mci1": MCI(layers=(4, 12, 20, 4)),
    "fastvit_mci2": MCI(layers=(4, 12, 24, 4), embed_dims=(80, 160, 320, 640)),
    "fastvit_mci3": MCI5(layers=(2, 12, 24, 4, 2), embed_dims=(96, 192, 384, 768, 1536)),
    "fastvit_mci4": MCI5(layers=(2, 12, 24, 4, 4), embed_dims=(128, 256, 512, 1024, 2048)),
    "fastvit_s12": Config(),
    "fastvit_sa12": SA(),
    "fastvit_sa24": SA(layers=(4, 4, 12, 4)),
    "fastvit_sa36": SA(layers=(6, 6, 18, 6)),
    "fastvit_t8": Config(layers=(2, 2, 4, 2), embed_dims=(48, 96, 192, 384), mlp_ratios=(3, 3, 3, 3)),
    "fastvit_t12": Config(mlp_ratios=(3, 3, 3, 3)),
}

family = Family(FastVit, VARIANTS, adapt=adapt, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
