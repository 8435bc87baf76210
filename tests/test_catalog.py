"""The catalog against the contracts in tests/facts, against the published package, and against WordNet's own order."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from opsin import catalog
from opsin.errors import OpsinError, UnknownModelError

FACTS = sorted((Path(__file__).parent / "facts").glob("*.json.gz"))


def plain(value: object) -> object:
    return json.loads(json.dumps(value))


def of_today(names: list[str]) -> list[str]:
    return [name for name in names if name.partition(".")[0] not in catalog.variants_of_old()]


def test_imports_no_torch() -> None:
    code = "import sys, opsin.catalog as c; c.pretrained_cfg('resnet50'); c.labels_for(1000)"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("path", FACTS, ids=lambda path: path.name.partition(".")[0])
def test_figures_equal_the_contracts(path: Path) -> None:
    for name, contract in json.loads(gzip.decompress(path.read_bytes())).items():
        facts = catalog.model_facts(name)
        for key in ("cls", "params", "num_classes", "num_features", "head_hidden_size", "input_size"):
            assert plain(getattr(facts, key)) == contract[key], (name, key)
        assert plain(facts.first_conv) == contract["first_conv"], name
        assert plain(facts.classifier) == contract["classifier"], name
        assert list(facts.feature_channels) == [f["num_chs"] for f in contract["feature_info"]], name
        assert list(facts.feature_reductions) == [f["reduction"] for f in contract["feature_info"]], name
        assert list(facts.out_indices) == contract["features_only"]["out_indices"], name


def test_every_row_reads() -> None:
    names = of_today(catalog.architectures())
    assert len(names) == 1371
    assert len(of_today(catalog.weight_names())) == 2052
    assert sum(catalog.pretrained_cfg(name).has_weights for name in of_today(catalog.weight_names())) == 1826
    for name in names:
        assert catalog.model_facts(name).name == name
        assert [cfg.tag for cfg in catalog.pretrained_cfgs(name) if cfg.tag] == catalog.tags(name)
    assert sum(len(catalog.accuracy(name)) for name in catalog.weight_names()) == 1557


def test_records_equal_those_of_the_published_package() -> None:
    registry = pytest.importorskip("timm.models._registry")
    theirs = registry._model_pretrained_cfgs
    for name in of_today(catalog.weight_names()):
        ours = plain(catalog.pretrained_cfg(name).to_dict())
        for key, value in vars(theirs[name]).items():
            if value not in (None, "") and key != "state_dict":
                assert ours.get(key) == plain(value), (name, key)
    for architecture, cfg in registry._model_default_cfgs.items():
        assert catalog.default_tag(architecture) == cfg.default_with_tag[0], architecture


def test_an_architecture_without_weights_still_says_how_images_are_prepared() -> None:
    cfg = catalog.pretrained_cfg("nfnet_f0")
    assert not cfg.has_weights
    assert catalog.tags("nfnet_f0") == []
    assert catalog.default_tag("nfnet_f0") == ""
    assert cfg.input_size == (3, 192, 192)


def test_accuracy_has_one_record_per_image_size() -> None:
    small, large = catalog.accuracy("resnet50.a1_in1k")
    assert (small.img_size, small.imagenet_top1) == (224, 80.382)
    assert (large.img_size, large.imagenet_top1, large.crop_pct) == (288, 81.24, 1.0)
    assert catalog.accuracy("vit_base_patch16_224.mae") == ()


def test_compute_names_the_size_it_was_measured_at() -> None:
    facts = catalog.model_facts("resnet50")
    assert (facts.gmacs, facts.macts, facts.compute_size) == (4.11, 11.11, 224)
    assert catalog.model_facts("aimv2_1b_patch14_224").gmacs is None


@pytest.mark.parametrize("ask", [catalog.model_facts, catalog.tags, catalog.pretrained_cfg])
def test_unknown_architecture_names_the_nearest(ask) -> None:
    with pytest.raises(UnknownModelError, match="Did you mean resnet50"):
        ask("resnt50")


def test_unknown_tag_names_the_nearest() -> None:
    with pytest.raises(UnknownModelError, match="Did you mean a1_in1k"):
        catalog.pretrained_cfg("resnet50.a1_in1")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("efficientnet_b3a", "efficientnet_b3"),
        ("adv_inception_v3", "inception_v3.tf_adv_in1k"),
        ("vit_base_patch16_224_in21k", "vit_base_patch16_224.augreg_in21k"),
        ("tf_efficientnet_b0_ns", "tf_efficientnet_b0.ns_jft_in1k"),
        ("ig_resnext101_32x16d", "resnext101_32x16d.fb_wsl_ig1b_ft_in1k"),
        ("vit_deit_base_patch16_224", "deit_base_patch16_224"),
        ("densenet264d_iabn", "densenet264d"),
        ("cspdarknet53_iabn", None),
        ("resnet50", None),
        ("never_a_model", None),
    ],
)
def test_former_names(old: str, new: str | None) -> None:
    assert catalog.resolve_alias(old) == new


def test_every_former_name_leads_to_a_model() -> None:
    known = {*catalog.architectures(), *catalog.weight_names(), *catalog.variants_of_old()}
    names = json.loads((Path(catalog.__file__).parent / "data" / "aliases.json").read_text())
    former = [*names["renamed"], *names["replaced"]]
    assert len(former) > 250
    assert not [name for name in former if catalog.resolve_alias(name) not in known]


def test_a_stand_in_says_how_it_differs() -> None:
    assert catalog.resolve_alias("nfnet_f0s") == "nfnet_f0"
    assert "SiLU" in catalog.alias_note("nfnet_f0s")
    assert catalog.alias_note("efficientnet_b3a") == ""


def test_variants_of_old_have_facts_and_weights_of_their_own() -> None:
    assert catalog.variants_of_old() == {
        "cspdarknet53_iabn": "cspdarknet53",
        "cspresnext50_iabn": "cspresnext50",
        "densenet121d": "densenetblur121d",
        "densenet264": "densenet264d",
        "ecaresnet18": "seresnet18",
        "ecaresnet50": "seresnet50",
        "mobilenetv3_050": "mobilenetv3_rw",
        "resnext101_32x48d": "resnext101_32x32d",
        "vit_huge_patch16_224": "vit_huge_patch14_224",
        "vit_huge_patch32_384": "vit_huge_patch14_224",
    }
    same, today = catalog.model_facts("cspdarknet53_iabn"), catalog.model_facts("cspdarknet53")
    assert (same.name, same.params, same.gmacs) == ("cspdarknet53_iabn", today.params, today.gmacs)
    assert catalog.tags("cspdarknet53_iabn") == catalog.tags("cspdarknet53")
    weights = catalog.pretrained_cfg("cspdarknet53_iabn")
    assert weights.architecture == "cspdarknet53_iabn"
    assert weights.hf_hub_id == catalog.pretrained_cfg("cspdarknet53").hf_hub_id == "timm/cspdarknet53.ra_in1k"
    other = catalog.model_facts("densenet264")
    assert (other.params, other.gmacs, other.feature_channels[0]) == (72686632, None, 96)
    assert not catalog.pretrained_cfg("densenet264").has_weights
    assert catalog.pretrained_cfg("densenet264").input_size == (3, 224, 224)


def test_aliases_lead_back() -> None:
    known = {*catalog.architectures(), *catalog.weight_names()}
    count = 0
    for architecture in catalog.architectures():
        for old, new in catalog.aliases_of(architecture).items():
            assert new in known
            assert old not in known
            assert catalog.resolve_alias(old) == new
            count += 1
    assert count > 250


@pytest.mark.parametrize("name", catalog.LABEL_SETS)
def test_label_sets_are_whole(name: str) -> None:
    labels = catalog.label_set(name)
    assert len(labels.synsets) == len(set(labels.synsets)) == catalog.LABEL_SETS[name][1]
    assert all(labels.lemmas)
    assert all(labels.definitions)
    assert len(labels.words) == len(labels.synsets)
    assert list(catalog.label_descriptions(name)) == catalog.label_names(name)


def test_label_order() -> None:
    one = catalog.label_set("imagenet-1k")
    assert one.words[:2] == ["tench", "goldfish"]
    assert one.synsets[281] == "n02123045"
    assert one.words[281] == "tabby"
    assert one.words[999] == "toilet tissue"
    assert len(set(one.words)) == 1000  # two cranes, two maillots are told apart
    assert catalog.label_names("imagenet-22k-ms")[:1000] == list(one.synsets)
    assert catalog.label_names("imagenet-22k") == sorted(catalog.label_names("imagenet-22k"))
    assert catalog.label_descriptions("imagenet-1k")["n01440764"] == "tench, Tinca tinca"
    assert catalog.label_descriptions("imagenet-1k", detailed=True)["n01440764"].startswith("tench, Tinca tinca: ")
    assert "freshwater" in catalog.label_definitions("imagenet-1k")["n01440764"]


def test_labels_equal_those_of_the_published_package() -> None:
    data = pytest.importorskip("timm.data")
    theirs = {
        "imagenet-1k": "imagenet-1k",
        "imagenet-12k": "imagenet-12k",
        "imagenet-22k": "imagenet-22k",
        "imagenet-22k-ms": "imagenet-22k-ms",
        "imagenet-21k-goog": "imagenet-21k-goog",
        "imagenet-21k-miil": "imagenet-21k-miil",
    }
    for ours, name in theirs.items():
        info = data.ImageNetInfo(name)
        assert catalog.label_names(ours) == info.label_names(), name
        assert catalog.label_descriptions(ours) == info.label_descriptions(as_dict=True), name


@pytest.mark.parametrize(
    ("count", "name"),
    [
        (1000, "imagenet-1k"),
        (11821, "imagenet-12k"),
        (21841, "imagenet-22k"),
        (21842, "imagenet-22k-ms"),
        (21843, "imagenet-21k-goog"),
        (11221, "imagenet-21k-miil"),
        (10450, "imagenet-21k-miil-w21"),
        (200, None),
        (0, None),
        (7, None),
    ],
)
def test_labels_by_class_count(count: int, name: str | None) -> None:
    labels = catalog.labels_for(count)
    assert (labels.name if labels else None) == name


def test_index_maps() -> None:
    source, target = "imagenet-22k-ms", "imagenet-12k"
    names = catalog.label_names(source)
    assert [names[i] for i in catalog.index_map(source, target)] == catalog.label_names(target)
    assert catalog.index_map("imagenet-1k", "mini-imagenet")[:3] == [12, 15, 51]
    with pytest.raises(OpsinError, match="imagenet-12k lacks"):
        catalog.index_map("imagenet-12k", "imagenet-22k")


def test_unknown_label_set_names_the_nearest() -> None:
    with pytest.raises(OpsinError, match="Did you mean imagenet-1k"):
        catalog.label_names("imagnet-1k")


def test_real_labels() -> None:
    real = catalog.real_labels()
    assert len(real) == 50000
    assert real[0] == []
    assert real[1] == [970, 795]
    assert all(0 <= label < 1000 for labels in real for label in labels)
