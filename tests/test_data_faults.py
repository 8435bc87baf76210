"""Faults of real datasets: each a clear error, or a skip that is counted and named; never another picture instead."""

import io
import json
import logging
import os
import signal
import struct
import tarfile
import zlib

import numpy as np
import pytest
from PIL import Image
from test_readers_stream import shard

from opsin.cli import main
from opsin.data import EvalTransform, Preprocess, TrainTransform, create_dataset, create_loader, open_reader
from opsin.errors import ImageError, OpsinError

FIT = Preprocess(input_size=(3, 16, 16), crop_pct=1.0)
EVALUATION = EvalTransform(FIT)
SIDE = 20_000  # of a picture of 50 kB that would take 1.2 GB


def encoded(image: Image.Image, form: str, **options) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def noise(seed: int, size=(50, 40), bands: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], bands), dtype=np.uint8))


def png_bomb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", SIDE, SIDE, 1, 0, 0, 0, 0)  # one bit a pixel
    pixels = zlib.compress(bytes((SIDE // 8 + 1) * SIDE))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg_bomb() -> bytes:
    """A small JPEG whose header says it is a large one."""
    small = encoded(noise(1, (16, 16)), "JPEG")
    at = small.index(b"\xff\xc0") + 5
    return small[:at] + struct.pack(">HH", SIDE, SIDE) + small[at + 4 :]


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


BAD = {  # a file's name -> its content and what is said of it
    "zero.jpg": (b"", "empty (0 bytes)"),
    "text.jpg": (b"no picture", "not a picture in any format"),
    "cut.jpg": (cut(encoded(noise(2), "JPEG")), "truncated or damaged"),
    "cut.png": (cut(encoded(noise(2), "PNG")), "truncated or damaged"),
    "bomb.png": (png_bomb(), "more than 178956970 pixels"),
    "bomb.jpg": (jpeg_bomb(), "more than 178956970 pixels"),
}
PALETTE = noise(3).quantize(16)
GOOD = {  # what is odd, but a picture
    "cmyk.jpg": encoded(noise(4).convert("CMYK"), "JPEG"),
    "sixteen.png": encoded(Image.fromarray(np.linspace(0, 65535, 2000).astype(np.uint16).reshape(40, 50)), "PNG"),
    "palette.png": encoded(PALETTE, "PNG", transparency=bytes(range(0, 256, 16))),
    "moving.gif": encoded(noise(5), "GIF", save_all=True, append_images=[noise(6)]),
    "moving.webp": encoded(noise(5), "WEBP", save_all=True, append_images=[noise(6)], lossless=True),
    "one.png": encoded(noise(7, (1, 1)), "PNG"),
    "собака 犬 كلب.jpg": encoded(noise(8), "JPEG"),
    "UPPER.JPG": encoded(noise(9), "JPEG"),
}
LINKS = {"self.jpg": ("self.jpg", "symbolic links"), "gone.jpg": ("nowhere.jpg", "a link to nowhere.jpg, which is not")}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    """Two classes of good pictures, and among those of the second everything that can be wrong with a file."""
    root = tmp_path_factory.mktemp("faulty")
    files = {
        f"{kind}/{i}.jpg": encoded(noise(10 + i + 10 * (kind == "cat")), "JPEG")
        for kind in ("cat", "dog")
        for i in range(8)
    }
    files |= {f"cat/{name}": data for name, (data, _) in BAD.items()}
    files |= {f"dog/{name}": data for name, data in GOOD.items()}
    files |= {"dog/notes.xyz": b"hm", "dog/more.tar": b"no tar"}
    for name, data in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)
    (root / "dog" / "round").symlink_to(root, target_is_directory=True)
    for name, (target, _) in LINKS.items():
        (root / "cat" / name).symlink_to(target)
    return root


def loaded(where, **how):
    options = {key: how.pop(key) for key in ("split", "class_map", "root", "target", "task") if key in how}
    dataset = create_dataset(where, transform=how.pop("transform", EVALUATION), **options)
    return create_loader(dataset, **({"batch_size": 4, "num_workers": 0} | how))


# --- pictures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_bad_pictures_are_skipped_by_name(faulty, training, caplog):
    loader = loaded(faulty, num_workers=2, transform=TrainTransform(16) if training else EVALUATION)
    with caplog.at_level(logging.WARNING, "opsin.data"):
        batches = list(loader)
    reader = loader.dataset.reader
    seen = sorted(reader.name(i).rpartition("/")[2] for batch in batches for i in batch.indices.tolist())
    assert seen == sorted([*GOOD, *(f"{i}.jpg" for i in range(8)), *(f"{i}.jpg" for i in range(8))])
    said = {name.rpartition("/")[2]: reason for name, reason in loader.skipped.items()}
    expected = {name: words for name, (_, words) in (BAD | LINKS).items()}
    assert said.keys() == expected.keys()
    assert all(words in said[name] and str(faulty) in said[name] for name, words in expected.items())
    assert len(caplog.records) == len(expected)
    assert all(reason in caplog.text for reason in loader.skipped.values())


def test_odd_pictures_are_read_as_pillow_reads_them(faulty):
    """Through the loader: transparency on white, sixteen bits scaled, the first picture of an animation."""
    dataset = create_dataset(
        faulty,
        transform=EvalTransform(
            Preprocess(input_size=(3, 40, 50), crop_pct=1.0, crop_mode="squash", interpolation="nearest")
        ),
    )
    got = {}
    for batch in create_loader(dataset, batch_size=3, num_workers=0):
        for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
            got[os.path.basename(dataset.reader.name(index))] = image.permute(1, 2, 0).numpy()
    palette = Image.open(io.BytesIO(GOOD["palette.png"])).convert("RGBA")
    white = Image.new("RGBA", palette.size, "white")
    wanted = {
        "palette.png": np.asarray(Image.alpha_composite(white, palette).convert("RGB")),
        "moving.gif": np.asarray(Image.open(io.BytesIO(GOOD["moving.gif"])).convert("RGB")),
        "moving.webp": np.asarray(noise(5)),
        "cmyk.jpg": np.asarray(Image.open(io.BytesIO(GOOD["cmyk.jpg"])).convert("RGB")),
        "one.png": np.broadcast_to(np.asarray(noise(7, (1, 1))), (40, 50, 3)),
    }
    for name, pixels in wanted.items():
        assert np.array_equal(got[name], pixels), name
    ramp = got["sixteen.png"].reshape(-1, 3)[:, 0]
    assert (ramp[0], ramp[-1]) == (0, 255)
    assert (np.diff(ramp.astype(int)) >= 0).all()
    assert np.ptp(got["собака 犬 كلب.jpg"]) > 200


def test_strict_raises_and_a_limit_stops(faulty):
    with pytest.raises(ImageError, match="cat/bomb.jpg: more than"):
        list(loaded(faulty, strict=True, num_workers=1))
    with pytest.raises(OpsinError, match=r"7 pictures could not be read \(max_skips=6\):\n  .*bomb.jpg: more"):
        list(loaded(faulty, max_skips=6, batch_size=1))
    with pytest.raises(OpsinError, match=r"1 pictures could not be read \(max_skips=0\)"):
        list(loaded(faulty, max_skips=0, batch_size=1))
    few = loaded(faulty, max_skips=0.01, batch_size=1)
    list(few)
    assert 1 < len(few.skipped) <= 10


def test_the_page_of_opsin_data(faulty, capsys):
    assert main(["data", str(faulty), "--output", "None"]) == 1
    said = capsys.readouterr().out
    for name, (_, words) in (BAD | LINKS).items():
        (line,) = (line for line in said.splitlines() if f"/{name}:" in line)
        assert words in line
    assert f"unreadable: {len(BAD | LINKS)}" in said
    assert "left out, no pictures by their names: 1 .xyz, 1 .tar" in said or "1 .tar, 1 .xyz" in said
    assert "2 classes" in said
    assert len(said.splitlines()) < 24
    assert main(["data", str(faulty), "--output", "None", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert sum(len(split["unreadable"]) for split in facts["splits"].values()) == len(BAD | LINKS)
    assert facts["left_out"] == {".xyz": 1, ".tar": 1}


def test_a_page_where_nothing_can_be_read(tmp_path, capsys):
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        for i in range(3):
            (tmp_path / kind / f"{i}.png").write_bytes(b"")
    assert main(["data", str(tmp_path), "--output", str(tmp_path / "sheet.png")]) == 1
    said = capsys.readouterr()
    assert "sizes: none; formats: none" in said.out
    assert "unreadable: 6" in said.out
    assert "no sheet: none of the samples" in said.err
    assert not (tmp_path / "sheet.png").exists()


# --- folders, lists, tars ---------------------------------------------------------------------------------------------


def test_folders_with_nothing_or_one_class(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(OpsinError, match="empty: no pictures in this folder .*no files"):
        loaded(tmp_path / "empty")
    (tmp_path / "odd" / "x").mkdir(parents=True)
    (tmp_path / "odd" / "x" / "a.xyz").write_bytes(b"?")
    with pytest.raises(OpsinError, match=r"odd: no pictures in this folder \(it holds 1 \.xyz; looked for .*\.png"):
        loaded(tmp_path / "odd")
    assert main(["data", str(tmp_path / "odd"), "--output", "None"]) == 2
    capsys.readouterr()
    (tmp_path / "one" / "cat").mkdir(parents=True)
    for i in range(4):
        noise(i).save(tmp_path / "one" / "cat" / f"{i}.png")
    loader = loaded(tmp_path / "one")
    assert [batch.targets.tolist() for batch in loader] == [[0] * 4]  # fine to predict
    with pytest.raises(OpsinError, match="needs at least two classes, and there is one: cat"):
        loader.dataset.reader.check_trainable()
    assert main(["data", str(tmp_path / "one"), "--output", "None"]) == 1
    assert "needs at least two classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("picture,label\na.png,x\n", {}, "which column is the image"),
        ("path,kind\na.png,x\n", {}, "which column is the target"),
        ("path,label\na.png,x\n", {"target": "labl"}, "no column 'labl'. Did you mean label"),
        ("path,label\na.png,7\n", {"class_map": ["a", "b"]}, "label 7 is out of range for 2 classes"),
        ("path,label\na.png,c\n", {"class_map": ["a", "b"]}, "no class 'c' in the class map"),
        ("path,label\na.png,\n", {}, "row 1 has no label"),
        ("path,label\nz.png,x\n", {}, "of the first 1 pictures none is there"),
        ("path,label\na.png,x,y\n", {}, "line 2 has 3 cells, not 2"),
        ("path,label\n", {}, "the list is empty"),
    ],
)
def test_lists(tmp_path, text, options, message):
    noise(0).save(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(OpsinError, match=message):
        loaded(f"csv:{tmp_path / 'list.csv'}", **options)


def test_a_missing_file_of_a_list_is_skipped(tmp_path):
    noise(0).save(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("path,label\na.png,x\nb.png,y\n")
    loader = loaded(f"csv:{tmp_path / 'list.csv'}")
    assert [len(batch.images) for batch in loader] == [1]
    assert list(loader.skipped.values()) == [f"{tmp_path / 'b.png'}: no such file. Did you mean a.png?"]


def packed(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_tars(tmp_path):
    good = {f"{kind}/{i}.png": encoded(noise(i), "PNG") for kind in ("cat", "dog") for i in range(3)}
    evil = packed(tmp_path / "evil.tar", {"../out.png": b"x", "/etc/abs.png": b"x", "cat/../../up.png": b"x", **good})
    with pytest.warns(
        UserWarning, match=r"3 pictures left out, whose names lead out of the tar, first .*\.\./out\.png"
    ):
        loader = loaded(f"tar:{evil}")
    assert sum(len(batch.images) for batch in loader) == 6
    bad = packed(tmp_path / "bad.tar", good | {f"cat/{name}": data for name, (data, _) in BAD.items()})
    loader = loaded(f"tar:{bad}", num_workers=2)
    assert sum(len(batch.images) for batch in loader) == 6
    assert sorted(name.rpartition("/")[2] for name in loader.skipped) == sorted(BAD)
    assert all(f"{bad}/cat/" in reason for reason in loader.skipped.values())
    short = tmp_path / "short.tar"
    short.write_bytes(bad.read_bytes()[:3000])
    with pytest.raises(OpsinError, match=r"short\.tar: cut short or damaged at byte"):
        loaded(f"tar:{short}")
    (tmp_path / "none.tar").write_bytes(b"")
    with pytest.raises(OpsinError, match=r"none\.tar: cut short or damaged"):
        loaded(f"tar:{tmp_path / 'none.tar'}")


# --- shards -----------------------------------------------------------------------------------------------------------


def test_shards(tmp_path, caplog, capsys):
    """A shard cut short, labels out of range or missing, unreadable pictures: counted by name, the rest is read."""
    png = [encoded(noise(i), "PNG") for i in range(12)]
    shard(tmp_path / "a-0.tar", {f"{i:02d}": {"png": png[i], "cls": i % 2} for i in range(4)})
    whole = shard(tmp_path / "a-1.tar", {f"{i:02d}": {"png": png[i], "cls": i % 2} for i in range(4, 8)})
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    shard(
        tmp_path / "a-2.tar",
        {
            "08": {"png": png[8], "cls": 2},
            "09": {"png": png[9], "cls": -1},
            "10": {"png": png[10]},
            "11": {"png": cut(png[11]), "cls": 0},
            "12": {"png": png[0], "cls": 1},
        },
    )
    for workers in (0, 2):
        loader = loaded(f"wds:{tmp_path}", class_map=["a", "b"], num_workers=workers)
        with caplog.at_level(logging.WARNING, "opsin.data"):
            count = sum(len(batch.images) for batch in loader)
        reasons = "\n".join(loader.skipped.values())
        for words in (
            "a-1.tar: cut short or damaged at byte",
            "a-2.tar/08: label 2 is out of range for 2 classes",
            "a-2.tar/09: label -1 is out of range",
            "a-2.tar/10: no label .cls",
            "a-2.tar/11.png: truncated",
        ):
            assert words in reasons
        assert len(loader.skipped) == 5
        assert 4 + 1 <= count <= 4 + 1 + 3
    unnamed = loaded(f"wds:{tmp_path}")
    assert max(max(batch.targets.tolist()) for batch in unnamed) == 2  # nobody said how many classes there are
    assert "label -1 is out of range" in "\n".join(unnamed.skipped.values())
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    assert main(["data", f"wds:{tmp_path}", "--class-map", str(names), "--output", "None"]) == 1
    assert "unreadable: 5" in capsys.readouterr().out
    shard(tmp_path / "many" / "a.tar", {"0": {"png": png[0], "json": json.dumps({"label": [0, 3]})}})
    with pytest.raises(OpsinError, match="of nobody knows how many: give a class_map"):
        loaded(f"wds:{tmp_path / 'many'}")
    (batch,) = loaded(f"wds:{tmp_path / 'many'}", class_map=list("abcd"))
    assert batch.targets.tolist() == [[1, 0, 0, 1]]


def test_streams_of_datasets(tmp_path, monkeypatch):
    """Each faulty row is a skip of its own."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
    datasets.disable_progress_bars()
    pictures = [encoded(noise(i), "PNG") for i in range(8)]
    pictures[2], pictures[3] = b"", cut(pictures[3])
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [{"bytes": data, "path": None} for data in pictures], "label": [0, 5, 0, 1, 7, -1, 1, None]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    loader = loaded(f"hfids:{tmp_path / 'saved'}", class_map=["a", "b"])
    assert sum(len(batch.images) for batch in loader) == 2
    place = tmp_path / "saved"
    assert loader.skipped.keys() == {f"{place}[0:{row}]" for row in (1, 2, 3, 4, 5, 7)}
    for row, words in {
        1: "label 5 is out of range",
        2: "empty (0 bytes)",
        3: "truncated",
        5: "-1",
        7: "no label",
    }.items():
        assert words in loader.skipped[f"{place}[0:{row}]"]
    assert main(["data", f"hfids:{place}", "--class-map", "absent.txt", "--output", "None"]) == 2


@pytest.mark.parametrize(("bad", "stops"), [(range(108, 120), False), (range(12), True)])
def test_a_limit_of_skips_where_nobody_knows_the_length(tmp_path, bad, stops):
    """A tenth of what has come so far: the last twelve of 120 are few, the first twelve are all there was."""
    png = encoded(noise(0), "PNG")
    shard(tmp_path / "0.tar", {f"{i:03d}": {"png": b"" if i in bad else png, "cls": 0} for i in range(120)})
    loader = loaded(f"wds:{tmp_path}", batch_size=6)
    if stops:
        with pytest.raises(OpsinError, match=r"12 pictures could not be read \(max_skips=0.1\)"):
            list(loader)
        return
    assert sum(len(batch.images) for batch in loader) + len(loader.skipped) == 120 == loader.state_dict()["seen"]
    again = loaded(f"wds:{tmp_path}", batch_size=6)
    again.load_state_dict(loader.state_dict())
    assert again.seen == 120


class Deadly:
    """A transform in whose process memory runs out at the third picture."""

    def __init__(self) -> None:
        self.left = 2

    def __call__(self, image, *, rng, size=None):
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return EVALUATION(image)


@pytest.mark.parametrize("kind", ["folder", "wds"])
def test_a_worker_killed_by_the_system(tmp_path, kind):
    files = {f"{i:02d}": {"png": encoded(noise(i), "PNG"), "cls": 0} for i in range(8)}
    for name, content in files.items():
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / f"{name}.png").write_bytes(content["png"])
    shard(tmp_path / "shards" / "0.tar", files)
    where = f"wds:{tmp_path / 'shards'}" if kind == "wds" else f"folder:{tmp_path / 'files'}"
    with pytest.raises(OpsinError, match="a data worker died .* fewer workers or smaller batches"):
        list(loaded(where, transform=Deadly(), num_workers=2, batch_size=2))


def test_what_stands_open_takes_no_more_options(faulty):
    with pytest.raises(OpsinError, match="is open already: split would change nothing"):
        create_dataset(open_reader(faulty), transform=EVALUATION, split="train")
