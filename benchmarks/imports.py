"""What an import costs once torch is imported."""

import subprocess
import sys

from benchmarks._ab import Row, compare

TITLE = "Import"
NOTE = (
    "In a fresh process that has imported torch: the time of the next import. For opsin with what `create_model` needs."
)
CODE = "import time, torch; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def _extra(code: str):
    return lambda: float(subprocess.check_output([sys.executable, "-c", CODE.format(code)]))


def run(rounds: int) -> list[Row]:
    timm, opsin = _extra("import timm"), _extra("import opsin; opsin.create_model")
    bare = _extra("import opsin")
    return [
        compare("`import`, then `create_model` at hand", timm, opsin, rounds=rounds, measure=lambda call: call()),
        compare("`import` alone", timm, bare, rounds=rounds, measure=lambda call: call()),
    ]
