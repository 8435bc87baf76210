"""Patch dropout (https://arxiv.org/abs/2208.07220): train on a random part of the patches."""

import torch
from torch import Tensor, nn

__all__ = ["PatchDropout"]


class PatchDropout(nn.Module):
    """Drops a share `prob` of the tokens of each `(B, N, C)` sample while training; prefix tokens always stay.

    `ordered` keeps the survivors in their first order, which matters to what runs over the sequence.
    """

    def __init__(self, prob: float = 0.5, num_prefix_tokens: int = 1, ordered: bool = False) -> None:
        super().__init__()
        if not 0.0 <= prob < 1.0:
            raise ValueError(f"patch dropout of {prob}: 0 or more, and below 1")
        self.prob, self.num_prefix_tokens, self.ordered = prob, num_prefix_tokens, ordered

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x)[0]

    def drop(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The tokens that stay, and which patches these are (B, K); None where all do."""
        if not self.training or not self.prob:
            return x, None
        prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        batch, count = patches.shape[:2]
        keep = max(1, int(count * (1.0 - self.prob)))
        index = torch.rand(batch, count, device=x.device).argsort(1)[:, :keep]
        if self.ordered:
            index = index.sort(1).values
        patches = patches.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        return torch.cat((prefix, patches), 1), index

    def extra_repr(self) -> str:
        return f"prob={self.prob}"
