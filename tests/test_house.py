"""Each floor of the house imports only the floors below it; see docs/design.md."""

import ast
import re
from pathlib import Path

import pytest

import opsin

ROOT = Path(opsin.__file__).parent
DESIGN = Path(__file__).parents[1] / "docs" / "design.md"
# the functions that a name stands for reach up to create_model when they are asked for
UPWARD = {("models", "factory")}


def floors() -> dict[str, int]:
    """Package or module -> its floor, counted from the roof, as the picture in docs/design.md has them."""
    picture = DESIGN.read_text().split("## The house")[1].split("```")[1]
    lines = picture.strip().splitlines()
    return {name: level for level, line in enumerate(lines) for name in re.findall(r"(\w+)(?:/|\.py)", line)}


def imported(file: Path) -> set[str]:
    """What of opsin a file imports, anywhere in it, by the name of the floor."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found |= {name.split(".")[1] for name in names if name.startswith("opsin.")}
    return found


@pytest.mark.parametrize(
    "floor", sorted(path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__")
)
def test_nothing_imports_upward(floor):
    levels = floors()
    assert floor in levels
    wrong = {
        (str(file.relative_to(ROOT)), name)
        for file in (ROOT / floor).rglob("*.py")
        for name in imported(file)
        if name in levels and levels[name] < levels[floor] and (floor, name) not in UPWARD
    }
    assert not wrong
