"""Readers of folders, tars and digits; what all readers have in common."""

import io
import os
import pickle
import shutil
import subprocess
import tarfile
import tempfile
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from opsin.data.readers import SCHEMES, Reader, Subset, open_reader
from opsin.data.readers._tarfile import tar_members
from opsin.data.readers.base import Strings, Tuples
from opsin.errors import ImageError, OpsinError, UnknownArgumentError


def picture(shade: int = 0, format: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(data, format)
    return data.getvalue()


def write(root, *names, data: bytes | None = None):
    """Pictures, each with a shade of its own."""
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(i) if data is None else data)
    return root


def write_tar(path, *names, data: bytes | None = None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i, name in enumerate(names):
            content = picture(i) if data is None else data
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def short_names(reader: Reader, root) -> list[str]:
    return [os.path.relpath(reader.name(i), root) for i in range(len(reader))]


@contextmanager
def as_nobody():
    """As a user who may not read everything; root may."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def open_folder_of_temp():
    """A folder that other users may enter, unlike pytest's."""
    from pathlib import Path

    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


# --- folders ------------------------------------------------------------------------------------------------------


def test_folder_classes_are_relative_folders_in_natural_order(tmp_path):
    write(tmp_path, "b10/x2.png", "b10/x10.JPG", "b9/one.webp", "deep/a/k.png", "кошки/мяу.png")
    reader = open_reader(tmp_path)
    assert reader.classes == ("b9", "b10", "deep/a", "кошки")
    assert reader.class_to_idx["deep/a"] == 2
    assert short_names(reader, tmp_path) == [
        "b9/one.webp",
        "b10/x2.png",
        "b10/x10.JPG",
        "deep/a/k.png",
        "кошки/мяу.png",
    ]
    assert reader.targets.tolist() == [0, 1, 1, 2, 3]
    record = reader[4]
    assert record == (picture(4), 3, str(tmp_path / "кошки/мяу.png"))
    assert reader.task == "single"
    assert type(record.target) is int


def test_folder_leaves_out_what_is_hidden_or_no_picture(tmp_path):
    write(tmp_path, "a/1.png", "a/.2.png", ".git/3.png", "a/4.txt", "a/5.heic", "a/6.txt")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    reader = open_reader(f"folder:{tmp_path}")
    assert short_names(reader, tmp_path) == ["a/1.png"]
    assert dict(reader.others) == {".txt": 2, ".heic": 1, ".png": 1}
    more = open_reader(tmp_path, extensions=("heic", ".PNG"))
    assert short_names(more, tmp_path) == ["a/1.png", "a/5.heic"]


def test_folder_names_that_are_no_utf8(tmp_path):
    (tmp_path / "a").mkdir()
    name = os.path.join(os.fsencode(tmp_path), b"a", b"caf\xe9.png")
    with open(name, "wb") as file:
        file.write(picture(7))
    reader = open_reader(tmp_path)
    assert reader[0].image == picture(7)
    assert reader[0].name.endswith("caf\\xe9.png")


def test_folder_follows_links_but_not_in_circles(tmp_path):
    write(tmp_path / "elsewhere", "x.png")
    write(tmp_path / "data", "a/1.png", "a/2.png")
    (tmp_path / "data/a/loop").symlink_to(tmp_path / "data")
    (tmp_path / "data/self").symlink_to("self")
    (tmp_path / "data/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data/a/gone.png").symlink_to(tmp_path / "nowhere.png")
    reader = open_reader(tmp_path / "data")
    assert short_names(reader, tmp_path / "data") == ["a/1.png", "a/2.png", "a/gone.png", "b/x.png"]
    with pytest.raises(ImageError, match="gone.png: a link to .*nowhere.png, which is not there"):
        reader[2]


@pytest.mark.parametrize(("wanted", "names"), [("train", 4), ("val", 2), ("validation", 2), ("valid", 2), ("TEST", 1)])
def test_folder_splits_by_their_names(tmp_path, wanted, names):
    write(tmp_path, "train/a/1.png", "train/b/2.png", "train/c/3.png", "train/c/4.png")
    write(tmp_path, "val/a/1.png", "val/c/2.png", "testing/x.png")
    reader = open_reader(tmp_path, split=wanted)
    assert len(reader) == names
    if wanted.startswith("val"):  # the class of which there is no picture keeps its number
        assert reader.classes == ("a", "b", "c")
        assert reader.targets.tolist() == [0, 2]
    if wanted == "TEST":
        assert reader.task == "unlabelled"
        assert reader[0].target is None


def test_folder_split_must_be_said_and_be_there(tmp_path):
    write(tmp_path, "train/a/1.png", "val/a/1.png", "val/new/2.png")
    with pytest.raises(OpsinError, match="divided into train, val: say which"):
        open_reader(tmp_path)
    with pytest.raises(OpsinError, match="no split 'tset', but train, val"):
        open_reader(tmp_path, split="tset")
    with pytest.raises(OpsinError, match="1 folders are none of the 1 classes: new"):
        open_reader(tmp_path, split="val")


def test_a_class_may_be_called_train(tmp_path):
    write(tmp_path, "train/1.png", "bus/2.png", "test/3.png")
    assert open_reader(tmp_path).classes == ("bus", "test", "train")


def test_automatic_split_covers_everything_once(tmp_path):
    write(tmp_path, *(f"train/{c}/{i}.png" for c in "abc" for i in range(10)))
    for root in (tmp_path, tmp_path / "train"):
        train, held = (open_reader(root, split=s, holdout=0.2, seed=3) for s in ("train", "validation"))
        assert sorted(short_names(train, tmp_path) + short_names(held, tmp_path)) == sorted(
            short_names(open_reader(tmp_path / "train"), tmp_path)
        )
        assert np.bincount(held.targets).tolist() == [2, 2, 2]
        assert held[3].target == held.targets[3]
    other = open_reader(tmp_path, split="validation", holdout=0.2, seed=4)
    assert short_names(other, tmp_path) != short_names(held, tmp_path)
    assert len(open_reader(tmp_path, split="train", holdout=0)) == 30
    with pytest.raises(OpsinError, match="is not divided, so it has no split 'test'"):
        open_reader(tmp_path / "train", split="test")


def test_pictures_without_folders_have_no_labels(tmp_path):
    write(tmp_path, "2.png", "10.png")
    reader = open_reader(tmp_path)
    assert (reader.task, reader.targets, reader.classes, reader[1].target) == ("unlabelled", None, None, None)
    with pytest.raises(OpsinError, match="no labels"):
        reader.check_trainable()
    write(tmp_path, "a/1.png")
    with pytest.raises(OpsinError, match="beside the class folders"):
        open_reader(tmp_path)
    assert short_names(open_reader(tmp_path, labelled=False), tmp_path) == ["2.png", "10.png", "a/1.png"]
    assert len(open_reader(tmp_path, labelled=False, split="train", holdout=0.4)) == 2


def test_one_class_can_be_predicted_but_not_learnt(tmp_path):
    reader = open_reader(write(tmp_path, "only/1.png", "only/2.png"))
    assert reader[1].target == 0
    with pytest.raises(OpsinError, match="at least two classes, and there is one: only"):
        reader.check_trainable()
    open_reader(write(tmp_path, "other/1.png")).check_trainable()


def test_folders_without_pictures_are_no_classes_and_are_told(tmp_path):
    write(tmp_path, "a/1.png", "b/notes.txt")
    (tmp_path / "c").mkdir()
    with pytest.warns(UserWarning, match="2 folders hold no pictures, so they are no classes: b, c"):
        assert open_reader(tmp_path).classes == ("a",)


def test_folders_with_nothing_in_them(tmp_path):
    with pytest.raises(OpsinError, match="no pictures in this folder .it holds no files"):
        open_reader(tmp_path)
    write(tmp_path, "a/1.heic", "a/2.heic", "a/README")
    with pytest.raises(OpsinError, match=r"it holds 2 .heic, 1 without suffix; looked for .*\.jpg"):
        open_reader(tmp_path)
    (tmp_path / "photos").mkdir()
    with pytest.raises(OpsinError, match=r"photoz: no such file or folder. Did you mean photos\?"):
        open_reader(tmp_path / "photoz")


def test_damaged_files_are_named(tmp_path):
    write(tmp_path, "a/1.png", data=b"")
    with pytest.raises(ImageError, match=r"a/1.png: empty \(0 bytes\)"):
        open_reader(tmp_path)[0]
    (tmp_path / "a/2.png").write_bytes(picture())
    reader = open_reader(tmp_path)
    (tmp_path / "a/2.png").unlink()
    with pytest.raises(ImageError, match="2.png: no such file"):
        reader[1]


def test_what_may_not_be_read_is_named(open_folder_of_temp):
    root = write(open_folder_of_temp, "a/1.png", "b/2.png")
    (root / "a/1.png").chmod(0)
    with as_nobody():
        reader = open_reader(root)
        with pytest.raises(ImageError, match=r"a/1.png: cannot be read \(Permission denied\)"):
            reader[0]
        assert reader[1].image == picture(1)
    (root / "b").chmod(0)
    with as_nobody(), pytest.raises(OpsinError, match=r"b: cannot be searched \(Permission denied\)"):
        open_reader(root)
    (root / "b").chmod(0o755)


# --- tars -----------------------------------------------------------------------------------------------------------


def test_tar_classes_are_its_folders(tmp_path):
    path = write_tar(tmp_path / "t.tar", "./set/c10/1.png", "./set/c9/2.png", "./set/c9/.h.png", "./set/c9/n.txt")
    reader = open_reader(path)
    assert reader.classes == ("c9", "c10")  # what all share says nothing
    assert reader.targets.tolist() == [1, 0]
    assert reader[1] == (picture(1), 0, f"{path}/./set/c9/2.png")
    assert open_reader(path, extensions=".txt").classes == ("c9",)


def test_folder_of_tars_takes_their_names_for_classes(tmp_path):
    write_tar(tmp_path / "n02.tar", "x.png", "y.png")
    write_tar(tmp_path / "n01.tar", "z.png")
    reader = open_reader(f"tar:{tmp_path}")
    assert (reader.classes, reader.targets.tolist()) == (("n01", "n02"), [0, 1, 1])
    assert [reader[i].image for i in range(3)] == [picture(0), picture(0), picture(1)]


def test_tars_inside_a_tar_are_classes(tmp_path):
    inner = [write_tar(tmp_path / "in" / f"n{i}.tar", "p.png", "q.png") for i in (1, 2)]
    with tarfile.open(tmp_path / "outer.tar", "w") as tar:
        for path in inner:
            tar.add(path, path.name)
    reader = open_reader(tmp_path / "outer.tar")
    assert (reader.classes, reader.targets.tolist()) == (("n1", "n2"), [0, 0, 1, 1])
    assert [reader[i].image for i in range(4)] == [picture(0), picture(1)] * 2


@pytest.mark.parametrize("layout", ["inside", "names", "folders"])
def test_tar_splits(tmp_path, layout):
    train, val = ["a/1.png", "b/2.png", "c/3.png"], ["a/4.png", "c/5.png"]
    where = tmp_path
    if layout == "inside":
        where = write_tar(tmp_path / "all.tar", *(f"d/train/{n}" for n in train), *(f"d/val/{n}" for n in val))
    else:
        name = "{}-00.tar" if layout == "names" else "{}/00.tar"
        write_tar(tmp_path / name.format("train"), *train)
        write_tar(tmp_path / name.format("val"), *val)
    read = {s: open_reader(f"tar:{where}", split=s) for s in ("train", "validation")}
    assert read["train"].classes == read["validation"].classes == ("a", "b", "c")
    assert read["validation"].targets.tolist() == [0, 2]
    assert read["train"].targets.tolist() == [0, 1, 2]
    with pytest.raises(OpsinError, match="divided into train, val"):
        open_reader(f"tar:{where}")


def test_tar_members_that_lead_out_are_left_out(tmp_path):
    path = write_tar(tmp_path / "t.tar", "a/1.png", "../evil.png", "/abs.png", "a/../../up.png", "b/2.png")
    with pytest.warns(UserWarning, match=r"3 pictures left out, .* first .*t.tar: \.\./evil.png"):
        reader = open_reader(path)
    assert [reader[i].image for i in range(len(reader))] == [picture(0), picture(4)]
    assert os.listdir(tmp_path) == ["t.tar"]


@pytest.mark.parametrize("cut", ["inside a picture", "at a header", "inside a header", "inside the next header"])
def test_tar_cut_short_is_named(tmp_path, cut):
    path = write_tar(tmp_path / "t.tar", "a/1.png", "a/2.png", "b/3.png", data=bytes(range(256)) * 5)
    whole = path.read_bytes()
    entry = 512 + 1536  # header, and content in whole blocks
    end = {"inside a picture": 512 + 700, "at a header": 2 * entry, "inside a header": 100}.get(cut, entry + 40)
    path.write_bytes(whole[:end])
    with pytest.raises(OpsinError, match=r"t.tar: (cut short|empty)"):
        open_reader(path)


def test_tar_damaged_compressed_or_changed(tmp_path):
    path = write_tar(tmp_path / "t.tar", "a/1.png", "b/2.png")
    whole = bytearray(path.read_bytes())
    whole[1024:1100] = b"\xff" * 76
    path.write_bytes(whole)
    with pytest.raises(OpsinError, match="damaged at byte 1024"):
        open_reader(path)
    with tarfile.open(tmp_path / "z.tar", "w:gz") as tar:
        tar.add(path, "1.png")
    with pytest.raises(OpsinError, match="z.tar: compressed"):
        open_reader(tmp_path / "z.tar")
    (tmp_path / "x.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(OpsinError, match="x.tar: no tar"):
        open_reader(tmp_path / "x.tar")
    reader = open_reader(write_tar(tmp_path / "later.tar", "a/1.png", "b/2.png"))
    (tmp_path / "later.tar").write_bytes((tmp_path / "later.tar").read_bytes()[:530])
    with pytest.raises(ImageError, match="later.tar/a/1.png: cut short"):
        reader[0]
    reader = open_reader(write_tar(tmp_path / "empty.tar", "a/1.png", data=b""))
    with pytest.raises(ImageError, match="empty.tar/a/1.png: empty"):
        reader[0]
    with pytest.raises(OpsinError, match="no tars in this folder"):
        open_reader(f"tar:{write(tmp_path / 'none', 'a.png')}")
    with pytest.raises(OpsinError, match="no pictures in this tar"):
        open_reader(write_tar(tmp_path / "words.tar", "a/1.txt"))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("program", ["tarfile", "tar"])
def test_members_are_those_the_standard_library_finds(tmp_path, form, program):
    long = "/".join(["a" * 60, "b" * 60]) + "/p.png"
    names = ["x.png", "d/y z.png", long, "d/" + "n" * 90 + ".png", *(["d/кот.png", "q" * 200] if form else [])]
    write(tmp_path / "in", *names)
    (tmp_path / "in/d/link.png").symlink_to("y z.png")
    os.link(tmp_path / "in/x.png", tmp_path / "in/z_same.png")
    (tmp_path / "in/d/none.png").touch()
    path = tmp_path / "t.tar"
    if program == "tar":
        kind = {tarfile.USTAR_FORMAT: "ustar", tarfile.GNU_FORMAT: "gnu", tarfile.PAX_FORMAT: "pax"}[form]
        subprocess.run(["tar", f"--format={kind}", "-cf", path, "-C", tmp_path / "in", "."], check=True)
    else:
        with tarfile.open(path, "w", format=form) as tar:
            tar.add(tmp_path / "in", "", recursive=True)
    with tarfile.open(path) as tar, open(path, "rb") as file:
        expected = [(m.name, m.offset_data, m.size) for m in tar if m.isreg()]
        found = [(os.path.normpath(m.name), m.offset, m.size) for m in tar_members(file, "t.tar")]
    assert found == [(os.path.normpath(name), *place) for name, *place in expected]
    assert len(found) >= 5


def test_other_kinds_of_headers(tmp_path):
    size = bytearray(tarfile.TarInfo("big.png").tobuf(tarfile.GNU_FORMAT))
    size[124:136] = b"\x80" + (2**33 + 5).to_bytes(11, "big")  # as GNU tar writes 8 GiB and more
    size[148:156] = b"%06o\0 " % (sum(size[:148]) + 256 + sum(size[156:]))
    path = tmp_path / "t.tar"
    path.write_bytes(size)
    with pytest.raises(OpsinError, match=f"big.png ends at {2**33 + 5 + 512}"):
        open_reader(path)
    holes = tarfile.TarInfo("holes.png")
    holes.type = tarfile.GNUTYPE_SPARSE
    path.write_bytes(holes.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(OpsinError, match="holes.png is stored with holes; pack the tar anew without --sparse"):
        open_reader(path)
    pax = tarfile.TarInfo("pax")
    pax.type, pax.size = tarfile.XHDTYPE, 9
    path.write_bytes(pax.tobuf() + b"nonsense!".ljust(512, b"\0") + bytes(1024))
    with pytest.raises(OpsinError, match="damaged at byte 0 of 2048: a header that makes no sense"):
        open_reader(path)


# --- digits ---------------------------------------------------------------------------------------------------------


def test_digits():
    from sklearn.datasets import load_digits

    whole, train, held = (open_reader("digits", split=split) for split in (None, "train", "val"))
    record = whole[5]
    assert (record.image.shape, record.image.dtype) == ((8, 8, 1), np.uint8)
    assert record.target == load_digits().target[5]
    assert np.array_equal(record.image[..., 0], np.rint(load_digits().images[5] * 255 / 16))
    names = [[reader.name(i) for i in range(len(reader))] for reader in (whole, train, held)]
    assert sorted(names[1] + names[2]) == names[0]
    assert (len(train), len(held)) == (1438, 359)
    assert np.bincount(held.targets).min() >= 34
    with pytest.raises(OpsinError, match="digits has no split 'extra', but train, validation"):
        open_reader("digits", split="extra")
    with pytest.raises(OpsinError, match="digits stand alone"):
        open_reader("digits:here")


# --- common ---------------------------------------------------------------------------------------------------------


def test_unknown_schemes_and_arguments(tmp_path):
    with pytest.raises(OpsinError, match=r"no kind of dataset 'fodler'. Did you mean folder\? There are: folder, csv"):
        open_reader("fodler:x")
    with pytest.raises(OpsinError, match=r"Did you mean digits\?"):
        open_reader("digit")
    with pytest.raises(UnknownArgumentError, match=r"takes no argument 'extension'. Did you mean extensions\?"):
        open_reader(write(tmp_path, "a/1.png"), extension=".png")
    assert {"folder", "csv", "tar", "wds", "hf", "torch", "digits"} <= set(SCHEMES)


def test_a_path_with_a_colon_is_a_path(tmp_path, monkeypatch):
    write(tmp_path / "a:b", "x/1.png")
    monkeypatch.chdir(tmp_path)
    assert len(open_reader("a:b")) == 1


def test_class_map_renumbers(tmp_path):
    write(tmp_path, "cat/1.png", "dog/2.png")
    reader = open_reader(tmp_path, class_map=["dog", "fox", "cat"])
    assert (reader.classes, reader.targets.tolist()) == (("dog", "fox", "cat"), [2, 0])
    assert reader[0].target == 2
    with pytest.raises(OpsinError, match="no label for 1 of the . classes of the dataset: cat"):
        open_reader(tmp_path, class_map=["dog", "fox"])
    with pytest.raises(OpsinError, match="the targets are unlabelled"):
        open_reader(tmp_path, class_map=["dog"], labelled=False)


@pytest.mark.parametrize("kind", ["folder", "tar", "digits"])
def test_every_sample_once_over_four_parts_of_copies(tmp_path, kind):
    names = [f"{c}/{i}.png" for c in "abc" for i in range(7)]
    where = {"folder": str(write(tmp_path / "f", *names)), "tar": str(write_tar(tmp_path / "t.tar", *names))}.get(
        kind, kind
    )
    reader = open_reader(where)
    seen = []
    for part in range(4):  # two ranks of two workers, each with a copy of its own
        copied = pickle.loads(pickle.dumps(reader))
        for index in range(part, len(copied), 4):
            record = copied[index]
            assert record.name == copied.name(index)
            assert record.target == reader.target(index)
            seen.append(record.name)
    assert sorted(seen) == sorted({reader.name(i) for i in range(len(reader))})


def test_copies_are_small(tmp_path):
    names = [f"class{c}/picture_{i:06d}.png" for c in range(4) for i in range(500)]
    reader = open_reader(write(tmp_path, *names, data=b"x"))
    assert len(pickle.dumps(reader)) < sum(map(len, names)) + 16 * len(names) + 2000
    half = Subset(reader, np.arange(0, 2000, 2))
    assert half[3].name == reader.name(6)
    assert len(half) == len(half.targets) == 1000


def test_packed_sequences():
    texts = ["", "a", "кошка", "caf\udce9", ""]
    assert list(Strings(texts)) == texts
    assert Strings(texts)[-3] == "кошка"
    rows = [(1, 2), (), (7,)]
    assert list(Tuples(rows)) == rows
    assert Tuples(rows)[-1] == (7,)
    with pytest.raises(IndexError):
        Tuples(rows)[3]
