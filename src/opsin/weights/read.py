"""State dicts from files: safetensors, torch checkpoints and NumPy archives, without running any code they hold.

Format of safetensors: https://github.com/huggingface/safetensors#format.

Safetensors are read with `read()`, by two threads or more, into one piece of private memory, in huge pages where the
system has them (four times quicker to fill than small ones). So the file may be truncated, replaced or deleted at any
later moment: nothing of it is mapped, and no access can end in SIGBUS. Each tensor has a storage of its own extent:
saving or copying a part of a model costs that part.
"""

import json
import math
import mmap
import os
import pickle
import pickletools
import re
import struct
import zipfile
from argparse import Namespace
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from opsin.errors import DamagedError, WeightsError

__all__ = ["check_values", "listed", "read_metadata", "read_state_dict", "read_torch"]

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# where training checkpoints keep their weights, in order of preference
EMA_KEYS = ("state_dict_ema", "model_ema", "target_encoder")
PLAIN_KEYS = ("state_dict", "model", "module")
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
MAX_HEADER = 100 << 20  # bytes; the format's own limit
CHUNK = 64 << 20
MAX_READERS = 4
ALIGN = 64  # bytes, as torch places its own tensors: kernels are quickest there, and round as they do elsewhere


class Entry(NamedTuple):
    """One tensor of a safetensors file: `begin` and `end` count from the start of the data."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def read_state_dict(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    use_ema: bool = True,
    check_finite: bool = True,
) -> dict[str, Tensor]:
    """Read the tensors of a file by name. The format is told by the content, not by the name.

    Args:
        path: safetensors, a torch checkpoint (`.pth`, `.bin`, with or without training state around the weights), or
            a NumPy archive (`.npz`), whose tensors keep their own names.
        device: where the tensors go.
        use_ema: of a training checkpoint with both, take the averaged weights.
        check_finite: refuse NaN and infinity. Costs about 5 ms per 100 MB.

    Raises:
        DamagedError: damaged, truncated or unknown content; values that are not finite.
        WeightsError: no such file; a pickle that would run code. The message names the file in any case.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}")
    kind = _kind(path)
    if kind == "safetensors":
        state = _read_safetensors(path)
    elif kind == "npz":
        state = _read_npz(path)
    else:
        state = _own(_unwrap(read_torch(path), path, use_ema))
    if check_finite:
        check_values(state, path)
    return state if torch.device(device).type == "cpu" else {k: v.to(device) for k, v in state.items()}


def read_metadata(path: str | Path) -> dict[str, str]:
    """The free text pairs in the header of a safetensors file; nothing else is read."""
    return _header(Path(path))[2]


def _damaged(path: Path, why: object) -> DamagedError:
    with path.open("rb") as file:
        head = file.read(80)
    text = head.decode("ascii", "replace").strip()
    if text and all(char.isprintable() or char.isspace() for char in text.replace("\ufffd", "\0")):
        return DamagedError(f"{path} is not a weights file but text ({text[:60]!r}); fetch it again")
    return DamagedError(f"{path} is damaged or truncated ({why}); fetch it again")


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(9)
    if path.suffix == ".safetensors" or (len(head) == 9 and head[8:] == b"{"):
        return "safetensors"
    if head[:4] == b"PK\x03\x04":
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise _damaged(path, error) from error
        return "npz" if names and all(name.endswith(".npy") for name in names) else "zip"
    if path.suffix == ".npz":
        raise _damaged(path, "not a zip archive")
    return "pickle"


# -- safetensors -------------------------------------------------------------------------------------------------------


def _header(path: Path) -> tuple[int, list[Entry], dict[str, str]]:
    """Start of the data, the tensors in file order, and the metadata; every figure is checked against the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        raw = file.read(8)
        length = struct.unpack("<Q", raw)[0] if len(raw) == 8 else size
        if length > min(size - 8, MAX_HEADER):
            raise _damaged(path, f"{size} bytes cannot hold its header")
        text = file.read(length)
    try:
        record = json.loads(text)
        metadata = record.pop("__metadata__", None) or {}
        entries = [_entry(path, name, **facts) for name, facts in record.items()]
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise _damaged(path, f"unreadable header: {type(error).__name__}: {error}") from error
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    start = 8 + length
    place = 0
    for entry in entries:
        if entry.begin != place:
            raise _damaged(path, f"tensor {entry.name} does not begin where the one before it ends")
        place = entry.end
    if start + place != size:
        raise _damaged(path, f"{size} bytes where its header announces {start + place}")
    return start, entries, metadata


def _entry(path: Path, name: str, *, dtype: str, shape: list[int], data_offsets: list[int]) -> Entry:
    if dtype not in DTYPES:
        raise WeightsError(f"{path}: tensor {name} has type {dtype}, which is not read; it may be {', '.join(DTYPES)}")
    begin, end = data_offsets
    entry = Entry(name, DTYPES[dtype], tuple(shape), begin, end)
    if end - begin != math.prod(shape) * entry.dtype.itemsize or min((begin, *shape)) < 0:
        raise ValueError(f"tensor {name}: {end - begin} bytes for shape {shape} of {dtype}")
    return entry


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    start, entries, _ = _header(path)
    sizes = [-(-(entry.end - entry.begin) // ALIGN) * ALIGN for entry in entries]
    places = dict(zip(entries, accumulate(sizes, initial=0), strict=False))
    memory = _private_memory(sum(sizes))
    shares = _shares(entries)
    with ThreadPoolExecutor(len(shares) or 1) as readers:
        list(readers.map(lambda share: _fill(path, start, share, memory, places), shares))
    return {entry.name: _tensor(memory, places[entry], entry) for entry in entries}


def _private_memory(size: int) -> memoryview:
    """Zeroed memory, in huge pages where the system has them; it is freed with the last tensor on it."""
    private = {"flags": mmap.MAP_PRIVATE} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, max(size, 1), **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel built without them has small pages only
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def _tensor(memory: memoryview, place: int, entry: Entry) -> Tensor:
    count = math.prod(entry.shape)
    if not count:
        return torch.empty(entry.shape, dtype=entry.dtype)
    return torch.frombuffer(memory, dtype=entry.dtype, offset=place, count=count).view(entry.shape)


def _shares(entries: list[Entry]) -> list[list[Entry]]:
    """Split the file among readers: one per core up to a few, and none for less than a chunk."""
    total = entries[-1].end if entries else 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    readers = max(1, min(MAX_READERS, cores, total // (CHUNK // 4)))
    shares: list[list[Entry]] = [[] for _ in range(readers)]
    for entry in entries:
        shares[min(readers - 1, entry.begin * readers // max(total, 1))].append(entry)
    return [share for share in shares if share]


def _fill(path: Path, start: int, entries: list[Entry], memory: memoryview, places: dict[Entry, int]) -> None:
    """Read tensors that follow each other in the file to their places in memory."""
    with path.open("rb", buffering=0) as file:
        file.seek(start + entries[0].begin)
        for entry in entries:
            done, end = places[entry], places[entry] + entry.end - entry.begin
            while done < end:
                count = file.readinto(memory[done : min(done + CHUNK, end)])
                if not count:
                    raise _damaged(path, f"it ended inside tensor {entry.name}")
                done += count


# -- torch checkpoints and NumPy archives ------------------------------------------------------------------------------


def read_torch(path: Path) -> Any:
    """What a torch file holds, without running code."""
    try:
        # training scripts of the field store their arguments; a Namespace is inert
        with torch.serialization.safe_globals([Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|[Uu]nsupported class) ([\w.]+)", str(error))
        if code := found[1] if found else _imported(path):
            raise WeightsError(
                f"{path} is a pickle that would run code when read ({code}): refused, nothing was run. "
                "Ask its publisher for safetensors"
            ) from None
        raise _damaged(path, "its pickle ends or breaks in the middle") from error
    except Exception as error:  # the reader fails in many ways on damaged input; each means the same to the user
        text = str(error) or type(error).__name__
        if "TorchScript" in text:
            raise WeightsError(f"{path} is a TorchScript program, not weights: refused, nothing was run") from None
        raise _damaged(path, text.splitlines()[0][:120]) from error


def _imported(path: Path) -> str | None:
    """What a pickle with instructions that torch does not know would import, told from their listing."""
    words: list[str] = []
    with suppress(ValueError), path.open("rb") as file:
        for code, value, _ in pickletools.genops(file):
            if code.name in ("GLOBAL", "INST"):
                return str(value).replace(" ", ".")
            if code.name == "STACK_GLOBAL":
                return ".".join(words[-2:])
            if isinstance(value, str):
                words.append(value)
    return None


def _unwrap(content: Any, path: Path, use_ema: bool) -> dict[str, Tensor]:
    """The weights inside a training checkpoint, with the prefixes that wrappers add taken off."""
    wanted = (*EMA_KEYS, *PLAIN_KEYS) if use_ema else (*PLAIN_KEYS, *EMA_KEYS)
    while isinstance(content, Mapping):
        key = next((key for key in wanted if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        content = content[key]
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, not a mapping of names to tensors")
    state = {_bare(key): value.detach() for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise WeightsError(f"{path} holds no tensors; its keys are {', '.join(map(str, list(content)[:10])) or 'none'}")
    return state


def _bare(key: str) -> str:
    while prefix := next((prefix for prefix in WRAPPER_PREFIXES if key.startswith(prefix)), None):
        key = key.removeprefix(prefix)
    return key


def _own(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors that are a window on a larger storage, or share one, so that saving one saves just it."""
    seen: set[int] = set()
    out = {}
    for key, value in state.items():
        storage = value.untyped_storage()
        shared = storage.nbytes() > value.nbytes or (value.nbytes and storage.data_ptr() in seen)
        seen.add(storage.data_ptr())
        out[key] = value.clone() if shared else value
    return out


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: _from_numpy(archive[name], name) for name in archive.files}
    except WeightsError:
        raise
    except Exception as error:
        if "allow_pickle" in str(error):
            raise WeightsError(f"{path} holds pickled Python objects: refused, nothing was run") from None
        raise _damaged(path, error) from error


def _from_numpy(array: np.ndarray, name: str) -> Tensor:
    if array.dtype.kind == "V" and array.dtype.itemsize == 2:  # how JAX's bfloat16 is stored
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    if array.dtype.kind in "USV":
        raise WeightsError(f"array {name} holds {array.dtype}, not numbers")
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))


def check_values(state: Mapping[str, Tensor], owner: object) -> None:
    """Raise `DamagedError` for NaN and infinity. One sum per tensor tells, since both survive addition: only a
    suspicious tensor is looked at in full."""
    bad = [key for key, value in state.items() if not _finite(value, infinity=key.endswith("mask"))]
    if bad:
        raise DamagedError(f"{owner} holds NaN or infinite values in {listed(bad)}: it or its training is broken")


def _finite(value: Tensor, *, infinity: bool) -> bool:
    if not value.is_floating_point():
        return True
    wide = value.float() if value.dtype.itemsize == 1 else value
    total = wide.sum(dtype=torch.float64 if value.dtype == torch.float64 else torch.float32)
    if math.isfinite(total.item()):
        return True
    # an attention mask is the one stored tensor in which infinity has a meaning
    return not bool((wide.isnan() if infinity else ~wide.isfinite()).any())


def listed(names: Iterable[str], limit: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
