"""How fast a model is and what memory it takes: forward passes or training steps on random pictures of its own size."""

import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from opsin.errors import OpsinError
from opsin.inference.optimize import prepare_for_inference

__all__ = ["benchmark"]

WARM_UP, LEAST = 2, 5  # steps before any is timed, and steps that are timed at least
LARGEST = 4096  # batch that is tried
GAIN = 1.03  # a batch twice as large is worth it from this much more speed on
LONG = 4.0  # seconds that a step may take for a larger batch to be tried on a CPU


def benchmark(
    model: nn.Module,
    *,
    train: bool = False,
    batch_size: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    amp_dtype: torch.dtype | None = None,
    channels_last: bool = False,
    prepare: bool = False,
    compile: bool = False,
    threads: int | None = None,
    seconds: float = 3.0,
) -> dict[str, Any]:
    """The speed of a model where it is, without reading pictures.

    Args:
        model: its parameters say on which device and in which type to compute. It is put in the mode it is measured in.
        train: a training step: forward, backward and an SGD step with momentum (by nothing: the parameters stay), in
            place of a forward pass.
        batch_size: pictures a step. None finds it: on a GPU the largest that fits, on a CPU the fastest.
        img_size: side, or (height, width); by default what the model was made for.
        amp_dtype: mixed precision in bfloat16 or float16.
        channels_last: memory layout of weights and pictures.
        prepare: measure `prepare_for_inference(model)`; the model itself stays as it is.
        compile: measure it compiled by `torch.compile`; the compilation is not timed.
        threads: of torch, on a CPU; those of before are set again afterwards.
        seconds: how long to measure, after warming up.

    Returns:
        `images_per_second` at the median step; `ms` a step: the median, with the quartiles `ms_low` and `ms_high`;
        `steps` that were timed; `batch_size`, `img_size` (height, width); `params`; `memory`: bytes at the peak of the
        steps, of tensors on a GPU, of the whole process on a CPU under Linux, elsewhere None.

    Raises:
        OpsinError: a model that does not run on such pictures, or for which not even one picture fits.
    """
    if train and prepare:
        raise OpsinError("a model prepared for inference cannot be trained: leave out prepare or train")
    if seconds <= 0:
        raise OpsinError(f"seconds must be above 0, not {seconds}")
    if batch_size is not None and batch_size < 1:
        raise OpsinError(f"batch_size must be at least 1, not {batch_size}")
    size = _size(model, img_size)
    params = sum(p.numel() for p in model.parameters())
    with _threads(threads):
        timed = _Steps(model, size, train, amp_dtype, channels_last, prepare, compile)
        batch_size = batch_size or timed.best_batch()
        times, memory = timed.run(batch_size, seconds)
    low, middle, high = statistics.quantiles(times, n=4)
    return {
        "images_per_second": batch_size / middle, "ms": middle * 1e3, "ms_low": low * 1e3, "ms_high": high * 1e3,
        "steps": len(times), "batch_size": batch_size, "img_size": size, "params": params, "memory": memory,
    }  # fmt: skip


def _size(model: Any, wanted: int | tuple[int, int] | None) -> tuple[int, int]:
    record = getattr(model, "pretrained_cfg", None) or {}
    built = getattr(getattr(model, "config", None), "img_size", None)
    size = wanted or built or tuple(record.get("input_size", (3, 224, 224)))[1:]
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        if count < 1:
            raise OpsinError(f"threads must be at least 1, not {count}")
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Steps:
    """One kind of step of one model, at any batch size."""

    def __init__(
        self, model: Any, size: tuple[int, int], train: bool, amp_dtype: torch.dtype | None, channels_last: bool,
        prepare: bool, compile: bool,
    ) -> None:  # fmt: skip
        like = next(model.parameters())
        self.device, self.dtype, self.amp_dtype, self.train = like.device, like.dtype, amp_dtype, train
        self.channels = getattr(getattr(model, "config", None), "in_chans", 3)
        self.size, self.layout = size, torch.channels_last if channels_last else torch.contiguous_format
        model = model.train(train).to(memory_format=self.layout)
        if prepare:
            example = self.pictures(1)
            model = prepare_for_inference(model, example_input=example, channels_last=channels_last or None)
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9) if train else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=train and amp_dtype == torch.float16)
        self.forward: Callable[[Tensor], Any] = torch.compile(model) if compile else model

    def pictures(self, batch_size: int) -> Tensor:
        x = torch.randn(batch_size, self.channels, *self.size, device=self.device, dtype=self.dtype)
        return x.contiguous(memory_format=self.layout)

    def step(self, x: Tensor) -> None:
        with torch.inference_mode(not self.train), torch.autocast(
            self.device.type, self.amp_dtype, enabled=self.amp_dtype is not None
        ):  # fmt: skip
            outputs = self.forward(x)
        if self.optimizer is not None:
            loss: Any = sum(one.float().square().mean() for one in tree_leaves(outputs))
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def run(self, batch_size: int, seconds: float, least: int = LEAST) -> tuple[list[float], int | None]:
        """Seconds of each timed step, and the peak of memory."""
        try:
            peak = _Peak(self.device)
            x = self.pictures(batch_size)
            for _ in range(WARM_UP):
                self.step(x)
            times: list[float] = []
            end = time.perf_counter() + seconds
            while len(times) < least or time.perf_counter() < end:
                start = time.perf_counter()
                self.step(x)
                times.append(time.perf_counter() - start)
            return times, peak.read()
        except torch.OutOfMemoryError as error:
            self.tidy()
            raise OpsinError(f"a batch of {batch_size} does not fit into the memory of {self.device}") from error
        except RuntimeError as error:
            shape = (batch_size, self.channels, *self.size)
            raise OpsinError(f"the model does not run on pictures of shape {shape}: {error}") from error

    def tidy(self) -> None:
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def best_batch(self) -> int:
        """On a GPU the largest batch that fits, to an eighth; elsewhere the fastest, in powers of two."""
        return self._largest() if self.device.type == "cuda" else self._fastest()

    def _fits(self, batch_size: int) -> bool:
        try:
            self.run(batch_size, 0.0, 1)
        except OpsinError as error:
            if isinstance(error.__cause__, torch.OutOfMemoryError) and batch_size > 1:
                return False
            raise
        finally:
            self.tidy()
        return True

    def _largest(self) -> int:
        good = 1
        while good < LARGEST and self._fits(2 * good):
            good *= 2
        if good == LARGEST or (good == 1 and self._fits(1)):
            return good
        step = good // 2
        while step >= max(good // 8, 1):
            good += step if self._fits(good + step) else 0
            step //= 2
        return good

    def _fastest(self) -> int:
        best, speed, size, failed = 1, 0.0, 1, 0
        while size <= LARGEST and failed < 2:
            times, _ = self.run(size, 0.3, 3)
            now = size / min(times)  # what else the machine does only ever slows a step down
            best, speed, failed = (size, now, 0) if now > GAIN * speed else (best, speed, failed + 1)
            if 2 * min(times) > LONG:
                break
            size *= 2
        return best


class _Peak:
    """The most memory that is in use from now on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.linux = device.type == "cpu" and sys.platform.startswith("linux")
        if trim := self.linux and getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)  # what the models before have left
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif self.linux:
            try:
                Path("/proc/self/clear_refs").write_text("5")  # the kernel's mark of the highest resident size
            except OSError:
                self.linux = False

    def read(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if not self.linux:
            return None
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
