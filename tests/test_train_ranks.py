"""Two processes that do not have the same: shares of unequal length, of pictures and of mistakes."""

import io
import json
import math
import re
import tarfile
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import Halt, train, two_ranks
from runs import finish, start

from opsin.cli import main
from opsin.errors import OpsinError
from opsin.train.build import build_run
from opsin.train.config import from_dict
from opsin.train.distributed import World
from opsin.train.loop import Callback, fit
from opsin.train.progress import Terminal
from opsin.train.report import Report


def photo(number):
    """Encoded noise; of odd numbers it is bright."""
    low = 140 if number % 2 else 40
    pixels = np.random.default_rng(number).integers(low, low + 80, (24, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def shard(path, numbers, damaged=()):
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            image = photo(number)
            for suffix, content in (("png", image[: 60 if number in damaged else None]), ("cls", b"%d" % (number % 2))):
                info = tarfile.TarInfo(f"{number:04d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def shards(root, train, validation, *, damaged=(), lengths=True):
    """Shards of so many samples each, and what lies beside them."""
    root.mkdir()
    number, splits = 0, {}
    for split, sizes in (("train", train), ("validation", validation)):
        names = [f"{split}-{i:02d}.tar" for i in range(len(sizes))]
        for name, size in zip(names, sizes, strict=True):
            shard(root / name, range(number, number + size), damaged)
            number += size
        splits[split] = {"filenames": names, "num_samples": sum(sizes)} if lengths else {"filenames": names}
    (root / "_info.json").write_text(json.dumps({"splits": splits}))
    (root / "classes.txt").write_text("dark\nlight\n")
    return root


ALONE = World(torch.device("cpu"))


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Of two ranks one has 6 batches of 8 and the other 3."""
    return shards(tmp_path_factory.mktemp("uneven") / "shards", [48, 24], [3])


def settings(where, output, **groups):
    data = {"data": f"wds:{where}", "class_map": str(where / "classes.txt")} if where.name == "shards" else {
        "data": str(where)
    }  # fmt: skip
    values = {
        "data": data | {"batch_size": 8, "workers": 0},
        "model": {"model": "test_resnet", "img_size": 32},
        "schedule": {"epochs": 2, "warmup_epochs": 0.5},
        "run": {"output": str(output), "device": "cpu", "log_every": 1},
    }
    return from_dict({key: values.get(key, {}) | groups.get(key, {}) for key in {**values, **groups}})


@pytest.fixture(scope="module")
def both():
    with two_ranks() as call:
        yield call


def message(call, *args):
    with pytest.raises(OpsinError) as caught:
        call(*args)
    return str(caught.value)


# --- the epoch ends for all -----------------------------------------------------------------------------------------


class Count(Callback):
    """What each rank learns from."""

    every_rank = True

    def __init__(self):
        self.groups = []

    def on_start(self, run):
        learn = run.learn

        def counted(batches):
            self.groups.append([len(batch.images) for batch in batches])
            return learn(batches)

        run.learn = counted


def halted(world, config, output, updates):
    """A run that is stopped after each of `updates`, and goes on."""
    config.run.output = output
    for update in updates:
        with pytest.raises(KeyboardInterrupt):
            train(config, world, [Halt(update)])
    return train(config, world)


def whole_and_halted(world, config, root, updates):
    config.run.output = root / "whole"
    count = Count()
    runs = [train(config, world, [count]), halted(world, config, root / "halted", updates)]
    plain = [[{k: v for k, v in row.items() if k != "seconds"} for row in run.history] for run in runs]
    states = [{k: getattr(v, "to_local", lambda v=v: v)() for k, v in run.model.state_dict().items()} for run in runs]
    return {
        "groups": count.groups,
        "loaders": [run.train_loader.state_dict() for run in runs],
        "same": plain[0] == plain[1] and all(torch.equal(states[0][key], states[1][key]) for key in states[0]),
        "updates": [run.update for run in runs],
        "pictures": [run.pictures for run in runs],
    }


@pytest.mark.parametrize("fsdp", [False, True])
def test_an_epoch_ends_for_all_when_one_rank_has_no_more(both, uneven, tmp_path, fsdp):
    """6 and 3 batches, two an update: one update of two, and one of a single batch, whichever rank has which shard."""
    config = settings(uneven, None, optim={"accumulate": 2}, run={"fsdp": fsdp}, data={"workers": 1})
    ranks = both(whole_and_halted, config, tmp_path, (2,) if fsdp else (1, 2, 3))
    for rank in ranks:
        assert rank["groups"] == [[8, 8], [8]] * 2
        assert rank["updates"] == [4, 4]
        assert rank["pictures"] == [48, 48]  # of both ranks
        assert rank["same"]
        for loader in rank["loaders"]:
            assert (loader["epoch"], loader["step"], loader["consumed"]) == (2, 0, [0])
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("whole", "halted")]
    assert logs[0] == logs[1]
    assert [json.loads(line)["epoch"] for line in logs[0].splitlines()] == [0, 0, 1, 1]


@pytest.mark.parametrize("update", [1, 3])
def test_a_last_update_that_is_smaller_is_not_the_next_epoch(uneven, tmp_path, update):
    """9 batches, four an update: an interruption after the third update is one at the end of the epoch."""
    config = settings(uneven, None, optim={"accumulate": 4})
    found = whole_and_halted(World(torch.device("cpu")), config, tmp_path, (update,))
    assert found["groups"] == [[8] * 4, [8] * 4, [8]] * 2
    assert found["updates"] == [6, 6]
    assert found["same"]


def learn_alone(world, config):
    count = Count()
    run = train(config, world, [count])
    return count.groups, run.pictures, run.skipped


def test_a_batch_that_nobody_can_read(both, tmp_path):
    """A batch of one: the rank whose picture is damaged has one batch less, and the other goes without its last."""
    for i in range(14):
        path = tmp_path / "photos" / ("light" if i % 2 else "dark") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo(i)[: 60 if i == 4 else None])
    config = settings(
        tmp_path / "photos", tmp_path / "run", data={"batch_size": 1, "holdout": 0.3}, schedule={"epochs": 1},
        model={"model": "test_vit"},
    )  # fmt: skip
    ranks = both(learn_alone, config)
    assert [skipped for _, _, skipped in both(learn_alone, config)] == [ranks[0][2]] * 2  # a run that had ended
    assert [groups for groups, _, _ in ranks] == [[[1]] * 4] * 2
    for _, pictures, skipped in ranks:
        assert pictures == 8  # of 10
        assert [name.rpartition("/")[2] for name in skipped] == ["04.png"]


def test_an_epoch_without_a_batch(both, tmp_path):
    root = shards(tmp_path / "shards", [40, 4], [3])
    config = settings(root, tmp_path / "run")
    for said in both(fails, config):
        assert re.search(
            r"shards/train-00.tar and 1 more: epoch 0 gave nothing to learn from: on some rank .* none of its 1 shares "
            r"of the stream .* fills a batch of 8; fewer --workers or a smaller --batch-size help",
            said,
        )
    alone = settings(root, tmp_path / "alone", data={"batch_size": 64})
    assert "epoch 0 gave nothing to learn from" in message(train, alone, ALONE)


def fails(world, config):
    return message(train, config, world)


# --- evaluation -----------------------------------------------------------------------------------------------------


def judge(world, config):
    report, terminal = Report(), Terminal(stream=io.StringIO())
    run = train(config, world, [report, terminal])
    return run.history, run.skipped, run.world.first and report.shown[0].count, terminal.console.file.getvalue()


def test_a_rank_without_anything_to_judge(both, tmp_path):
    """Of two shards the first is unreadable, so the first rank has nothing; the weights stay as they are."""
    root = shards(tmp_path / "shards", [8, 8], [4, 13], damaged=range(16, 20))
    still = {"model": {"model": "test_vit"}, "optim": {"lr": 0.0}, "schedule": {"warmup_lr": 0.0, "min_lr": 0.0}}
    ranks = both(judge, settings(root, tmp_path / "two", **still))
    history, skipped, count, said = judge(World(torch.device("cpu")), settings(root, tmp_path / "one", **still))
    assert count == ranks[0][2] == 13
    assert sorted(skipped) == sorted(ranks[0][1]) == sorted(ranks[1][1])
    assert len(skipped) == 4
    for text in (said, ranks[0][3]):
        assert "4 pictures could not be read, first: " in text
    assert ranks[1][3] == ""
    scores = [name for name in history[0] if name not in ("seconds", "train_loss")]
    assert len(scores) > 6
    for rows in (ranks[0][0], ranks[1][0]):
        for row, wanted in zip(rows, history, strict=True):
            assert [row[name] for name in scores] == pytest.approx([wanted[name] for name in scores], rel=1e-5)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """40 pictures of each of two classes; six of them are damaged."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(80):
        path = root / ("light" if i % 2 else "dark") / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(photo(i)[: 60 if i in (3, 4, 17, 30, 41, 62) else None])
    return root


def launched(photos, out, ranks, *more):
    args = ["--model", "test_vit", "--img-size", "32", "--epochs", "2", "--warmup-epochs", "1", "--workers", "0",
            "--holdout", "0.5", "--device", "cpu", *more]  # fmt: skip
    said = finish(start(photos, out, *args, "--batch-size", str(8 // ranks), ranks=ranks))
    return (out / "report.html").read_text(encoding="utf-8"), said[0]


def test_the_report_is_about_all_ranks(photos, tmp_path):
    """The same weights all the time, and pictures go to the ranks in turn: the report of two processes says what that
    of one says, and shows the same mistakes."""
    still = ("--lr", "0", "--warmup-lr", "0", "--min-lr", "0", "--ema", "--metric", "ema_loss")
    pages, said = zip(*(launched(photos, tmp_path / str(ranks), ranks, *still) for ranks in (1, 2)), strict=True)
    counts = [re.findall(r"(dark|light) taken for (dark|light): (\d+) of (\d+)", page) for page in pages]
    assert counts[0] == counts[1]
    unread = [set(re.findall(r"<td >([^<]+\.png)</td>", page)) for page in pages]
    assert len(unread[0]) == 6
    assert unread[0] == unread[1]
    judged = sum(int(cell[2]) for cell in counts[0])
    assert 34 <= judged < 40
    for page in pages:
        assert f"on {judged} pictures. A cell" in page
        assert "that the first process" not in page
        assert "Pictures that could not be read: 6" in page
    wrong = [re.findall(r'class="file" title="([^"]+)"', page) for page in pages]
    assert len(wrong[0]) == min(sum(int(n) for true, taken, n, _ in counts[0] if true != taken), 24) > 4
    assert wrong[0] == wrong[1]
    trained = [re.search(r"(\d+) an epoch</small>", page.split("pictures a second")[1])[1] for page in pages]
    assert int(trained[0]) == 40 - (6 - (40 - judged))
    assert trained[1] == trained[0]
    for text in said:
        assert "6 pictures could not be read, first: " in text


def test_pictures_a_second_of_all_ranks():
    run = SimpleNamespace(
        loss_count=48.0, world=World(torch.device("cpu"), 0, 2), clock=time.perf_counter() - 2.0,
        config=settings(SimpleNamespace(name=""), "", augment={"aug_splits": 3}),
    )  # fmt: skip
    terminal = Terminal(stream=io.StringIO())
    assert terminal.rate(run) == pytest.approx(16.0, rel=0.05)
    terminal.before = 24.0  # what a process before this one did
    assert terminal.rate(run) == pytest.approx(8.0, rel=0.05)


# --- streams of unknown length --------------------------------------------------------------------------------------


def test_a_stream_of_unknown_length(tmp_path, capsys):
    root = shards(tmp_path / "shards", [20, 20], [5], lengths=False)
    args = ["train", f"wds:{root}", "--class-map", str(root / "classes.txt"), "--model", "test_resnet", "--epochs", "2",
            "--warmup-epochs", "0", "--img-size", "32", "--batch-size", "8", "--workers", "0", "--device",
            "cpu"]  # fmt: skip
    out = ["--output", str(tmp_path / "run")]
    assert main([*args, *out]) == 2
    said = capsys.readouterr().err
    assert "shards/train-00.tar and 1 more: a stream of unknown length; --epoch-length N says how many samples" in said
    assert not (tmp_path / "run").exists()
    assert main([*args, *out, "--epoch-length", "0"]) == 2
    assert "epoch_length must be at least 1, not 0" in capsys.readouterr().err
    assert main([*args, *out, "--epoch-length", "40", "--dry-run"]) == 0
    assert "5 training and ? validation batches" in capsys.readouterr().out
    assert main([*args, *out, "--epoch-length", "40", "--log-every", "1"]) == 0
    assert "2 epochs of 5 updates" in capsys.readouterr().err
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(log) == 10
    assert log[-1]["lr"] == pytest.approx(1e-6)  # the end of the schedule


def test_length_of_what_knows_its_own(photos, uneven, tmp_path):
    said = message(build_run, settings(photos, tmp_path, data={"epoch_length": 9}), World(torch.device("cpu")))
    assert "epoch_length is for a stream of unknown length" in said
    run = train(settings(uneven, tmp_path, data={"epoch_length": 32}, schedule={"epochs": 1}), ALONE)
    assert run.updates_per_epoch == 4  # for the schedule
    assert run.update == 9  # the stream is not cut


# --- gradients that are no numbers ----------------------------------------------------------------------------------


class Spoil(Callback):
    """Makes the gradient of the last layer infinite in one update, while the loss is fine."""

    every_rank = True

    def __init__(self, update, value=math.inf):
        self.update, self.value = update, value

    def on_start(self, run):
        head = run.model.get_classifier()

        def spoil(module, args, output):
            if run.update == self.update and output.requires_grad:
                output.register_hook(self.spoiled)

        head.register_forward_hook(spoil)

    def spoiled(self, grad):
        grad = grad.clone()
        grad[0, 0] = self.value
        return grad


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_gradient_that_is_no_number_is_kept_and_stops(uneven, tmp_path, clip, value):
    config = settings(uneven, tmp_path, optim={"clip_grad": clip, "accumulate": 2})
    with pytest.raises(OpsinError, match=r"the gradient became infinite or no number in update 2 .*rank-0\.pt"):
        train(config, ALONE, [Spoil(2, value)])
    kept = torch.load(tmp_path / "failed-update-2-rank-0.pt", weights_only=True)
    assert [len(images) for images in kept["images"]] == [8, 8]
    assert [len(targets) for targets in kept["targets"]] == [8, 8]
    assert all(weight.isfinite().all() for weight in kept["model"].values())
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


def test_float16_leaves_such_a_step_out(uneven, tmp_path):
    config = settings(uneven, tmp_path, run={"amp": "float16"}, schedule={"epochs": 1})
    run = train(config, ALONE, [Spoil(2)])
    assert run.update == 9
    assert all(weight.isfinite().all() for weight in run.model.state_dict().values())
    assert run.scaler.get_scale() < 65536


def spoil_one_shard(world, config):
    """The first row of the last layer lies on the first rank alone; nothing else gets a gradient."""
    run = build_run(config, world, callbacks=[Spoil(0)])
    run.model.get_classifier().register_forward_pre_hook(lambda module, args: (args[0].detach(),))
    try:
        return message(fit, run)
    finally:
        run.directory.close()


def test_all_ranks_stop_when_one_has_a_bad_shard(both, uneven, tmp_path):
    for rank, said in enumerate(both(spoil_one_shard, settings(uneven, tmp_path, run={"fsdp": True}))):
        assert "the gradient became infinite or no number in update 0" in said
        kept = torch.load(tmp_path / f"failed-update-0-rank-{rank}.pt", weights_only=True)
        assert all(weight.isfinite().all() for weight in kept["model"].values())
