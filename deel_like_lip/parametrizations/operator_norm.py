"""Convolutions of a given operator norm, and nothing more."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Self

import numpy as np
from keras import ops

from deel_like_lip._registration import register
from deel_like_lip._typing import Tensor
from deel_like_lip.parametrizations.base import Parametrization, in_float32
from deel_like_lip.parametrizations.convolution import (
    ConvolutionGeometry,
    fold_strides,
    kernel_of_groups,
    refuse_strided_dilation,
)
from deel_like_lip.parametrizations.spectral import divided, norm_above, norm_estimate

_POWER_ITERATIONS = 6
# Frequencies along an axis, for each two taps. So many make the bound exceed the norm by at most 2 % an axis.
_POINTS = 16
_POINTS_IN_TRAINING = 8
_ROUNDING = 1 + 8 * float(np.finfo("float32").eps)


@register
@dataclasses.dataclass(frozen=True)
class OperatorNorm(Parametrization):
    """Convolutions whose largest singular value, for any padding and any image, is at most `norm` and near it.

    The other singular values are free. The norm is that of the symbol, a matrix for each frequency. `project` divides
    by an upper bound, Gram iteration on a grid of frequencies times what the symbol may exceed it by in between: the
    norm is then at most `norm`, and below by at most 3 % for each axis with more than one tap. `retract`, in training,
    divides by an estimate from below, by power iterations on a coarser grid: the norm is then above by up to a tenth.

    Reference:
        - Delattre et al., 2023, [Efficient bound of Lipschitz constant for convolutional layers by Gram
          iteration](https://arxiv.org/abs/2305.16173)
        - Ehlich and Zeller, 1964, Schwankung von Polynomen zwischen Gitterpunkten, for what lies in between
        - Delattre et al., 2024, [Spectral norm of convolutional layers with circular and zero
          paddings](https://arxiv.org/abs/2402.00240)
    """

    def bind(self, norm: float, geometry: ConvolutionGeometry | None = None) -> Self:
        if geometry is None:
            raise ValueError(
                "Invalid value for argument `parametrization`. OperatorNorm is one of convolutions. Expected one of "
                f"dense layers, such as 'spectral', which does the same. Received: parametrization={self}"
            )
        refuse_strided_dilation(self, geometry)
        return dataclasses.replace(self, norm=norm, geometry=geometry)

    def project(self, kernel: Tensor) -> Tensor:
        return divided(kernel, convolution_norm_above(self._at_stride_one(kernel)), self.norm)

    def retract(self, kernel: Tensor) -> Tensor:
        return divided(kernel, convolution_norm_estimate(self._at_stride_one(kernel)), self.norm)

    def tangent_gradient(self, kernel: Tensor, gradient: Tensor) -> Tensor:
        return gradient

    def _at_stride_one(self, kernel: Tensor) -> Tensor:
        assert self.geometry is not None
        return fold_strides(kernel_of_groups(in_float32(kernel), self.geometry.groups), self.geometry.strides)


def convolution_norm_above(kernels: Tensor) -> Tensor:
    """Returns an upper bound of the norm of convolutions with stride 1, for any padding and any image.

    For unit vectors u and v and the symbol K, `u* K(w) v` is, up to a phase, a trigonometric polynomial of degree
    `d = floor(taps / 2)` in each variable. Between n points of an axis it exceeds its largest value on them by at most
    `1 / cos(pi d / n)`.

    Args:
        kernels: Tensor of shape `(groups, *taps, c_in, c_out)`.
    """
    degrees = [size // 2 for size in kernels.shape[1:-2]]
    points = [_points(degree, _POINTS) for degree in degrees]
    slack = math.prod(1 / math.cos(math.pi * degree / count) for degree, count in zip(degrees, points, strict=True))
    return ops.max(norm_above(_symbols(kernels, points))) * (slack * _ROUNDING)


def convolution_norm_estimate(kernels: Tensor) -> Tensor:
    """Returns an estimate of the same norm from below, by power iterations on a coarser grid."""
    points = [_points(size // 2, _POINTS_IN_TRAINING) for size in kernels.shape[1:-2]]
    return ops.max(norm_estimate(_symbols(kernels, points), _POWER_ITERATIONS))


def _points(degree: int, each: int) -> int:
    return max(1, degree * each)


def _symbols(kernels: Tensor, points: Sequence[int]) -> Tensor:
    """Returns the symbols `K = sum_t kernel_t exp(-i <t, w>)` on a grid of frequencies, as real matrices.

    A complex matrix `A + iB` has the norm of `[[A, -B], [B, A]]`. Opposite frequencies have conjugate symbols, so one
    of two is left out.

    Args:
        kernels: Tensor of shape `(groups, *taps, c_in, c_out)`.
        points: Number of frequencies along each axis.

    Returns:
        Tensor of shape `(groups * frequencies, 2 * c_in, 2 * c_out)`.
    """
    groups, *taps, inputs, outputs = kernels.shape
    axes = [2 * np.pi * np.arange(count) / count for count in points]
    axes[-1] = axes[-1][: points[-1] // 2 + 1]
    frequencies, positions = (
        np.stack([grid.reshape(-1) for grid in np.meshgrid(*axes_, indexing="ij")], axis=1)
        for axes_ in (axes, [np.arange(size) for size in taps])
    )
    angles = frequencies @ positions.T
    flat = ops.reshape(kernels, (groups, len(positions), inputs * outputs))
    real, imaginary = (
        ops.reshape(ops.matmul(ops.convert_to_tensor(part, dtype=flat.dtype), flat), (-1, inputs, outputs))
        for part in (np.cos(angles), -np.sin(angles))
    )
    upper, lower = ops.concatenate([real, -imaginary], axis=2), ops.concatenate([imaginary, real], axis=2)
    return ops.concatenate([upper, lower], axis=1)
