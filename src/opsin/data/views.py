"""What a model sees of a dataset: pictures as stored, as evaluation takes them, and augmented, on one sheet."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from opsin.data.images import open_image
from opsin.data.pen import ALARM, CARD, INK, MUTED, TRACK, Pen
from opsin.data.readers import Reader, Record
from opsin.errors import ImageError, OpsinError

__all__ = ["pick", "view_sheet"]

SIDE, GAP, MARGIN, TOP, CAPTION = 150, 6, 16, 58, 40


def pick(reader: Reader, count: int) -> list[int]:
    """Indices spread evenly over the classes, or over the dataset where it has none."""
    count = min(count, len(reader))
    targets = reader.targets
    if reader.task != "single" or not isinstance(targets, np.ndarray):
        return np.linspace(0, len(reader) - 1, count).round().astype(int).tolist()
    order = np.argsort(targets, kind="stable")
    return sorted(order[np.linspace(0, len(order) - 1, count).round().astype(int)].tolist())


def view_sheet(
    records: Sequence[Record],
    *,
    evaluation: Callable[..., Tensor],
    training: Callable[..., Tensor],
    views: int = 4,
    title: str = "",
    labels: Callable[[Any], str] = str,
    seed: int = 0,
) -> Image.Image:
    """A row per record: the picture as stored, then what `evaluation` and `views` draws of `training` make of it.

    Raises:
        OpsinError: nothing to show.
    """
    if not records:
        raise OpsinError("no samples to draw on a sheet")
    columns = 2 + views
    width = 2 * MARGIN + columns * (SIDE + GAP) - GAP
    pen = Pen(width, TOP + len(records) * (SIDE + CAPTION) + MARGIN, 2 if len(records) <= 24 else 1)
    pen.text(MARGIN, 12, title, INK, 16, room=width - 2 * MARGIN)
    for column, heading in enumerate(["as stored", "in evaluation", *["in training"] * min(views, 1)]):
        pen.text(MARGIN + column * (SIDE + GAP), TOP - 20, heading, MUTED, 11)
    for row, record in enumerate(records):
        y = TOP + row * (SIDE + CAPTION)
        pen.text(MARGIN, y + SIDE + 3, labels(record.target), INK, 12, room=width - 2 * MARGIN)
        pen.text(MARGIN, y + SIDE + 19, record.name, MUTED, 10, room=width - 2 * MARGIN)
        try:
            _row(pen, record, y, evaluation, training, views, (seed, row))
        except ImageError as error:
            pen.lines(MARGIN, y + 8, str(error), ALARM, 11, room=width - 2 * MARGIN, most=SIDE // 17)
    return pen.image


def _row(pen: Pen, record: Record, y: int, evaluation: Any, training: Any, views: int, seed: tuple[int, int]) -> None:
    stored = record.image
    if not isinstance(stored, np.ndarray):
        opened = open_image(stored)
        assert isinstance(opened, Image.Image)  # as it is for three channels
        stored = np.asarray(opened)
    seen = [evaluation(record.image, rng=np.random.default_rng(seed))]
    seen += [training(record.image, rng=np.random.default_rng((*seed, view))) for view in range(views)]
    arrays = [stored, *(np.asarray(one if one.ndim == 3 else one[-1]).transpose(1, 2, 0) for one in seen)]
    for column, array in enumerate(arrays):
        x = MARGIN + column * (SIDE + GAP)
        pen.box(x, y, SIDE, SIDE, CARD, 4, outline=TRACK)
        photo = _fitted(array, SIDE * pen.scale)
        pen.image.paste(photo, (x * pen.scale + (SIDE * pen.scale - photo.width) // 2,
                                y * pen.scale + (SIDE * pen.scale - photo.height) // 2))  # fmt: skip


def _fitted(array: np.ndarray, side: int) -> Image.Image:
    """The whole picture, as large as fits: pixels of tiny ones stay squares. Of many channels the first are shown."""
    shown = array[..., 0] if array.shape[2] in (1, 2) else array[..., :3]
    photo = Image.fromarray(np.ascontiguousarray(shown)).convert("RGB")
    scale = side / max(photo.size)
    size = max(round(photo.width * scale), 1), max(round(photo.height * scale), 1)
    return photo.resize(size, Image.Resampling.NEAREST if scale > 4 else Image.Resampling.LANCZOS)
