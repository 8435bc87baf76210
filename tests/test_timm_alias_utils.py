"""`timm.utils` under the alias: what each tool does, beside timm's own."""

import argparse
import copy
import inspect
import logging
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from opsin.errors import OpsinError, WeightsError
from opsin.integrations.timm_alias import _ema, _saver, _utils
from opsin.integrations.timm_alias._names import VIEWS
from opsin.layers.norm_act import BatchNormAct2d
from opsin.layers.sync_norm import SyncBatchNormAct, convert_sync_batchnorm

theirs = pytest.importorskip("timm.utils")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))


def filled(model, value):
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(value)
    return model


def values(model):
    return {key: value.flatten()[0].item() for key, value in model.state_dict().items()}


ABSENT = {"AttentionExtract", "load_checkpoint_metadata"}


def test_every_name_but_these():
    public = {name for name, value in vars(theirs).items() if name[0] != "_" and not inspect.ismodule(value)}
    assert public - {*VIEWS["timm.utils"].public()} == ABSENT
    for name in public - ABSENT - {"natural_key"}:
        mine, judge = (
            inspect.signature(thing).parameters for thing in (VIEWS["timm.utils"].find(name), vars(theirs)[name])
        )
        assert [*mine] == [*judge], name
        if name not in ("freeze", "unfreeze", "CheckpointSaver", "get_state_dict", "ParseKwargs"):
            assert [p.default for p in mine.values()] == [p.default for p in judge.values()], name


# --- averages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ModelEma", "ModelEmaV2", "ModelEmaV3"])
def test_averages(name):
    found = []
    for module in (_ema, theirs):
        model = filled(net(), 0)
        ema = getattr(module, name)(model, decay=0.75)
        for value in (8, 8, 3):
            ema.update(filled(model, value))
        inner = ema.ema if name == "ModelEma" else ema.module
        assert not inner.training
        found.append({k: v for k, v in values(inner).items() if name == "ModelEmaV3" or "tracked" not in k})
        if name != "ModelEma":
            assert next(iter(ema.state_dict())) == "module.0.weight"
            ema.set(filled(model, 5))
            assert set(values(inner).values()) == {5.0}
            assert ema(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    assert found[0] == pytest.approx(found[1])


EMA = [
    {"decay": 0.99}, {"decay": 0.5, "update_after_step": 3}, {"decay": 0.99, "use_warmup": True, "min_decay": 0.4},
    {"decay": 0.9, "use_warmup": True, "warmup_gamma": 2.0, "warmup_power": 1.0, "update_after_step": 1},
    {"exclude_buffers": True}, {"foreach": False}, {"dtype": torch.float64},
]  # fmt: skip


@pytest.mark.parametrize("options", EMA, ids=str)
def test_averages_with_a_warm_up(options):
    pair = [module.ModelEmaV3(filled(net(), 0), **options) for module in (_ema, theirs)]
    assert [pair[0].get_decay(t) for t in range(9)] == [pytest.approx(pair[1].get_decay(t)) for t in range(9)]
    assert pair[0].get_decay() == pair[1].get_decay()
    for ema in pair:
        for step, value in enumerate((8, 8, 3, 5, 6, 7)):
            ema.update(filled(net(), value), step=step)
        ema.update(filled(net(), 9))
    assert values(pair[0].module) == pytest.approx(values(pair[1].module), rel=1e-6)
    assert [v.dtype for v in pair[0].state_dict().values()] == [v.dtype for v in pair[1].state_dict().values()]


def test_averages_of_wrapped_models_and_from_files(tmp_path):
    model = filled(net(), 1)
    ema = _ema.ModelEmaV3(nn.DataParallel(model), decay=0.5)
    ema.update(filled(model, 3))
    assert values(ema.module)["0.weight"] == 2
    torch.save({"state_dict": model.state_dict(), "state_dict_ema": ema.module.state_dict()}, tmp_path / "both.pth")
    old = _ema.ModelEma(model, resume=str(tmp_path / "both.pth"), device="cpu")
    assert values(old.ema)["0.weight"] == 2
    assert _utils.unwrap_model(old) is old.ema
    assert _utils.unwrap_model(ema) is ema.module
    assert _utils.unwrap_model(nn.DataParallel(model)) is model
    assert list(_utils.get_state_dict(nn.DataParallel(model))) == list(model.state_dict())
    with pytest.raises(OpsinError, match="stochastic_rounding=False"):
        _ema.ModelEmaV3(model, dtype=torch.bfloat16)
    half = _ema.ModelEmaV3(model, dtype=torch.bfloat16, stochastic_rounding=False)
    assert half.module[0].weight.dtype == torch.bfloat16


# --- steps -----------------------------------------------------------------------------------------------------------

CLIPS = [
    {"value": 0.5}, {"value": 0.5, "norm_type": 1.0}, {"value": 0.1, "mode": "value"}, {"value": 0.01, "mode": "agc"},
    {"value": 0.01, "mode": "agc", "norm_type": 1.0},
]  # fmt: skip


@pytest.mark.parametrize("options", CLIPS, ids=str)
def test_clipping_and_the_scaler(options):
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    grads, weights = [], []
    for module in (_utils, theirs):
        model = net()
        (model(x) ** 2).sum().backward()
        module.dispatch_clip_grad(model.parameters(), **options)
        grads.append([p.grad for p in model.parameters()])
        model, scaler = net(), module.NativeScaler("cpu")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for update in (False, True):
            how = {"clip_mode": options.get("mode", "norm"), "parameters": model.parameters(), "need_update": update}
            assert scaler((model(x) ** 2).sum(), optimizer, clip_grad=options["value"], **how) is None
        weights.append([p.detach() for p in model.parameters()])
        assert scaler.state_dict()["scale"] == 65536.0
        scaler.load_state_dict(scaler.state_dict())
    for ours, judge in (grads, weights):
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(ours, judge, strict=True))
    model = net()
    (model(x) ** 2).sum().backward()
    _utils.adaptive_clip_grad(model[0].weight, 0.01, eps=10.0)
    judge = net()
    (judge(x) ** 2).sum().backward()
    theirs.adaptive_clip_grad(judge[0].weight, 0.01, eps=10.0)
    assert torch.allclose(model[0].weight.grad, judge[0].weight.grad)


def test_batch_sizes():
    for size in range(1, 300):
        for options in ({}, {"num_intra_steps": 4}, {"no_odd": True}):
            assert _utils.decay_batch_step(size, **options) == theirs.decay_batch_step(size, **options)
    for text in ("CUDA out of memory", "required rank 4", "an illegal memory access", "CUDNN_STATUS", "else"):
        assert _utils.check_batch_size_retry(text) == theirs.check_batch_size_retry(text)


def test_scores():
    meter, judge = _utils.AverageMeter(), theirs.AverageMeter()
    for value, n in ((3.0, 2), (torch.tensor(1.0), 3), (4.0, 1)):
        meter.update(value, n)
        judge.update(value, n)
    assert vars(meter) == vars(judge)
    meter.reset()
    assert meter.count == meter.sum == 0
    logits, target = torch.randn(30, 7), torch.randint(7, (30,))
    assert _utils.accuracy(logits, target, (1, 3, 9)) == theirs.accuracy(logits, target, (1, 3, 9))


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"submodules": ["1", "2"]}, {"submodules": ["2.1"]}, {"include_bn_running_stats": False}], ids=str
)
def test_freezing(options):
    found = []
    for module in (_utils, theirs):
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
        )
        seen = []
        for act in (module.freeze, module.unfreeze):
            act(model, **options)
            seen.append(([type(m).__name__ for m in model.modules()], [p.requires_grad for p in model.parameters()]))
        found.append(seen)
    assert found[0] == found[1]


def test_parameters_without_a_head():
    import opsin

    model = opsin.create_model("resnet10t", num_classes=3)
    assert len(_utils.model_parameters(model)) == len(_utils.model_parameters(model, exclude_head=True)) + 2
    assert not {id(p) for p in model.fc.parameters()} & {id(p) for p in _utils.model_parameters(model, True)}


def test_branches_merge():
    import opsin

    model = opsin.create_model("repvgg_a0", num_classes=3).eval()
    x = torch.randn(1, 3, 64, 64)
    merged = _utils.reparameterize_model(model)
    assert sum(1 for _ in merged.parameters()) < sum(1 for _ in model.parameters())
    assert torch.allclose(model(x), merged(x), atol=1e-4)
    assert _utils.reparameterize_model(model, inplace=True) is model


def test_batch_norms_over_all_processes_keep_their_activation():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4), nn.BatchNorm2d(4)).eval()
    filled(model[1], 2)
    x, keys = torch.randn(2, 3, 5, 5), list(model.state_dict())
    before = model(x)
    assert convert_sync_batchnorm(model) is model
    assert [type(m) for m in model[1:]] == [SyncBatchNormAct, nn.SyncBatchNorm]
    assert list(model.state_dict()) == keys
    assert torch.equal(model(x), before)
    assert not model[1].training


# --- the command line, logs, randomness ------------------------------------------------------------------------------


def test_options():
    found = []
    for module in (_utils, theirs):
        parser = argparse.ArgumentParser()
        module.add_bool_arg(parser, "foo-bar", default=True, help="bars")
        module.add_bool_arg(parser, "other")
        parser.add_argument("--kw", nargs="*", default={}, action=module.ParseKwargs)
        words = ["--no-foo-bar", "--kw", "a=1", "b=x", "c=[1,2]", "d=1e-3", "e=True", "f=None", "g=a=b"]
        found.append([vars(parser.parse_args(words)), vars(parser.parse_args(["--other"])), parser.format_help()])
    assert found[0] == found[1]


def test_an_option_without_a_value(capsys):
    parser = argparse.ArgumentParser()
    parser.add_argument("--kw", nargs="*", action=_utils.ParseKwargs)
    with pytest.raises(SystemExit):
        parser.parse_args(["--kw", "ab"])
    assert "'ab' is not of the form key=value" in capsys.readouterr().err


def test_logs(tmp_path, capsys):
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    root.handlers.clear()
    try:
        _utils.setup_default_logging(log_path=str(tmp_path / "log.txt"))
        logging.info("hello")
        logging.warning("careful")
        logging.debug("unheard")
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = kept
        root.setLevel(level)
    assert capsys.readouterr().err == "hello\nWARNING: careful\n"
    assert "[ WARNING] - careful" in (tmp_path / "log.txt").read_text()


def test_seeds():
    _utils.random_seed(5, 2)
    mine = torch.rand(1).item(), np.random.rand(), random.random()
    theirs.random_seed(5, 2)
    assert mine == (torch.rand(1).item(), np.random.rand(), random.random())


# --- several processes -----------------------------------------------------------------------------------------------


def test_alone(monkeypatch):
    assert _utils.world_info_from_env() == theirs.world_info_from_env() == (0, 0, 1)
    assert not _utils.is_distributed_env()
    args = argparse.Namespace(device="cpu")
    assert _utils.init_distributed_device(args) == torch.device("cpu")
    assert vars(args) == {"device": "cpu", "local_rank": 0, "rank": 0, "world_size": 1, "distributed": False}
    assert _utils.is_primary(args)
    for rank, local in ((0, 0), (2, 0), (3, 1)):
        args = argparse.Namespace(rank=rank, local_rank=local)
        assert _utils.is_primary(args) == theirs.is_primary(args)
        assert _utils.is_primary(args, local=True) == theirs.is_primary(args, local=True)
    step = (("SLURM_LOCALID", "1"), ("SLURM_PROCID", "3"), ("SLURM_NTASKS", "4"), ("SLURM_STEP_ID", "0"))
    for key, value in step:
        monkeypatch.setenv(key, value)
    assert _utils.world_info_from_env() == theirs.world_info_from_env() == (1, 3, 4)
    assert _utils.is_distributed_env()


def together(rank, folder):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    args = argparse.Namespace(device="cpu", dist_url=f"file://{folder}/meet")
    _utils.init_distributed_device(args)
    found = [_utils.reduce_tensor(torch.tensor(4.0 * rank), 2).item()]
    for reduce in (False, True):
        norm = nn.BatchNorm1d(1)
        norm.running_mean.fill_(rank + 1)
        _utils.distribute_bn(norm, 2, reduce)
        found.append(norm.running_mean.item())
    torch.save((args.distributed, args.rank, found), f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path):
    torch.multiprocessing.start_processes(together, (str(tmp_path),), nprocs=2, start_method="fork")
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pt") == (True, rank, [2.0, 1.0, 1.5])


# --- files -----------------------------------------------------------------------------------------------------------

SCORES = [[1.0, 3.0, 2.0, 2.5, 0.5], [None, None, 1.0, 2.0], [2.0, 2.0, 2.0], [5.0, 4.0, 3.0, 2.0]]


@pytest.mark.parametrize("decreasing", [False, True])
@pytest.mark.parametrize("scores", SCORES, ids=str)
def test_checkpoints(scores, decreasing, tmp_path):
    found = []
    for module, folder in ((_saver, tmp_path / "ours"), (theirs, tmp_path / "theirs")):
        folder.mkdir()
        model = filled(net(), 0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        saver = module.CheckpointSaver(
            model, optimizer, checkpoint_dir=str(folder), recovery_dir=str(folder), max_history=2, decreasing=decreasing
        )
        seen = []
        for epoch, score in enumerate(scores):
            filled(model, epoch)
            best = saver.save_checkpoint(epoch, score)
            files = {path.name: torch.load(path)["epoch"] for path in folder.glob("*.tar")}
            seen.append((best, files))
        found.append(seen)
    assert found[0] == found[1]


def test_what_a_checkpoint_holds(tmp_path):
    model = filled(net(), 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.zeros(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    held = []
    for module, scaler in ((_saver, _utils.NativeScaler("cpu")), (theirs, theirs.NativeScaler("cpu"))):
        ema = (_ema if module is _saver else theirs).ModelEmaV3(model)
        args = argparse.Namespace(model="resnet10t", lr=0.1)
        folder = str(tmp_path)
        saver = module.CheckpointSaver(model, optimizer, args, ema, scaler, checkpoint_dir=folder, recovery_dir=folder)
        saver.save_checkpoint(3, np.float64(0.5))
        held.append(torch.load(tmp_path / "last.pth.tar", weights_only=False))
        for batch in range(3):
            saver.save_recovery(4, batch)
        assert sorted(p.name for p in tmp_path.glob("recovery*")) == [f"recovery-4-{i}.pth.tar" for i in (1, 2)]
    assert held[0].keys() == held[1].keys() - {"saver"}
    for key in ("epoch", "arch", "version", "args", "metric", "amp_scaler"):
        assert held[0][key] == held[1][key], key
    assert list(held[0]["state_dict_ema"]) == list(model.state_dict())
    assert _saver.CheckpointSaver(model, optimizer, recovery_dir=str(tmp_path)).find_recovery().endswith("4-2.pth.tar")
    assert _saver.CheckpointSaver(model, optimizer, recovery_dir=str(tmp_path / "no")).find_recovery() == ""


def test_going_on(tmp_path, caplog):
    model = filled(net(), 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.zeros(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    for module in (_saver, theirs):  # files of both
        scaler = _utils.NativeScaler("cpu")
        module.CheckpointSaver(model, optimizer, amp_scaler=scaler, checkpoint_dir=str(tmp_path)).save_checkpoint(
            6, 0.5
        )
        again = filled(net(), 0)
        other = torch.optim.AdamW(again.parameters(), lr=0.3)
        caplog.set_level(logging.INFO)
        assert _saver.resume_checkpoint(again, str(tmp_path / "last.pth.tar"), other, _utils.NativeScaler("cpu")) == 7
        assert "epoch 7" in caplog.text
        assert values(again) == values(model)
        assert other.param_groups[0]["lr"] == 0.1
        assert len(other.state_dict()["state"]) == 4 + 2
    torch.save({f"module.{key}": value for key, value in model.state_dict().items()}, tmp_path / "plain.pth")
    assert _saver.resume_checkpoint(again, str(tmp_path / "plain.pth")) is None
    torch.save({"state_dict": model.state_dict(), "f": copy.deepcopy}, tmp_path / "code.pth")
    with pytest.raises(WeightsError, match="would run code"):
        _saver.resume_checkpoint(again, tmp_path / "code.pth")


def test_tables(tmp_path):
    texts = []
    for module in (_saver, theirs):
        path = tmp_path / f"{module.__name__}.csv"
        module.update_summary(0, {"loss": 1.0}, {"loss": 2.0, "top1": 3.0}, str(path), lr=0.1, write_header=True)
        module.update_summary(1, {"loss": 1.0}, {"loss": 2.0, "top1": 3.0}, str(path), lr=0.1)
        module.update_summary(2, {"loss": 1.5}, {}, str(path))
        whole = path.read_bytes()
        module.trim_summary(str(path), 1)
        other = tmp_path / f"{module.__name__}-2.csv"
        module.update_summary(0, {"loss": 1.0}, {}, str(other))
        texts.append((whole, path.read_text(), other.read_bytes()))
    assert texts[0] == texts[1]
    _saver.trim_summary(tmp_path / "none.csv", 3)
    assert not (tmp_path / "none.csv").exists()


def test_wandb_gets_the_scores(tmp_path, monkeypatch):
    import sys
    from types import SimpleNamespace

    rows = []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(log=rows.append))
    _saver.update_summary(3, {"loss": 1.0}, {"top1": 2.0}, tmp_path / "s.csv", log_wandb=True)
    assert rows == [{"epoch": 3, "train_loss": 1.0, "eval_top1": 2.0}]


def test_folders(tmp_path):
    for module in (_saver, theirs):
        base = tmp_path / module.__name__
        made = [Path(module.get_outdir(str(base), "a", "b", inc=inc)) for inc in (False, False, True, True)]
        assert [path.name for path in made] == ["b", "b", "b-1", "b-2"]
        assert all(path.is_dir() for path in made)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: _utils.ApexScaler(), "use NativeScaler"),
        (lambda: _utils.set_jit_fuser("te"), "torch.compile"),
        (lambda: _utils.set_jit_legacy(), "torch.compile"),
        (lambda: _utils.set_fast_norm(), "has no fast norms"),
        (lambda: _utils.dispatch_clip_grad([], 1.0, mode="nrm"), "Did you mean norm"),
        (lambda: _saver.CheckpointSaver(net(), None, max_history=0), "max_history=0"),
        (lambda: _saver.CheckpointSaver(net(), None, task=1), "no timm.task"),
        (lambda: _saver.resume_checkpoint(net(), "x.pth", weights_only=False), "never runs code"),
        (lambda: _saver.resume_checkpoint(net(), "x.pth"), "no checkpoint x.pth"),
        (
            lambda: _utils.NativeScaler("cpu")(torch.ones(1, requires_grad=True).sum(), None, clip_grad=1.0),
            "parameters",
        ),
    ],
)
def test_says_what_is_wrong(call, said):
    with pytest.raises((OpsinError, TypeError, FileNotFoundError), match=said):
        call()
    _utils.set_fast_norm(False)
