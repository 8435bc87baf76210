"""Widths that hardware likes."""

__all__ = ["make_divisible"]


def make_divisible(value: float, divisor: int = 8, *, min_value: int | None = None, round_limit: float = 0.9) -> int:
    """Round to the nearest multiple of `divisor`, never below `min_value` nor below `round_limit` of the value."""
    rounded = max(min_value or divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < round_limit * value else rounded
