"""Every example runs and ends in a picture."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example, tmp_path):
    command = [sys.executable, str(example), str(tmp_path / "out")]
    environment = os.environ | {"MPLBACKEND": "Agg"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    name = done.stdout.splitlines()[-1].rpartition(": ")[2]  # the last line says where the picture is
    with Image.open(tmp_path / name) as picture:
        extrema = picture.convert("RGB").getextrema()
        assert min(picture.size) > 200
    assert any(high - low > 50 for low, high in extrema)
