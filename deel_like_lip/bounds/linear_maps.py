"""Tensors of a model as linear maps of earlier ones, so that chains and sums of linear operations have one norm."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from deel_like_lip._geometry import entries
from deel_like_lip._typing import Shape
from deel_like_lip.bounds.linear import spectral_norm_bound
from deel_like_lip.bounds.operators import (
    LARGEST_MATRIX,
    Convolution,
    Dense,
    Operator,
    PaddedConvolution,
    Pick,
    Scale,
    add,
    error_norm,
    identity,
    merge,
)
from deel_like_lip.bounds.rounding import EPSILON, norm_up, up

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A linear map that is written out.

    Attributes:
        images: The images of the basis vectors of its source, shape `(inputs, *shape)`.
        error: By how much they may be off, in Frobenius norm.
    """

    images: Array
    error: float = 0.0

    @property
    def flat(self) -> Array:
        return self.images.reshape(len(self.images), -1)

    def norm(self) -> float:
        """Returns an upper bound of the spectral norm."""
        return up(spectral_norm_bound(self.flat) + self.error)


@dataclasses.dataclass(frozen=True, eq=False)
class LinearMap:
    """A tensor as an affine function of an earlier one, without its constant part.

    Attributes:
        source: The earlier tensor.
        in_shape: Shape of a sample of the source.
        out_shape: Shape of a sample of the tensor.
        steps: How many operations have gone into it that are not mere moves of values.
        operator: The map as a single operator, if it is one.
        write: Writes the map out as a matrix; None where that would be too large.
    """

    source: Any
    in_shape: Shape
    out_shape: Shape
    steps: int
    operator: Operator | None
    write: Callable[[], Matrix] | None

    @classmethod
    def of(cls, source: Any, shape: Shape) -> "LinearMap":
        """Returns a tensor as a function of itself."""
        size = entries(shape)
        write = None
        if size is not None and size**2 <= LARGEST_MATRIX:
            write = functools.partial(_identity_matrix, size, shape)
        return cls(source, shape, shape, 0, identity(shape), write)

    @property
    def usable(self) -> bool:
        """Whether a norm can be computed."""
        return self.operator is not None or self.write is not None

    @functools.cached_property
    def matrix(self) -> Matrix | None:
        """The map as a matrix, or None."""
        return None if self.write is None else self.write()

    @functools.cached_property
    def norm(self) -> float:
        """An upper bound of the norm, infinite where none is at hand."""
        if self.operator is not None:
            return self.operator.norm
        return math.inf if self.matrix is None else self.matrix.norm()

    def then(self, operator: Operator) -> "LinearMap":
        """Returns the map that is followed by an operator."""
        single: Operator | None = operator
        if not self._is_identity:
            single = None if self.operator is None else merge(self.operator, operator)
        write: Callable[[], Matrix] | None = None
        if self._is_identity and isinstance(operator, Dense) and len(operator.in_shape) == 1:
            write = functools.partial(Matrix, operator.kernel, operator.error)
        elif self._can_be_followed_by(operator):
            write = functools.partial(self._followed_by, operator)
        drops = isinstance(operator, Pick) and _entries(operator.out_shape) < _entries(operator.in_shape)
        steps = self.steps + (operator.terms > 0 or operator.norm > 1 or drops)
        return LinearMap(self.source, self.in_shape, operator.out_shape, steps, single, write)

    def plus(self, other: "LinearMap", weights: tuple[float, float] = (1.0, 1.0)) -> "LinearMap":
        """Returns the weighted sum of two maps of one source."""
        single = None
        if self.operator is not None and other.operator is not None and weights[0] == 1:
            single = add(self.operator, other.operator, weights[1])

        def write() -> Matrix:
            assert self.matrix is not None
            assert other.matrix is not None
            images = weights[0] * self.matrix.images + weights[1] * other.matrix.images
            carried = abs(weights[0]) * self.matrix.error + abs(weights[1]) * other.matrix.error
            parts = norm_up(self.matrix.images) * abs(weights[0]) + norm_up(other.matrix.images) * abs(weights[1])
            return Matrix(images, (carried + 4 * EPSILON * parts) * (1 + 8 * EPSILON))

        writable = self.write is not None and other.write is not None
        steps = self.steps + other.steps + 1
        return LinearMap(self.source, self.in_shape, self.out_shape, steps, single, write if writable else None)

    def beside(self, other: "LinearMap", axis: int, out_shape: Shape) -> "LinearMap":
        """Returns the concatenation of two maps of one source along an axis of the sample."""

        def write() -> Matrix:
            assert self.matrix is not None
            assert other.matrix is not None
            images = np.concatenate([self.matrix.images, other.matrix.images], axis=axis + 1)
            return Matrix(images, math.hypot(self.matrix.error, other.matrix.error) * (1 + 4 * EPSILON))

        writable = self.write is not None and other.write is not None
        writable = writable and _entries(self.in_shape) * _entries(out_shape) <= LARGEST_MATRIX
        steps = self.steps + other.steps + 1
        return LinearMap(self.source, self.in_shape, out_shape, steps, None, write if writable else None)

    @property
    def _is_identity(self) -> bool:
        return isinstance(self.operator, Scale) and self.steps == 0

    def _can_be_followed_by(self, operator: Operator) -> bool:
        inputs, middle, outputs = (_entries(shape) for shape in (self.in_shape, self.out_shape, operator.out_shape))
        if self.write is None or inputs * outputs > LARGEST_MATRIX:
            return False
        if isinstance(operator, PaddedConvolution):
            return max(middle, _entries(operator.convolution.in_shape)) * outputs <= LARGEST_MATRIX
        if isinstance(operator, Convolution):
            return middle * outputs <= LARGEST_MATRIX
        return not isinstance(operator, Pick) or operator.pick is not None

    def _followed_by(self, operator: Operator) -> Matrix:
        assert self.matrix is not None
        images = operator.apply(self.matrix.images)
        if operator.terms == 0:
            return Matrix(images, self.matrix.error * operator.norm * (1 + 4 * EPSILON))
        norm = operator.absolute_norm
        rounding = EPSILON * (2 * operator.terms + 8) * norm * (norm_up(self.matrix.images) + self.matrix.error)
        carried = norm * self.matrix.error + error_norm(operator) * norm_up(self.matrix.images)
        return Matrix(images, (carried + rounding) * (1 + 8 * EPSILON))


def _entries(shape: Shape) -> float:
    known = entries(shape)
    return math.inf if known is None else known


def _identity_matrix(size: int, shape: Shape) -> Matrix:
    return Matrix(np.eye(size).reshape(size, *shape))
