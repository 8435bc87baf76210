"""What `timm.data.loader` and `.distributed_sampler` show: torch's `DataLoader` around opsin's transforms.

Opsin's own loader draws a sample's chance from its place in the epoch and takes opsin's datasets; code written for timm
hands over datasets, samplers and collate functions of its own, for which this is made.
"""

import math
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Sampler

from opsin.catalog import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from opsin.data.preprocess import Preprocess
from opsin.data.preprocess import create_transform as make_preprocess
from opsin.data.samplers import Shuffled
from opsin.errors import OpsinError, check_choice
from opsin.integrations.timm_alias._augment import FastCollateMixup, RandomErasing
from opsin.integrations.timm_alias._dataset import AugMixDataset, world
from opsin.integrations.timm_alias._transforms import create_transform

__all__ = ["MultiEpochsDataLoader", "PrefetchLoader", "create_loader", "fast_collate"]


# --- samplers --------------------------------------------------------------------------------------------------------


class _Shared(Sampler):
    """What samplers of several processes share."""

    def __init__(self, dataset: Sized, num_replicas: int | None, rank: int | None) -> None:
        here, count = world()
        self.dataset = dataset
        self.num_replicas = count if num_replicas is None else num_replicas
        self.rank = here if rank is None else rank
        if not 0 <= self.rank < self.num_replicas:
            raise OpsinError(f"rank {self.rank} is not one of {self.num_replicas}")
        self.num_samples = math.ceil(len(dataset) / self.num_replicas)


class OrderedDistributedSampler(_Shared):
    """Each index once, in order, in turn to the processes; the first ones again where they do not come out even.

    `num_valid_samples` are those of this process that are no repetition.
    """

    def __init__(self, dataset: Sized, num_replicas: int | None = None, rank: int | None = None) -> None:
        super().__init__(dataset, num_replicas, rank)
        self.num_valid_samples = len(range(self.rank, len(dataset), self.num_replicas))

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        length = len(self.dataset)
        return (i % length for i in range(self.rank, self.num_samples * self.num_replicas, self.num_replicas))


class RepeatAugSampler(_Shared):
    """Repeated augmentation: `num_repeats` copies of a sample in a row, which go to the processes in turn.

    An epoch stays about as long as the dataset, so it shows a part of it: `length / selected_ratio` (by default the
    number of processes) samples a process, the length rounded down to a multiple of `selected_round`.
    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int | None = None,
        rank: int | None = None,
        shuffle: bool = True,
        num_repeats: int = 3,
        selected_round: int = 256,
        selected_ratio: int = 0,
    ) -> None:
        super().__init__(dataset, num_replicas, rank)
        self.shuffle, self.num_repeats, self.epoch = shuffle, int(num_repeats), 0  # scripts pass floats
        ratio, length = selected_ratio or self.num_replicas, len(dataset)
        if selected_round and length >= selected_round:
            self.num_samples = length // selected_round * selected_round // ratio
        else:
            self.num_samples = math.ceil(length / ratio)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        length = len(self.dataset)
        order = Shuffled(length)(self.epoch) if self.shuffle else np.arange(length)
        mine = range(self.rank, self.rank + self.num_samples * self.num_replicas, self.num_replicas)
        return (int(order[place // self.num_repeats % length]) for place in mine)


# --- batches ---------------------------------------------------------------------------------------------------------


def fast_collate(batch: Sequence[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
    """A list of (picture (C, H, W), class) to a batch; of several versions of each first all first ones, and so on."""
    pictures = [image if isinstance(image, tuple) else (image,) for image, _ in batch]
    versions = list(zip(*pictures, strict=True))
    images = torch.stack([torch.as_tensor(image) for version in versions for image in version])
    targets = torch.tensor([target for _, target in batch]).repeat(len(versions))
    return images, targets.long()


class PrefetchLoader:
    """Moves the batches of a loader to the device, normalises them if they are uint8, and erases.

    `device` is by default a GPU where there is one. `mixup_enabled` is that of the loader's `FastCollateMixup`.
    """

    def __init__(
        self,
        loader: DataLoader,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        channels: int = 3,
        device: str | torch.device | None = None,
        img_dtype: torch.dtype | None = None,
        fp16: bool = False,
        re_prob: float = 0.0,
        re_mode: str = "const",
        re_count: int = 1,
        re_num_splits: int = 0,
    ) -> None:
        made = make_preprocess((channels, 1, 1), mean=mean, std=std)
        assert isinstance(made, Preprocess)
        self.loader, self.preprocess = loader, made
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.img_dtype = torch.float16 if fp16 else img_dtype or torch.float32
        self.random_erasing = None
        if re_prob > 0:
            self.random_erasing = RandomErasing(re_prob, mode=re_mode, max_count=re_count, num_splits=re_num_splits)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets in self.loader:
            images = images.to(self.device, non_blocking=True)
            if images.dtype == torch.uint8:
                images = self.preprocess.normalize(images)
            images = images.to(self.img_dtype)
            if self.random_erasing is not None:
                images = self.random_erasing(images)
            yield images, targets.to(self.device, non_blocking=True)

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def sampler(self) -> Any:
        return self.loader.sampler

    @property
    def batch_sampler(self) -> Any:
        return self.loader.batch_sampler

    @property
    def dataset(self) -> Any:
        return self.loader.dataset

    @property
    def mixup_enabled(self) -> bool:
        mixing = self.loader.collate_fn
        return isinstance(mixing, FastCollateMixup) and mixing.mixup_enabled

    @mixup_enabled.setter
    def mixup_enabled(self, value: bool) -> None:
        if isinstance(self.loader.collate_fn, FastCollateMixup):
            self.loader.collate_fn.mixup_enabled = value


class MultiEpochsDataLoader(DataLoader):
    """A loader whose workers live on from one epoch to the next."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "persistent_workers": kwargs.get("num_workers", 0) > 0})


# what timm has for batches of changing size, and TensorFlow's preprocessing: the value that stands for "not asked for"
NOT_HERE = {
    "tf_preprocessing": False,
    "input_size_choices": None,
    "batch_size_choices": None,
    "batch_choice_weights": None,
    "num_batches": None,
}
WITH_CHOICES = (
    *("batch_choice_seed", "batch_choice_schedule", "batch_schedule_epochs", "batch_schedule_spread"),
    "batch_schedule_random_mix",
)


def create_loader(
    dataset: Any,
    input_size: int | Sequence[int],
    batch_size: int,
    is_training: bool = False,
    no_aug: bool = False,
    re_prob: float = 0.0,
    re_mode: str = "const",
    re_count: int = 1,
    re_split: bool = False,
    train_crop_mode: str | None = None,
    scale: tuple[float, float] | None = None,
    ratio: tuple[float, float] | None = None,
    hflip: float = 0.5,
    vflip: float = 0.0,
    color_jitter: float | Sequence[float] | None = 0.4,
    color_jitter_prob: float | None = None,
    grayscale_prob: float = 0.0,
    gaussian_blur_prob: float = 0.0,
    auto_augment: str | None = None,
    num_aug_repeats: int = 0,
    num_aug_splits: int = 0,
    interpolation: str = "bilinear",
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
    num_workers: int = 1,
    distributed: bool = False,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    crop_border_pixels: int | None = None,
    collate_fn: Callable[..., Any] | None = None,
    pin_memory: bool = False,
    fp16: bool = False,
    img_dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
    use_prefetcher: bool = True,
    use_multi_epochs_loader: bool = False,
    persistent_workers: bool = True,
    worker_seeding: str | Callable[..., Any] = "all",
    **others: Any,
) -> PrefetchLoader | DataLoader:
    """Batches of any dataset that has a `transform`, which is set here: images (B, C, H, W) and classes (B,).

    With `use_prefetcher` they come normalised on `device` (a GPU where there is one); otherwise as torch's loader gives
    them. Torch seeds the workers: `worker_seeding` may be a function in its place.
    """
    given = dict(locals())
    _refuse(others)
    if num_aug_splits and not isinstance(dataset, AugMixDataset):
        raise OpsinError(f"num_aug_splits={num_aug_splits} needs AugMixDataset(dataset, num_splits={num_aug_splits})")
    splits = (num_aug_splits or 2) if re_split else 0
    figures = {name: given[name] for name in TRANSFORM}
    dataset.transform = create_transform(**figures, re_num_splits=splits, separate=num_aug_splits > 0)
    if num_aug_repeats and (not is_training or isinstance(dataset, IterableDataset)):
        raise OpsinError("num_aug_repeats is for training on a dataset whose samples have numbers")
    sampler = (
        None if isinstance(dataset, IterableDataset) else _sampler(dataset, is_training, distributed, num_aug_repeats)
    )
    workers: dict[str, Any] = {"num_workers": num_workers}
    workers["persistent_workers"] = num_workers > 0 and (persistent_workers or use_multi_epochs_loader)
    if callable(worker_seeding):
        workers["worker_init_fn"] = worker_seeding
    else:
        check_choice(worker_seeding, ("all", "part"), what="worker_seeding")
    loader: DataLoader = DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=is_training and sampler is None and not isinstance(dataset, IterableDataset),
        sampler=sampler,
        collate_fn=collate_fn or (fast_collate if use_prefetcher else None),
        pin_memory=pin_memory,
        drop_last=is_training,
        **workers,
    )
    if not use_prefetcher:
        return loader
    erased = re_prob if is_training and not no_aug else 0.0
    channels = len(mean) if isinstance(input_size, int) or len(input_size) == 2 else input_size[0]
    return PrefetchLoader(
        loader, mean, std, channels, device, img_dtype, fp16, erased, re_mode, re_count, re_num_splits=splits
    )


TRANSFORM = (
    *("input_size", "is_training", "no_aug", "train_crop_mode", "scale", "ratio", "hflip", "vflip", "color_jitter"),
    *("color_jitter_prob", "grayscale_prob", "gaussian_blur_prob", "auto_augment", "interpolation", "mean", "std"),
    *("re_prob", "re_mode", "re_count", "crop_pct", "crop_mode", "crop_border_pixels", "use_prefetcher"),
)


def create_naflex_loader(*_: Any, **__: Any) -> None:
    """Scripts import this beside `create_loader` and call one of the two."""
    raise OpsinError(
        "opsin, which stands in for timm here, has no batches of pictures of their own sizes: use create_loader"
    )


def _refuse(others: dict[str, Any]) -> None:
    for name, value in others.items():
        if name in NOT_HERE and value != NOT_HERE[name]:
            raise OpsinError(f"create_loader({name}={value}): opsin does not have that here; leave it out")
        if name not in NOT_HERE and name not in WITH_CHOICES:
            raise TypeError(f"create_loader() got an unexpected keyword argument {name!r}")


def _sampler(dataset: Any, is_training: bool, distributed: bool, repeats: int) -> Sampler | None:
    if repeats:
        return RepeatAugSampler(dataset, num_repeats=repeats)
    if not distributed:
        return None
    return DistributedSampler(dataset) if is_training else OrderedDistributedSampler(dataset)
