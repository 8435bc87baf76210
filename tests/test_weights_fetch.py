"""Downloads from a hub and from plain URLs, served on this machine: resumed, verified, landed whole."""

import hashlib
import os
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import save
from started import Started
from support import free_port

from opsin.catalog import PretrainedCfg
from opsin.errors import WeightsError
from opsin.weights.fetch import download_url
from opsin.weights.read import read_state_dict
from opsin.weights.sources import fetch_state_dict, locate

COMMIT = {"main": "a" * 40, "v2": "b" * 40}


class Server(ThreadingHTTPServer):
    """Serves `files` (path -> bytes) and a hub: `hub[(repo, revision, name)] -> bytes`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.hub, self.log = {}, {}, []
        self.pause = 0.0  # seconds between chunks
        self.cut = 0  # close the next connections after so many bytes
        self.fail = 0  # answer 503 so many times
        self.lie = False  # announce a wrong hash
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        server = self.server
        server.log.append((self.command, self.path, self.headers.get("Range")))
        if server.fail:
            server.fail -= 1
            return self.reply(503)
        if self.path in server.files:
            return self.content(server.files[self.path], {}, body)
        found = re.fullmatch(r"/([\w-]+/[\w.-]+)/resolve/([^/]+)/([\w.]+)", self.path)
        if not found:
            return self.reply(404)
        repo, revision, name = found.groups()
        if not any(key[0] == repo for key in server.hub):
            return self.reply(401, {"X-Error-Code": "RepoNotFound"})
        revision = next((k for k, v in COMMIT.items() if v == revision), revision)
        if revision not in COMMIT:
            return self.reply(404, {"X-Error-Code": "RevisionNotFound"})
        headers = {"X-Repo-Commit": COMMIT[revision]}
        data = server.hub.get((repo, revision, name))
        if data is None:
            return self.reply(404, headers | {"X-Error-Code": "EntryNotFound"})
        return self.content(data, headers, body)

    def content(self, data, headers, body):
        server = self.server
        digest = hashlib.sha256(b"another file" if server.lie else data).hexdigest()
        asked, first = self.headers.get("Range"), 0
        if asked and self.headers.get("If-Range", f'"{digest}"') == f'"{digest}"':
            first = int(re.match(r"bytes=(\d+)-", asked)[1])
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        headers |= {"ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        self.reply(206 if "Content-Range" in headers else 200, headers, len(data) - first)
        if not body:
            return
        end = len(data)
        if server.cut:
            end, server.cut, self.close_connection = min(end, first + server.cut), 0, True
        for place in range(first, end, 1 << 16):
            self.wfile.write(data[place : min(end, place + (1 << 16))])
            time.sleep(server.pause)

    def reply(self, code, headers=(), length=0):
        self.send_response(code)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


def weights(value=1.0, count=1 << 18):
    return save({"w": torch.full((count,), value)})


def named(data, stem="net"):
    return f"/{stem}-{hashlib.sha256(data).hexdigest()[:8]}.safetensors"


def listing(folder):
    return sorted(name for name in os.listdir(folder) if name != ".locks")


def download_code(url, cache):
    return f"from opsin.weights.fetch import download_url; download_url({url!r}, cache_dir={str(cache)!r})"


def child(code, **env):
    return Started(code, env=os.environ | env)


# -- plain URLs --------------------------------------------------------------------------------------------------------


def test_url_lands_in_the_cache_and_stays(server, tmp_path):
    data = weights()
    server.files[named(data)] = data
    path = locate(server.url + named(data), PretrainedCfg(), cache_dir=tmp_path)
    assert path == tmp_path / named(data)[1:]
    assert read_state_dict(path)["w"][0] == 1
    assert listing(tmp_path) == [path.name]
    requests = len(server.log)
    assert download_url(server.url + named(data), cache_dir=tmp_path) == path
    assert len(server.log) == requests


def test_default_cache_is_torch_hubs(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    data = weights()
    server.files["/w.safetensors"] = data
    path = download_url(server.url + "/w.safetensors")
    assert path.parents[1] == tmp_path / "hub" / "checkpoints"
    path = download_url(server.url + "/w.safetensors", published=True)
    assert path == tmp_path / "hub" / "checkpoints" / "w.safetensors"


def test_one_name_at_two_urls_is_two_files(server, tmp_path):
    server.files = {"/a/w.safetensors": weights(1.0), "/b/w.safetensors": weights(2.0)}
    for _ in range(2):
        for folder, value in (("a", 1), ("b", 2)):
            path = locate(f"{server.url}/{folder}/w.safetensors", PretrainedCfg(), cache_dir=tmp_path)
            assert (path.name, read_state_dict(path)["w"][0]) == ("w.safetensors", value)
    assert len(server.log) == 2


def test_a_date_is_no_hash(server, tmp_path):
    server.files["/net-20240115.safetensors"] = data = weights()
    path = locate(server.url + "/net-20240115.safetensors", PretrainedCfg(), cache_dir=tmp_path)
    assert path.read_bytes() == data
    with pytest.raises(WeightsError, match="not 20240115"):  # but for a catalogued URL
        download_url(server.url + "/net-20240115.safetensors", cache_dir=tmp_path, published=True)


@pytest.mark.parametrize("broken", [save({"w": torch.ones(9)})[:-4], b"<html>sign in</html>" * 9], ids=["cut", "page"])
def test_a_damaged_download_does_not_stay(server, tmp_path, broken):
    url = server.url + "/w.safetensors"
    server.files["/w.safetensors"] = broken
    for _ in range(2):
        with pytest.raises(WeightsError, match="deleted from the cache"):
            fetch_state_dict(url, PretrainedCfg(), cache_dir=tmp_path)
    server.files["/w.safetensors"] = weights(4.0)
    assert fetch_state_dict(True, PretrainedCfg(url=url), cache_dir=tmp_path)["w"][0] == 4
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(broken)
    with pytest.raises(WeightsError, match="fetch it again$"):
        fetch_state_dict(mine, PretrainedCfg())
    assert mine.exists()


def test_broken_connections_are_continued(server, tmp_path):
    data = weights()
    server.files[named(data)] = data
    server.cut, server.fail = 300_000, 1
    path = download_url(server.url + named(data), cache_dir=tmp_path)
    assert path.read_bytes() == data
    assert [r for _, _, r in server.log if r] == ["bytes=300000-"]


def test_a_killed_download_is_continued(server, tmp_path):
    data = weights(2.0, 1 << 20)
    server.files[named(data)] = data
    server.pause = 0.02
    code = download_code(server.url + named(data), tmp_path)
    process = child(code)
    deadline = time.time() + 60
    while not any(p.stat().st_size > 1 << 20 for p in tmp_path.glob("*.part")) and time.time() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    (part,) = tmp_path.glob("*.part")
    left = part.stat().st_size
    assert 0 < left < len(data)
    assert not (tmp_path / named(data)[1:]).exists()
    server.pause = 0
    path = download_url(server.url + named(data), cache_dir=tmp_path)
    assert path.read_bytes() == data
    assert server.log[-1][2] == f"bytes={left}-"
    assert listing(tmp_path) == [path.name]


def test_what_is_left_of_another_version_is_not_continued(server, tmp_path, monkeypatch):
    server.files["/w.safetensors"] = weights(1.0)
    server.cut, server.pause = 300_000, 0.0
    monkeypatch.setattr("opsin.weights.fetch.ATTEMPTS", 1)
    with pytest.raises(WeightsError, match="300000 of"):
        download_url(server.url + "/w.safetensors", cache_dir=tmp_path, published=True)
    assert len(list(tmp_path.glob("*.part"))) == 1
    server.files["/w.safetensors"] = new = weights(3.0)
    assert download_url(server.url + "/w.safetensors", cache_dir=tmp_path, published=True).read_bytes() == new
    assert not any(asked for _, _, asked in server.log)
    assert listing(tmp_path) == ["w.safetensors"]


def test_wrong_hash_is_refused_and_leaves_nothing(server, tmp_path):
    server.files["/net-0123abcd.pth"] = weights()
    with pytest.raises(WeightsError, match=r"net-0123abcd.pth: SHA-256 .* not 0123abcd.*deleted"):
        download_url(server.url + "/net-0123abcd.pth", cache_dir=tmp_path)
    assert listing(tmp_path) == []


def test_server_errors(server, tmp_path, monkeypatch):
    monkeypatch.setattr("opsin.weights.fetch.time.sleep", lambda seconds: None)
    with pytest.raises(WeightsError, match="answers 404"):
        download_url(server.url + "/absent.pth", cache_dir=tmp_path, published=True)
    server.fail = 99
    with pytest.raises(WeightsError, match="could not be fetched.*HF_ENDPOINT"):
        download_url(server.url + "/absent.pth", cache_dir=tmp_path, published=True)
    with pytest.raises(WeightsError, match="could not be fetched: .*refused"):
        download_url("http://127.0.0.1:9/w.pth", cache_dir=tmp_path, published=True)
    with pytest.raises(WeightsError, match="names no file"):
        download_url("http://127.0.0.1:9/", cache_dir=tmp_path)
    assert listing(tmp_path) == []


def test_two_processes_download_once(server, tmp_path):
    data = weights()
    server.files[named(data)] = data
    server.pause = 0.02
    code = download_code(server.url + named(data), tmp_path)
    for process in [child(code), child(code)]:
        process.communicate()
        assert process.returncode == 0
    assert (tmp_path / named(data)[1:]).read_bytes() == data
    assert not list(tmp_path.glob("*.part"))


# -- the hub -----------------------------------------------------------------------------------------------------------


def fetch_in_child(server, cache, source, **env):
    """One hub access in a process that has not had one: huggingface_hub reads its environment when it is imported."""
    code = (
        "import sys\nassert 'huggingface_hub' not in sys.modules\n"
        "from opsin.catalog import PretrainedCfg\nfrom opsin.errors import WeightsError\n"
        "from opsin.weights.sources import fetch_state_dict, locate\n"
        f"cfg = PretrainedCfg(architecture='net', hf_hub_id={source!r} if not {source!r}.startswith('hf') else None)\n"
        "try:\n"
        f"    args = {source!r} if {source!r}.startswith('hf') else True, cfg\n"
        f"    state = fetch_state_dict(*args, cache_dir={str(cache)!r})\n"
        f"    print(float(state['w'][0]), locate(*args, cache_dir={str(cache)!r}))\n"
        "except WeightsError as error:\n    sys.exit(f'ERROR {error}')\n"
    )
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    process = child(code, **(quiet | {"HF_ENDPOINT": server.url} | env))
    out, err = process.communicate()
    return out.split(), err


def test_hub_revisions_names_and_offline_mode(server, tmp_path):
    server.hub = {
        ("org/net", "main", "model.safetensors"): weights(1.0),
        ("org/net", "v2", "model.safetensors"): weights(2.0),
    }
    assert fetch_in_child(server, tmp_path, "hf-hub:org/net")[0][0] == "1.0"
    assert fetch_in_child(server, tmp_path, "hf_hub:org/net@v2")[0][0] == "2.0"
    requests = len(server.log)
    for source, value in (("org/net", "1.0"), ("org/net@v2", "2.0")):
        assert fetch_in_child(server, tmp_path, source, HF_HUB_OFFLINE="1")[0][0] == value
    assert len(server.log) == requests
    out, err = fetch_in_child(server, tmp_path, "org/other", HF_HUB_OFFLINE="1")
    assert not out
    assert "ERROR hub repository org/other: the hub cannot be reached and the cache has no model.safetensors" in err


def test_hub_falls_back_to_the_older_file_name(server, tmp_path):
    torch.save({"w": torch.full((3,), 5.0)}, tmp_path / "w.bin")
    server.hub = {("org/net", "main", "pytorch_model.bin"): (tmp_path / "w.bin").read_bytes()}
    out, err = fetch_in_child(server, tmp_path / "cache", "org/net")
    assert out[:1] == ["5.0"], err
    assert out[1].endswith("pytorch_model.bin")


def test_hub_errors_one_message_each(server, tmp_path):
    server.hub = {("org/net", "main", "README.md"): b"hello"}
    for source, message in {
        "org/absent": "ERROR there is no hub repository org/absent",
        "org/net@v9": "ERROR hub repository org/net at v9 does not exist: no such revision",
        "org/net": "ERROR hub repository org/net has no model.safetensors or pytorch_model.bin",
        "hf-hub:a/b/c": "ERROR 'a/b/c' is not a hub repository",
    }.items():
        out, err = fetch_in_child(server, tmp_path, source)
        assert not out
        assert message in err


def test_hub_file_that_is_not_what_was_announced(server, tmp_path):
    server.hub = {("org/net", "main", "model.safetensors"): weights()}
    server.lie = True
    out, err = fetch_in_child(server, tmp_path, "org/net")
    assert not out
    assert "not the published file" in err
    left = [p for p in tmp_path.rglob("*") if p.is_file() and (p.suffix == ".safetensors" or "blobs" in p.parts)]
    assert left == []
    server.lie = False
    assert fetch_in_child(server, tmp_path, "org/net")[0][0] == "1.0"


def test_a_damaged_file_of_the_hub_does_not_stay(server, tmp_path):
    server.hub = {("org/net", "main", "model.safetensors"): weights(float("nan"))}
    for _ in range(2):
        out, err = fetch_in_child(server, tmp_path, "hf-hub:org/net")
        assert not out
        assert "NaN" in err
        assert "deleted from the cache" in err
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and (p.suffix == ".safetensors" or "blobs" in p.parts)]
    server.hub = {("org/net", "main", "model.safetensors"): weights(1.0)}
    assert fetch_in_child(server, tmp_path, "hf-hub:org/net")[0][0] == "1.0"


def test_no_network_is_told_at_once_and_the_cache_still_serves(server, tmp_path):
    torch.save({"w": torch.full((3,), 5.0)}, tmp_path / "w.bin")
    server.hub = {("org/net", "main", "pytorch_model.bin"): (tmp_path / "w.bin").read_bytes()}
    assert fetch_in_child(server, tmp_path / "cache", "org/net")[0][0] == "5.0"
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert fetch_in_child(server, tmp_path / "cache", "org/net", HF_ENDPOINT=nowhere)[0][0] == "5.0"
    out, err = fetch_in_child(server, tmp_path / "cache", "org/other", HF_ENDPOINT=nowhere)
    assert not out
    assert "the hub cannot be reached and the cache has no model.safetensors or pytorch_model.bin" in err
    assert "Retrying" not in err
