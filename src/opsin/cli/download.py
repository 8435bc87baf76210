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

    There: create_model("local-dir:DIR/NAME", pretrained=True), or opsin predict --model local-dir:DIR/NAME.

    Args:
        names: Models such as resnet50 or resnet50.a1_in1k, or hf-hub:org/repo@revision.
        to: Where the folders go.
        cache_dir: Where downloads are kept meanwhile; the hub's own cache by default.
    """
    from opsin.factory import create_model
    from opsin.weights.artefact import save

    failed = 0
    for name in names:
        try:
            model = create_model(name, pretrained=True, cache_dir=cache_dir)
            folder = to / _folder(name, model)
            save(model, folder)
        except (OpsinError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed += 1
            continue
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        print(f"{name}: {folder} ({size:.1f} MB)")
    return 1 if failed else 0


def _folder(name: str, model) -> str:
    """`architecture.tag`, or the repository's own name for a hub model."""
    if ":" in name:
        return name.partition(":")[2].rstrip("/").rpartition("/")[2].replace("@", "-")
    tag = model.pretrained_cfg.get("tag")
    return f"{model.architecture}.{tag}" if tag else model.architecture
