"""scikit-learn's 1797 hand-written digits: a small real dataset that needs no download."""

import numpy as np

from opsin.data.readers.base import Reader, Record, Subset
from opsin.data.split import find_split, stratified_split
from opsin.errors import OpsinError

__all__ = ["Digits", "open_digits"]

FRACTION = 0.2  # held out for validation


class Digits(Reader):
    """Grey arrays (8, 8, 1), uint8; the 17 levels 0..16 of the source are spread over 0..255."""

    classes = tuple("0123456789")

    def __init__(self) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise OpsinError("digits come with scikit-learn: pip install opsin[data]") from None
        data = load_digits()
        self.images = np.rint(data.images * (255 / 16)).astype(np.uint8)[..., None]
        self.targets: np.ndarray = data.target.astype(np.int64)

    def __str__(self) -> str:
        return "digits"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Record:
        return Record(self.images[index], self.target(index), self.name(index))

    def name(self, index: int) -> str:
        return f"digits/{index:04d}"


def open_digits(where: str, split: str | None) -> tuple[Reader, str | None]:
    """All digits, or one of two fixed, stratified parts: "train" (4/5) and "validation"."""
    if where:
        raise OpsinError(f"digits stand alone: nothing follows their name, such as {where!r}")
    reader = Digits()
    if split is None:
        return reader, None
    part, _ = find_split(split, ("train", "validation"), owner="digits")
    indices = dict(
        zip(("train", "validation"), stratified_split(reader.targets, fraction=FRACTION, seed=0), strict=True)
    )
    return Subset(reader, indices[str(part)]), None
