"""Run a program with opsin in timm's place: `python -m opsin.integrations.timm_alias SCRIPT …` or `… -m MODULE …`."""

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

from opsin.integrations.timm_alias import install

USAGE = "usage: python -m opsin.integrations.timm_alias (SCRIPT | -m MODULE) [ARGUMENT …]"


def main() -> None:
    args = sys.argv[1:]
    if not args or args == ["-m"]:
        sys.exit(USAGE)
    if args[0] in ("-h", "--help"):
        print(USAGE)
        return
    if args[0] == "-m" and not _is_module(args[1]):
        sys.exit(f"there is no module {args[1]} to run\n{USAGE}")
    if args[0] != "-m" and not Path(args[0]).exists():
        sys.exit(f"{args[0]}: no such script\n{USAGE}")
    install()
    if args[0] == "-m":
        sys.argv = args[1:]
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = args
        sys.path[0] = str(Path(args[0]).resolve().parent)  # where a script finds its neighbours, as with plain python
        runpy.run_path(args[0], run_name="__main__")


def _is_module(name: str) -> bool:
    try:
        return find_spec(name.partition(".")[0]) is not None  # what is below it is imported with the alias in place
    except ValueError:  # no name at all
        return False


if __name__ == "__main__":
    main()
