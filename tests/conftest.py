"""`pytest --family NAME` runs the checks of one family; `--capabilities` writes the table of what each can do."""

import gc
from pathlib import Path

import pytest

from opsin.errors import did_you_mean
from opsin.models._index import MODELS

PAGE = Path(__file__).parents[1] / "docs" / "capabilities.md"
# contract test -> column; a family has a capability when the test passed for it
CAPABILITIES = {
    "test_input_channels": "in_chans",
    "test_image_sizes": "image size",
    "test_features_are_as_declared": "features",
    "test_intermediates_equal_features": "intermediates",
    "test_head_reset": "head reset",
    "test_checkpointing_gives_equal_gradients": "checkpointing",
    "test_bfloat16_and_channels_last": "bf16, channels last",
    "test_compiles_as_one_graph": "compile",
    "test_exports": "export",
    "test_prepared_for_inference": "fused inference",
}
_results: dict[tuple[str, str], bool] = {}


def pytest_addoption(parser):
    parser.addoption("--family", help="run what is parametrised over families, models or modules for this family alone")
    parser.addoption("--capabilities", action="store_true", help=f"write {PAGE.name} from what passed")


def pytest_collection_modifyitems(config, items):
    family = config.getoption("--family")
    if not family:
        return
    if family not in MODELS.values():
        near = did_you_mean(family, MODELS.values())
        raise pytest.UsageError(f"no family {family!r} in the index (`make tables` renews it).{near}")
    kept, left = [], []
    for item in items:
        params = getattr(item, "callspec", None) and item.callspec.params
        of_family = params and (
            params.get("family") == family or params.get("module") == family or MODELS.get(params.get("arch")) == family
        )
        (kept if of_family or item.path.stem == f"test_{family}" else left).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)


def pytest_collection_finish():
    """The collector need not look through thousands of tests again and again: a tenth of the time of the suite."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()


def pytest_runtest_logreport(report):
    name, _, params = report.nodeid.partition("::")[2].partition("[")
    if "test_contract.py" in report.nodeid and name in CAPABILITIES and (report.when == "call" or report.failed):
        family = next(part for part in params.rstrip("]").split("-") if part in set(MODELS.values()))
        capable = report.passed and dict(report.user_properties).get("capable", True)
        _results[family, name] = _results.get((family, name), True) and capable


def _page() -> str:
    families = sorted({family for family, _ in _results})
    rows = ["| family | " + " | ".join(CAPABILITIES.values()) + " |", "|---|" + ":-:|" * len(CAPABILITIES)]
    for family in families:
        cells = ("yes" if _results[family, test] else "no" for test in CAPABILITIES)
        rows.append(f"| {family} | " + " | ".join(cells) + " |")
    intro = "What each family can do, as its contract tests found it. Written by `make tables`.\n"
    return "# Capabilities\n\n" + intro + "\n" + "\n".join(rows) + "\n"


def pytest_sessionfinish(session):
    """After a run of all contract tests: write the page, or see that the committed one says the same."""
    if hasattr(session.config, "workerinput"):
        return
    if not all((family, test) in _results for family in set(MODELS.values()) for test in CAPABILITIES):
        return
    page = _page()
    if session.config.getoption("--capabilities"):
        PAGE.write_text(page)
    elif not PAGE.exists() or PAGE.read_text() != page:
        print(f"\ndocs/{PAGE.name} is out of date: run `make tables`")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
