"""A disk that is full: one message, nothing half-written, and what was there stays."""

import re
from pathlib import Path

import pytest
from runs import dark_and_light, finish, start
from safetensors import SafetensorError

import opsin
from opsin.cli import main

SMALL = ["--model", "test_resnet", "--img-size", "32", "--batch-size", "8", "--epochs", "1", "--warmup-epochs", "0",
         "--workers", "0", "--device", "cpu"]  # fmt: skip

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return dark_and_light(tmp_path_factory.mktemp("photos"), 12)


def full(path):
    """What is opened there, to be written in place, finds no space."""
    path.parent.mkdir(exist_ok=True)
    path.symlink_to("/dev/full")


@pytest.mark.parametrize("name", ["config.yaml", "last.pt", "history.csv"])
def test_a_file(photos, tmp_path, capsys, name):
    full(tmp_path / "run" / f".{name}.part")
    assert main(["train", str(photos), *SMALL, "--output", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(f"{name} cannot be written (No space left on device); what was there before is unharmed")
    assert not list((tmp_path / "run").glob(".*.part"))
    assert not (tmp_path / "run" / name).exists()


def test_the_best_model(photos, tmp_path, capsys, monkeypatch):
    best = tmp_path / "best"
    opsin.save(opsin.create_model("test_resnet", num_classes=2), best)
    before = {path: path.read_bytes() for path in best.iterdir()}

    def save_file(weights, path, metadata):
        path.write_bytes(b"half")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("opsin.weights.artefact.save_file", save_file)
    assert main(["train", str(photos), *SMALL, "--output", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"opsin: \S+/best cannot be written \(No space left on device\); .*unharmed$", said)
    assert {path: path.read_bytes() for path in best.iterdir()} == before


def test_what_led_to_no_number(photos, tmp_path, capsys):
    """The message is about the loss."""
    names = [f"failed-update-{update}-rank-0.pt" for update in range(3)]
    for name in names:
        full(tmp_path / f".{name}.part")
    line = ["train", str(photos), *SMALL, "--output", str(tmp_path), "--opt", "sgd", "--lr", "1e30"]
    assert main(line) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"opsin: the loss became nan in update \d .*No space left on device.*--clip-grad", said)
    assert not [name for name in names if (tmp_path / name).exists()]


def test_all_ranks_hear_of_it(photos, tmp_path):
    full(tmp_path / "run" / ".last.pt.part")
    for said in finish(start(photos, tmp_path / "run", *SMALL, ranks=2), 2):
        assert "last.pt cannot be written (No space left on device)" in said
        assert "Traceback" not in said
