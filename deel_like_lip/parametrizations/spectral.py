"""Kernels of a given spectral norm, and nothing more."""

import math

import numpy as np
from keras import ops

from deel_like_lip._fusion import compiled
from deel_like_lip._registration import register
from deel_like_lip._typing import Tensor
from deel_like_lip.parametrizations.base import ReshapedKernel, as_matrix, probe

_POWER_ITERATIONS = 4
# Squarings of the Gram matrix: the bound exceeds the norm by a factor of at most n^(1 / 2^(k + 2)), 0.7 % for n = 1024.
_SQUARINGS = 8


@register
class Spectral(ReshapedKernel):
    """Kernels whose largest singular value is `norm`; the others are free.

    A kernel of any rank stands for the matrix with its last axis as columns. `project` divides by an upper bound of the
    spectral norm, so its result is never above `norm`, and below by less than 1 %. `retract`, in training, divides by
    an estimate from below, by four power iterations, which cost little beside a batch: the norm is then above by up to
    a fifth.

    Args:
        norm: The spectral norm.

    Reference:
        - Miyato et al., 2018, [Spectral normalization for generative adversarial
          networks](https://arxiv.org/abs/1802.05957)
        - Delattre et al., 2023, [Efficient bound of Lipschitz constant for convolutional layers by Gram
          iteration](https://arxiv.org/abs/2305.16173)
    """

    def project(self, kernel: Tensor) -> Tensor:
        matrix = as_matrix(kernel)
        return self._divided(kernel, _norm_above(matrix))

    def retract(self, kernel: Tensor) -> Tensor:
        matrix = as_matrix(kernel)
        vector = ops.convert_to_tensor(probe(matrix.shape[1]), dtype=matrix.dtype)
        tiny = float(np.finfo("float32").tiny)
        for _ in range(_POWER_ITERATIONS):
            vector = ops.matmul(ops.matmul(matrix, vector), matrix)
            vector = vector / (ops.sqrt(ops.sum(vector * vector)) + tiny)
        image = ops.matmul(matrix, vector)
        return self._divided(kernel, ops.sqrt(ops.sum(image * image)))

    def tangent_gradient(self, kernel: Tensor, gradient: Tensor) -> Tensor:
        return gradient

    def tangent_matmul(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        return ops.matmul(inputs, ops.cast(kernel, inputs.dtype))

    def _divided(self, kernel: Tensor, spectral_norm: Tensor) -> Tensor:
        """Scales the kernel; one of zeros has no direction and stays as it is."""
        kernel = ops.convert_to_tensor(kernel)
        positive = spectral_norm > 0
        factor = ops.where(positive, self.norm / ops.where(positive, spectral_norm, 1.0), 1.0)
        return kernel * ops.cast(factor, kernel.dtype)


@compiled
def _norm_above(matrix: Tensor) -> Tensor:
    """Returns an upper bound of the spectral norm, by Gram iteration."""
    transposed = ops.transpose(matrix)
    wide = matrix.shape[0] < matrix.shape[1]
    gram = ops.matmul(matrix, transposed) if wide else ops.matmul(transposed, matrix)
    log_bound = ops.zeros((), dtype=matrix.dtype)
    for power in range(_SQUARINGS + 1):  # of the Gram matrix: 2^power
        length = ops.sqrt(ops.sum(ops.square(gram)))
        length = ops.where(length > 0, length, 1.0)
        log_bound = log_bound + ops.log(length) / 2 ** (power + 1)
        if power < _SQUARINGS:
            gram = gram / length
            gram = ops.matmul(gram, gram)
    rounding = 1 + 4 * math.sqrt(max(matrix.shape)) * float(np.finfo("float32").eps)
    zero = ops.max(ops.abs(matrix)) == 0
    return ops.where(zero, ops.zeros_like(log_bound), ops.exp(log_bound) * rounding)
