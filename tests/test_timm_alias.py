"""`import timm` answered by opsin: the import machinery, code written for timm, and real clients beside real timm."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import randomize, relative_error

import opsin

HERE = Path(__file__).parent
CLIENTS = HERE / "timm_clients"
ALIAS = ["-m", "opsin.integrations.timm_alias"]
CLEAN = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def python(*args: Any, cwd: Path | None = None, fails: bool = False) -> str:
    """Run python; its stdout, or its stderr where it is to fail."""
    path = os.pathsep.join([str(Path(opsin.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    env = os.environ | CLEAN | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, *map(str, args)], capture_output=True, text=True, env=env, cwd=cwd)
    assert (done.returncode != 0) == fails, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stderr if fails else done.stdout


@pytest.fixture
def other_timm(tmp_path: Path) -> Path:
    """A folder with a package named timm that is not opsin's."""
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("__version__ = '0.0.other'\n")
    return tmp_path


# --- the import machinery --------------------------------------------------------------------------------------------


def test_never_unasked_and_back_again(other_timm: Path) -> None:
    out = python(
        "-c",
        "import opsin, opsin.models, sys; from opsin.integrations import timm_alias\n"
        "import timm; assert timm.__version__ == '0.0.other'; del sys.modules['timm']\n"
        "timm_alias.install(); timm_alias.install(); assert timm_alias.is_installed()\n"
        "import timm, timm.models.registry as registry; assert timm.__opsin__ == opsin.__version__\n"
        "assert 'timm_alias' in timm.__file__ and timm.__version__ == '1.0.31'\n"
        "assert registry.is_model('resnet34') and timm.list_models('resnet3*')\n"
        "import importlib.util; assert importlib.util.find_spec('timm.layers') is not None\n"
        "assert 'torch' not in sys.modules, 'listing needs no torch'\n"
        "timm_alias.uninstall(); timm_alias.uninstall(); assert not timm_alias.is_installed()\n"
        "import timm; assert timm.__version__ == '0.0.other'; print('done')\n",
        cwd=other_timm,
    )
    assert out == "done\n"


def test_too_late_says_so(other_timm: Path) -> None:
    err = python(
        "-c",
        "import timm; from opsin.integrations import timm_alias; timm_alias.install()",
        cwd=other_timm,
        fails=True,
    )
    assert f"timm was already imported, from {other_timm / 'timm'}" in err
    assert "python -m opsin.integrations.timm_alias" in err


def test_runs_scripts_and_modules(other_timm: Path) -> None:
    folder = other_timm / "scripts"
    folder.mkdir()
    (folder / "neighbour.py").write_text("import timm\nversion = timm.__opsin__\n")
    (folder / "script.py").write_text(
        "import sys, neighbour\nassert __name__ == '__main__'\nprint(neighbour.version, *sys.argv[1:])\n"
    )
    expected = f"{opsin.__version__} a --b\n"
    assert python(*ALIAS, folder / "script.py", "a", "--b", cwd=other_timm) == expected
    assert python(*ALIAS, "-m", "script", "a", "--b", cwd=folder) == expected
    assert "usage:" in python(*ALIAS, fails=True)
    (folder / "script.py").write_text("import sys\nsys.exit(3)\n")
    python(*ALIAS, folder / "script.py", fails=True)


def test_families_not_built_yet_are_named(tmp_path: Path) -> None:
    from opsin import catalog
    from opsin.integrations.timm_alias import _names

    unbuilt = {catalog.model_facts(name).family for name in catalog.architectures()} - _names._families().keys()
    for family in sorted(unbuilt)[:1]:
        err = python(
            "-c",
            f"from opsin.integrations.timm_alias import install; install(); import timm.models.{family}",
            cwd=tmp_path,
            fails=True,
        )
        assert f"no module timm.models.{family}. It does not build this family yet." in err


def test_every_name_in_the_tables_leads_somewhere() -> None:
    from opsin.integrations.timm_alias import _names

    broken = []
    for module, view in {**_names.VIEWS, "timm.layers": _names._layers()}.items():
        for name in view.public():
            try:
                _names.lookup(module, name)
            except Exception as error:
                broken.append(f"{module}.{name}: {error!r}")
    assert not broken
    # and every module that can be imported has a view
    for parent in ("timm", "timm.models", "timm.layers", "timm.models.layers", "timm.data", "timm.utils"):
        for child in _names.child_names(parent):
            assert _names.is_known(f"{parent}.{child}")
            assert _names.view_of(f"{parent}.{child}") is not None


# --- code written for timm, through the pytest plugin ----------------------------------------------------------------


def test_code_written_for_timm(tmp_path: Path) -> None:
    plugin = ["-p", "opsin.integrations.timm_alias_pytest", "-p", "no:cacheprovider"]
    file = CLIENTS / "written_for_timm.py"
    out = python("-m", "pytest", *plugin, "-q", "-rA", "--rootdir", tmp_path, "-c", os.devnull, file, cwd=tmp_path)
    assert f"timm: answered by opsin {opsin.__version__}" in out or "passed" in out
    passed = re.search(r"(\d+) passed", out)
    assert passed
    assert int(passed[1]) == file.read_text().count("\ndef test_")


# --- real clients, beside real timm ----------------------------------------------------------------------------------


def run_twice(client: str, folder: Path, *args: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a client gets from real timm and from opsin in its place, run side by side."""
    path = os.pathsep.join([str(Path(opsin.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    runs = {
        name: subprocess.Popen(
            [sys.executable, *start, str(CLIENTS / client), str(folder / f"{name}.pt"), *map(str, args)],
            env=os.environ | CLEAN | {"PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name, start in (("real", []), ("alias", ALIAS))
    }
    for name, run in runs.items():
        out, _ = run.communicate(timeout=300)
        assert run.returncode == 0, f"{name}: {out[-5000:]}"
    real, alias = (torch.load(folder / f"{name}.pt") for name in runs)
    assert real["opsin"] is None
    assert alias["opsin"] == opsin.__version__
    assert "timm_alias" in alias["timm"]
    return real, alias


def compare(real: dict[str, Any], alias: dict[str, Any], tolerance: float = 1e-5) -> None:
    for name, keys in real["keys"].items():
        assert list(keys.items()) == list(alias["keys"][name].items()), name
    assert real["out"].keys() == alias["out"].keys()
    for name, theirs in real["out"].items():
        ours = alias["out"][name]
        assert len(ours) == len(theirs), name
        for a, b in zip(ours, theirs, strict=True):
            assert a.shape == b.shape, name
            assert relative_error(a, b) < tolerance, name


def test_segmentation_models_pytorch(tmp_path: Path) -> None:
    pytest.importorskip("segmentation_models_pytorch")
    compare(*run_twice("smp_client.py", tmp_path), tolerance=1e-4)  # gradients are among them


def test_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    config = opsin.save(randomize(opsin.create_model("resnet18")), tmp_path / "model") / "config.json"
    record = json.loads(config.read_text())
    del record["label_names"], record["label_descriptions"]  # so that transformers asks timm for them
    config.write_text(json.dumps(record))
    compare(*run_twice("transformers_client.py", tmp_path, tmp_path / "model"))


def test_open_clip(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    compare(*run_twice("open_clip_client.py", tmp_path))


def test_a_training_script(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    real, alias = run_twice("train_client.py", tmp_path)
    compare(real, alias, tolerance=1e-3)  # weights: optimizers that divide by roots of sums make much of roundings
    for name, theirs in real["out"].items():
        if name.endswith(("losses", "rates")):
            assert relative_error(alias["out"][name][0], theirs[0]) < (2e-5 if name.endswith("losses") else 1e-12)
