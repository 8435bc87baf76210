"""`opsin list` and `opsin info`: right, fast, and without torch."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from opsin.cli import VERBS, main
from opsin.models._index import MODELS

COMMAND = [sys.executable, "-c", "import sys; from opsin.cli import main; sys.exit(main())"]


@pytest.mark.parametrize("args", [["list"], ["list", "--json"], ["info", "resnet50"], ["info", "resnet50", "--json"]])
def test_answers_without_torch(args: list[str]) -> None:
    code = f"import sys; from opsin.cli import main; main({args!r}); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resnet" in done.stdout


def test_list_filters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "resnet18*", "--max-params", "12e6"]) == 0
    assert capsys.readouterr().out.splitlines() == ["resnet18", "resnet18d"]
    assert main(["list", "resnet18", "--pretrained", "--license", "cc-by-nc-4.0"]) == 0
    assert capsys.readouterr().out.splitlines() == ["resnet18.fb_ssl_yfcc100m_ft_in1k", "resnet18.fb_swsl_ig1b_ft_in1k"]
    assert main(["list", "--json", "resnet50.a1_in1k", "--pretrained"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["params"] == 25557032
    assert row["top1"] == 81.24
    assert row["license"] == "apache-2.0"


def test_list_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert set(MODELS) <= set(capsys.readouterr().out.splitlines())


def test_nothing_found_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "resnt50"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "Did you mean resnet50" in said.err


def test_filters_with_a_dot_find_weights(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "resnet18.a1_in1k"]) == 0
    assert capsys.readouterr().out == "resnet18.a1_in1k\n"
    assert main(["list", "resnet18.a[12]*"]) == 0
    assert capsys.readouterr().out.splitlines() == ["resnet18.a1_in1k", "resnet18.a2_in1k"]
    assert main(["list", "RESNET18"]) == 1
    assert "Did you mean resnet18" in capsys.readouterr().err


def test_info_of_a_saved_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import opsin

    opsin.save(opsin.create_model("test_resnet", num_classes=3), tmp_path / "mine", label_names=["a", "b", "c"])
    for name in (f"local-dir:{tmp_path / 'mine'}", str(tmp_path / "mine")):
        assert main(["info", name, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["name"], told["architecture"], told["cfg"]["num_classes"]) == (name, "test_resnet", 3)
        assert main(["info", name]) == 0
        assert "0.1 GMACs" in capsys.readouterr().out
    assert main(["info", "timm/resnet50.a1_in1k", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "resnet50.a1_in1k"


def test_info_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "resnet50"]) == 0
    card = capsys.readouterr().out
    for fact in ("25,557,032", "4.11 GMACs", "2048 at /32", "a1_in1k (default)", "81.24", "apache-2.0", "tv_resnet50"):
        assert fact in card, fact


def test_info_follows_a_former_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "gluon_resnet50_v1b", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["name"] == "resnet50.gluon_in1k"
    assert said.err.strip() == "opsin: 'gluon_resnet50_v1b' is a former name; using 'resnet50.gluon_in1k'."


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["lst"], "Did you mean list?"),
        (["info", "resnt50"], "Did you mean resnet50"),
        (["info", "resnet50.a1_in1"], "Did you mean a1_in1k"),
        (["list", "--family", "resent"], "Did you mean resnet"),
        (["list", "--license", "apache"], "Did you mean apache-2.0?"),
    ],
)
def test_errors_are_one_message_and_exit_code_2(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


def test_misspelt_option_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["list", "--max-param", "3e6"])
    assert stop.value.code == 2
    assert "--max-params" in capsys.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    import opsin

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"opsin {opsin.__version__}\n"
    assert main([]) == 0
    usage = capsys.readouterr().out
    assert all(verb in usage for verb in VERBS)


@pytest.mark.skipif(os.name != "posix", reason="pipes of a POSIX shell")
def test_a_reader_that_stops_early_is_no_error() -> None:
    process = subprocess.Popen([*COMMAND, "list", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals are of POSIX")
@pytest.mark.parametrize(("columns", "cut"), [(120, False), (40, True)])
def test_table_on_a_terminal(columns: int, cut: bool) -> None:
    """Columns in line, cut to the terminal's width; neither torch nor a library for tables is imported."""
    import pty

    ours, theirs = pty.openpty()
    code = (
        "import sys; from opsin.cli import main; main(['list', 'resnet18.a1_in1k', 'naflexvit_base_patch16_gap']);"
        "assert not {'torch', 'rich.table'} & set(sys.modules)"
    )
    env = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    done = subprocess.run([sys.executable, "-c", code], stdout=theirs, stderr=subprocess.PIPE, env=env)
    os.close(theirs)
    assert done.returncode == 0, done.stderr
    said = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "\x1b[1mmodel" in said
    lines = re.sub(r"\x1b\[\dm", "", said).splitlines()
    assert lines[-1].startswith("2 models")
    assert all(len(line) <= columns for line in lines[:-1])
    if cut:
        assert all(line.endswith("…") for line in lines[:-1])
    else:
        assert lines[0].split() == ["model", "params", "GMACs", "size", "top-1", "licence"]
        assert lines[2].split() == ["resnet18.a1_in1k", "11.7", "M", "1.8", "224", "73.16", "apache-2.0"]
        assert lines[0].index("licence") == lines[2].index("apache-2.0")
