"""Attention pooling of a map with its mean as the query: as in the ResNets of CLIP (https://arxiv.org/abs/2103.00020),
with learned absolute positions or with rotary ones (https://arxiv.org/abs/2104.09864) in two dimensions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError
from opsin.layers.attention import split_heads
from opsin.layers.patch_embed import to_2tuple
from opsin.layers.pos_embed import resample_abs_pos_embed
from opsin.layers.weight_init import trunc_normal_

__all__ = ["AttentionPool2d", "RotAttentionPool2d"]

Size = int | tuple[int, int]


class _Pool(nn.Module):
    """What both have: heads, projections, and the mean token in front of the map's own.

    `out_features` is the width of the output: None for that of the input, 0 for no output projection. With
    `qkv_separate` there are three projections `q`, `k`, `v` in place of one. `pool_type` "" leaves the map as it is.
    """

    def __init__(
        self, in_features: int, out_features: int | None, embed_dim: int | None, head_dim: int, num_heads: int | None,
        qkv_bias: bool, qkv_separate: bool, pool_type: str, drop_rate: float,
    ) -> None:  # fmt: skip
        super().__init__()
        embed_dim = embed_dim or in_features
        self.num_heads = num_heads or embed_dim // head_dim
        if not self.num_heads or embed_dim % self.num_heads:
            raise ValueError(f"embed_dim={embed_dim} cannot be split into heads (head_dim={head_dim})")
        self.head_dim, self.in_features, self.embed_dim = embed_dim // self.num_heads, in_features, embed_dim
        if qkv_separate:
            self.q = nn.Linear(in_features, embed_dim, bias=qkv_bias)
            self.k = nn.Linear(in_features, embed_dim, bias=qkv_bias)
            self.v = nn.Linear(in_features, embed_dim, bias=qkv_bias)
        else:
            self.qkv = nn.Linear(in_features, 3 * embed_dim, bias=qkv_bias)
        self.drop = nn.Dropout(drop_rate)
        self.reset(in_features if out_features is None else out_features, pool_type)

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """A fresh output projection of `num_classes` (0: none), and another pooling if named."""
        if pool_type is not None:
            if pool_type not in ("token", ""):
                raise UnknownArgumentError(
                    f"attention pooling has global_pool='token', or '' for none: not {pool_type!r}"
                )
            self.pool_type = pool_type
        if num_classes and not self.pool_type:
            raise ValueError("global_pool='' leaves a map: it needs num_classes=0")
        self.out_features = num_classes or self.embed_dim
        self.proj = nn.Linear(self.embed_dim, num_classes) if num_classes else nn.Identity()

    def reset_parameters(self) -> None:
        for part in (self.q, self.k, self.v) if hasattr(self, "q") else (self.qkv,):
            trunc_normal_(part.weight, std=self.in_features**-0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)

    def tokens(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to `(B, 1 + H * W, C)`."""
        x = x.flatten(2).transpose(1, 2)
        return torch.cat((x.mean(1, keepdim=True), x), 1)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        parts = (self.q(x), self.k(x), self.v(x)) if hasattr(self, "q") else self.qkv(x).chunk(3, -1)
        return tuple(split_heads(part, self.num_heads) for part in parts)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The answer to the mean token, projected unless `pre_logits`."""
        if not self.pool_type:
            return x
        q, k, v = self.placed(x)
        x = F.scaled_dot_product_attention(q[:, :, :1], k, v)  # only the mean token asks: the rest would not be used
        x = self.drop(x.transpose(1, 2).flatten(2)[:, 0])
        return x if pre_logits else self.proj(x)

    def placed(self, x: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError(f"{type(self).__name__} must give queries, keys and values of a map")


class AttentionPool2d(_Pool):
    """`(B, in_features, H, W)` to `(B, out_features)`; positions are learned for `feat_size`, resampled for others."""

    def __init__(
        self,
        in_features: int,
        feat_size: Size = 7,
        out_features: int | None = None,
        *,
        embed_dim: int | None = None,
        head_dim: int = 64,
        num_heads: int | None = None,
        qkv_bias: bool = True,
        qkv_separate: bool = False,
        pool_type: str = "token",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(
            in_features, out_features, embed_dim, head_dim, num_heads, qkv_bias, qkv_separate, pool_type, drop_rate
        )
        self.feat_size = to_2tuple(feat_size)
        self.pos_embed = nn.Parameter(torch.empty(1 + self.feat_size[0] * self.feat_size[1], in_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        trunc_normal_(self.pos_embed, std=self.in_features**-0.5)

    def placed(self, x: Tensor) -> tuple[Tensor, ...]:
        positions = resample_abs_pos_embed(self.pos_embed[None], x.shape[-2:], self.feat_size)
        return self.heads(self.tokens(x) + positions.to(x.dtype))


class RotAttentionPool2d(_Pool):
    """`(B, in_features, H, W)` of any size to `(B, out_features)`; angles are scaled to those of `ref_feat_size`."""

    def __init__(
        self,
        in_features: int,
        out_features: int | None = None,
        ref_feat_size: Size = 7,
        *,
        embed_dim: int | None = None,
        head_dim: int = 64,
        num_heads: int | None = None,
        qkv_bias: bool = True,
        qkv_separate: bool = False,
        pool_type: str = "token",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__(
            in_features, out_features, embed_dim, head_dim, num_heads, qkv_bias, qkv_separate, pool_type, drop_rate
        )
        self.ref_feat_size = to_2tuple(ref_feat_size)
        if self.head_dim % 4:
            raise ValueError(
                f"rotary positions turn pairs in two directions: head_dim={self.head_dim} needs a factor 4"
            )
        self.reset_parameters()

    def angles(self, height: int, width: int, device: torch.device) -> Tensor:
        """`(H * W, head_dim / 2)`: half of the pairs turn with the row, half with the column."""
        count = self.head_dim // 4
        bands = 10000.0 ** -(torch.arange(count, device=device, dtype=torch.float32) / count)
        rows, columns = (
            torch.arange(n, device=device, dtype=torch.float32) / n * ref
            for n, ref in zip((height, width), self.ref_feat_size, strict=True)
        )
        by_row = (rows[:, None] * bands)[:, None].expand(height, width, count)
        by_column = (columns[:, None] * bands)[None].expand(height, width, count)
        return torch.cat((by_row, by_column), -1).flatten(0, 1)

    def placed(self, x: Tensor) -> tuple[Tensor, ...]:
        angles = self.angles(x.shape[-2], x.shape[-1], x.device)
        q, k, v = self.heads(self.tokens(x))
        return q, _turn(k, angles), v  # the mean token has no place, so its query is not turned


def _turn(x: Tensor, angles: Tensor) -> Tensor:
    """Turn neighbouring pairs of all tokens but the first by their angles."""
    first, rest = x[:, :, :1], x[:, :, 1:].unflatten(-1, (-1, 2))
    sin, cos = angles.sin().to(x.dtype), angles.cos().to(x.dtype)
    a, b = rest.unbind(-1)
    return torch.cat((first, torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)), 2)
