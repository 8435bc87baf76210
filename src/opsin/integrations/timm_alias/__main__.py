"""Run a program with opsin in timm's place: `python -m opsin.integrations.timm_alias SCRIPT …` or `… -m MODULE …`."""

import runpy
import sys
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
    install()
    if args[0] == "-m":
        sys.argv = args[1:]
        runpy.run_module(args[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = args
        sys.path[0] = str(Path(args[0]).resolve().parent)  # where a script finds its neighbours, as with plain python
        runpy.run_path(args[0], run_name="__main__")


if __name__ == "__main__":
    main()
