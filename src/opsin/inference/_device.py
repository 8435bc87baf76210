"""A device by name, checked before the work."""

import torch

from opsin.errors import OpsinError

__all__ = ["find_device"]


def find_device(name: str | torch.device | None = None) -> torch.device:
    """The device of this name; of none, a CUDA device if there is one, else the CPU.

    Raises `OpsinError` where there is no such device; it names those that there are.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # the second of a build without CUDA
        here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        here += ["mps"] * torch.backends.mps.is_available()
        raise OpsinError(f"there is no device {str(name)!r} here; there are: {', '.join(here)}") from error
