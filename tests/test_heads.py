"""Several heads: columns of labels of several kinds, learnt, judged and predicted side by side."""

import csv
import json
import re

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from runs import finish, start

import opsin
from opsin.cli import main
from opsin.data.labels import TargetScale
from opsin.data.readers import Head, align_heads, in_words, open_reader
from opsin.errors import OpsinError
from opsin.inference.predictor import Predictor
from opsin.loss import create_loss
from opsin.train.build import build_loaders, build_model, open_sets, preprocess_of
from opsin.train.config import from_dict
from opsin.train.distributed import World
from opsin.train.heads import HeadsTask
from opsin.train.metrics import Metrics
from opsin.train.task import Task

COLUMNS = ("colour", "shade", "tags")
HEADS = (
    Head(name="colour", task="single", classes=("blue", "red")),
    Head(name="shade", task="regression", scale=TargetScale((100.0,), (50.0,))),
    Head(name="tags", task="multi", classes=("dark", "light", "warm")),
)
NAN = float("nan")
ROWS = torch.tensor([[1, 150, 1, 0, 0], [NAN, 50, 0, 1, 1], [0, NAN, NAN, NAN, NAN]])
WORLD = World(torch.device("cpu"))


def write_list(root):
    """Red and blue pictures of different shades, of which every fifth has no colour written down."""
    rng = np.random.default_rng(0)
    rows = ["path,colour,shade,tags"]
    for i in range(60):
        base, red = int(rng.integers(30, 180)), i % 3 > 0
        pixels = rng.integers(0, 30, (24, 24, 3), dtype=np.uint8)
        pixels[..., 0 if red else 2] += base
        Image.fromarray(pixels).save(root / f"{i}.png")
        colour = ("red" if red else "blue") if i % 5 else ""
        rows.append(f"{i}.png,{colour},{base + 0.5},{'dark' if base < 100 else 'light'}{';warm' if red else ''}")
    (root / "list.csv").write_text("\n".join(rows))
    return root / "list.csv"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_list(tmp_path_factory.mktemp("pictures"))


def settings(pictures, **groups):
    values = {
        "data": {"data": str(pictures), "target": list(COLUMNS), "batch_size": 8, "workers": 0},
        "model": {"model": "test_resnet", "img_size": 32},
        "augment": {"color_jitter": None},
        "optim": {"lr": 0.01},
        "schedule": {"epochs": 8, "warmup_epochs": 0.0},
        "run": {"output": str(pictures.parent / "run"), "device": "cpu", "overwrite": True},
    }
    return from_dict({name: part | groups.get(name, {}) for name, part in {"loss": {}, **values}.items()})


@pytest.fixture(scope="module")
def best(pictures):
    out = pictures.parent / "run"
    words = ["--model", "test_resnet", "--img-size", "32", "--batch-size", "8", "--workers", "0", "--lr", "0.01"]
    words += ["--epochs", "8", "--warmup-epochs", "0", "--color-jitter", "None", "--output", str(out)]
    assert main(["train", str(pictures), "--target", *COLUMNS, *words]) == 0
    return out / "best"


# --- readers --------------------------------------------------------------------------------------------------------


def test_columns_of_several_kinds_are_heads(pictures):
    reader = open_reader(pictures, target=COLUMNS)
    assert (reader.task, reader.classes) == ("heads", None)
    assert [(h.name, h.task, h.classes, h.outputs, h.columns) for h in reader.heads] == [
        ("colour", "single", ("blue", "red"), 2, 1),
        ("shade", "regression", None, 1, 1),
        ("tags", "multi", ("dark", "light", "warm"), 3, 3),
    ]
    assert reader.targets.shape == (60, 5)
    assert np.isnan(reader.targets[::5, 0]).all()
    assert not np.isnan(reader.targets[1:5]).any()
    assert reader.target(2)[0] == 1
    assert in_words(reader.heads, reader.target(1))[0] == "colour: red"
    assert len(in_words(reader.heads, reader.target(0))) == 2  # the colour is not known


def test_columns_of_numbers_alone_stay_one_task(pictures, tmp_path):
    (tmp_path / "list.csv").write_text(f"path,a,b\n{pictures.parent}/1.png,1,2\n{pictures.parent}/2.png,3,4\n")
    assert open_reader(tmp_path / "list.csv", target=["a", "b"]).task == "regression"
    forced = open_reader(tmp_path / "list.csv", target=["a", "b"], task="heads")
    assert [(head.task, head.classes) for head in forced.heads] == [("single", ("1", "3")), ("single", ("2", "4"))]


def test_a_dataset_of_the_library(tmp_path):
    names = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({"image": datasets.Image(), "animal": names, "weight": datasets.Value("float32")})
    image = Image.new("RGB", (4, 4))
    rows = {"image": [image] * 3, "animal": [0, 1, 1], "weight": [1.5, 2.5, 3.5]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    reader = open_reader(f"hf:{tmp_path / 'set'}", target=["animal", "weight"])
    assert [head.labels for head in reader.heads] == [["animal: cat", "animal: dog"], ["weight"]]
    assert reader.targets.tolist() == [[0, 1.5], [1, 2.5], [1, 3.5]]
    assert reader[1].target == (1.0, 2.5)
    with pytest.raises(OpsinError, match="a stream has one column of labels"):
        open_reader(f"hfids:{tmp_path / 'set'}", target=["animal", "weight"])


def test_a_part_has_both_classes_of_each_head(pictures):
    parts = [open_reader(pictures, target=COLUMNS, split=part, holdout=0.2) for part in ("train", "validation")]
    assert sum(map(len, parts)) == 60
    for part in parts:
        assert set(part.targets[:, 0][~np.isnan(part.targets[:, 0])]) == {0, 1}
        assert part.heads == open_reader(pictures, target=COLUMNS).heads


def test_classes_of_another_list_are_found_by_name(pictures, tmp_path):
    (tmp_path / "other.csv").write_text(f"path,tags,colour\n{pictures.parent}/1.png,light|dark,red\n")
    reader = open_reader(tmp_path / "other.csv", target=["tags", "colour"], task="heads")
    found = align_heads(reader, HEADS, owner="the model")
    assert np.array_equal(found.targets, [[1, NAN, 1, 1, 0]], equal_nan=True)  # warm is not there; nobody said a shade
    (tmp_path / "other.csv").write_text(f"path,tags,colour\n{pictures.parent}/1.png,light|dark,green\n")
    strange = open_reader(tmp_path / "other.csv", target=["tags", "colour"], task="heads")
    with pytest.raises(OpsinError, match="no label for 1 of the 1 classes of colour .*green"):
        align_heads(strange, HEADS, owner="the model")
    with pytest.raises(OpsinError, match="has no head 'tags'"):
        align_heads(strange, HEADS[:2], owner="the model")
    with pytest.raises(OpsinError, match=r"colour is one label, but 1 numbers"):
        align_heads(strange, (Head(name="colour", task="regression"), HEADS[2]), owner="the model")


def test_errors_of_lists(pictures, tmp_path):
    with pytest.raises(OpsinError, match="a class_map numbers the classes of one column"):
        open_reader(pictures, target=COLUMNS, class_map=["red", "blue"])
    (tmp_path / "list.csv").write_text(f"path,a,b\n{pictures.parent}/1.png,,x\n")
    with pytest.raises(OpsinError, match="column a is empty"):
        open_reader(tmp_path / "list.csv", target=["a", "b"])
    (tmp_path / "list.csv").write_text(f"path,a,b\n{pictures.parent}/1.png,y,x\n{pictures.parent}/2.png,y,z\n")
    with pytest.raises(OpsinError, match="at least two classes of a"):
        open_reader(tmp_path / "list.csv", target=["a", "b"]).check_trainable()


# --- the task -------------------------------------------------------------------------------------------------------


def test_the_loss_adds_up_what_is_known():
    task = HeadsTask.of_model(HEADS)
    torch.manual_seed(0)
    outputs = torch.randn(3, 6, requires_grad=True)
    single, multi, mse = (create_loss("auto", task=kind) for kind in ("single", "multi", "regression"))
    wanted = (
        single(outputs[[0, 2], :2], torch.tensor([1, 0])) * 2 / 3
        + mse(outputs[:2, 2:3], torch.tensor([[1.0], [-1.0]])) * 2 / 3
        + multi(outputs[:2, 3:], ROWS[:2, 2:]) * 2 / 3
    )
    found = task.eval_loss(outputs, ROWS)
    assert torch.allclose(found, wanted)
    found.backward()
    assert outputs.grad[1, :2].abs().sum() == 0  # no colour there, nothing to learn about it
    assert outputs.grad[2, 2:].abs().sum() == 0
    nothing = task.eval_loss(outputs, torch.full((3, 5), NAN))
    assert nothing.item() == 0
    assert nothing.requires_grad
    halves = [task.eval_loss(outputs[:1], ROWS[:1]), task.eval_loss(outputs[1:], ROWS[1:])]
    assert torch.allclose((halves[0] + 2 * halves[1]) / 3, found)  # however the batch is divided


def test_scores_are_those_of_each_head_alone():
    task = HeadsTask.of_model(HEADS)
    torch.manual_seed(0)
    outputs, metrics = torch.randn(3, 6), task.metrics()
    metrics.update(outputs[:2], ROWS[:2])
    metrics.update(outputs[2:], ROWS[2:])
    found = metrics.compute()
    alone = Metrics("single", 2)
    alone.update(outputs[[0, 2], :2], torch.tensor([1, 0]))
    assert {k: v for k, v in found.items() if k.startswith("colour")} == {
        f"colour/{k}": v for k, v in alone.compute().items()
    }
    said = outputs[:2, 2] * 50 + 100
    assert found["shade/mae"] == pytest.approx((said - torch.tensor([150.0, 50.0])).abs().mean().item())
    assert set(found) == set(metrics.names)
    empty = task.metrics()
    empty.update(outputs[2:], ROWS[2:])
    assert not any(name.startswith(("shade", "tags")) for name in empty.compute())


def test_shares_of_mixed_pictures():
    task = HeadsTask.of_model(HEADS)
    shares = task.shares(ROWS)
    wanted = [[0, 1, 150, 1, 0, 0], [NAN, NAN, 50, 0, 1, 1], [1, 0, *[NAN] * 4]]
    assert torch.allclose(shares, torch.tensor(wanted), equal_nan=True)
    torch.manual_seed(0)
    outputs = torch.randn(3, 6)
    assert torch.allclose(task.eval_loss(outputs, task.shares(ROWS)), task.eval_loss(outputs, ROWS))


def learning(pictures, **loss):
    config = settings(pictures, loss=loss)
    return HeadsTask.learning(open_sets(config)[0], config)


def test_settings_act_on_the_heads_that_they_fit(pictures):
    torch.manual_seed(0)
    outputs, rows = torch.randn(3, 6), ROWS
    plain = learning(pictures)
    assert plain.heads[1].scale.mean[0] == pytest.approx(plain.tasks[1].scale.mean[0])
    base = plain.train_loss(outputs, rows)
    changed = {
        "smoothing": learning(pictures, smoothing=0.2),
        "loss": learning(pictures, loss="focal"),
        "loss_args": learning(pictures, loss="focal", loss_args={"gamma": 5.0}),
        "class_weights": learning(pictures, class_weights=1.0),
        "head_weights": learning(pictures, head_weights={"shade": 3.0}),
    }
    losses = {name: task.train_loss(outputs, rows).item() for name, task in changed.items()}
    assert len({base.item(), *losses.values()}) == 6
    parts = [
        loss(p.outputs, p.targets) for p, loss in zip(plain.parts(outputs, rows), plain.train_loss.losses, strict=True)
    ]
    assert losses["head_weights"] == pytest.approx(base.item() + 2 * parts[1].item() * 2 / 3, rel=1e-5)
    assert [type(loss).__name__ for loss in changed["loss"].train_loss.losses] == ["FocalLoss", "MSELoss", "FocalLoss"]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"loss": {"head_weights": {"colr": 1.0}}}, "no head 'colr'"),
        ({"loss": {"head_weights": {"colour": "much"}}}, "must be a number of at least 0, not 'much'"),
        (
            {"loss": {"loss": "huber"}, "data": {"target": ["colour", "tags"]}},
            "the loss huber is for none of the heads",
        ),
        ({"loss": {"loss_args": {"gamma": 1.0}}}, "loss_args belong to a loss"),
        ({"loss": {"class_weights": 1.0}, "data": {"target": ["shade", "tags"]}}, "which none of the heads has"),
        ({"augment": {"aug_splits": 2}}, "not of several heads"),
        ({"run": {"metric": "top1"}}, "there are: loss, colour/top1"),
        ({"loss": {"task": "single"}}, "one label a picture comes from one column"),
        ({"data": {"target": ["colour", "shaed"]}}, "no column 'shaed'. Did you mean shade"),
    ],
)
def test_settings_that_fit_no_head(pictures, groups, message):
    config = settings(pictures, **groups)
    with pytest.raises(OpsinError, match=message):
        Task.of(open_sets(config)[0], config)


def test_mixing_and_numbers_do_not_go_together_unasked(pictures):
    config = settings(pictures, data={"target": ["shade"]}, augment={"mixup": 0.2})
    with pytest.raises(OpsinError, match="for classes, not for regression"):
        Task.of(open_sets(config)[0], config)


def test_mixed_batches_are_learnt_from(pictures):
    config = settings(pictures, augment={"mixup": 0.4, "color_jitter": None}, loss={"smoothing": 0.1})
    train, judge = open_sets(config)
    task = Task.of(train, config)
    model = build_model(config, train, task)
    loader, _ = build_loaders(config, WORLD, train, judge, *[preprocess_of(config, model, train)] * 2, task)
    images, targets = next(iter(loader))
    assert targets.shape == (8, 6)
    shares = targets[:, :2]
    known = ~shares.isnan().any(1)
    assert torch.allclose(shares[known].sum(1), torch.ones(int(known.sum())))
    assert ((shares[known] > 0) & (shares[known] < 1)).any()  # mixed, and left to the loss to be smoothed
    assert [getattr(one.train_loss, "smoothing", 0) for one in task.tasks] == [0.1, 0, 0.1]
    task.train_loss(model(images), targets).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


# --- from a run to answers --------------------------------------------------------------------------------------------


def test_a_run_learns_all_heads(best):
    history = list(csv.DictReader((best.parent / "history.csv").open()))
    last = history[-1]
    assert float(last["colour/top1"]) >= 0.8
    assert float(last["shade/mae"]) < 40  # shades are 30 to 180
    assert float(last["tags/mAP"]) > 0.7
    assert float(min(history, key=lambda row: float(row["loss"]))["loss"]) < float(history[0]["loss"])


def test_the_report_has_a_chapter_a_head(best):
    page = (best.parent / "report.html").read_text()
    wanted = ["colour: Confusion matrix", "colour: Calibration", "shade: Predictions", "tags: Class by class"]
    assert all(title in page for title in wanted)
    assert "tags: Confusion matrix" not in page
    assert "the heads colour, shade, tags" in page
    assert re.search(r"shade: [\d.]+<br>tags: <bdi>(dark|light)", page)  # what training sees, in words


def test_two_processes_learn_what_one_does(pictures, tmp_path):
    """However the pictures without a label are spread over them. A model without batch norm."""
    words = ["--target", *COLUMNS, "--model", "test_vit", "--img-size", "32", "--epochs", "2", "--warmup-epochs", "0"]
    histories = []
    for ranks, batch in ((1, "8"), (2, "4")):
        out = tmp_path / str(ranks)
        finish(start(pictures, out, *words, "--batch-size", batch, "--workers", "0", ranks=ranks))
        histories.append(list(csv.DictReader((out / "history.csv").open())))
    for one, two in zip(*histories, strict=True):
        for name in ("train_loss", "loss", "shade/mae", "tags/mAP", "colour/auroc"):
            assert float(one[name]) == pytest.approx(float(two[name]), rel=1e-3), name


def test_the_artefact_answers_for_each_head(best, pictures):
    predictor = opsin.load(best, device="cpu")
    assert [head.name for head in predictor.heads] == list(COLUMNS)
    found = predictor.predict(pictures.parent / "3.png")
    assert list(found.heads) == list(COLUMNS)
    assert found.labels == ()
    assert found.values is None
    assert found.heads["colour"].labels[0].label == "blue"
    with torch.inference_mode():
        out = predictor.model(predictor.preprocess(Image.open(pictures.parent / "3.png"))[None])[0]
    scale = predictor.heads[1].scale
    assert found.heads["shade"].values[0] == pytest.approx(float(out[2]) * scale.std[0] + scale.mean[0], rel=1e-4)
    assert {s.label for s in found.heads["tags"].labels} == {
        name for name, value in zip(("dark", "light", "warm"), out[3:], strict=True) if value > 0
    }
    assert sum(s.probability for s in found.heads["colour"].labels) == pytest.approx(1)
    for ask in (predictor.probabilities, predictor.values):
        with pytest.raises(OpsinError, match="predict"):
            ask(torch.zeros(1, 3, 32, 32))
    config = json.loads((best / "config.json").read_text())
    assert config["label_names"][:3] == ["colour: blue", "colour: red", "shade"]
    assert config["num_classes"] == 6


def test_answers_written_to_files(best, pictures, tmp_path, capsys):
    photos = [str(pictures.parent / f"{i}.png") for i in (3, 4)]
    assert main(["predict", *photos, "--model", str(best), "--json", "--output", str(tmp_path / "a.json")]) == 0
    first = json.loads((tmp_path / "a.json").read_text())[0]
    assert set(first) == {"source", "heads", "error"}
    assert first["heads"]["colour"]["labels"][0]["label"] == "blue"
    assert list(first["heads"]["shade"]) == ["values"]
    assert main(["predict", *photos, "--model", str(best), "--output", str(tmp_path / "a.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert {row["head"] for row in rows} == set(COLUMNS)
    assert float(next(row["value"] for row in rows if row["head"] == "shade")) == pytest.approx(
        first["heads"]["shade"]["values"][0], rel=1e-5
    )
    capsys.readouterr()
    assert main(["predict", *photos, "--model", str(best), "--sheet", str(tmp_path / "sheet.png")]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert "3.png: colour: blue" in line
    assert "; shade: " in line
    assert Image.open(tmp_path / "sheet.png").width > 200


def test_validate_a_model_of_several_heads(best, pictures, capsys):
    words = ["validate", str(pictures), "--model", str(best), "--workers", "0", "--json"]
    assert main([*words, "--target", *COLUMNS]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert row["images"] == 60
    assert row["classes"] == 6
    assert row["colour/top1"] > 0.8
    assert row["shade/mae"] < 40
    assert main([*words, "--target", "colour", "shade"]) == 0  # tags are not asked for
    row = json.loads(capsys.readouterr().out)[0]
    assert "tags/mAP" not in row
    assert row["colour/top1"] > 0.8
    assert main([*words[:-1], "--target", *COLUMNS]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [word for word in table[0].split() if "/" in word] == ["colour/top1", "shade/mae", "tags/mAP"]
    assert main([*words, "--target", "shade"]) == 1
    assert "has the heads colour, shade, tags: name their columns" in capsys.readouterr().err


def test_opsin_data_counts_labels_of_each_head(pictures, tmp_path, capsys):
    words = ["data", str(pictures), "--target", *COLUMNS, "--json", "--output", str(tmp_path / "sheet.png")]
    main(words)
    splits = json.loads(capsys.readouterr().out)["splits"]
    total = {}
    for part in splits.values():
        for name, count in part["classes"].items():
            total[name] = total.get(name, 0) + count
    assert (total["colour: red"], total["colour: blue"]) == (32, 16)
    assert "shade" not in total
    assert total["tags: warm"] == 40


def test_heads_that_do_not_fit_a_model(tmp_path):
    model = opsin.create_model("test_resnet", num_classes=6)
    with pytest.raises(OpsinError, match=r"2 \(colour\) \+ 1 \(shade\) for 6 outputs"):
        Predictor(model, task="heads", heads=HEADS[:2])
    with pytest.raises(OpsinError, match="no heads for 6 outputs"):
        Predictor(model, task="heads")
    with pytest.raises(OpsinError, match="belong together"):
        opsin.save(model, tmp_path / "x", task="heads")
    assert Head.from_dict(json.loads(json.dumps(HEADS[1].to_dict()))) == HEADS[1]
    assert Head.from_dict(json.loads(json.dumps(HEADS[2].to_dict()))) == HEADS[2]
