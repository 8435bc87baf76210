"""Which process this is among those that train together, and what they say to each other.

torchrun sets RANK, WORLD_SIZE and LOCAL_RANK; srun and OpenMPI have variables of their own, read here as well. Where
all can meet, torchrun says itself; of srun's processes it is the first host of the step.
"""

import os
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from opsin.errors import OpsinError

__all__ = ["World", "connect", "expand_hosts", "get_random_state", "local", "seed_everything", "set_random_state"]

# (rank, world size, rank on this machine) as the launchers call them
LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),  # which srun may have started
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)
NO_STEP = 2**32 - 16  # numbers from here on are SLURM's for scripts and shells, which run once

RANGES = r"\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\]"
HOST = rf"(?:[\w.-]|{RANGES})+"  # one of a list, or several with numbers in a row


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, and the device it computes on."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks to people."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            moved = value.to(self.device)
            dist.all_reduce(moved)
            value.copy_(moved)
        return value

    def any(self, flag: bool) -> bool:
        """Whether it holds for any process."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag))).item())

    def least(self, number: int) -> int:
        """The smallest of all processes' numbers."""
        if self.size == 1:
            return number
        value = torch.tensor(number, device=self.device)
        dist.all_reduce(value, dist.ReduceOp.MIN)
        return int(value.item())

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, on each of them."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def share(self, make: Callable[[], Any]) -> Any:
        """What the first process makes, on all of them; its error too, so that none waits for ever."""
        box: list[Any] = [None, None]
        cause = None
        if self.first:
            try:
                box[0] = make()
            except Exception as error:
                box[1], cause = (
                    str(error) if isinstance(error, OpsinError) else f"{type(error).__name__}: {error}",
                    error,
                )
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        if box[1] is not None:
            self.wait()  # all leave together, see `connect`
            raise cause or OpsinError(box[1])
        return box[0]

    def align(self, model: nn.Module) -> None:
        """Give the model of every process the weights of the first."""
        if self.size > 1:
            for value in model.state_dict().values():
                dist.broadcast(value, src=0)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


def local(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with this process' part of each sharded tensor; all share memory with the originals."""
    return {key: value.to_local() if hasattr(value, "to_local") else value for key, value in state.items()}


@contextmanager
def connect(device: str | None = None) -> Iterator[World]:
    """Join the processes that a launcher started; a process on its own is a world of one.

    Raises:
        OpsinError: a launcher's variables that do not fit together, or a device that is not there.
    """
    rank, size, local = _place()
    where = _device(device, local)
    if size == 1:
        yield World(where)
        return
    os.environ.setdefault("MASTER_ADDR", _first_host())
    os.environ.setdefault("MASTER_PORT", "29500")
    if where.type == "cuda":
        torch.cuda.set_device(where)
    dist.init_process_group("nccl" if where.type == "cuda" else "gloo", rank=rank, world_size=size)
    try:
        yield World(where, rank, size)
        # all leave together: what the group's threads still hold when the interpreter ends, such as the tensors of the
        # last message, would take the process down
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _place() -> tuple[int, int, int]:
    for names in LAUNCHERS:
        if names[0] in os.environ and names[1] in os.environ:
            if names[0] == "SLURM_PROCID" and not _in_step():
                continue
            try:
                rank, size, local = (int(os.environ.get(name, "0")) for name in names)
            except ValueError:
                values = ", ".join(f"{name}={os.environ.get(name)}" for name in names)
                raise OpsinError(f"the launcher's variables are no numbers: {values}") from None
            if not 0 <= rank < size:
                raise OpsinError(f"the launcher says {names[0]}={rank} of {names[1]}={size}")
            return rank, size, local
    return 0, 1, 0


def _in_step() -> bool:
    """Whether srun started this process. The script of an sbatch has SLURM's variables too, the number of tasks
    included, but runs once, whatever that number is."""
    step = os.environ.get("SLURM_STEP_ID", "")
    return step.isdecimal() and int(step) < NO_STEP


def _first_host() -> str:
    here = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE")
    if here is not None:
        if here != os.environ.get("OMPI_COMM_WORLD_SIZE"):
            raise OpsinError("the processes are on several hosts: set MASTER_ADDR to that of rank 0")
        return "127.0.0.1"
    names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST") if _in_step() else ()
    return next((expand_hosts(os.environ[name])[0] for name in names if os.environ.get(name)), "127.0.0.1")


def expand_hosts(text: str) -> list[str]:
    """The hosts of a list as SLURM writes it: "node[003-005,9],gpu1" -> node003, node004, node005, node9, gpu1."""
    found: list[str] = []
    if re.fullmatch(f"{HOST}(,{HOST})*", text):
        for word in re.findall(HOST, text):
            parts = re.findall(r"\[([^\]]*)\]|([^\[]+)", word)
            found += map("".join, product(*(_numbers(numbers) if numbers else [plain] for numbers, plain in parts)))
    if not found:
        raise OpsinError(f"the list of hosts {text!r} cannot be read; set MASTER_ADDR to the first of them")
    return found


def _numbers(text: str) -> list[str]:
    """ "003-005,9" -> 003, 004, 005, 9."""
    found = []
    for first, last in (part.split("-") if "-" in part else (part, part) for part in text.split(",")):
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return found


def _device(name: str | None, local: int) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise OpsinError(f"no device {name!r}: {str(error).splitlines()[0]}") from None
    if device.type == "cpu":
        return device
    module: Any = getattr(torch, device.type, None)
    if not (hasattr(module, "is_available") and module.is_available()):
        raise OpsinError(f"no device {name!r}: torch finds no GPU here")
    count = module.device_count()
    if device.index is not None and device.index >= count:
        raise OpsinError(f"no device {name!r}: torch finds {count}, numbered from 0")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", local % count)  # a launcher may show each process one GPU alone
    return device


# --- randomness -----------------------------------------------------------------------------------------------------


def seed_everything(seed: int, rank: int = 0, *, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch, another state for each rank; with `deterministic` only reproducible algorithms."""
    random.seed(seed + rank)
    np.random.seed(seed + rank)
    torch.manual_seed(seed + rank)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(deterministic)


def get_random_state() -> dict[str, Any]:
    """The global random states of this process, as tensors and plain values."""
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `get_random_state` gave."""
    torch.set_rng_state(state["torch"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
