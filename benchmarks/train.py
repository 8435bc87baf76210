"""A whole training step on the CPU: the same weights, the same batch, fp32."""

import tempfile
from collections.abc import Callable

from benchmarks._ab import Row, compare

TITLE = "A training step on the CPU"
NOTE = (
    "Forward, loss (cross entropy, smoothing 0.1), backward, clipping to a norm of 1, step of the optimizer with "
    "weight decay, moving average: batch 8, 224 px, same weights and batch. opsin's side is `opsin.train.Run.learn`, "
    "timm's the parts of its training script, all as they come. In brackets: how each optimizer goes over the weights "
    "(timm / opsin), and how far the losses of the first two steps differ, as a share."
)
# architecture, optimizer, rate, moving average
CASES = (
    ("resnet50", "adamw", 1e-3, True),
    ("resnet50", "adamw", 1e-3, False),
    ("resnet50", "sgd", 0.05, True),
    ("efficientnet_b0", "adamw", 1e-3, True),
    ("vit_small_patch16_224", "adamw", 1e-3, True),
)
BATCH, DECAY, SMOOTHING, LIMIT = 8, 0.05, 0.1, 1.0
STEPS = 2  # before the clock


def kernel(optimizer) -> str:
    """How a step goes over the weights on the CPU: one kernel a tensor, lists, or an operation at a time."""
    chosen = [name for name in ("fused", "foreach") if optimizer.defaults.get(name)]
    return chosen[0] if chosen else "plain"


def theirs(model, images, targets, opt: str, lr: float, ema: bool) -> tuple[Callable[[], float], str]:
    import timm.loss
    import timm.optim
    import timm.utils

    optimizer = timm.optim.create_optimizer_v2(model, opt, lr=lr, weight_decay=DECAY)
    average = timm.utils.ModelEmaV3(model, decay=0.9998) if ema else None
    loss_of = timm.loss.LabelSmoothingCrossEntropy(SMOOTHING)
    model.train()

    def step() -> float:
        loss = loss_of(model(images), targets)
        loss.backward()
        timm.utils.dispatch_clip_grad(model.parameters(), value=LIMIT, mode="norm")
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            average.update(model)
        return loss.item()

    return step, kernel(optimizer)


def ours(model, images, targets, opt: str, lr: float, ema: bool, folder: str) -> tuple[Callable[[], float], str]:
    import torch

    from opsin.data.loader import Batch
    from opsin.loss import create_loss
    from opsin.train.build import build_optimizer
    from opsin.train.checkpoint import RunDirectory
    from opsin.train.clip import make_clip
    from opsin.train.config import from_dict
    from opsin.train.distributed import World
    from opsin.train.ema import Ema
    from opsin.train.loop import Run
    from opsin.train.task import Task

    config = from_dict({"optim": {"opt": opt, "lr": lr, "weight_decay": DECAY, "clip_grad": LIMIT}})
    task = Task("single", None, 1000, create_loss(smoothing=SMOOTHING), create_loss(), "top1")
    no_data: dict = {"scheduler": None, "train_loader": None, "eval_loader": None}  # which one step does not need
    run = Run(
        config, world=World(torch.device("cpu")), directory=RunDirectory(folder), task=task, model=model,
        forward=model, optimizer=build_optimizer(config, model), ema=Ema(model, config.run.ema_decay) if ema else None,
        clip=make_clip(LIMIT), **no_data,
    )  # fmt: skip
    run.stop.release()
    run.begin_epoch()
    batch = Batch(images, targets, torch.arange(len(images)))
    return lambda: run.learn([batch]), kernel(run.optimizer)


def _row(arch: str, opt: str, lr: float, ema: bool, rounds: int) -> Row:
    import timm
    import torch

    import opsin

    torch.manual_seed(0)
    peer = timm.create_model(arch)
    model = opsin.create_model(arch)
    model.load_state_dict(peer.state_dict())
    data = torch.randn(BATCH, 3, 224, 224), torch.randint(1000, (BATCH,))
    with tempfile.TemporaryDirectory() as folder:
        peer_step, peer_kernel = theirs(peer, *data, opt, lr, ema)
        step, own_kernel = ours(model, *data, opt, lr, ema, folder)
        losses = [(peer_step(), step()) for _ in range(STEPS)]
        error = max(abs(a - b) / abs(a) for a, b in losses)
        name = f"{arch}, {opt}{', average' if ema else ''} ({peer_kernel} / {own_kernel}; {error:.0e})"
        return compare(name, peer_step, step, rounds=rounds, warm_up=False)


def run(rounds: int) -> list[Row]:
    import torch

    torch.set_num_threads(1)
    return [_row(*case, rounds) for case in CASES]
