"""Decoding: the pixels and the errors of `open_image`, and reduced sizes."""

import random
from io import BytesIO

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from skimage import data as photos

from opsin.data.decode import decode, open_picture
from opsin.data.images import open_image
from opsin.errors import ImageError

PHOTO = Image.fromarray(photos.astronaut()).resize((163, 121))


def encode(image: Image.Image = PHOTO, kind: str = "JPEG", **how) -> bytes:
    file = BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


def turned(orientation: int, image: Image.Image = PHOTO) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(image, exif=exif, quality=90)


def reference(data, channels: int = 3) -> np.ndarray:
    pixels = np.asarray(open_image(data, channels=channels))
    return pixels if pixels.ndim == 3 else pixels[..., None]


FILES = {
    "plain": encode(),
    "progressive": encode(progressive=True),
    "444": encode(subsampling=0),
    "422": encode(subsampling=1),
    "rgb inside": encode(keep_rgb=True),
    "restarts": encode(restart_marker_blocks=4),
    "grey": encode(PHOTO.convert("L")),
    "cmyk": encode(PHOTO.convert("CMYK")),
    "tiny": encode(PHOTO.resize((1, 1))),
    "png": encode(kind="PNG"),
    "rgba": encode(PHOTO.convert("RGBA").rotate(30), "PNG"),
    "palette": encode(PHOTO.convert("P"), "GIF"),
    "16 bit": encode(Image.fromarray(np.arange(0, 60000, 100, dtype=np.uint16).reshape(20, 30)), "PNG"),
    "webp": encode(kind="WEBP"),
    "xmp turned": encode(xmp=b'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/>'),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", FILES)
def test_equals_open_image(name, channels):
    got = decode(FILES[name], channels=channels)
    assert got.dtype == np.uint8
    assert got.flags.writeable
    assert np.array_equal(got, reference(FILES[name], channels))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_upright_in_every_orientation(mode):
    for orientation in range(10):
        data = turned(orientation, PHOTO.convert(mode))
        for channels in (1, 3):
            picture = open_picture(data, channels=channels)
            expected = reference(data, channels)
            assert (picture.height, picture.width) == expected.shape[:2]
            assert np.array_equal(picture.decode()[0], expected), orientation


@pytest.mark.parametrize("name", ["plain", "progressive", "restarts", "grey", "444", "rgb inside"])
def test_damage_is_met_as_open_image_meets_it(name):
    whole, rng = FILES[name], random.Random(name)
    cases = [whole[:end] for end in (0, 1, 2, 30, len(whole) - 1, len(whole) - 2, len(whole) - 9)]
    cases += [whole[: rng.randrange(600, len(whole))] for _ in range(10)] + [whole + b"more"]
    for _ in range(40):
        flawed = bytearray(whole)
        for _ in range(rng.choice((1, 3))):
            flawed[rng.randrange(2, len(flawed))] = rng.randrange(256)
        cases.append(bytes(flawed))
    outcomes = set()
    for case in cases:
        try:
            expected, error = reference(case), None
        except ImageError as refusal:
            expected, error = None, str(refusal)
        if expected is None:
            with pytest.raises(ImageError) as caught:
                decode(case)
            assert str(caught.value) == error
        else:
            assert np.array_equal(decode(case), expected)
        outcomes.add(expected is None)
    assert outcomes == {True, False}


def test_pillow_reads_only_headers_that_say_more_than_a_size(monkeypatch):
    opened = []
    pillows = Image.open
    monkeypatch.setattr(Image, "open", lambda *args: opened.append(args) or pillows(*args))
    for name in ("plain", "progressive", "444", "restarts", "grey"):
        picture = open_picture(FILES[name])
        assert (picture.height, picture.width, picture.grey) == (121, 163, name == "grey")
    assert not opened
    for data in (FILES["cmyk"], FILES["xmp turned"], turned(6)):
        open_picture(data)
        assert opened
        opened.clear()


def test_errors_name_the_picture():
    for data, words in (
        (b"", "empty"),
        (b"not a picture", "not a picture"),
        (FILES["plain"][:1500], "truncated or damaged"),
        (FILES["png"][:1500], "truncated or damaged"),
    ):
        with pytest.raises(ImageError, match=rf"^cats/1\.jpg: {words}"):
            decode(data, name="cats/1.jpg")
    with pytest.raises(ImageError, match="4 channels, but the model takes 5"):
        decode(np.zeros((4, 5, 4), np.uint8), channels=5)
    with pytest.raises(ImageError, match="3 channels, but the model takes 4"):
        decode(FILES["plain"], channels=4)


@pytest.mark.parametrize("name", ["plain", "png"])
def test_bombs_are_refused(name, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 163 * 121 // 2 - 1)
    with pytest.raises(ImageError, match="more than 19720 pixels, refused"):
        decode(FILES[name])


@pytest.mark.parametrize("size", [(320, 240), (321, 235)])
@pytest.mark.parametrize("reduce", [2, 4, 8])
def test_reduced_pixels_are_means_of_squares(size, reduce):
    data = encode(PHOTO.resize(size), quality=95, subsampling=0)
    full = decode(data).astype(float)
    got, reduced = open_picture(data).decode(reduce)
    assert reduced == reduce
    assert got.shape == (-(-size[1] // reduce), -(-size[0] // reduce), 3)
    h, w = size[1] // reduce, size[0] // reduce
    means = full[: h * reduce, : w * reduce].reshape(h, reduce, w, reduce, 3).mean((1, 3))
    assert abs(got[:h, :w] - means).mean() < 2  # a shift by one of the full pixels doubles this
    assert abs(got[:h, :w] - means).mean() < 0.6 * abs(got[:h, 1:w] - means[:, :-1]).mean()


def test_reduced_pictures_stand_upright():
    small = PHOTO.resize((160, 120))
    for orientation in range(1, 9):
        picture = open_picture(turned(orientation, small))
        assert picture.reduces(4)
        got, _ = picture.decode(4)
        full = picture.decode()[0].astype(float)
        means = full.reshape(full.shape[0] // 4, 4, full.shape[1] // 4, 4, 3).mean((1, 3))
        assert abs(got - means).mean() < 3
    assert not open_picture(turned(3)).reduces(2)  # 163 pixels: half a pixel would come first
    assert open_picture(turned(1)).reduces(2)


def test_what_cannot_be_reduced_comes_in_full():
    flawed = FILES["plain"][:-300] + b"\xff\xd9"  # libjpeg warns of what is missing, Pillow reads on
    with pytest.raises(ValueError):
        simplejpeg.decode_jpeg(flawed)
    for data in (FILES["png"], FILES["cmyk"], flawed):
        got, reduced = open_picture(data).decode(4)
        assert reduced == 1
        assert np.array_equal(got, reference(data))
    assert not open_picture(FILES["png"]).reduces(2)


def test_arrays_and_pillow_images():
    array = np.random.default_rng(0).integers(0, 256, (8, 9, 5), dtype=np.uint8)
    assert decode(array, channels=5) is array
    frozen = array[:, ::-1, :3]
    frozen.flags.writeable = False
    got = decode(frozen)
    assert np.array_equal(got, frozen)
    assert got.flags.writeable
    assert np.array_equal(decode(PHOTO), np.asarray(PHOTO))
    assert np.array_equal(decode(PHOTO, channels=1)[..., 0], np.asarray(PHOTO.convert("L")))
    assert np.array_equal(decode(array[..., :4]), np.asarray(open_image(array[..., :4])))
