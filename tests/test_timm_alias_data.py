"""`timm.data` answered by opsin: a script run beside real timm, equal values, datasets and loaders."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.data
import torch
from support import photo
from test_timm_alias import run_twice
from torch.utils.data import Dataset, DistributedSampler

from opsin.errors import ImageError, OpsinError
from opsin.integrations.timm_alias import _augment, _dataset, _loader, _pictures, _readers, _transforms

STILL = {"scale": (1, 1), "ratio": (4 / 3, 4 / 3), "hflip": 0.0, "color_jitter": None}
CPU = {"device": torch.device("cpu"), "num_workers": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train and val with three classes; PNG and JPEG of several sizes."""
    root = tmp_path_factory.mktemp("pictures")
    seed = 0
    for split, count in (("train", 6), ("val", 3)):
        for name in ("cat", "dog", "eel"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                seed += 1
                suffix = "jpg" if i % 2 else "png"
                photo(60 + 7 * i, 80 - 3 * i, seed).save(root / split / name / f"{i}.{suffix}")
    return root


# --- a script, with both libraries -----------------------------------------------------------------------------------


def test_a_training_script(folder: Path, tmp_path: Path) -> None:
    real, alias = run_twice("data_client.py", tmp_path, folder)
    assert real["out"].keys() == alias["out"].keys()
    for name, theirs in real["out"].items():
        for a, b in zip(alias["out"][name], theirs, strict=True):
            assert a.dtype == b.dtype, name
            # without a prefetcher bit for bit; timm's prefetcher rounds otherwise on the way
            assert (
                torch.equal(a, b)
                if "False" in name
                else torch.allclose(a, b, rtol=0, atol=2e-3 if name == "half" else 1e-6)
            ), name
    assert real["facts"].keys() == alias["facts"].keys()
    for name, theirs in real["facts"].items():
        ours = alias["facts"][name]
        if name not in ("train-True", "train-False", "collate"):
            assert ours == theirs, name
            continue
        ours, theirs = (facts[0] if name == "collate" else facts for facts in (ours, theirs))
        for fact in ("length", "shape", "count", "dtypes", "row", "classes"):
            assert ours[fact] == theirs[fact], (name, fact)
        assert ours["order"] != sorted(ours["order"]), "shuffled"
        for low, high in (ours["range"], theirs["range"]):  # normalised, with some noise that erased
            assert -6 < low < -1.5
            assert 1.5 < high < 6
        assert ours["sums"] is None or ours["sums"] < 1e-6


# --- equal values ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["CenterCropOrPad", "TrimBorder", "ToNumpy", "ToTensor", "MaybeToTensor", "ResizeKeepRatio"]
)
def test_single_steps_equal_timms(name: str) -> None:
    ours = {"ToTensor": _pictures.ToRawTensor, "MaybeToTensor": _pictures.ToTensor}.get(name) or getattr(
        _pictures, name
    )
    judge = getattr(timm.data, name)
    fixed = {"random_scale_prob": 1.0, "random_scale_range": (0.6, 0.6)}
    options: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
        "CenterCropOrPad": [
            *(((size,), {}) for size in (24, 61, 59, (90, 20), (20, 99), (81, 101))),
            (((99, 40),), {"fill": 9}),
            ((110,), {"fill": (1, 2, 3)}),
            *((((70, 90),), {"padding_mode": mode}) for mode in ("edge", "reflect", "symmetric")),
        ],
        "TrimBorder": [((4,), {}), ((29,), {})],
        "ResizeKeepRatio": [
            *(((size,), {"longest": share}) for size in (32, (24, 50)) for share in (0, 0.5, 1)),
            ((32,), fixed),
            ((32,), {**fixed, "random_scale_area": True, "interpolation": "bicubic"}),
            ((32,), {"random_aspect_prob": 1.0, "random_aspect_range": (0.8, 0.8)}),
        ],
    }
    for args, kwargs in options.get(name, [((), {})]):
        a, b = ours(*args, **kwargs)(photo()), judge(*args, **kwargs)(photo())
        assert np.array_equal(np.asarray(a), np.asarray(b)), (args, kwargs)
    if name == "CenterCropOrPad":
        batch = torch.rand(2, 3, 30, 20)
        assert torch.equal(ours((24, 40))(batch), judge((24, 40))(batch))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"interpolation": "bicubic", "crop_pct": 1.0, "mean": (0.5,) * 3, "std": (0.3,) * 3},
        {"crop_mode": "border"},
        {"crop_mode": "squash", "normalize": False},
        {"crop_border_pixels": 7},
        {"use_prefetcher": True},
        {"is_training": True, "no_aug": True, "interpolation": "random"},
        {"input_size": (3, 40, 56), "is_training": True, "no_aug": True},
        {"is_training": True, "scale": (1, 1), "ratio": (4 / 3, 4 / 3), "hflip": 1, "vflip": 1, "color_jitter": None},
        {"is_training": True, "use_prefetcher": True, "scale": (1, 1), "ratio": (4 / 3, 4 / 3), "hflip": 0.0,
         "color_jitter": 0.0, "grayscale_prob": 1.0},
    ],
)  # fmt: skip
def test_transforms_without_chance_equal_timms(options: dict[str, Any]) -> None:
    options = {"input_size": 48, **options}
    ours, theirs = (make(**options)(photo()) for make in (_transforms.create_transform, timm.data.create_transform))
    assert ours.dtype == theirs.dtype
    # resampling of a training crop is opsin's, within a few grey levels
    grey = 4 * (1 if ours.dtype == torch.uint8 else 1 / 255 / 0.22)
    exact = not options.get("is_training") or options.get("no_aug")
    assert (ours.float() - theirs.float()).abs().max() <= (1e-6 if exact else grey)


def test_resolve_data_config_equals_timms() -> None:
    from opsin.data.preprocess import resolve_data_config

    given: list[dict[str, Any]] = [
        {"img_size": 100},
        {"input_size": (3, 64, 48), "img_size": None},
        {"mean": (0.5,), "std": [0.2, 0.3, 0.4]},
        {"interpolation": "bilinear", "crop_pct": 0.9, "crop_mode": "squash", "lr": 0.1},
        {"interpolation": "", "crop_pct": None, "mean": None},
    ]
    record = {"input_size": (3, 200, 200), "test_input_size": (3, 256, 256), "crop_pct": 0.9, "test_crop_pct": 1.0,
              "interpolation": "bicubic", "mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3)}  # fmt: skip
    for args in given:
        for cfg in (None, record):
            for test in (False, True):
                theirs = timm.data.resolve_data_config(args, pretrained_cfg=cfg, use_test_size=test)
                assert resolve_data_config(args, pretrained_cfg=cfg, use_test_size=test) == theirs, (args, cfg, test)


def test_samplers_equal_timms() -> None:
    from timm.data import distributed_sampler as judge

    for length in (100, 1000, 2561):
        for replicas in (1, 2, 3):
            data, last = range(length), replicas - 1
            ours, theirs = (m.OrderedDistributedSampler(data, replicas, last) for m in (_loader, judge))
            assert list(ours) == list(theirs)
            assert (len(ours), ours.num_valid_samples) == (len(theirs), theirs.num_valid_samples)
            for options in ({}, {"num_repeats": 2, "selected_round": 0}, {"selected_ratio": 4, "selected_round": 10}):
                options = {"shuffle": False, **options}
                ours, theirs = (m.RepeatAugSampler(data, replicas, last, **options) for m in (_loader, judge))
                assert list(ours) == list(theirs)
                assert len(ours) == len(theirs)
    sampler = _loader.RepeatAugSampler(range(1000), 2, 0)
    first = list(sampler)
    assert first == list(sampler)
    sampler.set_epoch(1)
    assert first != list(sampler)


def test_real_labels_equal_timms(tmp_path: Path) -> None:
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, 50001)]
    judge = timm.data.RealLabelsImagenet(names)
    ours = _readers.RealLabelsImagenet(names[:64])
    outputs = torch.rand(64, 1000, generator=torch.Generator().manual_seed(0))
    for i in range(0, 64, 2):
        for label in judge.real_labels[names[i]][:1]:
            outputs[i, label] += 1
    for part in outputs.split(16):
        ours.add_result(part)
        judge.add_result(part)
    assert ours.get_accuracy() == pytest.approx(judge.get_accuracy())
    assert ours.get_accuracy(k=5) == pytest.approx(judge.get_accuracy(k=5))
    (tmp_path / "real.json").write_text("[[3], [], [1, 2]]")
    own = _readers.RealLabelsImagenet(names[:3], real_json=str(tmp_path / "real.json"), topk=(1,))
    own.add_result(torch.eye(5)[[3, 0, 4]])
    assert own.get_accuracy() == {1: 50.0}


# --- datasets and loaders --------------------------------------------------------------------------------------------


class Tiny(Dataset):
    """A dataset of the user's own."""

    transform: Any = None

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(photo(seed=index)), index


def test_loader_takes_any_dataset_and_its_arguments_act() -> None:
    def batch(**options: Any) -> tuple[Any, Any]:
        torch.manual_seed(0)
        still = {**STILL, "hflip": 0.0}
        loader = _loader.create_loader(
            Tiny(), **{"input_size": (3, 32, 32), "batch_size": 4, **CPU, **still, **options}
        )
        return loader, next(iter(loader))

    loader, (images, targets) = batch()
    assert (len(loader), targets.tolist(), images.dtype) == (3, [0, 1, 2, 3], torch.float32)
    loader, (trained, order) = batch(is_training=True)
    assert (len(loader), loader.sampler is loader.loader.sampler) == (2, True)
    assert order.tolist() != [0, 1, 2, 3]
    assert batch(batch_size=5, input_size=48)[1][0].shape == (5, 3, 48, 48)
    assert batch(fp16=True)[1][0].dtype == torch.float16
    assert batch(img_dtype=torch.bfloat16)[1][0].dtype == torch.bfloat16
    for options in ({"crop_pct": 0.5}, {"crop_mode": "squash"}, {"crop_border_pixels": 9}, {"interpolation": "nearest"},
                    {"mean": (0.1,) * 3}, {"std": (0.1,) * 3}):  # fmt: skip
        assert not torch.equal(batch(**options)[1][0], images), options
    for options in ({"re_prob": 1.0}, {"no_aug": True}, {"hflip": 1.0}, {"vflip": 1.0}, {"auto_augment": "rand-m9"},
                    {"color_jitter": 0.5}, {"grayscale_prob": 1.0}, {"gaussian_blur_prob": 1.0},
                    {"scale": (0.1, 0.2)}, {"train_crop_mode": "rkrr"}):  # fmt: skip
        assert not torch.equal(batch(is_training=True, **options)[1][0], trained), options
    assert torch.equal(
        batch(is_training=True, no_aug=True, re_prob=1.0)[1][0], batch(is_training=True, no_aug=True)[1][0]
    )
    assert set(batch(is_training=True, num_aug_repeats=2.0)[1][1].bincount().tolist()) == {0, 2}
    assert isinstance(batch(use_prefetcher=False)[0], torch.utils.data.DataLoader)
    kept = batch(collate_fn=lambda samples: (torch.stack([image for image, _ in samples]), torch.zeros(4)))
    assert kept[1][1].tolist() == [0.0] * 4
    grey = batch(input_size=(1, 32, 32))[1][0]
    assert grey.shape == (4, 1, 32, 32)
    multi = _loader.MultiEpochsDataLoader(list(range(4)), num_workers=1)
    assert multi.persistent_workers
    for options in (
        {"num_workers": 1},
        {"num_workers": 1, "persistent_workers": False, "use_multi_epochs_loader": True},
    ):
        assert batch(**options)[0].loader.persistent_workers
    with pytest.raises(OpsinError, match="AugMixDataset"):
        batch(num_aug_splits=2)
    with pytest.raises(OpsinError, match="num_aug_repeats"):
        batch(num_aug_repeats=2)
    with pytest.raises(OpsinError, match="use create_loader"):
        _loader.create_naflex_loader(Tiny(), patch_size=16)
    with pytest.raises(OpsinError, match="batch_size_choices"):
        batch(batch_size_choices=[2, 4])
    with pytest.raises(TypeError, match="batch_siz_choices"):
        batch(batch_siz_choices=[2, 4])
    with pytest.raises(TypeError, match="worker_seeding"):
        batch(worker_seeding="non")


def test_workers_are_seeded_and_mixing_can_be_turned_off() -> None:
    seeded: list[int] = []
    common = {"input_size": (3, 16, 16), "batch_size": 2, "device": "cpu", "is_training": True, "num_workers": 1}
    mixing = _augment.FastCollateMixup(1.0, num_classes=10, label_smoothing=0.0)
    loader = _loader.create_loader(
        Tiny(), **common, collate_fn=mixing, worker_seeding=lambda worker: seeded.append(worker)
    )
    first = torch.cat([rows for _, rows in loader])
    assert loader.mixup_enabled
    assert (first.max(1).values < 1).any()
    loader.mixup_enabled = False  # the worker that lives on hears of it
    second = torch.cat([rows for _, rows in loader])
    assert (second.max(1).values == 1).all()
    assert not mixing.mixup_enabled
    assert not seeded, "the worker's, not this process's"


def test_distributed(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        common = {"input_size": 16, "batch_size": 2, "distributed": True, **CPU}
        loader = _loader.create_loader(Tiny(), is_training=True, **common)
        assert isinstance(loader.sampler, DistributedSampler)
        orders = []
        for epoch in (0, 0, 1):
            loader.sampler.set_epoch(epoch)
            orders.append(torch.cat([targets for _, targets in loader]).tolist())
        assert orders[0] == orders[1] != orders[2]
        assert isinstance(_loader.create_loader(Tiny(), **common).sampler, _loader.OrderedDistributedSampler)
    finally:
        torch.distributed.destroy_process_group()


def test_datasets_by_name(folder: Path, tmp_path: Path) -> None:
    def made(name: str = "", root: Any = folder, **options: Any) -> Any:
        return _dataset.create_dataset(name, root=root, **options)

    for options in ({"split": "train"}, {"split": "validation"}, {"split": "val"}, {"class_map": ""},
                    {"root": folder / "train"},
                    {"split": "train", "class_map": {"cat": 0, "dog": 5, "eel": 2}}):  # fmt: skip
        options = {"root": folder, **options}
        for name in ("", "image_folder"):
            ours, theirs = (
                made(name, **options),
                timm.data.create_dataset(name, **{**options, "root": str(options["root"])}),
            )
            assert ours.filenames() == theirs.filenames()
            assert ours.filename(2, absolute=True) == theirs.filename(2, absolute=True)
            assert [t for _, t in ours] == [t for _, t in theirs]
            assert all(a.tobytes() == b.tobytes() for (a, _), (b, _) in zip(ours, theirs, strict=True))
    assert made(load_bytes=True)[0][0] == (folder / "val/cat/0.png").read_bytes()
    assert made(input_img_mode="L")[0][0].mode == "L"
    (folder / "map.txt").write_text("eel\ndog\ncat\n")
    assert made(class_map="map.txt")[0][1] == 2
    assert made(search_split=False, root=folder / "train").reader.classes == ("cat", "dog", "eel")
    assert made(target_transform=lambda target: target + 10, transform=lambda image: image.size)[0] == ((80, 60), 10)
    (tmp_path / "flat").mkdir()
    photo().save(tmp_path / "flat" / "a.png")
    assert made(root=tmp_path / "flat")[0][1] == -1
    for place in ("train/a", "train/b", "val/b/deep"):
        (tmp_path / "few" / place).mkdir(parents=True)
        photo().save(tmp_path / "few" / place / "a.png")
    (tmp_path / "few/val/b/deep/a.png").rename(tmp_path / "few/val/b/a.png")
    assert made(root=tmp_path / "few")[0][1] == 1  # as the training split numbers it
    assert made("torch/image_folder", split="train").reader.classes == ("cat", "dog", "eel")
    assert made("torch/fake_data", root=None, split="train", size=3, image_size=(3, 8, 8))[2][0].size == (8, 8)
    assert len(_dataset.ImageDataset(folder / "val").parser) == 9
    for name, options, words in (
        ("", {"split": "test"}, "no split 'test'"),
        ("", {"root": folder / "trian"}, "no such file"),
        ("", {"root": None}, "root="),
        ("", {"class_map": {"cat": 0}}, "no label for 2"),
        ("", {"trust_remote_code": True}, "trust_remote_code"),
        ("", {"download": True}, "download"),
        ("tfds/mnist", {}, "tfds"),
        ("foldre", {}, "folder"),
        ("hfds/mnist", {}, "root="),
        ("", {"size": 3}, "size=3"),
    ):
        with pytest.raises(OpsinError, match=words):
            made(name, **options)
    assert _readers.load_class_map("map.txt", str(folder)) == {"eel": 0, "dog": 1, "cat": 2}
    assert _readers.is_img_extension(".JPG")
    assert set(_readers.get_img_extensions()) == _readers.get_img_extensions(as_set=True) >= {".png", ".jpg", ".jpeg"}


def test_a_picture_that_cannot_be_read_is_left_out(folder: Path, tmp_path: Path, caplog: Any) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        photo().save(tmp_path / name / "good.png")
    (tmp_path / "a" / "bad.png").write_bytes(b"\x89PNG broken")
    dataset = _dataset.create_dataset("", root=tmp_path)
    with pytest.raises(ImageError, match=r"bad\.png"):
        dataset[0]
    with caplog.at_level(logging.WARNING, logger="opsin.data"):
        (batch,) = _loader.create_loader(dataset, 16, 3, **CPU)
    assert batch[1].tolist() == [0, 1]
    assert "bad.png" in caplog.text
    with pytest.raises(ImageError, match="none of the 1 pictures"):
        list(_loader.create_loader(dataset, 16, 1, **CPU))


def test_streams(folder: Path, tmp_path: Path) -> None:
    import io
    import tarfile

    with tarfile.open(tmp_path / "shard-000.tar", "w") as tar:
        for i in range(12):
            data = io.BytesIO()
            photo(seed=i).save(data, "PNG")
            for suffix, content in (("png", data.getvalue()), ("cls", str(i % 3).encode())):
                info = tarfile.TarInfo(f"{i:03d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    options = {"root": tmp_path, "split": None, "num_samples": 12}
    dataset = _dataset.create_dataset("wds/", **options)
    assert [target for _, target in dataset] == [i % 3 for i in range(12)]
    loader = _loader.create_loader(dataset, 16, 4, **CPU)
    assert len(loader) == len(list(loader)) == 3
    dataset = _dataset.create_dataset("wds/", is_training=True, seed=3, **options)
    orders = []
    for epoch in (0, 0, 1):
        dataset.set_epoch(epoch)
        orders.append([np.asarray(image).tobytes() for image, _ in dataset])
    assert orders[0] == orders[1] != orders[2]
    assert set(orders[0]) == set(orders[2])
    with pytest.raises(OpsinError, match="repeats"):
        _dataset.create_dataset("wds/", repeats=2, **options)
    with pytest.raises(OpsinError, match="no stream"):
        _dataset.IterableImageDataset(folder / "val")
