"""Relative position biases: one learned number for each head and each offset of two positions in a window."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opsin.layers.pos_embed import resize_rel_pos_bias_table

__all__ = ["RelPosTable", "relative_position_index"]


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
    index = torch.nn.functional.pad(index, (1, 0, 1, 0), value=offsets)
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
