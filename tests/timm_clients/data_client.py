"""A training script's data, as scripts for timm write it: folders to batches, augmented, mixed; and older paths."""

import argparse
import random
import sys

import numpy as np
import timm
import torch
from common import RESULTS, finish, note
from PIL import Image
from timm.data import AugMixDataset, create_dataset, create_loader, create_transform, resolve_data_config
from timm.data.constants import IMAGENET_DEFAULT_MEAN
from timm.data.distributed_sampler import OrderedDistributedSampler
from timm.data.mixup import FastCollateMixup, Mixup
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_pil_interp
from timm.data.transforms_factory import transforms_imagenet_eval

torch.set_num_threads(1)
random.seed(0)
torch.manual_seed(0)
np.random.seed(0)
facts = RESULTS["facts"] = {}
parser = argparse.ArgumentParser()
parser.add_argument("--img-size", type=int, default=None)
parser.add_argument("--input-size", default=None, nargs=3, type=int)
parser.add_argument("--mean", type=float, nargs="+", default=None)
args = parser.parse_args(["--img-size", "64"])
model = timm.create_model("resnet10t", num_classes=3)
config = resolve_data_config(vars(args), model=model)
facts["config"] = config
common = {**config, "batch_size": 4, "device": torch.device("cpu"), "persistent_workers": False}


def seen(loader) -> dict:
    batches = list(loader)
    images, targets = (torch.cat(part) for part in zip(*batches, strict=True))
    return {
        "length": len(loader),
        "shape": tuple(images.shape[1:]),
        "count": len(images),
        "dtypes": (images.dtype, targets.dtype),
        "range": (images.min().item(), images.max().item()),
        "row": tuple(targets.shape[1:]),
        "classes": sorted(set(targets.tolist())) if targets.ndim == 1 else None,
        "sums": targets.sum(1).sub(1).abs().max().item() if targets.ndim > 1 else None,
        "order": targets.tolist() if targets.ndim == 1 else targets.argmax(1).tolist(),
    }


# evaluation: the same pictures
dataset = create_dataset("", root=sys.argv[2], split="validation", is_training=False, batch_size=4)
facts["names"] = dataset.filenames(basename=True), dataset.filename(0), dataset.reader.class_to_idx
facts["item"] = dataset[3][0].mode, dataset[3][0].size, dataset[3][1]
for prefetcher in (True, False):
    loader = create_loader(dataset, **common, num_workers=1, use_prefetcher=prefetcher)
    for number, (images, targets) in enumerate(loader):
        note(f"eval-{prefetcher}-{number}", images, targets)
half = create_loader(dataset, **common, num_workers=0, fp16=True)
note("half", next(iter(half))[0].float())
note(
    "squash",
    transforms_imagenet_eval(48, crop_mode="squash", interpolation="bicubic")(
        dataset.reader and Image.new("RGB", (90, 60), (9, 99, 199))
    ),
)

# training: the same kinds of batches
recipe = {"re_prob": 0.5, "re_mode": "pixel", "color_jitter": 0.4, "auto_augment": "rand-m7-inc1"}
dataset = create_dataset("", root=sys.argv[2], split="train", is_training=True, batch_size=4)
for prefetcher in (True, False):
    loader = create_loader(dataset, **common, is_training=True, num_workers=1, use_prefetcher=prefetcher, **recipe)
    facts[f"train-{prefetcher}"] = seen(loader)
images, targets = next(iter(loader))
mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=3)
mixed, rows = mixup(images.clone(), targets)
facts["mixup"] = tuple(mixed.shape), mixed.dtype, tuple(rows.shape), rows.dtype
loss = torch.sum(-rows * torch.log_softmax(model(mixed), dim=-1), dim=-1).mean()
loss.backward()
facts["step"] = bool(loss.isfinite())
collate = FastCollateMixup(mixup_alpha=0.8, num_classes=3, label_smoothing=0.0)
loader = create_loader(dataset, **common, is_training=True, num_workers=0, collate_fn=collate, **recipe)
facts["collate"] = seen(loader), loader.mixup_enabled
loader.mixup_enabled = False
facts["collate-off"] = {tuple(row) for _, rows in loader for row in rows.tolist()} == set(
    map(tuple, torch.eye(3).tolist())
)
splits = AugMixDataset(create_dataset("", root=sys.argv[2], split="train"), num_splits=3)
loader = create_loader(splits, **common, is_training=True, num_workers=0, num_aug_splits=3, re_split=True, **recipe)
images, targets = next(iter(loader))
facts["splits"] = tuple(images.shape), targets.view(3, -1).unique(dim=0).shape[0]

# parts on their own, as DeiT, Swin and their kin use them
transform = create_transform(input_size=32, is_training=True, color_jitter=0.4, interpolation="bicubic", re_prob=0.25)
transform.transforms[0] = RandomResizedCropAndInterpolation(32, scale=(0.5, 1.0), interpolation="bilinear")
facts["deit"] = tuple(transform(Image.new("RGB", (50, 40))).shape)
facts["erased"] = RandomErasing(1.0, mode="const", device="cpu")(torch.ones(3, 32, 32)).eq(0).any().item()
facts["ordered"] = [list(OrderedDistributedSampler(dataset, 2, rank)) for rank in range(2)]
facts["filter"] = str_to_pil_interp("bicubic") in (3, Image.BICUBIC), IMAGENET_DEFAULT_MEAN
finish()
