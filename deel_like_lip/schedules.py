"""Schedules for `callbacks.LossParamScheduler`: functions of the time in training, in epochs or in optimizer steps.

Plain immutable objects, which any function from a number to a number can replace.
"""

import abc
import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import Any

from deel_like_lip._validation import checked_positive


@dataclasses.dataclass(frozen=True)
class _Ramp(abc.ABC):
    start: float
    end: float
    length: float
    begin: float = 0.0

    def __post_init__(self) -> None:
        owner = type(self).__name__
        for name in ("start", "end"):
            _checked_finite(getattr(self, name), name, owner)
        checked_positive(self.length, "length", owner)
        checked_positive(self.begin, "begin", owner, or_zero=True)

    def __call__(self, time: float) -> float:
        share = min(max((time - self.begin) / self.length, 0.0), 1.0)
        # The ends themselves, without rounding.
        return float(self.start if share == 0 else self.end if share == 1 else self._between(share))

    @abc.abstractmethod
    def _between(self, share: float) -> float:
        """Returns the value at a share of the way, from 0 to 1."""


class Linear(_Ramp):
    """Goes from `start` to `end` in a straight line.

    Args:
        start: The value until `begin`.
        end: The value from `begin + length` on.
        length: How many epochs or steps it takes, positive.
        begin: The epoch or step at which it sets out.

    Example:
        >>> [Linear(0.0, 1.0, length=4)(epoch) for epoch in range(6)]
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]

    Raises:
        ValueError: If an argument is not such a number.
    """

    def _between(self, share: float) -> float:
        return self.start + share * (self.end - self.start)


class Log(_Ramp):
    """Goes from `start` to `end` in a straight line of the logarithm: by the same factor in each epoch or step.

    Args:
        start: The value until `begin`, positive.
        end: The value from `begin + length` on, positive.
        length: How many epochs or steps it takes, positive.
        begin: The epoch or step at which it sets out.

    Example:
        >>> [round(Log(1.0, 100.0, length=2)(epoch), 6) for epoch in range(4)]
        [1.0, 10.0, 100.0, 100.0]

    Raises:
        ValueError: If an argument is not such a number.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("start", "end"):
            checked_positive(getattr(self, name), name, type(self).__name__)

    def _between(self, share: float) -> float:
        return self.start * (self.end / self.start) ** share


class Cosine(_Ramp):
    """Goes from `start` to `end` along half a cosine: slowly at both ends.

    Args:
        start: The value until `begin`.
        end: The value from `begin + length` on.
        length: How many epochs or steps it takes, positive.
        begin: The epoch or step at which it sets out.

    Example:
        >>> [round(Cosine(0.0, 1.0, length=4)(epoch), 4) for epoch in range(6)]
        [0.0, 0.1464, 0.5, 0.8536, 1.0, 1.0]

    Raises:
        ValueError: If an argument is not such a number.
    """

    def _between(self, share: float) -> float:
        return self.start + 0.5 * (1 - math.cos(math.pi * share)) * (self.end - self.start)


@dataclasses.dataclass(frozen=True)
class Steps:
    """Has one value after another, and changes at given epochs or steps.

    Args:
        values: The values, one more than `boundaries`.
        boundaries: Increasing epochs or steps from which on the next value holds.

    Example:
        >>> [Steps([1.0, 10.0, 5.0], boundaries=[2, 3])(epoch) for epoch in range(5)]
        [1.0, 1.0, 10.0, 5.0, 5.0]

    Raises:
        ValueError: If the values are not finite numbers, or there are not as many boundaries as changes.
    """

    values: Sequence[float]
    boundaries: Sequence[float]

    def __post_init__(self) -> None:
        for name in ("values", "boundaries"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            for number in getattr(self, name):
                _checked_finite(number, name, "Steps")
        increasing = all(one < other for one, other in zip(self.boundaries, self.boundaries[1:], strict=False))
        if len(self.values) != len(self.boundaries) + 1 or not increasing:
            raise ValueError(
                "Steps expects increasing `boundaries`, and one of `values` more than them. "
                f"Received: values={self.values}, boundaries={self.boundaries}"
            )

    def __call__(self, time: float) -> float:
        return float(self.values[sum(boundary <= time for boundary in self.boundaries)])


def _checked_finite(value: Any, name: str, owner: str) -> None:
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(
            f"Invalid value for argument `{name}` of {owner}. Expected a finite number. Received: {name}={value}"
        )
