"""`pytest --family NAME`: just the checks of one family."""

import pytest


def pytest_addoption(parser):
    parser.addoption("--family", help="run what is parametrised over families, models or modules for this family alone")


def pytest_collection_modifyitems(config, items):
    family = config.getoption("--family")
    if not family:
        return
    from opsin.errors import did_you_mean
    from opsin.models._index import MODELS

    if family not in MODELS.values():
        raise pytest.UsageError(
            f"no family {family!r} in the index (`make tables` renews it).{did_you_mean(family, MODELS.values())}"
        )
    kept, left = [], []
    for item in items:
        params = getattr(item, "callspec", None) and item.callspec.params
        of_family = params and (
            params.get("family") == family or params.get("module") == family or MODELS.get(params.get("arch")) == family
        )
        (kept if of_family or item.path.stem == f"test_{family}" else left).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)
