"""Optimizers that look at the curvature: they take gradients that can be differentiated once more."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn.attention import SDPBackend, sdpa_kernel

from opsin.errors import OpsinError
from opsin.optim import optimizer_info
from opsin.train.config import TrainConfig
from opsin.train.distributed import World

__all__ = ["check_second_order", "curvature"]


def check_second_order(config: TrainConfig, world: World) -> None:
    """Raise `OpsinError` where the optimizer looks at the curvature and something cannot be differentiated twice."""
    if not optimizer_info(config.optim.opt).second_order:
        return
    wrong = []
    if world.size > 1:
        wrong.append("several processes (gradients lose their graph when they are summed): train with one")
    if config.model.compile:
        wrong.append("compile (a compiled model has no second derivative): leave it out")
    if config.run.amp not in ("auto", "none"):
        wrong.append(f"amp {config.run.amp} (a curvature that rounds to 0 makes a weight jump): take none")
    if wrong:
        raise OpsinError(
            f"{config.optim.opt} looks at the curvature, which does not go with {'; nor with '.join(wrong)}"
        )


@contextmanager
def curvature() -> Iterator[None]:
    """Around an update: attention in plain matrix products, since torch's fused kernels have no second derivative."""
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        # of the cycle between a parameter and its gradient, which the loop breaks when it clears the gradients
        warnings.filterwarnings("ignore", message=r"Using backward\(\) with create_graph=True")
        yield
