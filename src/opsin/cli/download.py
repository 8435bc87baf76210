"""`opsin download`: weights into folders that work on a machine without a network."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from opsin.errors import OpsinError

__all__ = ["download"]


def download(
    names: Annotated[list[str], tyro.conf.Positional],
    /,
    *,
    to: Path,
    cache_dir: Path | None = None,
) -> int:
    """Fetch models by name into folders of their own: model.safetensors and config.json in DIR/NAME.

    NAME is architecture.tag, or org--repo@revision for a model of the hub. A folder with another model is left as it
    is. There: create_model("local-dir:DIR/NAME", pretrained=True), or opsin predict --model local-dir:DIR/NAME.

    Args:
        names: Models such as resnet50 or resnet50.a1_in1k, or hf-hub:org/repo@revision.
        to: Where the folders go.
        cache_dir: Where downloads are kept meanwhile; the hub's own cache by default.
    """
    from opsin.factory import create_model
    from opsin.weights.artefact import read_config, save

    failed = 0
    for name in names:
        try:
            model = create_model(name, pretrained=True, cache_dir=cache_dir)
            folder = to / _folder(name, model)
            _check_free(folder, model)
            own = read_config(name, cache_dir=cache_dir).get("opsin") or {} if ":" in name else {}
            save(model, folder, recipe=own.get("recipe"), task=own.get("task"), heads=own.get("heads") or ())
        except (OpsinError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed += 1
            continue
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        print(f"{name}: {folder} ({size:.1f} MB)")
    return 1 if failed else 0


def _folder(name: str, model) -> str:
    """`architecture.tag`; for a hub model the names of its owner, itself and the revision; the own name of a folder."""
    kind, colon, place = name.partition(":")
    if kind == "local-dir":
        return Path(place).expanduser().resolve().name
    if colon:
        return place.replace("/", "--")
    tag = model.pretrained_cfg.get("tag")
    return f"{model.architecture}.{tag}" if tag else model.architecture


def _check_free(folder: Path, model) -> None:
    """Raise where the folder holds something else than this model."""
    from opsin.weights.artefact import CONFIG, WEIGHTS
    from opsin.weights.read import read_state_dict

    if not any((folder / name).exists() for name in (CONFIG, WEIGHTS)):
        return
    old, new = read_state_dict(folder / WEIGHTS), model.state_dict()
    if old.keys() != new.keys() or not all(value.equal(old[key]) for key, value in new.items()):
        raise OpsinError(f"{folder} already holds another model: remove it, or give another --to")
