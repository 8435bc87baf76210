"""Everything a training run can be told, as nested dataclasses."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from opsin.bounds import AboveZero, Bounds, Count, FromZero, Index, Share, ShareAboveZero, ShareBelowOne
from opsin.errors import OpsinError
from opsin.train.config.pairs import Pairs
from opsin.train.config.rules import faults

__all__ = [
    "AugmentSettings",
    "DataSettings",
    "DistillSettings",
    "LossSettings",
    "ModelSettings",
    "OptimSettings",
    "RunSettings",
    "ScheduleSettings",
    "TrainConfig",
]


@dataclass(kw_only=True)
class ModelSettings:
    """The model.

    Attributes:
        model: name, as `opsin.create_model` takes it; or a folder, such as the `best` of a run, whose weights a recipe
            then begins with.
        pretrained: begin with published weights.
        checkpoint: begin with these weights: a file, a folder or `hf-hub:org/repo`.
        in_chans: channels of the pictures; None is what the data has (1 for grey digits) or 3.
        img_size: side of the pictures; None is what the weights were made for.
        eval_img_size: side of the pictures that validation and the finished model see; None is that of training.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth.
        model_args: other arguments of the model.
        freeze: stages from the stem on that stay as they are; -1 trains the head alone.
        unfreeze_epochs: epochs after which one more stage is set free, from the head on; 0 keeps all frozen.
        grad_checkpointing: compute activations again instead of keeping them.
        channels_last: memory layout of pictures and weights.
        compile: compile the model with torch.compile before it is wrapped.
        sync_bn: batch statistics over all ranks.
        split_bn: batch norm of its own for each augmentation split but the first.
    """

    model: str = "resnet18"
    pretrained: bool = False
    checkpoint: str | None = None
    in_chans: Count | None = None
    img_size: Count | None = None
    eval_img_size: Count | None = None
    drop_rate: ShareBelowOne | None = None
    drop_path_rate: ShareBelowOne | None = None
    model_args: Pairs = field(default_factory=dict)
    freeze: Annotated[int, Bounds(-1)] = 0
    unfreeze_epochs: Index = 0
    grad_checkpointing: bool = False
    channels_last: bool = False
    compile: bool = False
    sync_bn: bool = False
    split_bn: bool = False


@dataclass(kw_only=True)
class DataSettings:
    """The data.

    Attributes:
        data: what `opsin.data.open_reader` takes: a folder, a list, a tar, `wds:…`, `hf:…`, `digits`.
        train_split: name of the split to learn from.
        val_split: name of the split to judge by.
        class_map: file that numbers the classes.
        target: column of the labels, where the data has columns; of several, not all numbers, each is a head.
        reader_args: other arguments of the reader, such as root and separator of a list.
        holdout: share held out for validation where the data has no such split.
        epoch_length: samples of an epoch, of a stream that does not know them itself. The schedule counts on it; an
            epoch lasts as long as the stream.
        batch_size: samples a step on each rank.
        eval_batch_size: the same for validation; None is `batch_size`.
        workers: processes that read and decode on each rank; None is one per core.
        repeats: differently augmented copies of each sample in a batch (repeated augmentation).
        balance: 0 shows samples as often as they come, 1 shows all classes equally often.
        strict: stop at the first picture that cannot be read.
        max_skips: stop when more than this share of the pictures (or, from 1 on, this many) cannot be read. 10 are
            always borne where it is a share, which says little of a few pictures; 0 bears none.
    """

    data: str = ""
    train_split: str = "train"
    val_split: str = "validation"
    class_map: str | None = None
    target: tuple[str, ...] = ()
    reader_args: Pairs = field(default_factory=dict)
    holdout: float = 0.1
    epoch_length: Count | None = None
    batch_size: Count = 64
    eval_batch_size: Count | None = None
    workers: Index | None = None
    repeats: Count = 1
    balance: FromZero = 0.0
    strict: bool = False
    max_skips: FromZero = 0.1


@dataclass(kw_only=True)
class AugmentSettings:
    """Augmentation of the training pictures; the names and strings are timm's.

    Attributes:
        scale: share of the area that a crop covers, least and most.
        ratio: aspect ratio of a crop, least and most.
        hflip: chance to mirror left and right.
        vflip: chance to mirror top and bottom.
        color_jitter: how much brightness, contrast and saturation vary.
        auto_augment: a policy, such as rand-m9-mstd0.5-inc1, 3a, augmix-m5-w4-d2.
        aug_splits: versions of each picture, the first without augmentation (for the JSD loss).
        train_interpolation: filter of the resizing; random draws bilinear or bicubic.
        reprob: chance to erase a part.
        remode: what is put there: const, rand or pixel.
        mixup: alpha of mixup; 0 is none.
        cutmix: alpha of cutmix; 0 is none.
        mixup_prob: chance that a batch is mixed.
        mixup_switch_prob: chance of cutmix where both are on.
        mixup_mode: batch, pair or elem.
        mixup_off_epoch: epoch from which nothing is mixed; 0 is never.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: Share = 0.5
    vflip: Share = 0.0
    color_jitter: FromZero | None = 0.4
    auto_augment: str | None = None
    aug_splits: Index = 0
    train_interpolation: str = "random"
    reprob: Share = 0.0
    remode: Literal["const", "rand", "pixel"] = "pixel"
    mixup: FromZero = 0.0
    cutmix: FromZero = 0.0
    mixup_prob: Share = 1.0
    mixup_switch_prob: Share = 0.5
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    mixup_off_epoch: Index = 0


@dataclass(kw_only=True)
class LossSettings:
    """The loss.

    Attributes:
        task: what is learnt; auto is what the targets of the data are.
        loss: auto is cross entropy for one label, binary cross entropy for several, mean squares for numbers; see
            `opsin.loss.list_losses`.
        smoothing: of the labels.
        loss_args: other arguments of the loss.
        class_weights: 0 counts all classes alike, 1 weighs them by 1 / their number.
        head_weights: of the losses of several heads, by name; 1 where none is named. The settings above are for the
            heads whose kind they fit.
    """

    task: Literal["auto", "single", "multi", "regression", "heads"] = "auto"
    loss: str = "auto"
    smoothing: ShareBelowOne = 0.0
    loss_args: Pairs = field(default_factory=dict)
    class_weights: FromZero = 0.0
    head_weights: Pairs = field(default_factory=dict)


@dataclass(kw_only=True)
class DistillSettings:
    """Learning from another model as well.

    Attributes:
        teacher: the other model, as `opsin.load` takes it: a name, whose published weights are used, a folder, such as
            the `best` of a run, or `hf-hub:org/repo`.
        distill: what is learnt from it: its logits, by all of the student (logit) or by its distillation token (token,
            as DeiT does), or its features, beside the targets (feature).
        alpha: the teacher's share of the loss, the rest is the targets'; None is 0.5. Of logits and tokens.
        temperature: by which logits are softened; None is 3, or 1 for a token.
        hard: learn the teacher's best class instead, or of several labels those more likely than not.
        feature_weight: of the distance between features, 0 to 4, which is added to the loss; None is 1.
        levels: of features, the same numbers in both models, negative ones from the end; none is the last.
    """

    teacher: str | None = None
    distill: Literal["logit", "feature", "token"] = "logit"
    alpha: Share | None = None
    temperature: AboveZero | None = None
    hard: bool = False
    feature_weight: AboveZero | None = None
    levels: tuple[int, ...] = ()

    def faults(self) -> list[str]:
        """What contradicts itself here."""
        others = ["alpha", "temperature", "hard"] if self.distill == "feature" else ["feature_weight", "levels"]
        unset = DistillSettings()
        idle = [name for name in others if getattr(self, name) != getattr(unset, name)]
        wrong = []
        if self.teacher is None and self != unset:
            wrong.append("distillation is set up, but there is no teacher")
        if idle:
            wrong.append(f"distill {self.distill} makes no use of {', '.join(idle)}")
        if self.hard and self.temperature is not None:
            wrong.append("hard takes the teacher's best class, which no temperature changes")
        return wrong


@dataclass(kw_only=True)
class OptimSettings:
    """The optimizer.

    Attributes:
        opt: see `opsin.optim.list_optimizers`.
        lr: learning rate for a whole step of all ranks.
        weight_decay: not of biases, norms and what the model excepts.
        momentum: of those that have it.
        layer_decay: factor of the learning rate from each layer to the one before it.
        opt_args: other arguments of the optimizer.
        clip_grad: largest gradient; None does not clip.
        clip_mode: by norm, by value, or adaptively by the weights (agc).
        accumulate: batches whose gradients make one step.
    """

    opt: str = "adamw"
    lr: FromZero = 1e-3
    weight_decay: FromZero = 0.05
    momentum: ShareBelowOne | None = None
    layer_decay: ShareAboveZero | None = None
    opt_args: Pairs = field(default_factory=dict)
    clip_grad: AboveZero | None = None
    clip_mode: Literal["norm", "value", "agc"] = "norm"
    accumulate: Count = 1


@dataclass(kw_only=True)
class ScheduleSettings:
    """The learning rate over time.

    Attributes:
        sched: see `opsin.scheduler.list_schedules`.
        epochs: all of them, warm-up included.
        warmup_epochs: in which the rate rises from `warmup_lr`.
        warmup_lr: where it begins.
        min_lr: where it ends.
        sched_args: other arguments of the schedule.
    """

    sched: str = "cosine"
    epochs: Count = 30
    warmup_epochs: FromZero = 2.0
    warmup_lr: FromZero = 1e-6
    min_lr: FromZero = 1e-6
    sched_args: Pairs = field(default_factory=dict)


@dataclass(kw_only=True)
class RunSettings:
    """How and where the run goes.

    Attributes:
        output: the run directory; None is `runs/MODEL-DATA`. One that holds an unfinished run is continued.
        overwrite: begin anew in a directory that holds a run.
        seed: of everything random.
        deterministic: only algorithms that give the same bits each time.
        device: where to compute; None is a GPU if there is one.
        amp: none, bfloat16 or float16; auto is bfloat16 on a GPU that has it, for optimizers of the first order.
        ema: keep an average of the weights, judged beside them.
        ema_decay: its decay a step.
        ema_debias: begin with that decay and divide its beginning out, where else the decay warms up.
        metric: what decides which checkpoint is best; None is the task's own (top1, mAP, mae).
        patience: epochs without a better one after which to stop; 0 never stops.
        save_every: seconds between checkpoints within an epoch.
        log_every: steps between lines of the log.
        fsdp: shard weights, gradients and optimizer state over the ranks.
        trackers: where the numbers go as well: tensorboard, trackio, wandb.
    """

    output: Path | None = None
    overwrite: bool = False
    seed: Annotated[int, Bounds(0, 2**31 - 1)] = 42
    deterministic: bool = False
    device: str | None = None
    amp: Literal["auto", "none", "bfloat16", "float16"] = "auto"
    ema: bool = False
    ema_decay: ShareBelowOne = 0.9998
    ema_debias: bool = False
    metric: str | None = None
    patience: Index = 0
    save_every: FromZero = 120.0
    log_every: Count = 20
    fsdp: bool = False
    trackers: tuple[str, ...] = ()


@dataclass(kw_only=True)
class TrainConfig:
    """One training run.

    `base` is what a recipe said, defaults included: name of a setting -> value. While a setting still has that value,
    it gives way to what it does not fit; see `opsin.train.config.rules.settle`.
    """

    base = dict[str, Any]()  # no field: it is no setting

    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def check(self) -> None:
        """Raise `OpsinError` for values out of their bounds and settings that contradict each other, naming both."""
        wrong = faults(self)
        if wrong:
            raise OpsinError("; ".join(wrong))
        a, wrong = self.augment, self.distill.faults()
        if self.model.pretrained and self.model.checkpoint:
            wrong.append("pretrained and checkpoint both say where the weights come from")
        if self.schedule.warmup_epochs >= self.schedule.epochs:
            wrong.append(f"warmup_epochs {self.schedule.warmup_epochs} leaves nothing of {self.schedule.epochs} epochs")
        if str(self.run.metric).startswith("ema_") and not self.run.ema:
            plain = str(self.run.metric).removeprefix("ema_")
            wrong.append(
                f"metric {self.run.metric} is a score of the average of the weights: keep one with --ema, or take "
                f"--metric {plain}"
            )
        if self.model.split_bn and a.aug_splits < 2:
            wrong.append("split_bn needs aug_splits of at least 2")
        if a.aug_splits and (a.mixup or a.cutmix):
            wrong.append("mixup and cutmix would mix the aug_splits of a picture")
        if self.loss.loss == "jsd" and a.aug_splits < 2:
            wrong.append("the jsd loss compares aug_splits of a picture: at least 2")
        if self.data.repeats > 1 and self.data.balance:
            wrong.append("repeats and balance both choose the samples of an epoch")
        if self.run.fsdp and self.model.channels_last:
            wrong.append("fsdp splits weights by rows, which channels_last does not have in a row")
        if self.distill.teacher and self.loss.task == "regression":
            wrong.append("a teacher is for classes, not for regression")
        if self.distill.teacher and self.distill.distill == "feature":
            if self.run.fsdp:
                wrong.append("fsdp has no place for the layers between two models' features: distill logit, or no fsdp")
            if self.model.freeze == -1 and not self.model.unfreeze_epochs:
                wrong.append("features of a body that freeze -1 keeps as it is learn nothing from a teacher")
        if wrong:
            raise OpsinError("the configuration contradicts itself: " + "; ".join(wrong))
