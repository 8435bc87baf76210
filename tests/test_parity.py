"""Same random weights here and in the judge: the same logits and the same maps, for each path through a family's code.

A path is what the config says in words and switches (strings, booleans, None, classes); of the variants that share one,
the smallest stands for all. Depth and width are made small on both sides where the config allows it.
"""

import pytest
import torch
from support import image_size, randomize, relative_error, shrink

import opsin
from opsin import catalog
from opsin.models._index import MODELS
from opsin.models._registry import find_family

timm = pytest.importorskip("timm")


def path_of(arch: str) -> tuple:
    config = find_family(arch).variants[arch]
    words = []
    for name in config.names():
        value = getattr(config, name)
        if name == "pruned":
            value = bool(value)
        if value is None or isinstance(value, str | bool) or callable(value):
            words.append((name, str(value)))
        elif isinstance(value, dict):
            words.append((name, str(sorted(value.items(), key=str))))
    return (MODELS[arch], str(find_family(arch).model_of(arch)), *words)


def representatives() -> list[str]:
    chosen: dict[tuple, str] = {}
    judged = [name for name in MODELS if name not in catalog.variants_of_old()]
    for arch in sorted(judged, key=lambda n: catalog.model_facts(n).params):
        chosen.setdefault(path_of(arch), arch)
    return sorted(chosen.values(), key=list(MODELS).index)


@pytest.mark.parametrize("arch", representatives())
def test_same_numbers(arch):
    small = shrink(arch, judged=True)
    # the judge takes the variance of EvoNorm and of filter response norm in float32, whatever the dtype
    limit = 1e-5 if "_frn" in arch else 1e-6 if "evos" in arch else 1e-9
    if getattr(find_family(arch).variants[arch], "rope_type", "") == "dinov3":  # here its angles are always float32
        limit = 1e-7
    theirs = randomize(timm.create_model(arch, num_classes=11, **small)).eval().double()
    ours = opsin.create_model(arch, num_classes=11, **small).eval().double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(
        1, 3, *image_size(arch, judged=True), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    with torch.inference_mode():
        assert relative_error(ours(x), theirs(x)) < limit
        (final_a, maps_a), (final_b, maps_b) = ours.forward_intermediates(x), theirs.forward_intermediates(x)
        assert relative_error(final_a, final_b) < limit
        assert len(maps_a) == len(maps_b)
        for a, b in zip(maps_a, maps_b, strict=True):
            assert relative_error(a, b) < limit
        exact = theirs(x)
        ours, theirs, x = ours.float(), theirs.float(), x.float()
        rounding = relative_error(theirs(x).double(), exact)  # what depth makes of it in the judge itself
        assert relative_error(ours(x), theirs(x)) < max(1e-5, 2 * rounding)
