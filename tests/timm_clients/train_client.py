"""A training script as people write them for timm: options, optimizer, schedule, average, scaler, saver, summary."""

import argparse
import csv
import sys
from pathlib import Path

import torch
from common import RESULTS, fill, finish, note
from timm import utils
from timm.layers import convert_splitbn_model, convert_sync_batchnorm, set_fast_norm  # noqa: F401
from timm.loss import JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy  # noqa: F401
from timm.models import create_model, load_checkpoint, model_parameters, resume_checkpoint, safe_model_name
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.utils import ApexScaler, NativeScaler  # noqa: F401

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="resnet10t")
parser.add_argument("--opt", default="sgd")
parser.add_argument("--opt-eps", type=float, default=None)
parser.add_argument("--opt-betas", type=float, nargs="+", default=None)
parser.add_argument("--momentum", type=float, default=0.9)
parser.add_argument("--weight-decay", type=float, default=2e-2)
parser.add_argument("--lr", type=float, default=0.02)
parser.add_argument("--layer-decay", type=float, default=None)
parser.add_argument("--opt-kwargs", nargs="*", default={}, action=utils.ParseKwargs)
parser.add_argument("--sched", default="cosine")
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--warmup-epochs", type=int, default=1)
parser.add_argument("--warmup-lr", type=float, default=1e-3)
parser.add_argument("--min-lr", type=float, default=1e-4)
parser.add_argument("--cooldown-epochs", type=int, default=1)
parser.add_argument("--lr-noise", type=float, nargs="+", default=None)
parser.add_argument("--clip-grad", type=float, default=1.0)
parser.add_argument("--clip-mode", default="norm")
parser.add_argument("--device", default="cpu")
parser.add_argument("--batch-size", type=int, default=6)
utils.add_bool_arg(parser, "sched-on-updates")

STEPS = 3


def train_epoch(epoch, model, batches, optimizer, loss_fn, scheduler, scaler, ema, args):
    losses, updates = utils.AverageMeter(), epoch * STEPS
    model.train()
    for x, y in batches:
        loss = loss_fn(model(x), y)
        optimizer.zero_grad()
        parameters = model_parameters(model, exclude_head="agc" in args.clip_mode)
        scaler(loss, optimizer, clip_grad=args.clip_grad, clip_mode=args.clip_mode, parameters=parameters)
        updates += 1
        ema.update(model, step=updates)
        losses.update(loss.item(), len(x))
        RATES.append([group["lr"] * group.get("lr_scale", 1.0) for group in optimizer.param_groups])
        LOSSES.append(loss.item())
        scheduler.step_update(num_updates=updates, metric=losses.avg)
    return {"loss": losses.avg}


@torch.no_grad()
def validate(model, batches):
    top1, top5 = utils.AverageMeter(), utils.AverageMeter()
    model.eval()
    for x, y in batches:
        one, five = utils.accuracy(model(x), y, topk=(1, 5))
        top1.update(one.item(), len(x))
        top5.update(five.item(), len(x))
    return {"top1": top1.avg, "top5": top5.avg}


def run(name, *options):
    LOSSES.clear()
    RATES.clear()
    args = parser.parse_args(options)
    device = utils.init_distributed_device(args)
    assert utils.is_primary(args)
    assert not args.distributed
    utils.random_seed(7, args.rank)
    model = fill(name, create_model(args.model, num_classes=10)).to(device)
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    ema = utils.ModelEmaV3(model, decay=0.9, use_warmup=True, device=device)
    scheduler, epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=STEPS)
    generator, scaler = torch.Generator().manual_seed(3), NativeScaler(device=device.type)
    size = (args.batch_size, 3, 32, 32)
    batches = [
        (torch.randn(size, generator=generator), torch.randint(10, size[:1], generator=generator)) for _ in range(STEPS)
    ]
    folder = utils.get_outdir(str(FOLDER), safe_model_name(name), inc=True)
    saver = utils.CheckpointSaver(
        model, optimizer, args=args, model_ema=ema, amp_scaler=scaler, checkpoint_dir=folder, recovery_dir=folder,
        decreasing=False, max_history=2,
    )  # fmt: skip
    loss_fn = LabelSmoothingCrossEntropy(0.1)
    for epoch in range(epochs):
        scores = train_epoch(epoch, model, batches, optimizer, loss_fn, scheduler, scaler, ema, args)
        judged = validate(utils.unwrap_model(ema), batches)
        scheduler.step(epoch + 1, judged["top1"])
        lr = sum(group["lr"] for group in optimizer.param_groups) / len(optimizer.param_groups)
        utils.update_summary(epoch, scores, judged, f"{folder}/summary.csv", lr=lr, write_header=epoch == 0)
        saver.save_recovery(epoch, STEPS)
        best, best_epoch = saver.save_checkpoint(epoch, metric=judged["top1"])
    files = sorted(path.name for path in Path(folder).iterdir())
    with open(f"{folder}/summary.csv", newline="") as file:
        table = list(csv.DictReader(file))
    again = create_model(args.model, num_classes=10)
    opt_again = create_optimizer_v2(again, **optimizer_kwargs(cfg=args), **args.opt_kwargs)
    begin = resume_checkpoint(again, f"{folder}/last.pth.tar", opt_again, NativeScaler(device="cpu"), log_info=False)
    averaged = create_model(args.model, num_classes=10)
    load_checkpoint(averaged, f"{folder}/last.pth.tar", use_ema=True)
    note(f"{name} losses", torch.tensor(LOSSES))
    note(f"{name} rates", torch.tensor(RATES, dtype=torch.float64))
    note(f"{name} weights", *(value.float() for value in again.state_dict().values()))
    note(f"{name} average", *(v.float() for k, v in averaged.state_dict().items() if "tracked" not in k))
    note(f"{name} scores", torch.tensor([best, best_epoch, begin, epochs, len(opt_again.state_dict()["state"])]))
    note(f"{name} table", torch.tensor([[float(value) for value in row.values()] for row in table]))
    RESULTS["keys"][f"{name} files"] = dict.fromkeys(files)
    RESULTS["keys"][f"{name} columns"] = dict.fromkeys(table[0])


LOSSES: list = []
RATES: list = []
FOLDER = Path(sys.argv[1]).with_suffix("")
torch.set_num_threads(1)
run("plain")
run("updates", "--opt", "lamb", "--sched-on-updates", "--lr-noise", "0.3", "0.9", "--lr", "0.01", "--clip-mode", "agc")
run(
    "layers", "--opt", "adamw", "--lr", "1e-3", "--layer-decay", "0.7", "--opt-betas", "0.9", "0.99", "--opt-eps",
    "1e-6", "--sched", "plateau", "--opt-kwargs", "amsgrad=True", "--clip-mode", "value",
)  # fmt: skip
finish()
