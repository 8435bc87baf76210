"""Swin Transformer V2 (https://arxiv.org/abs/2111.09883): cosine attention, position biases from a small network on
log-spaced offsets, norms behind attention and MLP."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.layers.drop import DropPath
from opsin.layers.mlp import Mlp
from opsin.layers.rel_pos_bias import log_offsets, relative_position_index
from opsin.models._family import Family
from opsin.models._swin import Size, SwinConfig, SwinModel, WindowBlock, adapt
from opsin.models._vit_init import init_plain

__all__ = ["Config", "SwinTransformerV2", "SwinTransformerV2Block", "WindowAttention"]


@dataclass(frozen=True, kw_only=True)
class Config(SwinConfig):
    act_layer: Any = "gelu"
    pretrained_window_sizes: tuple[int, ...] = (0, 0, 0, 0)  # in which offsets are counted, per stage; 0: the window's


class WindowAttention(nn.Module):
    """Self-attention over `(windows, N, dim)` by the cosine of queries and keys, with a learned gain per head."""

    k_bias: Tensor
    relative_coords_table: Tensor
    relative_position_index: Tensor

    def __init__(
        self, dim: int, num_heads: int, window_size: Size, *, pretrained_window_size: int = 0, qkv_bias: bool = True,
        attn_drop: float = 0.0, proj_drop: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_heads, self.window_size, self.pretrained_window_size = num_heads, window_size, pretrained_window_size
        self.logit_scale = nn.Parameter(torch.empty(num_heads, 1, 1))
        self.q_bias = nn.Parameter(torch.empty(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.empty(dim)) if qkv_bias else None
        hidden = 512
        self.cpb_mlp = nn.Sequential(
            nn.Linear(2, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, num_heads, bias=False)
        )
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.register_buffer("k_bias", torch.zeros(dim) if qkv_bias else None, persistent=False)
        self.register_buffer("relative_coords_table", None, persistent=False)
        self.register_buffer("relative_position_index", None, persistent=False)
        self.reset_parameters()
        self.reset_buffers()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.logit_scale, math.log(10))
        for bias in (self.q_bias, self.v_bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def reset_buffers(self) -> None:
        """Compute offsets and index again."""
        like = self.logit_scale
        self.relative_coords_table = log_offsets(self.window_size, self.pretrained_window_size)[None].to(like)
        self.relative_position_index = relative_position_index(self.window_size).to(like.device)
        if self.k_bias is not None:
            self.k_bias = torch.zeros_like(self.k_bias, device=like.device)

    def set_window_size(self, window_size: Size) -> None:
        """Another window: its offsets go through the same network."""
        if window_size != self.window_size:
            self.window_size = window_size
            self.reset_buffers()

    def position_bias(self) -> Tensor:
        """(1, heads, N, N), between 0 and 16."""
        table = self.cpb_mlp(self.relative_coords_table).flatten(0, 2)
        return 16 * torch.sigmoid(table[self.relative_position_index].permute(2, 0, 1))[None]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        count, area, _ = x.shape
        whole = None
        if self.q_bias is not None and self.v_bias is not None:  # a bias of keys would shift all scores alike
            whole = torch.cat((self.q_bias, self.k_bias, self.v_bias))
        qkv = F.linear(x, self.qkv.weight, whole)
        q, k, v = qkv.reshape(count, area, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        gain = self.logit_scale.clamp(max=math.log(100)).exp()
        bias = self.position_bias()
        if mask is not None:  # all windows of an image, then the next image
            bias = (bias + mask[:, None]).repeat(count // mask.shape[0], 1, 1, 1)
        drop = self.attn_drop.p if self.training else 0.0
        q, k = F.normalize(q, dim=-1) * gain, F.normalize(k, dim=-1)
        x = F.scaled_dot_product_attention(q, k, v, bias, drop, scale=1.0)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


class SwinTransformerV2Block(WindowBlock):
    """Window attention and MLP, each followed by its norm, on `(B, H, W, dim)`."""

    def __init__(
        self, dim: int, num_heads: int, *, feat_size: Size, window_size: Size, shifted: bool = False,
        always_partition: bool = False, dynamic: bool = False, mlp_ratio: float = 4.0, qkv_bias: bool = True,
        attn_drop: float = 0.0, proj_drop: float = 0.0, drop_path: float = 0.0, pretrained_window_size: int = 0,
        act_layer: Any = "gelu", norm_layer: Any = nn.LayerNorm,
    ) -> None:  # fmt: skip
        super().__init__(feat_size, window_size, shifted, always_partition, dynamic)
        self.attn = WindowAttention(
            dim, num_heads, self.window_size, pretrained_window_size=pretrained_window_size, qkv_bias=qkv_bias,
            attn_drop=attn_drop, proj_drop=proj_drop,
        )  # fmt: skip
        self.norm1 = norm_layer(dim)
        self.drop_path1 = DropPath(drop_path)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=proj_drop)
        self.norm2 = norm_layer(dim)
        self.drop_path2 = DropPath(drop_path)
        self.reset_buffers()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.norm1(self.attend(x)))
        return x + self.drop_path2(self.norm2(self.mlp(x)))


class SwinTransformerV2(SwinModel, config=Config):
    """Norms behind attention and MLP, which start at zero: every block begins as the identity."""

    post_norm = True

    def build_block(self, c: Config, stage: int, **kwargs: Any) -> WindowBlock:
        trained = c.pretrained_window_sizes[stage]
        return SwinTransformerV2Block(pretrained_window_size=trained, act_layer=c.act_layer, **kwargs)

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if "cpb_mlp" in name or "logit_scale" in name}

    def init_module(self, module: nn.Module, name: str) -> bool:
        return init_plain(module, name, self.num_classes)

    def init_last(self) -> None:
        for module in self.modules():
            if isinstance(module, SwinTransformerV2Block):
                for parameter in (*module.norm1.parameters(), *module.norm2.parameters()):
                    nn.init.zeros_(parameter)


S: dict[str, Any] = {"depths": (2, 2, 18, 2)}
B: dict[str, Any] = S | {"embed_dim": 128, "num_heads": (4, 8, 16, 32)}
L: dict[str, Any] = S | {"embed_dim": 192, "num_heads": (6, 12, 24, 48)}
TUNED = (12, 12, 12, 6)  # windows of the first training, where a second one followed at a larger size

VARIANTS = {
    "swinv2_base_window8_256": Config(img_size=256, window_size=8, **B),
    "swinv2_base_window12_192": Config(img_size=192, window_size=12, **B),
    "swinv2_base_window12to16_192to256": Config(img_size=256, window_size=16, **B, pretrained_window_sizes=TUNED),
    "swinv2_base_window12to24_192to384": Config(img_size=384, window_size=24, **B, pretrained_window_sizes=TUNED),
    "swinv2_base_window16_256": Config(img_size=256, window_size=16, **B),
    "swinv2_large_window12_192": Config(img_size=192, window_size=12, **L),
    "swinv2_large_window12to16_192to256": Config(img_size=256, window_size=16, **L, pretrained_window_sizes=TUNED),
    "swinv2_large_window12to24_192to384": Config(img_size=384, window_size=24, **L, pretrained_window_sizes=TUNED),
    "swinv2_small_window8_256": Config(img_size=256, window_size=8, **S),
    "swinv2_small_window16_256": Config(img_size=256, window_size=16, **S),
    "swinv2_tiny_window8_256": Config(img_size=256, window_size=8),
    "swinv2_tiny_window16_256": Config(img_size=256, window_size=16),
}

family = Family(SwinTransformerV2, VARIANTS, adapt=adapt, flatten_features=True)
__getattr__ = family.module_getattr(__name__)
