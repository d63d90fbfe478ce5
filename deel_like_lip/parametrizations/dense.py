"""What the parametrizations that compute a dense kernel have in common."""

import abc

import numpy as np
from keras import ops

from deel_like_lip._typing import Tensor
from deel_like_lip.parametrizations.base import ComputedKernel, in_float32, transpose

# Relative to the Frobenius norm of a Gram matrix: above the rounding errors of its factorisation, which on matrices of
# rank 1 with 2000 rows reach an eighth of it.
RIDGE = 8 * float(np.finfo("float32").eps)


class DenseKernel(ComputedKernel):
    """A kernel that is computed as a matrix with at least as many rows as columns; a wider one is its transpose."""

    def weight_shape(self, kernel_shape: tuple[int, ...]) -> tuple[int, ...]:
        rows, columns = kernel_shape
        if rows >= columns:
            return self._tall_weight_shape(rows, columns)
        return self._tall_weight_shape(columns, rows)[::-1]

    def kernel(self, weight: Tensor, kernel_shape: tuple[int, ...]) -> Tensor:
        rows, columns = kernel_shape
        weight = in_float32(weight)
        if rows >= columns:
            return self._tall_kernel(weight, columns) * self.norm
        return ops.transpose(self._tall_kernel(ops.transpose(weight), rows)) * self.norm

    def _tall_weight_shape(self, rows: int, columns: int) -> tuple[int, int]:
        return rows, columns

    @abc.abstractmethod
    def _tall_kernel(self, weight: Tensor, columns: int) -> Tensor:
        """Returns the kernel of norm 1 that has that many columns, and at least as many rows."""


def gram(matrix: Tensor) -> Tensor:
    """Returns the Gram matrix of the columns, or those of a stack."""
    return ops.matmul(transpose(matrix), matrix)


def closing_step(matrix: Tensor) -> Tensor:
    """Returns `1.5 W - 0.5 W W^T W`, which maps singular values in [0, 2] into [0, 1].

    So whatever rounding did to a kernel before, its norm is at most 1 after this step, up to the rounding of the step
    itself. And what is within e of 1 comes within `1.5 e^2`.
    """
    return 1.5 * matrix - 0.5 * ops.matmul(matrix, gram(matrix))


def of_unit_size(matrix: Tensor) -> Tensor:
    """Returns a multiple of a matrix whose largest entry is 1, for what does not depend on the scale of its argument.

    Then the derivative along the scale is zero, so the scale may count as a constant in the gradient.
    """
    return matrix / or_one(ops.stop_gradient(ops.max(ops.abs(matrix))))


def with_ridge(matrix: Tensor) -> Tensor:
    """Returns a Gram matrix plus what keeps its factorisation from failing, a matrix of zeros included; or a stack."""
    size = ops.sqrt(ops.sum(ops.square(ops.stop_gradient(matrix)), axis=(-2, -1), keepdims=True))
    return matrix + RIDGE * or_one(size) * ops.eye(matrix.shape[-1], dtype=matrix.dtype)


def or_one(size: Tensor) -> Tensor:
    """Returns a size to divide by: 1 where it is 0."""
    return ops.where(size > 0, size, ops.ones_like(size))
