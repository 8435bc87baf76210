"""What the README shows is what happens."""

import re
import warnings
from pathlib import Path

import pytest
from PIL import Image

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_five_calls_run_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.radial_gradient("L").save("scan.png")
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, re.S))
    names: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        exec(compile(code, "README.md", "exec"), names)
    assert names["body"].feature_info.channels() == [192, 384, 768]
    assert names["body"].feature_info.reduction() == [8, 16, 32]
    best = names["predictor"].predict("scan.png").labels[0]
    assert best.label == f"digit {best.index}"
    assert 0.1 <= best.probability <= 1


@pytest.mark.parametrize("page", ["training.md"])
def test_pages_run_as_written(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs" / page).read_text()
    exec(compile("\n".join(re.findall(r"```python\n(.*?)```", text, re.S)), page, "exec"), {})


def test_linked_pages_exist():
    linked = re.findall(r"\]\(([^)#:]+)\)", README)
    assert linked
    for page in linked:
        assert (Path(__file__).parents[1] / page).exists(), page


def test_the_shown_verbs_exist():
    from opsin.cli import VERBS

    shown = set(re.findall(r"opsin (\w+) ", " ".join(re.findall(r"```console\n(.*?)```", README, re.S))))
    assert shown
    assert shown <= set(VERBS)


def test_the_shown_answers_are_those_of_the_model():
    skimage = pytest.importorskip("skimage")
    from opsin.inference.predictor import load

    shown = re.findall(r"^  (.+?)\s+([\d.]+)%", README, re.M)
    best = load("tf_efficientnet_lite0").predict(Path(skimage.__file__).parent / "data" / "chelsea.png").labels
    assert [(s.label, f"{100 * s.probability:.1f}") for s in best] == shown[:5]
