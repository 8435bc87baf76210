"""Each optimizer step by step beside what its paper says in plain numpy."""

import numpy as np
import pytest
import torch
from steps import LR, RATES, noise, run, set_grads, weights

from opsin.optim import create_optimizer, optimizer_info

# Each takes a weight w, walks over (t, lr, gradient at w) with t from 1, and returns the last w. `wd` is the decay.


def walk(w, i):
    """(t, lr, gradient as a function of w) for each step of tensor number i."""
    for t, lr in enumerate(RATES):
        yield t + 1, lr, lambda w, t=t: 0.7 * w + noise(i, t, w.shape)


def sgdw(w, steps, wd, mu=0.9):
    b = 0
    for _, lr, grad in steps:
        g = grad(w)
        b = mu * b + g
        w = w - lr * wd * w - lr * (g + mu * b)
    return w


def adamw(w, steps, wd, nesterov=False, caution=False, full=None, b1=0.9, b2=0.999, eps=1e-8):
    m = v = 0
    for t, lr, grad in steps:
        g = grad(w)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        ahead = b1 * m + (1 - b1) * g if nesterov else m
        u = ahead / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        if caution:
            agree = u * g > 0
            u = u * agree / max(agree.mean(), 1e-3)
        w = w * (1 - lr * wd * (lr / full if full else 1)) - lr * u
    return w


def lion(w, steps, wd, b1=0.9, b2=0.99):
    m = 0
    for _, lr, grad in steps:
        g = grad(w)
        w = w - lr * (np.sign(b1 * m + (1 - b1) * g) + wd * w)
        m = b2 * m + (1 - b2) * g
    return w


def lamb(w, steps, wd, b1=0.9, b2=0.999, eps=1e-6):
    m = v = 0
    for t, lr, grad in steps:
        g = grad(w)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        r = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + wd * w
        w = w - lr * np.linalg.norm(w) / np.linalg.norm(r) * r
    return w


def lars(w, steps, wd, mu=0.9, eta=0.001):
    b = 0
    for _, lr, grad in steps:
        g = grad(w)
        local = eta * np.linalg.norm(w) / (np.linalg.norm(g) + wd * np.linalg.norm(w) + 1e-8)
        b = mu * b + local * (g + wd * w)
        w = w - lr * b
    return w


def adan(w, steps, wd, b1=0.02, b2=0.08, b3=0.01, eps=1e-8):
    m = v = n = 0
    last = None
    for t, lr, grad in steps:
        g = grad(w)
        d = 0 if last is None else g - last
        m = (1 - b1) * m + b1 * g
        v = (1 - b2) * v + b2 * d
        n = (1 - b3) * n + b3 * (g + (1 - b2) * d) ** 2
        eta = lr / (np.sqrt(n / (1 - (1 - b3) ** t)) + eps)
        w = (w - eta * (m / (1 - (1 - b1) ** t) + (1 - b2) * v / (1 - (1 - b2) ** t))) / (1 + lr * wd)
        last = g
    return w


def madgrad(w, steps, wd, mu=0.9, eps=1e-6):
    start, s, v = w, 0, 0
    for t, lr, grad in steps:
        g = grad(w) + wd * w
        lam = (lr + eps) * np.sqrt(t)
        s, v = s + lam * g, v + lam * g * g
        w = mu * w + (1 - mu) * (start - s / (np.cbrt(v) + eps))
    return w


def novograd(w, steps, wd, b1=0.95, b2=0.98, eps=1e-8):
    m, v = 0, None
    for _, lr, grad in steps:
        g = grad(w)
        square = (g * g).sum()
        v = square if v is None else b2 * v + (1 - b2) * square
        m = b1 * m + (g / (np.sqrt(v) + eps) + wd * w)
        w = w - lr * m
    return w


def rmsproptf(w, steps, wd, rho=0.9, mu=0.9, eps=1e-10):
    v, b = 1, 0
    for _, lr, grad in steps:
        g = grad(w) + wd * w
        v = rho * v + (1 - rho) * g * g
        b = mu * b + lr * g / np.sqrt(v + eps)
        w = w - b
    return w


def adabelief(w, steps, wd, b1=0.9, b2=0.999, eps=1e-16):
    m = s = 0
    for t, lr, grad in steps:
        g = grad(w)
        w = w - lr * wd * w
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * (g - m) ** 2 + eps
        w = w - lr * m / (1 - b1**t) / (np.sqrt(s / (1 - b2**t)) + eps)
    return w


def radabelief(w, steps, wd, b1=0.9, b2=0.999, eps=1e-16):
    m = s = 0
    longest = 2 / (1 - b2) - 1
    for t, lr, grad in steps:
        g = grad(w)
        w = w - lr * wd * w
        m = b1 * m + (1 - b1) * g
        s = b2 * s + (1 - b2) * (g - m) ** 2 + eps
        rho = longest - 2 * t * b2**t / (1 - b2**t)
        if rho >= 5:
            r = np.sqrt((rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho))
            w = w - lr * r * m / (1 - b1**t) / np.sqrt(s / (1 - b2**t))
        else:
            w = w - lr * m / (1 - b1**t)
    return w


def laprop(w, steps, wd, b1=0.9, b2=0.999, eps=1e-15):
    m = v = c = 0
    for t, lr, grad in steps:
        g = grad(w)
        v = b2 * v + (1 - b2) * g * g
        m = b1 * m + (1 - b1) * lr * g / (np.sqrt(v / (1 - b2**t)) + eps)
        c = b1 * c + (1 - b1) * lr
        w = (w - m * lr / c) * (1 - lr * wd)
    return w


def adoptw(w, steps, wd, b1=0.9, b2=0.9999, eps=1e-6):
    m = v = 0
    for t, lr, grad in steps:
        g = grad(w)
        if t == 1:
            v = g * g
            continue
        limit = (t - 1) ** 0.333
        m = b1 * m + (1 - b1) * np.clip(g / np.maximum(np.sqrt(v), eps), -limit, limit)
        w = w - lr * wd * w - lr * m
        v = b2 * v + (1 - b2) * g * g
    return w


def mars(w, steps, wd, b1=0.9, b2=0.99, gamma=0.025, eps=1e-8):
    m = v = 0
    last = None
    for t, lr, grad in steps:
        g = grad(w)
        c = g
        if w.ndim > 1:
            c = g + gamma * b1 / (1 - b1) * (0 if last is None else g - last)
            c = c / max(np.linalg.norm(c), 1)
        m, v = b1 * m + (1 - b1) * c, b2 * v + (1 - b2) * c * c
        w = w - lr * (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + wd * w)
        last = g
    return w


def _projected(w, g, u, delta, eps):
    for rows in (len(w), 1):
        a, b = w.reshape(rows, -1), g.reshape(rows, -1)
        cosine = np.abs((a * b).sum(1)) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        if w.ndim > 1 and cosine.max() < delta / np.sqrt(a.shape[1]):
            unit = a / (np.linalg.norm(a, axis=1, keepdims=True) + eps)
            return u - (unit * (unit * u.reshape(rows, -1)).sum(1, keepdims=True)).reshape(w.shape), 0.01
    return u, 1


def adamp(w, steps, wd, b1=0.9, b2=0.999, eps=1e-8, delta=0.1):
    m = v = 0
    for t, lr, grad in steps:
        g = grad(w)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        u = (b1 * m + (1 - b1) * g) / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
        u, ratio = _projected(w, g, u, delta, eps)
        w = w * (1 - lr * wd * ratio) - lr * u
    return w


def sgdp(w, steps, wd, mu=0.9):
    b = 0
    for _, lr, grad in steps:
        g = grad(w)
        b = mu * b + g
        u, ratio = _projected(w, g, g + mu * b, 0.1, 1e-8)
        w = w * (1 - lr * wd * (0.1 if ratio < 1 else 1) / (1 - mu)) - lr * u
    return w


def _second_moment(kept, square, beta):
    """Rows and columns of the two largest dimensions of at least 16; their outer product by the mean of rows."""
    sizes = sorted(range(square.ndim), key=lambda d: square.shape[d])[-2:]
    if square.ndim < 2 or square.shape[sizes[0]] < 16:
        kept["v"] = beta * kept.get("v", 0) + (1 - beta) * square
        return kept["v"]
    for d in sizes:
        kept[d] = beta * kept.get(d, 0) + (1 - beta) * square.mean(d, keepdims=True)
    small, large = sizes
    return kept[large] * kept[small] / kept[large].mean(small, keepdims=True)


def adafactor(w, steps, wd):
    kept = {}
    for t, lr, grad in steps:
        g = grad(w)
        u = g / np.sqrt(_second_moment(kept, g * g + 1e-30, 1 - t**-0.8))
        w = w - lr * wd * w - lr * u / max(1, np.sqrt((u * u).mean()))
    return w


def adafactorbv(w, steps, wd):
    kept, m = {}, 0
    for t, lr, grad in steps:
        g = grad(w)
        m = 0.9 * m + 0.1 * g / np.sqrt(_second_moment(kept, g * g + 1e-30, min(0.999, 1 - t**-0.8)))
        w = w - lr * wd * w - lr * m
    return w


PAPERS = {
    "sgdw": (sgdw, {}), "lion": (lion, {}), "lamb": (lamb, {"max_grad_norm": None}), "lars": (lars, {}),
    "adan": (adan, {}), "madgrad": (madgrad, {}), "novograd": (novograd, {}), "rmsproptf": (rmsproptf, {}),
    "adabelief": (adabelief, {}), "radabelief": (radabelief, {}), "laprop": (laprop, {}), "adoptw": (adoptw, {}),
    "mars": (mars, {}), "adamp": (adamp, {}), "sgdp": (sgdp, {}), "adafactor": (adafactor, {}),
    "adafactorbv": (adafactorbv, {"momentum_dtype": torch.float64}),
    "adamw": (adamw, {}),
    "nadamw": (lambda *a: adamw(*a, nesterov=True), {}),
    "cadamw": (lambda *a: adamw(*a, caution=True), {}),
    "adamc": (lambda *a: adamw(*a, full=LR), {}),
}  # fmt: skip


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("name", PAPERS)
def test_as_the_paper_says(name, foreach):
    formula, options = PAPERS[name]
    lists = {"foreach": foreach} if "foreach" in optimizer_info(name).defaults else {}
    params = weights()
    expected = [formula(p.detach().numpy().copy(), walk(p, i), 0.1) for i, p in enumerate(params)]
    run(create_optimizer(params, name, lr=LR, weight_decay=0.1, **options, **lists), params)
    for p, e in zip(params, expected, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), e, rtol=0, atol=1e-9)


def test_muon_orthogonalises():
    (p,) = weights(torch.float32, [(40, 24)])
    before = p.detach().clone()
    optimizer = create_optimizer([p], "muon", lr=0.1)
    set_grads([p], 0)
    optimizer.step()
    u, _, v = torch.linalg.svd(p.grad, full_matrices=False)
    step = (before - p.detach()) / (0.1 * 0.2 * 40**0.5)
    assert torch.linalg.svdvals(step).sub(1).abs().max() < 0.1
    assert (step - u @ v).norm() / (u @ v).norm() < 0.06


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_muon_beside_torch(nesterov, adjust):
    ours, theirs = (weights(torch.float32, [(20, 18), (12, 30)]) for _ in range(2))
    shared = {"weight_decay": 0.1, "nesterov": nesterov, "adjust_lr_fn": adjust}
    triple = (3.4445, -4.775, 2.0315)
    run(create_optimizer(ours, "muon", lr=LR, ns_coefficients=triple, **shared), ours)
    run(torch.optim.Muon(theirs, lr=LR, ns_coefficients=triple, **shared), theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
