"""What `timm.data.readers` (once `.parsers`) and `.real_labels` show: opsin's readers and labels by timm's names."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from opsin.data.images import IMAGE_SUFFIXES
from opsin.data.labels import ClassMap, real_targets
from opsin.data.readers import SLASHED, Folder, Reader, StreamReader, open_reader
from opsin.data.readers.folder import existing, split_folders
from opsin.errors import OpsinError, did_you_mean

__all__ = ["RealLabelsImagenet", "create_reader", "get_img_extensions", "is_img_extension", "load_class_map"]

FOLDERS = ("", "folder", "image_folder", "imagefolder", "image_tar")
STREAMED = ("hfids", "wds")


def create_reader(
    name: str = "",
    root: str | os.PathLike[str] | None = None,
    split: str | None = "train",
    *,
    search_split: bool = False,
    class_map: Any = None,
    download: bool = False,
    input_key: str | None = None,
    target_key: str | None = None,
    num_samples: int | None = None,
    **options: Any,
) -> Reader | StreamReader:
    """Opsin's reader for a name of timm's: "" is the folder or tar `root`; `torch/…`, `hfds/…`, `hfids/…`, `wds/…`.

    `split` says which part of a dataset is meant; of a folder only where `search_split` asks to look for one in it.
    `options` go to the source, such as a dataset of torchvision.
    """
    class_map = class_map or None  # scripts pass ""
    scheme, _, place = name.partition("/")
    if name.lower().removeprefix("torch/") in FOLDERS:
        none_of({"download": download, "input_key": input_key, "target_key": target_key}, "a folder")
        none_of({"num_samples": num_samples} | options, "a folder")
        if root is None:
            raise OpsinError("a dataset of files needs their folder: root=…")
        return _open_files(os.fspath(root), split if search_split else None, search_split, _map_at(class_map, root))
    if scheme not in SLASHED or not (place or root):
        raise OpsinError(
            f"no kind of dataset {name!r}.{did_you_mean(scheme, (*SLASHED, *FOLDERS))} "
            f"There are {'/…, '.join(SLASHED)}/… and '' for the folder or tar that root names"
        )
    options["class_map"] = class_map
    if scheme == "torch":
        none_of({"input_key": input_key, "target_key": target_key, "num_samples": num_samples}, name)
        options |= {"root": root or ".", "download": download}
    else:
        options |= {"image": input_key, "target": target_key}
        place = os.path.join(root, place) if root and scheme == "wds" and place else place
        none_of({"download": download, "root": root if scheme != "wds" else None}, name)
        if scheme in STREAMED:
            options["length"] = num_samples
        else:
            none_of({"num_samples": num_samples}, name)
    return open_reader(f"{scheme}:{place or root or ''}", split=split, holdout=0, **options)


def none_of(given: Mapping[str, Any], owner: str) -> None:
    for name, value in given.items():
        if value:
            raise OpsinError(f"{name}={value!r} changes nothing for {owner}; leave it out")


def _map_at(class_map: Any, root: str | os.PathLike[str]) -> Any:
    """A class map that is a file may lie in the folder of the dataset."""
    if isinstance(class_map, str | os.PathLike) and not os.path.exists(class_map):
        inside = Path(root) / class_map
        return inside if inside.exists() else class_map
    return class_map


def _open_files(root: str, split: str | None, search_split: bool, class_map: Any) -> Reader | StreamReader:
    root = existing(root)
    if os.path.isfile(root) or any(entry.endswith(".tar") for entry in os.listdir(root)):
        return open_reader(f"tar:{root}", class_map=class_map)
    if search_split and split_folders(root):
        return open_reader(f"folder:{root}", split=split, holdout=0, class_map=class_map)
    if class_map is None:
        return Folder(root)
    return open_reader(f"folder:{root}", class_map=ClassMap.of(class_map))


def load_class_map(map_or_filename: Any, root: str = "") -> dict[str, int]:
    """The index of each class name, from a mapping or a file, which may lie in `root`."""
    return dict(ClassMap.of(_map_at(map_or_filename, root)).index)


def get_img_extensions(as_set: bool = False) -> tuple[str, ...] | set[str]:
    """Suffixes of what counts as a picture in a folder."""
    return set(IMAGE_SUFFIXES) if as_set else tuple(sorted(IMAGE_SUFFIXES))


def is_img_extension(ext: str) -> bool:
    """Whether a suffix, with its dot, is one of them, in any case."""
    return ext.lower() in IMAGE_SUFFIXES


class RealLabelsImagenet:
    """Accuracy against the classes that ImageNet's validation pictures truly show; those that show none do not count.

    Args:
        filenames: of the pictures, in the order in which their outputs come.
        real_json: a file of the published labels; None takes those that come with opsin.
        topk: which accuracies.
    """

    def __init__(self, filenames: Sequence[str], real_json: str | None = None, topk: Sequence[int] = (1, 5)) -> None:
        self.real_labels = real_targets(filenames, source=real_json)
        self.topk, self.sample_idx = tuple(topk), 0
        self.is_correct: dict[int, list[bool]] = {k: [] for k in self.topk}

    def add_result(self, output: Tensor) -> None:
        """The outputs (B, 1000) of the next pictures."""
        for row in output.topk(max(self.topk)).indices.tolist():
            labels = self.real_labels[self.sample_idx]
            self.sample_idx += 1
            for k in self.topk if labels else ():
                self.is_correct[k].append(not set(labels).isdisjoint(row[:k]))

    def get_accuracy(self, k: int | None = None) -> float | dict[int, float]:
        """Percent of one of `topk`, or of each of them."""
        if k is None:
            return {each: self.get_accuracy(each) for each in self.topk}  # type: ignore[misc]
        correct = self.is_correct[k]
        return 100 * sum(correct) / len(correct)
