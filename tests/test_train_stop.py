"""What ends a run from outside: signals to one of its processes or to all."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import dark_and_light, start

from opsin.cli import main
from opsin.errors import OpsinError, explained
from opsin.train.checkpoint import RunDirectory
from opsin.train.distributed import World
from opsin.train.loop import Run
from opsin.train.report import Report
from opsin.train.signals import Stop, explain_deaths

SMALL = ["--model", "test_resnet", "--img-size", "32", "--batch-size", "4", "--warmup-epochs", "0"]
ENDLESS = [*SMALL, "--epochs", "1000", "--log-every", "1000000", "--device", "cpu"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return dark_and_light(tmp_path_factory.mktemp("photos"), 12)


@pytest.fixture
def begun(photos, tmp_path):
    """`begun(ranks, *more)`: the processes of a run in its second epoch, each the first of a group of its own."""
    processes = []

    def begun(ranks, *more):
        processes.extend(start(photos, tmp_path / "run", *ENDLESS, *more, ranks=ranks, session=True))
        wait_for((tmp_path / "run" / "last.pt").exists, 120)
        return processes

    yield begun
    for process in processes:
        process.kill()
        process.wait()


def wait_for(what, seconds):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.05)


def children(process):
    """The data workers of a process."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [Path("/proc", pid) for pid in found]


def gone(place):
    """Whether a process has ended, also where nobody asks it how."""
    try:
        return (place / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="data workers are found in /proc")


@linux
def test_a_signal_to_all_processes_of_a_job(begun, tmp_path):
    (process,) = begun(1, "--workers", "1")
    workers = children(process)
    assert len(workers) == 2  # for training and validation
    os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "stopped by SIGTERM" in said
    assert "Traceback" not in said
    assert all(map(gone, workers))
    assert torch.load(tmp_path / "run" / "last.pt", weights_only=True)["update"] > 5


@linux
def test_workers_do_not_outlive_a_run(begun):
    (process,) = begun(1, "--workers", "1")
    workers = children(process)
    for worker in workers:
        os.kill(int(worker.name), signal.SIGTERM)
        os.kill(int(worker.name), signal.SIGINT)
    time.sleep(0.5)
    assert not any(map(gone, workers))
    process.kill()
    wait_for(lambda: all(map(gone, workers)), 20)


@pytest.mark.parametrize("told", [1, 2])
def test_ranks_leave_together(begun, told):
    """Told are one or both; the launcher may tell a second time."""
    processes = begun(2, "--workers", "0")
    for process in processes[-told:] * told:
        process.terminate()
    for process in processes:
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 128 + signal.SIGTERM, said
        assert "stopped by SIGTERM" in said


@pytest.mark.parametrize("when", ["on_eval_batch", "on_epoch"])
def test_a_signal_outside_of_updates(photos, tmp_path, monkeypatch, when):
    """While a model is judged the state of before is saved; the run ends with the bits of one that went through."""
    line = ["train", str(photos), *SMALL, "--epochs", "2", "--workers", "0", "--ema", "--output"]
    assert main([*line, str(tmp_path / "whole")]) == 0

    def told(self, *values):
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Report, when, told)
        with pytest.raises(SystemExit) as left:
            main([*line, str(tmp_path / "run")])
    assert left.value.code == 128 + signal.SIGTERM
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert state["epoch"] == len(state["history"]) == (1 if when == "on_epoch" else 0)
    assert state["update"] == (6 if when == "on_epoch" else 5)
    assert main([*line, str(tmp_path / "run")]) == 0
    ends = [torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "run")]
    for part in ("model", "ema"):
        flat = [torch.cat([v.flatten().double() for v in tensors(end[part])]) for end in ends]
        assert torch.equal(*flat)


def tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors(one)


# --- deaths ---------------------------------------------------------------------------------------------------------


@linux
def test_a_data_worker_that_is_killed(begun):
    (process,) = begun(1, "--workers", "1")
    os.kill(int(children(process)[0].name), signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 2, said
    assert "Traceback" not in said
    assert "opsin: a data worker died" in said
    assert "is good: the same command, without --overwrite, goes on from the last checkpoint" in said


def test_a_death_that_is_heard_of_while_a_file_is_written(tmp_path):
    """Torch's writer complains of the file it could not finish."""

    @explain_deaths
    def fit(run):
        with explained(tmp_path / "last.pt"):
            try:
                raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
            finally:
                raise RuntimeError("unexpected pos 1869632 vs 1869524")

    run = SimpleNamespace(directory=RunDirectory(tmp_path))
    with pytest.raises(OpsinError, match="a data worker died .*pid 7.* is good: the same command, .* begins again"):
        fit(run)


def test_a_rank_that_is_killed(begun):
    dead, left = begun(2, "--workers", "0")
    dead.kill()
    said = left.communicate(timeout=60)[1]
    assert left.returncode != 0
    assert "Traceback" not in said
    assert "opsin: another process of this run has ended" in said
    assert "is good: the same command, without --overwrite, goes on from the last checkpoint" in said


@pytest.fixture
def interrupts():
    """As at a terminal; what runs in the background of a shell ignores them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_kills_but_not_an_echo(interrupts):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
        assert stop.signal == signal.SIGINT
        stop.at -= 2
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_what_is_ignored_stays_so(interrupts):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Stop() as stop:
        signal.raise_signal(signal.SIGINT)
        assert not stop.wanted
        signal.raise_signal(signal.SIGTERM)
        assert stop.wanted


def test_ranks_ask_each_other_by_time(monkeypatch):
    """As many updates apart as take two seconds."""
    asked, now = [], [100.0]
    monkeypatch.setattr(Run, "leave_if_told", lambda run: asked.append(run.update))
    monkeypatch.setattr("opsin.train.loop.time.perf_counter", lambda: now[0])
    run = Run.__new__(Run)
    run.world, run.config = World(torch.device("cpu")), SimpleNamespace(run=SimpleNamespace(save_every=1e9))
    run.update, run.polled, run.poll_at, run.saved_at = 0, (0, now[0]), 1, now[0]
    for _ in range(60):
        run.update, now[0] = run.update + 1, now[0] + 0.125
        if run.update >= run.poll_at:
            run.poll()
    assert asked == [1, 17, 33, 49]
