"""What docs/coming-from-timm.md says is so: its blocks are run and its tables checked, beside timm."""

import re
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import opsin

timm = pytest.importorskip("timm")

PATH = Path(__file__).parents[1] / "docs" / "coming-from-timm.md"
PAGE = PATH.read_text()
SWITCH, SAME, ONLY = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def rows(title: str) -> list[list[str]]:
    """The cells of the table under a heading, without its first two lines."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


@pytest.fixture(autouse=True, scope="module")
def _files(tmp_path_factory):
    """The files that the page names, in the current folder."""
    folder = tmp_path_factory.mktemp("page")
    torch.manual_seed(0)
    state = opsin.create_model("resnet18").state_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_file(state, "resnet18.safetensors")
        state["fc.bias"][0] = float("nan")
        save_file(state, "nan.safetensors")
        Image.radial_gradient("L").convert("RGB").save("photo.png")
        yield


def run(code: str) -> dict[str, Any]:
    torch.manual_seed(0)
    names: dict[str, Any] = {"picture": Image.open("photo.png")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        exec(compile(code, PATH.name, "exec"), names)
    return names


def test_switch_by_one_line():
    assert run(SWITCH)["timm"] is opsin


def test_what_is_the_same():
    theirs = run(SAME)
    ours = run(SAME.replace("import timm\n", "import opsin as timm\n").replace("from timm.data", "from opsin.data"))
    assert ours["timm"] is opsin
    assert theirs["timm"] is timm
    compared = set()
    for name, value in theirs.items():
        for left, right in zip(ours[name], value, strict=True) if name == "maps" else [(ours[name], value)]:
            if isinstance(right, torch.Tensor):
                torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)
                compared.add(name)
            elif isinstance(right, tuple | list | dict) and name not in ("cfg", "__builtins__"):
                assert left == right, name
                compared.add(name)
    assert {"logits", "maps", "first_kernel", "by_hand", "levels", "keys", "pixels", "known", "source"} <= compared


@pytest.mark.parametrize("how", [{}, {"features_only": True}], ids=["whole", "features"])
def test_checkpoints_load_in_both_directions(how):
    ours, theirs = opsin.create_model("convnext_atto", **how), timm.create_model("convnext_atto", **how)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())


def test_calls_that_are_named():
    ours, theirs = opsin.create_model("resnet18"), timm.create_model("resnet18")
    named = re.search(r"The rest of a model's calls too: (.*?)\.\n", PAGE, re.S)
    assert named
    for name in re.findall(r"`(\w+)`", named[1]):
        assert callable(getattr(ours, name)) == callable(getattr(theirs, name)), name


@pytest.mark.parametrize("row", [*rows("Stricter, and why"), *rows("Different")], ids=lambda row: row[0])
def test_what_differs(row):
    call, theirs, ours, why = row
    for library, cell in ((timm, theirs), (opsin, ours)):
        names = {name: getattr(library, name) for name in ("create_model", "is_model", "list_models")}
        names |= {"torch": torch, "x": torch.zeros(2, 3, 64, 64), "x224": torch.zeros(1, 3, 224, 224)}
        message = ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = repr(eval(call.strip("`"), names))
        except Exception as error:
            found, message = type(error).__name__, str(error)
        assert f"`{found}`" == cell, library.__name__
    if why.startswith('"'):
        assert why.strip('"') in message


def test_errors_are_subclasses():
    from opsin import errors

    named = re.findall(r"`(\w+Error)` (?:is )?a\s`(\w+)`", PAGE)
    assert len(named) == 3
    for name, parent in named:
        assert issubclass(getattr(errors, name), getattr(__import__("builtins"), parent))


def test_a_new_head_is_announced():
    message = re.search(r"but a warning: \*(.*?)\*", PAGE)
    assert message
    with pytest.warns(UserWarning, match=message[1]):
        opsin.create_model("resnet18", pretrained="resnet18.safetensors", num_classes=10)


@pytest.mark.parametrize("row", rows("Names"), ids=lambda row: row[0])
def test_names_lead_somewhere(row):
    for name in (row[0], row[1]):
        module, _, attribute = name.strip("`").rpartition(".")
        assert hasattr(import_module(module), attribute), name


def test_only_here():
    run(ONLY)
    assert opsin.load("cats-and-dogs").predict("photo.png").labels[0].label in ("cat", "dog")
    assert opsin.list_models(max_params=30e6, min_top1=82, license="apache-2.0")


def test_linked_pages_exist():
    linked = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert len(linked) == 4
    for page in linked:
        assert (PATH.parent / page).exists(), page
