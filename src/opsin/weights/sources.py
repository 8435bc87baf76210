"""Where weights come from: a name, a path, a hub repository, a URL or a package in, a file or tensors out."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from opsin.catalog import PretrainedCfg, pretrained_cfg, tags
from opsin.errors import DamagedError, UnknownModelError, WeightsError
from opsin.weights.fetch import HUB_WEIGHTS, discard, download_url, hub_file, split_hub_name
from opsin.weights.packaged import find_packaged, read_packaged
from opsin.weights.read import check_values, read_state_dict

__all__ = ["HUB_PREFIXES", "LOCAL_PREFIX", "Source", "fetch_state_dict", "locate"]

Source = bool | str | Path | Mapping[str, Tensor]
HUB_PREFIXES = ("hf-hub:", "hf_hub:")
LOCAL_PREFIX = "local-dir:"
URL_PREFIXES = ("http://", "https://")


def fetch_state_dict(
    pretrained: Source, cfg: PretrainedCfg, *, cache_dir: str | Path | None = None, use_ema: bool = True
) -> dict[str, Tensor]:
    """The tensors of what `locate` finds. A fetched file that turns out damaged is taken out of its cache.

    Args:
        use_ema: of a training checkpoint with both, take the averaged weights.

    Raises:
        WeightsError: as `locate` and `read_state_dict`.
    """
    found = locate(pretrained, cfg, cache_dir=cache_dir)
    if not isinstance(found, Path):
        check_values(found, "the state dict")
        return found
    try:
        return read_state_dict(found, use_ema=use_ema)
    except DamagedError as error:
        if _is_remote(pretrained) or (pretrained is True and not cfg.file):
            discard(found)
            raise DamagedError(f"{error}. It was deleted from the cache: the next call fetches it anew") from None
        raise


def _is_remote(source: Source) -> bool:
    return isinstance(source, str) and source.lower().startswith((*HUB_PREFIXES, *URL_PREFIXES))


def locate(pretrained: Source, cfg: PretrainedCfg, *, cache_dir: str | Path | None = None) -> Path | dict[str, Tensor]:
    """Find weights, fetching them if need be: a file to read, or tensors ready under the model's keys.

    Args:
        pretrained: True for what `cfg` names, in this order: its file, an installed package that carries this tag, the
            hub, the URL. Or a file, a folder, `local-dir:FOLDER`, `hf-hub:org/repo@revision`, a URL, or a state
            dict (whose tensors are copied: a model never shares memory with what it was given).
        cfg: the record of the weight tag.
        cache_dir: for downloads; by default the hub's cache and torch hub's.

    Raises:
        WeightsError: one message for each thing that can fail, with the way out.
    """
    if isinstance(pretrained, Mapping):
        return {key: value.detach().clone() for key, value in pretrained.items()}
    if pretrained is True:
        return _published(cfg, cache_dir)
    if pretrained is False:
        raise WeightsError("pretrained=False asks for no weights")
    if isinstance(pretrained, Path):
        return _local(pretrained)
    for prefix in HUB_PREFIXES:
        if pretrained.startswith(prefix):
            repo, revision = split_hub_name(pretrained.removeprefix(prefix))
            return hub_file(repo, HUB_WEIGHTS, revision=revision, cache_dir=cache_dir)
    if pretrained.lower().startswith(URL_PREFIXES):
        return download_url(pretrained, cache_dir=cache_dir)
    return _local(Path(pretrained.removeprefix(LOCAL_PREFIX)))


def _published(cfg: PretrainedCfg, cache_dir: str | Path | None) -> Path | dict[str, Tensor]:
    if cfg.file:
        return _local(Path(cfg.file))
    known = _is_catalogued(cfg)
    if known and (found := find_packaged(cfg.name)):
        return read_packaged(cfg.name, found)
    if cfg.hf_hub_id:
        repo, revision = split_hub_name(cfg.hf_hub_id)
        names = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else HUB_WEIGHTS
        return hub_file(repo, names, revision=revision, cache_dir=cache_dir)
    if cfg.url:
        return download_url(cfg.url, cache_dir=cache_dir, published=known)
    raise WeightsError(f"no weights are published for {cfg.name or 'this model'}.{_others(cfg)}")


def _is_catalogued(cfg: PretrainedCfg) -> bool:
    """Whether the record names the sources that the catalogue has for its tag, and not a user's own."""
    try:
        known = pretrained_cfg(cfg.name)
    except UnknownModelError:
        return False
    return (known.hf_hub_id, known.hf_hub_filename, known.url) == (cfg.hf_hub_id, cfg.hf_hub_filename, cfg.url)


def _others(cfg: PretrainedCfg) -> str:
    try:
        names = [f"{cfg.architecture}.{tag}" for tag in tags(cfg.architecture)]
        known = [name for name in names if pretrained_cfg(name).has_weights]
    except UnknownModelError:
        known = []
    if known:
        return f" These have some: {', '.join(known)}"
    return " Give a file, folder, hub repository or URL as `pretrained`, or pretrained=False for random values"


def _local(path: Path) -> Path:
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
