"""What docs/data.md shows is what happens."""

import re
import warnings
from pathlib import Path

import pytest
from PIL import Image
from test_survey import make_photos

from opsin.cli import main
from opsin.data import create_dataset
from opsin.data.readers import SCHEMES
from opsin.errors import OpsinError

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "data.md").read_text()


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = make_photos(Path("photos"))
    (root / "train" / "notes.txt").write_text("from the garden")
    return root


def test_the_code_runs_as_written(photos):
    names: dict = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for code in re.findall(r"```python\n(.*?)```", PAGE, re.S):
            exec(compile(code, "data.md", "exec"), names)
    assert names["train"].class_to_idx == {"brick": 0, "cat": 1, "grass": 2}
    assert (len(names["train"]), len(names["held"])) == (17, 7)
    assert names["other"].class_to_idx == names["train"].class_to_idx
    assert names["state"]["step"] == 1
    first, *rest = names["loader"]
    assert first.images.shape[1:] == (3, 128, 128)
    assert first.targets.shape[1:] == (3,)  # mixed
    assert len(list(names["again"])) == len(rest)  # the second and the third of three
    strange = photos.parent / "strange"
    for name in ("cat", "gras"):
        (strange / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(strange / name / "1.png")
    with pytest.raises(OpsinError) as caught:
        create_dataset("folder:strange", transform=names["training"], class_map=names["best"])
    assert str(caught.value) in PAGE


def test_the_page_of_opsin_data(photos, capsys):
    shown = re.search(r"```console\n\$ opsin (data [^\n]*)\n(.*?)```", PAGE, re.S)
    assert main([*shown[1].split(), "--output", "None"]) == 1
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == shown[2].splitlines()


def test_every_scheme_is_listed_and_every_linked_page_exists():
    assert set(re.findall(r"`(\w+):?`", PAGE.partition("## Labels")[0])) >= set(SCHEMES)
    for page in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (DOCS / page).exists(), page
