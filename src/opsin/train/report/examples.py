"""Pictures: the worst mistakes, and what training sees."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from opsin.data.images import open_image
from opsin.data.loader import Batch
from opsin.data.preprocess import Preprocess
from opsin.data.readers import Reader
from opsin.errors import ImageError
from opsin.train.loop import Run
from opsin.train.report.judged import Judged, Mistake
from opsin.train.report.page import name, number, percent, picture, section, text
from opsin.train.report.scores import class_name
from opsin.train.task import Task

__all__ = ["mistakes", "samples"]

GUESSES = 3
LEAST = 0.05  # share of a label that is named on a mixed picture


def mistakes(run: Run, judged: Judged) -> str:
    """The pictures with the greatest losses, among those that are wrong."""
    cards = [_mistake(run, judged.task, one) for one in judged.worst()]
    content = f'<div class="pictures">{"".join(cards)}</div>' if cards else "<p>There are none.</p>"
    return section(
        judged.title("Worst mistakes"),
        content,
        note="Those with the greatest loss first: what is true, and in red what was said instead.",
    )


def _mistake(run: Run, task: Task, one: Mistake) -> str:
    reader = run.eval_loader.dataset.reader
    file = reader.name(one.sample) if isinstance(reader, Reader) and one.sample >= 0 else ""
    try:
        image = picture(_pixels(reader, one, run.eval_loader.preprocess), file)
    except ImageError as error:  # it was there when it was judged
        image = f'<p class="note">{text(error)}</p>'
    true, *lines = _told(task, one)
    said = "".join(f"<small>{line}</small>" for line in lines)
    short = f'<small class="file" title="{text(file)}">{text(file.rpartition("/")[2])}</small>' if file else ""
    return f'<figure>{image}<figcaption><b title="true">{true}</b>{said}{short}</figcaption></figure>'


def _pixels(reader: Any, one: Mistake, preprocess: Preprocess | None) -> np.ndarray:
    """uint8 (H, W, C): as it is stored, or as it was judged where a stream cannot be asked again."""
    if one.pixels is not None:
        return seen(one.pixels[None], preprocess)[0]
    image = reader[one.sample].image
    return image if isinstance(image, np.ndarray) and image.ndim == 3 else np.asarray(open_image(image))


def _told(task: Task, one: Mistake) -> list[str]:
    """What is true, and lines of what was said instead."""
    output, target = torch.from_numpy(one.output), torch.from_numpy(np.asarray(one.target))
    if task.kind == "regression":
        said, true = (task.in_units(values[None])[0] for values in (output, target))
        return [_numbers(true), f"<em>{_numbers(said)}</em>"]
    names = task.classes or ()
    if task.kind == "single":
        right, shares = [int(target)], output.softmax(0).tolist()
        best = sorted(range(len(shares)), key=lambda i: -shares[i])[:GUESSES]
        shown = [i for i in best if shares[i] >= LEAST or i == best[0]]
        shown += [i for i in right if i not in shown]
    else:  # the labels that are wrong, the most wrong first
        right, shares = torch.nonzero(target > 0.5).flatten().tolist(), output.sigmoid().tolist()
        off = {i: abs(share - (i in right)) for i, share in enumerate(shares)}
        shown = sorted((i for i in off if off[i] > 0.5), key=lambda i: -off[i])[:GUESSES]
    red = {i for i in shown if i not in right and (task.kind == "multi" or i == shown[0])}
    lines = [share(class_name(names, i), shares[i], wrong=i in red) for i in shown]
    return [", ".join(name(class_name(names, i)) for i in right) or "no label", *lines]


def share(label: str, value: float, *, wrong: bool = False) -> str:
    """A label with its share or confidence at the other end of the line."""
    shown = f"<em>{name(label)}</em>" if wrong else name(label)
    return f'<span class="share">{shown}<i>{percent(value)}</i></span>'


def _numbers(values: Tensor) -> str:
    return ", ".join(number(float(v)) for v in values)


def seen(images: Tensor, preprocess: Preprocess | None) -> np.ndarray:
    """From what a model gets, (B, C, H, W), back to pixels (B, H, W, C), uint8."""
    images = images.detach().float().cpu()
    if preprocess is not None:
        mean, std = (torch.tensor(v)[:, None, None] for v in (preprocess.mean, preprocess.std))
        images = (images * std + mean) * 255
    return images.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def samples(task: Task, batch: Batch | None, preprocess: Preprocess | None, *, splits: int = 1) -> str:
    """Pictures as training gets them: augmented, erased and mixed; `splits` versions of each side by side."""
    if batch is None:
        return ""
    count = len(batch.images) // splits
    order = [split * count + i for i in range(count) for split in range(splits)]
    pixels = seen(batch.images, preprocess)
    cards = []
    for i in order:
        lines = describe(task, batch.targets[i])
        cards.append(f"<figure>{picture(pixels[i], '')}<figcaption>{'<br>'.join(lines)}</figcaption></figure>")
    return section("What training sees", f'<div class="pictures small">{"".join(cards)}</div>',
                   note="The first pictures of an epoch, augmented.")  # fmt: skip


def describe(task: Task, target: Tensor) -> list[str]:
    """A target in lines of HTML: a class, several, the shares of mixed ones, or numbers."""
    if task.heads:
        parts = task.parts(torch.zeros(1, task.outputs), task.prepare(target[None].cpu()))
        return [
            f"{text(part.name)}: {line}"
            for part in parts
            for row in part.task.in_units(part.targets)
            for line in describe(part.task, row)
        ]
    if task.kind == "regression":
        return [_numbers(target.reshape(-1))]
    names = task.classes or ()
    shares = {int(target): 1.0} if target.ndim == 0 else dict(enumerate(target.tolist()))
    found = sorted((i for i in shares if shares[i] > LEAST), key=lambda i: -shares[i])
    if len(found) <= 1 or all(value in (0, 1) for value in shares.values()):
        return [name(class_name(names, i)) for i in found] or ["no label"]
    return ["".join(share(class_name(names, i), shares[i]) for i in found[:GUESSES])]
