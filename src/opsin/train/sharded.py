"""A model in shards: each process holds its part of every weight, gradient, average and optimizer state.

This is torch's FSDP2: a block is gathered when it runs, and its gradients are summed and split again. The whole model
is made on every process first, as a run without shards makes it, so that it learns the same.

    last-000007/         everything that the run needs to go on, in place of `last.pt`
        rest.pt          plain values, and what the optimizer keeps of each weight
        .metadata, *.distcp   tensors, each process' own part: torch's distributed checkpoint

The folder is written aside and renamed, the one before it is removed then; all processes must see it.
"""

import pickle
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, zeros

from opsin.errors import OpsinError, explained
from opsin.models._chain import locate, split_blocks
from opsin.train.checkpoint import RunDirectory, remove
from opsin.train.distributed import World
from opsin.weights.fetch import sync

__all__ = ["check_optimizer", "full_state", "gathered", "read", "restore", "save", "shard"]

REST = "rest.pt"
METADATA_MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
METADATA_NAMES = {("torch", "Size"), ("torch.serialization", "_get_layout"), ("collections", "OrderedDict"),
                  ("pathlib", "PosixPath"), ("pathlib", "WindowsPath")}  # fmt: skip


# --- model ----------------------------------------------------------------------------------------------------------


def shard(model: Any, world: World) -> None:
    """Split the weights of a model over all processes, in place: each block of its chain, then what is left.

    Raises:
        OpsinError: a process on its own, or a model that FSDP cannot split (weights of a single number).
    """
    if world.size == 1:
        raise OpsinError(
            "fsdp shards a model over processes, and this one is alone: start with torchrun --nproc-per-node=N, or "
            "leave fsdp out"
        )
    mesh = init_device_mesh(world.device.type, (world.size,))
    try:
        for block in _blocks(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    except (ValueError, NotImplementedError) as error:
        raise OpsinError(f"{type(model).__name__} cannot be sharded: {str(error).splitlines()[0]}") from error


def _blocks(model: Any) -> list[nn.Module]:
    """What runs as one part and has weights; stems stay with the whole."""
    return [
        block
        for stage in getattr(model, "chain", ())
        if stage.checkpoint
        for path in stage.run
        for _, block in split_blocks(locate(model, path), path)
        if isinstance(block, nn.Module) and any(True for _ in block.parameters())
    ]


def check_optimizer(make: Callable[[nn.Module], torch.optim.Optimizer], world: World) -> None:
    """Raise `OpsinError` for an optimizer that cannot work on parts of weights: two steps on a few small ones tell."""
    with torch.random.fork_rng(devices=[]):
        trial = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(1, 4), nn.Flatten(), nn.Linear(4, 3)).to(world.device)
    shard(trial, world)
    optimizer = make(trial)
    try:
        for _ in range(2):
            trial(torch.ones(2, 3, 3, 3, device=world.device)).square().mean().backward()
            optimizer.step()
        _split(optimizer.state_dict())
    except (RuntimeError, NotImplementedError) as error:
        raise OpsinError(
            f"{type(optimizer).__name__} cannot work on sharded weights ({str(error).splitlines()[0][:100]}); adamw, "
            "sgd and lamb can, or leave fsdp out"
        ) from error


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Gather all weights once, for passes in which processes need not keep step, such as an evaluation."""
    parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not model, recurse=False)


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """The whole state dict, on the CPU of the first process; an empty one on the others, which must ask as well."""
    found: Any = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return found


# --- checkpoint -----------------------------------------------------------------------------------------------------


def save(run: Any, rest: dict[str, Any]) -> None:
    """Write the tensors of a run and the `rest`: a new folder, whole or not at all, then the older one goes."""
    directory, part = run.directory, run.directory.path / ".last.part"
    optimizer = run.optimizer.state_dict()
    tensors, rest["optimizer"], rest["kinds"] = _split(optimizer)
    rest["ema_updates"] = run.ema.updates if run.ema else 0
    run.world.share(lambda: _fresh(part))
    with _whole(part):
        dcp.save(_keyed(_weights(run) | tensors, run.world.rank), storage_writer=dcp.FileSystemWriter(part))
    run.world.share(lambda: _finish(directory, part, rest))


def _fresh(part: Path) -> None:
    with explained(part):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()


@contextmanager
def _whole(part: Path) -> Iterator[None]:
    try:
        yield
    except CheckpointException as error:
        shutil.rmtree(part, ignore_errors=True)
        reason = next(iter(error.failures.values()))[0]
        raise OpsinError(f"{part} cannot be written ({reason}); what was there before is unharmed") from error


def _finish(directory: RunDirectory, part: Path, rest: dict[str, Any]) -> None:
    old = directory.folders()
    number = int(old[-1].name.removeprefix("last-")) + 1 if old else 0
    with explained(directory.path / f"last-{number:06d}"):
        torch.save(rest, part / REST)
        sync(part / REST)
        sync(part)
        part.rename(directory.path / f"last-{number:06d}")
        sync(directory.path)
        for folder in old:
            remove(folder)


def read(directory: RunDirectory) -> dict[str, Any] | None:
    """The plain values of the newest folder, or None where there is none; `restore` brings the tensors."""
    folders = directory.folders()
    if not folders:
        return None
    try:
        rest = torch.load(folders[-1] / REST, map_location="cpu", weights_only=True)
    except Exception as error:  # the reader fails in many ways on damaged input
        raise OpsinError(f"{folders[-1]} cannot be read ({str(error)[:120]}); --overwrite begins anew") from error
    return rest | {"folder": str(folders[-1])}


def restore(run: Any, rest: dict[str, Any]) -> None:
    """Bring weights, average and optimizer to where the folder that `read` found has them."""
    weight = next(p for p in run.model.parameters() if isinstance(p, DTensor))
    kept = {key: _empty(kind, weight, run.world.device) for key, kind in rest["kinds"].items()}
    folder = Path(rest["folder"])
    try:
        _check_metadata(folder / ".metadata")
        dcp.load(_keyed(_weights(run) | kept, run.world.rank), storage_reader=dcp.FileSystemReader(folder))
    except (CheckpointException, OSError, pickle.UnpicklingError, RuntimeError) as error:
        raise OpsinError(f"{folder} cannot be read ({str(error)[:200]}); --overwrite begins anew") from error
    optimizer = rest["optimizer"]
    for key, value in kept.items():
        _, number, name = key.split("/", 2)
        optimizer["state"][int(number)][name] = value
    run.optimizer.load_state_dict(optimizer)
    if run.ema is not None:
        run.ema.updates = rest["ema_updates"]


def _weights(run: Any) -> dict[str, Tensor]:
    """Weights of the model and its average, by reference."""
    found = {f"model/{key}": value for key, value in run.model.state_dict().items()}
    if run.ema is not None:
        found |= {f"ema/{key}": value for key, value in run.ema.average.state_dict().items()}
    return found


def _keyed(tensors: dict[str, Tensor], rank: int) -> dict[str, Any]:
    """Names for all processes together: what is not sharded (counters, statistics of batch norms) is each one's own."""
    return {key if isinstance(value, DTensor) else f"rank{rank}/{key}": value for key, value in tensors.items()}


def _split(optimizer: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """The tensors of an optimizer's state, its state without them, and what is needed to make room for them."""
    tensors: dict[str, Tensor] = {}
    plain: dict[int, dict[str, Any]] = {}
    for number, state in optimizer["state"].items():
        plain[number] = {}
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{number}/{name}"] = value
            elif value is None or isinstance(value, bool | int | float | str):
                plain[number][name] = value
            else:
                raise OpsinError(f"this optimizer keeps a {type(value).__name__} ({name}), which fsdp cannot store")
    return tensors, optimizer | {"state": plain}, {key: _kind(value) for key, value in tensors.items()}


def _kind(value: Tensor) -> list[Any]:
    """Shape, type, and the dimension it is sharded along (-1: a copy on each process); None for a plain tensor."""
    dim = None
    if isinstance(value, DTensor):
        (place,) = value.placements
        if place.is_partial():
            raise OpsinError("this optimizer keeps sums that fsdp has not added up; take another one")
        dim = place.dim if isinstance(place, Shard) else -1
    return [list(value.shape), value.dtype, dim]


def _empty(kind: list[Any], like: DTensor, device: torch.device) -> Tensor:
    shape, dtype, dim = kind
    if dim is None:
        return torch.zeros(shape, dtype=dtype, device=device)
    place = Shard(dim) if dim >= 0 else Replicate()
    return zeros(*shape, dtype=dtype, device_mesh=like.device_mesh, placements=[place])


class _PlainUnpickler(pickle.Unpickler):
    """Opens what torch writes about a checkpoint, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if dtype or module in METADATA_MODULES or (module, name) in METADATA_NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")


def _check_metadata(path: Path) -> None:
    """Refuse metadata that hold code, or name pickled objects: torch opens both without looking."""
    with path.open("rb") as file:
        metadata = _PlainUnpickler(file).load()
    for key, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise pickle.UnpicklingError(f"{key} is no tensor")
