"""Runs with a teacher. The pictures are dark or light, and all that a teacher says is which."""

import os

import pytest
import torch
import torch.nn.functional as F
from runs import dark_and_light
from started import Started
from support import free_port

import opsin
from opsin.catalog.pretrained import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from opsin.cli import main
from opsin.data.preprocess import Preprocess
from opsin.data.readers import open_reader
from opsin.errors import OpsinError
from opsin.loss import CrossEntropy, LogitDistillation, TokenDistillation
from opsin.train.build import build_run
from opsin.train.config import from_dict
from opsin.train.distill import Teacher, build_distillation
from opsin.train.distributed import World
from opsin.train.loop import Callback, fit
from opsin.train.task import Task

CPU = World(torch.device("cpu"))
ENV = os.environ | {"OMP_NUM_THREADS": "1"}
TOKEN = {"model": "deit_tiny_distilled_patch16_224", "img_size": 32, "model_args": {"depth": 2, "embed_dim": 48}}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return dark_and_light(tmp_path_factory.mktemp("photos"), 36)


def listed(photos, path, label):
    """A list of the pictures with another label for each class."""
    rows = [f"{one},{label[one.parent.name]}" for one in sorted(photos.glob("*/*.png"))]
    path.write_text("path,label\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="module")
def swapped(photos, tmp_path_factory):
    """The same pictures, all labels wrong."""
    return listed(photos, tmp_path_factory.mktemp("lists") / "wrong.csv", {"dark": "light", "light": "dark"})


def settings(where, output, teacher=None, **groups):
    values = {
        "data": {"data": str(where), "batch_size": 8, "workers": 0},
        "model": {"model": "test_vit", "img_size": 32},
        "distill": {"teacher": None if teacher is None else str(teacher)},
        "optim": {"lr": 1e-3},
        "schedule": {"epochs": 1, "warmup_epochs": 0.2},
        "run": {"output": str(output), "device": "cpu"},
    }
    return from_dict({name: values.get(name, {}) | groups.get(name, {}) for name in {**values, **groups}})


def train(config, **how):
    run = build_run(config, CPU, **how)
    try:
        return fit(run), run
    finally:
        run.directory.close()


@pytest.fixture
def build():
    """`build_run` on the CPU; what it took is given back."""
    runs = []

    def make(config):
        runs.append(build_run(config, CPU))
        return runs[-1]

    yield make
    for run in runs:
        run.directory.close()


@pytest.fixture(scope="module")
def teacher(photos, tmp_path_factory):
    """A model that tells dark from light."""
    out = tmp_path_factory.mktemp("teacher")
    best, _ = train(settings(photos, out, schedule={"epochs": 2}))
    assert best["top1"] == 1
    return out / "best"


def state(path):
    return torch.load(path / "last.pt", weights_only=True)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def batch_of(run):
    run.begin_epoch()
    return next(run.updates())[0]


# --- what is learnt -------------------------------------------------------------------------------------------------


def test_with_the_teacher_alone_labels_do_not_matter(photos, swapped, teacher, tmp_path):
    """The student calls light what the teacher calls light, and is wrong by the labels that are."""
    args = {"distill": {"teacher": str(teacher), "alpha": 1.0}, "schedule": {"epochs": 2}}
    right, _ = train(settings(photos, tmp_path / "right", **args))
    wrong, run = train(settings(swapped, tmp_path / "wrong", **args))
    assert right["top1"] > 0.9
    assert wrong["top1"] < 0.1
    assert run.task.classes == ("dark", "light")
    half, _ = train(settings(swapped, tmp_path / "half", **args | {"distill": {"teacher": str(teacher), "alpha": 0.1}}))
    assert half["top1"] > 0.9  # now the labels decide


def test_token_distillation(swapped, teacher, tmp_path):
    """The class token learns the labels, which are wrong, and the other the teacher."""
    config = settings(
        swapped, tmp_path, model=TOKEN, distill={"teacher": str(teacher), "distill": "token", "hard": True},
        schedule={"epochs": 3}, run={"ema": True, "ema_decay": 0.9},
    )  # fmt: skip
    _, run = train(config)
    model = run.model.train()
    batch = next(iter(run.eval_loader))
    with torch.no_grad():
        of_labels, of_teacher = model(batch.images)
    assert (of_labels.argmax(1) == batch.targets).float().mean() > 0.9
    assert (of_teacher.argmax(1) == batch.targets).float().mean() < 0.1
    best = opsin.load(tmp_path / "best").model
    assert best.train()(batch.images).shape == (len(batch.images), 2)  # as any model of its kind


def test_features_and_their_projections(photos, teacher, tmp_path):
    config = settings(
        photos, tmp_path, distill={"teacher": str(teacher), "distill": "feature"}, schedule={"epochs": 3},
        model={"model": "test_resnet"}, run={"ema": True},
    )  # fmt: skip
    apart = []

    class Watch(Callback):
        def on_start(self, run):
            self.first = run.projections.project[0].weight.clone()

        def on_update(self, run, loss):
            batch = next(iter(run.eval_loader))
            with torch.no_grad():
                apart.append(run.learner(batch.images, run.distill.teacher.features(batch.images, [-1]))[1].item())

    watch = Watch()
    _, run = train(config, callbacks=[watch])
    assert apart[-1] < 0.5 * apart[0]
    assert not torch.equal(run.projections.project[0].weight, watch.first)
    groups = {group["name"]: [tuple(p.shape) for p in group["params"]] for group in run.optimizer.param_groups}
    assert groups["projections.decay"] == [(64, 96)]
    assert groups["projections.no_decay"] == [(64,)]
    bare = opsin.create_model("test_resnet", num_classes=2).state_dict().keys()
    assert run.model.state_dict().keys() == run.ema.average.state_dict().keys() == bare
    assert opsin.load(tmp_path / "best").model.state_dict().keys() == bare
    assert state(tmp_path)["projections"].keys() == {"project.0.weight", "project.0.bias"}


def test_an_interruption_changes_nothing(photos, teacher, tmp_path):
    class Interrupt(Callback):
        def on_update(self, run, loss):
            if run.update == 5:
                raise KeyboardInterrupt  # what the last update did is lost

    def config(name):
        return settings(
            photos, tmp_path / name, model={"model": "test_resnet", "img_size": 32, "drop_rate": 0.2},
            distill={"teacher": str(teacher), "distill": "feature", "levels": [-2, -1]},
            augment={"mixup": 0.2}, optim={"clip_grad": 1.0},
            run={"ema": True, "save_every": 0.0, "output": str(tmp_path / name), "device": "cpu"},
        )  # fmt: skip

    train(config("whole"))
    with pytest.raises(KeyboardInterrupt):
        train(config("cut"), callbacks=[Interrupt()])
    assert state(tmp_path / "cut")["update"] == 4
    train(config("cut"))
    whole, cut = state(tmp_path / "whole"), state(tmp_path / "cut")
    assert cut["update"] == whole["update"] > 5
    assert len(whole["projections"]) == 4
    for part in ("model", "projections"):
        assert same(cut[part], whole[part])
    assert same(cut["ema"]["average"], whole["ema"]["average"])
    moments = [one["optimizer"]["state"] for one in (cut, whole)]
    assert all(same(moments[0][key], moments[1][key]) for key in moments[1])


def test_clipping_is_over_all_that_learns(photos, teacher, tmp_path, build):
    config = settings(
        photos, tmp_path, distill={"teacher": str(teacher), "distill": "feature", "feature_weight": 9.0},
        optim={"opt": "momentum", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "clip_grad": 0.1},
        schedule={"warmup_epochs": 0.0},
    )  # fmt: skip
    run = build(config)
    before = [p.detach().clone() for p in run.learner.parameters()]
    batch = batch_of(run)
    run.scheduler.step(0)
    run.learn([batch])
    steps = [(p - old).norm() for p, old in zip(run.learner.parameters(), before, strict=True)]
    assert torch.stack(steps).norm().item() == pytest.approx(0.1, rel=1e-3)
    assert min(steps[-2:]) > 0  # the projections moved with the rest


# --- every setting acts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [{}, {"alpha": 0.2}, {"temperature": 1.5}, {"hard": True}, {"distill": "token"},
     {"distill": "token", "alpha": 0.9, "temperature": 2.0}, {"distill": "token", "hard": True}],
)  # fmt: skip
def test_settings_of_logits_reach_the_loss(photos, teacher, tmp_path, build, given):
    run = build(settings(photos, tmp_path, model=TOKEN, distill={"teacher": str(teacher)} | given))
    batch = batch_of(run)
    mean, std = (torch.tensor(v)[:, None, None] for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    theirs = opsin.load(teacher, device="cpu").model((batch.images * std + mean - 0.5) / 0.5)  # as test_vit knows them
    outputs = run.model(batch.images)
    loss = TokenDistillation if given.get("distill") else LogitDistillation
    plain = loss(CrossEntropy(), **{"hard": False} | {k: v for k, v in given.items() if k != "distill"})
    assert run.loss_of(batch).item() == pytest.approx(plain(outputs, batch.targets, theirs).item(), rel=1e-5)
    if given not in ({}, {"distill": "token"}):
        other = loss(CrossEntropy(), hard=False)(outputs, batch.targets, theirs)
        assert other.item() != pytest.approx(plain(outputs, batch.targets, theirs).item(), rel=1e-3)


def test_settings_of_features_reach_the_loss(photos, teacher, tmp_path, build):
    losses = []
    for i, given in enumerate(({}, {"feature_weight": 3.0}, {"levels": [-2]}, {"levels": [0, 5]})):
        options = {"teacher": str(teacher), "distill": "feature"} | given
        run = build(settings(photos, tmp_path / str(i), distill=options))
        batch = batch_of(run)
        losses.append(run.loss_of(batch).item())
        plain = F.cross_entropy(run.model(batch.images), batch.targets).item()
        levels, model = given.get("levels", [-1]), opsin.load(teacher, device="cpu").model
        _, ours = run.model.forward_intermediates(batch.images, levels)
        _, theirs = model.forward_intermediates(batch.images, levels)
        apart = [
            (F.normalize(layer(a.movedim(1, -1)), dim=-1) - F.normalize(b.movedim(1, -1), dim=-1)).square().sum(-1)
            for layer, a, b in zip(run.projections.project, ours, theirs, strict=True)
        ]
        wanted = plain + given.get("feature_weight", 1.0) * torch.stack(apart).mean().item()
        assert losses[-1] == pytest.approx(wanted, rel=1e-5)
    assert len({round(loss, 3) for loss in losses}) == 4


def test_the_teacher_sees_mixed_pictures(photos, teacher, tmp_path, build):
    run = build(settings(photos, tmp_path, teacher, augment={"mixup": 0.5, "cutmix": 1.0}))
    batch = batch_of(run)
    assert batch.targets.ndim == 2
    seen = []
    run.distill.teacher.model.register_forward_pre_hook(lambda model, given: seen.append(given[0]))
    run.learn([batch])
    assert torch.equal(seen[0], batch.images)


def test_versions_of_a_picture(photos, teacher, tmp_path):
    config = settings(
        photos, tmp_path, teacher, augment={"aug_splits": 2, "auto_augment": "augmix-m3-w2"}, loss={"loss": "jsd"},
        data={"batch_size": 16},
    )  # fmt: skip
    best, run = train(config)
    assert best["loss"] == best["loss"]
    assert run.distill.criterion.loss is run.task.train_loss


def test_several_labels(photos, tmp_path, build):
    rows = {"dark": "dark;small", "light": "light;small"}
    where = listed(photos, tmp_path / "list.csv", rows)
    train(settings(where, tmp_path / "teacher", schedule={"epochs": 2}))
    run = build(settings(where, tmp_path / "run", tmp_path / "teacher" / "best"))
    assert run.task.kind == "multi"
    batch = batch_of(run)
    theirs, outputs = opsin.load(tmp_path / "teacher" / "best").model(batch.images), run.model(batch.images)
    soft = F.binary_cross_entropy_with_logits(outputs / 3, (theirs / 3).sigmoid()) * 9
    wanted = 0.5 * F.binary_cross_entropy_with_logits(outputs, batch.targets) + 0.5 * soft
    assert run.loss_of(batch).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_the_plan_names_the_teacher(photos, teacher, capsys):
    args = ["train", str(photos), "--model", "test_resnet", "--img-size", "32", "--workers", "0", "--dry-run"]
    more = ["--teacher", str(teacher), "--distill", "feature", "--levels", "-2", "-1", "--feature-weight", "0.5"]
    assert main([*args, *more]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in ("teacher", "learnt by feature", "projections"):
        assert words in said


# --- the teacher's own pictures and classes -------------------------------------------------------------------------


def saved(tmp_path, name="test_vit", labels=("dark", "light"), record=None, **options):
    model = opsin.create_model(name, num_classes=len(labels) if labels else 0, **options)
    model.pretrained_cfg |= record or {}
    return opsin.save(model, tmp_path / "saved", label_names=labels), model.eval()


def test_pictures_are_normalised_and_sized_as_the_teacher_knows_them(tmp_path):
    own = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.4, 0.3)}
    path, model = saved(tmp_path, "deit_tiny_patch16_224", record=own, img_size=48, depth=1, embed_dim=24)
    pictures = Preprocess(input_size=(3, 32, 32))
    teacher = Teacher(str(path), pictures, torch.device("cpu"))
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())
    pixels = torch.randint(256, (4, 3, 48, 48), dtype=torch.uint8)
    ready = Preprocess(input_size=(3, 48, 48), **own).normalize(pixels)
    assert torch.allclose(teacher.prepare(pictures.normalize(pixels)), ready, atol=1e-5)
    even = torch.full((2, 3, 32, 32), 100, dtype=torch.uint8)  # of any size the same
    wanted = model(Preprocess(input_size=(3, 48, 48), **own).normalize(torch.full((2, 3, 48, 48), 100)))
    teacher.places = torch.arange(2)
    assert torch.allclose(teacher.logits(pictures.normalize(even)), wanted, atol=1e-4)
    assert teacher.features(pictures.normalize(even), [-1])[0].shape == (2, 24, 3, 3)


def test_pictures_of_one_channel(tmp_path):
    """A teacher of colours gets the grey of digits, as the weights of its first convolution summed."""
    path, model = saved(tmp_path, "test_resnet", labels=[str(i) for i in range(10)])
    run = build_run(settings("digits", tmp_path / "run", path), CPU)
    batch = batch_of(run)
    assert batch.images.shape[1] == 1
    wanted = model((batch.images * run.distill.teacher.gain + run.distill.teacher.shift).expand(-1, 3, -1, -1))
    run.directory.close()
    assert torch.allclose(run.distill.teacher.logits(batch.images), wanted, atol=1e-3)


def test_classes_are_matched_by_name(photos, tmp_path, build):
    path, model = saved(tmp_path, labels=("light", "grey", "dark"))
    run = build(settings(photos, tmp_path / "run", path))
    batch = batch_of(run)
    assert torch.allclose(run.distill.teacher.logits(batch.images), model(batch.images)[:, [2, 0]], atol=1e-5)


@pytest.mark.parametrize("labels", [("dark", "bright"), None])
def test_classes_that_do_not_fit(photos, tmp_path, build, labels):
    path, _ = saved(tmp_path, labels=labels)
    said = r"(?s)has other classes; .*'light' +'bright'" if labels else "has no classifier.* distill feature"
    with pytest.raises(OpsinError, match=said):
        build(settings(photos, tmp_path / "run", path))
    run = build(settings(photos, tmp_path / "again", path, distill={"teacher": str(path), "distill": "feature"}))
    assert run.learn([batch_of(run)]) > 0


# --- what does not go together --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"distill": {"alpha": 0.5}}, "there is no teacher"),
        ({"distill": {"distill": "token"}}, "there is no teacher"),
        ({"distill": {"teacher": "x", "alpha": 1.5}}, "alpha must be at least 0 and at most 1, not 1.5"),
        ({"distill": {"teacher": "x", "temperature": 0.0}}, "temperature must be above 0"),
        ({"distill": {"teacher": "x", "distill": "feature", "feature_weight": -1}}, "feature_weight must be above 0"),
        ({"distill": {"teacher": "x", "hard": True, "temperature": 2}}, "no temperature changes"),
        ({"distill": {"teacher": "x", "levels": [0]}}, "distill logit makes no use of levels"),
        ({"distill": {"teacher": "x", "distill": "token", "feature_weight": 1}}, "makes no use of feature_weight"),
        ({"distill": {"teacher": "x", "distill": "feature", "alpha": 0.0, "hard": True}}, "no use of alpha, hard"),
        ({"distill": {"teacher": "x", "distill": "feature"}, "run": {"fsdp": True}}, "fsdp has no place"),
        ({"distill": {"teacher": "x", "distill": "feature"}, "model": {"freeze": -1}}, "freeze -1 keeps"),
        ({"distill": {"teacher": "x"}, "loss": {"task": "regression"}}, "not for regression"),
        ({"distill": {"teacher": "x", "distill": "logits"}}, "Did you mean logit"),
    ],
)  # fmt: skip
def test_contradictions_are_named(values, said):
    with pytest.raises(OpsinError, match=said):
        from_dict(values).check()


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"distill": {"distill": "token"}}, "test_vit has no distillation token: take a model that has"),
        ({"distill": {"distill": "token"}, "model": {"model": "repvit_m0_9", "model_args": {"distillation": False}}},
         "repvit_m0_9 has no distillation token"),
        ({"distill": {"distill": "feature", "levels": [9]}}, r"levels \[9\] of the student test_vit: .* has 6 levels"),
        ({"distill": {"distill": "feature", "levels": [-1, 5]}}, "different levels"),
        ({"distill": {"teacher": "test_vitt"}}, "Did you mean test_vit"),
        ({"distill": {"teacher": "./nowhere"}}, "there is no such folder"),
    ],
)  # fmt: skip
def test_says_what_is_wrong(photos, teacher, tmp_path, build, groups, said):
    with pytest.raises(OpsinError, match=said):
        build(settings(photos, tmp_path, **groups | {"distill": {"teacher": str(teacher)} | groups["distill"]}))


def test_tasks_that_a_teacher_is_not_for(photos, teacher, tmp_path, build):
    numbers = listed(photos, tmp_path / "numbers.csv", {"dark": 80.5, "light": 180.5})
    with pytest.raises(OpsinError, match="not for regression"):
        build(settings(numbers, tmp_path / "a", teacher))
    several = listed(photos, tmp_path / "several.csv", {"dark": "dark;small", "light": "light;small"})
    with pytest.raises(OpsinError, match="learnt a single task, not multi"):
        build(settings(several, tmp_path / "b", teacher))
    config = settings(photos, tmp_path / "c", teacher)
    reader = open_reader(str(photos), split="train")
    task = Task.of(reader, config)
    task.kind = "heads"
    with pytest.raises(OpsinError, match="not for heads"):
        build_distillation(config, CPU, torch.nn.Linear(1, 1), task, reader, Preprocess())


# --- several processes ----------------------------------------------------------------------------------------------


def test_two_processes_learn_what_one_does(photos, teacher, tmp_path):
    """The same losses but for rounding; and after it the same projections, which began the same on both."""
    kinds = {"feature": ["--distill", "feature", "--levels", "2", "-1"], "logit": ["--alpha", "0.7", "--fsdp"]}
    common = ["train", str(photos), "--model", "test_vit", "--img-size", "32", "--epochs", "1", "--warmup-epochs",
              "0.5", "--workers", "0", "--teacher", str(teacher)]  # fmt: skip
    for kind, words in kinds.items():
        single = [word for word in words if word != "--fsdp"]
        assert main([*common, *single, "--batch-size", "8", "--output", str(tmp_path / f"{kind}1")]) == 0
    both = [[*common, *kinds[kind], "--batch-size", "4", "--output", str(tmp_path / f"{kind}2")] for kind in kinds]
    ports = [free_port() for _ in both]  # for each run, since the first may still hold its own
    program = "import os\nfrom opsin.cli import main\n"
    program += f"for port, words in zip({ports}, {both!r}):\n    os.environ['MASTER_PORT'] = str(port)\n"
    program += "    assert main(words) == 0\n"
    places = [ENV | {"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    ranks = [Started(program, env=place) for place in places]
    try:
        assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
    for kind in kinds:
        one, two = (tmp_path / f"{kind}{count}" for count in (1, 2))
        rows = [[line.split(",") for line in (end / "history.csv").read_text().splitlines()[1:]] for end in (one, two)]
        losses = [[float(row[2]) for row in row_list] for row_list in rows]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)
        models = [opsin.load(end / "best", device="cpu").model.state_dict() for end in (one, two)]
        assert all(torch.allclose(models[1][key], models[0][key], atol=1e-4) for key in models[0])
    layers = [state(tmp_path / f"feature{count}")["projections"] for count in (1, 2)]
    assert len(layers[0]) == 4
    assert all(torch.allclose(layers[1][key], layers[0][key], atol=1e-4) for key in layers[0])
