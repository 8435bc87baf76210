"""Names: the index is fresh, listing and searching work without torch, former and misspelt names are led home."""

import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest

from opsin import catalog
from opsin.errors import OpsinError, UnknownArgumentError, UnknownModelError
from opsin.models import _registry as registry
from opsin.models import _users
from opsin.models._index import MODELS

ROOT = Path(__file__).resolve().parents[1]


def test_the_index_is_fresh() -> None:
    done = subprocess.run([sys.executable, ROOT / "tools/build_index.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_indexed_name_has_facts() -> None:
    assert set(MODELS) <= set(catalog.architectures())


def test_listing_imports_no_torch() -> None:
    code = """
import sys
import opsin
assert opsin.list_models("resnet*") and opsin.list_pretrained("resnet50") and opsin.list_families()
assert opsin.list_models(max_params=12e6, min_top1=70) and opsin.is_model("resnet18")
opsin.model_info("resnet50")
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --- listing ---


def test_natural_order() -> None:
    names = registry.list_models("resnet[0-9]*")
    assert names.index("resnet18") < names.index("resnet50") < names.index("resnet101") < names.index("resnet152")


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        (("*resne*t*",), {"pretrained": True}),
        (("resnet50",), {"pretrained": True}),
        (("resnet50",), {}),
        (("resnet50.*",), {"pretrained": True}),
        (("*.a1_in1k",), {"pretrained": True}),
        ((["resnet*", "seresnet*"],), {"exclude_filters": ["*d", "*50*"]}),
        (("resnet*",), {"include_tags": True}),
        (("resnet*",), {"pretrained": True, "include_tags": False}),
        (("resnet*",), {"module": "resnet"}),
        (("resnet*",), {"module": "resnet", "name_matches_cfg": True}),
        (("no_such_model*",), {}),
    ],
)
def test_lists_as_the_published_package_does(args: tuple, kwargs: dict) -> None:
    timm = pytest.importorskip("timm")
    theirs = [name for name in timm.list_models(*args, **kwargs) if name.partition(".")[0] in MODELS]
    old = catalog.variants_of_old()
    ours = [name for name in registry.list_models(*args, **kwargs) if name.partition(".")[0] not in old]
    assert ours == theirs


def test_exclude() -> None:
    assert registry.list_models("resnet18*", exclude="*d") == ["resnet18"]


def test_family() -> None:
    names = registry.list_models(family="resnet")
    assert "seresnet50" in names
    assert all(catalog.model_facts(name).family == "resnet" for name in names)
    assert "resnet" in registry.list_families()
    assert registry.list_modules() == registry.list_families()
    with pytest.raises(OpsinError, match="Did you mean resnet"):
        registry.list_models(family="resent")


def test_facts_of_architectures() -> None:
    small = registry.list_models(max_params=12e6)
    assert small
    assert max(catalog.model_facts(name).params for name in small) <= 12e6
    large = registry.list_models(min_params=12e6 + 1)
    assert sorted([*small, *large]) == sorted(registry.list_models())
    cheap = registry.list_models(max_gmacs=2)
    assert cheap
    assert all((catalog.model_facts(name).gmacs or 99) <= 2 for name in cheap)


def test_facts_of_weights() -> None:
    tagged = registry.list_models("resnet50", pretrained=True, min_top1=81, license="apache-2.0")
    assert "resnet50.a1_in1k" in tagged
    assert "resnet50.tv_in1k" not in tagged  # 76 %
    assert "resnet50.fb_swsl_ig1b_ft_in1k" not in tagged  # accurate, but cc-by-nc-4.0
    for name in tagged:
        assert registry.get_pretrained_cfg(name).license == "apache-2.0"
        assert (registry.best_top1(name) or 0) >= 81
    assert "resnet50" in registry.list_models("resnet50", min_top1=81, license="apache-2.0")
    assert registry.list_models("resnet50", min_top1=99) == []
    assert registry.list_models("resnet50", pretrained=True, license="cc-by-*")
    with pytest.raises(OpsinError, match=r"Did you mean apache-2\.0"):
        registry.list_models(license="apache-20")


def test_one_tag_must_fulfil_all_conditions() -> None:
    # resnext101_32x8d has accurate weights that are cc-by-nc, and bsd ones that reach 82.8
    assert registry.list_models("resnext101_32x8d", license="cc-by-nc-4.0", min_top1=84)
    assert not registry.list_models("resnext101_32x8d", license="bsd-3-clause", min_top1=84)


@pytest.mark.parametrize("size", [176, (176, 176), (3, 176, 176)])
def test_input_size(size: int | tuple[int, ...]) -> None:
    names = registry.list_models("resnet*", pretrained=True, input_size=size)
    assert names
    assert all(registry.get_pretrained_cfg(name).input_size == (3, 176, 176) for name in names)


def test_list_pretrained() -> None:
    names = registry.list_pretrained("resnet18")
    assert names == registry.list_models("resnet18", pretrained=True)
    assert "resnet18.a1_in1k" in names
    assert registry.list_pretrained("resnet18", pretrained=True, include_tags=True) == names
    assert registry.list_pretrained("resnet18", include_tags=False) == ["resnet18"]
    assert registry.list_pretrained("resnet18", "*.a1*") == [name for name in names if ".a1" not in name]
    with pytest.raises(OpsinError, match="use list_models"):
        registry.list_pretrained("resnet18", pretrained=False)


NAMED = ("filter", "module", "pretrained", "exclude_filters", "name_matches_cfg", "exclude", "family", "license")


@pytest.mark.parametrize("argument", NAMED)
def test_none_is_the_default(argument: str) -> None:
    assert registry.list_models(**{argument: None}) == registry.list_models()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_param": 3e6}, "Did you mean max_params"),
        ({"max_params": "30e6"}, "max_params='30e6': give a number, such as 30e6"),
        ({"min_top1": "80"}, "min_top1='80': give a number"),
        ({"input_size": "224"}, "input_size='224': give whole numbers"),
        ({"input_size": (3, 224.5, 224)}, "input_size=224.5: give whole numbers"),
        ({"filter": 3}, "3: give a name or pattern"),
        ({"family": ["resnet", 3]}, "give a name or pattern"),
    ],
)
def test_arguments_of_list_models_that_cannot_be(kwargs: dict, message: str) -> None:
    with pytest.raises(UnknownArgumentError, match=message):
        registry.list_models(**kwargs)


# --- single names ---


def test_is_model() -> None:
    assert registry.is_model("resnet50")
    assert registry.is_model("resnet50.a1_in1k")
    assert registry.is_model("gluon_resnet50_v1b")
    assert not registry.is_model("resnet50.no_such_tag")
    assert not registry.is_model("resnt50")
    assert not registry.is_model("resnet50.")
    assert registry.is_model("timm/resnet50.a1_in1k")
    assert registry.is_model("timm/gluon_resnet50_v1b")
    assert registry.is_model_pretrained("timm/resnet50.a1_in1k")


def test_is_model_pretrained() -> None:
    assert registry.is_model_pretrained("resnet50")
    assert registry.is_model_pretrained("resnet50.a1_in1k")
    assert registry.is_model_pretrained("gluon_resnet50_v1b")
    assert not registry.is_model_pretrained("seresnet50t")
    assert not registry.is_model_pretrained("resnt50")


def test_resolve_name() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert registry.resolve_name("resnet50") == ("resnet50", None)
        assert registry.resolve_name("resnet50.a1_in1k") == ("resnet50", "a1_in1k")
    with pytest.warns(FutureWarning, match=r"'swsl_resnet18' is a former name; using 'resnet18\.fb_swsl_ig1b_ft_in1k'"):
        assert registry.resolve_name("swsl_resnet18") == ("resnet18", "fb_swsl_ig1b_ft_in1k")
    with pytest.warns(FutureWarning, match="using 'resnet50d'. The old one had a wider stem"):
        assert registry.resolve_name("gluon_resnet50_v1e") == ("resnet50d", None)
    with pytest.warns(FutureWarning, match="former name"):
        assert registry.resolve_name("seresnet50tn.untrained") == ("seresnet50t", "untrained")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnt50", "Did you mean resnet50"),
        ("resnet50.a1_in1", "no weights tagged 'a1_in1'. Did you mean a1_in1k"),
        ("resnet50.", "no weights tagged ''"),
        ("RESNET50", "Did you mean resnet50"),
        ("hf-hub:timm/resnet50", "is a place of weights: create_model opens it"),
        ("gibberish!", "There is no model 'gibberish!'"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UnknownModelError, match=message):
        registry.resolve_name(name)


def test_every_former_name_of_an_indexed_model_resolves() -> None:
    count = 0
    for architecture in MODELS:
        for old, new in catalog.aliases_of(architecture).items():
            with pytest.warns(FutureWarning, match="former name"):
                assert ".".join(filter(None, registry.resolve_name(old))) == new
            assert registry.is_model(old)
            count += 1
    assert count > 20


def test_find_family() -> None:
    assert "resnet50" in registry.find_family("resnet50").variants


def test_model_entrypoint() -> None:
    model = registry.model_entrypoint("resnet10t")(num_classes=3)
    assert model.num_classes == 3
    assert registry.model_entrypoint("resnet10t", module_filter="resnet")
    with pytest.raises(UnknownModelError, match="not in the family 'convnext'"):
        registry.model_entrypoint("resnet10t", module_filter="convnext")


def test_model_info() -> None:
    info = registry.model_info("resnet50")
    assert (info.name, info.architecture, info.tag, info.family) == (
        "resnet50.a1_in1k",
        "resnet50",
        "a1_in1k",
        "resnet",
    )
    assert info.facts is not None
    assert info.facts.params == 25557032
    assert next(iter(info.weights)) == "a1_in1k"
    assert info.accuracy["a1_in1k"][-1].imagenet_top1 == 81.24
    assert info.aliases["tv_resnet50"] == "resnet50.tv_in1k"
    assert registry.model_info("timm/resnet50.a1_in1k") == info
    assert registry.model_info("resnet50.tv_in1k").cfg.license == "bsd-3-clause"


# --- users' own models ---


@pytest.fixture
def user_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module as a user writes it, with two weight tags; forgotten after the test."""
    monkeypatch.setattr(_users, "USERS", {})
    monkeypatch.setattr(registry, "USERS", _users.USERS)
    source = """
from opsin.models import generate_default_cfgs, register_model

default_cfgs = generate_default_cfgs({
    "my_net.first": {"url": "https://example.org/first.pth", "input_size": (3, 96, 96), "license": "mit"},
    "my_net.second*": {"url": "https://example.org/second.pth"},
    "my_net.third": {},
})

@register_model
def my_net(pretrained=False, **kwargs):
    return ("my_net", pretrained, kwargs)

@register_model
def my_bare_net(pretrained=False, **kwargs):
    return ("my_bare_net", pretrained, kwargs)
"""
    module = types.ModuleType("my_models")
    monkeypatch.setitem(sys.modules, "my_models", module)
    exec(source, vars(module))
    return module


def test_registered_models_get_the_same_services(user_module: types.ModuleType) -> None:
    assert registry.list_models("my_*") == ["my_bare_net", "my_net"]
    assert registry.list_models("my_*", pretrained=True) == ["my_net.first", "my_net.second"]
    assert registry.list_models("my_*", name_matches_cfg=True) == ["my_net"]
    assert registry.list_models("my_*", license="mit", pretrained=True) == ["my_net.first"]
    assert registry.list_models("my_*", max_params=1e9) == []  # nobody counted them
    assert registry.list_models("my_*", family="my_models") == ["my_bare_net", "my_net"]
    assert registry.resolve_name("my_net.first") == ("my_net", "first")
    assert registry.get_pretrained_cfg("my_net").tag == "second"
    assert registry.get_pretrained_cfg("my_net.first").input_size == (3, 96, 96)
    assert registry.is_model_pretrained("my_net")
    assert not registry.is_model_pretrained("my_bare_net")
    assert registry.model_info("my_net").family == "my_models"
    assert registry.model_entrypoint("my_net") is user_module.my_net
    with pytest.raises(UnknownModelError, match="Did you mean first"):
        registry.resolve_name("my_net.frist")
    with pytest.raises(UnknownModelError, match="Did you mean my_bare_net"):
        registry.resolve_name("my_bear_net")


def test_older_form_of_default_cfgs(user_module: types.ModuleType) -> None:
    user_module.default_cfgs = {"my_net": {"url": "https://example.org/only.pth", "num_classes": 7}}
    assert registry.get_pretrained_cfg("my_net").num_classes == 7
    assert registry.list_models("my_net", pretrained=True) == ["my_net"]


def test_taking_over_a_name_warns(user_module: types.ModuleType) -> None:
    def resnet50(pretrained: bool = False) -> str:
        return "mine"

    resnet50.__module__ = "my_models"
    with pytest.warns(UserWarning, match=r"'resnet50' of opsin\.models\.resnet is replaced by that of my_models"):
        registry.register_model(resnet50)
    assert registry.model_entrypoint("resnet50")() == "mine"


def test_entry_points(tmp_path: Path) -> None:
    """An installed package's models appear in lists and are found by name; a broken package is named."""
    (tmp_path / "plugin_models.py").write_text(
        "from opsin.models import register_model\n"
        "@register_model\n"
        "def plugged_net(pretrained=False):\n"
        "    return 'plugged'\n"
    )
    info = tmp_path / "plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[opsin.models]\ngood = plugin_models\nbad = no_such_module\n")
    code = (
        f"import sys, warnings; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import opsin\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    assert opsin.model_entrypoint('plugged_net')() == 'plugged'\n"
        "assert 'plugged_net' in opsin.list_models()\n"
        "assert len(seen) == 1 and \"'bad' (no_such_module) cannot be loaded\" in str(seen[0].message), seen\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_family_modules_are_attributes() -> None:
    code = """
import sys, opsin
assert "opsin.models.resnet" not in sys.modules and "torch" not in sys.modules
assert opsin.models.resnet.resnet10t(num_classes=2).num_classes == 2
assert opsin.models.features.FeatureHookNet
try:
    opsin.models.resnett
except AttributeError as error:
    assert "Did you mean resnet" in str(error), error
"""
    subprocess.run([sys.executable, "-c", code], check=True)
