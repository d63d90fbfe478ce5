"""Orthogonal convolutions, composed of orthogonal matrices and projectors."""

import dataclasses
import math
from collections.abc import Callable
from typing import Self

from keras import ops

from deel_like_lip._fusion import compiled
from deel_like_lip._registration import register
from deel_like_lip._typing import Shape, Tensor
from deel_like_lip.parametrizations.base import Parametrization, in_float32
from deel_like_lip.parametrizations.convolution import (
    ConvolutionGeometry,
    kernel_from_groups,
    refuse_strided_dilation,
)
from deel_like_lip.parametrizations.orthogonal import orthogonalize, tangent

# Errors add up over the factors of a kernel, so each is brought nearer than a kernel of its own would be, and in
# training not scaled, which would leave singular values that are less near to 1.
_CLOSE_ENOUGH = 0.004
_CLOSE_ENOUGH_IN_TRAINING = 0.1


@register
@dataclasses.dataclass(frozen=True)
class AOC(Parametrization):
    """Convolutions that are orthogonal as operators: for circular padding all singular values are `norm`, up to 1e-3.

    With zero padding they are at most `norm`. The operator keeps the norm of its input if it has no fewer outputs than
    inputs, and its transpose does otherwise; but strides above the kernel size leave inputs that no window meets. It
    may have strides, groups and dilations, and be transposed.

    Along each axis a kernel of k taps and stride s is that of `max(k - s, 0)` convolutions of two taps and stride 1,
    followed by one of `min(k, s)` taps and stride s. Two taps `P` and `I - P`, where P is the projector on the columns
    of an orthogonal matrix, have the symbol `P + (I - P) exp(-iw)`, which is unitary; and windows that do not overlap
    make an orthogonal operator of an orthogonal matrix. The matrices, which have half as many columns as rows where
    they stand for projectors, are stored side by side as one weight, and each is kept orthogonal. Singular values of
    them below 1, as an update may leave, make symbols that are convex combinations of I and `I exp(-iw)`, and never a
    norm above `norm`.

    Args:
        norm: As in `Parametrization`.
        geometry: As in `Parametrization`.

    Raises:
        ValueError: By `bind`, if the layer is dense, is a convolution from one channel to one, or has strides and a
            dilation.

    Example:
        >>> layer = LipConv2D(16, 3, padding="same", parametrization="aoc")
        >>> layer(np.zeros((1, 8, 8, 4))).shape
        (1, 8, 8, 16)

    Reference:
        - Boissin et al., 2025, [An adaptive orthogonal convolution scheme for efficient and flexible CNN
          architectures](https://arxiv.org/abs/2501.07930)
        - Li et al., 2019, [Preventing gradient attenuation in Lipschitz constrained convolutional
          networks](https://arxiv.org/abs/1911.00937), for kernels of stride 1
    """

    def bind(self, norm: float, geometry: ConvolutionGeometry | None = None) -> Self:
        if geometry is None:
            raise ValueError(
                "Invalid value for argument `parametrization`. AOC is one of convolutions. Expected one of dense "
                f"layers, such as 'polar', which makes them orthogonal. Received: parametrization={self}"
            )
        refuse_strided_dilation(self, geometry)
        bound = dataclasses.replace(self, norm=norm, geometry=geometry)
        if geometry.channels is not None and bound._middle == 1 and bound._growth:
            raise ValueError(
                "Invalid value for argument `parametrization`. From one channel to one, AOC knows no orthogonal "
                "convolution but shifts: expected more channels in each group, another `kernel_size`, or another "
                f"parametrization, such as 'aol'. Received: channels={geometry.channels}, "
                f"kernel_size={geometry.kernel_size}, strides={geometry.strides}"
            )
        return bound

    @property
    def _bound(self) -> tuple[ConvolutionGeometry, tuple[int, int]]:
        assert self.geometry is not None
        assert self.geometry.channels is not None
        return self.geometry, self.geometry.channels

    @property
    def _window(self) -> list[int]:
        """The taps of the last convolution, whose windows do not overlap."""
        geometry, _ = self._bound
        return [min(taps, stride) for taps, stride in zip(geometry.kernel_size, geometry.strides, strict=True)]

    @property
    def _growth(self) -> list[int]:
        """The axis of each of the convolutions before, from the last to the first: one after another in turn."""
        geometry, _ = self._bound
        left = [max(taps - stride, 0) for taps, stride in zip(geometry.kernel_size, geometry.strides, strict=True)]
        return [axis for turn in range(max(left)) for axis, count in enumerate(left) if turn < count]

    @property
    def _middle(self) -> int:
        """The number of channels between the convolutions: as many as can be without a loss of norm."""
        _, (inputs, outputs) = self._bound
        return max(inputs, outputs // math.prod(self._window)) if self._growth else inputs

    @property
    def _shapes(self) -> list[tuple[int, int, int]]:
        """Shapes `(count, rows, columns)` of the matrices: of the first channels, of the last, and of projectors."""
        _, (inputs, outputs) = self._bound
        middle, rows = self._middle, self._middle * math.prod(self._window)
        first = [(1, middle, inputs)] if middle > inputs else []
        # Where both ends are square up to the first matrix, a last one would add nothing.
        last = [] if first and rows == middle else [(1, max(rows, outputs), min(rows, outputs))]
        projectors = [(len(self._growth), middle, middle // 2)] if self._growth else []
        return first + last + projectors

    def weight_shape(self, kernel_shape: tuple[int, ...]) -> tuple[int, ...]:
        geometry, channels = self._bound
        size = math.prod(kernel_shape)
        groups = size // math.prod((*geometry.kernel_size, *channels))
        return groups, sum(math.prod(shape) for shape in self._shapes)

    def project(self, weight: Tensor) -> Tensor:
        return self._orthogonalized(weight, _CLOSE_ENOUGH)

    def retract(self, weight: Tensor) -> Tensor:
        return self._orthogonalized(weight, _CLOSE_ENOUGH_IN_TRAINING)

    def tangent_gradient(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return self.each(tangent, weight, gradient)

    def kernel(self, weight: Tensor, kernel_shape: Shape) -> Tensor:
        matrices = self._matrices(weight)
        _, (inputs, outputs) = self._bound
        middle, window = self._middle, self._window
        groups = matrices[0].shape[0]
        rows = middle * math.prod(window)
        first = matrices.pop(0)[:, 0] if middle > inputs else None
        if first is not None and rows == middle:
            kernels = ops.broadcast_to(ops.eye(middle, dtype=first.dtype), (groups, middle, middle))
        else:
            kernels = matrices.pop(0)[:, 0]
            kernels = kernels if rows >= outputs else ops.swapaxes(kernels, 1, 2)
        kernels = ops.reshape(kernels, (groups, *window, middle, kernels.shape[-1]))
        for index, axis in enumerate(self._growth):
            kernels = _before(matrices[0][:, index], kernels, axis + 1)
        if first is not None:
            kernels = _times(ops.swapaxes(first, 1, 2), kernels)
        return kernel_from_groups(kernels * self.norm, kernel_shape)

    def _orthogonalized(self, weight: Tensor, close_enough: float) -> Tensor:
        return ops.cast(_orthogonalized(in_float32(weight), self, close_enough), ops.dtype(weight))

    def _matrices(self, weight: Tensor) -> list[Tensor]:
        """Returns the stacks of matrices in a weight, of shapes `(groups, count, rows, columns)`."""
        weight, start, parts = in_float32(weight), 0, []
        for shape in self._shapes:
            stop = start + math.prod(shape)
            parts.append(ops.reshape(weight[:, start:stop], (weight.shape[0], *shape)))
            start = stop
        return parts

    def each(self, function: Callable[..., Tensor], *weights: Tensor) -> Tensor:
        """Applies a function to each stack of matrices, those of several weights together."""
        stacks = zip(*map(self._matrices, weights), strict=True)
        groups = weights[0].shape[0]
        results = [ops.reshape(function(*parts), (groups, -1)) for parts in stacks]
        return ops.cast(ops.concatenate(results, axis=1), ops.convert_to_tensor(weights[-1]).dtype)


@compiled
def _orthogonalized(weight: Tensor, parametrization: AOC, close_enough: float) -> Tensor:
    return parametrization.each(lambda matrices: orthogonalize(matrices, 1.0, close_enough), weight)


def _before(matrix: Tensor, kernels: Tensor, axis: int) -> Tensor:
    """Returns the kernels after a convolution with the taps `P` and `I - P` along an axis, P projecting on columns.

    Args:
        matrix: Tensor of shape `(groups, channels, columns)`.
        kernels: Tensor of shape `(groups, *taps, channels, c_out)`.
        axis: The axis of the kernels.
    """
    none = [(0, 0)] * len(kernels.shape)
    here = ops.pad(kernels, [*none[:axis], (0, 1), *none[axis + 1 :]])
    shifted = ops.pad(kernels, [*none[:axis], (1, 0), *none[axis + 1 :]])
    return shifted + _times(matrix, _times(ops.swapaxes(matrix, 1, 2), here - shifted))


def _times(matrix: Tensor, kernels: Tensor) -> Tensor:
    """Multiplies the input channels of each tap by a matrix of its group."""
    groups, rows, columns = matrix.shape
    return ops.matmul(ops.reshape(matrix, (groups, *(1,) * (len(kernels.shape) - 3), rows, columns)), kernels)
