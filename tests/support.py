"""What the tests share: families, small variants of them, seeded weights, pictures, ports."""

import socket
from contextlib import suppress
from dataclasses import fields, replace
from functools import cache
from random import SystemRandom
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import opsin
from opsin import catalog
from opsin.models._index import MODELS
from opsin.models._registry import find_family

FAMILIES = sorted(set(MODELS.values()))


def free_port() -> int:
    """A port that nobody uses, for processes that meet there seconds later. It lies below those that the system lends
    to connections, one of which might get it until then; and runs seed `random`, which would give each test the same.
    """
    while True:
        port = SystemRandom().randrange(20000, 32768)
        with suppress(OSError), socket.socket() as place:
            place.bind(("127.0.0.1", port))
            return port


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
    given = judged and ("token_mixers" in names or "num_levels" in names)  # nor for MetaFormers, NesT
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
    if hasattr(config, "self_attn_layer"):  # a ByobNet
        rows = (row[:4] if isinstance(row, tuple) else replace(row, d=min(row.d, 2)) for row in config.blocks)
        small["blocks"] = tuple(rows)
    if getattr(config, "img_size", None):
        patch = getattr(config, "patch_size", 32)
        patch = patch if isinstance(patch, int) else patch[0]
        scale = 8 if "depths" in names else 1  # stages halve the map
        small["img_size"] = (4 * scale * patch, 5 * scale * patch)
        if judged and (side := side_of_blocks(config)):
            small["img_size"] = (side, side)
        if judged and "num_levels" in names:  # a NesT, which the judge builds for square images
            small["img_size"] = (64, 64)
    if "cfgs" in names and not judged:  # rows of blocks by stage, of a GhostNet or RepGhostNet
        small["cfgs"] = tuple(stage[:2] for stage in config.cfgs)
    if "stem_width" in names and "block_type" in names:  # CoAtNet and MaxViT: widths for heads of 32, windows of 2x3
        small |= {"embed_dim": (32, 64, 128, 256), "stem_width": (16, 32), "img_size": (64, 96)}
    if "outlook_attention" in names:  # VOLO, whose later stages are at 1/16
        small["img_size"] = (64, 96)
        if judged:  # nor does the judge take other layers for it
            del small["layers"]
    if "backbone_layers" in names:  # a hybrid vision transformer, whose patches are of a small map
        small["img_size"] = (128, 160)
        if config.backbone == "conv":  # makes the tokens itself: the judge takes no other width
            small = {name: value for name, value in small.items() if name not in ("embed_dim", "num_heads")}
    return small


def side_of_blocks(config: Any) -> int:
    """The judge's attention in blocks needs images whose sides are multiples of this; 0 for other architectures."""
    if not hasattr(config, "self_attn_layer"):
        return 0
    blocks = [block for row in config.blocks for block in (row if isinstance(row, tuple) else (row,))]
    halo = "halo" in [part.self_attn_layer for part in (config, *blocks)]
    return 32 * config.self_attn_kwargs.get("block_size", 8) if halo or config.attn_layer == "bat" else 0


def narrow(config: Any) -> dict[str, Any]:
    """A small width that its heads divide."""
    heads = getattr(config, "num_heads", None)
    if isinstance(heads, tuple):
        return {"embed_dim": 8 * heads[0]}
    return {"embed_dim": 64} if heads is None else {"embed_dim": 64, "num_heads": 4}


def image_size(arch: str, *, judged: bool = False) -> tuple[int, int]:
    """A small size that the shrunk architecture takes, not square where that can be."""
    side = side_of_blocks(find_family(arch).variants[arch]) if judged else 0
    unpadded = "inception" in find_family(arch).variants[arch].__class__.__module__  # their stems lose the border
    plain = (side, side) if side else (96, 128) if unpadded else (64, 96)
    return shrink(arch, judged=judged).get("img_size", plain)


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


def photo(height: int = 60, width: int = 80, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    noise = rng.integers(0, 20, (height, width, 3))
    return Image.fromarray((np.asarray(coarse) // 1.2 + noise).clip(0, 255).astype(np.uint8))
