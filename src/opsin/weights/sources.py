"""Where weights come from: a name, a path, a hub repository, a URL or a package in, a file or tensors out."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from opsin.catalog import PretrainedCfg, pretrained_cfg, tags
from opsin.errors import UnknownModelError, WeightsError
from opsin.weights.fetch import HUB_WEIGHTS, download_url, hub_file, split_hub_name
from opsin.weights.packaged import find_packaged, read_packaged

__all__ = ["HUB_PREFIXES", "LOCAL_PREFIX", "Source", "local_weights", "locate"]

Source = bool | str | Path | Mapping[str, Tensor]
HUB_PREFIXES = ("hf-hub:", "hf_hub:")
LOCAL_PREFIX = "local-dir:"


def locate(
    pretrained: Source,
    cfg: PretrainedCfg,
    *,
    cache_dir: str | Path | None = None,
    checkpoint_path: str | Path | None = None,
) -> Path | dict[str, Tensor]:
    """Find weights, fetching them if need be: a file to read, or tensors ready under the model's keys.

    Args:
        pretrained: True for what `cfg` names, in this order: its file, an installed package that carries this tag, the
            hub, the URL. Or a file, a folder, `local-dir:FOLDER`, `hf-hub:org/repo@revision`, a URL, or a state
            dict (whose tensors are copied: a model never shares memory with what it was given).
        cfg: the record of the weight tag.
        cache_dir: for downloads; by default the hub's cache and torch hub's.
        checkpoint_path: a file or folder that takes precedence over everything else.

    Raises:
        WeightsError: one message for each thing that can fail, with the way out.
    """
    if checkpoint_path:
        return local_weights(Path(checkpoint_path))
    if isinstance(pretrained, Mapping):
        return {key: value.detach().clone() for key, value in pretrained.items()}
    if pretrained is True:
        return _published(cfg, cache_dir)
    if pretrained is False:
        raise WeightsError("pretrained=False asks for no weights")
    if isinstance(pretrained, Path):
        return local_weights(pretrained)
    for prefix in HUB_PREFIXES:
        if pretrained.startswith(prefix):
            repo, revision = split_hub_name(pretrained.removeprefix(prefix))
            return hub_file(repo, HUB_WEIGHTS, revision=revision, cache_dir=cache_dir)
    if pretrained.startswith(("http://", "https://")):
        return download_url(pretrained, cache_dir=cache_dir)
    return local_weights(Path(pretrained.removeprefix(LOCAL_PREFIX)))


def _published(cfg: PretrainedCfg, cache_dir: str | Path | None) -> Path | dict[str, Tensor]:
    if cfg.file:
        return local_weights(Path(cfg.file))
    if found := find_packaged(cfg.name):
        return read_packaged(cfg.name, found)
    if cfg.hf_hub_id:
        repo, revision = split_hub_name(cfg.hf_hub_id)
        names = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else HUB_WEIGHTS
        return hub_file(repo, names, revision=revision, cache_dir=cache_dir)
    if cfg.url:
        return download_url(cfg.url, cache_dir=cache_dir)
    raise WeightsError(f"no weights are published for {cfg.name or 'this model'}.{_others(cfg)}")


def _others(cfg: PretrainedCfg) -> str:
    try:
        names = [f"{cfg.architecture}.{tag}" for tag in tags(cfg.architecture)]
        known = [name for name in names if pretrained_cfg(name).has_weights]
    except UnknownModelError:
        known = []
    if known:
        return f" These have some: {', '.join(known)}"
    return " Give a file, folder, hub repository or URL as `pretrained`, or pretrained=False for random values"


def local_weights(path: Path) -> Path:
    """The weights file that a path is, or that the folder there holds; raises `WeightsError` where there is none."""
    path = path.expanduser()
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsError(f"no weights file or folder at {path}")
    for name in HUB_WEIGHTS:
        if (path / name).is_file():
            return path / name
    if (path / "model.safetensors.index.json").is_file():
        raise WeightsError(f"{path} holds weights in several pieces, which are not read; merge them into one file")
    found = sorted(path.glob("*.safetensors")) or sorted([*path.glob("*.pth"), *path.glob("*.bin"), *path.glob("*.pt")])
    if len(found) == 1:
        return found[0]
    if found:
        raise WeightsError(f"{path} holds several weight files; name one: {', '.join(file.name for file in found)}")
    raise WeightsError(f"{path} holds no weights: no model.safetensors, .pth or .bin in it")
