"""timm's functions around the Hugging Face hub, done by opsin's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from opsin.errors import OpsinError
from opsin.weights.artefact import read_config, save
from opsin.weights.fetch import HUB_WEIGHTS, download_url, hub_file, split_hub_name
from opsin.weights.read import read_state_dict

__all__ = [
    "download_cached_file",
    "has_hf_hub",
    "hf_split",
    "load_model_config_from_hf",
    "load_state_dict_from_hf",
    "save_for_hf",
]


def has_hf_hub(necessary: bool = False) -> bool:
    """Whether the hub's client is installed: always, opsin needs it."""
    return True


def hf_split(hf_id: str) -> tuple[str, str | None]:
    """`org/repo@revision` into its parts."""
    return split_hub_name(hf_id)


def load_model_config_from_hf(
    model_id: str, cache_dir: str | Path | None = None
) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """The record of a repository's weights, the name of its architecture, and the arguments to build it with."""
    config = read_config(f"hf-hub:{model_id}", cache_dir=cache_dir)
    labels = {key: config[key] for key in ("label_names", "label_descriptions") if config.get(key)}
    record = config["pretrained_cfg"] | labels | {"hf_hub_id": model_id}
    if config.get("num_classes") is not None:
        record["num_classes"] = config["num_classes"]
    return record, config["architecture"], dict(config.get("model_args") or {})


def load_state_dict_from_hf(
    model_id: str, filename: str = HUB_WEIGHTS[0], weights_only: bool = True, cache_dir: str | Path | None = None
) -> dict[str, Tensor]:
    """The weights in a repository; code in them is never run."""
    if not weights_only:
        raise OpsinError("opsin reads checkpoints with weights_only=True and never runs code they hold")
    repo, revision = split_hub_name(model_id)
    names = HUB_WEIGHTS if filename in HUB_WEIGHTS else (filename,)
    return read_state_dict(hub_file(repo, names, revision=revision, cache_dir=cache_dir))


def download_cached_file(
    url: str | tuple[str, str] | list[str], check_hash: bool = True, progress: bool = False,
    cache_dir: str | Path | None = None,
) -> str:  # fmt: skip
    """The file at a URL, in torch hub's cache. A hash in its name is checked in any case."""
    if not isinstance(url, str):
        raise OpsinError("download_cached_file takes a URL whose last part is the file's name")
    return str(download_url(url, progress=progress, cache_dir=cache_dir))


def save_for_hf(
    model: nn.Module, save_directory: str | Path, model_config: Mapping[str, Any] | None = None,
    model_args: Mapping[str, Any] | None = None, safe_serialization: bool | str = True,
) -> None:  # fmt: skip
    """`opsin.save`: safetensors, and a config that says how the model was built, whatever `model_args` it was."""
    config = dict(model_config or {})
    names, words = config.pop("label_names", None), config.pop("label_descriptions", None)
    if config or safe_serialization is False:
        what = f"model_config={sorted(config)}" if config else "safe_serialization=False"
        raise OpsinError(f"save_for_hf({what}): opsin writes safetensors, and of a config what the model says itself")
    save(model, save_directory, label_names=names, label_descriptions=words)
