"""Architecture tables of mobile networks: a row stands for a block that repeats, and strings for rows.

The strings are those of MnasNet (https://arxiv.org/abs/1807.11626) and its heirs.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from opsin.errors import UnknownArgumentError, check_known
from opsin.layers import make_divisible

__all__ = ["Kernel", "Row", "Rows", "arch", "change", "decode_arch_def", "deepen", "round_channels"]

Kernel = int | Sequence[int]
Rows = list[dict[str, Any]]  # one stage


def round_channels(
    channels: float, multiplier: float = 1.0, divisor: int = 8, channel_min: int | None = None, round_limit: float = 0.9
) -> int:
    """Channels times the width multiplier, as a multiple of `divisor`."""
    return make_divisible(channels * multiplier, divisor, min_value=channel_min, round_limit=round_limit)


# -- tables ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of an architecture table: a block, and how often it repeats. Only a stage's first block has a stride."""

    block_type: str  # see BLOCKS
    out_chs: int  # before the width multiplier
    repeats: int = 1
    stride: int = 1
    kernel_size: int = 3  # cn
    dw_kernel_size: Kernel = 3  # ir, ds, dsa
    dw_kernel_size_start: int = 0  # uir; 0 leaves that convolution out
    dw_kernel_size_mid: int = 3
    dw_kernel_size_end: int = 0
    exp_kernel_size: Kernel = 1  # ir, er
    pw_kernel_size: Kernel = 1
    exp_ratio: float = 1.0  # width inside over width at the input
    se_ratio: float = 0.0  # squeezed width over width at the input
    act_layer: Any = None  # in place of the network's
    pw_act: bool = False  # ds: an activation behind the last convolution as well
    skip: bool = False  # cn: add the input where shapes allow
    noskip: bool = False  # the others: never add the input
    force_in_chs: int = 0  # er: width that exp_ratio goes by (before the multiplier)
    group_size: int = 0  # channels per group of the middle convolution
    num_experts: int = 0  # ir: conditional convolutions
    num_heads: int = 8  # mqa
    key_dim: int = 0  # mqa: width of a key; 0 for an equal share of the block's width per head
    value_dim: int = 0  # mqa: width of a value; 0 for that of a key
    kv_stride: int = 1  # mqa: keys and values from a map that many times smaller
    s2d: bool = False  # ds: the stage opens with space to depth, and the next one then keeps its stride

    @classmethod
    def make(cls, values: Mapping[str, Any]) -> "Row":
        """From a dict as `decode_arch_def` gives it; None stands for the default."""
        check_known(values, [f.name for f in fields(cls)], owner="a row of block_args")
        return cls(**{k: v for k, v in values.items() if v is not None})


def _kernel(text: str) -> Kernel:
    sizes = [int(size) for size in text.split(".")]
    return sizes[0] if len(sizes) == 1 else sizes


ACTS = {"re": "relu", "r6": "relu6", "hs": "hard_swish", "sw": "silu", "mi": "mish"}
CODES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "r": ("repeats", int), "s": ("stride", int), "c": ("out_chs", int), "e": ("exp_ratio", float),
    "se": ("se_ratio", float), "k": ("dw_kernel_size", _kernel), "a": ("exp_kernel_size", _kernel),
    "p": ("pw_kernel_size", _kernel), "n": ("act_layer", ACTS.__getitem__), "fc": ("force_in_chs", int),
    "gs": ("group_size", int), "cc": ("num_experts", int), "d": ("s2d", lambda text: text == "1"),
}  # fmt: skip
OWN_CODES: dict[str, dict[str, tuple[str, Callable[[str], Any]]]] = {  # codes that mean something else in a block
    "cn": {"k": ("kernel_size", int)},
    "er": {"k": ("exp_kernel_size", int)},
    "uir": {"a": ("dw_kernel_size_start", int), "k": ("dw_kernel_size_mid", int), "p": ("dw_kernel_size_end", int)},
    "mqa": {"h": ("num_heads", int), "d": ("key_dim", int), "v": ("kv_stride", int)},
}


def decode_row(text: str) -> dict[str, Any]:
    """`ir_r2_k5_s2_e6_c40_se0.25`, as MnasNet and its heirs write it, as a dict of the fields of `Row`."""
    block, *words = text.split("_")
    row: dict[str, Any] = {"block_type": block}
    codes = CODES | OWN_CODES.get(block, {})
    if block == "er":
        row["exp_kernel_size"] = 3
    for word in words:
        if word in ("skip", "noskip"):
            row[word] = True
            continue
        match = re.fullmatch(r"(n)(re|r6|hs|sw|mi)|([a-z]+)([\d.]+)", word)
        code, value = [part for part in match.groups() if part] if match else ("", "")
        if code not in codes:
            raise UnknownArgumentError(
                f"cannot read {word!r} in the block {text!r}. Known: {', '.join(codes)}, (no)skip"
            )
        name, convert = codes[code]
        row[name] = convert(value)
    return row


def decode_arch_def(
    arch_def: Sequence[Sequence[str]],
    depth_multiplier: float = 1.0,
    depth_trunc: str = "ceil",
    *,
    fix_first_last: bool = False,
) -> list[Rows]:
    """Rows of each stage from strings, their repeats times `depth_multiplier` rounded up (`ceil`) or to the nearest
    (`round`); `fix_first_last` leaves the first and the last stage alone."""
    stages = [[decode_row(text) for text in stage] for stage in arch_def]
    return deepen(stages, depth_multiplier, depth_trunc, keep=(0, -1) if fix_first_last else ())


def arch(text: str) -> list[Rows]:
    """A whole table: blanks part the stages, a plus the rows of one."""
    return [[decode_row(row) for row in stage.split("+")] for stage in text.split()]


def deepen(stages: Sequence[Rows], factor: float, rounding: str = "ceil", *, keep: Sequence[int] = ()) -> list[Rows]:
    """Scale the repeats of each stage by `factor`, shared among its rows; stages in `keep` stay as they are."""
    whole: Callable[[float], int] = {"ceil": math.ceil, "round": lambda x: round(x)}[rounding]
    kept = {i % len(stages) for i in keep}
    return [rows if i in kept else _deepen_stage(rows, factor, whole) for i, rows in enumerate(stages)]


def _deepen_stage(rows: Rows, factor: float, whole: Callable[[float], int]) -> Rows:
    old = sum(r.get("repeats", 1) for r in rows)
    new = max(1, whole(old * factor))
    scaled: Rows = []
    for row in reversed(rows):  # from the back: what a later row takes, an earlier one does not
        repeats = row.get("repeats", 1)
        share = max(1, round(repeats / old * new))
        old, new = old - repeats, new - share
        scaled.insert(0, row | {"repeats": share})
    return scaled


def change(stages: Sequence[Rows], since: int = 0, **changes: Any) -> list[Rows]:
    """The table with other values in all rows from stage `since` on."""
    return [[row | changes for row in rows] if i >= since else rows for i, rows in enumerate(stages)]
