"""Models that run a sequence of tokens: what the contract says of maps, read from patch tokens."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, did_you_mean
from opsin.layers.attention import mask_args
from opsin.layers.patch_embed import to_2tuple
from opsin.layers.pos_embed import resample_abs_pos_embed
from opsin.models._chain import run_stage
from opsin.models._model import Model

__all__ = ["POOLS", "PatchModel", "TokenModel", "global_pool_nlc", "resize_input"]

POOLS = ("", "avg", "avgmax", "max", "token", "map")


def global_pool_nlc(
    x: Tensor, pool_type: str = "token", num_prefix_tokens: int = 1, reduce_include_prefix: bool = False
) -> Tensor:
    """Pool `(B, N, C)` to `(B, C)`: "token" takes the first, "avg", "max" and "avgmax" reduce the patches ("": as is).

    `reduce_include_prefix` reduces over the first `num_prefix_tokens` as well.
    """
    if not pool_type:
        return x
    if pool_type == "token":
        return x[:, 0]
    if not reduce_include_prefix:
        x = x[:, num_prefix_tokens:]
    if pool_type == "avg":
        return x.mean(1)
    if pool_type == "max":
        return x.amax(1)
    if pool_type == "avgmax":
        return 0.5 * (x.amax(1) + x.mean(1))
    near = did_you_mean(pool_type, POOLS)
    raise UnknownArgumentError(f"no global pooling {pool_type!r} of tokens.{near} Known: token, avg, max, avgmax, ''")


class PatchModel(Model):
    """A model whose levels are patches `(B, h * w, C)`, row by row, as its `patch_embed` cut them."""

    layout: ClassVar[str] = "NLC"
    patch_embed: Any  # PatchEmbed, or one of the user's with its methods

    def check_output_fmt(self, output_fmt: str) -> None:
        if output_fmt not in ("NCHW", "NHWC", "NLC"):
            raise UnknownArgumentError(f"output_fmt is NCHW, NHWC or NLC for {type(self).__name__}, not {output_fmt!r}")

    def as_map(self, x: Tensor, image_size: tuple[int, int], output_fmt: str = "NCHW") -> Tensor:
        if output_fmt == "NLC":
            return x
        x = x.unflatten(1, self.patch_embed.dynamic_feat_size(image_size))
        return x if output_fmt == "NHWC" else x.permute(0, 3, 1, 2).contiguous()


class TokenModel(PatchModel):
    """A model whose chain carries `(B, N, C)` tokens: `num_prefix_tokens` of its own, then the patches row by row.

    A family creates `patch_embed` and has `embed` as the first link of its chain, then one level a block.
    """

    first_conv: ClassVar[str | tuple[str, ...]] = "patch_embed.proj"
    classifier_path: ClassVar[str | tuple[str, ...]] = "head"

    pos_embed: nn.Parameter | None
    num_prefix_tokens: int
    no_embed_class: bool = False  # the position embedding has no entries for prefix tokens

    # -- running ---------------------------------------------------------------------------------------------------

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """All tokens after the closing norm. `attn_mask` goes to every block, as for scaled dot product attention."""
        x, args = self.begin(x, attn_mask, is_causal)
        for stage in self.chain:
            x = run_stage(self, stage, x, self.grad_checkpointing, args)
        return x

    def begin(self, x: Tensor, attn_mask: Tensor | None, is_causal: bool) -> tuple[Tensor, dict[str, Any]]:
        """What enters the chain for images `x`, and the keywords of all blocks: here the images themselves."""
        return x, self.block_args(attn_mask, is_causal)

    def block_args(self, attn_mask: Tensor | None, is_causal: bool) -> dict[str, Any]:
        """Keywords that every block is called with."""
        return mask_args(attn_mask, is_causal)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        return self.forward_head(self.forward_features(x, **mask_args(attn_mask, is_causal)))

    def forward_intermediates(  # type: ignore[override]
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ):
        """The tokens of feature levels as maps, in the order of `indices`; see `Model.forward_intermediates`.

        Args:
            return_prefix_tokens: each entry is `(map, prefix tokens (B, P, C))`.
            output_fmt: NCHW or NHWC for maps, NLC for patch tokens (B, h * w, C).
            attn_mask, is_causal: as in `forward_features`.
        """
        self.check_output_fmt(output_fmt)
        if stop_early and not intermediates_only:
            raise UnknownArgumentError("stop_early leaves no final features: pass intermediates_only=True with it")
        if self.training and getattr(getattr(self, "patch_drop", None), "prob", None):
            raise ValueError(
                "patch dropout leaves holes in the maps while training: use eval(), or build with patch_drop_rate=0"
            )
        size = (x.shape[-2], x.shape[-1])
        x, args = self.begin(x, attn_mask, is_causal)
        x, taken = self.run_chain(x, indices, norm=norm, stop_early=stop_early, block_args=args)
        maps: list[Any] = [self.as_map(level, size, output_fmt) for level in taken]
        if return_prefix_tokens:
            prefixes = [level[:, : self.num_prefix_tokens] for level in taken]
            maps = list(zip(maps, prefixes, strict=True))
        return maps if intermediates_only else (x, maps)

    def get_intermediate_layers(
        self,
        x: Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        attn_mask: Tensor | None = None,
    ) -> list[Any]:
        """Patch tokens of the last `n` levels (or of those named), as maps with `reshape`: the DINO way to ask."""
        return self.forward_intermediates(
            x,
            n,
            return_prefix_tokens=return_prefix_tokens,
            norm=norm,
            output_fmt="NCHW" if reshape else "NLC",
            intermediates_only=True,
            attn_mask=attn_mask,
        )

    def as_map(self, x: Tensor, image_size: tuple[int, int], output_fmt: str = "NCHW") -> Tensor:
        return super().as_map(x[:, self.num_prefix_tokens :], image_size, output_fmt)

    # -- image size ------------------------------------------------------------------------------------------------

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Make the model take another image size or patch size; kernels and position embeddings are resampled."""
        resize_input(self, img_size, patch_size, 0 if self.no_embed_class else self.num_prefix_tokens)


@torch.no_grad()
def resize_input(
    model: Any, img_size: int | tuple[int, int] | None, patch_size: int | tuple[int, int] | None, num_prefix: int
) -> None:
    """Resample kernels and `pos_embed`, whose first `num_prefix` entries are not for patches; keep chain and config."""
    old_grid = model.patch_embed.grid_size
    model.patch_embed.set_input_size(img_size=img_size, patch_size=patch_size)
    if model.pos_embed is not None:
        grid = model.patch_embed.grid_size
        table = resample_abs_pos_embed(model.pos_embed, grid, old_size=old_grid, num_prefix_tokens=num_prefix)
        model.pos_embed = nn.Parameter(table, requires_grad=model.pos_embed.requires_grad)
    changes: dict[str, Any] = {}
    if img_size is not None:
        changes["img_size"] = to_2tuple(img_size)
    if patch_size is not None:
        changes["patch_size"] = to_2tuple(patch_size)
        ratio = model.patch_embed.feat_ratio()
        model.chain = tuple(s._replace(reduction=ratio) if s.is_level else s for s in model.chain)
    model.config = replace(model.config, **changes)
