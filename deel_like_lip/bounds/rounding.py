"""Float64 arithmetic that is rounded outward, and how far float32 arithmetic may be from exact results."""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

EPSILON = float(np.finfo(np.float64).eps)
# The unit roundoff of float32, and what a result may lose that is too small for it, flushed to zero.
FLOAT32_ROUNDOFF = 2.0**-24
FLOAT32_UNDERFLOW = 2.0**-126


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


def norm_up(array: npt.NDArray[np.float64]) -> float:
    """Returns an upper bound of the l2 norm of all entries of an array."""
    largest = float(np.max(np.abs(array), initial=0.0))
    if largest == 0 or not math.isfinite(largest):
        return 0.0 if largest == 0 else math.inf
    scale = 2.0 ** math.ceil(math.log2(largest))  # exact, and squares neither overflow nor vanish
    squares = float(np.sum((array / scale) ** 2)) * (1 + EPSILON * (array.size + 4))
    return scale * up(math.sqrt(squares))


@dataclasses.dataclass(frozen=True)
class Affine:
    """A bound `absolute + relative * |x|_2` that depends on the norm of the model's input x.

    Attributes:
        absolute: What does not depend on x, in units of what is bounded.
        relative: The factor of the norm.

    Example:
        >>> certify(model, rounding="sound").heads[0].rounding_error.absolute < 1e-5
        True
    """

    absolute: float = 0.0
    relative: float = 0.0

    def __add__(self, other: "Affine") -> "Affine":
        return Affine(sum_up([self.absolute, other.absolute]), sum_up([self.relative, other.relative]))

    def scaled(self, factor: float) -> "Affine":
        """Returns the bound times a factor, rounded up."""
        return Affine(product_up(factor, self.absolute), product_up(factor, self.relative))

    @staticmethod
    def joined(parts: Iterable["Affine"]) -> "Affine":
        """Returns a bound of the norm of several vectors side by side (Minkowski's inequality)."""
        parts = list(parts)
        return Affine(
            root_sum_of_squares_up(part.absolute for part in parts),
            root_sum_of_squares_up(part.relative for part in parts),
        )
