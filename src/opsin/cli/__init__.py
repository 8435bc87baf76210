"""The command `opsin`: one file per verb, imported only when that verb is chosen, so that each starts fast."""

import functools
import inspect
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import opsin
from opsin.bounds import check_arguments
from opsin.errors import OpsinError, did_you_mean

__all__ = ["VERBS", "main"]

# verb -> (module:function, help). The function's typed signature is the verb's command line; it returns an exit code.
VERBS: dict[str, tuple[str, str]] = {
    "predict": ("opsin.cli.predict:predict", "name what is in pictures"),
    "demo": ("opsin.cli.demo:demo", "classify the sample photos that the demo extra brings"),
    "list": ("opsin.cli.list:list_", "find models by name and by fact"),
    "info": ("opsin.cli.info:info", "show what is known about one model"),
    "train": ("opsin.cli.train:train", "train a model on a folder of pictures"),
    "validate": ("opsin.cli.validate:validate", "score models on data"),
    "bench": ("opsin.cli.bench:bench", "measure how fast models are and what memory they take"),
    "data": ("opsin.cli.data:data", "look at a dataset before anything is trained on it"),
    "schedule": ("opsin.cli.schedule:schedule", "show what a learning rate will do"),
    "download": ("opsin.cli.download:download", "fetch weights into folders for a machine without a network"),
}


def _usage() -> str:
    verbs = "\n".join(f"  {verb:<10} {text}" for verb, (_, text) in VERBS.items())
    return (
        f"usage: opsin VERB …\n\n{verbs}\n\n`opsin VERB --help` shows a verb's options, `opsin --version` the version."
    )


def _run(verb: str, args: Sequence[str]) -> int:
    import tyro

    module, _, function = VERBS[verb][0].partition(":")
    fn = getattr(import_module(module), function)
    if getattr(fn, "reads_args", False):  # what its options are depends on a file that they name
        return fn(args) or 0
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)

    @functools.wraps(fn)
    def checked(*words: Any, **options: Any) -> int:
        check_arguments(fn, inspect.signature(fn).bind(*words, **options).arguments)
        return fn(*words, **options)

    return tyro.cli(checked, prog=f"opsin {verb}", args=args, config=config) or 0


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """One line, without the place in the code that Python shows by default."""
    print(f"opsin: {message}", file=sys.stderr)


def main(args: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0, 1 for nothing found, 2 for an error that the user can mend."""
    verb, *rest = [*(sys.argv[1:] if args is None else args)] or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if verb in ("-V", "--version"):
        print(f"opsin {opsin.__version__}")
        return 0
    try:
        if verb not in VERBS:
            raise OpsinError(f"there is no verb {verb!r}.{did_you_mean(verb, VERBS)}\n\n{_usage()}")
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _run(verb, rest)
    except OpsinError as error:
        print(f"opsin: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
