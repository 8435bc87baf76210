"""Pictures and labels from files to batches. Names are imported when they are first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opsin.data.augment.erase import RandomErasing as RandomErasing
    from opsin.data.augment.mix import Mix as Mix
    from opsin.data.dataset import ImageDataset as ImageDataset
    from opsin.data.dataset import StreamDataset as StreamDataset
    from opsin.data.dataset import create_dataset as create_dataset
    from opsin.data.loader import Batch as Batch
    from opsin.data.loader import Loader as Loader
    from opsin.data.loader import create_loader as create_loader
    from opsin.data.preprocess import Preprocess as Preprocess
    from opsin.data.preprocess import create_transform as create_transform
    from opsin.data.preprocess import resolve_data_config as resolve_data_config
    from opsin.data.preprocess import resolve_model_data_config as resolve_model_data_config
    from opsin.data.readers import open_reader as open_reader
    from opsin.data.transforms import EvalTransform as EvalTransform
    from opsin.data.transforms import TrainTransform as TrainTransform

_HOME = {
    "Batch": "loader",
    "EvalTransform": "transforms",
    "ImageDataset": "dataset",
    "Loader": "loader",
    "Mix": "augment.mix",
    "Preprocess": "preprocess",
    "RandomErasing": "augment.erase",
    "StreamDataset": "dataset",
    "TrainTransform": "transforms",
    "create_dataset": "dataset",
    "create_loader": "loader",
    "create_transform": "preprocess",
    "open_reader": "readers",
    "resolve_data_config": "preprocess",
    "resolve_model_data_config": "preprocess",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"opsin.data.{_HOME[name]}"), name)
    raise AttributeError(f"module 'opsin.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
