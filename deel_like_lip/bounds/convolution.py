"""Upper bounds of the operator norm of convolutions.

All are bounds for every input size, for zero padding of any amount, and for circular padding where the stride divides
the input size: each of these operators is a compression of the convolution on the infinite grid, or of a quotient of
it.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from deel_like_lip._geometry import max_overlap
from deel_like_lip.bounds.linear import spectral_norm_bound
from deel_like_lip.bounds.rounding import EPSILON, product_up, root_up, up

# Grid points per tap. The grid costs accuracy 1 / cos(pi / (2 * 16)) - 1 = 0.5 % an axis at most.
_POINTS_PER_TAP = 16
# Above this many multiplications the frequency bound is left out. (A tighter bound for large kernels is to come.)
_LARGEST_EFFORT = 5e10
_CHUNK_ENTRIES = 2**22


def convolution_bound(
    kernel: npt.ArrayLike,
    strides: Sequence[int] | None = None,
    dilation_rate: Sequence[int] | None = None,
    groups: int = 1,
) -> float:
    """Returns an upper bound of the l2 operator norm of a convolution with zero or circular padding.

    It is the smaller of two bounds: that of the reshaped kernel, times the root of the number of taps that can meet one
    input position, and the supremum of the symbol over all frequencies.

    Args:
        kernel: Array of shape `(*kernel_size, c_in / groups, c_out)`.
        strides: Stride along each spatial axis, by default 1.
        dilation_rate: Dilation along each spatial axis, by default 1.
        groups: Number of groups of channels; the bound is that of the worst group.

    Returns:
        The bound.
    """
    kernel = np.asarray(kernel, dtype=np.float64)
    rank = kernel.ndim - 2
    strides = tuple(strides or (1,) * rank)
    dilation_rate = tuple(dilation_rate or (1,) * rank)
    overlap = max_overlap(kernel.shape[:rank], strides, dilation_rate)
    bounds = []
    for group in np.split(kernel, groups, axis=-1):
        reshaped = spectral_norm_bound(group.reshape(-1, group.shape[-1]))
        bound = product_up(root_up(overlap), reshaped)
        # Dilation spreads the taps and leaves the supremum as it is; with a stride as well the phases would differ.
        if overlap > 1 and (max(strides) == 1 or max(dilation_rate) == 1):
            bound = min(bound, symbol_bound(_polyphase(group, strides)))
        bounds.append(bound)
    return max(bounds)


def symbol_bound(kernel: npt.NDArray[np.float64]) -> float:
    """Returns an upper bound of the supremum over all frequencies of the norm of a stride-1 convolution's symbol.

    The symbol `K(w) = sum_t kernel[t] exp(-i <t, w>)` is evaluated on a grid. For unit vectors u and v, `u* K(w) v`
    times a phase is a trigonometric polynomial of degree d = floor(k / 2) in each variable, and between N > 2 d
    equidistant points of an axis such a polynomial exceeds its largest value on them by at most `1 / cos(pi d / N)`.

    Args:
        kernel: Array of shape `(*kernel_size, c_in, c_out)`.

    Returns:
        The bound, or infinity where it would cost too much.

    Reference:
        Ehlich and Zeller, 1964, Schwankung von Polynomen zwischen Gitterpunkten.
    """
    *sizes, inputs, outputs = kernel.shape
    degrees = [size // 2 for size in sizes]
    points = [_POINTS_PER_TAP * 2 * degree if degree else 1 for degree in degrees]
    small, large = sorted((inputs, outputs))
    if math.prod(points) * small * small * large > _LARGEST_EFFORT:
        return math.inf
    largest = max(spectral_norm_bound(symbol) for symbol in _symbols(kernel, points))
    # Rounding of the sums over taps, relative to the sum of the norms of the taps.
    taps = kernel.reshape(-1, inputs * outputs)
    rounding = up(EPSILON * (4 * len(taps) + 16) * float(np.sum(np.sqrt(np.sum(taps * taps, axis=1)))))
    slack = [
        up(up(1 / math.cos(math.pi * degree / count)) * (1 + 8 * EPSILON))
        for degree, count in zip(degrees, points, strict=True)
    ]
    return product_up(up(largest + rounding), *slack)


def _symbols(kernel: npt.NDArray[np.float64], points: Sequence[int]) -> Iterator[npt.NDArray[np.complex128]]:
    """Yields the symbol on the grid, in stacks of matrices: on half of it, since a real kernel's is symmetric."""
    *sizes, inputs, outputs = kernel.shape
    axes = [2 * np.pi * np.arange(count) / count for count in points]
    axes[-1] = axes[-1][: points[-1] // 2 + 1]
    frequencies = np.stack([grid.reshape(-1) for grid in np.meshgrid(*axes, indexing="ij")], axis=1)
    positions = np.stack([grid.reshape(-1) for grid in np.meshgrid(*map(np.arange, sizes), indexing="ij")], axis=1)
    taps = kernel.reshape(len(positions), inputs * outputs)
    step = max(1, _CHUNK_ENTRIES // (inputs * outputs))
    for start in range(0, len(frequencies), step):
        phases = np.exp(-1j * (frequencies[start : start + step] @ positions.T))
        yield (phases @ taps).reshape(-1, inputs, outputs)


def _polyphase(kernel: npt.NDArray[np.float64], strides: Sequence[int]) -> npt.NDArray[np.float64]:
    """Folds a strided convolution's phases into channels: the same operator as a stride-1 convolution."""
    for axis, stride in enumerate(strides):
        if stride > 1:
            padding = [(0, 0)] * kernel.ndim
            padding[axis] = (0, -kernel.shape[axis] % stride)
            kernel = np.pad(kernel, padding)
            size = kernel.shape[axis] // stride
            kernel = kernel.reshape(*kernel.shape[:axis], size, stride, *kernel.shape[axis + 1 :])
            kernel = np.moveaxis(kernel, axis + 1, -3)
            kernel = kernel.reshape(*kernel.shape[:-3], stride * kernel.shape[-2], kernel.shape[-1])
    return kernel
