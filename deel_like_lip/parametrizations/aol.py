"""Almost orthogonal kernels: rescaled channel by channel, so that the norm is at most 1 whatever the weights."""

import dataclasses
import math
from typing import Self

from keras import ops

from deel_like_lip._registration import register
from deel_like_lip._typing import Shape, Tensor
from deel_like_lip.parametrizations.base import ComputedKernel, in_float32
from deel_like_lip.parametrizations.convolution import (
    ConvolutionGeometry,
    fold_strides,
    kernel_from_groups,
    kernel_of_groups,
    refuse_strided_dilation,
    unfold_strides,
)

# Keeps sums away from zero, where their root has no derivative. It makes the norm smaller, never larger.
_TINY = 1e-12
# Of sums that are to be bounds: for the rounding of float32, and for what bounds of the result allow themselves.
_ROOM = (1 + 1.5e-4) ** 2


@register
@dataclasses.dataclass(frozen=True)
class AOL(ComputedKernel):
    """Kernels of norm at most `norm`, in float32 up to 1e-5, whatever the weight, and near it where it is orthogonal.

    Of a matrix W each column j is divided by the root of `s_j = sum_k |W^T W|_jk`. With `D = diag(s)^(-1/2)` the result
    has the Gram matrix `D W^T W D`, no entry of which exceeds that of `D |W^T W| D`; and that is similar to
    `diag(s)^(-1) |W^T W|`, whose rows sum up to 1. So the norm is at most 1. Of a convolution the sum goes over all
    shifts of the windows against each other too: the symbol at any frequency has the Gram matrix
    `sum_d G_d exp(i <d, w>)`, of which no entry exceeds that of `sum_d |G_d|`. With strides the phases of the input
    count as channels. Outputs are rescaled, or inputs where there are fewer of those.

    Args:
        norm: As in `Parametrization`.
        geometry: As in `Parametrization`.

    Example:
        >>> kernel = AOL().kernel(np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]), (3, 2))
        >>> float(np.linalg.norm(kernel, 2)) <= 1
        True

    Reference:
        Prach and Lampert, 2022, [Almost-orthogonal layers for efficient general-purpose Lipschitz
        networks](https://arxiv.org/abs/2208.03160)
    """

    def bind(self, norm: float, geometry: ConvolutionGeometry | None = None) -> Self:
        if geometry is not None:
            refuse_strided_dilation(self, geometry)
        return dataclasses.replace(self, norm=norm, geometry=geometry)

    def kernel(self, weight: Tensor, kernel_shape: Shape) -> Tensor:
        geometry = self.geometry or ConvolutionGeometry((), (), ())
        groups = kernel_of_groups(in_float32(weight), geometry.groups)
        taps = tuple(groups.shape[1:-2])
        folded = fold_strides(groups, geometry.strides)
        inputs, outputs = folded.shape[-2:]
        rows = inputs < outputs
        sums = ops.sum(_absolute_gram(ops.swapaxes(folded, -1, -2) if rows else folded), axis=-1)
        scale = ops.reshape(self.norm / ops.sqrt(sums + _TINY), (sums.shape[0], *(1,) * len(taps), 1, -1))
        folded = folded * (ops.swapaxes(scale, -1, -2) if rows else scale)
        return kernel_from_groups(unfold_strides(folded, geometry.strides, taps), kernel_shape)


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

    Example:
        >>> np.round(gram_row_sums(np.array([[1.0, 0.0], [1.0, 1.0]]), np.zeros(2)), 2)
        array([3., 2.])

    Reference:
        - Prach and Lampert, 2022, [Almost-orthogonal layers](https://arxiv.org/abs/2208.03160)
        - Araujo et al., 2023, [A unified algebraic perspective on Lipschitz neural
          networks](https://arxiv.org/abs/2303.03169)
    """
    weights = ops.exp(ops.clip(in_float32(log_weights), -30.0, 30.0))
    gram = _absolute_gram(in_float32(kernel)[None])[0]
    sums = ops.matmul(gram, ops.reshape(weights, (-1, 1)))[:, 0] / weights
    return ops.maximum(sums, _TINY) * _ROOM


def _absolute_gram(kernels: Tensor) -> Tensor:
    """Returns `sum_d |sum_t K_t^T K_(t + d)|_jk` for each two outputs j and k.

    Args:
        kernels: Tensor of shape `(groups, *taps, inputs, outputs)`.

    Returns:
        Tensor of shape `(groups, outputs, outputs)`.
    """
    groups, *taps, inputs, outputs = kernels.shape
    rank = len(taps)
    if math.prod(taps) == 1:
        matrices = ops.reshape(kernels, (groups, inputs, outputs))
        return ops.abs(ops.matmul(ops.swapaxes(matrices, 1, 2), matrices))
    # As the convolution of the kernel with itself: its outputs are the images, and the groups stay groups.
    spatial = range(1, rank + 1)
    images = ops.reshape(ops.transpose(kernels, (rank + 2, *spatial, 0, rank + 1)), (outputs, *taps, groups * inputs))
    images = ops.pad(images, [(0, 0), *((size - 1, size - 1) for size in taps), (0, 0)])
    filters = ops.reshape(ops.transpose(kernels, (*spatial, rank + 1, 0, rank + 2)), (*taps, inputs, groups * outputs))
    correlations = ops.conv(images, filters, padding="valid", data_format="channels_last")
    sums = ops.sum(ops.abs(correlations), axis=tuple(spatial))
    return ops.transpose(ops.reshape(sums, (outputs, groups, outputs)), (1, 0, 2))
