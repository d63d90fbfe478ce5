"""Float64 arithmetic that is rounded outward, so that a result is never below the exact value."""

import math
from collections.abc import Iterable

import numpy as np

EPSILON = float(np.finfo(np.float64).eps)


def up(value: float) -> float:
    """Returns the next larger float64: above the exact result of the one operation that gave `value`."""
    return math.nextafter(value, math.inf)


def product_up(*factors: float) -> float:
    """Returns an upper bound of a product of non-negative numbers. A factor of exactly 0 or 1 costs no rounding."""
    result = 1.0
    for factor in factors:
        if result == 1 or factor == 0:
            result = factor
        elif factor != 1 and result != 0:
            result = up(result * factor)
    return result


def sum_up(values: Iterable[float]) -> float:
    """Returns an upper bound of a sum of non-negative numbers."""
    result = 0.0
    for value in values:
        result = up(result + value) if result and value else result + value
    return result


def root_sum_of_squares_up(values: Iterable[float]) -> float:
    """Returns an upper bound of the l2 norm of non-negative numbers. A single one is its own norm."""
    nonzero = [value for value in values if value]
    if len(nonzero) <= 1:
        return nonzero[0] if nonzero else 0.0
    return up(math.sqrt(sum_up(up(value * value) for value in nonzero)))


def root_up(value: float) -> float:
    """Returns an upper bound of a square root."""
    root = math.sqrt(value)
    return root if root * root == value and root == math.floor(root) else up(root)
