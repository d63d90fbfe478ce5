"""Upper bounds of the operator norm of convolutions.

A convolution with zero padding on an image is a compression of one on a torus that is large enough, or on the infinite
grid: its norm is at most the supremum of the symbol over the frequencies of that torus, or over all. Operators that are
small enough are written out, which gives their norm up to rounding.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from deel_like_lip._geometry import max_overlap
from deel_like_lip.bounds.linear import largest_eigenvalue_bound, spectral_norm_bound
from deel_like_lip.bounds.rounding import EPSILON, product_up, root_up, up

Array = npt.NDArray[np.float64]

# Operators with no more rows or columns than this are written out.
_LARGEST_EXPLICIT = 2048
# Grid points per tap where the supremum is over all frequencies: it costs 1 / cos(pi / (2 * 16)) - 1 = 0.5 % an axis.
_POINTS_PER_TAP = 16
# In multiplications: above the first, only one torus is tried; above the second, none.
_CHEAP_EFFORT = 2e8
_LARGEST_EFFORT = 2e12
_CHUNK_ENTRIES = 2**22


@dataclasses.dataclass(frozen=True)
class Axis:
    """How the windows of a convolution lie on one axis: tap t of output o meets `stride o + dilation t - before`.

    Attributes:
        taps: Number of taps.
        stride: Stride of the windows.
        dilation: Dilation of the taps.
        before: By how much the first window begins before the input.
        size: Number of inputs, or None if it is not known.
        outputs: Number of outputs, or None.
        circular: Whether positions outside of the input wrap around, instead of meeting zeros.
    """

    taps: int
    stride: int = 1
    dilation: int = 1
    before: int = 0
    size: int | None = None
    outputs: int | None = None
    circular: bool = False

    @classmethod
    def of(cls, taps: int, stride: int, dilation: int, padding: str, size: int | None) -> "Axis":
        """Returns the axis of a Keras convolution with padding "valid", "same" or "causal"."""
        extent = dilation * (taps - 1) + 1
        if size is None:  # with stride 1 padding does not depend on it
            before = {"same": (extent - 1) // 2, "causal": extent - 1}.get(padding, 0) if stride == 1 else 0
            return cls(taps, stride, dilation, before)
        before, outputs = 0, (size - extent) // stride + 1
        if padding == "same":
            outputs = -(-size // stride)
            before = max((outputs - 1) * stride + extent - size, 0) // 2
        elif padding == "causal":
            before, outputs = extent - 1, (size - 1) // stride + 1
        return cls(taps, stride, dilation, before, size, max(outputs, 0))

    def positions(self) -> npt.NDArray[np.int64]:
        """Returns which input each tap of each output meets, -1 for none; shape `(outputs, taps)`."""
        assert self.size is not None
        assert self.outputs is not None
        windows = self.stride * np.arange(self.outputs)[:, None] - self.before
        met = windows + self.dilation * np.arange(self.taps)
        if self.circular:
            return met % self.size
        return np.where((met >= 0) & (met < self.size), met, -1)

    def torus(self) -> int | None:
        """Returns the size, in strides, of the smallest torus on which no window meets an input twice over.

        A window that leaves the input to one side must not meet it again from the other.
        """
        if self.size is None or self.outputs is None:
            return None
        if self.circular:
            return self.size // self.stride if self.size % self.stride == 0 else None
        last = self.stride * (self.outputs - 1) + self.dilation * (self.taps - 1) - self.before
        needed = max(self.size + max(self.before, 0), last + 1, self.stride * self.outputs, 1)
        return -(-needed // self.stride)


def convolution_bound(
    kernel: npt.ArrayLike,
    strides: Sequence[int] | None = None,
    dilation_rate: Sequence[int] | None = None,
    groups: int = 1,
    padding: str = "valid",
    size: Sequence[int | None] | None = None,
) -> float:
    """Returns an upper bound of the l2 operator norm of a convolution, as Keras computes it.

    The transposed convolution with the same kernel, from the outputs to the inputs, has the same norm.

    Args:
        kernel: Array of shape `(*kernel_size, c_in / groups, c_out)`.
        strides: Stride along each spatial axis, by default 1.
        dilation_rate: Dilation along each spatial axis, by default 1.
        groups: Number of groups of channels; the bound is that of the worst group.
        padding: "valid", "same" or "causal": zeros.
        size: Spatial size of the input. Without it the bound holds for all sizes, for any amount of zero padding, and
            for circular padding where the stride divides the size.

    Returns:
        The bound.

    Example:
        >>> difference = np.array([1.0, -1.0]).reshape(2, 1, 1)  # two taps, one channel
        >>> round(convolution_bound(difference), 3), round(convolution_bound(difference, strides=[2]), 3)
        (2.0, 1.414)
    """
    kernel = np.asarray(kernel, dtype=np.float64)
    rank = kernel.ndim - 2
    taps = kernel.shape[:rank]
    geometry = zip(taps, strides or (1,) * rank, dilation_rate or (1,) * rank, size or (None,) * rank, strict=True)
    axes = [Axis.of(tap, stride, dilation, padding, extent) for tap, stride, dilation, extent in geometry]
    return grouped_convolution_bound(np.stack(np.split(kernel, groups, axis=-1)), axes)


def grouped_convolution_bound(kernels: Array, axes: Sequence[Axis]) -> float:
    """Returns an upper bound of the norm of a convolution, or of its transpose.

    Args:
        kernels: One kernel for each group of channels, shape `(groups, *taps, c_in, c_out)`.
        axes: The spatial axes.
    """
    if not np.all(np.isfinite(kernels)):
        return math.inf
    if any(axis.outputs == 0 or axis.size == 0 for axis in axes):
        return 0.0
    inputs, outputs = kernels.shape[-2:]
    covered = all(axis.torus() is not None or not axis.circular for axis in axes)
    bounds = [math.inf]
    if covered:  # otherwise windows that wrap around may meet an input more often
        bounds.append(overlap_bound(kernels, axes))
    sizes = [(axis.size, axis.outputs) for axis in axes]
    if all(None not in pair for pair in sizes):
        small = min(
            inputs * math.prod(size or 0 for size, _ in sizes), outputs * math.prod(count or 0 for _, count in sizes)
        )
        if small <= _LARGEST_EXPLICIT:
            return min(min(bounds), max(_explicit_norm_bound(kernel, axes) for kernel in kernels))
    if covered and _overlap(axes) > 1:
        bounds.append(_symbol_norm_bound(kernels, axes))
    return min(bounds)


def overlap_bound(kernels: Array, axes: Sequence[Axis]) -> float:
    """Returns the norm of the reshaped kernels times the root of the number of taps that can meet one input."""
    return repeated_bound(kernels, _overlap(axes))


def repeated_bound(kernels: Array, overlap: int) -> float:
    """Returns the norm of the reshaped kernels times the root of an overlap.

    With the reshaped kernel K, `|y|^2 = sum_o |K x_o|^2 <= |K|^2 sum_o |x_o|^2`, and in the last sum each input is
    counted once for each tap that meets it.
    """
    reshaped = spectral_norm_bound(kernels.reshape(len(kernels), -1, kernels.shape[-1]))
    return product_up(root_up(float(overlap)), reshaped)


def _overlap(axes: Sequence[Axis]) -> int:
    return max_overlap(*([getattr(axis, name) for axis in axes] for name in ("taps", "stride", "dilation")))


# --- operators that are written out ----------------------------------------------------------------------------------


def explicit_matrix(kernel: Array, axes: Sequence[Axis]) -> Array:
    """Returns a convolution as an array of shape `(*sizes, c_in, *outputs, c_out)`. Its entries are exact."""
    sizes = [axis.size or 0 for axis in axes]
    counts = [axis.outputs or 0 for axis in axes]
    inputs, outputs = kernel.shape[-2:]
    matrix = np.zeros((*sizes, inputs, *counts, outputs))
    met = [axis.positions() for axis in axes]
    rank = len(axes)
    for taps in itertools.product(*(range(axis.taps) for axis in axes)):
        columns = [np.flatnonzero(table[:, tap] >= 0) for table, tap in zip(met, taps, strict=True)]
        rows = [table[where, tap] for table, where, tap in zip(met, columns, taps, strict=True)]
        if not all(len(where) for where in columns):
            continue
        grid = [
            array.reshape([-1 if place == axis else 1 for place in range(rank)])
            for arrays in (rows, columns)
            for axis, array in enumerate(arrays)
        ]
        # Advanced indices that are split by a slice come first: (..., c_in, c_out).
        matrix[(*grid[:rank], slice(None), *grid[rank:], slice(None))] += kernel[taps]
    return matrix


def _explicit_norm_bound(kernel: Array, axes: Sequence[Axis]) -> float:
    """Returns the norm of a small operator, from the Gram matrix of its smaller side.

    Along one axis the operator is a sum of shifts, one a tap, times operators E_t on the other axes. So the blocks of
    the Gram matrix are sums of products of two E_t, of which there are few.
    """
    if not kernel.any():
        return 0.0
    scale = 2.0 ** math.ceil(math.log2(np.max(np.abs(kernel))))
    kernel = kernel / scale
    input_side = math.prod(axis.size or 0 for axis in axes) * kernel.shape[-2]
    output_side = math.prod(axis.outputs or 0 for axis in axes) * kernel.shape[-1]
    first = max(range(len(axes)), key=lambda index: axes[index].size or 0)
    axis, rest = axes[first], [*axes[:first], *axes[first + 1 :]]
    parts = [explicit_matrix(tap, rest) for tap in np.moveaxis(kernel, first, 0)]
    rows = math.prod(size.size or 0 for size in rest) * kernel.shape[-2]
    stack = np.stack([part.reshape(rows, -1) for part in parts])
    positions = axis.positions()
    meets = [(int(met), output, tap) for (output, tap), met in np.ndenumerate(positions) if met >= 0]
    if output_side < input_side:
        stack = np.swapaxes(stack, 1, 2)
        meets = [(output, met, tap) for met, output, tap in meets]
        blocks = axis.outputs or 0
    else:
        blocks = axis.size or 0
    products = np.einsum("aij,bkj->abik", stack, stack, optimize=True)
    by_summed: dict[int, list[tuple[int, int]]] = {}
    for kept, summed, tap in meets:
        by_summed.setdefault(summed, []).append((kept, tap))
    side = stack.shape[1]
    gram = np.zeros((blocks, side, blocks, side))
    for entries in by_summed.values():
        for (kept, tap), (other, another) in itertools.product(entries, entries):
            gram[kept, :, other] += products[tap, another]
    frobenius = float(sum(np.sum(stack[tap] ** 2) for _, _, tap in meets))
    terms = stack.shape[2] + len(positions) * axis.taps
    error = np.array([EPSILON * (4 * terms + 16) * frobenius])
    return scale * root_up(largest_eigenvalue_bound(gram.reshape(1, blocks * side, -1), error))


# --- symbols ---------------------------------------------------------------------------------------------------------


def _symbol_norm_bound(kernels: Array, axes: Sequence[Axis]) -> float:
    """Returns an upper bound from the symbol, on a torus that contains the image or over all frequencies.

    The values of the image may also be continued with a change of sign: for zero padding they meet nothing but zeros
    either way. So each torus gives two bounds an axis, on frequencies `2 pi j / N` and on those halfway between.
    """
    kernels, multipliers = _at_stride_one(kernels, axes)
    tori = [axis.torus() for axis in axes]
    everywhere = _points_of_supremum(kernels)
    points = [torus for torus in tori if torus is not None]
    if len(points) < len(axes) or math.prod(points) > math.prod(everywhere):
        return _supremum_bound(kernels) if _effort(kernels, everywhere) <= _LARGEST_EFFORT else math.inf
    if _effort(kernels, points) > _LARGEST_EFFORT:
        return math.inf
    signs = [(0.0,) if axis.circular else (0.5, 0.0) for axis in axes]
    cheap = _effort(kernels, points) <= _CHEAP_EFFORT
    choices = list(itertools.product(*signs)) if cheap else [tuple(options[0] for options in signs)]
    best = math.inf
    for offsets in choices:
        best = min(best, _grid_bound(kernels, points, offsets, multipliers))
    return best


def _effort(kernels: Array, points: Sequence[int]) -> float:
    small, large = sorted(kernels.shape[-2:])
    return float(len(kernels) * math.prod(points) / 2 * small * small * large)


def symbol_bound(kernel: Array) -> float:
    """Returns an upper bound of the supremum over all frequencies of the norm of a stride-1 convolution's symbol.

    Args:
        kernel: Array of shape `(*kernel_size, c_in, c_out)`.
    """
    return _supremum_bound(np.asarray(kernel, dtype=np.float64)[None])


def _supremum_bound(kernels: Array) -> float:
    """Bounds the supremum of the symbol `K(w) = sum_t kernel[t] exp(-i <t, w>)` over all frequencies w.

    It is evaluated on a grid. For unit vectors u and v, `u* K(w) v` times a phase is a trigonometric polynomial of
    degree d = floor(k / 2) in each variable, and between N > 2 d equidistant points of an axis such a polynomial
    exceeds its largest value on them by at most `1 / cos(pi d / N)`.

    Reference:
        Ehlich and Zeller, 1964, Schwankung von Polynomen zwischen Gitterpunkten.
    """
    sizes = kernels.shape[1:-2]
    degrees = [size // 2 for size in sizes]
    points = _points_of_supremum(kernels)
    slack = [
        up(up(1 / math.cos(math.pi * degree / count)) * (1 + 8 * EPSILON))
        for degree, count in zip(degrees, points, strict=True)
    ]
    return product_up(_grid_bound(kernels, points, (0.0,) * len(sizes), (1,) * len(sizes)), *slack)


def _points_of_supremum(kernels: Array) -> list[int]:
    return [max(1, _POINTS_PER_TAP * 2 * (size // 2)) for size in kernels.shape[1:-2]]


def _grid_bound(kernels: Array, points: Sequence[int], offsets: Sequence[float], multipliers: Sequence[int]) -> float:
    """Returns an upper bound of the norm of the symbols at the frequencies `2 pi (j + offset) / points`, j = 0, 1, ...

    Args:
        kernels: Stride-1 kernels, shape `(groups, *taps, c_in, c_out)`.
        points: Number of frequencies along each axis.
        offsets: 0 or 1/2 along each axis: the frequencies are then symmetric, and half of them tell the norm of all.
        multipliers: Distance of neighbouring taps along each axis.
    """
    sizes = kernels.shape[1:-2]
    axes = [2 * np.pi * (np.arange(count) + offset) / count for count, offset in zip(points, offsets, strict=True)]
    # A real kernel has conjugate symbols at opposite frequencies.
    axes[-1] = axes[-1][: points[-1] // 2 + 1]
    frequencies = np.stack([grid.reshape(-1) for grid in np.meshgrid(*axes, indexing="ij")], axis=1)
    taps = [multiplier * np.arange(size) for size, multiplier in zip(sizes, multipliers, strict=True)]
    positions = np.stack([grid.reshape(-1) for grid in np.meshgrid(*taps, indexing="ij")], axis=1)
    largest = rounding = 0.0
    for kernel in kernels:
        matrix = kernel.reshape(len(positions), -1)
        # Rounding of the phases and of the sums over taps, relative to the sum of the norms of the taps. (Angles grow
        # with the positions, and so does their rounding.)
        terms = 4 * len(positions) + 16 + 32 * int(np.sum(positions[-1]))
        tap_norms = float(np.sum(np.sqrt(np.sum(matrix * matrix, axis=1))))
        rounding = max(rounding, up(EPSILON * terms * tap_norms))
        for stack in _symbols(matrix, frequencies, positions):
            shaped = stack.reshape(-1, *kernel.shape[-2:])
            largest = max(largest, spectral_norm_bound(shaped, floor=largest))
    return up(largest + rounding)


def _symbols(taps: Array, frequencies: Array, positions: Array) -> Iterator[npt.NDArray[np.complex128]]:
    """Yields the symbols in stacks of bounded size."""
    step = max(1, _CHUNK_ENTRIES // taps.shape[1])
    for start in range(0, len(frequencies), step):
        yield np.exp(-1j * (frequencies[start : start + step] @ positions.T)) @ taps


def _at_stride_one(kernels: Array, axes: Sequence[Axis]) -> tuple[Array, list[int]]:
    """Folds the phases of strided axes into channels: the same operator with stride 1.

    Returns:
        Kernels of shape `(groups, *taps, c_in * strides, c_out)`, and the distance of taps along each axis.
    """
    multipliers = []
    for index, axis in enumerate(axes, start=1):
        if axis.stride == 1:
            multipliers.append(axis.dilation)
            continue
        multipliers.append(1)
        if axis.dilation > 1:
            spread = np.zeros(
                (*kernels.shape[:index], axis.dilation * (axis.taps - 1) + 1, *kernels.shape[index + 1 :])
            )
            spread[(slice(None),) * index + (slice(None, None, axis.dilation),)] = kernels
            kernels = spread
        padding = [(0, 0)] * kernels.ndim
        padding[index] = (0, -kernels.shape[index] % axis.stride)
        kernels = np.pad(kernels, padding)
        size = kernels.shape[index] // axis.stride
        kernels = kernels.reshape(*kernels.shape[:index], size, axis.stride, *kernels.shape[index + 1 :])
        kernels = np.moveaxis(kernels, index + 1, -3)
        kernels = kernels.reshape(*kernels.shape[:-3], axis.stride * kernels.shape[-2], kernels.shape[-1])
    return kernels, multipliers
