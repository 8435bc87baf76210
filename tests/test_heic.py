"""Pictures of phones and cameras that Pillow reads with a plugin or not at all: never dropped without a word."""

import sys
from types import SimpleNamespace

import pytest
from pictures import rgb, square
from PIL import Image

from opsin.data import images
from opsin.data.images import find_images, open_image
from opsin.errors import ImageError

HEIC = b"\0\0\0\x18ftypheic" + bytes(60)


def test_formats_that_pillow_does_not_read_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # not installed
    monkeypatch.setattr(images, "IMAGE_SUFFIXES", images.IMAGE_SUFFIXES - images.HEIF)
    with pytest.raises(ImageError, match=r"pip install pillow-heif"):
        open_image(HEIC)
    for name in ("a.HEIC", "b.nef", ".c.heic"):
        (tmp_path / name).write_bytes(HEIC)
    with pytest.raises(ImageError, match=r"no pictures in this folder \(2 left out.*a\.HEIC, .*b\.nef;.*pillow-heif"):
        find_images([tmp_path])
    square("red").save(tmp_path / "d.jpg")
    with pytest.warns(UserWarning, match=r"2 left out.*a\.HEIC"):
        assert find_images([tmp_path]) == [str(tmp_path / "d.jpg")]
    (tmp_path / "b.nef").write_bytes(b"raw")
    with pytest.raises(ImageError, match="developed into a JPEG"):
        open_image(tmp_path / "b.nef")


def test_an_installed_plugin_reads_heic(monkeypatch):
    def register():
        Image.register_open("HEIF", lambda file, name: square("blue"), lambda start: start[4:12] == b"ftypheic")

    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    for _ in range(2):
        assert rgb(open_image(HEIC))[0, 0].tolist() == [0, 0, 255]
    with pytest.raises(ImageError, match="pillow-heif cannot read"):
        open_image(HEIC.replace(b"heic", b"msf1"))
