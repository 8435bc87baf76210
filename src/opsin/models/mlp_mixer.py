"""Networks that mix patches by linear layers over positions: MLP-Mixer (https://arxiv.org/abs/2105.01601), ResMLP
(https://arxiv.org/abs/2105.03404), gMLP (https://arxiv.org/abs/2105.08050), and gMixer, a Mixer with gated MLPs."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.layers.act import create_act
from opsin.layers.drop import DropPath
from opsin.layers.glu import GluMlp
from opsin.layers.mlp import Mlp
from opsin.layers.norm import LayerNorm, get_norm_layer
from opsin.layers.patch_embed import PatchEmbed
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._family import Family
from opsin.models._token import PatchModel, global_pool_nlc
from opsin.models._vit_blocks import by_name
from opsin.models._vit_init import init_jax, init_jax_nlhb

__all__ = ["Affine", "Config", "GatedMlp", "MixerBlock", "MlpMixer", "ResBlock", "SpatialGatingBlock"]


@dataclass(frozen=True, kw_only=True)
class Config(ModelConfig):
    """Blocks, MLPs and norms are named, or given as classes."""

    global_pool: str = "avg"  # avg, max, avgmax or "" (all patches)
    img_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    num_blocks: int = 8
    embed_dim: int = 512
    mlp_ratio: float | tuple[float, float] = (0.5, 4.0)  # of MixerBlock: over positions, over channels
    block_layer: Any = "MixerBlock"
    mlp_layer: Any = "Mlp"
    norm_layer: Any = "layernorm"
    act_layer: Any = "gelu"
    init_values: float = 1e-4  # start of the layer scale of ResBlock
    proj_drop_rate: float = 0.0
    drop_path_rate: float = 0.0  # the same for all blocks
    nlhb: bool = False  # the head's bias starts at -log(classes)
    stem_norm: bool = False


class Affine(nn.Module):
    """A gain and a bias per channel in place of a norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(1, 1, dim))
        self.beta = nn.Parameter(torch.empty(1, 1, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.alpha)
        nn.init.zeros_(self.beta)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.beta, self.alpha, x)


class GatedMlp(nn.Module):
    """fc1, activation, `gate_layer(width)` that halves the width, fc2."""

    def __init__(self, in_features: int, hidden: int, *, gate_layer: Any, act_layer: Any, drop: float = 0.0) -> None:
        super().__init__()
        if hidden % 2:
            raise ValueError(f"a gated MLP splits its hidden width in two halves, {hidden} is odd")
        self.fc1 = nn.Linear(in_features, hidden)
        self.act = create_act(act_layer)
        self.drop1 = nn.Dropout(drop)
        self.gate = gate_layer(hidden)
        self.fc2 = nn.Linear(hidden // 2, in_features)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.gate(self.drop1(self.act(self.fc1(x))))))


class SpatialGatingUnit(nn.Module):
    """One half of `(B, N, dim)` times the other half, normed and mixed over positions."""

    def __init__(self, dim: int, seq_len: int) -> None:
        super().__init__()
        self.norm = LayerNorm(dim // 2, eps=1e-5)
        self.proj = nn.Linear(seq_len, seq_len)

    def init_last(self) -> None:
        """The gate starts at one."""
        nn.init.normal_(self.proj.weight, std=1e-6)
        nn.init.ones_(self.proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = x.chunk(2, -1)
        return x * self.proj(self.norm(gate).transpose(1, 2)).transpose(1, 2)


class MixerBlock(nn.Module):
    """An MLP over positions, an MLP over channels. All blocks take and give `(B, seq_len, dim)`."""

    def __init__(
        self, dim: int, seq_len: int, mlp_ratio: float | tuple[float, float] = (0.5, 4.0), *, mlp_layer: Any = Mlp,
        norm_layer: Any = LayerNorm, act_layer: Any = "gelu", drop: float = 0.0, drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        tokens, channels = mlp_ratio if isinstance(mlp_ratio, tuple | list) else (mlp_ratio, mlp_ratio)
        self.norm1 = norm_layer(dim)
        self.mlp_tokens = mlp_layer(seq_len, int(tokens * dim), act_layer=act_layer, drop=drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = norm_layer(dim)
        self.mlp_channels = mlp_layer(dim, int(channels * dim), act_layer=act_layer, drop=drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2))
        return x + self.drop_path(self.mlp_channels(self.norm2(x)))


class ResBlock(nn.Module):
    """One linear layer over positions, an MLP over channels, layer scale on both."""

    def __init__(
        self, dim: int, seq_len: int, mlp_ratio: float = 4.0, *, mlp_layer: Any = Mlp, norm_layer: Any = Affine,
        act_layer: Any = "gelu", init_values: float = 1e-4, drop: float = 0.0, drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.init_values = init_values
        self.norm1 = norm_layer(dim)
        self.linear_tokens = nn.Linear(seq_len, seq_len)
        self.drop_path = DropPath(drop_path)
        self.norm2 = norm_layer(dim)
        self.mlp_channels = mlp_layer(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=drop)
        self.ls1 = nn.Parameter(torch.empty(dim))
        self.ls2 = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.ls1, self.init_values)
        nn.init.constant_(self.ls2, self.init_values)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.ls1 * self.linear_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2))
        return x + self.drop_path(self.ls2 * self.mlp_channels(self.norm2(x)))


class SpatialGatingBlock(nn.Module):
    """An MLP over channels with a spatial gate in its middle."""

    def __init__(
        self, dim: int, seq_len: int, mlp_ratio: float = 4.0, *, mlp_layer: Any = GatedMlp,
        norm_layer: Any = LayerNorm, act_layer: Any = "gelu", drop: float = 0.0, drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        gate = partial(SpatialGatingUnit, seq_len=seq_len)
        self.norm = norm_layer(dim)
        self.mlp_channels = mlp_layer(dim, int(dim * mlp_ratio), act_layer=act_layer, gate_layer=gate, drop=drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.mlp_channels(self.norm(x)))


BLOCKS: dict[str, Any] = {"MixerBlock": MixerBlock, "ResBlock": ResBlock, "SpatialGatingBlock": SpatialGatingBlock}
MLPS: dict[str, Any] = {"Mlp": Mlp, "GluMlp": GluMlp, "GatedMlp": GatedMlp}


class MlpMixer(PatchModel, config=Config):
    """Patch projection, blocks, norm, pooled linear head; its size is that of the images it was built for."""

    positional = (
        "num_classes", "img_size", "in_chans", "patch_size", "num_blocks", "embed_dim", "mlp_ratio", "block_layer",
        "mlp_layer", "norm_layer", "act_layer", "drop_rate",
    )  # fmt: skip
    classifier_path = "head"
    first_conv = "stem.proj"

    def build(self, c: Config) -> None:
        norm = Affine if c.norm_layer == "Affine" else get_norm_layer(c.norm_layer)
        self.num_features = self.head_hidden_size = self.embed_dim = c.embed_dim
        self.stem = PatchEmbed(
            c.img_size, c.patch_size, c.in_chans, c.embed_dim, norm_layer=norm if c.stem_norm else None
        )
        make = by_name(c.block_layer, BLOCKS, "block")
        extra = {"init_values": c.init_values} if make is ResBlock else {}
        self.blocks = nn.Sequential(
            *(
                make(
                    c.embed_dim, self.stem.num_patches, c.mlp_ratio, mlp_layer=by_name(c.mlp_layer, MLPS, "MLP"),
                    norm_layer=norm, act_layer=c.act_layer, drop=c.proj_drop_rate, drop_path=c.drop_path_rate, **extra,
                )
                for _ in range(c.num_blocks)
            )
        )  # fmt: skip
        self.norm = norm(c.embed_dim)
        self.build_head(c)
        levels = [Stage((f"blocks.{i}",), c.embed_dim, max(self.stem.patch_size)) for i in range(c.num_blocks)]
        self.chain = (Stage(("stem",), checkpoint=False), *levels, Stage(("norm",), any_depth=True))

    @property
    def patch_embed(self) -> Any:
        return self.stem

    def build_head(self, c: Config) -> None:
        self.global_pool = c.global_pool
        self.head = nn.Linear(c.embed_dim, c.num_classes) if c.num_classes else nn.Identity()

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool all patches and classify; `pre_logits` stops at the embedding."""
        x = F.dropout(global_pool_nlc(x, self.global_pool, num_prefix_tokens=0), self.drop_rate, self.training)
        return x if pre_logits else self.head(x)

    def init_module(self, module: nn.Module, name: str) -> bool:
        return (init_jax_nlhb if self.config.nlhb else init_jax)(module, name, self.num_classes)

    def init_last(self) -> None:
        for module in self.modules():
            if isinstance(module, SpatialGatingUnit):
                module.init_last()
            elif isinstance(module, GluMlp):  # the gate starts as a constant
                half = module.fc1.out_features // 2
                nn.init.normal_(module.fc1.weight[half:], std=1e-6)
                nn.init.ones_(module.fc1.bias[half:])


def adapt(state_dict: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """Read the original layouts of MLP-Mixer (arrays of Flax) and ResMLP."""
    if "pre_head_layer_norm/scale" in state_dict:
        return {_rename(key, FLAX): _from_flax(key, value) for key, value in state_dict.items()}
    if "patch_embed.proj.weight" not in state_dict:
        return state_dict
    shape = {"alpha": (1, 1, -1), "beta": (1, 1, -1)}
    return {_rename(k, RESMLP): v.reshape(shape.get(k.rpartition(".")[2], v.shape)) for k, v in state_dict.items()}


def _rename(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for old, new in rules:
        key = re.sub(old, new, key)
    return key


def _from_flax(key: str, value: Tensor) -> Tensor:
    """Kernels (..., in, out) as (out, in, ...)."""
    if not key.endswith("kernel"):
        return value
    return value.permute(3, 2, 0, 1) if value.ndim == 4 else value.T


FLAX = (
    (r"^stem/", "stem/proj/"),
    (r"^MixerBlock_(\d+)/", r"blocks/\1/"),
    (r"/LayerNorm_0/", "/norm1/"),
    (r"/LayerNorm_1/", "/norm2/"),
    (r"/token_mixing/", "/mlp_tokens/"),
    (r"/channel_mixing/", "/mlp_channels/"),
    (r"/Dense_0/", "/fc1/"),
    (r"/Dense_1/", "/fc2/"),
    (r"^pre_head_layer_norm/", "norm/"),
    (r"/(kernel|scale)$", "/weight"),
    (r"/", "."),
)
RESMLP = (
    (r"^patch_embed\.", "stem."),
    (r"\.attn\.", ".linear_tokens."),
    (r"\.mlp\.", ".mlp_channels."),
    (r"\.gamma_", ".ls"),
)

Mixer = partial(Config, mlp_ratio=(0.5, 4.0))
GMixer = partial(Config, embed_dim=384, mlp_ratio=(1.0, 4.0), mlp_layer="GluMlp", act_layer="silu")
GMlp = partial(Config, num_blocks=30, mlp_ratio=6, block_layer="SpatialGatingBlock", mlp_layer="GatedMlp")
ResMlp = partial(Config, embed_dim=384, mlp_ratio=4, block_layer="ResBlock", norm_layer="Affine")

VARIANTS = {
    "gmixer_12_224": GMixer(num_blocks=12),
    "gmixer_24_224": GMixer(num_blocks=24),
    "gmlp_b16_224": GMlp(),
    "gmlp_s16_224": GMlp(embed_dim=256),
    "gmlp_ti16_224": GMlp(embed_dim=128),
    "mixer_b16_224": Mixer(num_blocks=12, embed_dim=768),
    "mixer_b32_224": Mixer(num_blocks=12, embed_dim=768, patch_size=32),
    "mixer_l16_224": Mixer(num_blocks=24, embed_dim=1024),
    "mixer_l32_224": Mixer(num_blocks=24, embed_dim=1024, patch_size=32),
    "mixer_s16_224": Mixer(),
    "mixer_s32_224": Mixer(patch_size=32),
    "resmlp_12_224": ResMlp(num_blocks=12),
    "resmlp_24_224": ResMlp(num_blocks=24, init_values=1e-5),
    "resmlp_36_224": ResMlp(num_blocks=36, init_values=1e-6),
    "resmlp_big_24_224": ResMlp(num_blocks=24, patch_size=8, embed_dim=768, init_values=1e-6),
}

family = Family(MlpMixer, VARIANTS, adapt=adapt, out_indices=3, feature_cls="getter")
__getattr__ = family.module_getattr(__name__)
