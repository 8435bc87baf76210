"""ConvNeXt (https://arxiv.org/abs/2201.03545) and ConvNeXt V2 (https://arxiv.org/abs/2301.00808).

Weights come from those papers, from CLIP trained on LAION-2B (https://arxiv.org/abs/2212.07143), from DINOv3
(https://arxiv.org/abs/2508.10104), and, for the small ones, from training in timm.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from opsin.layers import (
    ClassifierHead,
    DropPath,
    GlobalResponseNormMlp,
    Mlp,
    NormMlpClassifierHead,
    create_act,
    drop_path_rates,
    get_norm_layer,
    make_divisible,
    trunc_normal_,
)
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._model import Model

__all__ = ["Config", "ConvNeXt", "ConvNeXtBlock"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """`depths` are blocks per stage, `dims` channels per stage."""

    depths: tuple[int, ...] = (3, 3, 9, 3)
    dims: tuple[int, ...] = (96, 192, 384, 768)
    kernel_sizes: int | tuple[int, ...] = 7  # of the depthwise convolutions, one or one per stage
    output_stride: int = 32  # 8 or 16 trade stride for dilation
    stem_type: str = "patch"  # or two 3x3 convolutions: "overlap", "overlap_tiered" (first narrower), "overlap_act"
    patch_size: int = 4  # of the patch stem
    ls_init_value: float | None = 1e-6  # layer scale; None for none (V2)
    use_grn: bool = False  # V2: global response norm in the mlp
    conv_mlp: bool = False  # the mlp as 1x1 convolutions on (B, C, H, W), not linear layers on (B, H, W, C)
    conv_bias: bool = True
    act_layer: Any = "gelu"
    norm_layer: Any = "layernorm"  # layernorm, rmsnorm, simplenorm; with conv_mlp any norm for (B, C, H, W)
    norm_eps: float | None = None
    head_norm_first: bool = False  # norm, pool, classify instead of pool, norm, classify
    head_hidden_size: int | None = None
    head_init_scale: float = 1.0
    drop_path_rate: float = 0.0


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm, mlp, layer scale; a residual block on `(B, C, H, W)`."""

    def __init__(
        self,
        in_chs: int,
        kernel_size: int = 7,
        *,
        dilation: int = 1,
        mlp_ratio: float = 4,
        conv_mlp: bool = False,
        conv_bias: bool = True,
        use_grn: bool = False,
        ls_init_value: float | None = 1e-6,
        act_layer: Any = "gelu",
        norm_layer: Any = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.ls_init_value = ls_init_value
        self.use_conv_mlp = conv_mlp
        self.gamma = nn.Parameter(torch.empty(in_chs)) if ls_init_value is not None else None
        padding = dilation * (kernel_size - 1) // 2
        self.conv_dw = nn.Conv2d(
            in_chs, in_chs, kernel_size, 1, padding, dilation=dilation, groups=in_chs, bias=conv_bias
        )
        self.norm = get_norm_layer(norm_layer or ("layernorm2d" if conv_mlp else "layernorm"))(in_chs)
        mlp = GlobalResponseNormMlp if use_grn else Mlp
        self.mlp = mlp(in_chs, int(mlp_ratio * in_chs), act_layer=act_layer, use_conv=conv_mlp)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.gamma is not None:
            nn.init.constant_(self.gamma, self.ls_init_value)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_dw(x)
        if self.use_conv_mlp:
            y = self.mlp(self.norm(y))
            if self.gamma is not None:
                y = y * self.gamma.view(1, -1, 1, 1)
        else:
            y = self.mlp(self.norm(y.permute(0, 2, 3, 1)))
            if self.gamma is not None:
                y = y * self.gamma
            y = y.permute(0, 3, 1, 2)
        return self.drop_path(y) + x


class ConvNeXt(Model, config=Config):
    """Patch stem, stages of blocks with a strided convolution in front of each, pooled and normed linear head."""

    positional = ("in_chans", "num_classes", "global_pool", "output_stride", "depths", "dims")
    classifier_path = "head.fc"
    first_conv = "stem.0"

    def build(self, c: Config) -> None:
        if c.output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride={c.output_stride}: ConvNeXt has 8, 16 and 32")
        kernels = (c.kernel_sizes,) * len(c.depths) if isinstance(c.kernel_sizes, int) else tuple(c.kernel_sizes)
        if not len(c.depths) == len(c.dims) == len(kernels):
            raise ValueError(f"depths={c.depths}, dims={c.dims}, kernel_sizes={kernels}: one per stage is needed")
        norm, block_norm = norms(c)
        self.stem, stride = build_stem(c, norm)
        chain = [Stage(tuple(f"stem.{i}" for i in range(len(self.stem))), params=("stem",), checkpoint=False)]
        self.stages = nn.Sequential()
        width, dilation = c.dims[0], 1
        rates = drop_path_rates(c.drop_path_rate, tuple(c.depths))
        for i, (dim, kernel, drops) in enumerate(zip(c.dims, kernels, rates, strict=True)):
            step, before = 2 if i or stride == 2 else 1, dilation
            if stride >= c.output_stride:
                dilation, step = dilation * step, 1
            stride *= step
            down = build_downsample(width, dim, c, norm, step, 1 if dilation <= 2 else 2, changes=before != dilation)
            options = {name: getattr(c, name) for name in BLOCK_FIELDS}
            blocks = [
                ConvNeXtBlock(dim, kernel, dilation=dilation, norm_layer=block_norm, drop_path=drop, **options)
                for drop in drops
            ]
            self.stages.append(nn.Sequential(OrderedDict(downsample=down, blocks=nn.Sequential(*blocks))))
            chain.append(Stage((f"stages.{i}",), dim, stride))
            width = dim
        self.norm_pre = norm(width) if c.head_norm_first else nn.Identity()
        self.chain = (*chain, Stage(("norm_pre",)))
        self.num_features = width
        self.build_head(c)
        self.head_hidden_size = self.head.num_features

    def build_head(self, c: Config) -> None:
        if hasattr(self, "head"):
            self.head.reset(c.num_classes, c.global_pool)
        elif c.head_norm_first:
            if c.head_hidden_size:
                raise ValueError("head_hidden_size needs the norm behind the pooling: leave head_norm_first=False")
            self.head = ClassifierHead(self.num_features, c.num_classes, pool_type=c.global_pool, drop_rate=c.drop_rate)
        else:
            self.head = NormMlpClassifierHead(
                self.num_features,
                c.num_classes,
                hidden_size=c.head_hidden_size,
                pool_type=c.global_pool,
                drop_rate=c.drop_rate,
                norm_layer=norms(c)[0],
                act_layer="gelu",
            )

    def remove_head(self) -> None:
        super().remove_head()
        if isinstance(self.head, NormMlpClassifierHead):
            self.head.remove()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)

    def init_module(self, module: nn.Module, name: str) -> bool:
        if not isinstance(module, nn.Conv2d | nn.Linear):
            return False
        trunc_normal_(module.weight, std=0.02 * (self.config.head_init_scale if name.startswith("head.") else 1.0))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
        return True


BLOCK_FIELDS = ("conv_mlp", "conv_bias", "use_grn", "ls_init_value", "act_layer")
TWO_LAYOUTS = ("layernorm", "rmsnorm", "simplenorm")  # norms with a form for each layout


def norms(c: Config) -> tuple[Callable[..., nn.Module], Callable[..., nn.Module]]:
    """The norm for (B, C, H, W), and the one inside the blocks."""
    norm_layer = c.norm_layer or "layernorm"
    fixed = {} if c.norm_eps is None else {"eps": c.norm_eps}
    base = norm_layer.lower().replace("_", "").removesuffix("2d") if isinstance(norm_layer, str) else ""
    if base in TWO_LAYOUTS:
        return get_norm_layer(f"{base}2d", **fixed), get_norm_layer(f"{base}2d" if c.conv_mlp else base, **fixed)
    if not c.conv_mlp:
        raise ValueError(f"norm_layer={norm_layer!r} works on (B, C, H, W) only: it needs conv_mlp=True")
    norm = get_norm_layer(norm_layer, **fixed)
    return norm, norm


def build_stem(c: Config, norm: Callable[..., nn.Module]) -> tuple[nn.Sequential, int]:
    """The stem, and its stride."""
    dim = c.dims[0]
    if c.stem_type == "patch":
        conv = nn.Conv2d(c.in_chans, dim, c.patch_size, c.patch_size, bias=c.conv_bias)
        return nn.Sequential(conv, norm(dim)), c.patch_size
    if c.stem_type not in ("overlap", "overlap_tiered", "overlap_act"):
        raise ValueError(f"stem_type={c.stem_type!r}: patch, overlap, overlap_tiered or overlap_act")
    mid = make_divisible(dim // 2) if c.stem_type == "overlap_tiered" else dim
    first = nn.Conv2d(c.in_chans, mid, 3, 2, 1, bias=c.conv_bias)
    act = [create_act(c.act_layer)] if c.stem_type == "overlap_act" else []
    return nn.Sequential(first, *act, nn.Conv2d(mid, dim, 3, 2, 1, bias=c.conv_bias), norm(dim)), 4


def build_downsample(
    in_chs: int, out_chs: int, c: Config, norm: Callable[..., nn.Module], stride: int, spread: int, *, changes: bool
) -> nn.Module:
    """Norm and 2x2 convolution; where the stride became dilation (`changes`) it keeps the size."""
    if in_chs == out_chs and stride == 1 and not changes:
        return nn.Identity()
    kernel = 2 if stride > 1 or changes else 1
    if stride > 1 or not changes:
        return nn.Sequential(norm(in_chs), nn.Conv2d(in_chs, out_chs, kernel, stride, bias=c.conv_bias))
    low, high = spread // 2, spread - spread // 2
    conv = nn.Conv2d(in_chs, out_chs, kernel, 1, dilation=spread, bias=c.conv_bias)
    return nn.Sequential(OrderedDict({"0": norm(in_chs), "pad": nn.ZeroPad2d((low, high, low, high)), "1": conv}))


def adapt(state_dict: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """Read the layouts of the papers' own code and of CLIP towers."""
    trunk = "visual.trunk."
    if f"{trunk}stem.0.weight" in state_dict:
        state = {k.removeprefix(trunk): v for k, v in state_dict.items() if k.startswith(trunk)}
        return state | clip_head(state_dict)
    if not any(key.startswith("downsample_layers.") for key in state_dict):
        return state_dict
    # `projectors` and `norms` served distillation (EUPE) and dense features (DINOv3); the model has no place for them
    kept = {k: v for k, v in state_dict.items() if not k.startswith(("projectors.", "norms."))}
    conv_mlp = model.config.conv_mlp  # type: ignore[union-attr]
    state = {}
    for key, value in kept.items():
        if ".grn." in key:
            value = value.reshape(-1)
        elif ".pwconv" in key and key.endswith("weight") and conv_mlp:
            value = value.reshape(*value.shape[:2], 1, 1)
        for pattern, new in RENAMED:
            key = re.sub(pattern, new, key)
        state[key] = value
    return state


def clip_head(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The projection into the shared space as a classifier: it has no bias, so a zero one is added."""
    if "visual.head.proj.weight" in state_dict:
        weight = state_dict["visual.head.proj.weight"]
        hidden = {}
    elif "visual.head.mlp.fc1.weight" in state_dict:
        weight = state_dict["visual.head.mlp.fc2.weight"]
        hidden = {f"head.pre_logits.fc.{p}": state_dict[f"visual.head.mlp.fc1.{p}"] for p in ("weight", "bias")}
    else:
        return {}
    return hidden | {"head.fc.weight": weight, "head.fc.bias": weight.new_zeros(weight.shape[0])}


RENAMED = (
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv", ".mlp.fc"),
    (r"\.grn\.gamma$", ".mlp.grn.weight"),
    (r"\.grn\.beta$", ".mlp.grn.bias"),
    (r"^norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)

V2 = partial(Config, use_grn=True, ls_init_value=None)

VARIANTS = {
    "convnext_atto": Config(depths=(2, 2, 6, 2), dims=(40, 80, 160, 320), conv_mlp=True),
    "convnext_atto_ols": Config(
        depths=(2, 2, 6, 2), dims=(40, 80, 160, 320), conv_mlp=True, stem_type="overlap_tiered"
    ),
    "convnext_atto_rms": Config(depths=(2, 2, 6, 2), dims=(40, 80, 160, 320), conv_mlp=True, norm_layer="rmsnorm2d"),
    "convnext_base": Config(depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024)),
    "convnext_femto": Config(depths=(2, 2, 6, 2), dims=(48, 96, 192, 384), conv_mlp=True),
    "convnext_femto_ols": Config(
        depths=(2, 2, 6, 2), dims=(48, 96, 192, 384), conv_mlp=True, stem_type="overlap_tiered"
    ),
    "convnext_large": Config(depths=(3, 3, 27, 3), dims=(192, 384, 768, 1536)),
    "convnext_large_mlp": Config(depths=(3, 3, 27, 3), dims=(192, 384, 768, 1536), head_hidden_size=1536),
    "convnext_nano": Config(depths=(2, 2, 8, 2), dims=(80, 160, 320, 640), conv_mlp=True),
    "convnext_nano_ols": Config(depths=(2, 2, 8, 2), dims=(80, 160, 320, 640), conv_mlp=True, stem_type="overlap"),
    "convnext_pico": Config(depths=(2, 2, 6, 2), dims=(64, 128, 256, 512), conv_mlp=True),
    "convnext_pico_ols": Config(
        depths=(2, 2, 6, 2), dims=(64, 128, 256, 512), conv_mlp=True, stem_type="overlap_tiered"
    ),
    "convnext_small": Config(depths=(3, 3, 27, 3), dims=(96, 192, 384, 768)),
    "convnext_tiny": Config(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768)),
    "convnext_tiny_hnf": Config(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768), head_norm_first=True, conv_mlp=True),
    "convnext_xlarge": Config(depths=(3, 3, 27, 3), dims=(256, 512, 1024, 2048)),
    "convnext_xxlarge": Config(depths=(3, 4, 30, 3), dims=(384, 768, 1536, 3072), norm_eps=1e-5),
    "convnext_zepto_rms": Config(depths=(2, 2, 4, 2), dims=(32, 64, 128, 256), conv_mlp=True, norm_layer="simplenorm"),
    "convnext_zepto_rms_ols": Config(
        depths=(2, 2, 4, 2), dims=(32, 64, 128, 256), conv_mlp=True, norm_layer="simplenorm", stem_type="overlap_act"
    ),
    "convnextv2_atto": V2(depths=(2, 2, 6, 2), dims=(40, 80, 160, 320), conv_mlp=True),
    "convnextv2_base": V2(depths=(3, 3, 27, 3), dims=(128, 256, 512, 1024)),
    "convnextv2_femto": V2(depths=(2, 2, 6, 2), dims=(48, 96, 192, 384), conv_mlp=True),
    "convnextv2_huge": V2(depths=(3, 3, 27, 3), dims=(352, 704, 1408, 2816)),
    "convnextv2_large": V2(depths=(3, 3, 27, 3), dims=(192, 384, 768, 1536)),
    "convnextv2_nano": V2(depths=(2, 2, 8, 2), dims=(80, 160, 320, 640), conv_mlp=True),
    "convnextv2_pico": V2(depths=(2, 2, 6, 2), dims=(64, 128, 256, 512), conv_mlp=True),
    "convnextv2_small": V2(depths=(3, 3, 27, 3), dims=(96, 192, 384, 768)),
    "convnextv2_tiny": V2(depths=(3, 3, 9, 3), dims=(96, 192, 384, 768)),
    "test_convnext": Config(depths=(1, 2, 4, 2), dims=(24, 32, 48, 64), norm_eps=1e-5, act_layer="gelu_tanh"),
    "test_convnext2": Config(depths=(1, 1, 1, 1), dims=(32, 64, 96, 128), norm_eps=1e-5, act_layer="gelu_tanh"),
    "test_convnext3": Config(
        depths=(1, 1, 1, 1), dims=(32, 64, 96, 128), norm_eps=1e-5, kernel_sizes=(7, 5, 5, 3), act_layer="silu"
    ),
}

family = Family(ConvNeXt, VARIANTS, adapt=adapt, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
