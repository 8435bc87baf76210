"""Chance for what runs once a batch: decisions on the host, noise on the device, both from one `torch.Generator`."""

import numpy as np
import torch

__all__ = ["device_generator", "host_rng"]


def host_rng(generator: torch.Generator) -> np.random.Generator:
    """A generator for decisions taken on the host (which picture, what box, which weight), seeded by the next draw.

    With a generator of the CPU the decisions are the same on every device, and none waits for a device.
    """
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return np.random.default_rng(int(seed))


def device_generator(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """A generator that can fill tensors on `device`: the given one, or where it cannot, one seeded by its next draw."""
    if generator.device.type == device.type:
        return generator
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator(device).manual_seed(int(seed))
