"""Every variant of every family against the measured facts: keys, shapes, dtypes, parameters, feature levels."""

import gzip
import json
import re
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from support import FAMILIES, config_args

from opsin import catalog
from opsin.models._index import MODELS
from opsin.models._model import deferred_init
from opsin.models._registry import find_family

FACTS = Path(__file__).parent / "facts"


@cache
def facts_of(module: str) -> dict[str, dict]:
    with gzip.open(FACTS / f"{module}.json.gz", "rt") as file:
        data = json.load(file)
    rows = data.values() if isinstance(data, dict) else data
    return {row["name"]: row for row in rows}


@cache
def known_families() -> set[str]:
    """Families, as the facts count them, that this library has at least one variant of."""
    return {catalog.model_facts(name).family for name in MODELS}


def build_on_meta(arch: str):
    token = deferred_init.set(True)
    try:
        with torch.device("meta"):
            args = config_args(arch) | {"num_classes": catalog.model_facts(arch).num_classes}
            record = catalog.pretrained_cfg(arch)
            if record.fixed_input_size and "img_size" in args:
                args["img_size"] = record.input_size[1:]
            return find_family(arch).model_of(arch)(**args)
    finally:
        deferred_init.reset(token)


@pytest.mark.parametrize("module", sorted(known_families()))
def test_the_family_is_complete(module):
    ours = {name for name in MODELS if catalog.model_facts(name).family == module}
    assert sorted(ours - catalog.variants_of_old().keys()) == sorted(facts_of(module))


@pytest.mark.parametrize("family", FAMILIES)
def test_all_variants_match_the_facts(family):
    names = [n for n, f in MODELS.items() if f == family and n not in catalog.variants_of_old()]
    wrong = {}
    for arch in names:
        fact = facts_of(catalog.model_facts(arch).family)[arch]
        model = build_on_meta(arch)
        ours = [[k, list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in model.state_dict().items()]
        levels = [(row["num_chs"], row["reduction"], row["module"]) for row in model.feature_info]
        known = [(row["num_chs"], row["reduction"], row["module"]) for row in fact["feature_info"]]
        if family == "tresnet":  # there its stem is said to have stride 2, and no name
            known[0] = (known[0][0], 4, "body.conv1")
        saved = set(model.state_dict())
        checks = {
            "state": ours == fact["state"],
            "order and names": [row[0] for row in ours] == [row[0] for row in fact["state"]],
            "params": sum(p.numel() for p in model.parameters()) == fact["params"],
            "levels": levels == known,
            "num_features": model.num_features == fact["num_features"],
            "head_hidden_size": model.head_hidden_size == fact["head_hidden_size"],
            "no_weight_decay": {n for n in model.no_weight_decay() if n in saved}
            == {n for n in fact["no_weight_decay"] if n in saved},
            "computed buffers": sorted(set(dict(model.named_buffers())) - saved)
            == sorted(fact["nonpersistent_buffers"]),
        }
        if failed := [what for what, holds in checks.items() if not holds]:
            wrong[arch] = failed
    assert not wrong
    assert names


def judged_variant(old):
    """A variant of old as the published package's classes build it from figures; None where they cannot."""
    block = timm.models.resnet.BasicBlock, timm.models.resnet.Bottleneck
    huge = {"embed_dim": 1280, "depth": 32, "num_heads": 16}
    match old:
        case "ecaresnet18":
            return timm.models.ResNet(block[0], (2, 2, 2, 2), block_args={"attn_layer": "eca"})
        case "ecaresnet50":
            return timm.models.ResNet(block[1], (3, 4, 6, 3), block_args={"attn_layer": "eca"})
        case "resnext101_32x48d":
            return timm.models.ResNet(block[1], (3, 4, 23, 3), cardinality=32, base_width=48)
        case "mobilenetv3_050":
            return timm.models.mobilenetv3._gen_mobilenet_v3_rw("mobilenetv3_rw", 0.5)
        case "vit_huge_patch16_224":
            return timm.models.VisionTransformer(**huge)
        case "vit_huge_patch32_384":
            return timm.models.VisionTransformer(img_size=384, patch_size=32, **huge)
    return None


@pytest.mark.parametrize(("old", "like"), catalog.variants_of_old().items())
def test_variants_of_old_have_the_state_they_should(old, like):
    """That of the published package's classes; where these cannot build one, that of its kin but for the stem."""
    model = build_on_meta(old)
    ours = {k: list(v.shape) for k, v in model.state_dict().items()}
    with torch.device("meta"):
        judge = judged_variant(old)
    if judge is not None:
        assert ours == {k: list(v.shape) for k, v in judge.state_dict().items()}
    else:
        stem = re.compile(r"features\.(conv|norm)[0-2]\.") if old == "densenet264" else re.compile("$^")
        known = facts_of(catalog.model_facts(old).family)[like]["state"]
        assert {k: s for k, s in ours.items() if not stem.match(k)} == {k: s for k, s, _ in known if not stem.match(k)}
    assert sum(p.numel() for p in model.parameters()) == catalog.model_facts(old).params
    assert tuple(row["num_chs"] for row in model.feature_info) == catalog.model_facts(old).feature_channels
