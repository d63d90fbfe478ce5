"""The contract of a parametrization, and the one way in which it touches a gradient."""

import abc
import math
from typing import Any

import numpy as np
from keras import ops

from deel_like_lip._typing import Shape, Tensor


class Parametrization(abc.ABC):
    """A set of allowed kernels, with the two maps that training on it needs.

    Instances are immutable and hashable, hold no tensor, and work under every compiler of the three backends. They are
    callable, so that one can be handed to Keras as the constraint of a variable: Keras then projects the kernel inside
    the compiled step, right after the optimizer's update.
    """

    @abc.abstractmethod
    def project(self, kernel: Tensor) -> Tensor:
        """Returns the allowed kernel that belongs to `kernel`, which may be any, in its shape and dtype."""

    def start(self, initializer: Any, shape: Shape, dtype: Any = None) -> Tensor:
        """Returns the allowed kernel that a Keras initializer leads to."""
        return self.project(initializer(shape, dtype=dtype))

    def retract(self, kernel: Tensor) -> Tensor:
        """Returns the same, and is fast where `kernel` was allowed before an optimizer moved it a little."""
        return self.project(kernel)

    @abc.abstractmethod
    def tangent_gradient(self, kernel: Tensor, gradient: Tensor) -> Tensor:
        """Returns the part of `gradient` along which an allowed `kernel` can move and stay allowed, to first order."""

    def tangent_matmul(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Returns `inputs @ kernel`, computed in the dtype of `inputs`, with a tangent gradient for the kernel.

        Args:
            inputs: Tensor of shape `(batch, ..., features)`.
            kernel: Variable or tensor of shape `(features, units)`.
        """
        return ops.matmul(inputs, ops.cast(with_tangent_gradient(self, kernel), inputs.dtype))

    def __call__(self, kernel: Tensor) -> Tensor:
        return self.retract(kernel)


def with_tangent_gradient(parametrization: Parametrization, kernel: Tensor) -> Tensor:
    """Returns `kernel` unchanged, such that the gradient that reaches it is tangent to the allowed kernels.

    The optimizer's moments then hold no component that the projection would remove again, which is what makes a cheap
    projection train as well as an exact one.
    """

    @ops.custom_gradient
    def identity(value: Tensor) -> tuple[Tensor, Any]:
        def backward(*args: Tensor, upstream: Tensor = None) -> Tensor:
            return parametrization.tangent_gradient(value, upstream_gradient(args, upstream))

        return value, backward

    return identity(ops.copy(kernel))  # of a variable it must be the value: TensorFlow wants no variables in here


def upstream_gradient(args: tuple[Tensor, ...], upstream: Tensor | None) -> Tensor:
    """Returns the gradient that the backward function of `keras.ops.custom_gradient` was given.

    Torch passes it by name, after the inputs of the forward function; the others pass nothing else.
    """
    return args[-1] if upstream is None else upstream


def as_matrix(kernel: Tensor, groups: int | None = 1) -> Tensor:
    """Returns the matrix with the last axis as columns, in float32 or float64, or a stack of the matrices of groups.

    Args:
        kernel: Tensor of any rank.
        groups: Number of groups that the last axis is split into, or None where the axis before it counts them.

    Returns:
        Tensor of shape `(rows, columns)` for one group, and else `(groups, rows, columns)`.
    """
    kernel = in_float32(kernel)
    if groups == 1:
        return ops.reshape(kernel, (-1, kernel.shape[-1]))
    shape = (-1, *kernel.shape[-2:]) if groups is None else (-1, groups, kernel.shape[-1] // groups)
    return ops.transpose(ops.reshape(kernel, shape), (1, 0, 2))


def from_matrix(matrix: Tensor, shape: Shape) -> Tensor:
    """Undoes `as_matrix`."""
    return ops.reshape(matrix if len(matrix.shape) == 2 else ops.transpose(matrix, (1, 0, 2)), shape)


def in_float32(tensor: Tensor) -> Tensor:
    """Returns a tensor of at least the precision of float32."""
    tensor = ops.convert_to_tensor(tensor)
    return tensor if ops.dtype(tensor) == "float64" else ops.cast(tensor, "float32")


def probe(size: int) -> np.ndarray:
    """Returns a fixed vector, shape `(size, 1)`, that no structure of a kernel is likely to be orthogonal to."""
    return np.cos(math.pi * np.sqrt(2.0) * np.arange(1, size + 1) ** 2).reshape(size, 1)
