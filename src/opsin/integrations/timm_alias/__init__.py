"""`import timm` answered by opsin, for code that was written for timm.

    from opsin.integrations import timm_alias

    timm_alias.install()  # before anything imports timm
    import timm  # opsin's models, under timm's names

or without touching the code: `python -m opsin.integrations.timm_alias script.py …`, and for tests
`pytest -p opsin.integrations.timm_alias_pytest`. A real timm on the same machine is left alone: it is neither imported
nor changed, only not reached until `uninstall()`. What each module shows is in `_names.py`; `timm.__opsin__` holds
opsin's version and tells the alias from the real package.
"""

import dis
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from opsin.errors import OpsinError, did_you_mean
from opsin.integrations.timm_alias._names import Absent, child_names, is_known, is_unbuilt, lookup, public_names

__all__ = ["install", "is_installed", "uninstall"]

ROOT = "timm"


class AliasModule(ModuleType):
    """A timm module without contents: each attribute is looked up in opsin when it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name == "__all__":
            return public_names(self.__name__)
        try:
            return lookup(self.__name__, name)
        except Absent:
            if not name.startswith("__") and is_known(f"{self.__name__}.{name}"):
                return import_module(f"{self.__name__}.{name}")
        if name.startswith("__"):  # asked for by the import system and by inspection, never by people
            raise AttributeError(name)
        near = did_you_mean(name, [*public_names(self.__name__), *child_names(self.__name__)])
        message = f"opsin, which stands in for timm here, has no {self.__name__}.{name}.{near}"
        if _is_from_import(sys._getframe(1)):  # `from … import …` would put its own words over an AttributeError
            raise ImportError(message, name=self.__name__)
        raise AttributeError(message)

    def __setattr__(self, name: str, value: Any) -> None:
        """As ever, but a submodule never hides a function of its name (`timm.layers.create_act` is both)."""
        if isinstance(value, AliasModule) and name in public_names(self.__name__):
            return
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *public_names(self.__name__), *child_names(self.__name__)})


def _is_from_import(frame: Any) -> bool:
    code = frame.f_code.co_code
    return 0 <= frame.f_lasti < len(code) and dis.opname[code[frame.f_lasti]] == "IMPORT_FROM"


class Finder(MetaPathFinder, Loader):
    """Answers for `timm` and everything below it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        top, _, below = fullname.partition(".")
        if top != ROOT:
            return None
        if below and not is_known(fullname):
            parent, _, name = fullname.rpartition(".")
            near = did_you_mean(name, child_names(parent))
            near = " It does not build this family yet." if is_unbuilt(fullname) else near
            message = f"opsin, which stands in for timm here, has no module {fullname}.{near}"
            raise ModuleNotFoundError(message, name=fullname)
        # every module counts as a package, with nowhere to look for files: what is below it comes here too
        return ModuleSpec(fullname, self, origin="opsin.integrations.timm_alias", is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return AliasModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == ROOT:
            module.__file__ = __file__


_finder = Finder()


def is_installed() -> bool:
    """Whether `import timm` is answered by opsin."""
    return _finder in sys.meta_path


def install() -> None:
    """From here on `import timm`, and whatever is below it, is opsin. Asked twice, it does nothing more.

    Raises OpsinError when a real timm has already been imported: what hold of it others have cannot be taken back.
    """
    if is_installed():
        return
    real = [module for name, module in sys.modules.items() if name == ROOT or name.startswith(f"{ROOT}.")]
    if real:
        where = getattr(sys.modules.get(ROOT), "__file__", None) or "sys.modules"
        raise OpsinError(
            f"timm was already imported, from {where}: install the alias before the first import of timm, "
            "or run the program with `python -m opsin.integrations.timm_alias SCRIPT`."
        )
    sys.meta_path.insert(0, _finder)


def uninstall() -> None:
    """`import timm` finds the real package again, if there is one. What was imported meanwhile stays opsin's."""
    if not is_installed():
        return
    sys.meta_path.remove(_finder)
    for name in [name for name, module in sys.modules.items() if isinstance(module, AliasModule)]:
        del sys.modules[name]
