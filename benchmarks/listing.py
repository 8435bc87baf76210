"""Names from the shell: a whole process each."""

import subprocess
import sys
from pathlib import Path

from benchmarks._ab import Row, compare

TITLE = "Listing and searching from the shell"
NOTE = "A whole process each, as a person waits for it."


def _timm(code: str):
    return lambda: subprocess.run([sys.executable, "-c", f"import timm; {code}"], check=True, stdout=subprocess.DEVNULL)


def _opsin(*args: str):
    command = [str(Path(sys.executable).parent / "opsin"), *args]
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def run(rounds: int) -> list[Row]:
    return [
        compare("list all", _timm("print(timm.list_models())"), _opsin("list"), rounds=rounds),
        compare(
            "search `*resne*t*` with weights",
            _timm("print(timm.list_models('*resne*t*', pretrained=True))"),
            _opsin("list", "*resne*t*", "--pretrained"),
            rounds=rounds,
        ),
        compare(
            "facts of one model",
            _timm("print(timm.get_pretrained_cfg('resnet50'))"),
            _opsin("info", "resnet50"),
            rounds=rounds,
        ),
    ]
