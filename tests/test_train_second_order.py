"""Runs with an optimizer that looks at the curvature."""

import gc
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from runs import dark_and_light

from opsin.errors import OpsinError
from opsin.optim import create_optimizer, list_optimizers, optimizer_info
from opsin.train.build import amp_dtype, build_run
from opsin.train.config import from_dict
from opsin.train.distributed import World
from opsin.train.loop import Callback, fit

CPU = World(torch.device("cpu"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return dark_and_light(tmp_path_factory.mktemp("photos"), 27)


def settings(photos, output, **groups):
    values = {
        "data": {"data": str(photos), "batch_size": 8, "workers": 0},
        "model": {"model": "test_resnet", "img_size": 32},
        "optim": {"opt": "adahessian", "lr": 0.02, "weight_decay": 0.01},
        "schedule": {"epochs": 1, "warmup_epochs": 0.0},
        "run": {"output": str(output)},
    }
    return from_dict({name: values.get(name, {}) | groups.get(name, {}) for name in {**values, **groups}})


@pytest.fixture
def build():
    """`build_run` on the CPU; what it took is given back."""
    runs = []

    def make(config, **how):
        runs.append(build_run(config, CPU, **how))
        return runs[-1]

    yield make
    for run in runs:
        run.directory.close()


def learn(run, count):
    """The losses of the first updates."""
    run.begin_epoch()
    updates, losses = run.updates(), []
    for update in range(count):
        run.scheduler.step(update)
        losses.append(run.learn(next(updates)))
    return losses


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_does_what_one_does_by_hand(photos, build, tmp_path):
    hand = build(settings(photos, tmp_path / "hand"))
    start = {key: value.clone() for key, value in hand.model.state_dict().items()}
    optimizer = create_optimizer(hand.model, "adahessian", lr=0.02, weight_decay=0.01)
    hand.model.train()
    for update, batch in enumerate(hand.train_loader):
        for group in optimizer.param_groups:
            group["lr"] = hand.scheduler.lr_at(update)
        optimizer.zero_grad()
        F.cross_entropy(hand.model(batch.images), batch.targets).backward(create_graph=True)
        optimizer.step()
    optimizer.zero_grad()
    run = build(settings(photos, tmp_path / "run"))
    fit(run)
    assert run.update == update + 1 == 6
    assert same(run.model.state_dict(), hand.model.state_dict())
    assert all(not torch.equal(p, start[name]) for name, p in run.model.named_parameters())


def test_it_goes_on_where_it_was_interrupted(photos, build, tmp_path):
    class Interrupt(Callback):
        def on_update(self, run, loss):
            if run.update == 4:
                raise KeyboardInterrupt

    config = {"optim": {"opt": "lookahead_adahessian", "opt_args": {"lookahead_k": 2}}}
    whole = build(settings(photos, tmp_path / "whole", **config))
    fit(whole)
    cut = build(settings(photos, tmp_path / "cut", **config, run={"output": str(tmp_path / "cut"), "save_every": 0.0}),
                callbacks=[Interrupt()])  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        fit(cut)
    cut.directory.close()
    again = build(
        settings(photos, tmp_path / "cut", **config, run={"output": str(tmp_path / "cut"), "save_every": 0.0})
    )
    fit(again)
    assert again.update == whole.update == 6
    assert same(again.model.state_dict(), whole.model.state_dict())


def test_no_graph_is_kept(photos, build, tmp_path):
    class Kept:
        def __init__(self, tensor):
            self.tensor = tensor

    run, seen = build(settings(photos, tmp_path)), []

    def pack(tensor):
        kept = Kept(tensor)
        seen.append(weakref.ref(kept))
        return kept

    gc.disable()  # a cycle would live on
    try:
        with (
            warnings.catch_warnings(action="error"),
            torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor),
        ):
            learn(run, 2)
        assert len(seen) > 100
        assert not any(ref() for ref in seen)
    finally:
        gc.enable()
    assert all(p.grad is None for p in run.model.parameters())


def test_batches_accumulate_curvature(photos, build, tmp_path):
    """Four batches make the step that one of their size makes, with the same random vectors."""
    ends = []
    for size, times in ((32, 1), (8, 4)):
        config = settings(
            photos, tmp_path / str(size), data={"batch_size": size}, model={"model": "test_vit", "img_size": 32},
            optim={"opt": "adahessian", "lr": 1e-3, "accumulate": times}, run={"output": str(tmp_path / str(size))},
        )  # fmt: skip
        run = build(config)
        learn(run, 1)
        ends.append(torch.cat([run.optimizer.state[p]["hessian"].flatten() for p in run.model.parameters()]))
    assert torch.linalg.vector_norm(ends[0] - ends[1]) < 1e-4 * torch.linalg.vector_norm(ends[0])


@pytest.mark.parametrize(
    "more",
    [
        {"model": {"grad_checkpointing": True}},
        {"optim": {"clip_grad": 0.01}},
        {"optim": {"opt_args": {"n_samples": 2}}},
    ],
)
def test_with_attention_and_what_else_a_run_has(photos, build, tmp_path, more):
    """Fused attention has no second derivative; checkpointing changes nothing, clipping and samples do."""
    ends = []
    for name, groups in (("plain", {}), ("more", more)):
        base = {"model": {"model": "test_vit", "img_size": 32}, "optim": {"opt": "adahessian", "lr": 0.02}}
        groups = {key: base.get(key, {}) | groups.get(key, {}) for key in base}
        run = build(settings(photos, tmp_path / name, **groups))
        learn(run, 2)
        ends.append(run.model.state_dict())
    assert same(*ends) == ("model" in more)


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"model": {"compile": True}}, "compile .* no second derivative"),
        ({"run": {"amp": "float16"}}, "amp float16"),
        ({"run": {"amp": "bfloat16"}}, "amp bfloat16 .*: take none"),
        ({"optim": {"opt": "lookahead_adahessian"}, "model": {"compile": True}}, "lookahead_adahessian looks at"),
    ],
)
def test_what_has_no_second_derivative_is_refused(photos, tmp_path, groups, said):
    with pytest.raises(OpsinError, match=said):
        build_run(settings(photos, tmp_path, **groups), CPU)


@pytest.mark.parametrize("fsdp", [True, False])
def test_several_processes_are_refused(photos, tmp_path, fsdp):
    with pytest.raises(OpsinError, match="several processes"):
        build_run(settings(photos, tmp_path, run={"fsdp": fsdp}), World(torch.device("cpu"), 0, 2))


def test_precision_that_nobody_asked_for_stays_whole(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    gpu = World(torch.device("cuda"))
    assert amp_dtype(settings(photos, tmp_path), gpu) is None
    assert amp_dtype(settings(photos, tmp_path, optim={"opt": "adamw"}), gpu) == torch.bfloat16


def test_who_needs_a_second_derivative():
    assert [name for name in list_optimizers() if optimizer_info(name).second_order] == ["adahessian"]
    assert optimizer_info("lookahead_adahessian").second_order
    parameter = torch.nn.Parameter(torch.ones(1))
    assert create_optimizer([parameter], "lookahead_adahessian", lr=0.1).is_second_order
    assert not create_optimizer([parameter], "lookahead_sgd", lr=0.1).is_second_order
