"""From a configuration to the parts of a run, one function a part."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from opsin.data.augment.erase import RandomErasing
from opsin.data.augment.mix import Mix
from opsin.data.dataset import ImageDataset, StreamDataset, create_dataset
from opsin.data.loader import Loader, create_loader
from opsin.data.preprocess import Preprocess
from opsin.data.readers import Reader, StreamReader, align_heads, open_reader, reader_options
from opsin.data.samplers import Order, Repeated, Weighted, class_weights
from opsin.data.transforms import EvalTransform, TrainTransform
from opsin.errors import OpsinError, warn_user
from opsin.factory import create_model
from opsin.inference.predictor import architecture_of, is_saved
from opsin.layers.sync_norm import convert_sync_batchnorm
from opsin.optim import create_optimizer, optimizer_info, param_groups
from opsin.scheduler import create_scheduler
from opsin.train.check import check_takes, source_of, wrong_values
from opsin.train.checkpoint import RunDirectory
from opsin.train.clip import make_clip
from opsin.train.config import TrainConfig, load_config, save_config, to_dict
from opsin.train.config.rules import settle
from opsin.train.distill import build_distillation
from opsin.train.distributed import World, seed_everything
from opsin.train.ema import Ema
from opsin.train.freeze import average_gradients, freeze
from opsin.train.heads import HeadsTask
from opsin.train.loop import Callback, Run
from opsin.train.second_order import check_second_order
from opsin.train.task import Task
from opsin.train.trackers import create_trackers

__all__ = ["build_run", "open_sets"]

TINY, TINY_SIZE = 64, 32  # pictures with sides below 64 pixels are trained at 32 unless a size is given


def build_run(config: TrainConfig, world: World, *, callbacks: Sequence[Callback] = ()) -> Run:
    """All parts of a run, ready for `fit`; its directory is made and taken, last of all: what cannot be built leaves no
    trace, and what another run left there is not overwritten in vain.

    Raises:
        OpsinError: settings that contradict each other, data that cannot be learnt from, a directory in use.
    """
    config, given_way = settle(config)
    config.check()
    check_second_order(config, world)
    trackers = create_trackers(config.run.trackers)
    seed_everything(config.run.seed, world.rank, deterministic=config.run.deterministic)
    train_reader, eval_reader = open_sets(config)
    config, more = settle(config, train_reader.task if config.loss.task == "auto" else config.loss.task)
    for line in [*given_way, *more] if world.first else ():
        warn_user(line)
    task = Task.of(train_reader, config).to(world.device)
    if isinstance(task, HeadsTask):
        task.check_judge(eval_reader)
    model = build_model(config, train_reader, task)
    preprocess = preprocess_of(config, model, train_reader)
    judged = at_size(preprocess, config.model.eval_img_size)
    train_loader, eval_loader = build_loaders(config, world, train_reader, eval_reader, preprocess, judged, task)
    model.to(world.device, memory_format=torch.channels_last if config.model.channels_last else torch.preserve_format)
    check_takes(model, [preprocess, judged], config.model.model, world.device)
    freeze(model, config.model.freeze)
    distill = build_distillation(config, world, model, task, train_reader, preprocess)
    learner = distill.learner if distill else model
    world.align(learner)
    r = config.run
    ema = Ema(model, r.ema_decay, debias=r.ema_debias) if r.ema else None
    if config.run.fsdp:
        from opsin.train.sharded import check_optimizer, shard

        for one in (model, ema.average) if ema else (model,):
            shard(one, world)
        check_optimizer(partial(build_optimizer, replace(config, optim=replace(config.optim, layer_decay=None))), world)
    optimizer = build_optimizer(config, model, distill.projections if distill else None)
    updates = -(-len(train_loader) // config.optim.accumulate)
    s = config.schedule
    scheduler = create_scheduler(
        optimizer, s.sched, total_steps=s.epochs * updates, warmup_steps=round(s.warmup_epochs * updates),
        warmup_lr=s.warmup_lr, min_lr=s.min_lr, steps_per_epoch=updates,
        **{"lower_is_better": task.lower_is_better, **s.sched_args},
    )  # fmt: skip
    forward = wrap(config, world, learner)
    directory = open_directory(config, world)
    return Run(
        begun(config), world=world, directory=directory, task=task, model=model, forward=forward,
        optimizer=optimizer, scheduler=scheduler, train_loader=train_loader, eval_loader=eval_loader, ema=ema,
        clip=make_clip(config.optim.clip_grad, config.optim.clip_mode), amp_dtype=amp_dtype(config, world),
        distill=distill, callbacks=[*callbacks, *trackers],
    )  # fmt: skip


# --- data -----------------------------------------------------------------------------------------------------------


def open_sets(config: TrainConfig) -> tuple[Reader | StreamReader, Reader | StreamReader]:
    """The readers of training and validation, with the same classes, and a length that the schedule can count on."""
    d = config.data
    if not d.data:
        raise OpsinError("no data given: name a folder, a list, a tar, wds:…, hf:… or digits")
    options: dict[str, Any] = {"class_map": d.class_map, "holdout": d.holdout, "seed": config.run.seed}
    options |= d.reader_args | ({"target": d.target} if d.target else {})
    if config.loss.task != "auto" and "task" in (reader_options(d.data) or ()):
        options["task"] = config.loss.task
    train = open_reader(d.data, split=d.train_split, **options)
    judge = open_reader(d.data, split=d.val_split, **options)
    if train.heads:
        judge = align_heads(judge, train.heads, owner="training")  # type: ignore[arg-type]
    if train.classes is not None and judge.classes is not None and train.classes != judge.classes:
        strange = [name for name in judge.classes if name not in train.classes]
        if strange:
            raise OpsinError(f"{judge}: classes that training does not have: {', '.join(strange[:12])}")
        judge = open_reader(d.data, split=d.val_split, **options | {"class_map": train.classes})
    if isinstance(train, StreamReader):
        train.length = d.epoch_length or train.length
        if train.length is None:
            raise OpsinError(
                f"{train}: a stream of unknown length; --epoch-length N says how many samples an epoch has"
            )
    elif d.epoch_length is not None:
        raise OpsinError(f"epoch_length is for a stream of unknown length; {train} has {len(train)} samples")
    return train, judge


def _first_image(reader: Reader | StreamReader) -> Any:
    record = next(iter(reader.stream())) if isinstance(reader, StreamReader) else reader[0]
    return None if isinstance(record, Exception) else record.image


def preprocess_of(config: TrainConfig, model: Any, reader: Reader | StreamReader) -> Preprocess:
    """The model's own preprocessing, at the size that is asked for or that tiny pictures call for."""
    made = Preprocess.from_model(model)
    size = config.model.img_size
    if size is None and not (config.model.pretrained or config.model.checkpoint):
        image = _first_image(reader)
        if isinstance(image, np.ndarray) and max(image.shape[:2]) < TINY and not hasattr(model.config, "img_size"):
            size = TINY_SIZE
    return at_size(made, size)


def at_size(fit: Preprocess, size: int | None) -> Preprocess:
    """The same preprocessing for pictures of another size; of tiny ones nothing is cropped away."""
    if size is None:
        return fit
    crop = 1.0 if size <= TINY else fit.crop_pct
    return replace(fit, input_size=(fit.channels, size, size), crop_pct=crop)


def build_loaders(
    config: TrainConfig, world: World, train: Any, judge: Any, preprocess: Preprocess, judged: Preprocess, task: Task
) -> tuple[Loader, Loader]:
    """The batches of training, prepared by `preprocess`, and of validation, by `judged`."""
    d, a, seed = config.data, config.augment, config.run.seed
    transform = TrainTransform(
        preprocess.input_size[1:], scale=a.scale, ratio=a.ratio, hflip=a.hflip, vflip=a.vflip,
        color_jitter=a.color_jitter, auto_augment=a.auto_augment, interpolation=a.train_interpolation,
        num_aug_splits=a.aug_splits, mean=preprocess.mean,
    )  # fmt: skip
    shared: dict[str, Any] = {
        "num_workers": d.workers, "rank": world.rank, "world_size": world.size,
        "device": world.device, "channels_last": config.model.channels_last, "strict": d.strict,
        "max_skips": d.max_skips, "seed": seed,
    }  # fmt: skip
    train_set = create_dataset(train, transform=transform, seed=seed)
    order = _order(config, train)
    train_loader = create_loader(
        train_set, batch_size=d.batch_size, shuffle=order is None, order=order, erase=_erasing(config),
        mix=_mixing(config, task), drop_last=_fills_a_step(train_set, d.batch_size * world.size, world),
        preprocess=preprocess, **shared,
    )  # fmt: skip
    eval_set = create_dataset(judge, transform=EvalTransform(judged), seed=seed)
    eval_loader = create_loader(eval_set, batch_size=d.eval_batch_size or d.batch_size, preprocess=judged, **shared)
    return train_loader, eval_loader


def _fills_a_step(dataset: ImageDataset | StreamDataset, step: int, world: World) -> bool:
    """The last, smaller step of an epoch is left out, but for a dataset so small that it would be the only one."""
    known = len(dataset) if isinstance(dataset, ImageDataset) else None
    if world.size > 1 and known is not None and known < step:
        raise OpsinError(f"{known} samples are fewer than one step of all ranks ({step}); lower batch_size")
    return known is None or known >= step


def _order(config: TrainConfig, reader: Any) -> Order | None:
    d, seed = config.data, config.run.seed
    if not (d.balance or d.repeats > 1):
        return None
    if isinstance(reader, StreamReader):
        raise OpsinError("balance and repeats choose samples, which a stream does not allow")
    if d.repeats > 1:
        return Repeated(len(reader), d.repeats, seed)
    if reader.task not in ("single", "multi"):
        raise OpsinError(f"balance is for classes, not for {reader.task} targets")
    return Weighted(class_weights(reader.targets, len(reader.classes), power=d.balance), seed=seed)


def _erasing(config: TrainConfig) -> RandomErasing | None:
    a = config.augment
    return RandomErasing(a.reprob, mode=a.remode, num_splits=a.aug_splits) if a.reprob else None


def _mixing(config: TrainConfig, task: Task) -> Callable[..., Any] | None:
    a = config.augment
    if not (a.mixup or a.cutmix):
        return None
    mix = Mix(
        mixup_alpha=a.mixup, cutmix_alpha=a.cutmix, prob=a.mixup_prob, switch_prob=a.mixup_switch_prob,
        mode=a.mixup_mode, num_classes=task.outputs, multi_label=task.kind == "multi",
        label_smoothing=0.0,  # the loss smooths: it does so as well once nothing is mixed any more
    )  # fmt: skip
    if not isinstance(task, HeadsTask):
        return mix
    return lambda images, targets, generator: mix(images, task.shares(targets), generator)


# --- model ----------------------------------------------------------------------------------------------------------


def build_model(config: TrainConfig, reader: Any, task: Task) -> Any:
    """The model with a head for the task, its first convolution for the pictures' channels."""
    m = config.model
    in_chans = m.in_chans
    if in_chans is None:
        image = _first_image(reader)
        in_chans = image.shape[2] if isinstance(image, np.ndarray) and image.ndim == 3 else 3
    options: dict[str, Any] = {"in_chans": in_chans, **m.model_args}
    options |= {k: v for k in ("drop_rate", "drop_path_rate") if (v := getattr(m, k)) is not None}
    if m.img_size is not None and takes_img_size(m.model):
        options["img_size"] = m.img_size
    with wrong_values("model_args", m.model_args):
        model: Any = create_model(
            source_of(m.model), pretrained=m.checkpoint or m.pretrained, num_classes=task.outputs, **options
        )
    if m.grad_checkpointing:
        model.set_grad_checkpointing()
    if m.split_bn:
        from opsin.train.split_bn import split_batch_norm

        model = split_batch_norm(model, config.augment.aug_splits)
    return model


def takes_img_size(name: str) -> bool:
    """Whether a model is built for one size of pictures."""
    from opsin.models._index import MODELS
    from opsin.models._registry import find_family

    architecture = architecture_of(source_of(name))
    return architecture in MODELS and "img_size" in find_family(architecture).variants[architecture].names()


def build_optimizer(
    config: TrainConfig, model: nn.Module, projections: nn.Module | None = None
) -> torch.optim.Optimizer:
    """The optimizer of a model and of what is trained beside it, in groups of its own."""
    o = config.optim
    options = o.opt_args if o.momentum is None else {"momentum": o.momentum, **o.opt_args}
    groups = param_groups(model, weight_decay=o.weight_decay, layer_decay=o.layer_decay)
    if projections is not None:
        beside = param_groups(projections, weight_decay=o.weight_decay)
        groups += [group | {"name": f"projections.{group['name']}"} for group in beside]
    made = create_optimizer(groups, o.opt, lr=o.lr, weight_decay=o.weight_decay, **options)
    for group in made.param_groups:
        if config.run.fsdp and group.get("fused") and "fused" not in options:
            group["fused"], group["foreach"] = False, True  # torch's fused SGD does not know sharded weights
    return made


def wrap(config: TrainConfig, world: World, model: nn.Module) -> nn.Module:
    """What is called in training: compiled first, then wrapped for the other ranks."""
    if config.model.sync_bn and world.size == 1:
        print(
            "opsin: sync_bn has no other rank to share batch statistics with: one process trains alone", file=sys.stderr
        )
    elif config.model.sync_bn:
        if world.device.type != "cuda":
            raise OpsinError("sync_bn needs GPUs: torch has no synchronised batch norm on the CPU")
        convert_sync_batchnorm(model)
    forward: Any = torch.compile(model) if config.model.compile else model
    if world.size > 1 and not config.run.fsdp:
        forward = average_gradients(forward, world)
    return forward


def amp_dtype(config: TrainConfig, world: World) -> torch.dtype | None:
    match config.run.amp:
        case "none":
            return None
        case "auto":
            gpu = world.device.type == "cuda" and torch.cuda.is_bf16_supported()
            return torch.bfloat16 if gpu and not optimizer_info(config.optim.opt).second_order else None
        case name:
            return getattr(torch, name)


# --- the directory --------------------------------------------------------------------------------------------------


def open_directory(config: TrainConfig, world: World) -> RunDirectory:
    """Make and take the run directory. One with another configuration is refused unless it is overwritten."""
    place = Path(config.data.data.rstrip("/")).name.partition(":")[0]
    source = source_of(config.model.model)
    path = config.run.output or Path("runs") / f"{architecture_of(source) if is_saved(source) else source}-{place}"
    directory = RunDirectory(path)

    def take() -> None:
        try:
            directory.open(overwrite=config.run.overwrite)
            if directory.begun() and directory.config.exists():
                old, new = to_dict(load_config(directory.config)), to_dict(config)
                _check_same(old, new, path)
            save_config(begun(config), directory.config)
        except BaseException:
            directory.close()
            raise

    world.share(take)
    return directory


def begun(config: TrainConfig) -> TrainConfig:
    """The configuration of a run that has begun: to overwrite what was there is done, and never to be repeated."""
    return replace(config, run=replace(config.run, overwrite=False))


def _check_same(old: dict[str, Any], new: dict[str, Any], path: Path) -> None:
    """A run goes on with the settings it began with, but for where it runs and what it says on the way. Not with more
    epochs either: its learning rate has come down over those that it knew of."""
    free = {("run", "output"), ("run", "overwrite"), ("run", "save_every"), ("run", "log_every"), ("run", "device"),
            ("run", "trackers"), ("data", "workers")}  # fmt: skip
    changed = [
        f"{group}.{key} was {value!r}, is {new[group][key]!r}"
        for group, settings in old.items()
        for key, value in settings.items()
        if (group, key) not in free and new[group][key] != value
    ]
    if changed:
        longer = new["schedule"]["epochs"] != old["schedule"]["epochs"]
        more = f"; --checkpoint {path / 'best'} with another --output trains its model further" if longer else ""
        raise OpsinError(
            f"{path} holds a run with other settings ({'; '.join(changed[:6])}). Give another --output, or --overwrite "
            f"to begin anew{more}"
        )
