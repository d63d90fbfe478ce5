"""Orthogonal convolutions as exponentials of skew-symmetric ones."""

import dataclasses
import math
from collections.abc import Callable
from typing import Self

from keras import ops

from deel_like_lip._registration import register
from deel_like_lip._typing import Shape, Tensor
from deel_like_lip.parametrizations.base import Parametrization, in_float32
from deel_like_lip.parametrizations.convolution import ConvolutionGeometry, kernel_from_groups, kernel_of_groups
from deel_like_lip.parametrizations.operator_norm import operator_norm_bound, operator_norm_estimate

# Of the exponential series. For a skew-symmetric operator of norm 1 the rest is at most 1 / 7! = 2e-4.
_TERMS = 6
# The largest |p(i s)| for |s| <= 1, of the series p: `|p(i s)|^2 = 1 + s^8 / 2880 - s^10 / 21600 + s^12 / 518400`.
_LARGEST = abs(sum(1j**power / math.factorial(power) for power in range(_TERMS + 1)))


@register
@dataclasses.dataclass(frozen=True)
class SOC(Parametrization):
    """Convolutions `y = x + L x + L^2 x / 2! + ... + L^6 x / 6!` of a skew-symmetric one, applied as such.

    L has a kernel with `K_-t = -K_t^T`, so that it is skew-symmetric as an operator, with zero padding too, and a norm
    of at most 1. Its exponential is orthogonal. The truncated series is divided by the largest singular value that it
    can have, so that all are at most `norm` and at least 1 - 3e-4 of it; after an update that enlarges L, up to 1 +
    1e-3 of it. Where a layer has more inputs than outputs or fewer, L acts on as many channels as the larger: inputs
    are filled up with zeros, or outputs left out. Six convolutions take the place of one, in the folded model too.

    It is for convolutions with strides of 1, odd kernel sizes, and padding "same" or "circular"; groups must have as
    many inputs as outputs.

    Args:
        norm: As in `Parametrization`.
        geometry: As in `Parametrization`.

    Raises:
        ValueError: By `bind`, if the layer is not such a convolution.

    Example:
        >>> layer = LipConv2D(16, 3, padding="same", parametrization="soc")
        >>> layer(np.zeros((1, 8, 8, 16))).shape
        (1, 8, 8, 16)

    Reference:
        Singla and Feizi, 2021, [Skew orthogonal convolutions](https://arxiv.org/abs/2105.11417)
    """

    def bind(self, norm: float, geometry: ConvolutionGeometry | None = None) -> Self:
        reason = "" if geometry is None else _refusal(geometry)
        if geometry is None or reason:
            raise ValueError(
                "Invalid value for argument `parametrization`. SOC expects a convolution that is not transposed, with "
                'strides of 1, an odd kernel size, padding "same" or "circular", and as many inputs as outputs in each '
                f"of several groups; 'aoc' has no such limits. Received: {reason or 'a dense layer'}"
            )
        return dataclasses.replace(self, norm=norm / _LARGEST, geometry=geometry)

    def weight_shape(self, kernel_shape: tuple[int, ...]) -> tuple[int, ...]:
        assert self.geometry is not None
        assert self.geometry.channels is not None
        assert self.geometry.groups is not None
        channels = max(self.geometry.channels)
        return (*self.geometry.kernel_size, channels, self.geometry.groups * channels)

    def kernel(self, weight: Tensor, kernel_shape: Shape) -> Tensor:
        """Returns the kernel of L."""
        weight = in_float32(weight)
        return kernel_from_groups(self._skew(weight), weight.shape)

    def project(self, weight: Tensor) -> Tensor:
        return self._shrunk(weight, operator_norm_bound)

    def retract(self, weight: Tensor) -> Tensor:
        return self._shrunk(weight, operator_norm_estimate)

    def tangent_gradient(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return gradient

    def exponential(self, apply: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """Returns the series, where `apply` applies L. Of `KerasTensor`s it makes a graph that `certify` recognises."""
        term = apply(inputs)
        total = ops.add(inputs, term)
        for power in range(2, _TERMS + 1):
            term = ops.divide(apply(term), power)
            total = ops.add(total, term)
        return total

    def _skew(self, weight: Tensor) -> Tensor:
        """Returns the skew-symmetric part of each group; that `a - b` and `b - a` are opposite is exact."""
        assert self.geometry is not None
        kernels = kernel_of_groups(weight, self.geometry.groups)
        mirrored = ops.swapaxes(ops.flip(kernels, axis=tuple(range(1, len(kernels.shape) - 2))), -1, -2)
        return (kernels - mirrored) * 0.5

    def _shrunk(self, weight: Tensor, norm_of: Callable[[Tensor], Tensor]) -> Tensor:
        weight = ops.convert_to_tensor(weight)
        skew = self._skew(in_float32(weight))
        shrunk = skew / ops.maximum(norm_of(skew), 1.0)
        return ops.cast(kernel_from_groups(shrunk, weight.shape), weight.dtype)


def _refusal(geometry: ConvolutionGeometry) -> str:
    """Returns which argument of a layer does not fit, or nothing."""
    if geometry.transposed or geometry.groups is None:
        return "a transposed convolution" if geometry.transposed else "a depthwise convolution"
    if max(geometry.strides) > 1:
        return f"strides={geometry.strides}"
    if any(taps % 2 == 0 for taps in geometry.kernel_size):
        return f"kernel_size={geometry.kernel_size}"
    if geometry.padding == "valid":
        return f"padding={geometry.padding}"
    inputs, outputs = geometry.channels or (1, 1)
    if geometry.groups > 1 and inputs != outputs:
        return f"groups={geometry.groups} of {inputs} inputs and {outputs} outputs"
    return ""
