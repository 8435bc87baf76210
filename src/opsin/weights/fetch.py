"""Downloads: from the Hugging Face hub and from plain URLs. Verified, landed whole, resumed after an interruption."""

import hashlib
import os
import re
import time
from collections.abc import Callable, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlparse
from urllib.request import Request, urlopen

import torch
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from opsin.errors import WeightsError

__all__ = ["HUB_WEIGHTS", "check_sha256", "discard", "download_url", "hub_file", "split_hub_name", "sync"]

HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")  # torch hub's convention
Report = Callable[[int, int | None], None]  # bytes so far, and in all where known
CHUNK = 1 << 20
ATTEMPTS = 5
TIMEOUT = 30  # seconds without a byte
AWAY = "Without a network, set HF_ENDPOINT to a mirror, or run `opsin download NAME --to DIR` on a machine that has one"


def check_sha256(path: Path, prefix: str) -> None:
    """Raise WeightsError unless the SHA-256 of the file begins with `prefix` (hexadecimal)."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(prefix.lower()):
        raise WeightsError(
            f"{path} has SHA-256 {digest[: max(8, len(prefix))]}…, not {prefix}…: not the published file"
        )


# -- Hugging Face hub --------------------------------------------------------------------------------------------------


def split_hub_name(name: str) -> tuple[str, str | None]:
    """`org/repo@revision` into its parts; the revision is None when absent."""
    repo, _, revision = name.partition("@")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo):
        raise WeightsError(f"{name!r} is not a hub repository; write org/repo or org/repo@revision")
    return repo, revision or None


def hub_file(
    repo_id: str, filenames: Sequence[str], *, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path:
    """The first of `filenames` that the repository has, in the hub's own cache; downloaded if it is not there.

    `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` work as everywhere. A file that was just downloaded is
    checked against the SHA-256 under which the hub announced it.

    Raises:
        WeightsError: one message for each of: no such repository, revision or file; access refused; no network.
    """
    from huggingface_hub import errors as hub
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    where = f"hub repository {repo_id}" + (f" at {revision}" if revision else "")
    cache = str(cache_dir) if cache_dir else None
    known = {name: try_to_load_from_cache(repo_id, name, cache_dir=cache, revision=revision) for name in filenames}
    cached = {name: Path(path) for name, path in known.items() if isinstance(path, str)}
    missing: Exception | None = None
    for name in filenames:
        try:
            if name not in cached:
                _connect(repo_id, name, revision)
            path = Path(hf_hub_download(repo_id, name, revision=revision, cache_dir=cache))
        except hub.GatedRepoError as error:
            raise WeightsError(f"{where} asks you to accept its terms: sign in to the hub and set HF_TOKEN") from error
        except hub.RepositoryNotFoundError as error:
            raise WeightsError(f"there is no {where}, or it is private and HF_TOKEN is not set") from error
        except hub.RevisionNotFoundError as error:
            raise WeightsError(f"{where} does not exist: no such revision") from error
        except (hub.LocalEntryNotFoundError, ConnectionError) as error:
            if cached:  # under another of the names
                return next(iter(cached.values()))
            names = " or ".join(filenames)
            raise WeightsError(f"{where}: the hub cannot be reached and the cache has no {names}. {AWAY}") from error
        except hub.EntryNotFoundError as error:
            missing = error
            continue
        except (hub.HfHubHTTPError, hub.OfflineModeIsEnabled, OSError, ValueError) as error:
            raise WeightsError(f"{where}: {name} could not be fetched: {_first_line(error)}. {AWAY}") from error
        if name not in cached:
            _check_blob(path)
        return path
    raise WeightsError(f"{where} has no {' or '.join(filenames)}") from missing


def _connect(repo_id: str, name: str, revision: str | None) -> None:
    """Raise ConnectionError where no connection can be made; the hub's own client would try for half a minute."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(repo_id, name, revision=revision))
    except Exception as error:  # its class depends on the client's version; all else is told by the download itself
        if type(error).__name__ in ("ConnectError", "ConnectionError", "ProxyError"):
            raise ConnectionError(str(error)) from error


def _check_blob(path: Path) -> None:
    """The cache names large files by their SHA-256. A blob that does not match is taken out, with its link."""
    blob = path.resolve()
    if not re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return
    try:
        check_sha256(blob, blob.name)
    except WeightsError:
        discard(path)
        raise


def discard(path: Path) -> None:
    """Take a fetched file out of its cache; of a hub's, the link and the blob it points to."""
    blob = path.parent / path.readlink() if path.is_symlink() else path
    path.unlink()
    if blob.parent.name == "blobs":  # what else a link leads to is not ours
        blob.unlink(missing_ok=True)


# -- plain URLs --------------------------------------------------------------------------------------------------------


def download_url(
    url: str, *, cache_dir: str | Path | None = None, published: bool = False, progress: bool = True
) -> Path:
    """The file at `url`, from `cache_dir` (torch hub's by default) or downloaded into it.

    A download is written to `NAME.….part`, checked, and only then takes its name. What an interrupted one left is
    continued if the server still has the same file. A hash in the name (`name-1a2b3c4d.pth`) is verified. A file whose
    name has none gets a folder of its own: the same name at another URL is another file.

    Args:
        published: the URL is a catalogued one: its name is unique, and digits alone in it are a hash too. Elsewhere
            they are as likely a date or a number of steps (`net-20240115.pth`), and one hash in forty is all digits.
        progress: show a bar on a terminal.

    Raises:
        WeightsError: the server refuses or cannot be reached, the download stays incomplete, or the hash is wrong.
    """
    name = unquote(Path(urlparse(url).path).name)
    if not name or name in (".", ".."):
        raise WeightsError(f"{url} names no file")
    folder = Path(cache_dir) if cache_dir else Path(torch.hub.get_dir()) / "checkpoints"
    found = HASH_IN_NAME.search(name)
    expected = found[1] if found and (published or not found[1].isdigit()) else None
    if not (expected or published):
        folder /= f"url-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    target = folder / name
    if target.is_file():
        return target
    locks = folder / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{name}.lock"):  # a second process waits, then finds the file
        if not target.is_file():
            _land(_fetch(url, target, progress), target, expected)
    return target


def _land(part: Path, target: Path, expected: str | None) -> None:
    if expected:
        try:
            check_sha256(part, expected)
        except WeightsError as error:
            part.unlink()
            raise WeightsError(f"{target.name}: {str(error).partition(' has ')[2]}; it was deleted") from None
    os.replace(part, target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Make a file, or the renames in a folder, durable; folders only where the system lets them be synced."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _fetch(url: str, target: Path, progress: bool) -> Path:
    """Download to a part file, trying again where the connection breaks; returns the complete part."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not (progress and console.is_terminal)) as bar:
        task = bar.add_task(target.name, total=None)
        for attempt in range(ATTEMPTS):
            try:
                return _continue(url, target, lambda done, total: bar.update(task, completed=done, total=total))
            except HTTPError as error:
                if error.code < 500 and error.code not in (408, 429):
                    raise WeightsError(f"{url}: the server answers {error.code} {error.reason}") from error
                failure: Exception = error
            except (URLError, HTTPException, OSError) as error:
                failure = error
            time.sleep(min(0.2 * 2**attempt, 3))
    raise WeightsError(f"{url} could not be fetched: {_first_line(failure)}. {AWAY}") from failure


def _continue(url: str, target: Path, report: Report) -> Path:
    """One connection: the rest of the part that an earlier one left, or the whole file."""
    with _open(url) as response:
        total = int(response.headers.get("Content-Length") or -1)
        version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        # the version is part of the name: what is left of another version is never continued
        part = target.with_name(f"{target.name}.{hashlib.sha256(f'{version}{total}'.encode()).hexdigest()[:8]}.part")
        for other in target.parent.glob(f"{target.name}.*.part"):
            if other != part:
                other.unlink()
        done = part.stat().st_size if part.exists() else 0
        if done == total:
            return part
        resumable = bool(version) and 0 < done < total
        if not resumable:
            _write(response, part, 0, total, report)
    if resumable:
        with _open(url, {"Range": f"bytes={done}-", "If-Range": version}) as response:
            _write(response, part, done if response.status == 206 else 0, total, report)
    size = part.stat().st_size
    if total >= 0 and size != total:
        raise HTTPException(f"the connection ended after {size} of {total} bytes")
    return part


def _open(url: str, headers: dict[str, str] | None = None) -> HTTPResponse:
    request = Request(url, headers={"User-Agent": "opsin", "Accept-Encoding": "identity"} | (headers or {}))
    return urlopen(request, timeout=TIMEOUT)


def _write(response: HTTPResponse, part: Path, done: int, total: int, report: Report) -> None:
    with part.open("r+b" if done else "wb") as file:
        file.seek(done)
        while chunk := response.read(CHUNK):
            file.write(chunk)
            done += len(chunk)
            report(done, total if total > 0 else None)
        file.flush()
        os.fsync(file.fileno())


def _first_line(error: Exception) -> str:
    text = str(getattr(error, "reason", None) or error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
