"""What settings can be, what they ask of each other, and what a recipe's own settings give way to."""

import pytest
import torch
import yaml
from runs import dark_and_light

import opsin
from opsin.cli import main
from opsin.cli.train import parse
from opsin.errors import OpsinError
from opsin.train import build_run
from opsin.train.config import list_recipes, load_recipe
from opsin.train.config.rules import flat, settle
from opsin.train.distributed import World

SMALL = ["--model", "test_resnet", "--img-size", "32", "--batch-size", "8", "--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return dark_and_light(tmp_path_factory.mktemp("photos"), 18)


@pytest.fixture(scope="module")
def numbers(photos):
    rows = [f"{photos}/{kind}/{i}.png,{i * 2.5}" for kind in ("dark", "light") for i in range(18)]
    path = photos.parent / f"{photos.name}.csv"
    path.write_text("\n".join(["path,size", *rows]))
    return path


# --- what only a recipe said gives way ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "task", "wanted"),
    [
        ([], "regression", {"smoothing": 0.0, "warmup_epochs": 2.0}),
        ([], "single", {"smoothing": 0.05}),
        (["--smoothing", "0.05"], "regression", {"smoothing": 0.05}),
        (["--recipe", "resnet-strikes-back-a1"], "regression", {"mixup": 0.0, "cutmix": 0.0, "loss": "auto"}),
        (["--recipe", "convnext"], "regression", {"metric": None, "ema": True}),
        (["--recipe", "convnext", "--no-ema"], None, {"metric": "top1", "ema_decay": 0.9998}),
        (["--recipe", "convnext", "--ema"], None, {"metric": "ema_top1", "ema_decay": 0.9999}),
        (["--recipe", "finetune"], None, {"pretrained": True}),
        (["--pretrained"], None, {"pretrained": True, "layer_decay": 0.8}),
        (["--recipe", "finetune", "--no-pretrained"], None, {"pretrained": False}),
        (["--checkpoint", "x"], None, {"pretrained": False, "checkpoint": "x"}),
        (["--epochs", "1"], None, {"warmup_epochs": 0.33}),
        (["--epochs", "2"], None, {"warmup_epochs": 0.67}),
        (["--epochs", "6"], None, {"warmup_epochs": 2.0}),
        (["--epochs=4", "--warmup-epochs=2"], None, {"warmup_epochs": 2.0}),
        (["--sched", "onecycle"], None, {"warmup_epochs": 0.0}),
    ],
)
def test_what_only_a_recipe_said_gives_way(words, task, wanted):
    config, _ = settle(parse(["x", *words])[0], task)
    assert {name: flat(config)[name] for name in wanted} == wanted
    config.check()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--checkpoint", "x", "--pretrained"], "both say where the weights"),
        (["--epochs", "2", "--warmup-epochs", "2"], "warmup_epochs 2.0 leaves nothing of 2"),
        (["--clip-mode", "agc"], "clip_mode does nothing without clip_grad"),
        (["--unfreeze-epochs", "1"], "unfreeze_epochs does nothing without freeze"),
        (["--ema-decay", "0.9"], "ema_decay does nothing without ema"),
        (["--ema-debias"], "ema_debias does nothing without ema"),
        (["--recipe", "convnext", "--no-ema", "--ema-decay", "0.99"], "ema_decay does nothing without ema"),
        (["--remode", "rand"], "remode does nothing without reprob"),
        (["--mixup-mode", "elem"], "mixup_mode does nothing without mixup or cutmix"),
    ],
)
def test_what_a_person_said_is_refused(words, said):
    with pytest.raises(OpsinError, match=said):
        settle(parse(["x", *words])[0])[0].check()


def test_every_recipe_settles_as_it_is():
    for name in list_recipes():
        config, said = settle(load_recipe(name))
        assert (flat(config), said) == (flat(load_recipe(name)), [])
        config.check()


def test_regression_with_the_default_recipe(numbers, tmp_path, capsys):
    words = ["train", str(numbers), "--target", "size", *SMALL, "--epochs", "1", "--output", str(tmp_path / "run")]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "smoothing 0.05 becomes 0.0" in said
    assert "warmup_epochs 2.0 becomes 0.33" in said
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert kept["loss"]["smoothing"] == 0
    assert main(words) == 0  # the same words are the same run
    assert main([*words[:-1], str(tmp_path / "no"), "--smoothing", "0.05"]) == 2
    assert "smoothing are for classes" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_a_recipe_in_python_gives_way_too(numbers, tmp_path):
    config = load_recipe("small-from-scratch")
    config.data.data, config.data.target, config.data.workers = str(numbers), ("size",), 0
    config.model.model, config.model.img_size, config.schedule.epochs = "test_resnet", 32, 1
    config.run.output = tmp_path / "run"
    with pytest.warns(UserWarning, match="smoothing 0.05 becomes 0.0"):
        run = build_run(config, World(torch.device("cpu")))
    run.directory.close()
    config.loss.smoothing, config.run.output = 0.1, tmp_path / "no"
    with pytest.raises(OpsinError, match="smoothing are for classes"), pytest.warns(UserWarning, match="warmup"):
        build_run(config, World(torch.device("cpu")))


# --- recipes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], {"loss": "bce", "loss_args": {"target_threshold": 0.2}}),
        (["--loss", "focal"], {"loss": "focal", "loss_args": {}}),
        (["--loss", "focal", "--loss-args", "gamma=1"], {"loss": "focal", "loss_args": {"gamma": 1.0}}),
    ],
)
def test_arguments_go_with_what_they_are_of(words, wanted):
    config, _ = settle(parse(["x", "--recipe", "resnet-strikes-back-a2", *words])[0])
    assert {name: flat(config)[name] for name in wanted} == wanted


def test_judged_at_another_size(photos, tmp_path, capsys):
    config = load_recipe("resnet-strikes-back-a3")
    assert (config.model.img_size, config.model.eval_img_size) == (160, 224)
    sizes = ["--eval-img-size", "48", "--epochs", "1", "--warmup-epochs", "0", "--output", str(tmp_path / "run")]
    assert main(["train", str(photos), *SMALL, "--dry-run", *sizes]) == 0
    assert "3x32x32, judged at 3x48x48" in capsys.readouterr().out
    assert main(["train", str(photos), *SMALL, *sizes]) == 0
    assert opsin.load(tmp_path / "run" / "best").preprocess.input_size == (3, 48, 48)
    capsys.readouterr()
    assert main(["train", str(photos), *SMALL, *sizes[:-1], str(tmp_path / "no"), "--model", "test_vit"]) == 2
    assert "test_vit is built for one size of pictures" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
    same = ["--eval-img-size", "32", "--model", "test_vit", "--dry-run"]
    assert main(["train", str(photos), *SMALL, *sizes, *same]) == 0


def test_the_loaders_have_their_sizes(photos, tmp_path):
    config, _ = parse([str(photos), *SMALL, "--eval-img-size", "48", "--output", str(tmp_path / "run")])
    run = build_run(config, World(torch.device("cpu")))
    try:
        assert next(iter(run.train_loader)).images.shape[2:] == (32, 32)
        assert next(iter(run.eval_loader)).images.shape[2:] == (48, 48)
    finally:
        run.directory.close()


def test_an_update_has_no_more_pictures_than_there_are(photos, tmp_path, capsys):
    for words, said in ((["--batch-size", "64"], "1 updates, 32 pictures each"), ([], "4 updates, 8 pictures each")):
        words = [*SMALL, "--epochs", "1", "--overwrite", "--output", str(tmp_path), *words]
        assert main(["train", str(photos), *words]) == 0
        assert said in capsys.readouterr().err
