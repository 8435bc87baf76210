"""Making models: with random values, and from a file, every weight touched."""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks._ab import Row, compare

TITLE = "Creating models"
NOTE = (
    "opsin copies the file into private memory in huge pages, so nothing done to the file later can harm the process. "
    "Every weight is read after loading. Peak memory is that of a fresh process above what its imports take."
)
MODELS = {"ResNet-50": "resnet50", "ViT-L/16": "vit_large_patch16_224"}

MEMORY = """
import pathlib, sys, torch
torch.set_num_threads(1)
side, arch, path = sys.argv[1:]

def status(key):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))

if side == "timm":
    import timm
    make = lambda: timm.create_model(arch, pretrained=True, pretrained_cfg_overlay={"file": path})
    timm.create_model("test_resnet")
else:
    import opsin
    from opsin.weights import pretrained
    make = lambda: opsin.create_model(arch, pretrained=path)
    opsin.create_model("test_resnet")
before = status("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew here
model = make()
assert all(p.sum().isfinite() for p in model.parameters())
print(status("VmHWM") - before)
"""


def _peak(side: str, arch: str, path: Path) -> float:
    done = subprocess.run([sys.executable, "-c", MEMORY, side, arch, str(path)], check=True, capture_output=True)
    return float(done.stdout)


def _touch(model) -> None:
    assert all(p.sum().isfinite() for p in model.parameters())


def run(rounds: int) -> list[Row]:
    import timm
    import torch
    from safetensors.torch import save_file

    import opsin

    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for title, arch in MODELS.items():
            rows.append(
                compare(
                    f"{title}, random values",
                    lambda arch=arch: timm.create_model(arch),
                    lambda arch=arch: opsin.create_model(arch),
                    rounds=max(3, rounds // 2),
                    warm_up=False,
                )
            )
            file = Path(folder) / f"{arch}.safetensors"
            save_file(opsin.create_model(arch).state_dict(), file)
            os.sync()  # a file that is being written to the disk is not what is measured
            overlay = {"file": str(file)}
            rows.append(
                compare(
                    f"{title}, from file",
                    lambda arch=arch, overlay=overlay: _touch(
                        timm.create_model(arch, pretrained=True, pretrained_cfg_overlay=overlay)
                    ),
                    lambda arch=arch, file=file: _touch(opsin.create_model(arch, pretrained=file)),
                    rounds=rounds,
                )
            )
            peers = [_peak("timm", arch, file) for _ in range(3)]
            ours = [_peak("opsin", arch, file) for _ in range(3)]
            ratios = [a / b for a, b in zip(peers, ours, strict=True)]
            medians = statistics.median(peers), statistics.median(ours)
            rows.append(Row(f"{title}, from file: peak memory", *medians, min(ratios), max(ratios), "MB"))
    return rows
