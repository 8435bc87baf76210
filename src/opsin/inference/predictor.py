"""From pictures to named probabilities: a model, its preprocessing and its labels in one object.

Decoding and resizing run in a few threads while the model computes the batch before; Pillow and torch both release
the interpreter for the heavy part, so the two overlap.
"""

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from opsin.catalog import is_embedding
from opsin.data.images import Source, describe, open_image
from opsin.data.labels import TargetScale
from opsin.data.preprocess import Preprocess
from opsin.data.readers.heads import Head, spans
from opsin.errors import ImageError, OpsinError, WeightsError, check_choice, did_you_mean
from opsin.inference._answers import Answer, Score, answers, named_labels, own_labels
from opsin.inference._device import find_device
from opsin.models._registry import resolve_name
from opsin.weights.artefact import TASKS, read_config, read_task
from opsin.weights.sources import HUB_PREFIXES, LOCAL_PREFIX

__all__ = ["Answer", "Prediction", "Predictor", "Score", "architecture_of", "is_saved", "load", "meaning", "model_name"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """The most probable classes of one picture, best first; or, from `Predictor.stream`, why it could not be read.

    Where several labels may hold at once, those that are more probable than not. A model of numbers gives `values`, in
    the units of the targets it learnt, and no labels. One with several heads gives `heads`, an answer by each's name.
    """

    source: str
    labels: tuple[Score, ...] = ()
    error: str | None = None
    values: tuple[float, ...] | None = None
    heads: Mapping[str, Answer] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON: `labels`, `values` or `heads`."""
        if self.heads is None:
            said = Answer(self.labels, self.values).to_dict()
        else:
            said = {"heads": {name: answer.to_dict() for name, answer in self.heads.items()}}
        return {"source": self.source, **said, "error": self.error}


class Predictor:
    """Classifies pictures with a model.

    Args:
        model: a classifier from `create_model`; it is put in evaluation mode and on `device`.
        preprocess: how pictures become tensors; by default the model's own record says (`model.pretrained_cfg`, with
            the channels and image size the model was really built with).
        labels: one name per class, in class order. By default those of the model's record, else those of the
            well-known set with as many classes, else the class numbers.
        descriptions: longer words for `labels`: `{label: words}`.
        task: what the outputs mean: one label ("single"), any number of labels ("multi"), numbers ("regression"), or
            some of each ("heads").
        scale: of the numbers, which come in its units; None leaves them as the model gives them.
        heads: what stands one after the other in the outputs of a task of several heads.
        device: where to compute; None leaves the model where it is.
        batch_size: pictures per forward pass.
        workers: threads that read and resize.

    Raises:
        OpsinError: a model without a classifier, labels that do not fit its classes, or a scale without numbers.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        preprocess: Preprocess | None = None,
        labels: Sequence[str] | None = None,
        descriptions: Mapping[str, str] | None = None,
        task: str = "single",
        scale: TargetScale | None = None,
        heads: Sequence[Head] = (),
        device: str | torch.device | None = None,
        batch_size: int = 32,
        workers: int | None = None,
    ) -> None:
        for option, number in (("batch_size", batch_size), ("workers", workers)):
            if number is not None and number < 1:
                raise OpsinError(f"{option} must be at least 1, not {number}")
        self.num_classes: int = _num_classes(model, described=preprocess is not None and labels is not None)
        if labels is None and task == "single":
            _refuse_embedding(model)
        check_choice(task, TASKS, what="task")
        if scale is not None and (task != "regression" or len(scale.mean) != self.num_classes):
            raise OpsinError(f"a scale of {len(scale.mean)} numbers for {self.num_classes} outputs of a {task} task")
        if (task == "heads") != bool(heads) or (heads and sum(head.outputs for head in heads) != self.num_classes):
            wide = " + ".join(f"{head.outputs} ({head.name})" for head in heads) or "no heads"
            raise OpsinError(f"{wide} for {self.num_classes} outputs of a {task} task")
        self.task, self.scale, self.heads = task, scale, tuple(heads)
        self._head_labels = [named_labels(head.classes or (), None) for head in self.heads]
        self.model = (model if device is None else model.to(find_device(device))).eval()
        self.preprocess = preprocess or Preprocess.from_model(model)
        self.labels = own_labels(model) if labels is None else named_labels(labels, descriptions)
        if len(self.labels) != self.num_classes:
            raise OpsinError(f"{len(self.labels)} labels for {self.num_classes} classes")
        self.batch_size = batch_size
        self.workers = workers or min(8, os.cpu_count() or 1)
        weight = next(model.parameters(), None)
        self.device = weight.device if weight is not None else find_device(device or "cpu")
        self.dtype = weight.dtype if weight is not None else torch.float32

    @property
    def channels(self) -> int:
        """Channels of the pictures that the model takes."""
        return self.preprocess.channels

    @overload
    def predict(self, images: Source, topk: int = ...) -> Prediction: ...
    @overload
    def predict(self, images: Tensor | Iterable[Source], topk: int = ...) -> Prediction | list[Prediction]: ...

    def predict(self, images: Source | Tensor | Iterable[Source], topk: int = 5) -> Prediction | list[Prediction]:
        """The `topk` most probable classes of one picture, or a list with those of many.

        Args:
            images: one of what `open_image` takes, or an iterable of them, or an array (B, H, W, C); or tensors that
                are ready for the model, (C, H, W) or (B, C, H, W), normalised.
            topk: classes to name, at most all there are; of several labels at once only those above 0.5 are. Numbers
                all come.

        Raises:
            ImageError: a picture cannot be read; it is named. (`stream` goes on past it.)
        """
        if isinstance(images, Tensor):
            found = self._predict_ready(images if images.ndim == 4 else images[None], topk)
            return found if images.ndim == 4 else found[0]
        results = []
        for result in self.stream(images, topk):
            if result.error is not None:
                raise ImageError(result.error)
            results.append(result)
        return results[0] if _is_one(images) else results

    def stream(self, images: Source | Iterable[Source], topk: int = 5) -> Iterator[Prediction]:
        """Predictions one by one, in order, as batches are done; read lazily, so `images` may be endless.

        `images` are what `predict` takes, but for tensors. A picture that cannot be read gives a `Prediction` with
        `error` set, and the rest goes on.
        """
        _check_topk(topk)
        if not (_is_one(images) or isinstance(images, Iterable)) or isinstance(images, Tensor):
            raise OpsinError(f"this takes one picture, or an iterable of pictures, not {type(images).__name__}")
        pictures: Iterator[Any] = iter([images] if _is_one(images) else images)  # type: ignore[arg-type]
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="opsin-read")
        waiting: deque[tuple[str, Future[Tensor]]] = deque()

        def refill() -> None:
            for image in itertools.islice(pictures, 2 * self.batch_size - len(waiting)):
                waiting.append((describe(image), pool.submit(self._read, image)))

        try:
            refill()
            while waiting:
                batch = [waiting.popleft() for _ in range(min(self.batch_size, len(waiting)))]
                refill()  # these are read while the batch is computed
                yield from self._predict_batch(batch, topk)
        finally:
            pool.shutdown(cancel_futures=True)

    @torch.inference_mode()
    def probabilities(self, batch: Tensor) -> Tensor:
        """Class probabilities (B, num_classes), float32 on the CPU, of a normalised batch (B, C, H, W).

        They are those of each class alone where several labels may hold at once.

        Raises:
            OpsinError: a model of numbers, which has none.
        """
        if self.task == "regression":
            raise OpsinError("this model predicts numbers, which have no probabilities: see `values`")
        if self.heads:
            raise OpsinError(
                "this model has several heads, each with probabilities or numbers of its own: see `predict`"
            )
        logits = self._outputs(batch)
        return (logits.softmax(-1) if self.task == "single" else logits.sigmoid()).cpu()

    @torch.inference_mode()
    def values(self, batch: Tensor) -> Tensor:
        """Numbers (B, num_classes), in the units of the targets, of a normalised batch (B, C, H, W); raises
        `OpsinError` for a model of classes."""
        if self.task != "regression":
            other = "`predict`" if self.heads else "`probabilities`"
            raise OpsinError(f"this model predicts classes, not numbers: see {other}")
        outputs = self._outputs(batch)
        return (outputs if self.scale is None else self.scale.inverse(outputs)).cpu()

    def _outputs(self, batch: Tensor) -> Tensor:
        logits = self.model(batch.to(self.device, self.dtype))
        if logits.shape != (len(batch), self.num_classes):
            raise OpsinError(f"the model gave {tuple(logits.shape)}, not ({len(batch)}, {self.num_classes}) logits")
        return logits.float()

    def _read(self, image: Source) -> Tensor:
        # uint8 here and the float arithmetic per batch: torch's own threads stay out of these
        return self.preprocess.to_uint8(open_image(image, channels=self.channels))

    def _predict_batch(self, batch: list[tuple[str, Future[Tensor]]], topk: int) -> list[Prediction]:
        pixels: list[Tensor] = []
        errors: list[str | None] = []
        for _, future in batch:
            try:
                pixels.append(future.result())
                errors.append(None)
            except ImageError as error:
                errors.append(str(error))
        found: Iterator[dict[str, Any]] = iter(())
        if pixels:
            found = self._answers(self.preprocess.normalize(torch.stack(pixels).to(self.device)), topk)
        return [
            Prediction(name, **next(found)) if error is None else Prediction(name, error=error)
            for (name, _), error in zip(batch, errors, strict=True)
        ]

    def _predict_ready(self, batch: Tensor, topk: int) -> list[Prediction]:
        _check_topk(topk)
        if batch.ndim != 4 or batch.shape[1] != self.channels or not batch.is_floating_point():
            raise ImageError(
                f"expected normalised floats (B, {self.channels}, H, W), got {tuple(batch.shape)} {batch.dtype}; "
                "pictures that are not prepared yet go in as arrays or Pillow images"
            )
        found = itertools.chain.from_iterable(self._answers(part, topk) for part in batch.split(self.batch_size))
        return [Prediction(f"tensor[{i}]", **fields) for i, fields in enumerate(found)]

    def _answers(self, batch: Tensor, topk: int) -> Iterator[dict[str, Any]]:
        """What is said of each picture: the fields of its `Prediction`."""
        with torch.inference_mode():
            outputs = self._outputs(batch).cpu()
        if not self.heads:
            for one in answers(outputs, self.task, self.labels, self.scale, topk):
                yield {"labels": one.labels, "values": one.values}
            return
        places = spans(head.outputs for head in self.heads)
        parts = [
            answers(outputs[:, place], head.task, labels, head.scale, topk)
            for head, labels, place in zip(self.heads, self._head_labels, places, strict=True)
        ]
        names = [head.name for head in self.heads]
        yield from ({"heads": dict(zip(names, row, strict=True))} for row in zip(*parts, strict=True))


def load(
    source: str | os.PathLike[str], *, device: str | torch.device | None = None, batch_size: int = 32
) -> Predictor:
    """A ready predictor from one name.

    Args:
        source: a folder written by `opsin.save` or downloaded from the hub (`config.json` beside the weights), a hub
            id (`org/repo` or `hf-hub:org/repo@revision`), or a model name, whose published weights are taken.
        device: where to compute; None takes a CUDA device if there is one, else the CPU.
        batch_size: pictures per forward pass.

    Raises:
        UnknownModelError: no such model. WeightsError: the folder or repository, or its weights, cannot be read.
    """
    from opsin.factory import create_model  # the families are needed here alone

    device = find_device(device)
    name = model_name(source)
    try:
        model = create_model(name, pretrained=True)
        _refuse_embedding(model, published=name.removeprefix("hf-hub:").startswith("timm/"))
        return Predictor(model, **meaning(name), device=device, batch_size=batch_size)
    except WeightsError as error:
        if name != os.fspath(source) and name.startswith(HUB_PREFIXES):
            raise WeightsError(f"there is no folder {source} here, and {error}") from error
        raise


def meaning(name: str) -> dict[str, Any]:
    """What the outputs of a model say, by its `model_name`: `task`, `scale` and `heads`, as `Predictor` takes them."""
    if not name.startswith((*HUB_PREFIXES, LOCAL_PREFIX)):
        return {}
    found = read_task(read_config(name))
    scale = TargetScale(tuple(found.scale["mean"]), tuple(found.scale["std"])) if found.scale else None
    return {"task": found.task, "scale": scale, "heads": tuple(map(Head.from_dict, found.heads))}


def model_name(source: str | os.PathLike[str]) -> str:
    """The name that `create_model` knows a source by.

    Raises `WeightsError` for what can only be a folder that is not there, with the nearest that is.
    """
    if not isinstance(source, str | os.PathLike):
        raise OpsinError(f"a model goes by a name or a folder, not by {type(source).__name__}")
    name = os.fspath(source)
    if is_saved(name):
        return name
    if saved := saved_at(name):
        return saved
    path = os.path.expanduser(name)
    parent, base = os.path.split(path.rstrip(os.sep))
    if not isinstance(source, str) or name.startswith((".", "~", os.sep)) or (parent and os.path.isdir(parent)):
        if os.path.exists(path):
            return f"{LOCAL_PREFIX}{path}"
        nearby = os.listdir(parent or ".") if os.path.isdir(parent or ".") else []
        hub = f" If you mean the hub's, write hf-hub:{name}." if name.count("/") == 1 and name[0] not in "./~" else ""
        raise WeightsError(f"{describe(path)}: there is no such folder.{did_you_mean(base, nearby)}{hub}")
    return f"hf-hub:{name}" if name.count("/") == 1 else name


def saved_at(place: str) -> str | None:
    """The saved model in a folder, or around its `model.safetensors`, as `create_model` names it, or None."""
    path = os.path.expanduser(place.removeprefix(LOCAL_PREFIX))
    if os.path.basename(path) == "model.safetensors" and os.path.isfile(path):
        path = os.path.dirname(os.path.abspath(path))
    # a folder that merely bears a model's name does not count
    return f"{LOCAL_PREFIX}{path}" if os.path.isfile(os.path.join(path, "config.json")) else None


def architecture_of(source: str) -> str:
    """The architecture of what `model_name` gave. Raises `OpsinError` for a name or a folder that is none."""
    return read_config(source)["architecture"] if is_saved(source) else resolve_name(source)[0]


def is_saved(source: str) -> bool:
    """Whether a source, as `model_name` gives it, is a saved model with a configuration of its own."""
    return source.startswith((*HUB_PREFIXES, LOCAL_PREFIX))


def _is_one(images: Any) -> bool:
    """Whether this is one picture and not several."""
    if isinstance(images, np.ndarray):
        return images.ndim != 4
    one = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)
    return isinstance(images, one) or hasattr(images, "read")


def _num_classes(model: Any, *, described: bool) -> int:
    """Of a model that can be asked for its classes and, unless they are `described`, how it sees and names them."""
    for name in ("num_classes", *(() if described else ("pretrained_cfg",))):
        if not hasattr(model, name):
            raise OpsinError(
                f"Predictor takes a classifier as create_model gives it, without features_only; {type(model).__name__} "
                f"has no {name}. A module of your own needs num_classes, and pretrained_cfg unless preprocess= and "
                "labels= are given."
            )
    if model.num_classes < 1:
        raise OpsinError("this model has no classifier (num_classes=0); Predictor needs one")
    return int(model.num_classes)


def _refuse_embedding(model: Any, *, published: bool = False) -> None:
    """Refuse published weights whose outputs are no classes. What somebody saved means what it says.

    A record says where its weights are published; one that was read from a folder or repository says no more.
    """
    record = getattr(model, "pretrained_cfg", None) or {}
    published = published or bool(record.get("hf_hub_id") or record.get("url"))
    name = f"{getattr(model, 'architecture', '')}.{record.get('tag')}"
    if published and record.get("num_classes") == model.num_classes and is_embedding(name):
        raise OpsinError(
            f"the {model.num_classes} outputs of {name} are no classes but an embedding, to compare with that of a "
            "text. For embeddings of pictures take create_model(…, num_classes=0); for classes train a head "
            f"(opsin train --model {name}), or name those you trained by labels="
        )


def _check_topk(topk: int) -> None:
    if topk < 1:
        raise OpsinError(f"topk must be at least 1, not {topk}")
