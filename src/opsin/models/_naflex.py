"""What NaFlex takes in: images, or patches of images of many sizes side by side, padded to one length."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError, check_known
from opsin.layers.norm import get_norm_layer
from opsin.layers.patch_embed import to_2tuple
from opsin.layers.pos_embed import resample_patch_embed
from opsin.layers.weight_init import trunc_normal_

__all__ = ["NaFlexEmbeds", "batch_patchify", "create_attention_mask", "global_pool_naflex", "read_patches", "stretch"]

Grid = tuple[int, int]


def read_patches(
    x: Tensor | Mapping[str, Tensor], patch_coord: Tensor | None = None, patch_valid: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Images (B, C, H, W) as they are, with None twice; or patches, coordinates and validity, from a dict or apart."""
    if isinstance(x, Mapping):
        batch: Mapping[str, Tensor] = x
        check_known(batch, ("patches", "patch_coord", "patch_valid"), owner="a batch of patches")
        if "patches" not in batch:
            raise UnknownArgumentError("a batch of patches is a dict of patches, patch_coord and patch_valid")
        x, patch_coord, patch_valid = batch["patches"], batch.get("patch_coord"), batch.get("patch_valid")
    if x.ndim == 4:
        if patch_coord is not None or patch_valid is not None:
            raise UnknownArgumentError("images (B, C, H, W) have all their patches: no patch_coord, no patch_valid")
        return x, None, None
    if x.ndim not in (3, 5) or patch_coord is None or patch_valid is None:
        raise UnknownArgumentError(
            "patches are (B, N, P * P * C) or (B, N, P, P, C), with patch_coord (B, N, 2), rows first, and patch_valid "
            f"(B, N), True but for padding; got patches {tuple(x.shape)}"
            + "".join(f", no {n}" for n, v in (("patch_coord", patch_coord), ("patch_valid", patch_valid)) if v is None)
        )
    return x, patch_coord, patch_valid.bool()


def batch_patchify(x: Tensor, patch_size: Grid, pad: bool = True, channels_last: bool = True) -> tuple[Tensor, Grid]:
    """Images (B, C, H, W) to patches (B, N, h * w * C), or (B, N, C * h * w), and their grid; `pad` fills the last."""
    height, width = patch_size
    if pad:
        x = F.pad(x, (0, -x.shape[-1] % width, 0, -x.shape[-2] % height))
    elif x.shape[-2] % height or x.shape[-1] % width:
        raise ValueError(
            f"an image of {x.shape[-2]}x{x.shape[-1]} is not a whole number of {height}x{width} patches. Resize it, or "
            "create the model with dynamic_img_pad=True"
        )
    grid = (x.shape[-2] // height, x.shape[-1] // width)
    x = x.unflatten(-2, (grid[0], height)).unflatten(-1, (grid[1], width))  # B, C, rows, h, columns, w
    x = x.permute(0, 2, 4, 3, 5, 1) if channels_last else x.permute(0, 2, 4, 1, 3, 5)
    return x.flatten(3).flatten(1, 2), grid


def create_attention_mask(
    patch_valid: Tensor, num_prefix_tokens: int = 0, symmetric: bool = True, dtype: torch.dtype = torch.float32
) -> Tensor:
    """What is added to scores so that no token looks at padding: (B, 1, N, N), or (B, 1, 1, N) without `symmetric`,
    with which padding looks at all alike. `patch_valid` is (B, patches), N counts prefix tokens as well."""
    valid = F.pad(patch_valid, (num_prefix_tokens, 0), value=True)
    seen = valid[:, None, :, None] & valid[:, None, None] if symmetric else valid[:, None, None]
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def global_pool_naflex(
    x: Tensor, patch_valid: Tensor, pool_type: str, num_prefix_tokens: int, reduce_include_prefix: bool = False
) -> Tensor:
    """`global_pool_nlc` for "avg", "max" and "avgmax" over the patches that are valid."""
    valid = patch_valid
    if reduce_include_prefix:
        valid = F.pad(valid, (num_prefix_tokens, 0), value=True)
    else:
        x = x[:, num_prefix_tokens:]
    padding = ~valid[..., None]
    mean = x.masked_fill(padding, 0.0).sum(1) / valid.sum(1, keepdim=True).clamp_min(1).to(x.dtype)
    if pool_type == "avg":
        return mean
    largest = x.masked_fill(padding, torch.finfo(x.dtype).min).amax(1)
    return largest if pool_type == "max" else 0.5 * (largest + mean)


class NaFlexEmbeds(nn.Module):
    """Patch projection, prefix tokens and position embedding. `c` is the `Config` of `naflexvit`.

    The position table (1, H, W, dim), or with "factorized" one for rows and one for columns, is resampled to each
    grid; with `pos_embed_ar_preserving` to a square as large as its longer side, of which a corner is used.
    """

    def __init__(self, c: Any) -> None:
        super().__init__()
        if c.embed_proj_type not in ("linear", "conv"):
            raise UnknownArgumentError(f"embed_proj_type={c.embed_proj_type!r}: 'linear' or 'conv'")
        if c.pos_embed not in ("learned", "factorized", "none", ""):
            raise UnknownArgumentError(f"pos_embed={c.pos_embed!r}: 'learned', 'factorized' or 'none'")
        self.config, self.patch_size, dim = c, to_2tuple(c.patch_size), c.embed_dim
        grid = c.pos_embed_grid_size or self.dynamic_feat_size(to_2tuple(c.img_size or 224))
        self.add_tables(dim, grid)
        size = c.in_chans * self.patch_size[0] * self.patch_size[1]
        self.linear = c.embed_proj_type == "linear"
        if c.input_norm_layer and not self.linear:
            raise UnknownArgumentError("input_norm_layer norms flat patches: it needs embed_proj_type='linear'")
        self.norm_input = get_norm_layer(c.input_norm_layer)(size) if c.input_norm_layer else None
        self.proj: nn.Linear | nn.Conv2d
        if self.linear:
            self.proj = nn.Linear(size, dim, bias=not c.pre_norm)
        else:
            self.proj = nn.Conv2d(c.in_chans, dim, self.patch_size, self.patch_size, bias=not c.pre_norm)
        self.norm = get_norm_layer(c.embed_norm_layer)(dim) if c.embed_norm_layer else nn.Identity()
        self.pos_drop = nn.Dropout(c.pos_drop_rate)
        self.reset_parameters()

    def add_tables(self, dim: int, grid: Grid) -> None:
        table = lambda *shape: nn.Parameter(torch.empty(1, *shape, dim))  # noqa: E731
        self.cls_token = table(1) if self.config.class_token else None
        self.reg_token = table(self.config.reg_tokens) if self.config.reg_tokens else None
        self.pos_embed = table(*grid) if self.config.pos_embed == "learned" else None
        self.pos_embed_y = table(grid[0]) if self.config.pos_embed == "factorized" else None
        self.pos_embed_x = table(grid[1]) if self.config.pos_embed == "factorized" else None

    def reset_parameters(self) -> None:
        for name, table in self.named_parameters(recurse=False):
            if name == "cls_token" or name == "reg_token":
                nn.init.normal_(table, std=1e-6)
            else:
                trunc_normal_(table, std=0.02)

    def feat_ratio(self, as_scalar: bool = True) -> int | Grid:
        """Image pixels per patch: the larger side, or (height, width)."""
        return max(self.patch_size) if as_scalar else self.patch_size

    def dynamic_feat_size(self, img_size: Grid) -> Grid:
        """(height, width) in patches of an image of `img_size`."""
        (h, w), (ph, pw) = img_size, self.patch_size
        return (-(-h // ph), -(-w // pw)) if self.config.dynamic_img_pad else (h // ph, w // pw)

    # -- running ---------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, patch_coord: Tensor | None = None) -> tuple[Tensor, Grid | Tensor]:
        """Tokens (B, N, dim) and the grid: (h, w) of images (B, C, H, W), (B, 2) of patches at `patch_coord`."""
        grid: Grid | Tensor
        if patch_coord is None:
            x, grid = self.embed_images(x)
            x = self.norm(x)
            if self.config.pos_embed not in ("none", ""):
                x = x + self.positions(grid).flatten(1, 2)
        else:
            x, grid = self.norm(self.embed_patches(x)), patch_coord.amax(1) + 1
            if self.config.pos_embed not in ("none", ""):
                x = x + self.positions_at(patch_coord, grid).to(x.dtype)
        prefix = [token.expand(len(x), -1, -1) for token in (self.cls_token, self.reg_token) if token is not None]
        return self.pos_drop(torch.cat((*prefix, x), 1) if prefix else x), grid

    def embed_images(self, x: Tensor) -> tuple[Tensor, Grid]:
        patches, grid = batch_patchify(
            x, self.patch_size, self.config.dynamic_img_pad, self.config.patchify_channels_last
        )
        return self.embed_patches(patches), grid

    def embed_patches(self, x: Tensor) -> Tensor:
        """Flat patches, or patches (B, N, P, P, C), of this or of another size: (B, N, C, P, P) with channels first."""
        weight = self.proj.weight if self.linear else self.flat(self.proj.weight)
        if x.ndim == 5:  # in the order of flat ones
            size = (x.shape[2], x.shape[3]) if self.config.patchify_channels_last else (x.shape[3], x.shape[4])
            if size != self.patch_size:
                if not self.config.enable_patch_interpolator:
                    (h, w), (own_h, own_w) = size, self.patch_size
                    raise ValueError(
                        f"patches of {h}x{w} for a model of {own_h}x{own_w}: enable_patch_interpolator=True resamples "
                        "its projection"
                    )
                weight = self.flat(resample_patch_embed(self.kernels(weight, self.patch_size), size))
            x = x.flatten(2)
        if self.norm_input is not None:
            x = self.norm_input(x)
        return F.linear(x, weight, self.proj.bias)

    def flat(self, weight: Tensor) -> Tensor:
        """Kernels (dim, C, h, w) as rows for flat patches."""
        return (weight.permute(0, 2, 3, 1) if self.config.patchify_channels_last else weight).flatten(1)

    def kernels(self, weight: Tensor, patch: Grid) -> Tensor:
        """Rows for flat patches of a size (h, w) as kernels (dim, C, h, w)."""
        if self.config.patchify_channels_last:
            return weight.unflatten(1, (*patch, -1)).permute(0, 3, 1, 2)
        return weight.unflatten(1, (-1, *patch))

    # -- positions -------------------------------------------------------------------------------------------------

    def resize(self, table: Tensor, size: Grid) -> Tensor:
        """(1, H, W, dim) to another grid."""
        if tuple(table.shape[1:3]) == size:
            return table
        mode, antialias = self.config.pos_embed_interp_mode, self.config.pos_embed_antialias
        maps = table.permute(0, 3, 1, 2).float()
        maps = F.interpolate(
            maps, size, mode=mode, align_corners=self.config.pos_embed_align_corners, antialias=antialias
        )
        return maps.permute(0, 2, 3, 1).to(table.dtype)

    def positions(self, grid: Grid) -> Tensor:
        """(1, h, w, dim) for a grid."""
        height, width = (max(grid),) * 2 if self.config.pos_embed_ar_preserving else grid
        if self.pos_embed is not None:
            return self.resize(self.pos_embed, (height, width))[:, : grid[0], : grid[1]]
        assert self.pos_embed_y is not None
        assert self.pos_embed_x is not None
        rows = stretch(self.pos_embed_y, height)[:, : grid[0], None]
        return rows + stretch(self.pos_embed_x, width)[:, None, : grid[1]]

    def positions_at(self, coord: Tensor, grid: Tensor) -> Tensor:
        """(B, N, dim) for patches at `coord` (B, N, 2) of grids (B, 2)."""
        if self.config.pos_embed_use_grid_sample:
            return self.sample(coord, grid)
        tables: dict[Grid, Tensor] = {}
        rows = []
        for place, (height, width) in zip(coord, grid.tolist(), strict=True):
            if (height, width) not in tables:
                tables[height, width] = self.positions((height, width)).flatten(0, 2)
            rows.append(tables[height, width][place[:, 0] * width + place[:, 1]])
        return torch.stack(rows)

    def sample(self, coord: Tensor, grid: Tensor) -> Tensor:
        """The same without a table for each grid: read between the entries of the learned one."""
        sides = grid.amax(1, keepdim=True).expand_as(grid) if self.config.pos_embed_ar_preserving else grid
        sides, corners = sides[:, None], self.config.pos_embed_align_corners and self.pos_embed is not None
        place = coord / (sides - 1).clamp_min(1) if corners else (coord + 0.5) / sides
        y, x = (2 * place - 1).float().unbind(-1)
        if self.pos_embed is not None:
            return read(self.pos_embed, x, y, self.config.pos_embed_interp_mode, corners)
        assert self.pos_embed_y is not None
        assert self.pos_embed_x is not None
        still = torch.zeros_like(x)
        return read(self.pos_embed_y[:, :, None], still, y) + read(self.pos_embed_x[:, None], x, still)


def stretch(table: Tensor, size: int) -> Tensor:
    """(1, N, dim) to another length, linearly."""
    if table.shape[1] == size:
        return table
    return F.interpolate(table.transpose(1, 2).float(), size, mode="linear").transpose(1, 2).to(table.dtype)


def read(table: Tensor, x: Tensor, y: Tensor, mode: str = "bilinear", align_corners: bool = False) -> Tensor:
    """(B, N, dim) of a table (1, H, W, dim) at x and y (B, N), which go from -1 to 1."""
    maps = table.permute(0, 3, 1, 2).float().expand(len(x), -1, -1, -1)
    places = torch.stack((x, y), -1)[:, None]
    out = F.grid_sample(maps, places, mode=mode, padding_mode="border", align_corners=align_corners)
    return out[:, :, 0].transpose(1, 2).to(table.dtype)
