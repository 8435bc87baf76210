"""How good a model is: scores over a whole dataset, with nothing trained.

model = create_model("resnet50", pretrained=True)
scores = validate(model, open_reader("folder:imagenet/val"))
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from opsin.catalog.labels import label_names
from opsin.data.dataset import create_dataset
from opsin.data.labels import TargetScale, match_classes, real_targets
from opsin.data.loader import create_loader
from opsin.data.preprocess import Preprocess
from opsin.data.readers import Head, Reader, StreamReader, align_heads
from opsin.data.transforms import EvalTransform
from opsin.errors import OpsinError, check_choice, warn_user
from opsin.inference.predictor import Predictor
from opsin.train.heads import HeadsTask
from opsin.train.task import Task

__all__ = ["CROPS", "TTA", "FiveCrops", "output_places", "validate"]

TTA = ("hflip", "crops")
CROPS = 5


@dataclass(frozen=True)
class FiveCrops:
    """The four corners and the middle of what is left of a picture before the evaluation transform crops it: uint8
    (5, C, H, W) (https://papers.nips.cc/paper/4824, section 4.1).

    Raises `OpsinError` for a preprocessing that crops nothing, so that all five would be the same.
    """

    preprocess: Preprocess
    exact: bool = False

    def __post_init__(self) -> None:
        fit = self.preprocess
        if self._whole().preprocess.input_size == fit.input_size:
            raise OpsinError(f"five crops need room around the middle: a crop_pct below 1, not {fit.crop_pct}")

    def _whole(self) -> EvalTransform:
        """The same picture as the evaluation transform takes, before its last crop."""
        fit = self.preprocess
        height, width = (max(int(side / fit.crop_pct), side) for side in fit.input_size[1:])
        return EvalTransform(replace(fit, input_size=(fit.channels, height, width), crop_pct=1.0), exact=self.exact)

    def __call__(self, image: Any, *, rng: Any = None, size: tuple[int, int] | None = None) -> Tensor:
        """Of one picture, as `EvalTransform` takes it; `rng` is there for the call's sake."""
        if size is not None:
            return FiveCrops(replace(self.preprocess, input_size=(self.preprocess.channels, *size)), self.exact)(image)
        whole = self._whole()(image)
        h, w = self.preprocess.input_size[1:]
        bottom, right = whole.shape[1] - h, whole.shape[2] - w
        corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
        return torch.stack([whole[:, top : top + h, left : left + w] for top, left in corners])


@torch.inference_mode()
def validate(
    model: nn.Module,
    reader: Reader | StreamReader,
    *,
    preprocess: Preprocess | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    device: str | torch.device | None = None,
    amp_dtype: torch.dtype | None = None,
    exact: bool = False,
    tta: Collection[str] = (),
    real: bool = False,
    all_classes: bool = False,
    scale: TargetScale | None = None,
    heads: Sequence[Head] = (),
    progress: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Loss and scores of a model on all samples of a reader.

    The classes of the data are found among the model's labels by name (`match_classes`); the model then decides among
    the classes that the data has, as the figures published for ImageNet-A and -R are defined.

    Args:
        model: a classifier from `create_model`, or a regressor where the targets are numbers; put in evaluation mode.
        reader: one label a picture, several, or numbers; see `opsin.data.open_reader`.
        preprocess: how pictures become tensors; by default as the model's record says.
        batch_size: pictures a forward pass.
        workers: processes that read and decode; None is one per core, 0 reads in this one.
        device: where to compute; None leaves the model where it is.
        amp_dtype: bfloat16 or float16 computes in mixed precision; None in the type of the weights.
        exact: decode and resize bit for bit as Pillow does, slower.
        tta: views of each picture whose outputs (logits) are averaged: "hflip" adds its mirror image, "crops" takes
            `FiveCrops` in place of the middle; both together are ten views.
        real: judge by the ReaL labels (https://arxiv.org/abs/2006.07159) as well: `real_top1` and `real_top5`, a
            prediction being right when the picture truly shows it; pictures without a ReaL label do not count.
        all_classes: let the model decide among all of its classes, whatever the data has.
        scale: of regression targets, as the model learnt them.
        heads: of a model that has several, what its outputs say; the reader's heads are found among them by name.
        progress: called with the number of pictures after each batch.

    Returns:
        `images` and `skipped` (unreadable) pictures, `classes` that were decided among, `loss`, the scores of
        `opsin.train.metrics.Metrics`, and `images_per_second`, reading included.

    Raises:
        OpsinError: nothing to compare with, classes that the model has no label for, or outputs that are no numbers.
    """
    for word in tta:
        check_choice(word, TTA, what="test-time augmentation")
    if reader.task == "unlabelled":
        raise OpsinError(f"{reader}: the pictures have no labels to compare with")
    predictor = Predictor(model, preprocess=preprocess, device=device)
    labels = [label.name for label in predictor.labels]
    reader, task, select = _selection(labels, reader, heads, scale, all_classes)
    truth = _Real(labels, reader) if real else None
    fit, kind = predictor.preprocess, predictor.device.type
    transform = FiveCrops(fit, exact) if "crops" in tta else EvalTransform(fit, exact)
    loader = create_loader(
        create_dataset(reader, transform=transform), batch_size=batch_size, preprocess=fit, num_workers=workers,
        device=predictor.device, dtype=predictor.dtype,
    )  # fmt: skip
    metrics, loss, count = task.metrics(), 0.0, 0
    start = time.perf_counter()
    for batch in loader:
        views = list(batch.images.chunk(CROPS if "crops" in tta else 1))
        views += [view.flip(-1) for view in views] if "hflip" in tta else []
        size = len(views[0])
        with torch.autocast(kind, amp_dtype, enabled=amp_dtype is not None):
            raw = torch.stack([model(view).float() for view in views]).mean(0)
        if not raw.isfinite().all():
            raise OpsinError(
                "the model's outputs are no finite numbers" + (" (float16 overflows)" if amp_dtype else "")
            )
        outputs, targets = select(raw, batch.targets[:size])
        loss += task.eval_loss(outputs, targets).item() * size
        count += size
        metrics.update(outputs, targets)
        if truth is not None:
            truth.update(raw, batch.indices[:size])
        if progress is not None:
            progress(size)
    seconds = time.perf_counter() - start
    if not count:
        raise OpsinError(f"{reader}: not one picture could be read")
    return {
        "images": count, "skipped": len(loader.skipped), "classes": task.outputs, "loss": loss / count,
        **metrics.compute(), **(truth.compute() if truth else {}), "images_per_second": count / seconds,
    }  # fmt: skip


def _selection(
    labels: Sequence[str], reader: Any, heads: Sequence[Head], scale: TargetScale | None, all_classes: bool
) -> tuple[Any, Task, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    """The reader with the model's heads, how it is judged, and what of outputs and targets is compared."""
    if bool(heads) != (reader.task == "heads"):
        raise OpsinError(
            f"{reader} has {reader.task} targets, but the model "
            + (f"has the heads {', '.join(head.name for head in heads)}: name their columns" if heads else "one head")
        )
    if heads:
        return align_heads(reader, heads, owner="the model"), HeadsTask.of_model(heads), lambda *both: both
    if reader.task == "regression":
        select: Any = _Regression(labels, reader, scale)
    else:
        select = _Classes(labels, reader, all_classes)
    head = Head(name="", task=reader.task, classes=None, values=select.width)
    return reader, Task.judging(head), select


class _Regression:
    """Predictions and targets, both in the targets' units (B, K)."""

    def __init__(self, labels: Sequence[str], reader: Any, scale: TargetScale | None) -> None:
        self.width, self.scale = len(labels), scale
        targets = getattr(reader, "targets", None)
        values = self.width if targets is None else targets.reshape(len(targets), -1).shape[1]
        if values != self.width:
            raise OpsinError(f"{reader} has {values} numbers a picture, but the model predicts {self.width}")

    def __call__(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        outputs = outputs if self.scale is None else self.scale.inverse(outputs)
        return outputs, targets.view(outputs.shape)


class _Classes:
    """The logits (B, width) to decide among, and the targets numbered alike."""

    def __init__(self, labels: Sequence[str], reader: Any, all_classes: bool) -> None:
        self.place = torch.from_numpy(output_places(labels, reader))
        self.all_classes = all_classes
        self.width = len(labels) if all_classes else len(self.place)

    def __call__(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        place = self.place.to(outputs.device)
        if not self.all_classes:
            return outputs[:, place], targets
        if targets.ndim == 1:
            return outputs, place[targets]
        return outputs, torch.zeros_like(outputs).index_copy_(1, place, targets)


def output_places(labels: Sequence[str], reader: Any) -> np.ndarray:
    """The model's output for each class of the data, int64: by name, or in order where its outputs have no names.

    Raises `OpsinError` for classes that the model has no label for.
    """
    unnamed = list(labels) == [str(i) for i in range(len(labels))]
    classes = reader.classes
    if classes is None:
        known = getattr(reader, "targets", None)
        if isinstance(known, np.ndarray) and known.max() >= len(labels):
            raise OpsinError(f"{reader} has a class {known.max()}, but the model only {len(labels)} outputs")
        return np.arange(len(labels))
    if unnamed and len(classes) == len(labels) and set(classes) != set(labels):
        warn_user(f"the model's {len(labels)} outputs have no names: they are taken in the order of the data's classes")
        return np.arange(len(labels))
    place = match_classes(classes, labels, owner=str(reader))
    if len(set(place.tolist())) < len(place):
        raise OpsinError(f"{reader}: several classes are the same label of the model")
    return place


class _Real:
    """Counts predictions by the ReaL labels of pictures of ImageNet's validation set."""

    def __init__(self, labels: Sequence[str], reader: Any) -> None:
        if not isinstance(reader, Reader):
            raise OpsinError(f"{reader}: ReaL labels go by file name, which is not known of samples in a stream")
        self.truth = real_targets(reader.name(i) for i in range(len(reader)))
        self.place = torch.from_numpy(match_classes(label_names("imagenet-1k"), labels, owner="ReaL"))
        self.hits: list[list[bool]] = []

    def update(self, outputs: Tensor, indices: Tensor) -> None:
        best = outputs[:, self.place.to(outputs.device)].topk(5).indices.tolist()
        for row, index in zip(best, indices.tolist(), strict=True):
            if truth := self.truth[index]:
                self.hits.append([one in truth for one in row])

    def compute(self) -> dict[str, float]:
        if not self.hits:
            raise OpsinError("none of the pictures has a ReaL label")
        count = len(self.hits)
        return {"real_top1": sum(row[0] for row in self.hits) / count, "real_top5": sum(map(any, self.hits)) / count}
