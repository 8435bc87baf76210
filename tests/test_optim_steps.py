"""Each optimizer step by step beside timm."""

import random

import numpy as np
import pytest
import torch
from steps import LR, RATES, SHAPES, STEPS, noise, run, set_grads, weights
from torch import nn

from opsin.errors import OpsinError
from opsin.optim import create_optimizer, kron, list_optimizers, optimizer_info
from opsin.optim.adafactor import Adafactor

PEER = {"muon": {"momentum": 0.95}, "nmuon": {"momentum": 0.95}}  # create_optimizer_v2 would say 0.9
WHOLE = {"momentum_dtype": torch.float32}  # timm adds in half precision, here it is only stored in it


OTHERS = ("adahessian", "kron", "kronc", "kronw")  # below


@pytest.mark.parametrize("name", [name for name in list_optimizers() if name not in OTHERS])
def test_beside_timm(name):
    timm_optim = pytest.importorskip("timm.optim")
    ours, theirs = weights(torch.float32), weights(torch.float32)
    whole = WHOLE if "adafactorbv" in name else {}
    scale = 1.0 if optimizer_info(name).defaults.get("corrected_weight_decay") else 0.5  # see test_corrected_decay
    split = lambda params: [  # noqa: E731
        {"params": params[:2], "weight_decay": 0.1}, {"params": params[2:], "lr_scale": scale},
    ]  # fmt: skip
    run(create_optimizer(split(ours), name, lr=LR, weight_decay=0.05, **whole), ours)
    peer = timm_optim.create_optimizer_v2(split(theirs), name, lr=LR, weight_decay=0.05, **PEER.get(name, {}), **whole)
    run(peer, theirs)
    for a, b, c in zip(ours, theirs, weights(torch.float32), strict=True):
        assert not a.equal(c)
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


OPTIONS = [
    ("sgdw", {"dampening": 0.3, "nesterov": False}), ("sgdw", {"momentum": 0.0, "nesterov": False}),
    ("lion", {"betas": (0.8, 0.7)}),
    ("lamb", {"bias_correction": False}), ("lamb", {"grad_averaging": False}), ("lamb", {"max_grad_norm": 0.1}),
    ("lamb", {"trust_clip": True, "eps": 0.1}), ("lamb", {"always_adapt": True, "weight_decay": 0.0}),
    ("lars", {"trust_coeff": 0.1, "eps": 0.5}), ("lars", {"always_adapt": True, "weight_decay": 0.0}),
    ("lars", {"dampening": 0.1}), ("larc", {"trust_coeff": 50.0}), ("adan", {"betas": (0.9, 0.8, 0.7), "eps": 0.1}),
    ("rmsproptf", {"centered": True}), ("rmsproptf", {"lr_in_momentum": False}), ("rmsproptf", {"alpha": 0.5}),
    ("rmsproptf", {"eps": 0.1, "momentum": 0.0}), ("madgrad", {"momentum": 0.0}), ("madgrad", {"eps": 0.01}),
    ("novograd", {"grad_averaging": True}), ("novograd", {"eps": 0.5, "betas": (0.8, 0.9)}),
    ("adabelief", {"decoupled_decay": False}), ("adabelief", {"fixed_decay": True}), ("adabelief", {"eps": 1e-3}),
    ("radabelief", {"degenerated_to_sgd": False}), ("radabelief", {"betas": (0.9, 0.95), "eps": 1e-3}),
    ("adopt", {"clip_exp": None}), ("adopt", {"clip_exp": 0.1}), ("adopt", {"eps": 0.5, "betas": (0.8, 0.9)}),
    ("laprop", {"betas": (0.8, 0.9), "eps": 0.1}), ("nadamw", {"betas": (0.8, 0.9), "eps": 0.1}),
    ("mars", {"gamma": 0.1, "eps": 0.1}), ("mars", {"mars_type": "lion"}), ("mars", {"optimize_1d": True}),
    ("mars", {"lr_1d_factor": 0.5}), ("mars", {"betas_1d": (0.5, 0.9)}), ("mars", {"betas": (0.5, 0.9)}),
    ("adamp", {"delta": 5.0, "wd_ratio": 0.5}), ("adamp", {"nesterov": False, "eps": 0.01, "betas": (0.8, 0.9)}),
    ("sgdp", {"delta": 5.0, "wd_ratio": 0.5}), ("sgdp", {"delta": 5.0, "dampening": 0.4, "nesterov": False}),
    ("sgdp", {"delta": 5.0, "eps": 0.5}),
    ("adafactor", {"betas": (0.9, 0.99)}), ("adafactor", {"clip_threshold": 0.2}), ("adafactor", {"decay_rate": -0.5}),
    ("adafactor", {"min_dim_size_to_factor": 300}), ("adafactor", {"eps": 0.01}),
    ("adafactorbv", {"decay_rate": 0.5, "beta2_cap": 0.5}),
    ("adafactorbv", {"clipping_threshold": 0.1}), ("adafactorbv", {"unscaled_wd": True}), ("adafactorbv", {"eps": 0.1}),
    ("adafactorbv", {"min_dim_size_to_factor": 300}),
    ("muon", {"ns_steps": 3}), ("muon", {"adjust_lr_fn": "original"}), ("muon", {"eps": 1.0}),
    ("muon", {"fallback_lr_scale": 0.5, "betas": (0.8, 0.9)}), ("muon", {"momentum": 0.5}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options"), OPTIONS, ids=lambda value: str(value) if isinstance(value, dict) else value
)
def test_arguments_act_as_in_timm(name, options):
    timm_optim = pytest.importorskip("timm.optim")
    whole = WHOLE if name == "adafactorbv" else {}
    every = {"lr": LR, "weight_decay": 0.1} | PEER.get(name, {}) | whole
    ours, theirs, plain = (weights(torch.float32) for _ in range(3))
    run(create_optimizer(plain, name, **every | {"weight_decay": options.get("weight_decay", 0.1)}), plain)
    run(create_optimizer(ours, name, **every | options), ours)
    make = timm_optim.create_optimizer_v2
    run(make(theirs, name, **every | options), theirs)
    assert any(not a.allclose(b, rtol=0, atol=1e-5) for a, b in zip(ours, plain, strict=True))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=3e-6)


def test_adafactor_by_its_own_rate():
    timm_optim = pytest.importorskip("timm.optim")
    for options in ({}, {"warmup_init": True}, {"eps_scale": 2.0}, {"scale_parameter": False}):
        ours, theirs = weights(torch.float32), weights(torch.float32)
        pair = Adafactor(ours, weight_decay=0.1, **options), timm_optim.Adafactor(theirs, weight_decay=0.1, **options)
        for t in range(STEPS):
            for optimizer, params in zip(pair, (ours, theirs), strict=True):
                set_grads(params, t)
                optimizer.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=2e-6)
    with pytest.raises(OpsinError, match="lr=None"):
        Adafactor(ours, lr=0.1, warmup_init=True)
    with pytest.raises(OpsinError, match="betas"):
        Adafactor(ours, lr=0.1, caution=True)


def test_adafactor_scales_by_the_weights():
    for scale in (1.0, 3.0):
        p = nn.Parameter(torch.full((4,), scale))
        p.grad = torch.ones(4)
        create_optimizer([p], "adafactor", lr=0.1, scale_parameter=True).step()
        torch.testing.assert_close(p.detach(), torch.full((4,), scale * 0.9))


def test_adafactorbv_without_and_with_half_a_moment():
    timm_optim = pytest.importorskip("timm.optim")
    runs = [weights(torch.float32) for _ in range(4)]
    make = timm_optim.AdafactorBigVision
    run(create_optimizer(runs[0], "adafactorbv", lr=LR, momentum=0.0), runs[0])
    run(make(runs[1], lr=LR, momentum=None), runs[1])
    run(create_optimizer(runs[2], "adafactorbv", lr=LR), runs[2])
    run(create_optimizer(runs[3], "adafactorbv", lr=LR, **WHOLE), runs[3])
    for none, peer, half, whole in zip(*runs, strict=True):
        torch.testing.assert_close(none, peer, rtol=0, atol=2e-6)
        torch.testing.assert_close(half, whole, rtol=0, atol=1e-3)
    assert not runs[2][0].equal(runs[3][0])


@pytest.mark.parametrize(
    "options",
    [{}, {"hessian_power": 0.5}, {"update_each": 2}, {"n_samples": 2}, {"avg_conv_kernel": True}, {"eps": 0.1}],
    ids=str,
)
def test_adahessian_beside_timm(options):
    timm_optim = pytest.importorskip("timm.optim")
    ours, theirs = weights(torch.float32), weights(torch.float32)
    pair = (
        create_optimizer(ours, "adahessian", lr=0.05, weight_decay=0.1, **options),
        timm_optim.Adahessian(theirs, lr=0.05, weight_decay=0.1, **options),
    )
    for t in range(STEPS):
        for optimizer, params in zip(pair, (ours, theirs), strict=True):
            optimizer.zero_grad()
            bowls(params, t).backward(create_graph=True)
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-6)


def bowls(params, t):
    """Of such a sum the Hessian is diagonal, so that any random signs give the same estimate of it."""
    return sum(
        (0.7 * p**2 + 0.1 * p**4 + p * torch.tensor(noise(i, t, tuple(p.shape)))).sum() for i, p in enumerate(params)
    )


def test_adahessian_as_the_paper_says():
    params = weights(shapes=SHAPES[:2])
    expected = [p.detach().numpy().copy() for p in params]
    for i, w in enumerate(expected):
        m = v = 0
        for t in range(STEPS):
            g, h = 1.4 * w + 0.4 * w**3 + noise(i, t, w.shape), 1.4 + 1.2 * w * w
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * h * h
            w -= RATES[t] * (0.1 * w + m / (1 - 0.9 ** (t + 1)) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8))
    optimizer = create_optimizer(params, "adahessian", lr=LR, weight_decay=0.1)
    for t in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATES[t]
        optimizer.zero_grad()
        bowls(params, t).backward(create_graph=True)
        optimizer.step()
    for p, w in zip(params, expected, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), w, rtol=0, atol=1e-9)


KRON = [
    {}, {"corrected_weight_decay": True}, {"momentum": 0.5},
    {"momentum_into_precond_update": False}, {"max_size_triangular": 19}, {"min_ndim_triangular": 3},
    {"precond_lr": 0.01}, {"precond_init_scale": 0.1}, {"preconditioner_update_probability": 0.4},
]  # fmt: skip


@pytest.mark.parametrize("options", KRON, ids=str)
def test_kron_beside_timm(options, monkeypatch):
    """With the same random probes on both sides, and without balancing (one step in a hundred)."""
    peer = pytest.importorskip("timm.optim.kron").Kron
    draw = torch.randn

    def probe(shape, *_, dtype=None, **__):
        return draw(tuple(shape), generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)

    monkeypatch.setattr(kron, "noise", lambda like, step, seed: probe(like.shape or (1,), dtype=like.dtype))
    monkeypatch.setattr(torch, "compile", lambda fn=None, **_: fn or (lambda inner: inner))
    monkeypatch.setattr(random.Random, "random", lambda self: 0.5)
    ours, theirs, plain = (weights(torch.float32, SHAPES[:2] + SHAPES[3:]) for _ in range(3))
    run(kron.Kron(plain, lr=LR, weight_decay=0.1), plain)
    run(kron.Kron(ours, lr=LR, weight_decay=0.1, **options), ours)
    optimizer = peer(theirs, lr=LR, weight_decay=0.1, decoupled_decay=True, **options)
    monkeypatch.setattr(torch, "randn", probe)
    run(optimizer, theirs)
    assert options == {} or any(not a.allclose(b, rtol=0, atol=1e-6) for a, b in zip(ours, plain, strict=True))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


def test_kron_whitens():
    """Gradients whose rows and columns have very different sizes come out with variances of about one."""
    p = nn.Parameter(torch.zeros(12, 10))
    optimizer = create_optimizer([p], "kron", lr=0.0, momentum=0.0, preconditioner_update_probability=1.0)
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.logspace(-1, 1, 12)[:, None], torch.logspace(-0.5, 0.5, 10)
    draw = lambda: rows * columns * torch.randn(12, 10, generator=generator)  # noqa: E731
    for _ in range(600):
        p.grad = draw()
        optimizer.step()
    factors = [optimizer.state[p][name] for name in ("q0", "q1")]
    variance = torch.stack([kron.whiten(factors, draw()) for _ in range(400)]).var(0)
    assert 0.6 < variance.mean() < 1.6
    assert variance.max() / variance.min() < 6  # of the gradients: a million


def test_kron_balances_without_changing_the_whitening():
    factors = [torch.eye(3).triu() * 8, torch.full((2,), 0.5)]
    x = torch.randn(3, 2)
    before = kron.whiten(factors, x)
    kron.balance(factors)
    torch.testing.assert_close(kron.whiten(factors, x), before)
    assert factors[0].abs().max() == pytest.approx(factors[1].abs().max())


def test_kron_fits_less_often_with_time():
    group = {"preconditioner_update_probability": None}
    assert [round(kron.probability(group, step), 3) for step in (1, 500, 1500, 9000)] == [1.0, 1.0, 0.368, 0.03]
