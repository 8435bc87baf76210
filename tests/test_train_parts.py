"""The parts of a run, each by itself: configuration, average, clipping, split norms, run directory, world."""

import copy
import dataclasses
import math
import os
import signal
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from started import Started
from torch import nn

import opsin
from opsin.cli.train import parse
from opsin.errors import OpsinError
from opsin.train.checkpoint import RunDirectory
from opsin.train.clip import adaptive_clip_, make_clip
from opsin.train.config import TrainConfig, from_dict, list_recipes, load_config, load_recipe, save_config, to_dict
from opsin.train.distributed import World, connect, get_random_state, seed_everything, set_random_state
from opsin.train.ema import Ema
from opsin.train.freeze import frozen_stages
from opsin.train.split_bn import SplitBatchNorm, split_batch_norm

# --- configuration --------------------------------------------------------------------------------------------------


def test_a_configuration_survives_a_file(tmp_path):
    config = from_dict(
        {
            "model": {"model": "vit_tiny_patch16_224", "model_args": {"num_heads": 4}},
            "augment": {"scale": [0.5, 1], "auto_augment": None},
            "run": {"output": str(tmp_path / "out")},
            "optim": {"lr": "1e-3"},
        }
    )
    assert config.augment.scale == (0.5, 1.0)
    assert config.run.output == tmp_path / "out"
    assert config.optim.lr == 1e-3
    save_config(config, tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml") == config
    assert not list(tmp_path.glob(".*"))
    assert from_dict(to_dict(config)) == config


def test_tuples_of_python_come_back_as_the_lists_that_a_file_has(tmp_path):
    config = from_dict({"optim": {"opt_args": {"betas": (0.9, 0.95)}}, "model": {"model_args": {"a": [{"b": (1,)}]}}})
    save_config(config, tmp_path / "c.yaml")
    plain = to_dict(config)
    assert plain == to_dict(load_config(tmp_path / "c.yaml"))
    assert plain["optim"]["opt_args"]["betas"] == [0.9, 0.95]
    assert plain["model"]["model_args"] == {"a": [{"b": [1]}]}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"optim": {"learning_rat": 1}}, "no setting 'learning_rat'"),
        ({"optm": {}}, "Did you mean optim"),
        ({"optim": {"wieght_decay": 0.1}}, "Did you mean weight_decay"),
        ({"lr": 0.1}, "It belongs to optim"),
        ({"optim": {"lr": "fast"}}, "optim, lr must be of type float, not 'fast'"),
        ({"schedule": {"epochs": 1.5}}, "must be of type int"),
        ({"schedule": {"epochs": True}}, "must be of type int"),
        ({"run": {"amp": "bf16"}}, "Did you mean bfloat16"),
        ({"augment": {"scale": [0.1]}}, "scale must be of type"),
        ({"optim": 3}, "optim is a group of settings"),
        ({"run": {"ema": "yes"}}, "must be of type bool"),
    ],
)
def test_wrong_settings_are_named(values, said):
    with pytest.raises(OpsinError, match=said):
        from_dict(values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": {"pretrained": True, "checkpoint": "x"}}, "both say where the weights"),
        ({"schedule": {"epochs": 2}}, "warmup_epochs 2.0 leaves nothing of 2 epochs"),
        ({"schedule": {"epochs": 0, "warmup_epochs": 0}}, "epochs must be at least 1"),
        ({"model": {"split_bn": True}}, "split_bn needs aug_splits"),
        ({"augment": {"aug_splits": 3, "mixup": 0.2}}, "would mix the aug_splits"),
        ({"loss": {"loss": "jsd"}}, "jsd loss compares aug_splits"),
        ({"data": {"repeats": 3, "balance": 1.0}}, "both choose the samples"),
        ({"data": {"batch_size": 0}}, "at least 1"),
    ],
)
def test_contradictions_are_named(values, said):
    with pytest.raises(OpsinError, match=said):
        from_dict(values).check()


def test_names_with_values_on_the_command_line():
    words = ["digits", "--model-args", "layers=[1, 1, 1, 1]", "act_layer=gelu", "--opt-args", "eps=1e-5", "--loss-args"]
    config, _ = parse(words)
    assert config.model.model_args == {"layers": [1, 1, 1, 1], "act_layer": "gelu"}
    assert config.optim.opt_args == {"eps": 1e-5}
    assert config.loss.loss_args == {}
    assert parse(["digits", "--head-weights", "size=0.5"])[0].loss.head_weights == {"size": 0.5}
    assert load_recipe("small-from-scratch").optim.opt_args == parse(["digits"])[0].optim.opt_args


def test_words_that_are_no_names_with_values(capsys):
    with pytest.raises(SystemExit):
        parse(["digits", "--model-args", "layers"])
    assert "'layers' is not NAME=VALUE" in capsys.readouterr().err


def test_files_that_are_no_configuration(tmp_path):
    for text, said in (("a: [", "cannot be read"), ("- 1", "holds no settings")):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(OpsinError, match=said):
            load_config(tmp_path / "c.yaml")
    with pytest.raises(OpsinError, match="no configuration"):
        load_config(tmp_path / "absent.yaml")


def test_recipes():
    known = list_recipes()
    assert {"finetune", "small-from-scratch", "resnet-strikes-back-a2", "deit", "convnext", "mobilenet"} <= set(known)
    for name, about in known.items():
        load_recipe(name).check()
        assert "%" in about  # an expected result
        assert opsin.is_model(load_recipe(name).model.model)
    with pytest.raises(OpsinError, match="Did you mean finetune"):
        load_recipe("finetun")


def test_every_setting_is_documented():
    for group in dataclasses.fields(TrainConfig):
        settings = type(getattr(TrainConfig(), group.name))
        for one in dataclasses.fields(settings):
            assert f"        {one.name}: " in (settings.__doc__ or ""), f"{group.name}.{one.name}"


# --- average --------------------------------------------------------------------------------------------------------


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize("debias", [False, True])
def test_the_average_is_a_weighted_mean(debias):
    model = net()
    ema = Ema(model, 0.9, debias=debias)
    assert not ema.average.training
    assert not any(p.requires_grad for p in ema.average.parameters())
    values, start = [], model[0].weight.detach().clone()
    for i in range(30):
        with torch.no_grad():
            model[0].weight.fill_(float(i))
        model[1].num_batches_tracked.fill_(i)
        values.append(float(i))
        ema.update(model)
    wanted = start[0, 0].item()
    for n, value in enumerate(values, 1):
        d = 0.9 * (1 - 0.9 ** (n - 1)) / (1 - 0.9**n) if debias else min(0.9, (1 + n) / (10 + n))
        wanted = d * wanted + (1 - d) * value
    assert ema.average[0].weight[0, 0].item() == pytest.approx(wanted, rel=1e-5)
    assert ema.average[1].num_batches_tracked == 29
    if debias:  # the first weights are gone, as from a mean over what was seen
        weights = torch.tensor([0.9 ** (30 - n) for n in range(1, 31)])
        mean = (weights * torch.tensor(values)).sum() / weights.sum()
        assert ema.average[0].weight[0, 0].item() == pytest.approx(mean.item(), rel=1e-4)
    again = Ema(net(), 0.9, debias=debias)
    again.load_state_dict(ema.state_dict())
    again.update(model)
    ema.update(model)
    ours, theirs = again.average.state_dict(), ema.average.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    with pytest.raises(OpsinError, match="decay"):
        Ema(model, 1.0)


# --- clipping, norms, freezing --------------------------------------------------------------------------------------


def test_clipping():
    model = net()
    for p in model.parameters():
        p.grad = torch.full_like(p, 10.0)
    value = copy.deepcopy(model)
    for a, b in zip(value.parameters(), model.parameters(), strict=True):
        a.grad = b.grad.clone()
    make_clip(1.0, "norm")(model)
    assert nn.utils.get_total_norm([p.grad for p in model.parameters()]).item() == pytest.approx(1.0, rel=1e-4)
    make_clip(0.5, "value")(value)
    assert max(p.grad.max().item() for p in value.parameters()) == 0.5
    assert make_clip(None) is None
    for limit, mode, said in ((1.0, "nrom", "Did you mean norm"), (0.0, "norm", "above 0")):
        with pytest.raises(OpsinError, match=said):
            make_clip(limit, mode)


def test_adaptive_clipping_goes_by_the_weights_of_each_unit():
    model = opsin.create_model("test_resnet", num_classes=3)
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 5
    head = model.fc.weight.grad.clone()
    small = model.conv1[0].weight
    with torch.no_grad():
        small.grad[0] *= 1e-6
    kept = small.grad[0].clone()
    make_clip(0.01, "agc")(model)
    length = small.grad.flatten(1).norm(dim=1)
    assert torch.allclose(length[1:], 0.01 * small.flatten(1).norm(dim=1)[1:], rtol=1e-3)
    assert torch.equal(small.grad[0], kept)  # what is short enough stays
    assert torch.equal(model.fc.weight.grad, head)
    p = nn.Linear(2, 2)
    p.weight.grad = torch.ones(2, 2)
    with torch.no_grad():
        p.weight.zero_()
    adaptive_clip_(p, 1.0, eps=0.5)
    assert p.weight.grad.norm(dim=1).tolist() == pytest.approx([0.5, 0.5])


def test_split_norms():
    model = split_batch_norm(net(), 3).train()
    assert isinstance(model[1], SplitBatchNorm)
    x = torch.cat([torch.randn(8, 3), torch.randn(8, 3) * 5 + 3, torch.randn(8, 3) - 9])
    out = model(x)
    for part in out.chunk(3):
        assert torch.allclose(part.mean(0), torch.zeros(4), atol=1e-5)
    assert not torch.allclose(model[1].main.running_mean, model[1].aux[0].running_mean)
    plain = net().eval()
    plain[1].load_state_dict(model[1].main.state_dict())
    assert torch.equal(model.eval()(x), plain(x))
    with pytest.raises(OpsinError, match="cannot be split in 3"):
        model.train()(x[:4])
    with pytest.raises(OpsinError, match="at least 2"):
        split_batch_norm(net(), 1)


def test_stages_are_set_free_from_the_head_on():
    assert [frozen_stages(5, -1, 2, epoch) for epoch in range(0, 12, 2)] == [5, 4, 3, 2, 1, 0]
    assert frozen_stages(5, 3, 0, 100) == 3
    assert frozen_stages(5, 2, 1, 9) == 0


# --- directory ------------------------------------------------------------------------------------------------------


def test_a_directory_belongs_to_one_run(tmp_path):
    first, second = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "run")
    first.open()
    program = f"from opsin.train.checkpoint import RunDirectory; RunDirectory({str(tmp_path / 'run')!r}).open()"
    assert "is in use by another run" in Started(program).communicate()[1]
    first.close()
    second.open()
    second.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_data_workers_do_not_hold_the_directory_of_a_killed_run(tmp_path):
    program = f"""
import os, pathlib, signal, time
from opsin.train.checkpoint import RunDirectory
run = RunDirectory({str(tmp_path / "run")!r})
run.open()
if worker := os.fork():
    pathlib.Path({str(tmp_path / "worker")!r}).write_text(str(worker))
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""
    assert Started(program).wait() == -signal.SIGKILL
    worker = int((tmp_path / "worker").read_text())
    run = RunDirectory(tmp_path / "run")
    try:
        os.kill(worker, 0)  # it lives
        run.open()
    finally:
        os.kill(worker, signal.SIGKILL)
    run.close()


def test_states_and_logs(tmp_path):
    run = RunDirectory(tmp_path)
    run.open()
    assert run.load() is None
    run.save({"a": torch.ones(2), "b": [1, None, "x"]})
    assert run.load()["b"] == [1, None, "x"]
    for update in range(5):
        run.add_log({"update": update, "loss": 1.0})
    with run.log.open("a") as file:
        file.write('{"update": 5, "lo')  # killed while writing
    run.cut_log(3)
    assert [row["update"] for row in run.read_log()] == [0, 1, 2]
    run.write_history([{"epoch": 0, "loss": 1.5}, {"epoch": 1, "loss": 1.0, "ema": 2}])
    assert run.history.read_text() == "epoch,loss,ema\n0,1.5,\n1,1.0,2\n"
    run.write_history([{"epoch": 0, "loss": math.nan}])
    assert run.history_lines.read_text() == '{"epoch": 0, "loss": null}\n'
    run.last.write_bytes(b"damaged")
    with pytest.raises(OpsinError, match="--overwrite begins anew"):
        run.load()
    run.open(overwrite=True)
    assert run.load() is None
    assert not run.log.exists()
    run.close()


def test_a_full_disk_leaves_the_old_state(tmp_path):
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=False).returncode
    ):
        pytest.skip("a small file system cannot be mounted here")
    try:
        run = RunDirectory(tmp_path)
        run.open()
        run.save({"a": torch.ones(1000)})
        with pytest.raises(OpsinError, match=r"last\.pt cannot be written \(No space left on device\).* unharmed"):
            run.save({"a": torch.ones(1_000_000)})
        assert len(run.load()["a"]) == 1000
        assert not list(Path(tmp_path).glob(".*part*"))
        run.close()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


# --- world ----------------------------------------------------------------------------------------------------------


def test_a_process_on_its_own():
    with connect("cpu") as world:
        assert (world.rank, world.size, world.first) == (0, 1, True)
        assert world.gather("x") == ["x"]
        assert world.any(True)
        assert world.share(lambda: 3) == 3


def test_any_error_of_the_first_process_reaches_all(monkeypatch, tmp_path):
    sent = []

    def broadcast(box, src):
        sent.append(list(box))
        box[:] = sent[0]

    monkeypatch.setattr("torch.distributed.broadcast_object_list", broadcast)
    monkeypatch.setattr("torch.distributed.barrier", lambda: None)
    for rank, error in ((0, FileNotFoundError), (1, OpsinError)):
        with pytest.raises(error, match="No such file"):
            World(torch.device("cpu"), rank, 2).share((tmp_path / "nothing").read_text)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 of WORLD_SIZE=2"),
        ({"SLURM_PROCID": "x", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}, "no numbers: SLURM_PROCID=x"),
        ({"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_RANK=5"),
    ],
)
def test_launchers_that_contradict_themselves(monkeypatch, variables, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OpsinError, match=said), connect("cpu"):
        pass


def test_devices_that_are_not_there():
    for name, said in (
        ("gpu", "no device 'gpu'"),
        ("cuda", "torch finds no GPU") if not torch.cuda.is_available() else ("x", "no device"),
    ):
        with pytest.raises(OpsinError, match=said), connect(name):
            pass


def test_random_states_come_back():
    import random

    import numpy as np

    seed_everything(3)
    state = get_random_state()
    draw = lambda: (random.random(), np.random.rand(), torch.rand(1).item())  # noqa: E731
    first = draw()
    set_random_state(state)
    assert draw() == first
    seed_everything(3, rank=1)
    assert draw() != first
    seed_everything(3, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    seed_everything(3)
    assert not torch.are_deterministic_algorithms_enabled()


def test_yaml_is_plain(tmp_path):
    save_config(TrainConfig(), tmp_path / "c.yaml")
    assert yaml.safe_load((tmp_path / "c.yaml").read_text())["augment"]["ratio"] == [0.75, 4 / 3]
