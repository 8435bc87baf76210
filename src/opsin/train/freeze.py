"""Training from the head on: which stages stay as they are, and when they are set free."""

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from opsin.errors import OpsinError
from opsin.train.distributed import World

__all__ = ["average_gradients", "freeze", "frozen_stages"]


def freeze(model: Any, stages: int) -> None:
    """Freeze the stem and the first `stages` stages; -1 all but the head; 0 none. Norms there keep their statistics."""
    try:
        model.freeze_stages(None if stages < 0 else stages)
    except IndexError as error:
        raise OpsinError(f"freeze {stages}: {str(error).partition(': ')[2]}, not counting the head") from None


def frozen_stages(total: int, begin: int, unfreeze_epochs: int, epoch: int) -> int:
    """How many stages are frozen in an epoch: one less, from the head on, every `unfreeze_epochs` epochs."""
    begin = total if begin < 0 else begin
    return max(begin - epoch // unfreeze_epochs, 0) if unfreeze_epochs else begin


def average_gradients(forward: nn.Module, world: World) -> nn.Module:
    """Wrap a model so that each process learns from the mean of all gradients.

    It sees to the parameters that learn when it is made: where others are set free, take a new one of the same model.
    """
    ids = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(forward, device_ids=ids)
