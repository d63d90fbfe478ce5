"""Orthogonal kernels: the polar factor, and how to stay near it.

The Newton-Schulz step `p(x) = 1.5 x - 0.5 x^3` on the singular values is the work-horse. It maps every singular value
in [0, 2] into [0, 1], so whatever was computed before it, a kernel that has just been through it has norm at most 1: it
is what makes the projection sound. Near 1 it squares the distance, so a kernel that an optimizer has moved a little
needs one step. The number of steps adapts to the move, so that no learning rate leaves a kernel that is far from
orthogonal.
"""

import dataclasses
import math

import numpy as np
from keras import ops

from deel_like_lip._typing import Tensor
from deel_like_lip.parametrizations.base import Parametrization

# A step leaves singular values of at least 1 - 3/8 e^2, where e = |W^T W - I| before it. So stopping after a step that
# found e below this leaves less than 6e-5, and a second step is not spent on an ordinary training update.
_CLOSE_ENOUGH = 0.0125
# From a smallest singular value of 1e-7 of the largest, growth by 1.5 a step takes 40 steps.
_MAX_STEPS = 60


@dataclasses.dataclass(frozen=True)
class Orthogonal(Parametrization):
    """Kernels whose singular values are all `norm`.

    A kernel of any rank stands for the matrix with its last axis as columns. A matrix with at least as many rows as
    columns has orthogonal columns, a wider one orthogonal rows.

    Args:
        norm: The value of all singular values.
    """

    norm: float = 1.0

    def project(self, kernel: Tensor) -> Tensor:
        kernel = ops.convert_to_tensor(kernel)
        matrix = _as_matrix(kernel) * (1 / self.norm)
        return ops.cast(ops.reshape(orthogonalize(matrix) * self.norm, kernel.shape), kernel.dtype)

    def tangent_gradient(self, kernel: Tensor, gradient: Tensor) -> Tensor:
        matrix, direction = _as_matrix(kernel), _as_matrix(gradient)
        wide = matrix.shape[0] < matrix.shape[1]
        left, right = (direction, ops.transpose(matrix)) if wide else (ops.transpose(matrix), direction)
        inner = ops.matmul(left, right)
        normal = (inner + ops.transpose(inner)) * (0.5 / self.norm**2)
        removed = ops.matmul(normal, matrix) if wide else ops.matmul(matrix, normal)
        return ops.cast(ops.reshape(direction - removed, gradient.shape), gradient.dtype)


def orthogonalize(matrix: Tensor) -> Tensor:
    """Returns the polar factor of a matrix, by Newton-Schulz steps until it is reached.

    Every singular value of the result is at most 1, up to the rounding of the dtype, and at least 1 - 1e-3; where the
    matrix is singular, its zero singular values stay zero. Not meant to be differentiated: on JAX it cannot be.

    Args:
        matrix: Tensor of shape `(rows, columns)`, float32 or float64.

    Returns:
        Tensor of the same shape and dtype.

    Reference:
        Björck and Bowie, 1971, An iterative algorithm for computing the best estimate of an orthogonal matrix.
    """
    rows, columns = matrix.shape
    wide = rows < columns
    size = min(rows, columns)
    dtype = ops.dtype(matrix)
    identity = ops.eye(size, dtype=dtype)
    probe = ops.convert_to_tensor(_probe(size), dtype=dtype)

    def far(step: Tensor, _: Tensor, distance: Tensor) -> Tensor:
        return ops.logical_or(step < 1, distance > _CLOSE_ENOUGH)

    def newton_schulz(step: Tensor, matrix: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        transposed = ops.transpose(matrix)
        gram = ops.matmul(matrix, transposed) if wide else ops.matmul(transposed, matrix)
        # A row sum bounds the largest squared singular value. The start is scaled only where that exceeds 2, inside the
        # basin of the step, which reaches to 3; after one step no singular value is above 1.
        bound = ops.max(ops.sum(ops.abs(gram), axis=1))
        squared_scale = ops.where(step < 1, ops.maximum(bound * 0.5, 1.0), ops.ones_like(bound))
        residual = gram / squared_scale - identity
        factor = (identity - 0.5 * residual) / ops.sqrt(squared_scale)
        improved = ops.matmul(factor, matrix) if wide else ops.matmul(matrix, factor)
        return step + 1, improved, _largest_eigenvalue_estimate(residual, probe)

    start = (ops.convert_to_tensor(0, dtype="int32"), matrix, ops.zeros((), dtype=dtype))
    return ops.while_loop(far, newton_schulz, start, maximum_iterations=_MAX_STEPS)[1]


def _largest_eigenvalue_estimate(symmetric: Tensor, probe: Tensor) -> Tensor:
    """Estimates the spectral norm of a symmetric matrix from below, by three power iterations.

    It only decides when to stop, so it need not be a bound; a norm that it could miss would cost accuracy, not
    soundness.
    """
    vector = probe
    for _ in range(3):
        previous, vector = vector, ops.matmul(symmetric, vector)
    tiny = float(np.finfo("float32").tiny)
    return ops.sqrt(ops.sum(vector * vector) / (ops.sum(previous * previous) + tiny))


def _probe(size: int) -> np.ndarray:
    """Returns a fixed vector, shape `(size, 1)`, that no structure of a kernel is likely to be orthogonal to."""
    return np.cos(math.pi * np.sqrt(2.0) * np.arange(1, size + 1) ** 2).reshape(size, 1)


def _as_matrix(kernel: Tensor) -> Tensor:
    kernel = ops.convert_to_tensor(kernel)
    if ops.dtype(kernel) != "float64":
        kernel = ops.cast(kernel, "float32")
    return ops.reshape(kernel, (-1, kernel.shape[-1]))
