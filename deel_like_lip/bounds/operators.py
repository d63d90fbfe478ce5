"""Linear operators in NumPy float64: their norms, their matrices, and what they become one after another or in sums.

All act on one sample. Shapes are those of a sample, without the batch axis; sizes that are not known are None.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from deel_like_lip._geometry import entries
from deel_like_lip._typing import Shape
from deel_like_lip.bounds.convolution import (
    Axis,
    explicit_matrix,
    grouped_convolution_bound,
    overlap_bound,
    repeated_bound,
)
from deel_like_lip.bounds.linear import spectral_norm_bound
from deel_like_lip.bounds.rounding import EPSILON, norm_up, product_up, root_up, up

Array = npt.NDArray[np.float64]

# Matrices of several operations, or of a convolution, are written out up to this many entries.
LARGEST_MATRIX = 2**22


@dataclasses.dataclass(frozen=True, eq=False)
class Operator:
    """A linear operator.

    Attributes:
        in_shape: Shape of its input.
        out_shape: Shape of its output.
    """

    in_shape: Shape
    out_shape: Shape

    @functools.cached_property
    def norm(self) -> float:
        """An upper bound of the spectral norm."""
        raise NotImplementedError

    @functools.cached_property
    def absolute_norm(self) -> float:
        """An upper bound of the spectral norm of the operator with absolute values of its entries."""
        return self.norm

    @property
    def terms(self) -> int:
        """The largest number of products that are summed for one output, 0 where values are only moved."""
        raise NotImplementedError

    def apply(self, images: Array) -> Array:
        """Applies the operator to a batch, shape `(batch, *in_shape)`. All sizes have to be known."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, eq=False)
class Pick(Operator):
    """Each output is one of the inputs, or zero.

    Attributes:
        repeats: The largest number of outputs that are the same input.
        pick: The same on NumPy arrays `(batch, *in_shape)`, which may write -1 for zeros; None if not known.
    """

    repeats: int = 1
    pick: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]] | None = None

    @functools.cached_property
    def norm(self) -> float:
        return root_up(float(self.repeats))

    @property
    def terms(self) -> int:
        return 0

    def apply(self, images: Array) -> Array:
        indices = self.indices(images.shape[1:])
        flat = images.reshape(len(images), -1)
        return np.where(indices >= 0, flat[:, indices.reshape(-1)].reshape(len(images), *indices.shape), 0.0)

    def indices(self, shape: Shape) -> npt.NDArray[np.int64]:
        """Returns which entry of a sample of that shape each output is, -1 for zeros."""
        assert self.pick is not None
        return self.pick(np.arange(entries(shape) or 0).reshape(1, *shape))[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Scale(Operator):
    """Multiplies each value by a factor.

    Attributes:
        factors: Array that broadcasts to the shape of the input.
        error: How far factors may be from those that are meant, relative to the largest.
    """

    factors: Array
    error: float = 0.0

    @functools.cached_property
    def norm(self) -> float:
        return product_up(float(np.max(np.abs(self.factors), initial=0.0)), up(1 + self.error))

    @property
    def terms(self) -> int:
        return 1

    def apply(self, images: Array) -> Array:
        return images * self.factors

    def by_channel(self, axis: int) -> Array | None:
        """Returns the factors of the channels, or None if they differ within one."""
        shape = (1,) * (len(self.in_shape) - self.factors.ndim) + self.factors.shape
        channels = self.in_shape[axis]
        if channels is None or any(size != 1 for index, size in enumerate(shape) if index != axis % len(shape)):
            return None
        return np.broadcast_to(self.factors.reshape(-1), (channels,))


@dataclasses.dataclass(frozen=True, eq=False)
class Dense(Operator):
    """A matrix on one axis, at each position of the others.

    Attributes:
        kernel: Shape `(inputs, outputs)`.
        axis: The axis of the sample.
        error: By how much the matrix may be off, in Frobenius norm.
    """

    kernel: Array
    axis: int = -1
    error: float = 0.0

    @functools.cached_property
    def norm(self) -> float:
        return up(spectral_norm_bound(self.kernel) + self.error)

    @functools.cached_property
    def absolute_norm(self) -> float:
        return up(spectral_norm_bound(np.abs(self.kernel)) + self.error)

    @property
    def terms(self) -> int:
        return len(self.kernel)

    def apply(self, images: Array) -> Array:
        axis = self.axis if self.axis < 0 else self.axis + 1
        return np.moveaxis(np.moveaxis(images, axis, -1) @ self.kernel, -1, axis)


@dataclasses.dataclass(frozen=True, eq=False)
class Einsum(Operator):
    """`einsum` with a kernel, of which the norm is that of matrices.

    Attributes:
        equation: Of the batch and the kernel.
        kernel: The kernel.
        matrices: The kernel as a stack of matrices, one for each index that input, kernel and output share.
    """

    equation: str
    kernel: Array
    matrices: Array

    @functools.cached_property
    def norm(self) -> float:
        return spectral_norm_bound(self.matrices)

    @functools.cached_property
    def absolute_norm(self) -> float:
        return spectral_norm_bound(np.abs(self.matrices))

    @property
    def terms(self) -> int:
        return int(self.matrices.shape[-2])

    def apply(self, images: Array) -> Array:
        return np.einsum(self.equation, images, self.kernel, optimize=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Separable(Operator):
    """One matrix for each of some axes, such as average pooling.

    Attributes:
        matrices: The matrix of each axis of the sample that has one, shape `(outputs, inputs)`.
        drop: Whether these axes are dropped from the output.
    """

    matrices: dict[int, Array]
    drop: bool = False

    @functools.cached_property
    def norm(self) -> float:
        # (Entries such as 1/3 are rounded.)
        return product_up(*(spectral_norm_bound(matrix) * (1 + 8 * EPSILON) for matrix in self.matrices.values()))

    @functools.cached_property
    def absolute_norm(self) -> float:
        return product_up(
            *(spectral_norm_bound(np.abs(matrix)) * (1 + 8 * EPSILON) for matrix in self.matrices.values())
        )

    @property
    def terms(self) -> int:
        return math.prod(int(np.max(np.count_nonzero(matrix, axis=1))) for matrix in self.matrices.values()) + 2

    def apply(self, images: Array) -> Array:
        for axis, matrix in self.matrices.items():
            images = np.moveaxis(np.moveaxis(images, axis + 1, -1) @ matrix.T, -1, axis + 1)
        return np.squeeze(images, tuple(axis + 1 for axis in self.matrices)) if self.drop else images


@dataclasses.dataclass(frozen=True, eq=False)
class Centering(Operator):
    """Subtracts the mean over some axes of the sample, an orthogonal projection for every size of them.

    Attributes:
        axes: The axes of the sample.
        count: Number of values in a mean, None if not known.
    """

    axes: tuple[int, ...]
    count: int | None

    @functools.cached_property
    def norm(self) -> float:
        return 1.0

    @functools.cached_property
    def absolute_norm(self) -> float:
        # A value and the mean are terms of their own, even where the mean holds the value.
        return 2.0

    @property
    def terms(self) -> int:
        return 2 if self.count is None else self.count + 1

    def apply(self, images: Array) -> Array:
        return images - np.mean(images, axis=tuple(axis + 1 for axis in self.axes), keepdims=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Convolution(Operator):
    """A convolution, or the transpose of one.

    Attributes:
        kernels: One kernel for each group, shape `(groups, *taps, c_in, c_out)`, in the roles that input and output
            have in the convolution even where this is its transpose.
        axes: The spatial axes of the convolution.
        channels_first: Whether the channels of a sample are its first axis instead of its last.
        transposed: Whether this is the transpose.
        error: By how much the kernels may be off, in Frobenius norm.
    """

    kernels: Array
    axes: tuple[Axis, ...]
    channels_first: bool = False
    transposed: bool = False
    error: float = 0.0

    @property
    def kernel_error(self) -> float:
        """By how much the norm may be off because the kernels are."""
        return product_up(root_up(float(math.prod(axis.taps for axis in self.axes))), self.error)

    @functools.cached_property
    def norm(self) -> float:
        return up(_convolution_norm(self.kernels.tobytes(), self.kernels.shape, self.axes) + self.kernel_error)

    @functools.cached_property
    def absolute_norm(self) -> float:
        kernels = np.abs(self.kernels)
        bound = overlap_bound(kernels, self.axes)
        if all(axis.stride == 1 for axis in self.axes):
            # Entry by entry, no symbol exceeds the sum of the absolute taps.
            spatial = tuple(range(1, kernels.ndim - 2))
            summed = spectral_norm_bound(np.sum(kernels, axis=spatial)) * (1 + EPSILON * math.prod(kernels.shape[1:-2]))
            bound = min(bound, summed)
        return up(bound + self.kernel_error)

    @property
    def terms(self) -> int:
        taps = math.prod(axis.taps for axis in self.axes)
        return taps * int(self.kernels.shape[-1] if self.transposed else self.kernels.shape[-2])

    @functools.cached_property
    def matrix(self) -> Array:
        """The convolution as a matrix of flat samples, `(inputs, outputs)` of the operator."""
        groups, rank = len(self.kernels), len(self.axes)
        inputs, outputs = self.kernels.shape[-2:]
        parts = [explicit_matrix(kernel, self.axes) for kernel in self.kernels]
        places, windows = parts[0].shape[:rank], parts[0].shape[rank + 1 : -1]
        full = np.zeros((*places, groups, inputs, *windows, groups, outputs))
        everywhere = (slice(None),) * rank
        for group, part in enumerate(parts):
            full[(*everywhere, group, slice(None), *everywhere, group)] = part  # type: ignore[index]
        matrix = full.reshape(*places, groups * inputs, *windows, groups * outputs)
        if self.channels_first:
            matrix = np.moveaxis(np.moveaxis(matrix, rank, 0), -1, rank + 1)
        matrix = matrix.reshape(math.prod(places) * groups * inputs, -1)
        return matrix.T if self.transposed else matrix

    def apply(self, images: Array) -> Array:
        return (images.reshape(len(images), -1) @ self.matrix).reshape(len(images), *self.out_shape)


@dataclasses.dataclass(frozen=True, eq=False)
class PaddedConvolution(Operator):
    """A convolution of an image around which values of it are repeated.

    Attributes:
        pad: What repeats them.
        convolution: The convolution of the padded image.
        overlap: The largest number of taps, over all windows together, that meet one value of the image or its copies.
    """

    pad: Pick
    convolution: Convolution
    overlap: int

    @functools.cached_property
    def norm(self) -> float:
        convolution = self.convolution
        repeated = repeated_bound(convolution.kernels, self.overlap)
        # Here an error of the kernels, in Frobenius norm, is one of the reshaped kernels.
        repeated = up(repeated + product_up(root_up(float(self.overlap)), convolution.error))
        bound = min(repeated, product_up(self.pad.norm, convolution.norm))
        inputs, padded, outputs = (entries(shape) or 0 for shape in (self.in_shape, self.pad.out_shape, self.out_shape))
        if max(inputs, padded) * outputs > LARGEST_MATRIX:
            return bound
        # Entries of the matrix are sums of at most as many terms as there are in one of the convolution.
        rounding = EPSILON * (2 * self.terms + 8) * self.absolute_norm * math.sqrt(inputs)
        return min(bound, up(spectral_norm_bound(self._matrix) + (rounding + error_norm(self))))

    @functools.cached_property
    def absolute_norm(self) -> float:
        convolution = self.convolution
        repeated = repeated_bound(np.abs(convolution.kernels), self.overlap)
        repeated = up(repeated + product_up(root_up(float(self.overlap)), convolution.error))
        return min(repeated, product_up(self.pad.norm, convolution.absolute_norm))

    @property
    def terms(self) -> int:
        return self.convolution.terms

    @functools.cached_property
    def _matrix(self) -> Array:
        """As that of a convolution. Rows of values that are repeated are summed."""
        padded = self.convolution.matrix
        matrix = np.zeros((entries(self.in_shape) or 0, padded.shape[1]))
        np.add.at(matrix, self.pad.indices(self.in_shape).reshape(-1), padded)
        return matrix

    def apply(self, images: Array) -> Array:
        return (images.reshape(len(images), -1) @ self._matrix).reshape(len(images), *self.out_shape)


@functools.lru_cache(maxsize=4)
def _convolution_norm(kernels: bytes, shape: tuple[int, ...], axes: tuple[Axis, ...]) -> float:
    """Returns the bound of a convolution, once for one that is applied several times in a row."""
    return grouped_convolution_bound(np.frombuffer(kernels).reshape(shape), axes)


# --- one after another, and in sums ----------------------------------------------------------------------------------


def merge(first: Operator, second: Operator) -> Operator | None:
    """Returns one operator for two in a row, where that is as simple as they are; None otherwise.

    So a convolution and the batch normalization after it are bounded as one convolution.
    """
    if isinstance(first, PaddedConvolution):
        merged = merge(first.convolution, second)
        if not isinstance(merged, Convolution):
            return None
        return dataclasses.replace(first, convolution=merged, out_shape=merged.out_shape)
    if isinstance(first, Convolution) and not first.transposed:
        matrix = _on_channels(second, _channel_axis(first))
        if matrix is None:
            return None
        kernels = _after(first.kernels, matrix)
        if kernels is None:
            return None
        error = _merged_error(first.kernels, first.error, matrix, _error(second))
        return dataclasses.replace(first, kernels=kernels, error=error, out_shape=second.out_shape)
    if isinstance(second, Convolution) and not second.transposed:
        matrix = _on_channels(first, _channel_axis(second))
        if matrix is None:
            return None
        kernels = _before(matrix, second.kernels)
        if kernels is None:
            return None
        error = _merged_error(second.kernels, second.error, matrix, _error(first))
        return dataclasses.replace(second, kernels=kernels, error=error, in_shape=first.in_shape)
    axis = first.axis if isinstance(first, Dense) else second.axis if isinstance(second, Dense) else -1
    left, right = _on_channels(first, axis), _on_channels(second, axis)
    if left is None or right is None:
        return None
    kernel = _product(left, right)
    if kernel.ndim == 1:
        return None  # of two scalings: nothing to be gained
    error = _merged_error(left, _error(first), right, _error(second))
    return Dense(first.in_shape, second.out_shape, kernel, axis, error)


def add(first: Operator, second: Operator, sign: float = 1.0) -> Operator | None:
    """Returns one operator for the sum `first + sign * second`, where that is as simple as they are; None otherwise."""
    if first.in_shape != second.in_shape or first.out_shape != second.out_shape:
        return None
    convolutions = [part for part in (first, second) if isinstance(part, Convolution)]
    if not convolutions:
        axis = next((part.axis for part in (first, second) if isinstance(part, Dense)), -1)
        matrices = [_as_matrix(part, axis) for part in (first, second)]
        if matrices[0] is None or matrices[1] is None:
            return None
        kernel = matrices[0] + sign * matrices[1]
        return Dense(first.in_shape, first.out_shape, kernel, axis, _summed_error(kernel, first, second))
    first_first = convolutions[0].channels_first
    parts = [_as_convolution(part, first_first, len(convolutions[0].axes)) for part in (first, second)]
    if parts[0] is None or parts[1] is None:
        return None
    return _add_convolutions(parts[0], parts[1], sign)


def identity(shape: Shape) -> Operator:
    """Returns the operator that does nothing."""
    return Scale(shape, shape, np.ones(()))


def _channel_axis(convolution: Convolution) -> int:
    return 0 if convolution.channels_first else -1


def error_norm(operator: Operator) -> float:
    """Returns by how much, in norm, an operator may be off the one that is meant."""
    if isinstance(operator, PaddedConvolution):
        return product_up(operator.pad.norm, operator.convolution.kernel_error)
    return operator.kernel_error if isinstance(operator, Convolution) else _error(operator)


def _error(operator: Operator) -> float:
    if isinstance(operator, Scale):
        return operator.error * float(np.max(np.abs(operator.factors), initial=0.0))
    return float(getattr(operator, "error", 0.0))


def _on_channels(operator: Operator, axis: int) -> Array | None:
    """Returns what an operator does to the channels: a matrix, or the factors of a scaling; None if it is neither."""
    if isinstance(operator, Dense):
        rank = len(operator.in_shape)
        return operator.kernel if operator.axis % rank == axis % rank else None
    return operator.by_channel(axis) if isinstance(operator, Scale) else None


def _as_matrix(operator: Operator, axis: int) -> Array | None:
    matrix = _on_channels(operator, axis)
    if matrix is not None and matrix.ndim == 1:
        return np.diag(matrix) if len(matrix) ** 2 <= LARGEST_MATRIX else None
    return matrix


def _product(left: Array, right: Array) -> Array:
    """Multiplies two matrices, each of which may be the factors of a diagonal one."""
    if right.ndim == 1:
        return left * right
    return left[:, None] * right if left.ndim == 1 else left @ right


def _after(kernels: Array, matrix: Array) -> Array | None:
    """Lets a matrix on the output channels follow kernels."""
    if matrix.ndim == 1:
        groups, outputs = len(kernels), kernels.shape[-1]
        return kernels * matrix.reshape(groups, *(1,) * (kernels.ndim - 2), outputs)
    parts = [kernel @ rows for kernel, rows in zip(kernels, np.split(matrix, len(kernels)), strict=True)]
    return np.concatenate(parts, axis=-2)[None] if _small(len(parts) * parts[0].size, kernels) else None


def _small(entries: int, given: Array) -> bool:
    return entries <= max(LARGEST_MATRIX, 4 * given.size)


def _before(matrix: Array, kernels: Array) -> Array | None:
    """Lets a matrix on the input channels precede kernels."""
    if matrix.ndim == 1:
        groups, inputs = len(kernels), kernels.shape[-2]
        return kernels * matrix.reshape(groups, *(1,) * (kernels.ndim - 3), inputs, 1)
    parts = [rows @ kernel for kernel, rows in zip(kernels, np.split(matrix, len(kernels), axis=1), strict=True)]
    return np.concatenate(parts, axis=-1)[None] if _small(len(parts) * parts[0].size, kernels) else None


def _merged_error(left: Array, left_error: float, right: Array, right_error: float) -> float:
    """Bounds the error of a product, in Frobenius norm, from those of its factors and its own rounding."""
    left_norm, right_norm = norm_up(left), norm_up(right)
    rounding = EPSILON * (2 * max(left.shape[-1], right.shape[0], right.shape[-1]) + 8) * left_norm * right_norm
    carried = left_error * (right_norm + right_error) + left_norm * right_error
    return (rounding + carried) * (1 + 16 * EPSILON)


def _summed_error(total: Array, *parts: Operator) -> float:
    return sum(map(_error, parts)) * (1 + 4 * EPSILON) + 4 * EPSILON * norm_up(total)


def _as_convolution(operator: Operator, channels_first: bool, rank: int) -> Convolution | None:
    """Returns an operator as a convolution with stride 1 that keeps the size of the image, in one group."""
    if isinstance(operator, Convolution):
        plain = not operator.transposed and operator.channels_first == channels_first
        keeps = all(axis.stride == 1 and not axis.circular and axis.size == axis.outputs for axis in operator.axes)
        if not plain or not keeps or not all(_pads_same(axis) for axis in operator.axes):
            return None
        groups, inputs, outputs = len(operator.kernels), *operator.kernels.shape[-2:]
        if groups * groups * operator.kernels[0].size > LARGEST_MATRIX:
            return None
        if groups == 1:
            return operator
        full = np.zeros((*operator.kernels.shape[1:-2], groups, inputs, groups, outputs))
        for group, kernel in enumerate(operator.kernels):
            full[..., group, :, group, :] = kernel
        kernels = full.reshape(1, *operator.kernels.shape[1:-2], groups * inputs, groups * outputs)
        return dataclasses.replace(operator, kernels=kernels)
    if len(operator.in_shape) != rank + 1:
        return None
    matrix = _as_matrix(operator, 0 if channels_first else -1)
    if matrix is None:
        return None
    sizes = operator.in_shape[1:] if channels_first else operator.in_shape[:-1]
    axes = tuple(Axis(1, size=size, outputs=size) for size in sizes)
    kernels = matrix.reshape(1, *(1,) * rank, *matrix.shape)
    return Convolution(operator.in_shape, operator.out_shape, kernels, axes, channels_first, error=_error(operator))


def _pads_same(axis: Axis) -> bool:
    """Whether windows lie on the axis as those of padding "same" do, or causal ones: every input has its output."""
    return 0 <= axis.before <= axis.dilation * (axis.taps - 1)


def _add_convolutions(first: Convolution, second: Convolution, sign: float) -> Convolution | None:
    """Adds two convolutions, after aligning their taps on one grid without dilation."""
    axes, frames = [], []
    for one, other in zip(first.axes, second.axes, strict=True):
        before = max(one.before, other.before)
        after = max(axis.dilation * (axis.taps - 1) - axis.before for axis in (one, other))
        axes.append(Axis(before + after + 1, 1, 1, before, one.size, one.outputs))
        frames.append(
            [
                slice(before - axis.before, before - axis.before + axis.dilation * (axis.taps - 1) + 1, axis.dilation)
                for axis in (one, other)
            ]
        )
    channels = first.kernels.shape[-2:]
    shape = (1, *(axis.taps for axis in axes), *channels)
    if math.prod(shape) > LARGEST_MATRIX:
        return None
    total = np.zeros(shape)
    for index, (part, factor) in enumerate(((first, 1.0), (second, sign))):
        total[(slice(None), *(frame[index] for frame in frames))] += factor * part.kernels
    return Convolution(
        first.in_shape,
        first.out_shape,
        total,
        tuple(axes),
        first.channels_first,
        error=_summed_error(total, first, second),
    )


# --- average pooling and interpolation as matrices -------------------------------------------------------------------


def average_matrix(axis: Axis, *, edges_repeated: bool = False) -> Array:
    """Returns average pooling along an axis, shape `(outputs, size)`.

    Args:
        axis: How windows lie on the axis.
        edges_repeated: Whether a window that leaves the input meets its last value again. Otherwise the mean is that of
            the values inside.
    """
    meets = axis.positions()
    matrix = np.zeros((len(meets), axis.size or 0))
    for output, (row, positions) in enumerate(zip(matrix, meets, strict=True)):
        if edges_repeated:
            window = axis.stride * output - axis.before + np.arange(axis.taps)
            np.add.at(row, np.clip(window, 0, len(row) - 1), 1 / axis.taps)
        else:
            inside = positions[positions >= 0]
            row[inside] = 1 / max(len(inside), 1)
    return matrix


def mean_matrix(size: int) -> Array:
    """Returns the mean along one axis as a matrix."""
    return np.full((1, size), 1 / size)


def spatial_axes(rank: int, channels_first: bool) -> Sequence[int]:
    """Returns the spatial axes of a sample of an image with as many spatial dimensions."""
    return range(1, rank + 1) if channels_first else range(rank)
