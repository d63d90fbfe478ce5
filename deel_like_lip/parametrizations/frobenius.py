"""Kernels of a given Frobenius norm."""

import dataclasses
from typing import Self

from keras import ops

from deel_like_lip._registration import register
from deel_like_lip._typing import Tensor
from deel_like_lip.parametrizations.base import ReshapedKernel, in_float32
from deel_like_lip.parametrizations.convolution import ConvolutionGeometry


@register
@dataclasses.dataclass(frozen=True)
class Frobenius(ReshapedKernel):
    """Kernels whose Frobenius norm is `norm`, as a whole or for each output (the last axis) by itself.

    A kernel of zeros has no direction and is left as it is.

    Args:
        norm: The l2 norm of the kernel's entries.
        per_output: Whether every slice along the last axis has that norm, rather than the whole kernel.
        geometry: As in `Parametrization`.

    Raises:
        ValueError: By `bind`, if `per_output`, which does not bound a layer as a whole.

    Example:
        >>> Frobenius().project(np.array([[3.0], [4.0]]))
        [[0.6], [0.8]]
    """

    per_output: bool = False

    def bind(self, norm: float, geometry: ConvolutionGeometry | None = None) -> Self:
        if self.per_output:
            raise ValueError(
                "Invalid value for argument `parametrization`. Expected one that bounds the layer as a whole, but that "
                "bounds each output by itself. Use `FrobeniusDense(disjoint_neurons=True)` if that is what you want. "
                f"Received: parametrization={self}"
            )
        return super().bind(norm, geometry)

    def project(self, kernel: Tensor) -> Tensor:
        value = in_float32(kernel)
        length = ops.sqrt(self._inner(value, value))
        scaled = ops.where(length > 0, value * (self.norm / ops.where(length > 0, length, 1.0)), value)
        return ops.cast(scaled, ops.convert_to_tensor(kernel).dtype)

    def tangent_gradient(self, kernel: Tensor, gradient: Tensor) -> Tensor:
        value, direction = in_float32(kernel), in_float32(gradient)
        tangent = direction - value * (self._inner(value, direction) / self.norm**2)
        return ops.cast(tangent, gradient.dtype)

    def _inner(self, left: Tensor, right: Tensor) -> Tensor:
        axes = tuple(range(len(left.shape) - 1)) if self.per_output else None
        return ops.sum(left * right, axis=axes, keepdims=True)
