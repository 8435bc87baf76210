"""Learning from a teacher: a trained model beside the one that learns, and what the loss is then."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opsin.data.preprocess import Preprocess
from opsin.errors import OpsinError
from opsin.factory import create_model
from opsin.inference.predictor import Predictor, model_name
from opsin.loss import FeatureDistillation, LogitDistillation, TokenDistillation
from opsin.models._chain import normalize_indices
from opsin.train.config import DistillSettings, TrainConfig
from opsin.train.distributed import World
from opsin.train.task import Task
from opsin.train.validate import output_places
from opsin.weights.artefact import read_config, read_task
from opsin.weights.sources import HUB_PREFIXES, LOCAL_PREFIX

__all__ = ["Distillation", "FeatureStudent", "Teacher", "build_distillation"]


class Teacher:
    """A trained model on the pictures of a student, normalised anew as it knows them; nothing of it is trained.

    Pictures are resized where it takes one size alone. Its first convolution is adapted to their channels.

    Args:
        source: as `opsin.load` takes it.
        pictures: how the student's are prepared.
        device: where to compute.

    Raises:
        OpsinError: no such model, or its weights cannot be read.
    """

    def __init__(self, source: str, pictures: Preprocess, device: torch.device) -> None:
        name = model_name(source)
        packaged = name.startswith((*HUB_PREFIXES, LOCAL_PREFIX))
        self.source, self.task = source, read_task(read_config(name))[0] if packaged else "single"
        self.model: Any = create_model(name, pretrained=True, in_chans=pictures.channels)
        self.model.to(device).eval().requires_grad_(False)
        own, config = Preprocess.from_model(self.model), getattr(self.model, "config", None)
        fixed = hasattr(config, "img_size") and not getattr(config, "dynamic_img_size", False)
        self.size = own.input_size[1:] if fixed else None
        self.same = (own.mean, own.std) == (pictures.mean, pictures.std)
        means, stds = (
            torch.tensor(both, device=device)[:, :, None, None]
            for both in ((pictures.mean, own.mean), (pictures.std, own.std))
        )
        self.gain, self.shift = stds[0] / stds[1], (means[0] - means[1]) / stds[1]
        self.places: Tensor | None = None

    def match(self, reader: Any) -> None:
        """Let `logits` give the classes of a dataset in its order; raises `OpsinError` where they do not fit."""
        if not self.model.num_classes or self.task != reader.task:
            what = f"learnt a {self.task} task, not {reader.task}" if self.model.num_classes else "has no classifier"
            raise OpsinError(f"the teacher {self.source} {what}: take another one, or distill feature")
        labels = [label.name for label in Predictor(self.model).labels]
        try:
            self.places = torch.from_numpy(output_places(labels, reader)).to(self.gain.device)
        except OpsinError as error:
            raise OpsinError(
                f"the teacher {self.source} has other classes; distill feature needs none.\n{error}"
            ) from None

    def prepare(self, images: Tensor) -> Tensor:
        """The student's pictures (B, C, H, W) as the teacher takes them."""
        images = images if self.same else images * self.gain + self.shift
        if self.size is not None and images.shape[2:] != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", align_corners=False, antialias=True)
        return images

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Of the student's pictures: (B, classes), float32."""
        return self.model(self.prepare(images)).float()[:, self.places]

    @torch.no_grad()
    def features(self, images: Tensor, levels: list[int]) -> list[Tensor]:
        """Maps (B, C, H, W) of the student's pictures."""
        return self.model.forward_intermediates(self.prepare(images), levels, stop_early=True, intermediates_only=True)


class FeatureStudent(nn.Module):
    """A student with the layers that take its features to the teacher's: what is trained, compiled and wrapped."""

    def __init__(self, model: Any, levels: list[int], distance: FeatureDistillation) -> None:
        super().__init__()
        self.model, self.levels, self.distance = model, levels, distance

    def forward(self, images: Tensor, theirs: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The student's outputs, and how far its features are from the teacher's."""
        final, ours = self.model.forward_intermediates(images, self.levels)
        return self.model.forward_head(final), self.distance(ours, theirs)

    def get_classifier(self) -> Any:
        """The student's: adaptive clipping spares it."""
        return self.model.get_classifier()


class Distillation:
    """The loss of a run with a teacher.

    Attributes:
        kind: as in `DistillSettings.distill`.
        teacher: the trained model.
        learner: what is trained: the student, or a `FeatureStudent` that holds it.
        projections: what is trained beside the student: empty but for features.
        criterion: of (outputs, targets, teacher's logits), for features of (outputs, targets).
        weight: of the distance between features.
    """

    def __init__(self, kind: str, teacher: Teacher, learner: nn.Module, criterion: nn.Module, weight: float) -> None:
        self.kind, self.teacher, self.learner, self.criterion, self.weight = kind, teacher, learner, criterion, weight
        self.projections = learner.distance if isinstance(learner, FeatureStudent) else nn.ModuleList()

    def loss(self, forward: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch; `forward` is the learner as it is called in training, compiled or wrapped."""
        if isinstance(self.learner, FeatureStudent):
            outputs, apart = forward(images, self.teacher.features(images, self.learner.levels))
            return self.criterion(outputs, targets) + self.weight * apart
        return self.criterion(forward(images), targets, self.teacher.logits(images))


def build_distillation(
    config: TrainConfig, world: World, model: nn.Module, task: Task, reader: Any, pictures: Preprocess
) -> Distillation | None:
    """What a configuration says of a teacher; None without one. A student with a token then answers with both heads.

    Args:
        model: the student, on its device.
        reader: the training set, whose classes the teacher's are matched to.
        pictures: how the student's pictures are prepared.

    Raises:
        OpsinError: a task, a student or a teacher that does not go with the others.
    """
    d = config.distill
    if d.teacher is None:
        return None
    if task.kind not in ("single", "multi"):
        raise OpsinError(f"a teacher is for one label or several a picture, not for {task.kind}")
    if d.distill == "token":
        _train_token(model, config.model.model)
    teacher = Teacher(d.teacher, pictures, world.device)
    if config.model.channels_last:
        teacher.model.to(memory_format=torch.channels_last)
    if d.distill == "feature":
        learner = _feature_student(model, config.model.model, teacher, d).to(world.device)
        weight = 1.0 if d.feature_weight is None else d.feature_weight
        return Distillation(d.distill, teacher, learner, task.train_loss, weight)
    teacher.match(reader)
    options = {name: value for name in ("alpha", "temperature") if (value := getattr(d, name)) is not None}
    make = TokenDistillation if d.distill == "token" else LogitDistillation
    criterion = make(task.train_loss, hard=d.hard, multi_label=task.kind == "multi", **options)
    return Distillation(d.distill, teacher, model, criterion, 0.0)


def _train_token(model: Any, name: str) -> None:
    problem = f"{name} has no distillation token: take a model that has, such as deit_tiny_distilled_patch16_224, or "
    problem += "distill logit"
    if not hasattr(model, "set_distilled_training"):
        raise OpsinError(problem)
    try:
        model.set_distilled_training()
    except ValueError as error:  # built without it
        raise OpsinError(f"{problem} ({error})") from None


def _feature_student(model: Any, name: str, teacher: Teacher, settings: DistillSettings) -> FeatureStudent:
    levels, channels = list(settings.levels or (-1,)), []
    for one, called in ((model, f"the student {name}"), (teacher.model, f"the teacher {teacher.source}")):
        if not (hasattr(one, "feature_levels") and hasattr(one, "forward_intermediates")):
            raise OpsinError(f"{called} does not tell its features apart: distill logit")
        try:
            channels.append(
                [one.feature_levels()[i].num_chs for i in normalize_indices(levels, len(one.feature_levels()))]
            )
        except (IndexError, ValueError) as error:
            raise OpsinError(f"levels {levels} of {called}: {error}") from None
    return FeatureStudent(model, levels, FeatureDistillation(*channels))
