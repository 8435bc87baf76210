"""What launchers tell a process: its rank, where all meet, and its device."""

import os
import subprocess
import sys

import pytest
import torch
from runs import ENV
from support import free_port

from opsin.errors import OpsinError
from opsin.train import distributed
from opsin.train.distributed import connect, expand_hosts

STEP = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0"}
BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "a[1-2]"}
MPI = {f"OMPI_COMM_WORLD_{name}": value for name, value in (("RANK", "1"), ("SIZE", "2"), ("LOCAL_RANK", "1"))}


@pytest.fixture
def launched(monkeypatch):
    """Set a launcher's variables, in place of all that this process has."""

    def launch(variables):
        for name in os.environ:
            if name.startswith(("SLURM_", "OMPI_", "MASTER_")) or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
                monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return launch


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("alone", ["alone"]),
        ("a,b-2.site.org", ["a", "b-2.site.org"]),
        ("node[003-005,9],gpu1", ["node003", "node004", "node005", "node9", "gpu1"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
        ("r[1-2]n[07,08]", ["r1n07", "r1n08", "r2n07", "r2n08"]),
        ("cn[1-2]-ib,x", ["cn1-ib", "cn2-ib", "x"]),
    ],
)
def test_lists_of_hosts(text, hosts):
    assert expand_hosts(text) == hosts


@pytest.mark.parametrize("text", ["", ",", "n[1-", "n[a-b]", "n[]", "n[3-1]", "n 1"])
def test_lists_of_hosts_that_cannot_be_read(text):
    with pytest.raises(OpsinError, match="set MASTER_ADDR"):
        expand_hosts(text)


@pytest.mark.parametrize(
    ("variables", "place", "meeting"),
    [
        ({}, (0, 1, 0), None),
        (BATCH, (0, 1, 0), None),
        (BATCH | {"SLURM_STEP_ID": "4294967291"}, (0, 1, 0), None),  # a number for the script itself
        (STEP | {"SLURM_JOB_NODELIST": "a[07-08]"}, (1, 2, 0), "a07"),
        (STEP | {"SLURM_JOB_NODELIST": "a[07-08]", "SLURM_STEP_NODELIST": "a08"}, (1, 2, 0), "a08"),
        (STEP, (1, 2, 0), "127.0.0.1"),
        (STEP | MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2", "SLURM_PROCID": "0"}, (1, 2, 1), "127.0.0.1"),
        (BATCH | MPI, (1, 2, 1), "127.0.0.1"),
        (STEP | {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0"}, (0, 3, 0), "127.0.0.1"),
    ],
)
def test_where_a_process_is(launched, variables, place, meeting):
    launched(variables)
    assert distributed._place() == place
    if meeting is not None:
        assert distributed._first_host() == meeting


def test_processes_on_several_hosts_need_to_be_told(launched):
    launched(MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"})
    with pytest.raises(OpsinError, match="set MASTER_ADDR"), connect("cpu"):
        pass


def test_a_batch_script_trains_alone(launched):
    launched(BATCH)
    with connect("cpu") as world:  # it would wait for a second one that nobody starts
        assert (world.rank, world.size) == (0, 1)


def test_srun_meets_at_the_first_host():
    program = "from opsin.train.distributed import connect\nimport torch\nwith connect('cpu') as world:\n"
    program += "    print(world.rank, world.sum(torch.tensor(1.0 + world.rank)).item())"
    place = {"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "localhost,nowhere[1-2]"}
    env = ENV | place | {"MASTER_PORT": str(free_port())}
    both = [
        subprocess.Popen([sys.executable, "-c", program], env=env | {"SLURM_PROCID": rank}, stdout=subprocess.PIPE)
        for rank in "01"
    ]
    said = [process.communicate(timeout=120)[0].decode().strip() for process in both]
    assert said == ["0 3.0", "1 3.0"]


@pytest.mark.parametrize(
    ("name", "local", "count", "wanted"),
    [
        (None, 3, 1, "cuda:0"),  # each process is shown a GPU of its own
        ("cuda", 3, 4, "cuda:3"),
        ("cuda:1", 0, 2, "cuda:1"),
        ("cuda:2", 0, 2, "torch finds 2"),
        ("meta", 0, 1, "no device 'meta'"),
        ("mps", 0, 1, "no device 'mps'"),
    ],
)
def test_devices(monkeypatch, name, local, count, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.mps, "is_available", lambda: False)
    if wanted.startswith("cuda"):
        assert distributed._device(name, local) == torch.device(wanted)
    else:
        with pytest.raises(OpsinError, match=wanted):
            distributed._device(name, local)
