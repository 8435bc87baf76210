"""Batch norm of its own for each augmentation split (https://arxiv.org/abs/1911.09665).

Clean and heavily augmented pictures have other statistics. The first split goes through the model's own norm, which
evaluation uses; each of the others through a copy.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from opsin.errors import OpsinError

__all__ = ["SplitBatchNorm", "main_state", "split_batch_norm"]


class SplitBatchNorm(nn.Module):
    """`main` for the first of `num_splits` parts of a training batch, one of `aux` for each other."""

    def __init__(self, norm: nn.Module, num_splits: int) -> None:
        super().__init__()
        if num_splits < 2:
            raise OpsinError(f"there must be at least 2 splits, not {num_splits}")
        self.main = norm
        self.aux = nn.ModuleList(copy.deepcopy(norm) for _ in range(num_splits - 1))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.main(x)
        norms = [self.main, *self.aux]
        if len(x) % len(norms):
            raise OpsinError(f"a batch of {len(x)} cannot be split in {len(norms)}")
        return torch.cat([norm(part) for norm, part in zip(norms, x.chunk(len(norms)), strict=True)])


def split_batch_norm(model: Any, num_splits: int) -> Any:
    """Replace every batch norm of a model, in place; returns the model. Keys gain `.main` and `.aux.N`."""
    for name, child in list(model.named_children()):
        if isinstance(child, _BatchNorm):
            setattr(model, name, SplitBatchNorm(child, num_splits))
        else:
            split_batch_norm(child, num_splits)
    return model


def main_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a model as it was before it was split: the main norms under the names that they had."""
    prefixes = [f"{name}." for name, module in model.named_modules() if isinstance(module, SplitBatchNorm)]
    found = {}
    for key, value in state.items():
        prefix = next((one for one in prefixes if key.startswith(one)), None)
        if prefix is None:
            found[key] = value
        elif key.startswith(f"{prefix}main."):
            found[prefix + key.removeprefix(f"{prefix}main.")] = value
    return found
