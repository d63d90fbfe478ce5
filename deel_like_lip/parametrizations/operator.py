"""The operator that a kernel stands for, dense or convolution: bounds of its norm that hold for every size of image.

A kernel of shape `(*taps, inputs, outputs)` without taps is a matrix. With taps it is a convolution with stride 1, of
which the norm, with zero or circular padding, is at most the supremum over all frequencies w of the norm of its symbol
`K(w) = sum_t kernel[t] exp(-i <t, w>)`.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from deel_like_lip._typing import Tensor
from deel_like_lip.parametrizations.base import Parametrization, in_float32

# Squarings of Gram matrices: the bound exceeds the norm by a factor of at most n^(1 / 2^(k + 2)), 3.3 % for n = 64.
_SQUARINGS = 5
# Grid points per degree and axis, see `operator_norm_bound`: as many as this effort allows, in multiplications of one
# squaring. The grid costs 3.5 % for each axis with the fewest, and 0.1 % with the most.
_FEWEST_POINTS, _MOST_POINTS = 12, 64
_EFFORT = 2**25
# Room for the rounding of float32, and for what bounds of the result allow themselves: Gram iteration in `certify` ends
# within 0.01 % of the norm.
_ROOM = 1 + 1.5e-4
_TINY = float(np.finfo("float32").tiny)
# Row sums below it count as this much: their own terms may have been flushed to zero.
_SMALLEST_ROW_SUM = 1e-12


@dataclasses.dataclass(frozen=True)
class OperatorNorm(Parametrization):
    """Kernels whose operator, dense or convolution with stride 1, has a given norm.

    `project` divides by an upper bound: the norm is never above, for any size of image, with zero or circular padding.
    It is below by a few per cent. A kernel of zeros has no direction and stays as it is.

    Args:
        norm: The norm of the operator.

    Reference:
        Delattre et al., 2023, [Efficient bound of Lipschitz constant for convolutional layers by Gram
        iteration](https://arxiv.org/abs/2305.16173)
    """

    norm: float = 1.0

    def project(self, kernel: Tensor) -> Tensor:
        kernel = ops.convert_to_tensor(kernel)
        bound = operator_norm_bound(kernel)
        positive = bound > 0
        factor = ops.where(positive, self.norm / ops.where(positive, bound, 1.0), 1.0)
        return kernel * ops.cast(factor, kernel.dtype)

    def tangent_gradient(self, kernel: Tensor, gradient: Tensor) -> Tensor:
        return gradient


def operator_norm_bound(kernel: Tensor) -> Tensor:
    """Returns an upper bound of the norm of a kernel's operator, a scalar.

    Gram iteration bounds the norms of the symbols on a grid of frequencies. For unit vectors u and v, `u* K(w) v` times
    a phase is a trigonometric polynomial of degree d = floor(k / 2) in each variable, and between N > 2 d equidistant
    points of an axis it exceeds its largest value on them by at most `1 / cos(pi d / N)`.

    Args:
        kernel: Tensor of shape `(*taps, inputs, outputs)`.

    Reference:
        - Delattre et al., 2023, [Efficient bound of Lipschitz constant for convolutional layers by Gram
          iteration](https://arxiv.org/abs/2305.16173)
        - Ehlich and Zeller, 1964, Schwankung von Polynomen zwischen Gitterpunkten.
    """
    kernel = in_float32(kernel)
    *taps, inputs, outputs = kernel.shape
    cosines, sines, slack = _frequencies(taps, min(inputs, outputs))
    largest = ops.max(ops.abs(kernel))
    scale = ops.where(largest > 0, largest, 1.0)  # squares of scaled entries neither overflow nor vanish
    flat = ops.reshape(kernel / scale, (-1, inputs * outputs))
    real, imaginary = (
        ops.reshape(ops.matmul(ops.cast(table, kernel.dtype), flat), (-1, inputs, outputs))
        for table in (cosines, sines)
    )
    if inputs < outputs:
        real, imaginary = (ops.transpose(part, (0, 2, 1)) for part in (real, imaginary))
    left, other = (ops.transpose(part, (0, 2, 1)) for part in (real, imaginary))
    # The Gram matrices are Hermitian: S + i A, of which A is 0 where there is one frequency.
    gram = [ops.matmul(left, real) + ops.matmul(other, imaginary)]
    if len(cosines) > 1:
        gram.append(_minus_transpose(ops.matmul(left, imaginary)))
    log_bound = ops.zeros((len(cosines), 1, 1), dtype=kernel.dtype)
    for power in range(_SQUARINGS):
        length = _frobenius(gram)
        log_bound = log_bound + ops.log(length) / 2 ** (power + 1)
        gram = _squared([part / length for part in gram])
    rows = ops.max(ops.sum(ops.sqrt(_squares(gram)), axis=2, keepdims=True), axis=1, keepdims=True)
    last = ops.minimum(_frobenius(gram), ops.maximum(rows, _TINY))  # no norm is above its largest row sum either
    log_bound = log_bound + ops.log(last) / 2 ** (_SQUARINGS + 1)
    return ops.where(largest > 0, scale * ops.exp(ops.max(log_bound)) * (slack * _ROOM), 0.0)


def _squared(parts: list[Tensor]) -> list[Tensor]:
    """Returns the squares of Hermitian matrices: `(S + i A)^2 = S^2 - A^2 + i (S A - (S A)^T)`."""
    square = ops.matmul(parts[0], parts[0])
    if len(parts) == 1:
        return [square]
    return [square - ops.matmul(parts[1], parts[1]), _minus_transpose(ops.matmul(parts[0], parts[1]))]


def _minus_transpose(matrices: Tensor) -> Tensor:
    return matrices - ops.transpose(matrices, (0, 2, 1))


def _squares(parts: Sequence[Tensor]) -> Tensor:
    """Returns the squared absolute values of complex matrices."""
    return ops.square(parts[0]) if len(parts) == 1 else ops.square(parts[0]) + ops.square(parts[1])


def _frobenius(parts: Sequence[Tensor]) -> Tensor:
    return ops.sqrt(ops.maximum(ops.sum(_squares(parts), axis=(1, 2), keepdims=True), _TINY))


def _frequencies(taps: Sequence[int], channels: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Returns cosines and sines of `<t, w>`, shape `(frequencies, taps)`, and by how much others may exceed these."""
    degrees = [size // 2 for size in taps]
    points = _MOST_POINTS
    while points > _FEWEST_POINTS and channels**3 * math.prod(max(1, points * d) for d in degrees) / 2 > _EFFORT:
        points -= 2
    counts = [max(1, points * degree) for degree in degrees]
    slack = math.prod(1 / math.cos(math.pi * degree / count) for degree, count in zip(degrees, counts, strict=True))
    grid = [2 * math.pi * np.arange(count) / count for count in counts]
    if grid:  # a real kernel has conjugate symbols at opposite frequencies
        grid[-1] = grid[-1][: counts[-1] // 2 + 1]
    frequencies = np.array(list(itertools.product(*grid)))
    positions = np.array(list(itertools.product(*map(range, taps))))
    angles = frequencies @ positions.T
    return np.cos(angles), np.sin(angles), slack


def gram_row_sums(kernel: Tensor, log_weights: Tensor) -> Tensor:
    """Returns `T_i = sum_j |W^T W|_ij q_j / q_i` for the operator `W^T` of a kernel: `|T^(-1/2) W^T| <= 1`.

    `T^(-1) W^T W` is similar to a matrix of which the absolute rows sum to at most 1. Of a convolution the sum is also
    over positions, on an infinite image: zero padding is a compression of that operator, to which T is the same number
    for each channel, and with circular padding entries are sums of those on the infinite image.

    Args:
        kernel: Tensor of shape `(*taps, inputs, outputs)`.
        log_weights: The logarithms of q, shape `(outputs,)`; any are sound, and cut off at 30.

    Returns:
        Positive tensor of shape `(outputs,)`, rounded up, in at least float32.

    Reference:
        - Prach and Lampert, 2022, [Almost-orthogonal layers](https://arxiv.org/abs/2208.03160)
        - Araujo et al., 2023, [A unified algebraic perspective on Lipschitz neural
          networks](https://arxiv.org/abs/2303.03169)
    """
    kernel = in_float32(kernel)
    weights = ops.exp(ops.clip(in_float32(log_weights), -30.0, 30.0))
    taps = tuple(kernel.shape)[:-2]
    if not taps:
        gram = ops.abs(ops.matmul(ops.transpose(kernel), kernel))
    else:
        rank = len(taps)
        images = ops.transpose(kernel, (rank + 1, *range(rank + 1)))
        images = ops.pad(images, [(0, 0), *((size - 1, size - 1) for size in taps), (0, 0)])
        correlations: Any = ops.conv(images, kernel, strides=1, padding="valid", data_format="channels_last")
        gram = ops.sum(ops.abs(correlations), axis=tuple(range(1, rank + 1)))
    sums = ops.matmul(gram, ops.reshape(weights, (-1, 1)))[:, 0] / weights
    return ops.maximum(sums, _SMALLEST_ROW_SUM) * _ROOM**2
