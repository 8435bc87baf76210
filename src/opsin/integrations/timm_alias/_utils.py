"""`timm.utils`: the small tools of training scripts."""

import argparse
import ast
import copy
import logging
import math
import random
from collections.abc import Callable, Iterable, Sequence
from logging.handlers import RotatingFileHandler
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from opsin.errors import OpsinError, check_choice
from opsin.layers.frozen_norm import freeze_batch_norm_2d, unfreeze_batch_norm_2d
from opsin.optim.groups import _unwrapped
from opsin.train import distributed
from opsin.train.clip import MODES, clip_units_

__all__ = [
    "ApexScaler",
    "AverageMeter",
    "FormatterNoInfo",
    "NativeScaler",
    "ParseKwargs",
    "accuracy",
    "adaptive_clip_grad",
    "add_bool_arg",
    "check_batch_size_retry",
    "decay_batch_step",
    "dispatch_clip_grad",
    "distribute_bn",
    "freeze",
    "get_state_dict",
    "init_distributed_device",
    "is_distributed_env",
    "is_primary",
    "model_parameters",
    "random_seed",
    "reduce_tensor",
    "reparameterize_model",
    "set_fast_norm",
    "set_jit_fuser",
    "set_jit_legacy",
    "setup_default_logging",
    "unfreeze",
    "unwrap_model",
    "world_info_from_env",
]

# --- models ----------------------------------------------------------------------------------------------------------


def unwrap_model(model: Any) -> Any:
    """The model inside an average, torch.compile, or what spreads it over devices."""
    inner = getattr(model, "ema", None) or _unwrapped(model)
    if inner is model and type(model).__name__.startswith("ModelEma"):
        inner = model.module
    return inner if inner is model else unwrap_model(inner)


def get_state_dict(model: Any, unwrap_fn: Callable[[Any], nn.Module] = unwrap_model) -> dict[str, Any]:
    """The state of the model inside."""
    return unwrap_fn(model).state_dict()


def model_parameters(model: nn.Module, exclude_head: bool = False) -> list[nn.Parameter]:
    """All parameters; with `exclude_head` without the classifier's, as adaptive clipping wants them."""
    heads: Any = model.get_classifier() if exclude_head else ()  # type: ignore[operator]
    heads = heads if isinstance(heads, tuple) else (heads,)
    spared = {id(p) for head in heads for p in head.parameters()}
    return [p for p in model.parameters() if id(p) not in spared]


def freeze(root_module: nn.Module, submodules: Sequence[str] = (), include_bn_running_stats: bool = True) -> None:
    """Stop gradients of all or of the named modules, and their batch norms' statistics."""
    _set_frozen(root_module, submodules, freeze_batch_norm_2d if include_bn_running_stats else None, False)


def unfreeze(root_module: nn.Module, submodules: Sequence[str] = (), include_bn_running_stats: bool = True) -> None:
    """The way back from `freeze`."""
    _set_frozen(root_module, submodules, unfreeze_batch_norm_2d if include_bn_running_stats else None, True)


def _set_frozen(root: nn.Module, names: Sequence[str], norms: Callable[[nn.Module], Any] | None, grad: bool) -> None:
    for name in [names] if isinstance(names, str) else names or [n for n, _ in root.named_children()]:
        module = root.get_submodule(name)
        if norms is not None:
            parent, _, own = name.rpartition(".")
            module = norms(module)
            setattr(root.get_submodule(parent), own, module)
        module.requires_grad_(grad)
    if not names:
        root.requires_grad_(grad)


def reparameterize_model(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Merge the branches of modules that have them; `opsin.prepare_for_inference` does more."""
    model = model if inplace else copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if callable(merge := getattr(module, "reparameterize", None)):
            merged = merge()
            if merged is not None and name:
                parent, _, own = name.rpartition(".")
                setattr(model.get_submodule(parent), own, merged)
    return model


def set_jit_legacy() -> None:
    raise OpsinError("torch.jit is retired and opsin's models are not scripted: use torch.compile")


def set_jit_fuser(fuser: str) -> None:
    set_jit_legacy()


def set_fast_norm(enable: bool = True) -> None:
    """Norms that give up precision in half precision; opsin has none."""
    if enable:
        raise OpsinError("opsin has no fast norms: its norms are torch's, whose kernels are fast as they are")


# --- steps -----------------------------------------------------------------------------------------------------------


def adaptive_clip_grad(parameters: Any, clip_factor: float = 0.01, eps: float = 1e-3, norm_type: float = 2.0) -> None:
    """Adaptive gradient clipping (https://arxiv.org/abs/2102.06171)."""
    clip_units_([parameters] if isinstance(parameters, Tensor) else parameters, clip_factor, eps=eps, norm=norm_type)


def dispatch_clip_grad(parameters: Iterable[Tensor], value: float, mode: str = "norm", norm_type: float = 2.0) -> None:
    """Clip gradients by their norm, by value, or adaptively ("agc")."""
    check_choice(mode, MODES, what="clip mode")
    match mode:
        case "norm":
            nn.utils.clip_grad_norm_(parameters, value, norm_type=norm_type)
        case "value":
            nn.utils.clip_grad_value_(parameters, value)
        case "agc":
            adaptive_clip_grad(parameters, value, norm_type=norm_type)


class NativeScaler:
    """torch's scaler and the whole update: backward, clip, step."""

    state_dict_key = "amp_scaler"

    def __init__(self, device: str = "cuda") -> None:
        self._scaler = torch.amp.GradScaler(device, enabled=device != "cuda" or torch.cuda.is_available())

    def __call__(
        self,
        loss: Tensor,
        optimizer: torch.optim.Optimizer,
        clip_grad: float | None = None,
        clip_mode: str = "norm",
        parameters: Iterable[Tensor] | None = None,
        create_graph: bool = False,
        need_update: bool = True,
    ) -> None:
        self._scaler.scale(loss).backward(create_graph=create_graph)
        if not need_update:
            return
        if clip_grad is not None:
            if parameters is None:
                raise OpsinError("clip_grad needs to know what to clip: pass parameters")
            self._scaler.unscale_(optimizer)
            dispatch_clip_grad(parameters, clip_grad, mode=clip_mode)
        self._scaler.step(optimizer)
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return self._scaler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._scaler.load_state_dict(state_dict)


class ApexScaler:
    state_dict_key = "amp"

    def __init__(self) -> None:
        raise OpsinError("apex has given up its amp, which torch has taken over: use NativeScaler")


def decay_batch_step(batch_size: int, num_intra_steps: int = 2, no_odd: bool = False) -> int:
    """The next smaller size to try: `num_intra_steps` from one power of two to the one below; 0 at the end."""
    if batch_size <= 1:
        return 0
    base = 2 ** int(math.log2(batch_size - 1))
    step = max(base // num_intra_steps, 1)
    size = base + (batch_size - 1 - base) // step * step
    return size - size % 2 if no_odd else size


def check_batch_size_retry(error_str: str) -> bool:
    """Whether a smaller batch could help against this error."""
    return not any(word in error_str.lower() for word in ("required rank", "illegal"))


# --- scores ----------------------------------------------------------------------------------------------------------


class AverageMeter:
    """The last value, and the mean of all, each as often as it says."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.val: Any = 0
        self.avg: Any = 0
        self.sum: Any = 0
        self.count = 0

    def update(self, val: Any, n: int = 1) -> None:
        self.val = val
        self.sum += val * n
        self.count += n
        self.avg = self.sum / self.count


def accuracy(output: Tensor, target: Tensor, topk: Sequence[int] = (1,)) -> list[Tensor]:
    """Per cent of a batch whose class is among the first k, for each k."""
    best = output.topk(min(max(topk), output.shape[1]), dim=1).indices
    right = best == target.reshape(-1, 1)
    return [right[:, :k].any(1).float().mean() * 100 for k in topk]


# --- the command line, logs, randomness ------------------------------------------------------------------------------


class ParseKwargs(argparse.Action):
    """An option of `key=value` words as a dict; values are read as Python writes them, or else as text."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        found = {}
        for word in values:
            key, sign, value = word.partition("=")
            if not sign:
                parser.error(f"argument {option_string}: {word!r} is not of the form key=value")
            try:
                found[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                found[key] = value
        setattr(namespace, self.dest, found)


def add_bool_arg(parser: argparse.ArgumentParser, name: str, default: bool = False, help: str = "") -> None:
    """`--name` and `--no-name`."""
    dest = name.replace("-", "_")
    group = parser.add_mutually_exclusive_group(required=False)
    group.add_argument(f"--{name}", dest=dest, action="store_true", help=help)
    group.add_argument(f"--no-{name}", dest=dest, action="store_false", help=help)
    parser.set_defaults(**{dest: default})


class FormatterNoInfo(logging.Formatter):
    """Messages of level INFO come without the level."""

    def __init__(self, fmt: str = "%(levelname)s: %(message)s") -> None:
        super().__init__(fmt)

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage() if record.levelno == logging.INFO else super().format(record)


def setup_default_logging(default_level: int = logging.INFO, log_path: str = "") -> None:
    """Log to the terminal, and to a file of at most 2 MB, of which three older ones are kept."""
    root = logging.getLogger()
    console = logging.StreamHandler()
    console.setFormatter(FormatterNoInfo())
    root.addHandler(console)
    root.setLevel(default_level)
    if log_path:
        file = RotatingFileHandler(log_path, maxBytes=2 << 20, backupCount=3)
        file.setFormatter(logging.Formatter("%(asctime)s - %(name)20s: [%(levelname)8s] - %(message)s"))
        root.addHandler(file)


def random_seed(seed: int = 42, rank: int = 0) -> None:
    """Seed torch, NumPy and Python."""
    torch.manual_seed(seed + rank)
    np.random.seed(seed + rank)
    random.seed(seed + rank)


# --- several processes -----------------------------------------------------------------------------------------------


def world_info_from_env() -> tuple[int, int, int]:
    """(rank on this machine, rank, world size) as a launcher says."""
    rank, size, local = distributed._place()
    return local, rank, size


def is_distributed_env() -> bool:
    return world_info_from_env()[2] > 1


def is_primary(args: Any, local: bool = False) -> bool:
    """Whether this is the first process, of all or (`local`) of its machine."""
    return (args.local_rank if local else args.rank) == 0


def init_distributed_device(args: Any) -> torch.device:
    """Join the processes that a launcher started; notes in `args` who this is, and returns the device."""
    args.local_rank, args.rank, args.world_size = world_info_from_env()
    args.distributed = args.world_size > 1
    device = distributed._device(getattr(args, "device", "cuda"), args.local_rank)
    args.device = str(device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if args.distributed:
        backend = getattr(args, "dist_backend", None) or ("nccl" if device.type == "cuda" else "gloo")
        url = getattr(args, "dist_url", None) or "env://"
        dist.init_process_group(backend, init_method=url, rank=args.rank, world_size=args.world_size)
    return device


def reduce_tensor(tensor: Tensor, n: int) -> Tensor:
    """The sum over all processes, divided by `n`."""
    total = tensor.clone()
    dist.all_reduce(total)
    return total / n


def distribute_bn(model: nn.Module, world_size: int, reduce: bool = False) -> None:
    """Give all processes the same running statistics: their mean, or those of the first."""
    for name, value in _unwrapped(model).named_buffers():
        if "running_mean" in name or "running_var" in name:
            if reduce:
                dist.all_reduce(value)
                value /= world_size
            else:
                dist.broadcast(value, 0)
