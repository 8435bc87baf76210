"""Rotary position embedding (https://arxiv.org/abs/2104.09864) of image patches, and attention that uses it.

Pairs of channels of queries and keys are turned by angles that grow with the place of a patch, so that scores depend
on the offset of two patches alone. A table `(h * w, 2 * dim)` holds sines, then cosines, for each patch and channel.
Angles are computed in float32 whatever the dtype of the model: half precision is too coarse for them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, did_you_mean
from opsin.layers.attention import split_heads
from opsin.layers.norm import get_norm_layer

__all__ = [
    "AttentionRope",
    "Rope",
    "RotaryEmbeddingCat",
    "RotaryEmbeddingDinoV3",
    "RotaryEmbeddingMRope",
    "RotaryEmbeddingMixed",
    "apply_rot_embed_cat",
    "create_rope_embed",
    "keep_rope",
    "patch_coords",
]


def apply_rot_embed_cat(x: Tensor, emb: Tensor, half: bool = False) -> Tensor:
    """Turn `x` (..., N, dim) by a table (..., N, 2 * dim); `half` pairs channel i with i + dim / 2, not i + 1."""
    sin, cos = emb.chunk(2, -1)
    if half:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin
    return x * cos + torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2) * sin


def keep_rope(emb: Tensor, keep: Tensor) -> Tensor:
    """The rows `keep` (B, K) of each sample: of a table (N, 2 * dim) as (B, 1, K, 2 * dim), of one for each block
    (depth, heads, N, 2 * dim) as (depth, B, heads, K, 2 * dim)."""
    return emb[keep].unsqueeze(1) if emb.ndim == 2 else emb[:, :, keep].transpose(1, 2)


def patch_coords(shape: Sequence[int]) -> Tensor:
    """Row and column of each patch of a grid (h, w), row by row: (h * w, 2)."""
    rows, columns = torch.arange(shape[0]), torch.arange(shape[1])
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)


class Rope(nn.Module):
    """Base of the tables: `get_embed((h, w))` for whole grids, `embed` for patches of several.

    Args:
        feat_shape: the grid (h, w) whose table is kept; None computes it in each call.
        grid_indexing: "ij" has the bands of rows first, "xy" those of columns.
        shift_coords, jitter_coords, rescale_coords: while training, coordinates are shifted by up to so much, and
            multiplied by a factor between 1 / so much and so much: for each axis, or for both alike.
    """

    bands_name = "bands"  # of the buffer
    rotate_half = False
    pos_embed: Tensor | None

    def __init__(
        self, *, feat_shape: Sequence[int] | None = None, grid_indexing: str = "ij", shift_coords: float | None = None,
        jitter_coords: float | None = None, rescale_coords: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if grid_indexing not in ("ij", "xy"):
            raise UnknownArgumentError(f"grid_indexing={grid_indexing!r}: 'ij' or 'xy'")
        if not 0 <= (shift_coords or 0.0) < math.inf:
            raise ValueError(f"shift_coords={shift_coords}: 0 or more")
        for name, factor in (("jitter_coords", jitter_coords), ("rescale_coords", rescale_coords)):
            if factor is not None and not 1 <= factor < math.inf:
                raise ValueError(f"{name}={factor}: a factor of 1 or more")
        self.grid_indexing = grid_indexing
        self.shift_coords, self.jitter_coords, self.rescale_coords = shift_coords, jitter_coords, rescale_coords
        self.feat_shape = None if feat_shape is None else (int(feat_shape[0]), int(feat_shape[1]))

    # -- what the kinds define ---------------------------------------------------------------------------------------

    def compute_bands(self) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define compute_bands()")

    def place(self, coords: Tensor, grid: Tensor) -> Tensor:
        """What the bands multiply: from row and column `coords` (..., 2) in a `grid` (..., 2) of (h, w)."""
        return coords

    def angles(self, coords: Tensor) -> Tensor:
        """(..., N, 2) to (..., N, dim / 2)."""
        return (coords[..., None] * self.frequencies).flatten(-2)

    # -- buffers -----------------------------------------------------------------------------------------------------

    @property
    def frequencies(self) -> Tensor:
        """The bands, of which the buffer may be in another precision."""
        return self.get_buffer(self.bands_name).float()

    def reset_buffers(self) -> None:
        """Compute the bands, and the table of `feat_shape`, again."""
        self._keep(self.bands_name, self.compute_bands())
        self._keep("pos_embed", None if self.feat_shape is None else self._table(self.feat_shape, False))

    def _keep(self, name: str, value: Tensor | None) -> None:
        """As a buffer, on the device of the one before."""
        old = self._buffers.get(name)
        if value is not None and old is not None and not old.is_meta:
            value = value.to(old.device)
        self.register_buffer(name, value, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        if any(buffer.dtype.itemsize < 4 for buffer in self.buffers(recurse=False)):
            self.reset_buffers()
        return self

    def update_feat_shape(self, feat_shape: Sequence[int]) -> None:
        """Keep the table of another grid (h, w); nothing where none is kept."""
        if self.feat_shape is not None:
            self.feat_shape = (int(feat_shape[0]), int(feat_shape[1]))
            self.reset_buffers()

    # -- tables ------------------------------------------------------------------------------------------------------

    @property
    def augments(self) -> bool:
        """Whether coordinates vary in this mode."""
        return self.training and {self.shift_coords, self.jitter_coords, self.rescale_coords} != {None}

    def get_embed(self, shape: Sequence[int] | None = None) -> Tensor:
        """The table (h * w, 2 * dim) of a grid (h, w), by default of `feat_shape`."""
        shape = self.feat_shape if shape is None else shape
        if shape is None:
            raise ValueError("there is no feat_shape: name the grid (h, w)")
        if self.pos_embed is not None and tuple(shape) == self.feat_shape and not self.augments:
            return self.pos_embed
        return self._table(shape, self.augments)

    def embed(self, coords: Tensor, grid: Tensor) -> Tensor:
        """The table (B, 1, N, 2 * dim) of patches at row and column `coords` (B, N, 2) of grids (B, 2)."""
        return self._embed(coords.unsqueeze(1), grid[:, None, None], self.augments)

    def coords(self, shape: Sequence[int]) -> Tensor:
        return patch_coords(shape).to(self.frequencies.device)

    def _table(self, shape: Sequence[int], augment: bool) -> Tensor:
        coords = self.coords(shape)
        return self._embed(coords, coords.new_tensor(tuple(shape)), augment)

    def _embed(self, coords: Tensor, grid: Tensor, augment: bool) -> Tensor:
        coords = self.place(coords.float(), grid.float())
        if self.grid_indexing == "xy":
            coords = coords.flip(-1)
        angles = self.angles(self.augment(coords) if augment else coords)
        both = torch.cat((angles, angles), -1) if self.rotate_half else angles.repeat_interleave(2, -1)
        return torch.cat((both.sin(), both.cos()), -1)

    def augment(self, coords: Tensor) -> Tensor:
        uniform = lambda count, bound: coords.new_empty(count).uniform_(-bound, bound)  # noqa: E731
        if self.shift_coords is not None:
            coords = coords + uniform(2, self.shift_coords)
        if self.jitter_coords is not None:
            coords = coords * uniform(2, math.log(self.jitter_coords)).exp()
        if self.rescale_coords is not None:
            coords = coords * uniform(1, math.log(self.rescale_coords)).exp()
        return coords


class RotaryEmbeddingCat(Rope):
    """Half of the bands for rows, half for columns (EVA-02, https://arxiv.org/abs/2303.11331).

    Args:
        dim: channels of a head. temperature: bands fall from 1 to nearly 1 / temperature.
        ref_feat_shape: coordinates of any grid are stretched to this one, that of pre-training.
        grid_offset: added to coordinates. rotate_half: as `half` of `apply_rot_embed_cat`.
    """

    def __init__(
        self, dim: int, *, temperature: float = 10000.0, ref_feat_shape: Sequence[int] | None = None,
        grid_offset: float = 0.0, rotate_half: bool = False, **grid: Any,
    ) -> None:  # fmt: skip
        super().__init__(**grid)
        self.num_bands = bands_of(dim)
        self.temperature, self.ref_feat_shape = temperature, ref_feat_shape
        self.grid_offset, self.rotate_half = grid_offset, rotate_half
        self.reset_buffers()

    def compute_bands(self) -> Tensor:
        return 1.0 / self.temperature ** (torch.arange(self.num_bands) / self.num_bands)

    def place(self, coords: Tensor, grid: Tensor) -> Tensor:
        coords = coords + self.grid_offset
        return coords if self.ref_feat_shape is None else coords / grid * coords.new_tensor(self.ref_feat_shape)


class RotaryEmbeddingDinoV3(Rope):
    """Centres of patches in an image that goes from -1 to 1, and periods from 1 up to nearly `temperature` (DINOv3,
    https://arxiv.org/abs/2508.10104). Arguments as in `RotaryEmbeddingCat`."""

    bands_name = "periods"

    def __init__(
        self, dim: int, *, temperature: float = 100.0, grid_offset: float = 0.0, rotate_half: bool = True, **grid: Any
    ) -> None:
        super().__init__(**grid)
        self.num_bands, self.temperature = bands_of(dim), temperature
        self.grid_offset, self.rotate_half = grid_offset, rotate_half
        self.reset_buffers()

    def compute_bands(self) -> Tensor:
        return self.temperature ** (torch.arange(self.num_bands) / self.num_bands)

    def place(self, coords: Tensor, grid: Tensor) -> Tensor:
        return 2.0 * ((coords + 0.5 + self.grid_offset) / grid) - 1.0

    def angles(self, coords: Tensor) -> Tensor:
        return (2 * math.pi * coords[..., None] / self.frequencies).flatten(-2)


class RotaryEmbeddingMRope(Rope):
    """Bands dealt out in turn to time, rows and columns (Qwen2-VL, https://arxiv.org/abs/2409.12191); an image has no
    time, whose bands stay still. `mrope_section`: bands of each, which end once rows or columns have theirs."""

    rotate_half = True

    def __init__(
        self, dim: int, *, mrope_section: Sequence[int] = (8, 12, 12), temperature: float = 10000.0, **grid: Any
    ) -> None:
        super().__init__(**grid)
        if self.grid_indexing != "ij":
            raise UnknownArgumentError("a rope of sections has rows first: grid_indexing='ij'")
        self.num_bands, self.temperature, self.mrope_section = dim // 2, temperature, tuple(mrope_section)
        self.reset_buffers()

    def compute_bands(self) -> Tensor:
        """(2, dim / 2), with zeros where a band is not of the axis."""
        index = torch.arange(self.num_bands)
        bands = 1.0 / self.temperature ** (index * 2 / (2 * self.num_bands))
        return torch.stack([bands * ((index % 3 == i) & (index < 3 * self.mrope_section[i])) for i in (1, 2)])

    def angles(self, coords: Tensor) -> Tensor:
        return (coords[..., None] * self.frequencies).sum(-2)


class RotaryEmbeddingMixed(Rope):
    """Learned directions and bands for each head of each block (RoPE-Mixed, https://arxiv.org/abs/2403.13298).

    Tables are (depth, heads, h * w, 2 * dim / heads), and (depth, B, heads, N, 2 * dim / heads).
    """

    def __init__(
        self, dim: int, *, depth: int, num_heads: int, temperature: float = 10.0, grid_indexing: str = "xy", **grid: Any
    ) -> None:
        super().__init__(grid_indexing=grid_indexing, **grid)
        self.depth, self.num_heads, self.temperature = depth, num_heads, temperature
        self.num_bands = bands_of(dim // num_heads)
        self.freqs = nn.Parameter(torch.empty(2, depth, num_heads, 2 * self.num_bands))
        self.pos_embed = None
        self.reset_buffers()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each head starts with two directions at right angles, turned at random."""
        bands = 1.0 / self.temperature ** (torch.arange(self.num_bands) / self.num_bands)
        turn = 2 * math.pi * torch.rand(self.depth, self.num_heads, 1)
        turns = torch.cat((turn.expand(-1, -1, self.num_bands), turn.expand(-1, -1, self.num_bands) + math.pi / 2), -1)
        with torch.no_grad():
            self.freqs.copy_(torch.stack((turns.cos(), turns.sin())) * bands.repeat(2))

    def reset_buffers(self) -> None:
        """Compute the coordinates of `feat_shape` again."""
        coords = None if self.feat_shape is None else patch_coords(self.feat_shape).float()
        self._keep("t_x", None if coords is None else coords[:, 1].contiguous())
        self._keep("t_y", None if coords is None else coords[:, 0].contiguous())

    def coords(self, shape: Sequence[int]) -> Tensor:
        if tuple(shape) == self.feat_shape:
            return torch.stack((self.get_buffer("t_y"), self.get_buffer("t_x")), -1)
        return patch_coords(shape).to(self.freqs.device)

    def angles(self, coords: Tensor) -> Tensor:
        freqs = self.freqs.float().unsqueeze(-2)  # (2, depth, heads, 1, bands)
        first, second = freqs if coords.ndim == 2 else freqs.unsqueeze(2)
        return coords[..., :1] * first + coords[..., 1:] * second


def bands_of(dim: int) -> int:
    if dim % 4:
        raise ValueError(f"rotary embedding of rows and columns turns pairs of channels: {dim} is no multiple of 4")
    return dim // 4


ROPES: dict[str, Callable[..., Rope]] = {
    "cat": RotaryEmbeddingCat,
    "dinov3": RotaryEmbeddingDinoV3,
    "mixed": RotaryEmbeddingMixed,
    "mrope": RotaryEmbeddingMRope,
}


def create_rope_embed(rope_type: str = "cat", dim: int = 768, num_heads: int = 12, **kwargs: Any) -> Rope:
    """A rope for a model `dim` wide; `kwargs` are those of its class, of which "mixed" needs `depth`."""
    if rope_type not in ROPES:
        raise UnknownArgumentError(
            f"no rope_type {rope_type!r}.{did_you_mean(rope_type, ROPES)} Known: {', '.join(ROPES)}"
        )
    if rope_type == "mixed":
        return ROPES[rope_type](dim, num_heads=num_heads, **kwargs)
    return ROPES[rope_type](dim // num_heads, **kwargs)


class AttentionRope(nn.Module):
    """Self-attention over `(B, N, dim)` whose queries and keys are turned by a `rope`, but those of prefix tokens.

    Args:
        qkv_fused: one linear layer for queries, keys and values.
        qk_norm: `norm_layer` on queries and keys, per head. scale_norm: before the output projection.
        rotate_half: as `half` of `apply_rot_embed_cat`. gated: a sigmoid of the input on what was attended to.
        num_kv_heads: fewer heads of keys and values, each for several of queries (https://arxiv.org/abs/2305.13245).
    """

    def __init__(
        self, dim: int, num_heads: int = 8, *, qkv_bias: bool = True, qkv_fused: bool = True,
        num_prefix_tokens: int = 1, attn_drop: float = 0.0, proj_drop: float = 0.0, norm_layer: Any = None,
        qk_norm: bool = False, scale_norm: bool = False, proj_bias: bool = True, rotate_half: bool = False,
        gated: bool = False, num_kv_heads: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads or num_heads
        if dim % num_heads or num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={num_heads} must divide dim={dim}, and num_kv_heads={num_kv_heads} divide it")
        self.head_dim, self.num_prefix_tokens, self.rotate_half = dim // num_heads, num_prefix_tokens, rotate_half
        self.build_qkv(dim, qkv_bias, qkv_fused)
        norm = get_norm_layer(norm_layer or "layernorm")
        self.q_norm = norm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = norm(self.head_dim) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = norm(dim) if scale_norm else nn.Identity()
        self.gate = nn.Linear(dim, dim, bias=qkv_bias) if gated else None
        self.proj = nn.Linear(dim, dim, bias=proj_bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def build_qkv(self, dim: int, bias: bool, fused: bool) -> None:
        width = self.head_dim * self.num_kv_heads
        if fused and width != dim:
            raise UnknownArgumentError("num_kv_heads needs qkv_fused=False: keys are not as wide as queries")
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias) if fused else None
        if not fused:
            self.q_proj = nn.Linear(dim, dim, bias=bias)
            self.k_proj = nn.Linear(dim, width, bias=bias)
            self.v_proj = nn.Linear(dim, width, bias=bias)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, heads side by side."""
        return self.qkv(x).chunk(3, -1) if self.qkv else (self.q_proj(x), self.k_proj(x), self.v_proj(x))

    def turn(self, x: Tensor, rope: Tensor) -> Tensor:
        """Turn heads (B, heads, N, head_dim) behind the prefix tokens."""
        prefix, patches = x.split((self.num_prefix_tokens, x.shape[2] - self.num_prefix_tokens), 2)
        patches = apply_rot_embed_cat(patches, rope, self.rotate_half).to(x.dtype)
        return torch.cat((prefix, patches), 2) if self.num_prefix_tokens else patches

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """`rope`: a table of `opsin.layers.rope` (N, 2 * head_dim), or (B, 1 or heads, N, 2 * head_dim)."""
        q, k, v = self.project(x)
        q, k = self.q_norm(split_heads(q, self.num_heads)), self.k_norm(split_heads(k, self.num_kv_heads))
        v = split_heads(v, self.num_kv_heads)
        if rope is not None:
            q, k = self.turn(q, rope), self.turn(k, rope)
        groups = self.num_heads // self.num_kv_heads
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        drop = self.attn_drop.p if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask, drop, is_causal).transpose(1, 2).flatten(2)
        attended = self.norm(attended)
        if self.gate is not None:
            attended = attended * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(attended))
