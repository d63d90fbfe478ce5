"""Kernels of a given spectral norm, and nothing more."""

import math

import numpy as np
from keras import ops

from deel_like_lip._fusion import compiled
from deel_like_lip._registration import register
from deel_like_lip._typing import Tensor
from deel_like_lip.parametrizations.base import (
    TINY,
    ReshapedKernel,
    as_matrix,
    from_matrix,
    gram_matrix,
    probe,
    row_times,
    times_column,
)

_POWER_ITERATIONS = 4
# Squarings of the Gram matrix: the bound exceeds the norm by a factor of at most n^(1 / 2^(k + 2)), 0.7 % for n = 1024.
_SQUARINGS = 8


@register
class Spectral(ReshapedKernel):
    """Kernels whose largest singular value is `norm`; the others are free.

    A kernel of any rank stands for the matrix with its last axis as columns, or for one such matrix for each group of a
    convolution; the norm is that of the largest. `project` divides by an upper bound of the spectral norm, so its
    result is never above `norm`, and below by less than 1 %. `retract`, in training, divides by an estimate from below,
    by four power iterations, which cost little beside a batch: the norm is then above by up to a fifth.

    Args:
        norm: The spectral norm.
        geometry: As in `Parametrization`.

    Example:
        >>> kernel = Spectral(norm=2.0).project(np.diag([8.0, 4.0]))
        >>> np.round(kernel, 3)
        array([[2., 0.],
               [0., 1.]])

    Reference:
        - Miyato et al., 2018, [Spectral normalization for generative adversarial
          networks](https://arxiv.org/abs/1802.05957)
        - Delattre et al., 2023, [Efficient bound of Lipschitz constant for convolutional layers by Gram
          iteration](https://arxiv.org/abs/2305.16173)
    """

    def project(self, kernel: Tensor) -> Tensor:
        return divided(kernel, ops.max(norm_above(as_matrix(kernel, self.groups))), self.norm)

    def retract(self, kernel: Tensor) -> Tensor:
        matrix = as_matrix(kernel, self.groups)
        return divided(kernel, ops.max(norm_estimate(matrix, _POWER_ITERATIONS)), self.norm)

    def tangent_gradient(self, kernel: Tensor, gradient: Tensor) -> Tensor:
        """Returns the gradient of what the division by the norm leaves of a step, `G - <G, W> u v^T / |W|`.

        With the plain gradient G a step that makes the kernel larger makes all singular values smaller but the first,
        and in the end there is no other.
        """
        matrix, direction = as_matrix(kernel, self.groups), as_matrix(gradient, self.groups)
        vector, image = top_singular_pair(matrix, _POWER_ITERATIONS)
        length = _length(image, -1)
        largest = ops.max(length)
        share = ops.sum(matrix * direction) / ops.maximum(ops.square(largest), TINY)
        share = ops.where(length == largest, share, 0.0)  # of a convolution the group of the largest norm
        removed = (share[..., None] * image)[..., None] * vector[..., None, :]
        return ops.cast(from_matrix(direction - removed, gradient.shape), gradient.dtype)


def divided(kernel: Tensor, spectral_norm: Tensor, norm: float) -> Tensor:
    """Scales a kernel from one norm to another; one of zeros has no direction and stays as it is."""
    kernel = ops.convert_to_tensor(kernel)
    positive = spectral_norm > 0
    factor = ops.where(positive, norm / ops.where(positive, spectral_norm, 1.0), 1.0)
    return kernel * ops.cast(factor, kernel.dtype)


def top_singular_pair(matrix: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Returns unit vectors that a stack of matrices lengthens most, nearly, and their images, by power iteration.

    Args:
        matrix: Tensor of shape `(..., rows, columns)`.
        iterations: Their number.

    Returns:
        Tensors of shape `(..., columns)` and `(..., rows)`.
    """
    vector = ops.convert_to_tensor(probe(matrix.shape[-1]), dtype=matrix.dtype)
    for _ in range(iterations):
        vector = row_times(times_column(matrix, vector), matrix)
        vector = vector / (_length(vector, -1)[..., None] + TINY)
    return vector, times_column(matrix, vector)


def norm_estimate(matrix: Tensor, iterations: int) -> Tensor:
    """Returns the spectral norms of a stack of matrices, from below, as `top_singular_pair` does; shape `(...,)`."""
    return _length(top_singular_pair(matrix, iterations)[1], -1)


@compiled
def norm_above(matrix: Tensor) -> Tensor:
    """Returns upper bounds of the spectral norms of a stack of matrices, by Gram iteration.

    Args:
        matrix: Tensor of shape `(..., rows, columns)`.

    Returns:
        Tensor of shape `(...,)`.
    """
    gram = gram_matrix(matrix)
    log_bound = ops.zeros(matrix.shape[:-2], dtype=matrix.dtype)
    for power in range(_SQUARINGS + 1):  # of the Gram matrix: 2^power
        length = _length(gram, (-2, -1))
        length = ops.where(length > 0, length, 1.0)
        log_bound = log_bound + ops.log(length) / 2 ** (power + 1)
        if power < _SQUARINGS:
            gram = gram / length[..., None, None]
            gram = ops.matmul(gram, gram)
    rounding = 1 + 4 * math.sqrt(max(matrix.shape[-2:])) * float(np.finfo("float32").eps)
    zero = ops.max(ops.abs(matrix), axis=(-2, -1)) == 0
    return ops.where(zero, ops.zeros_like(log_bound), ops.exp(log_bound) * rounding)


def _length(tensor: Tensor, axis: int | tuple[int, int]) -> Tensor:
    return ops.sqrt(ops.sum(ops.square(tensor), axis=axis))
