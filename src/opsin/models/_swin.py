"""What the Swin transformers share: windows and their cyclic shift, stages, other image sizes, older checkpoints."""

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.layers.classifier import ClassifierHead
from opsin.layers.drop import drop_path_rates
from opsin.layers.norm import get_norm_layer
from opsin.layers.patch_embed import PatchEmbed, to_2tuple
from opsin.layers.pos_embed import resample_patch_embed, resize_rel_pos_bias_table
from opsin.models._chain import Stage
from opsin.models._config import ModelConfig
from opsin.models._model import Model
from opsin.models._vit_blocks import by_name

__all__ = ["PatchMerging", "SwinConfig", "SwinModel", "WindowBlock", "adapt", "per_stage"]

Size = tuple[int, int]
WindowSpec = int | tuple[int, ...] | tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class SwinConfig(ModelConfig):
    """`depths` and `num_heads` are per stage; the width doubles from stage to stage."""

    img_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 4
    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: WindowSpec = 7  # a side or (height, width) for all stages, or one of these per stage
    always_partition: bool = False  # shift and keep the window even where it covers the map
    strict_img_size: bool = True  # take `img_size` only
    dynamic_img_size: bool = False  # the same as strict_img_size=False
    mlp_ratio: float | tuple[float, ...] = 4.0
    qkv_bias: bool = True
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.1
    embed_layer: Any = PatchEmbed
    norm_layer: Any = "layernorm"  # named ones have an epsilon of 1e-5


def stage_windows(window_size: Any, count: int) -> tuple[Size, ...]:
    """(height, width) of the window of each stage; two numbers are one window."""
    spec = window_size
    if not isinstance(spec, tuple | list) or (len(spec) == 2 and not isinstance(spec[0], tuple | list)):
        spec = (spec,) * count
    windows = tuple(to_2tuple(window) for window in spec)
    if len(windows) != count or min(side for window in windows for side in window) < 1:
        raise ValueError(f"window_size={window_size}: a positive size, or one for each of {count} stages")
    return windows


def per_stage(value: Any, stage: int) -> Any:
    """The value of one stage, of a figure for all or one per stage."""
    return value[stage] if isinstance(value, tuple | list) else value


def partition(x: Tensor, window: Size) -> Tensor:
    """`(B, H, W, C)` to `(B * windows, N, C)`, row by row; the window divides the map."""
    batch, height, width, dim = x.shape
    x = x.reshape(batch, height // window[0], window[0], width // window[1], window[1], dim)
    return x.transpose(2, 3).reshape(-1, window[0] * window[1], dim)


def departition(x: Tensor, window: Size, height: int, width: int) -> Tensor:
    """`(B * windows, N, C)` back to `(B, height, width, C)`."""
    x = x.reshape(-1, height // window[0], width // window[1], window[0], window[1], x.shape[-1])
    return x.transpose(2, 3).reshape(-1, height, width, x.shape[-1])


def shift_mask(size: Size, window: Size, shift: Size, like: Tensor) -> Tensor:
    """What to add to the scores (windows, N, N) so that rows and columns that wrapped around stay apart."""
    height, width = (-(-size[i] // window[i]) * window[i] for i in (0, 1))
    wrapped = [
        (torch.arange(side, device=like.device) >= side - step).to(like.dtype)
        for side, step in ((height, shift[0]), (width, shift[1]))
    ]
    region = 2 * wrapped[0][:, None] + wrapped[1][None]
    region = partition(region[None, :, :, None], window).squeeze(-1)
    return (region[:, None] != region[:, :, None]).to(like.dtype) * -100.0


class WindowBlock(nn.Module):
    """Base of the blocks: attention inside windows of a map `(B, H, W, C)`, in every second block shifted by half.

    A block creates `attn`, which takes `(B * windows, N, C)` and the mask of `shift_mask` (or None), and then calls
    `set_input_size`. With `dynamic` the mask is made for the map at hand instead of kept.
    """

    attn: Any
    attn_mask: Tensor | None

    def __init__(
        self, feat_size: Size, window_size: Size, shifted: bool, always_partition: bool, dynamic: bool
    ) -> None:
        super().__init__()
        self.shifted, self.always_partition, self.dynamic = shifted, always_partition, dynamic
        self._place(feat_size, window_size)
        self.register_buffer("attn_mask", None, persistent=False)

    def _place(self, feat_size: Size, window: Size) -> None:
        shift = (window[0] // 2, window[1] // 2) if self.shifted else (0, 0)
        if not self.always_partition:  # a window that covers the map is as large as the map, and is not shifted
            covers = [feat_size[i] <= window[i] for i in (0, 1)]
            window = tuple(feat_size[i] if covers[i] else window[i] for i in (0, 1))  # type: ignore[assignment]
            shift = tuple(0 if covers[i] else shift[i] for i in (0, 1))  # type: ignore[assignment]
        self.feat_size, self.window_size, self.shift_size = feat_size, window, shift

    def set_input_size(self, feat_size: Size, window_size: Size, always_partition: bool | None = None) -> None:
        """Another size of the map (or of the window): the biases of positions are resampled."""
        if always_partition is not None:
            self.always_partition = always_partition
        self._place(feat_size, window_size)
        self.attn.set_window_size(self.window_size)
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """Compute the mask for the shifted windows again."""
        like: Tensor = next(self.parameters())
        if like.is_meta and self.attn_mask is not None and not self.attn_mask.is_meta:
            like = self.attn_mask
        kept = any(self.shift_size) and not self.dynamic
        self.attn_mask = shift_mask(self.feat_size, self.window_size, self.shift_size, like) if kept else None

    def attend(self, x: Tensor) -> Tensor:
        """Shift, pad to whole windows, attend, and all of it back."""
        height, width = x.shape[1], x.shape[2]
        shifted = any(self.shift_size)
        if shifted:
            x = torch.roll(x, (-self.shift_size[0], -self.shift_size[1]), (1, 2))
        x = F.pad(x, (0, 0, 0, -width % self.window_size[1], 0, -height % self.window_size[0]))
        padded = (x.shape[1], x.shape[2])
        mask = self.attn_mask
        if self.dynamic and shifted:
            mask = shift_mask(padded, self.window_size, self.shift_size, x)
        x = self.attn(partition(x, self.window_size), mask)
        x = departition(x, self.window_size, *padded)[:, :height, :width]
        return torch.roll(x, self.shift_size, (1, 2)) if shifted else x


class PatchMerging(nn.Module):
    """Four neighbours side by side, and a linear layer: `(B, H, W, dim)` to half the size and `out_dim` channels.

    The norm is in front of the linear layer, or with `post_norm` behind it.
    """

    def __init__(self, dim: int, out_dim: int, norm_layer: Any, post_norm: bool = False) -> None:
        super().__init__()
        self.post_norm = post_norm
        if post_norm:
            self.reduction = nn.Linear(4 * dim, out_dim, bias=False)
            self.norm = norm_layer(out_dim)
        else:
            self.norm = norm_layer(4 * dim)
            self.reduction = nn.Linear(4 * dim, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return self.norm(self.reduction(x)) if self.post_norm else self.reduction(self.norm(x))


class SwinModel(Model):
    """Patch projection, stages of window attention with patch merging in front, norm, pooled linear head.

    A family says in `build_block` what a block is, and in `post_norm` where its norms are.
    """

    layout = "NHWC"
    classifier_path = "head.fc"
    first_conv = "patch_embed.proj"
    positional = (
        "img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depths", "num_heads",
    )  # fmt: skip
    post_norm: ClassVar[bool] = False

    patch_embed: Any  # PatchEmbed, or one of the user's with its methods
    layers: Any
    windows: tuple[Size, ...]
    window_grid: Size  # the grid of patches that `windows` are meant for

    def build(self, c: Any) -> None:
        count = len(c.depths)
        if len(c.num_heads) != count:
            raise ValueError(f"depths={c.depths}, num_heads={c.num_heads}: one per stage is needed")
        self.windows = stage_windows(c.window_size, count)
        norm = get_norm_layer(c.norm_layer, **({"eps": 1e-5} if isinstance(c.norm_layer, str) else {}))
        self.dynamic_img_size = c.dynamic_img_size or not c.strict_img_size
        self.patch_embed = by_name(c.embed_layer, {"PatchEmbed": PatchEmbed}, "patch embedding")(
            img_size=c.img_size, patch_size=c.patch_size, in_chans=c.in_chans, embed_dim=c.embed_dim,
            norm_layer=norm, strict_img_size=not self.dynamic_img_size, output_fmt="NHWC",
        )  # fmt: skip
        self.window_grid = self.patch_embed.grid_size
        self.layers = nn.Sequential()
        chain = [Stage(("patch_embed",), checkpoint=False)]
        for i, drops in enumerate(drop_path_rates(c.drop_path_rate, tuple(c.depths))):
            dim = c.embed_dim * 2**i
            down = PatchMerging(dim // 2, dim, norm, self.post_norm) if i else nn.Identity()
            place: dict[str, Any] = {"feat_size": self.stage_size(i), "window_size": self.windows[i]}
            place |= {"always_partition": c.always_partition, "dynamic": self.dynamic_img_size}
            place |= {"num_heads": c.num_heads[i], "mlp_ratio": per_stage(c.mlp_ratio, i), "qkv_bias": c.qkv_bias}
            place |= {"attn_drop": c.attn_drop_rate, "proj_drop": c.proj_drop_rate}
            blocks = [
                self.build_block(c, i, dim=dim, norm_layer=norm, drop_path=drop, shifted=j % 2 == 1, **place)
                for j, drop in enumerate(drops)
            ]
            self.layers.append(nn.Sequential(OrderedDict(downsample=down, blocks=nn.Sequential(*blocks))))
            chain.append(Stage((f"layers.{i}",), dim, self.patch_embed.feat_ratio() * 2**i))
        self.num_features = c.embed_dim * 2 ** (count - 1)
        self.norm = norm(self.num_features)
        self.chain = (*chain, Stage(("norm",)))
        self.build_head(c)
        self.head_hidden_size = self.head.num_features

    def build_block(self, c: Any, stage: int, **kwargs: Any) -> WindowBlock:
        """A block of a stage; `kwargs` are what all kinds of block take."""
        raise NotImplementedError(f"{type(self).__name__} must define build_block")

    def stage_size(self, stage: int) -> Size:
        """(height, width) of the map in a stage."""
        height, width = self.patch_embed.grid_size
        return -(-height // 2**stage), -(-width // 2**stage)

    def build_head(self, c: Any) -> None:
        if hasattr(self, "head"):
            self.head.reset(c.num_classes, c.global_pool)
        else:
            self.head = ClassifierHead(
                self.num_features, c.num_classes, pool_type=c.global_pool, drop_rate=c.drop_rate, input_fmt="NHWC"
            )

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)

    @torch.no_grad()
    def set_input_size(
        self,
        img_size: int | tuple[int, int] | None = None,
        patch_size: int | tuple[int, int] | None = None,
        window_size: WindowSpec | None = None,
        window_ratio: int | Sequence[int] | None = None,
        always_partition: bool | None = None,
    ) -> None:
        """Make the model take another image size, patch size or window.

        Windows grow with the grid of patches, unless `window_size` gives them, or `window_ratio` as a part of the grid
        (a divisor, or one per stage). `always_partition` as in the config, None for as it is.
        """
        given = None if window_size is None else stage_windows(window_size, len(self.layers))
        ratios = (window_ratio,) * len(self.layers) if isinstance(window_ratio, int) else window_ratio
        if ratios is not None and (len(ratios) != len(self.layers) or min(ratios) < 1):
            raise ValueError(f"window_ratio={window_ratio}: a divisor, or one for each of {len(self.layers)} stages")
        self.patch_embed.set_input_size(img_size=img_size, patch_size=patch_size)
        grid, old = self.patch_embed.grid_size, self.window_grid
        if given is None and ratios is not None:
            given = tuple((max(1, grid[0] // ratio), max(1, grid[1] // ratio)) for ratio in ratios)
        if given is not None:
            self.windows, self.window_grid, windows = given, grid, given
        else:
            windows = tuple((max(1, h * grid[0] // old[0]), max(1, w * grid[1] // old[1])) for h, w in self.windows)
        for i, stage in enumerate(self.layers):
            for block in stage.blocks:
                block.set_input_size(self.stage_size(i), windows[i], always_partition)
        ratio, levels = self.patch_embed.feat_ratio(), iter(range(len(self.layers)))
        self.chain = tuple(s._replace(reduction=ratio * 2 ** next(levels)) if s.is_level else s for s in self.chain)
        changes: dict[str, Any] = {"img_size": self.patch_embed.img_size, "window_size": windows}
        if patch_size is not None:
            changes["patch_size"] = to_2tuple(patch_size)
        if always_partition is not None:
            changes["always_partition"] = always_partition
        self.config = replace(self.config, **changes)


BUFFERS = ("relative_position_index", "relative_coords_table", "attn_mask")  # computed here, stored by others


def adapt(state_dict: Mapping[str, Tensor], model: Any) -> Mapping[str, Tensor]:
    """Read the papers' own layout, where a stage ends with its patch merging, and other windows and patches."""
    original = "layers.0.downsample.reduction.weight" in state_dict
    state = {}
    for key, value in state_dict.items():
        if key.endswith(BUFFERS):
            continue
        if key == "patch_embed.proj.weight":
            value = resample_patch_embed(value, model.patch_embed.patch_size)
        elif key.endswith(".relative_position_bias_table"):
            window = model.get_submodule(key.rpartition(".")[0]).window_size
            value = resize_rel_pos_bias_table(value, window, interpolation="geometric")
        if original:
            key = re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", key)
            key = re.sub(r"^head\.", "head.fc.", key)
        state[key] = value
    return state
