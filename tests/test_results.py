"""Files of results: rows of weights that have changed, and of several processes at a time."""

import json
import time
from multiprocessing import get_context

import pytest
import torch
from runs import dark_and_light

import opsin
from opsin.cli import _many, main
from opsin.cli._many import put_row, read_rows

KEY = ("model",)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return dark_and_light(tmp_path_factory.mktemp("photos"), 4)


def fill(path, name):
    def slow(*args):
        rows = read_rows(*args)
        time.sleep(0.02)
        return rows

    _many.read_rows = slow  # in this process alone
    for i in range(5):
        put_row(path, {"model": f"{name}{i}", "top1": 0.5}, KEY)


def test_two_processes_fill_one_file(tmp_path):
    path, context = tmp_path / "r.csv", get_context("fork")
    processes = [context.Process(target=fill, args=(path, name)) for name in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(row["model"] for row in read_rows(path, KEY)) == sorted(f"{n}{i}" for n in "ab" for i in range(5))


@pytest.mark.parametrize("how", ["saved", "checkpoint"])
def test_weights_that_have_changed_are_scored_again(photos, tmp_path, capsys, how):
    model = opsin.create_model("test_resnet", num_classes=2)
    place = tmp_path / "best"
    args = ["validate", str(photos), "--output", str(tmp_path / "r.csv"), "--img-size", "32", "--workers", "0"]
    if how == "saved":
        args += ["--model", str(place)]
    else:
        args += ["--model", "test_resnet", "--num-classes", "2", "--checkpoint", str(place)]

    def scores(bias):
        """Of weights that always say the one class or the other."""
        torch.nn.init.zeros_(model.fc.weight)
        model.fc.bias.data = torch.tensor(bias)
        if how == "saved":
            opsin.save(model, place, label_names=["dark", "light"])
        else:
            torch.save(model.state_dict(), place)
        return asked()

    def asked():
        assert main([*args, "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        return row["loss"], row["images_per_second"]

    first = scores([0.0, 0.0])
    assert asked() == first  # as the file has it
    second = scores([5.0, 0.0])
    assert first[0] == pytest.approx(0.6931, abs=1e-3)
    assert second[0] > 1
    assert asked() == second
    assert len(read_rows(tmp_path / "r.csv", KEY)) == 1
