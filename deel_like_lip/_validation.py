"""Checks of arguments, in the words that all modules share."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import keras


def checked_positive(value: Any, name: str, owner: str = "", *, or_zero: bool = False) -> float:
    """Returns a positive finite number as a float, and raises for anything else.

    Args:
        value: The argument.
        name: Its name.
        owner: The class that it is an argument of, where the message is to say so.
        or_zero: Whether it may be 0.
    """
    valid = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not valid or not 0 <= value < math.inf or (value == 0 and not or_zero):
        expected = "a finite number of at least 0" if or_zero else "a positive finite number"
        raise ValueError(
            f"Invalid value for argument `{name}`{_of(owner)}. Expected {expected}. Received: {name}={value}"
        )
    return float(value)


def checked_sizes(value: Any, name: str, rank: int | None = None, owner: str = "") -> tuple[int, ...]:
    """Returns a positive integer, or one for each spatial axis, as a tuple.

    Args:
        value: The argument.
        name: Its name.
        rank: The number of spatial axes; without it a single integer stays a tuple of one.
        owner: As in `checked_positive`.
    """
    sizes = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    valid = sizes and all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in sizes)
    if not valid or (rank is not None and len(sizes) not in (1, rank)):
        count = "one for each spatial axis" if rank is None else f"{rank} of them"
        raise ValueError(
            f"Invalid value for argument `{name}`{_of(owner)}. Expected a positive integer, or {count}. "
            f"Received: {name}={value}"
        )
    return sizes * rank if rank is not None and len(sizes) == 1 else sizes


def checked_count(value: Any, name: str, owner: str) -> int:
    """Returns a positive integer, and raises for anything else.

    Args:
        value: The argument.
        name: Its name.
        owner: The class that it is an argument of.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(
            f"Invalid value for argument `{name}` of {owner}. Expected a positive integer. Received: {name}={value}"
        )
    return value


def checked_data_format(value: Any, owner: str) -> str:
    """Returns a data format, for None that of the Keras configuration, and raises for anything else.

    Args:
        value: The argument `data_format`.
        owner: The class that it is an argument of.
    """
    data_format: str = keras.config.image_data_format() if value is None else value
    if data_format not in ("channels_last", "channels_first"):
        raise ValueError(
            f"Invalid value for argument `data_format` of {owner}. Expected 'channels_last' or 'channels_first'. "
            f"Received: data_format={value}"
        )
    return data_format


def _of(owner: str) -> str:
    return f" of {owner}" if owner else ""
