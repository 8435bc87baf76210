"""What `timm.data.dataset` and `.dataset_factory` show: opsin's readers as datasets of timm's kinds.

A dataset gives (picture, class), the picture as Pillow opens it, or what `transform` makes of it.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from opsin.data.dataset import with_name
from opsin.data.images import open_image
from opsin.data.readers import Folder, Reader, Record, StreamReader
from opsin.errors import ImageError, OpsinError, check_choice
from opsin.integrations.timm_alias._readers import STREAMED, create_reader, none_of
from opsin.integrations.timm_alias._transforms import Compose

__all__ = ["AugMixDataset", "ImageDataset", "IterableImageDataset", "create_dataset", "world"]

log = logging.getLogger("opsin.data")
CHANNELS = {"RGB": 3, "L": 1}
NO_LABEL = -1  # the target of a picture without a class


class _Pictures:
    """What both kinds of dataset share: from a record to a sample."""

    reader: Any
    transform: Callable[[Any], Any] | None
    target_transform: Callable[[Any], Any] | None
    load_bytes = False

    def _open(self, reader: Any, input_img_mode: str) -> None:
        if reader.task not in ("single", "unlabelled"):
            raise OpsinError(f"{reader}: the targets are {reader.task}; code for timm takes one class a picture")
        check_choice(input_img_mode, CHANNELS, what="input_img_mode")
        self.reader, self.input_img_mode = reader, input_img_mode

    def prepare(self, record: Record) -> tuple[Any, Any]:
        image: Any = record.image
        encoded = isinstance(image, bytes)
        straight = isinstance(self.transform, Compose) and self.transform.reads_bytes and self.input_img_mode == "RGB"
        try:
            if not (self.load_bytes or (encoded and straight)):
                image = open_image(image, channels=CHANNELS[self.input_img_mode])
            if self.transform is not None:
                image = self.transform(image)
        except ImageError as error:
            raise ImageError(with_name(str(error), record.name)) from error
        target = NO_LABEL if record.target is None else record.target
        return image, target if self.target_transform is None else self.target_transform(target)


class ImageDataset(_Pictures, Dataset):
    """Samples by number; see `create_dataset`. `reader` is a name as `create_reader` takes it, or a reader.

    A picture that cannot be read raises `ImageError`; of a loader's batch it is left out, with a warning.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        reader: str | Reader | None = None,
        split: str | None = "train",
        class_map: Any = None,
        load_bytes: bool = False,
        input_img_mode: str = "RGB",
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if reader is None or isinstance(reader, str):
            reader = create_reader(reader or "", root, split, class_map=class_map, **kwargs)  # type: ignore[assignment]
        else:
            none_of(kwargs, f"{reader}, which is open already")
        self._open(reader, input_img_mode)
        self.load_bytes, self.transform, self.target_transform = load_bytes, transform, target_transform

    @property
    def parser(self) -> Any:
        """The older name of `reader`."""
        return self.reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.prepare(self.reader[index])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, Any]]:
        """The samples of a batch, asked for by torch's loader."""
        found = []
        for index in indices:
            try:
                found.append(self[index])
            except ImageError as error:
                log.warning("skipped %s", error)
                last = error
        if not found:
            raise ImageError(f"none of the {len(indices)} pictures of a batch can be read; the last: {last}")
        return found

    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        """Where a sample lies: relative to the dataset's folder, its last part alone, or from the root."""
        name = self.reader.name(index)
        if basename:
            return os.path.basename(name)
        if absolute:
            return os.path.abspath(name)
        source = self.reader
        while hasattr(source, "reader"):
            source = source.reader
        return os.path.relpath(name, source.root) if isinstance(source, Folder) else name

    def filenames(self, basename: bool = False, absolute: bool = False) -> list[str]:
        return [self.filename(index, basename, absolute) for index in range(len(self))]


class IterableImageDataset(_Pictures, IterableDataset):
    """Samples in a stream, shared out to the workers of all processes. `batch_size` is the loader's affair."""

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        reader: str | StreamReader | None = None,
        split: str | None = "train",
        class_map: Any = None,
        is_training: bool = False,
        batch_size: int = 1,
        num_samples: int | None = None,
        seed: int = 42,
        input_img_mode: str = "RGB",
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        for name in ("repeats", "max_steps"):
            none_of({name: kwargs.pop(name, None)}, "a stream of opsin's")
        if reader is None or isinstance(reader, str):
            kwargs |= {"class_map": class_map, "num_samples": num_samples}
            reader = create_reader(reader or "", root, split, **kwargs)  # type: ignore[assignment]
        else:
            none_of(kwargs, f"{reader}, which is open already")
        if not isinstance(reader, StreamReader):
            raise OpsinError(f"{reader} is no stream: make an ImageDataset of it")
        self._open(reader, input_img_mode)
        self.is_training, self.seed = is_training, seed
        self.transform, self.target_transform = transform, target_transform
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers outlive epochs

    def set_epoch(self, count: int) -> None:
        """Another order for each epoch."""
        self._epoch.fill_(count)

    def __len__(self) -> int:
        """Samples for this process; raises TypeError where nobody knows."""
        if self.reader.length is None:
            raise TypeError(f"nobody knows how many samples {self.reader} streams: num_samples=…")
        return math.ceil(self.reader.length / world()[1])

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        rank, size = world()
        records = self.reader.stream(
            epoch=int(self._epoch),
            part=rank * workers + worker,
            parts=size * workers,
            shuffle=self.is_training,
            seed=self.seed,
        )
        for record in records:
            try:
                if isinstance(record, ImageError):
                    raise record
                yield self.prepare(record)
            except ImageError as error:
                log.warning("skipped %s", error)


def world() -> tuple[int, int]:
    """The number of this process, and of how many."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class AugMixDataset(Dataset):
    """`num_splits` versions of each picture of a dataset, the first of them without augmentation: ((…), class).

    `transform` is set to the three parts that `create_transform(separate=True)` gives, as the loader does.
    """

    def __init__(self, dataset: Any, num_splits: int = 2) -> None:
        self.dataset, self.num_splits = dataset, num_splits
        self.augment: Callable[[Any], Any] | None = None
        self.finish: Callable[[Any], Any] | None = None
        if dataset.transform is not None:
            self.transform = dataset.transform

    @property
    def transform(self) -> Any:
        """The first part, which the dataset has."""
        return self.dataset.transform

    @transform.setter
    def transform(self, parts: Sequence[Callable[[Any], Any]]) -> None:
        if not isinstance(parts, list | tuple) or len(parts) != 3:
            raise OpsinError("AugMixDataset takes the three transforms that create_transform(separate=True) gives")
        self.dataset.transform, self.augment, self.finish = parts

    def __getitem__(self, index: int) -> tuple[tuple[Any, ...], Any]:
        image, target = self.dataset[index]
        if self.augment is None or self.finish is None:
            raise OpsinError("AugMixDataset has no transforms yet: dataset.transform = create_transform(separate=True)")
        versions = [image, *(self.augment(image) for _ in range(self.num_splits - 1))]
        return tuple(map(self.finish, versions)), target

    def __len__(self) -> int:
        return len(self.dataset)


def create_dataset(
    name: str,
    root: str | os.PathLike[str] | None = None,
    split: str = "validation",
    search_split: bool = True,
    class_map: Any = None,
    load_bytes: bool = False,
    is_training: bool = False,
    download: bool = False,
    batch_size: int = 1,
    num_samples: int | None = None,
    seed: int = 42,
    repeats: int = 0,
    input_img_mode: str = "RGB",
    trust_remote_code: bool = False,
    **kwargs: Any,
) -> ImageDataset | IterableImageDataset:
    """The dataset of a name, as `create_reader` takes it; `wds/` and `hfids/` are streams.

    A folder that holds `train`, `val` and the like gives the one that `split` means, with the classes numbered as in
    the training split; any other folder is taken whole.
    """
    if trust_remote_code:
        raise OpsinError("create_dataset(trust_remote_code=True): opsin runs no code of a hub")
    own: dict[str, Any] = {key: kwargs.pop(key) for key in ("transform", "target_transform") if key in kwargs}
    own["input_img_mode"] = input_img_mode
    stream = name.partition("/")[0] in STREAMED
    none_of({"load_bytes": load_bytes, "repeats": repeats} if stream else {}, name)
    reader: Any = create_reader(
        name,
        root,
        split,
        search_split=search_split,
        class_map=class_map,
        download=download,
        num_samples=num_samples,
        **kwargs,
    )
    if stream:
        return IterableImageDataset(root, reader, is_training=is_training, seed=seed, **own)
    return ImageDataset(root, reader, load_bytes=load_bytes, **own)
