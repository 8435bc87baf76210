"""Batches from JPEG files: decoding, resizing, augmentation, normalising."""

import io
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks._ab import Row, compare

TITLE = "Batches from files"
NOTE = (
    "Milliseconds a picture, from files in the page cache to normalised float batches on the CPU, 224 px: photos of "
    "500x375 (48 KB) and 4000x3000 (2 MB). `1 process` reads in the process itself; `2 workers` has two beside it, on "
    "two cores, started before the clock. Evaluation is bicubic with a crop of 0.875; training draws bilinear or "
    "bicubic for each picture. RandAugment is `rand-m9-mstd0.5-inc1`, in which timm keeps at least one bit when it "
    "posterizes, since Pillow 13 refuses its zero."
)
SHAPES = {"500x375": (500, 375, 95, 192, 32), "4000x3000": (4000, 3000, 90, 12, 4)}  # quality, pictures, batch size
WORKERS = {"1 process": 0, "2 workers": 2}
POLICY = "rand-m9-mstd0.5-inc1"


def mosaic(width: int, height: int, seed: int) -> bytes:
    """scikit-image's photos side by side, as a JPEG's pixels."""
    import numpy as np
    from PIL import Image
    from skimage import data

    rng = np.random.default_rng(seed)
    photos = [Image.fromarray(getattr(data, name)()) for name in ("astronaut", "coffee", "chelsea", "rocket")]
    row = min(height, 750)
    canvas = Image.new("RGB", (width, height))
    for y in range(0, height, row):
        x = 0
        while x < width:
            photo = photos[rng.integers(len(photos))]
            photo = photo.resize((round(photo.width * row / photo.height), row), Image.Resampling.BICUBIC)
            canvas.paste(photo, (x, y))
            x += photo.width
    file = io.BytesIO()
    canvas.save(file, "JPEG", quality=SHAPES[f"{width}x{height}"][2])
    return file.getvalue()


def write(folder: Path, shape: str) -> None:
    width, height, _, count, _ = SHAPES[shape]
    files = [mosaic(width, height, seed) for seed in range(min(count, 16))]
    (folder / "class").mkdir(parents=True)
    for i in range(count):
        (folder / "class" / f"{i:04}.jpg").write_bytes(files[i % len(files)])


def timm_side(folder: Path, batch_size: int, workers: int, training: bool, policy: str | None) -> Iterable:
    import timm.data
    import torch
    from timm.data import auto_augment

    posterize = timm.data.auto_augment.posterize
    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = lambda image, bits, **_: posterize(image, max(bits, 1))
    return timm.data.create_loader(
        timm.data.ImageDataset(str(folder)),
        input_size=224,
        batch_size=batch_size,
        is_training=training,
        interpolation="random" if training else "bicubic",
        auto_augment=policy,
        color_jitter=None,
        num_workers=workers,
        persistent_workers=workers > 0,
        device=torch.device("cpu"),
    )


def torchvision_side(folder: Path, batch_size: int, workers: int, training: bool) -> Iterable:
    from torch.utils.data import DataLoader
    from torchvision import datasets
    from torchvision import transforms as T

    if training:
        geometry = [T.RandomResizedCrop(224, interpolation=T.InterpolationMode.BICUBIC), T.RandomHorizontalFlip()]
    else:
        geometry = [T.Resize(256, interpolation=T.InterpolationMode.BICUBIC), T.CenterCrop(224)]
    transform = T.Compose([*geometry, T.ToTensor(), T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    return DataLoader(
        datasets.ImageFolder(str(folder), transform),
        batch_size=batch_size,
        shuffle=training,
        num_workers=workers,
        persistent_workers=workers > 0,
        drop_last=training,
    )


def opsin_side(folder: Path, batch_size: int, workers: int, training: bool, interpolation: str, policy: str | None):
    from opsin.data import EvalTransform, Preprocess, TrainTransform, create_dataset, create_loader

    preprocess = Preprocess()
    transform = EvalTransform(preprocess)
    if training:
        transform = TrainTransform(224, interpolation=interpolation, auto_augment=policy, color_jitter=None)
    return create_loader(
        create_dataset(f"folder:{folder}", transform=transform),
        batch_size=batch_size,
        preprocess=preprocess,
        shuffle=training,
        num_workers=workers,
        drop_last=training,
    )


def epoch(loader: Iterable) -> Callable[[], None]:
    def run() -> None:
        for images, _ in loader:
            assert images.shape[1:] == (3, 224, 224)

    return run


def run(rounds: int) -> list[Row]:
    import torch

    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))  # workers are what this measures
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for shape, (_, _, _, count, batch_size) in SHAPES.items():
            place = Path(folder) / shape
            write(place, shape)
            for processes, workers in WORKERS.items():
                for what, training, policy in (
                    ("evaluation", False, None),
                    ("crop and flip", True, None),
                    ("RandAugment", True, POLICY),
                ):
                    how = (place, batch_size, workers, training)
                    pairs = [(what, timm_side(*how, policy), opsin_side(*how, "random", policy))]
                    if policy is None:
                        name = f"{what}, beside torchvision"
                        pairs.append((name, torchvision_side(*how), opsin_side(*how, "bicubic", None)))
                    rows += [
                        compare(
                            f"{shape}, {processes}, {title}", epoch(peer), epoch(ours), rounds=rounds, scale=1e3 / count
                        )
                        for title, peer, ours in pairs
                    ]
    return rows
