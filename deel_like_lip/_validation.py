"""Checks of arguments, in the words that all modules share."""

import math
import numbers
from collections.abc import Sequence
from typing import Any


def checked_positive(value: Any, name: str, *, or_zero: bool = False) -> float:
    """Returns a positive finite number as a float, and raises for anything else.

    Args:
        value: The argument.
        name: Its name.
        or_zero: Whether it may be 0.
    """
    valid = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not valid or not 0 <= value < math.inf or (value == 0 and not or_zero):
        expected = "a finite number of at least 0" if or_zero else "a positive finite number"
        raise ValueError(f"Invalid value for argument `{name}`. Expected {expected}. Received: {name}={value}")
    return float(value)


def checked_sizes(value: Any, name: str, rank: int | None = None) -> tuple[int, ...]:
    """Returns a positive integer, or one for each spatial axis, as a tuple.

    Args:
        value: The argument.
        name: Its name.
        rank: The number of spatial axes; without it a single integer stays a tuple of one.
    """
    sizes = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    valid = sizes and all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
    if not valid or (rank is not None and len(sizes) not in (1, rank)):
        count = "one for each spatial axis" if rank is None else f"{rank} of them"
        raise ValueError(
            f"Invalid value for argument `{name}`. Expected a positive integer, or {count}. Received: {name}={value}"
        )
    return sizes * rank if rank is not None and len(sizes) == 1 else sizes
