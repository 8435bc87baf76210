"""Pytest plugin: `pytest -p opsin.integrations.timm_alias_pytest` runs tests written for timm against opsin.

It acts when it is loaded, which `-p` on the command line (or in `addopts`) does before any conftest or test module is
imported.
"""

from opsin import __version__
from opsin.integrations.timm_alias import install

__all__ = ["pytest_report_header"]

install()


def pytest_report_header() -> str:
    return f"timm: answered by opsin {__version__}"
