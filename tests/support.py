"""What the tests share: families, small variants of them, seeded weights."""

from dataclasses import fields
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import opsin
from opsin import catalog
from opsin.models._index import MODELS
from opsin.models._registry import find_family

FAMILIES = sorted(set(MODELS.values()))


@cache
def smallest(family: str) -> str:
    """The variant of a family file with the fewest parameters."""
    return min((n for n, f in MODELS.items() if f == family), key=lambda n: catalog.model_facts(n).params)


def shrink(arch: str, *, judged: bool = False) -> dict[str, Any]:
    """Arguments that keep an architecture's path through the code but make it small and quick.

    With `judged` only those that the judge takes as well.
    """
    config = find_family(arch).variants[arch]
    names = config.names()
    small: dict[str, Any] = {}
    fixed = getattr(config, "pruned", "") or arch.endswith("_bit")  # the judge takes no depths for the BiT ones
    if "layers" in names and isinstance(config.layers, tuple) and not fixed:
        small["layers"] = tuple(min(layers, 2) for layers in config.layers)
    for name in ("block_config", "k_sec"):  # layers per block of a DenseNet, blocks per stage of a DPN
        if name in names:
            small[name] = tuple(min(count, 2) for count in getattr(config, name))
    given = judged and "token_mixers" in names  # nor depths and widths for MetaFormers
    if "depths" in names and not given:
        small["depths"] = tuple(min(depth, 2) for depth in config.depths)
    if "dims" in names and not given:
        small["dims"] = tuple(16 + 8 * i for i in range(len(config.dims)))
    if "depth" in names and "w0" not in names:  # of a RegNet it decides the number of stages
        deep = config.depth
        small["depth"] = tuple(min(d, 2) for d in deep) if isinstance(deep, tuple) else min(deep, 3)
    if isinstance(getattr(config, "num_kv_heads", None), tuple):  # three blocks with four heads of queries
        small["num_kv_heads"] = (4, 2, 4)
    mixer = "num_blocks" in names and "img_size" in names  # of these the judge takes no other depths and widths
    if "embed_dim" in names and isinstance(config.embed_dim, int) and not mixer:
        small |= narrow(config)
    if not mixer and getattr(config, "mlp_layer", "") in ("GluMlp", "SwiGLUPacked"):
        small["mlp_ratio"] = 4.0  # a hidden width that splits in halves
    if config.__class__.__module__.endswith("vgg"):
        small["mlp_ratio"] = 1 / 64  # nearly all its parameters are in the hidden layer of the head
    if config.__class__.__module__.endswith(".nasnet"):  # its widths follow from that of the last map
        small |= {"stem_size": 8, "num_features": 192}
    if arch.startswith("pnasnet") and not judged:
        small |= {"stem_size": 8, "num_features": 160}
    if "img_size" in names:
        patch = getattr(config, "patch_size", 32)
        patch = patch if isinstance(patch, int) else patch[0]
        scale = 8 if "depths" in names else 1  # stages halve the map
        small["img_size"] = (4 * scale * patch, 5 * scale * patch)
    return small


def narrow(config: Any) -> dict[str, Any]:
    """A small width that its heads divide."""
    heads = getattr(config, "num_heads", None)
    if isinstance(heads, tuple):
        return {"embed_dim": 8 * heads[0]}
    return {"embed_dim": 64} if heads is None else {"embed_dim": 64, "num_heads": 4}


def image_size(arch: str) -> tuple[int, int]:
    """A small, not square size that the shrunk architecture takes."""
    return shrink(arch).get("img_size", (96, 128))


def build(family: str, **kwargs: Any) -> Any:
    """The smallest variant of a family, shrunk, with seeded random values."""
    arch = smallest(family)
    torch.manual_seed(0)
    return opsin.create_model(arch, **(shrink(arch) | kwargs))


def images(family: str, *, batch: int = 2, in_chans: int = 3, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, in_chans, *image_size(smallest(family)), generator=generator)


@torch.no_grad()
def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Values that let every part matter: no zero-initialised branch, lively norms, sane activations."""
    torch.manual_seed(seed)
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        if "var" in name or (value.ndim == 1 and name.endswith("weight")):
            value.uniform_(0.5, 1.0)
        elif value.ndim <= 1:
            value.normal_(0, 0.05)
        else:
            value.normal_(0, (1.0 / value[0].numel()) ** 0.5)
    return model


def config_args(arch: str) -> dict[str, Any]:
    config = find_family(arch).variants[arch]
    return {f.name: getattr(config, f.name) for f in fields(config)}


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12)).item()
