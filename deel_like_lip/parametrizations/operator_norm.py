"""Convolutions of a given operator norm, and nothing more."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Self

import numpy as np
from keras import ops

from deel_like_lip._fusion import compiled
from deel_like_lip._registration import register
from deel_like_lip._typing import Tensor
from deel_like_lip.parametrizations.base import TINY, Parametrization, in_float32, transpose
from deel_like_lip.parametrizations.convolution import (
    ConvolutionGeometry,
    fold_strides,
    kernel_from_groups,
    kernel_of_groups,
    refuse_strided_dilation,
)
from deel_like_lip.parametrizations.spectral import divided, norm_estimate, top_singular_pair

# Squarings of Gram matrices: the bound exceeds the norm by a factor of at most n^(1 / 2^(k + 2)), for n = 64 by 0.4 %,
# and by 3.3 % in training.
_SQUARINGS = 8
_SQUARINGS_IN_TRAINING = 5
# Frequencies along an axis, for each two taps: as many as this effort allows, in multiplications of one squaring. The
# grid costs 2 % for each axis with the fewest, 3.5 % in training, and 0.1 % with the most.
_FEWEST_POINTS = 16
_FEWEST_POINTS_IN_TRAINING = 12
_MOST_POINTS = 64
_EFFORT = 2**25
# Room for the rounding of float32, and for what bounds of the result allow themselves: Gram iteration in `certify` ends
# within 0.01 % of the norm.
_ROOM = 1 + 1.5e-4
# Of the estimate.
_POWER_ITERATIONS = 6
_POINTS_OF_ESTIMATE = 8


@register
@dataclasses.dataclass(frozen=True)
class OperatorNorm(Parametrization):
    """Convolutions whose largest singular value, for any padding and any image, is at most `norm` and near it.

    The other singular values are free. The norm is that of the symbol, a matrix for each frequency. `project` divides
    by an upper bound, Gram iteration on a grid of frequencies times what the symbol may exceed it by in between: the
    norm is then at most `norm`, and below by at most 3 % for each axis with more than one tap. `retract`, in training,
    divides by an estimate from below, by power iterations on a coarser grid: the norm is then above by up to a tenth.

    Args:
        norm: As in `Parametrization`.
        geometry: As in `Parametrization`.

    Raises:
        ValueError: By `bind`, if the layer is dense, or has both strides and a dilation.

    Example:
        >>> layer = LipConv2D(16, 3, padding="same", parametrization="operator_norm")
        >>> layer(np.zeros((1, 8, 8, 4))).shape
        (1, 8, 8, 16)

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
        return divided(kernel, operator_norm_bound(self._at_stride_one(kernel)), self.norm)

    def retract(self, kernel: Tensor) -> Tensor:
        return divided(kernel, operator_norm_estimate(self._at_stride_one(kernel)), self.norm)

    def tangent_gradient(self, kernel: Tensor, gradient: Tensor) -> Tensor:
        """Returns the gradient of what the division by the norm leaves of a step, `G - <G, K> N` for the norm's own N.

        With the plain gradient G a step that makes the kernel larger makes all singular values smaller but the first,
        and in the end there is no other. With strides it is the plain one.
        """
        if self.geometry is not None and max(self.geometry.strides) > 1:
            return gradient
        kernels, direction = self._at_stride_one(kernel), self._at_stride_one(gradient)
        norm, normal = operator_norm_gradient(kernels)
        tangent = direction - normal * (ops.sum(kernels * direction) / ops.maximum(norm, TINY))
        tangent = tangent[0] if self.geometry is None else kernel_from_groups(tangent, gradient.shape)
        return ops.cast(tangent, gradient.dtype)

    def _at_stride_one(self, kernel: Tensor) -> Tensor:
        kernel = in_float32(kernel)
        if self.geometry is None:
            return kernel[None]
        return fold_strides(kernel_of_groups(kernel, self.geometry.groups), self.geometry.strides)


class BoundedOperatorNorm(OperatorNorm):
    """Kernels, also of dense layers, whose norm is never above `norm`: what the theorems of residual blocks are for.

    `retract` too divides by an upper bound: one that may exceed the norm by a few per cent more than that of `project`.
    """

    def retract(self, kernel: Tensor) -> Tensor:
        return divided(kernel, operator_norm_bound(self._at_stride_one(kernel), True), self.norm)


@compiled
def operator_norm_bound(kernels: Tensor, in_training: bool = False) -> Tensor:
    """Returns an upper bound of the norm of dense layers, or of convolutions with stride 1 for any padding and image.

    Gram iteration bounds the norms of the symbols on a grid of frequencies. For unit vectors u and v, `u* K(w) v` times
    a phase is a trigonometric polynomial of degree d = floor(k / 2) in each variable, and between N > 2 d equidistant
    points of an axis it exceeds its largest value on them by at most `1 / cos(pi d / N)`.

    Args:
        kernels: Tensor of shape `(groups, *taps, inputs, outputs)`, float32 or float64.
        in_training: Whether a bound that costs less, and may exceed the norm by a few per cent more, will do.

    Returns:
        Scalar tensor, for all groups together.

    Example:
        >>> shift = np.array([0.0, 0.0, 1.0]).reshape(1, 3, 1, 1)  # one group, three taps, one channel
        >>> 1 <= float(operator_norm_bound(keras.ops.convert_to_tensor(shift))) < 1.05
        True

    Reference:
        - Delattre et al., 2023, [Efficient bound of Lipschitz constant for convolutional layers by Gram
          iteration](https://arxiv.org/abs/2305.16173)
        - Ehlich and Zeller, 1964, Schwankung von Polynomen zwischen Gitterpunkten.
    """
    _, *taps, inputs, outputs = kernels.shape
    degrees = [size // 2 for size in taps]
    squarings, fewest = (
        (_SQUARINGS_IN_TRAINING, _FEWEST_POINTS_IN_TRAINING) if in_training else (_SQUARINGS, _FEWEST_POINTS)
    )
    points = _MOST_POINTS
    effort = min(inputs, outputs) ** 3 / 2
    while points > fewest and effort * math.prod(max(1, points * degree) for degree in degrees) > _EFFORT:
        points -= 2
    counts = [max(1, points * degree) for degree in degrees]
    slack = math.prod(1 / math.cos(math.pi * degree / count) for degree, count in zip(degrees, counts, strict=True))
    largest = ops.max(ops.abs(kernels))
    scale = ops.where(largest > 0, largest, 1.0)  # squares of scaled entries neither overflow nor vanish
    real, imaginary = _symbols(kernels / scale, counts)
    if inputs < outputs:
        real, imaginary = transpose(real), transpose(imaginary)
    left, other = transpose(real), transpose(imaginary)
    # The Gram matrices are Hermitian: S + i A, of which A is 0 where there is one frequency.
    gram = [ops.matmul(left, real) + ops.matmul(other, imaginary)]
    if math.prod(counts) > 1:
        gram.append(_minus_transpose(ops.matmul(left, imaginary)))
    log_bound = ops.zeros((1, 1, 1), dtype=kernels.dtype)
    for power in range(squarings):
        length = _frobenius(gram)
        log_bound = log_bound + ops.log(length) / 2 ** (power + 1)
        gram = _squared([part / length for part in gram])
    rows = ops.max(ops.sum(ops.sqrt(_squares(gram)), axis=2, keepdims=True), axis=1, keepdims=True)
    last = ops.minimum(_frobenius(gram), ops.maximum(rows, TINY))  # no norm is above its largest row sum either
    log_bound = log_bound + ops.log(last) / 2 ** (squarings + 1)
    return ops.where(largest > 0, scale * ops.exp(ops.max(log_bound)) * (slack * _ROOM), 0.0)


@compiled
def operator_norm_estimate(kernels: Tensor) -> Tensor:
    """Returns an estimate of the same norm from below, by power iterations on a coarser grid."""
    return ops.max(norm_estimate(_real_symbols(kernels), _POWER_ITERATIONS))


def operator_norm_gradient(kernels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns that estimate, and its gradient with respect to the kernels, in their shape.

    The symbol is K = A + i B at the best frequency w, with A and B the sums of the taps times cos <t, w> and
    sin <t, w>. With singular vectors u + i u' and v + i v' the norm is `u A v + u' A v' + u' B v - u B v'`.
    """
    groups, *taps, inputs, outputs = kernels.shape
    vectors, images = top_singular_pair(_real_symbols(kernels), _POWER_ITERATIONS)
    lengths = ops.sqrt(ops.sum(ops.square(images), axis=1))
    best, norm = ops.argmax(lengths), ops.max(lengths)
    left, right = ops.take(images, best, axis=0) / ops.maximum(norm, TINY), ops.take(vectors, best, axis=0)
    cosine, sine = (
        ops.take(ops.convert_to_tensor(table, dtype=kernels.dtype), best // groups, axis=0)
        for table in _waves(taps, _counts_of_estimate(taps))
    )
    even = ops.outer(left[:inputs], right[:outputs]) + ops.outer(left[inputs:], right[outputs:])
    odd = ops.outer(left[inputs:], right[:outputs]) - ops.outer(left[:inputs], right[outputs:])
    normal = ops.reshape(cosine[:, None, None] * even + sine[:, None, None] * odd, (1, *kernels.shape[1:]))
    chosen = ops.cast(ops.arange(groups) == ops.cast(best % groups, "int32"), kernels.dtype)
    return norm, normal * ops.reshape(chosen, (groups, *(1,) * (len(taps) + 2)))


def _real_symbols(kernels: Tensor) -> Tensor:
    """Returns the symbols on a coarse grid as real matrices, on vectors of real parts and then imaginary ones."""
    real, imaginary = _symbols(kernels, _counts_of_estimate(kernels.shape[1:-2]))
    # A complex matrix A + iB has the norm of [[A, -B], [B, A]].
    upper = ops.concatenate([real, -imaginary], axis=2)
    lower = ops.concatenate([imaginary, real], axis=2)
    return ops.concatenate([upper, lower], axis=1)


def _counts_of_estimate(taps: Sequence[int]) -> list[int]:
    return [max(1, size // 2 * _POINTS_OF_ESTIMATE) for size in taps]


def _waves(taps: Sequence[int], counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns cosines and sines of `<t, w>` for the frequencies w of a grid and the taps t.

    Opposite frequencies have conjugate symbols, so one of two is left out.

    Returns:
        Arrays of shape `(frequencies, taps)`.
    """
    grid = [2 * math.pi * np.arange(count) / count for count in counts]
    if grid:
        grid[-1] = grid[-1][: counts[-1] // 2 + 1]
    frequencies = np.array(list(itertools.product(*grid)))
    positions = np.array(list(itertools.product(*map(range, taps))))
    angles = frequencies @ positions.T
    return np.cos(angles), np.sin(angles)


def _symbols(kernels: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Returns the symbols `K = sum_t kernel_t exp(-i <t, w>)` on a grid of frequencies, real and imaginary parts.

    The sign of imaginary parts is left out.

    Args:
        kernels: Tensor of shape `(groups, *taps, inputs, outputs)`.
        counts: Number of frequencies along each axis.

    Returns:
        Tensors of shape `(frequencies * groups, inputs, outputs)`.
    """
    groups, *taps, inputs, outputs = kernels.shape
    waves = _waves(taps, counts)
    flat = ops.reshape(kernels if groups == 1 else ops.moveaxis(kernels, 0, -3), (math.prod(taps), -1))
    real, imaginary = (
        ops.reshape(ops.matmul(ops.convert_to_tensor(table, dtype=flat.dtype), flat), (-1, inputs, outputs))
        for table in waves
    )
    return real, imaginary


def _squared(parts: list[Tensor]) -> list[Tensor]:
    """Returns the squares of Hermitian matrices: `(S + i A)^2 = S^2 - A^2 + i (S A - (S A)^T)`."""
    square = ops.matmul(parts[0], parts[0])
    if len(parts) == 1:
        return [square]
    return [square - ops.matmul(parts[1], parts[1]), _minus_transpose(ops.matmul(parts[0], parts[1]))]


def _minus_transpose(matrices: Tensor) -> Tensor:
    return matrices - transpose(matrices)


def _squares(parts: Sequence[Tensor]) -> Tensor:
    """Returns the squared absolute values of complex matrices."""
    return ops.square(parts[0]) if len(parts) == 1 else ops.square(parts[0]) + ops.square(parts[1])


def _frobenius(parts: Sequence[Tensor]) -> Tensor:
    return ops.sqrt(ops.maximum(ops.sum(_squares(parts), axis=(1, 2), keepdims=True), TINY))
