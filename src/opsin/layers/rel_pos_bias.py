"""Relative position biases: a number for each head and each offset of two positions in a window, from a table that is
learned, or from a small network (https://arxiv.org/abs/2111.09883)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.errors import UnknownArgumentError
from opsin.layers.mlp import Mlp
from opsin.layers.pos_embed import resize_rel_pos_bias_table
from opsin.layers.weight_init import trunc_normal_

__all__ = ["RelPosBias", "RelPosMlp", "RelPosTable", "log_offsets", "relative_position_index"]


def relative_position_index(window: Sequence[int], class_token: bool = False) -> Tensor:
    """For each pair of positions in a window (N, N) the row of a table with all (2h - 1) * (2w - 1) offsets.

    With `class_token` it comes first (1 + N, 1 + N); three rows more stand for how it looks at a position, how a
    position looks at it, and how it looks at itself.
    """
    height, width = window
    y, x = torch.arange(height).repeat_interleave(width), torch.arange(width).repeat(height)
    dy, dx = y[:, None] - y[None] + height - 1, x[:, None] - x[None] + width - 1
    index = dy * (2 * width - 1) + dx
    if not class_token:
        return index
    offsets = (2 * height - 1) * (2 * width - 1)
    index = F.pad(index, (1, 0, 1, 0), value=offsets)
    index[1:, 0] = offsets + 1
    index[0, 0] = offsets + 2
    return index


class RelPosTable(nn.Module):
    """Base of modules that hold such a table: `init_table` makes it, `position_bias` reads it."""

    window_size: tuple[int, int]
    relative_position_bias_table: nn.Parameter
    relative_position_index: Tensor

    def init_table(self, window_size: Sequence[int], num_heads: int, class_token: bool = False) -> None:
        """Create table and index; values are given by `reset_parameters` of the class."""
        self.window_size, self.table_extra = (window_size[0], window_size[1]), 3 if class_token else 0
        offsets = (2 * window_size[0] - 1) * (2 * window_size[1] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.empty(offsets + self.table_extra, num_heads))
        index = relative_position_index(self.window_size, class_token)
        self.register_buffer("relative_position_index", index, persistent=False)

    def reset_buffers(self) -> None:
        """Compute the index again."""
        index = relative_position_index(self.window_size, bool(self.table_extra))
        self.relative_position_index = index.to(self.relative_position_bias_table.device)

    @torch.no_grad()
    def set_window_size(self, window_size: Sequence[int]) -> None:
        """Another window (height, width): the biases are resampled."""
        if tuple(window_size) == self.window_size:
            return
        table = self.relative_position_bias_table
        new = resize_rel_pos_bias_table(
            table, window_size, num_extra=self.table_extra, old_window_size=self.window_size, interpolation="geometric"
        )
        self.window_size = (window_size[0], window_size[1])
        self.relative_position_bias_table = nn.Parameter(new, requires_grad=table.requires_grad)
        self.reset_buffers()

    def position_bias(self) -> Tensor:
        """(1, heads, N, N), to be added to the scores of attention."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]


class RelPosBias(RelPosTable):
    """The table as a module: `(1, heads, N, N)`; with `prefix_tokens` a class token comes first, on both sides."""

    def __init__(self, window_size: Sequence[int], num_heads: int, prefix_tokens: int = 0) -> None:
        super().__init__()
        if prefix_tokens > 1:
            raise ValueError(f"a table of position biases knows one class token, not {prefix_tokens} prefix tokens")
        self.init_table(window_size, num_heads, class_token=prefix_tokens == 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self) -> Tensor:
        return self.position_bias()


def log_offsets(window: Sequence[int], trained: int = 0, mode: str = "swin") -> Tensor:
    """All offsets in a window (2h - 1, 2w - 1, 2), log-spaced.

    With mode "swin" the offsets of the `trained` window (0: this one) come to lie in -1 to 1; with "cr" they are the
    logarithms of pixels.
    """
    if mode not in ("swin", "cr"):
        raise UnknownArgumentError(f"mode={mode!r} of log-spaced offsets: 'swin' or 'cr'")
    sides = []
    for side in window:
        offset = torch.arange(1 - side, side, dtype=torch.float32)
        if mode == "cr":
            sides.append(offset.sign() * torch.log(offset.abs() + 1))
        else:
            offset = offset / max((trained or side) - 1, 1) * 8
            sides.append(offset.sign() * torch.log2(offset.abs() + 1) / 3)
    grid = (len(sides[0]), len(sides[1]))
    return torch.stack([sides[0][:, None].expand(grid), sides[1][None].expand(grid)], -1)


class RelPosMlp(nn.Module):
    """Biases `(1, heads, N, N)` from a two-layer network on log-spaced offsets; prefix tokens have none.

    With mode "swin" they lie between 0 and 16, with "cr" they are what the network gives.
    """

    relative_position_index: Tensor
    rel_coords_log: Tensor

    def __init__(
        self, window_size: Sequence[int], num_heads: int, prefix_tokens: int = 0, *, hidden_dim: int = 128,
        mode: str = "cr",
    ) -> None:  # fmt: skip
        super().__init__()
        self.window_size, self.prefix_tokens, self.mode = (window_size[0], window_size[1]), prefix_tokens, mode
        bias = (True, mode == "cr")
        self.mlp = Mlp(2, hidden_dim, num_heads, act_layer="relu", bias=bias, drop=(0.125, 0.0))
        self.register_buffer("relative_position_index", None, persistent=False)
        self.register_buffer("rel_coords_log", None, persistent=False)
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """Compute offsets and index again."""
        like = self.mlp.fc1.get_parameter("weight")
        self.relative_position_index = relative_position_index(self.window_size).to(like.device)
        self.rel_coords_log = log_offsets(self.window_size, mode=self.mode).to(like)

    def set_window_size(self, window_size: Sequence[int]) -> None:
        """Another window (height, width): its offsets go through the same network."""
        if tuple(window_size) != self.window_size:
            self.window_size = (window_size[0], window_size[1])
            self.reset_buffers()

    def forward(self) -> Tensor:
        table = self.mlp(self.rel_coords_log).flatten(0, 1)
        bias = table[self.relative_position_index].permute(2, 0, 1)[None]
        if self.mode == "swin":
            bias = 16 * torch.sigmoid(bias)
        return F.pad(bias, (self.prefix_tokens, 0, self.prefix_tokens, 0)) if self.prefix_tokens else bias
