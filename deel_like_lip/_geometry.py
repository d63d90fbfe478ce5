"""How the windows of a convolution or pooling meet their input."""

import math
from collections.abc import Sequence

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


def entries(shape: Shape) -> int | None:
    """Returns the number of values of an array of a shape, or None if a size is not known."""
    known = [size for size in shape if size is not None]
    return math.prod(known) if len(known) == len(shape) else None
