"""How the windows of a convolution or pooling meet their input."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from deel_like_lip._typing import Shape


def max_overlap(
    window: Sequence[int], strides: Sequence[int] | None = None, dilation_rate: Sequence[int] | None = None
) -> int:
    """Returns the largest number of taps, over all windows together, that can meet one input position.

    Tap i of window o lies at `s o + d i`, so the taps that meet one position have indices that agree modulo
    `s / gcd(s, d)`: at most `ceil(k gcd(s, d) / s)` of them along each axis. This holds for every input size, for zero
    padding, and for circular padding where the stride divides the input size.

    Args:
        window: Number of taps along each spatial axis.
        strides: Stride along each spatial axis, by default 1.
        dilation_rate: Dilation along each spatial axis, by default 1.
    """
    ones = [1] * len(window)
    taps = zip(window, strides or ones, dilation_rate or ones, strict=True)
    return math.prod(math.ceil(size * math.gcd(stride, dilation) / stride) for size, stride, dilation in taps)


def circular_pads(window: Sequence[int], strides: Sequence[int], dilation_rate: Sequence[int]) -> list[tuple[int, int]]:
    """Returns how much of an image is repeated before and after it, so that each axis shrinks by its stride exactly.

    Args:
        window: Number of taps along each spatial axis.
        strides: Stride along each spatial axis.
        dilation_rate: Dilation along each spatial axis.
    """
    taps = zip(window, strides, dilation_rate, strict=True)
    totals = [max((size - 1) * dilation + 1 - stride, 0) for size, stride, dilation in taps]
    return [(total // 2, total - total // 2) for total in totals]


def largest_overlap(indices: npt.NDArray[np.int64], taps: int, stride: int = 1, dilation: int = 1) -> int:
    """Returns the largest number of taps, over all windows together, that meet one value of a padded axis.

    Args:
        indices: Which value stands at each position of the padded axis, -1 for zeros.
        taps: Number of taps.
        stride: Stride of the windows, the first of which begins at the first position.
        dilation: Dilation of the taps.
    """
    windows = np.arange(0, len(indices) - dilation * (taps - 1), stride)
    met = indices[windows[:, None] + dilation * np.arange(taps)]
    return int(np.max(np.bincount(met[met >= 0]), initial=0))


def entries(shape: Shape) -> int | None:
    """Returns the number of values of an array of a shape, or None if a size is not known."""
    known = [size for size in shape if size is not None]
    return math.prod(known) if len(known) == len(shape) else None
