"""Batch norm with everything frozen, for fine-tuning on batches too small for statistics."""

import torch
from torch import Tensor, nn

from opsin.layers.norm_act import BatchNormAct2d
from opsin.layers.sync_norm import SyncBatchNormAct

__all__ = ["FrozenBatchNorm2d", "FrozenBatchNormAct2d", "freeze_batch_norm_2d", "unfreeze_batch_norm_2d"]


class FrozenBatchNorm2d(nn.Module):
    """A batch norm whose scale, shift and statistics are fixed, in training as well. Same keys in a state dict."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((num_features,), value))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """A frozen batch norm, then the activation of the norm it stands for."""

    def __init__(self, num_features: int, eps: float = 1e-5, *, act: nn.Module) -> None:
        super().__init__(num_features, eps)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


PLAIN = (nn.BatchNorm2d, nn.SyncBatchNorm)
WITH_ACT = (BatchNormAct2d, SyncBatchNormAct)  # of other classes nobody knows what else they do
NAMES = ("weight", "bias", "running_mean", "running_var")


def freeze_batch_norm_2d(module: nn.Module) -> nn.Module:
    """Replace every batch norm inside, with and without an activation, by a frozen one; returns the module, or its
    replacement."""
    if (
        isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm)
        and type(module) in PLAIN + WITH_ACT
        and module.affine
        and module.track_running_stats
    ):
        if isinstance(module, WITH_ACT):
            frozen: FrozenBatchNorm2d = FrozenBatchNormAct2d(module.num_features, module.eps, act=module.act)
        else:
            frozen = FrozenBatchNorm2d(module.num_features, module.eps)
        return _take_values(frozen, module).train(module.training)
    for name, child in module.named_children():
        if (new := freeze_batch_norm_2d(child)) is not child:
            setattr(module, name, new)
    return module


def unfreeze_batch_norm_2d(module: nn.Module) -> nn.Module:
    """The way back from `freeze_batch_norm_2d`."""
    if isinstance(module, FrozenBatchNorm2d):
        norm: nn.BatchNorm2d = nn.BatchNorm2d(len(module.weight), module.eps)
        if isinstance(module, FrozenBatchNormAct2d):
            norm = BatchNormAct2d(len(module.weight), module.eps)
            norm.act = module.act
        return _take_values(norm, module).train(module.training)
    for name, child in module.named_children():
        if (new := unfreeze_batch_norm_2d(child)) is not child:
            setattr(module, name, new)
    return module


def _take_values(new: nn.Module, old: nn.Module) -> nn.Module:
    for name in NAMES:
        value = getattr(old, name).detach()
        setattr(new, name, nn.Parameter(value) if name in new._parameters else value)
    return new
