"""Values that cannot be: one message, exit code 2, nothing written."""

from typing import Annotated

import pytest
from runs import dark_and_light

from opsin.bounds import Bounds, Count, Share, check_arguments
from opsin.cli import main
from opsin.errors import OpsinError
from opsin.train.config import from_dict, load_config, load_recipe

TRAIN = ["--model", "test_resnet", "--img-size", "32", "--batch-size", "8", "--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return dark_and_light(tmp_path_factory.mktemp("photos"), 8)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--workers -1", "workers must be at least 0, not -1"),
        ("--seed -1", "seed must be at least 0"),
        ("--lr -1", "lr must be at least 0, not -1.0"),
        ("--lr nan", "lr must be at least 0, not nan"),
        ("--lr inf", "lr must be at least 0, not inf"),
        ("--weight-decay -1", "weight_decay must be at least 0"),
        ("--freeze 99", "freeze 99: the model has 5 stages"),
        ("--freeze -7", "freeze must be at least -1, not -7"),
        ("--drop-rate 2", "drop_rate must be at least 0 and below 1, not 2.0"),
        ("--drop-path-rate 1.5", "drop_path_rate must be"),
        ("--log-every 0", "log_every must be at least 1"),
        ("--save-every -1", "save_every must be at least 0"),
        ("--in-chans 0", "in_chans must be at least 1"),
        ("--img-size 0", "img_size must be at least 1"),
        ("--device meta", "no device 'meta'"),
        ("--model test_vit --img-size 37", "test_vit does not take pictures of 3x37x37: "),
        ("--opt-args lr=3", "opt_args cannot set lr: it is a setting of its own"),
        ("--opt-args betas=0.9", "the optimizer adamw: betas must be a list of 2, not 0.9"),
        ("--opt-args eps=-1", "the optimizer adamw cannot be made with"),
        ("--opt lookahead_admw", "Did you mean lookahead_adamw"),
        ("--opt frobnicate", "The nearest of"),
        ("--loss-args smoothing=.3", "loss_args cannot set smoothing"),
        ("--loss focal --loss-args gamma=x", "the loss focal: gamma must be a number, not 'x'"),
        ("--model-args num_classes=4", "model_args cannot set num_classes: the data says it"),
        ("--model-args layers=x", "no model can be built with model_args layers='x'"),
        ("--reader-args split=x", "reader_args cannot set split: train_split and val_split says it"),
        ("--sched step --sched-args decay_updates=x", "decay_updates must be a whole number, not 'x'"),
        ("--sched-args cycles=1.5", "the schedule cosine: cycles must be a whole number, not 1.5"),
        ("--sched-args noise=0.5", "noise must be a list of 2, not 0.5"),
        ("--sched-args min_lr=0.5", "sched_args cannot set min_lr"),
        ("--sched-args patience=3", "patience is of the schedule plateau, not of cosine"),
        ("--sched plateau --sched-args patience=x", "patience must be a whole number"),
        ("--sched multistep --sched-args milestones=5", "milestones must be a list, not 5"),
        ("--patience -1", "patience must be at least 0"),
        ("--eval-batch-size 0", "eval_batch_size must be at least 1"),
        ("--repeats 0", "repeats must be at least 1"),
        ("--balance -1", "balance must be at least 0"),
        ("--class-weights -1", "class_weights must be at least 0"),
        ("--layer-decay 0", "layer_decay must be above 0 and at most 1"),
        ("--layer-decay 3", "layer_decay must be above 0 and at most 1"),
        ("--head-weights a=1", "head_weights are of several heads"),
        ("--metric ema_top1", "metric ema_top1 is a score of the average"),
    ],
)
def test_training(photos, tmp_path, capsys, words, said):
    run = tmp_path / "run"
    assert main(["train", str(photos), *TRAIN, "--epochs", "1", "--output", str(run), *words.split()]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if "the recipe's" not in line]
    assert said in told[0]
    assert len(told) == 1
    assert not run.exists()


def test_the_same_in_a_file_and_in_python(tmp_path):
    (tmp_path / "c.yaml").write_text("data: {repeats: 0}\noptim: {layer_decay: 3}\n")
    said = "repeats must be at least 1, not 0; layer_decay must be above 0 and at most 1, not 3.0"
    with pytest.raises(OpsinError, match=said):
        load_config(tmp_path / "c.yaml").check()
    config = load_recipe("small-from-scratch")
    config.optim.lr, config.data.workers = "fast", True
    with pytest.raises(OpsinError, match="workers must be a whole number, not True; lr must be a number, not 'fast'"):
        config.check()
    from_dict({"optim": {"layer_decay": 1}, "model": {"freeze": -1, "drop_rate": 0}}).check()  # the ends belong to it


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("schedule --steps-per-epoch 0", "steps_per_epoch must be at least 1"),
        ("schedule --epochs 0", "epochs must be at least 1"),
        ("schedule --lr -1", "lr must be at least 0"),
        ("schedule --lr nan", "lr must be at least 0"),
        ("schedule --plot /no/x.png", "there is no folder /no"),
        ("schedule step --options decay_updates=x", "decay_updates must be a whole number"),
        ("schedule multistep --options milestones=5", "milestones must be a list"),
        ("schedule --options noise=0.3", "noise must be a list of 2"),
        ("schedule --options patience=3", "patience is of the schedule plateau"),
        ("schedule wsd --options decay_fraction=3", "decay_fraction must be at least 0 and at most 1"),
        ("schedule --options lr=3", "--options is not for lr: --lr says it"),
        ("bench test_resnet --img-size 0", "img_size must be at least 1"),
        ("bench test_resnet --threads 0", "threads must be at least 1"),
        ("validate digits --model x --crop-pct 0", "crop_pct must be above 0"),
        ("validate digits --model x --workers -1", "workers must be at least 0"),
        ("data digits --views 0", "views must be at least 1"),
        ("predict x.png --batch-size 0", "batch_size must be at least 1"),
    ],
)
def test_other_verbs(capsys, words, said):
    assert main(words.split()) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert not told.out


def example(
    *, a: Count = 1, b: Share | None = None, c: tuple[float, float] = (0, 1), d: list[int] | str = "",
    e: Annotated[float, Bounds(-1, 1, open=("least", "most"))] = 0, f: bool = False, g: object = None,
) -> None:  # fmt: skip
    """Arguments of every kind."""


@pytest.mark.parametrize(
    ("name", "right", "wrong", "wanted"),
    [
        ("a", [1, 7], [0, 1.0, True, "1", None], "at least 1|a whole number"),
        ("b", [0, 0.5, 1, None], [-0.1, 2, float("nan"), "x"], "at least 0 and at most 1|a number"),
        ("c", [(0, 1), [0.5, 2]], [1, (1,), (1, "x"), "ab"], "a list of 2|a list, each a number"),
        ("d", [[], [1, 2], "x"], [[1.5], 3], "a list, each a whole number or text|a list or text"),
        ("e", [0, -0.99], [-1, 1, float("inf")], "above -1 and below 1"),
        ("f", [True, False], [1, "yes"], "true or false"),
        ("g", [1, "x", None], [], ""),
    ],
)
def test_what_annotations_say(name, right, wrong, wanted):
    for value in right:
        check_arguments(example, {name: value})
    for value in wrong:
        with pytest.raises(OpsinError, match=f"^it: {name} must be ({wanted}), not "):
            check_arguments(example, {name: value}, owner="it")
