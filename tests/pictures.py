"""Plain coloured pictures, their pixels, and a standard input that holds what a test says."""

import io
import sys

import numpy as np
from PIL import Image

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def square(colour: str, size: int = 40) -> Image.Image:
    return Image.new("RGB", (size, size), COLOURS[colour])


def rgb(image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def fake_stdin(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
