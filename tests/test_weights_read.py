"""Reading state dicts: formats, wrappers, refusals, and what happens when the file changes afterwards."""

import argparse
import copy
import io
import json
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from started import Started

from opsin.errors import WeightsError
from opsin.weights.read import read_metadata, read_state_dict


def tensors():
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(8, 3, 3, 3),
        "a.bias": torch.randn(8, dtype=torch.float64),
        "half": torch.randn(5).half(),
        "brain": torch.randn(7).bfloat16(),
        "steps": torch.tensor(7),
        "flag": torch.tensor([True, False, True]),
        "empty": torch.empty(0, 4),
    }


def same(got, wanted):
    return got.keys() == wanted.keys() and all(
        got[k].dtype == wanted[k].dtype and torch.equal(got[k], wanted[k]) for k in wanted
    )


def test_safetensors_round_trip(tmp_path):
    wanted = tensors()
    save_file(wanted, tmp_path / "m.safetensors", metadata={"who": "me"})
    got = read_state_dict(tmp_path / "m.safetensors")
    assert same(got, wanted)
    assert read_metadata(tmp_path / "m.safetensors") == {"who": "me"}


def test_every_tensor_owns_its_storage(tmp_path):
    save_file({f"t{i}": torch.full((1000,), float(i)) for i in range(50)}, tmp_path / "m.safetensors")
    got = read_state_dict(tmp_path / "m.safetensors")
    assert all(t.untyped_storage().nbytes() == 4000 for t in got.values())
    part = io.BytesIO()
    torch.save({"t1": got["t1"]}, part)
    assert part.getbuffer().nbytes < 8000  # one tensor, not the fifty
    save_file(got, tmp_path / "again.safetensors")  # refuses shared storage
    assert copy.deepcopy(got["t1"]).untyped_storage().nbytes() == 4000
    got["t2"].add_(1)  # writable, and neither its neighbours nor the file change
    assert torch.equal(got["t3"], torch.full((1000,), 3.0))
    assert read_state_dict(tmp_path / "m.safetensors")["t2"][0] == 2


def test_large_file_by_several_readers(tmp_path):
    wanted = {f"t{i}": torch.randn(1 << 20) for i in range(12)}  # 48 MB
    save_file(wanted, tmp_path / "m.safetensors")
    assert same(read_state_dict(tmp_path / "m.safetensors"), wanted)


def test_unaligned_tensors_of_other_writers(tmp_path):
    header = {
        "odd": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "f": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    text = json.dumps(header).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes([1, 2, 3]) + struct.pack("<2f", 1.5, -2))
    assert read_state_dict(path)["f"].tolist() == [1.5, -2]


@pytest.mark.parametrize("legacy", [False, True])
def test_training_checkpoints_are_unwrapped(tmp_path, legacy):
    plain = {"module._orig_mod.a": torch.ones(2)}
    content = {
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1),
        "state_dict": plain,
        "model_ema": {"module.a": torch.zeros(2)},
    }
    path = tmp_path / "c.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert read_state_dict(path)["a"].tolist() == [0, 0]
    assert read_state_dict(path, use_ema=False)["a"].tolist() == [1, 1]
    torch.save({"model": {"state_dict": plain}}, path)
    assert list(read_state_dict(path)) == ["a"]


def test_windows_on_a_larger_storage_are_cut_out(tmp_path):
    big = torch.arange(1000.0)
    torch.save({"a": big[:10], "b": big[10:20], "c": torch.ones(3), "d": torch.ones(3)}, tmp_path / "c.pth")
    got = read_state_dict(tmp_path / "c.pth")
    assert got["b"].tolist() == list(range(10, 20))
    assert got["a"].untyped_storage().nbytes() == 40


def test_npz_keeps_names_and_reads_bfloat16(tmp_path):
    brain = torch.randn(4).bfloat16()
    stored = brain.view(torch.int16).numpy().view("V2")
    np.savez(tmp_path / "m.npz", **{"Transformer/kernel": np.ones((2, 3), np.float32), "brain": stored})
    got = read_state_dict(tmp_path / "m.npz")
    assert got["Transformer/kernel"].shape == (2, 3)
    assert torch.equal(got["brain"], brain)
    np.savez(tmp_path / "o.npz", a=np.array([{"x": 1}], dtype=object))
    with pytest.raises(WeightsError, match="pickled Python objects"):
        read_state_dict(tmp_path / "o.npz")


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("suffix", [".pth", ".bin", ".safetensors", ".npz"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, form, suffix):
    fired, path = tmp_path / "fired", tmp_path / f"m{suffix}"
    content = {"state_dict": {"a": torch.ones(1)}, "x": Bomb(fired)}
    if form == "bare":
        path.write_bytes(pickle.dumps(content["x"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(WeightsError, match=re_of(suffix, form)):
        read_state_dict(path)
    assert not fired.exists()
    pickle.loads(pickle.dumps(Bomb(fired)))  # the weapon is loaded: plain unpickling fires it
    assert fired.exists()


def re_of(suffix, form):
    by_content = suffix in (".pth", ".bin") or (suffix == ".npz" and form == "zip")
    return r"would run code when read \(\w+\.\w+\).*nothing was run" if by_content else "damaged"


@pytest.mark.parametrize("keep", [0, 4, 40, 0.5, 0.999])
@pytest.mark.parametrize("name", ["m.safetensors", "m.pth", "m.npz", "legacy.pth"])
def test_truncated_files_give_one_clear_error(tmp_path, name, keep):
    path = tmp_path / name
    state = {"a": torch.randn(4096), "b": torch.randn(64, 64)}
    if name.endswith("safetensors"):
        save_file(state, path)
    elif name.endswith("npz"):
        np.savez(path, **{k: v.numpy() for k, v in state.items()})
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name == "m.pth")
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(len(whole) * keep)])
    with pytest.raises(WeightsError, match=rf"{name}.* damaged or truncated .*fetch it again"):
        read_state_dict(path)


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[]",
        b'{"a": 3}',
        b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}',  # 12 bytes needed
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}',  # a hole
        b'{"a": {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "F32", "shape": [2]}}',
    ],
)
def test_lying_safetensors_headers(tmp_path, header):
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(WeightsError, match="damaged"):
        read_state_dict(path)


def test_unknown_type_and_huge_header(tmp_path):
    path = tmp_path / "m.safetensors"
    header = b'{"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(1))
    with pytest.raises(WeightsError, match="type F4"):
        read_state_dict(path)
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{")
    with pytest.raises(WeightsError, match="cannot hold its header"):
        read_state_dict(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_values_that_are_not_finite_are_refused(tmp_path, dtype):
    path = tmp_path / "m.safetensors"
    value = torch.ones(100)
    value[7] = float("nan")
    save_file({"fine": torch.ones(3), "bad": value.to(dtype)}, path)
    with pytest.raises(WeightsError, match="NaN or infinite values in bad:"):
        read_state_dict(path)
    assert len(read_state_dict(path, check_finite=False)) == 2


def test_finite_check_has_no_false_alarm(tmp_path):
    path = tmp_path / "m.safetensors"
    mask = torch.zeros(3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), float("-inf"))
    save_file({"big": torch.full((10,), 3e38), "half": torch.full((10,), 6e4).half(), "attn_mask": mask}, path)
    assert read_state_dict(path)["half"].isfinite().all()
    save_file({"pair": torch.tensor([float("inf"), float("-inf")])}, path)
    with pytest.raises(WeightsError, match="pair"):
        read_state_dict(path)


@pytest.mark.parametrize("name", ["page.pth", "page.bin", "page.safetensors", "page.npz"])
@pytest.mark.parametrize("text", ["<html>404 Not found</html>\n" * 50, "version https://git-lfs.github.com/spec/v1\n"])
def test_text_is_not_called_a_program(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(WeightsError, match=rf"{name} is not a weights file but text \('{text[:9]}") as caught:
        read_state_dict(tmp_path / name)
    assert "code" not in str(caught.value)


@pytest.mark.parametrize("content", [[torch.ones(1)], {"epoch": 3}, {}])
def test_files_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(WeightsError, match="holds"):
        read_state_dict(tmp_path / "m.pth")


def test_no_file(tmp_path):
    with pytest.raises(WeightsError, match="no weights file at"):
        read_state_dict(tmp_path / "absent.pth")


PROGRAM = """
import os, sys, torch
from opsin.weights.read import read_state_dict
path, how = sys.argv[1:]
state = read_state_dict(path, check_finite=False)
if how == "truncate":
    os.truncate(path, 100)
elif how == "overwrite":
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        file.write(bytes(size))
elif how == "delete":
    os.unlink(path)
else:
    with open(path + ".new", "wb") as file:
        file.write(bytes(100))
    os.replace(path + ".new", path)
print(sum(float(t.sum()) for t in state.values()))
"""


@pytest.mark.parametrize("how", ["truncate", "overwrite", "delete", "replace"])
def test_a_file_that_changes_after_the_read_changes_nothing(tmp_path, how):
    save_file({"a": torch.ones(1 << 18)}, tmp_path / "m.safetensors")
    reader = Started(PROGRAM, str(tmp_path / "m.safetensors"), how)
    said, complaint = reader.communicate()
    assert reader.returncode == 0, complaint
    assert float(said) == 1 << 18
