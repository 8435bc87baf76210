"""One step of an optimizer on the parameters of a ResNet-50."""

from collections.abc import Callable

from benchmarks._ab import Row, compare

TITLE = "Steps of optimizers"
NOTE = (
    "Milliseconds of one step on the parameters of `resnet50` (25.6 M in 161 tensors) with weight decay, beside "
    "`timm.optim.create_optimizer_v2` of the same name, both as they come."
)
# not here: second derivatives, and minutes a step on a CPU
LEFT_OUT = ("adahessian", "kron*")


def names() -> list[str]:
    """What both have."""
    import timm.optim

    from opsin.optim import list_optimizers

    theirs = timm.optim.list_optimizers()
    return [name for name in list_optimizers(exclude_filters=LEFT_OUT) if name in theirs]


def side(make: Callable, name: str) -> Callable[[], object]:
    import torch

    from opsin import create_model

    model = create_model("resnet50")
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    return make(model, name, lr=1e-6, weight_decay=0.05).step


def run(rounds: int) -> list[Row]:
    import timm.optim
    import torch

    from opsin.optim import create_optimizer

    torch.set_num_threads(1)
    return [
        compare(name, side(timm.optim.create_optimizer_v2, name), side(create_optimizer, name), rounds=rounds)
        for name in names()
    ]
