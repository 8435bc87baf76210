"""The main job on real pictures: digits from scratch, and ImageNet weights on photos of other things."""

import numpy as np
import pytest
from PIL import Image

import opsin
from opsin.cli import main


def history(out):
    header, *rows = (out / "history.csv").read_text().splitlines()
    return [dict(zip(header.split(","), row.split(","), strict=True)) for row in rows]


def best(out):
    return max(float(row["top1"]) for row in history(out))


def test_digits(tmp_path):
    assert main(["train", "digits", "--workers", "0", "--epochs", "8", "--output", str(tmp_path / "run")]) == 0
    assert best(tmp_path / "run") >= 0.985
    assert (tmp_path / "run" / "report.html").stat().st_size > 20_000
    predictor = opsin.load(tmp_path / "run" / "best")
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    pictures = np.rint(digits.images[:50] * (255 / 16)).astype(np.uint8)
    said = [one.labels[0].label for one in predictor.predict([Image.fromarray(p) for p in pictures])]
    assert np.mean([a == str(b) for a, b in zip(said, digits.target[:50], strict=True)]) > 0.95


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Crops of ten photos, textures and objects: the left part of each to learn from, the right to judge by."""
    data = pytest.importorskip("skimage.data")
    root = tmp_path_factory.mktemp("crops")
    rng = np.random.default_rng(0)
    names = ("brick", "grass", "gravel", "chelsea", "coffee", "astronaut", "rocket", "coins", "camera", "moon")
    for name in names:
        photo = Image.fromarray(getattr(data, name)()).convert("RGB").resize((480, 320))
        for split, count, begin, end in (("train", 8, 0, 200), ("val", 4, 240, 380)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                x, y = int(rng.integers(begin, end - 100)), int(rng.integers(0, 220))
                photo.crop((x, y, x + 100, y + 100)).save(root / split / name / f"{i}.png")
    return root


def test_published_weights_beat_random_ones(crops, tmp_path):
    common = ["train", str(crops), "--recipe", "finetune", "--model", "tf_efficientnet_lite0", "--img-size", "96",
              "--batch-size", "16", "--epochs", "6", "--workers", "0", "--lr", "2e-3"]  # fmt: skip
    assert main([*common, "--output", str(tmp_path / "fine")]) == 0
    assert main([*common, "--no-pretrained", "--output", str(tmp_path / "scratch")]) == 0
    fine, scratch = best(tmp_path / "fine"), best(tmp_path / "scratch")
    assert fine >= 0.7  # the right parts of some photos show other things than the left
    assert fine > scratch + 0.3
