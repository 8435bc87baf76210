"""Pictures in every shape they come in: each source and kind of file, and where pictures are looked for."""

import functools
import http.server
import io
import os
import struct
import sys
import threading
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import fake_stdin, rgb, square
from PIL import Image, ImageOps

from opsin.data.images import describe, find_images, natural_key, open_image
from opsin.errors import ImageError

# --- open_image -----------------------------------------------------------------------------------------------------


@pytest.fixture
def photo() -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))


def test_every_source_gives_the_same_pixels(photo, tmp_path):
    path = tmp_path / "a.png"
    photo.save(path)
    array, data = np.asarray(photo), path.read_bytes()
    sources = [path, str(path), data, io.BytesIO(data), photo, Image.open(path), array, array.astype(np.float64) / 255]
    sources += [array.astype(np.uint16) * 257, (array / 255).astype(np.float32)]
    with path.open("rb") as file:
        for source in [*sources, file]:
            assert np.array_equal(rgb(open_image(source)), array), type(source)


def test_a_file_object_is_left_where_it_stood(photo):
    stream = io.BytesIO()
    photo.save(stream, "PNG")
    stream.seek(0)
    assert np.array_equal(rgb(open_image(stream)), rgb(open_image(stream)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_orientation(photo, tmp_path, orientation, suffix):
    turned = {
        1: photo,
        2: ImageOps.mirror(photo),
        3: photo.rotate(180),
        4: ImageOps.flip(photo),
        5: ImageOps.mirror(photo.rotate(90, expand=True)).rotate(180, expand=True),
        6: photo.rotate(90, expand=True),
        7: ImageOps.mirror(photo.rotate(90, expand=True)),
        8: photo.rotate(-90, expand=True),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(suffix, {})
    turned.save(path, exif=exif, **options)
    got = rgb(open_image(path)).astype(int)
    assert got.shape == (20, 30, 3)
    assert np.abs(got - np.asarray(photo)).max() <= (12 if suffix == "jpg" else 0)


def test_alpha_lies_on_white(tmp_path):
    layer = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    layer.paste((255, 0, 0, 255), (0, 0, 2, 4))
    layer.putpixel((3, 3), (255, 0, 0, 128))
    expected = np.full((4, 4, 3), 255)
    expected[:, :2] = (255, 0, 0)
    expected[3, 3] = (255, 127, 127)
    layer.save(tmp_path / "a.png")
    assert np.array_equal(rgb(open_image(tmp_path / "a.png")), expected)
    assert np.array_equal(rgb(open_image(np.asarray(layer))), expected)
    assert np.asarray(open_image(layer, channels=1))[0, 3] == 255

    grey = Image.new("LA", (2, 1), (0, 255))
    grey.putpixel((1, 0), (0, 0))
    assert rgb(open_image(grey)).tolist() == [[[0] * 3, [255] * 3]]


def test_palette_with_and_without_transparency(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 10, 200, 30, 255, 0, 0])
    image.putdata([0, 1, 2])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=1)
    image.save(tmp_path / "partly.png", transparency=bytes([255, 0, 255]))
    assert rgb(open_image(tmp_path / "plain.png")).tolist() == [[[0, 0, 0], [10, 200, 30], [255, 0, 0]]]
    for name in ("clear.png", "partly.png"):
        assert rgb(open_image(tmp_path / name)).tolist() == [[[0, 0, 0], [255, 255, 255], [255, 0, 0]]]


def test_a_colour_declared_transparent_in_rgb_and_grey(tmp_path):
    image = Image.new("RGB", (2, 1), (5, 6, 7))
    image.putpixel((1, 0), (9, 9, 9))
    image.save(tmp_path / "rgb.png", transparency=(5, 6, 7))
    assert rgb(open_image(tmp_path / "rgb.png")).tolist() == [[[255] * 3, [9] * 3]]
    image.convert("L").save(tmp_path / "grey.png", transparency=9)
    assert rgb(open_image(tmp_path / "grey.png"))[0, 1].tolist() == [255] * 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_keep_their_brightness(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257 * 7, 32768, 65407, 65535]], dtype=np.uint16)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(values).save(path)
    expected = [0, 0, 1, 7, 128, 255, 255]
    assert [round(v / 257) for v in values[0].tolist()] == expected
    assert rgb(open_image(path))[0, :, 0].tolist() == expected
    assert np.asarray(open_image(path, channels=1))[0].tolist() == expected
    assert rgb(open_image(Image.fromarray(values.astype(np.int32))))[0, :, 1].tolist() == expected


def test_sixteen_bit_colour_png(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = b"\0" + struct.pack(">6H", 65535, 0, 257 * 9, 257, 257 * 200, 65535)
    header = struct.pack(">2I5B", 2, 1, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    assert rgb(open_image(b"\x89PNG\r\n\x1a\n" + body)).tolist() == [[[255, 0, 9], [1, 200, 255]]]


def test_float_tiff_and_values_out_of_range(tmp_path):
    Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)).save(tmp_path / "f.tif")
    assert rgb(open_image(tmp_path / "f.tif"))[0, :, 0].tolist() == [0, 128, 255]
    Image.fromarray(np.array([[0, 300.0]], dtype=np.float32)).save(tmp_path / "g.tif")
    with pytest.raises(ImageError, match=r"g\.tif: floats from 0 to 300"):
        open_image(tmp_path / "g.tif")
    with pytest.raises(ImageError, match="32-bit values from -4"):
        open_image(Image.fromarray(np.array([[-4, 1]], dtype=np.int32)))


def test_32_bit_integers_of_8_bits(tmp_path):
    values = np.array([[0, 1, 128, 255]], dtype=np.int32)
    Image.fromarray(values).save(tmp_path / "i.tif")
    assert rgb(open_image(tmp_path / "i.tif"))[0, :, 0].tolist() == [0, 1, 128, 255]
    assert rgb(open_image(Image.fromarray(values * 257)))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_cmyk_ycbcr_bilevel_grey(photo, tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    assert np.abs(rgb(open_image(tmp_path / "cmyk.jpg")).astype(int) - (255, 0, 0)).max() <= 3
    assert np.abs(rgb(open_image(photo.convert("YCbCr"))).astype(int) - np.asarray(photo)).max() <= 3
    assert rgb(open_image(Image.new("1", (2, 2), 1))).min() == 255
    assert rgb(open_image(np.array([[True, False]])))[0, :, 0].tolist() == [255, 0]
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for source in (grey, grey[..., None], Image.fromarray(grey)):
        assert np.array_equal(rgb(open_image(source)), np.repeat(grey[..., None], 3, 2))
        assert np.array_equal(np.asarray(open_image(source, channels=1)), grey)


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [square("red"), square("green"), square("blue")]
    for suffix in ("gif", "webp", "png"):
        path = tmp_path / f"a.{suffix}"
        frames[0].save(
            path, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == "webp" else {})
        )
        assert rgb(open_image(path))[3, 3].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
def test_damaged_files_are_named(tmp_path, suffix):
    path = tmp_path / f"pict.{suffix}"
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:30], b"", b"no picture at all, just text", bytes(500)):
        path.write_bytes(data)
        with pytest.raises(ImageError, match=rf"pict\.{suffix}: (truncated|empty|not a picture)"):
            open_image(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), suffix=st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP"]))
def test_no_damage_escapes_as_another_error(data, suffix):
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    square("green", 24).save(stream, suffix, **({} if suffix == "GIF" else {"exif": exif}))
    raw = bytearray(stream.getvalue())
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=6)):
        raw[place] = data.draw(st.integers(0, 255))
    with suppress(ImageError):  # any other error fails the test
        assert open_image(bytes(raw)).mode == "RGB"


def test_wrong_paths_and_things(tmp_path, photo):
    photo.save(tmp_path / "kitten.png")
    with pytest.raises(ImageError, match=r"kiten\.png: no such file\. Did you mean kitten\.png"):
        open_image(tmp_path / "kiten.png")
    with pytest.raises(ImageError, match="a folder, not a picture"):
        open_image(tmp_path)
    with pytest.raises(ImageError, match=r"NoneType.*give a path"):
        open_image(None)
    with pytest.raises(ImageError, match="binary mode"), (tmp_path / "kitten.png").open(errors="replace") as file:
        open_image(file)
    with pytest.raises(ImageError, match="cannot be read"):
        open_image("nul\0inside.png")
    with pytest.raises(ImageError, match=r"array 3x20x30.*transpose\(1, 2, 0\)"):
        open_image(np.asarray(photo).transpose(2, 0, 1))
    with pytest.raises(ImageError, match="divide by 255"):
        open_image(np.asarray(photo).astype(np.float32))
    with pytest.raises(ImageError, match=r"lie in 0\.\.1"):
        open_image(np.full((4, 4), np.nan))
    with pytest.raises(ImageError, match="int64"):
        open_image(np.asarray(photo).astype(np.int64))
    with pytest.raises(ImageError, match="shape"):
        open_image(np.zeros((0, 4, 3), np.uint8))


def test_other_channel_counts(tmp_path):
    volume = np.random.default_rng(0).integers(0, 256, (9, 8, 25), dtype=np.uint8)
    assert np.array_equal(open_image(volume, channels=25), volume)
    np.save(tmp_path / "v.npy", volume)
    assert np.array_equal(open_image(tmp_path / "v.npy", channels=25), volume)
    layer = Image.new("RGBA", (3, 2), (1, 2, 3, 4))
    assert open_image(layer, channels=4)[0, 0].tolist() == [1, 2, 3, 4]
    with pytest.raises(ImageError, match=r"v\.npy: .*25 channels"):
        open_image(tmp_path / "v.npy")
    (tmp_path / "w.npy").write_bytes((tmp_path / "v.npy").read_bytes()[:300])
    with pytest.raises(ImageError, match=r"w\.npy: truncated"):
        open_image(tmp_path / "w.npy", channels=25)
    with pytest.raises(ImageError, match="3 channels, but the model takes 25"):
        open_image(square("red"), channels=25)


def test_names_in_other_scripts(tmp_path, photo):
    for name in ("кот.png", "猫.png", "قط.png", "n° 5 [x].png", "emoji 🐈.png"):
        photo.save(tmp_path / name)
        assert open_image(tmp_path / name).size == photo.size
        assert find_images([tmp_path / name]) == [str(tmp_path / name)]  # brackets are no pattern if the file exists
    assert len(find_images([tmp_path])) == 5
    assert len(find_images([str(tmp_path / "*.png")])) == 5


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no valid UTF-8 exist on Linux only")
def test_a_name_that_is_no_utf8_can_be_printed(tmp_path, photo):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    Path(os.fsdecode(path)).write_bytes(b"")
    (found,) = find_images([tmp_path])
    with pytest.raises(ImageError, match=r"caf\\xe9\.png: empty") as error:
        open_image(found)
    str(error.value).encode("utf-8")


# --- URLs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, photo):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            if self.path.startswith("/short"):
                self.send_response(200)
                self.send_header("Content-Length", "5000")
                self.end_headers()
                self.wfile.write(b"\x89PNG\r\n\x1a\n")
            else:
                super().do_GET()

    photo.save(tmp_path / "кот 1.png")
    (tmp_path / "page.html").write_text("<html>")
    handler = functools.partial(Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{web.server_address[1]}"
        web.shutdown()
        thread.join()


def test_urls(server, photo):
    for url in (f"{server}/кот 1.png", f"{server}/%D0%BA%D0%BE%D1%82%201.png?v=1"):
        assert find_images([url]) == [url]
        assert np.array_equal(rgb(open_image(url)), np.asarray(photo))
    with pytest.raises(ImageError, match=r"/none\.png: cannot be read \(HTTP 404"):
        open_image(f"{server}/none.png")
    with pytest.raises(ImageError, match=r"page\.html: not a picture"):
        open_image(f"{server}/page.html")
    with pytest.raises(ImageError, match="short: cannot be read"):
        open_image(f"{server}/short")
    with pytest.raises(ImageError, match="cannot be read"):
        open_image("http://127.0.0.1:1/a.png")


# --- find_images ----------------------------------------------------------------------------------------------------


def test_folders_patterns_and_order(tmp_path):
    for name in ("img10.png", "img9.PNG", "sub/b2.jpg", "sub/b10.jpg", ".hidden.png", ".git/x.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        square("red").save(tmp_path / name, "PNG")
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    relative = [os.path.relpath(p, tmp_path) for p in find_images([tmp_path])]
    assert relative == ["img9.PNG", "img10.png", "sub/b2.jpg", "sub/b10.jpg"]
    assert [os.path.basename(p) for p in find_images([str(tmp_path / "sub/b*.jpg")])] == ["b2.jpg", "b10.jpg"]
    assert [os.path.basename(p) for p in find_images([str(tmp_path / "s*/*.jpg"), tmp_path / "notes.txt"])] == [
        *("b2.jpg", "b10.jpg"),
        "notes.txt",
    ]


def test_nothing_found_is_said(tmp_path):
    with pytest.raises(ImageError, match="no pictures in this folder"):
        find_images([tmp_path])
    with pytest.raises(ImageError, match="nothing matches"):
        find_images([str(tmp_path / "*.png")])
    with pytest.raises(ImageError, match="no such file"):
        find_images([tmp_path / "none.png"])
    with pytest.raises(ImageError, match="no pictures given"):
        find_images([])


def test_natural_order():
    assert sorted(["b", "a10", "a9", "a09b", "", "10", "9", "A1"], key=natural_key) == [
        *("", "9", "10", "A1", "a9", "a09b", "a10", "b"),
    ]


def test_stdin_with_a_picture(monkeypatch):
    for form in ("PNG", "JPEG", "PPM"):
        stream = io.BytesIO()
        square("green").save(stream, form)
        fake_stdin(monkeypatch, stream.getvalue())
        (found,) = find_images(["-"])
        assert describe(found) == "stdin"
        assert open_image(found).size == (40, 40)
    fake_stdin(monkeypatch, b"P2 2 1 255 0 255\n")  # a picture that is text
    (found,) = find_images(["-"])
    assert rgb(open_image(found))[0, :, 0].tolist() == [0, 255]
    fake_stdin(monkeypatch, b"\xff\xd8\xff\xe0 damaged")
    with pytest.raises(ImageError, match="stdin: "):
        open_image(*find_images(["-"]))


def test_stdin_with_a_list(monkeypatch, tmp_path):
    names = ["кот.png", "b.png"]
    for name in names:
        square("red").save(tmp_path / name)
    fake_stdin(monkeypatch, "".join(f"{tmp_path / name}\r\n\n" for name in names).encode())
    assert [os.path.basename(p) for p in find_images(["-"])] == names
    fake_stdin(monkeypatch, b" \n")
    with pytest.raises(ImageError, match="standard input is empty"):
        find_images(["-"])
