"""A directory that holds a run: going on, beginning anew, and what is refused."""

import os
import shutil
import signal

import pytest
import torch
import yaml
from runs import dark_and_light

from opsin.cli import main
from opsin.train.checkpoint import RunDirectory
from opsin.train.loop import Run

SMALL = ["--model", "test_resnet", "--img-size", "32", "--batch-size", "8", "--epochs", "3", "--warmup-epochs", "0",
         "--workers", "0"]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return dark_and_light(tmp_path_factory.mktemp("photos"), 12)


def train(photos, out, *more):
    return main(["train", str(photos), *SMALL, "--output", str(out), *more])


@pytest.fixture
def stopped(photos, monkeypatch, capsys):
    """`stopped(out, *more, data=photos)`: a run that gets SIGTERM in its second epoch; returns what it said."""

    def stopped(out, *more, data=photos):
        def after_update(run, loss, after=Run.after_update):
            if run.update == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            after(run, loss)

        with monkeypatch.context() as patch:
            patch.setattr(Run, "after_update", after_update)
            with pytest.raises(SystemExit) as left:
                train(data, out, *more)
        assert left.value.code == 128 + signal.SIGTERM
        return capsys.readouterr().err

    return stopped


# --- beginning anew -------------------------------------------------------------------------------------------------


def test_to_overwrite_is_said_once(photos, tmp_path, stopped, capsys):
    """What a run wrote down does not say it again: the run goes on by its own settings."""
    said = stopped(tmp_path, "--overwrite")
    assert "the same command, without --overwrite, goes on from here" in said
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["run"]["overwrite"] is False
    assert main(["train", "--config", str(tmp_path / "config.yaml")]) == 0
    assert "going on at epoch 1" in capsys.readouterr().err
    state = (tmp_path / "last.pt").read_bytes()
    assert main(["train", "--config", str(tmp_path / "config.yaml")]) == 0
    assert (tmp_path / "last.pt").read_bytes() == state
    assert '"overwrite": false' in (tmp_path / "best" / "config.json").read_text()


JOBS = [("SLURM_JOB_ID", "SLURM_RESTART_COUNT"), ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")]


@pytest.mark.parametrize(("job", "count"), JOBS)
def test_a_job_that_is_started_again_overwrites_once(photos, tmp_path, stopped, monkeypatch, capsys, job, count):
    for name in (name for names in JOBS for name in names):
        monkeypatch.delenv(name, raising=False)
    assert train(photos, tmp_path, "--lr", "0.5", "--epochs", "1") == 0  # by another job
    monkeypatch.setenv(job, "7")
    monkeypatch.setenv(count, "1")  # the first start of this one came to nothing
    assert "going on" not in stopped(tmp_path, "--overwrite")
    monkeypatch.setenv(count, "2")
    assert train(photos, tmp_path, "--overwrite") == 0
    assert "going on at epoch 1" in capsys.readouterr().err
    monkeypatch.setenv(job, "8")
    assert train(photos, tmp_path, "--overwrite", "--lr", "0.5") == 0
    assert "going on" not in capsys.readouterr().err
    monkeypatch.setenv(count, "0")  # the same job, on purpose
    assert train(photos, tmp_path, "--overwrite", "--epochs", "1") == 0
    assert "going on" not in capsys.readouterr().err


def test_overwriting_removes_what_a_run_wrote_and_nothing_else(tmp_path):
    own = ["config.yaml", "last.pt", "last-000003/rest.pt", "history.csv", "log.jsonl", "report.html",
           "best/config.json", "best/model.safetensors", "failed-update-3-rank-0.pt", ".config.yaml.part",
           ".last.part/rest.pt", ".last.pt.part", ".id-wandb", "wandb/run-1/run.wandb",
           "tensorboard/events.out.tfevents.1.host"]  # fmt: skip
    others = ["notes.txt", "best/README.md", "failed.pt", "tensorboard/mine/x", "pictures/a.png", "lasting-1/x"]
    for name in own + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    directory = RunDirectory(tmp_path)
    directory.open(overwrite=True)
    directory.close()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left - {".lock"} == set(others)
    assert not (tmp_path / "last-000003").exists()


def test_a_run_that_is_overwritten_leaves_no_model(photos, tmp_path, stopped):
    """Ended before its first epoch, the new one has no `best` of another run beside its settings."""
    assert train(photos, tmp_path, "--epochs", "1") == 0
    stopped(tmp_path, "--overwrite", "--batch-size", "4")
    assert not (tmp_path / "best").exists()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["epoch"] == 0


# --- going on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: (root / "dark").rename(root / "night"), "classes that are gone: dark; new classes: night"),
        (lambda root: shutil.copytree(root / "dark", root / "dim"), "new classes: dim; 22 pictures for training were"),
        (lambda root: [(root / "dark" / f"{i}.png").unlink() for i in range(6)], "22 pictures for training were there"),
    ],
)
def test_other_data_is_refused(photos, tmp_path, stopped, capsys, change, said):
    data = shutil.copytree(photos, tmp_path / "photos")
    stopped(tmp_path / "run", data=data)
    state = (tmp_path / "run" / "last.pt").read_bytes()
    change(data)
    assert train(data, tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert said in error
    assert "give another --output, or --overwrite to begin anew" in error
    assert (tmp_path / "run" / "last.pt").read_bytes() == state
    assert train(data, tmp_path / "run", "--overwrite") == 0


def test_other_classes_of_heads_are_refused(photos, tmp_path, capsys):
    def table(names):
        rows = [f"{p},{names[p.parent.name]},{i % 3}.5" for i, p in enumerate(sorted(photos.glob("*/*.png")))]
        (tmp_path / "list.csv").write_text("\n".join(["path,light,size", *rows]))
        return train(tmp_path / "list.csv", tmp_path / "run", "--target", "light", "size", "--epochs", "1")

    assert table({"dark": "a", "light": "b"}) == 0
    assert table({"dark": "b", "light": "a"}) == 0  # the same classes
    assert table({"dark": "c", "light": "b"}) == 2
    assert "light classes that are gone: a; new light classes: c" in capsys.readouterr().err


def test_a_run_that_has_ended(photos, tmp_path, capsys):
    out, line = tmp_path / "run", ["train", "--config", str(tmp_path / "run" / "config.yaml")]
    assert train(photos, out, "--epochs", "1") == 0
    assert "has ended" not in capsys.readouterr().err
    assert main(line) == 0
    assert "this run has ended, here are its scores: another --output repeats it" in capsys.readouterr().err
    assert main([*line, "--output", str(tmp_path / "again")]) == 0
    states = [torch.load(tmp_path / name / "last.pt", weights_only=True)["model"] for name in ("run", "again")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert main([*line, "--epochs", "2"]) == 2
    said = capsys.readouterr().err
    assert f"--checkpoint {out / 'best'} with another --output trains its model further" in said
    assert train(photos, tmp_path / "more", "--checkpoint", str(out / "best"), "--recipe", "small-from-scratch") == 0
