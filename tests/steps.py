"""Weights, gradients and steps that tests of optimizers share."""

import numpy as np
import torch
from torch import nn

STEPS, LR = 12, 0.01
SHAPES = [(20, 18), (18,), (24, 20, 3, 3), (40, 24), (1,)]
RATES = [LR * (1 - t / 24) for t in range(STEPS)]


def weights(dtype=torch.float64, shapes=SHAPES):
    rng = np.random.default_rng(0)
    return [nn.Parameter(torch.tensor(rng.normal(0, 0.5, shape), dtype=dtype)) for shape in shapes]


def noise(i, t, shape):
    return np.random.default_rng((i, t)).normal(0, 0.5, shape)


def set_grads(params, t):
    for i, p in enumerate(params):
        p.grad = (0.7 * p.detach() + torch.tensor(noise(i, t, tuple(p.shape)), dtype=p.dtype)).to(p.dtype)


def run(optimizer, params, steps=range(STEPS), rates=RATES):
    for t in steps:
        for group in optimizer.param_groups:
            group["lr"] = rates[t] * group.get("lr_scale", 1.0)
        set_grads(params, t)
        optimizer.step()
    return params
