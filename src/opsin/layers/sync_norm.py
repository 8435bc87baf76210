"""Batch norm whose statistics are those of all processes together, also where an activation belongs to the norm."""

from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn.modules.batchnorm import _BatchNorm

from opsin.layers.norm_act import BatchNormAct2d

__all__ = ["SyncBatchNormAct", "convert_sync_batchnorm"]


class SyncBatchNormAct(nn.SyncBatchNorm):
    """Synchronised batch norm, then the activation of the `BatchNormAct2d` it stands for. Same keys in a state dict."""

    act: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


def convert_sync_batchnorm(module: nn.Module, process_group: ProcessGroup | None = None) -> nn.Module:
    """Synchronise every batch norm inside, in place; returns the module, or its replacement.

    Parameters stay the same objects. Torch's own converter would drop the activation of a `BatchNormAct2d`.
    """
    if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm):
        new = nn.SyncBatchNorm.convert_sync_batchnorm(module, process_group)
        if isinstance(module, BatchNormAct2d):
            new.__class__ = SyncBatchNormAct
            new.act = module.act
        return new
    for name, child in module.named_children():
        if (new := convert_sync_batchnorm(child, process_group)) is not child:
            setattr(module, name, new)
    return module
