"""The contract of a parametrization, and the one way in which it touches a gradient."""

import abc
import dataclasses
import functools
import math
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from deel_like_lip._typing import Shape, Tensor
from deel_like_lip.parametrizations.convolution import ConvolutionGeometry, reshaped_kernel_factor

# What stands for zero where a norm divides.
TINY = float(np.finfo("float32").tiny)


@dataclasses.dataclass(frozen=True)
class Parametrization(abc.ABC):
    """A set of allowed weights, the kernel that each stands for, and the maps that training on them needs.

    A layer stores one weight. By default that is the kernel itself; a subclass that overrides `kernel` computes it
    from the weight instead, whenever the layer is called: fold a model before you serve it.

    Instances are immutable and hashable, hold no tensor, and work under every compiler of the three backends. They are
    callable, so that one can be handed to Keras as the constraint of a variable: Keras then projects the weight inside
    the compiled step, right after the optimizer's update.

    To write your own, derive from this class, `ReshapedKernel` or `ComputedKernel`, and register the class with
    `keras.saving.register_keras_serializable`, so that models which use it can be loaded.

    Args:
        norm: What the norm of the kernel as a matrix may be. A layer sets it by `bind`.
        geometry: What a convolution does with its kernel, or None for a dense layer. A layer sets it by `bind`.

    Raises:
        ValueError: By `bind`, if kernels of a layer cannot be parametrized like this.

    Example:
        >>> @keras.saving.register_keras_serializable("mine")
        ... @dataclasses.dataclass(frozen=True)
        ... class Clipped(Parametrization):
        ...     # Columns of l1 norm at most 1: then no output exceeds the largest input. (No bound for the l2 norm.)
        ...     def project(self, weight):
        ...         sums = keras.ops.sum(keras.ops.abs(weight), axis=0, keepdims=True)
        ...         return weight / keras.ops.maximum(sums, 1.0)
        ...     def tangent_gradient(self, weight, gradient):
        ...         return gradient
        >>> Clipped().project(np.array([[3.0, 0.5], [1.0, 0.0]]))
        [[0.75, 0.5], [0.25, 0.0]]
    """

    norm: float = 1.0
    geometry: ConvolutionGeometry | None = dataclasses.field(default=None, repr=False, kw_only=True)

    @property
    def constraint(self) -> Self | None:
        """What Keras applies to the weight after each update, or None where every weight is allowed."""
        return self

    @property
    def computes_kernel(self) -> bool:
        """Whether the kernel is computed from the weight, rather than stored."""
        return type(self).kernel is not Parametrization.kernel

    def bind(self, norm: float, geometry: ConvolutionGeometry | None = None) -> Self:
        """Returns the parametrization of one layer.

        Args:
            norm: The Lipschitz constant of the layer.
            geometry: What a convolution does with its kernel, or None for a dense layer.

        Raises:
            ValueError: If kernels of such a layer cannot be parametrized like this.
        """
        if geometry is not None:
            raise ValueError(
                f"Invalid value for argument `parametrization`. {type(self).__name__} is one of dense layers: the norm "
                "of a convolution is not that of its kernel as a matrix. Expected one that has both, such as 'polar'. "
                f"Received: parametrization={self}"
            )
        return dataclasses.replace(self, norm=norm)

    def weight_shape(self, kernel_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the weight that a kernel of that shape is computed from."""
        return kernel_shape

    def kernel(self, weight: Tensor, kernel_shape: tuple[int, ...]) -> Tensor:
        """Returns the kernel that `weight` stands for; where it is computed, in float32 at least."""
        return weight

    @abc.abstractmethod
    def project(self, weight: Tensor) -> Tensor:
        """Returns the allowed weight that belongs to `weight`, which may be any, in its shape and dtype."""

    def start(self, initializer: Any, shape: Shape, dtype: Any = None) -> Tensor:
        """Returns the allowed weight that a Keras initializer leads to."""
        return self.project(initializer(shape, dtype=dtype))

    def retract(self, weight: Tensor) -> Tensor:
        """Returns the same, and is fast where `weight` was allowed before an optimizer moved it a little."""
        return self.project(weight)

    @abc.abstractmethod
    def tangent_gradient(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Returns the part of `gradient` along which an allowed `weight` can move and stay allowed, to first order."""

    def tangent_matmul(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Returns `inputs @ kernel`, computed in the dtype of `inputs`, with a tangent gradient for a stored kernel.

        Args:
            inputs: Tensor of shape `(batch, ..., features)`.
            kernel: Variable or tensor of shape `(features, units)`.
        """
        return ops.matmul(inputs, ops.cast(with_tangent_gradient(self, kernel), inputs.dtype))

    def __call__(self, weight: Tensor) -> Tensor:
        return self.retract(weight)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments without those that the layer which is loaded sets again."""
        names = [field.name for field in dataclasses.fields(self) if field.name not in ("norm", "geometry")]
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Returns the parametrization of which `get_config` gave the arguments."""
        return cls(**config)


class ReshapedKernel(Parametrization):
    """A parametrization that constrains the matrix which has the last axis of the kernel as columns.

    For a convolution `norm` is divided by the factor that leads from that matrix to the operator.

    Args:
        norm: As in `Parametrization`.
        geometry: As in `Parametrization`.

    Example:
        >>> isinstance(get("polar"), ReshapedKernel), LipConv2D(8, 3).parametrization.norm == 1 / 3
        (True, True)
    """

    @property
    def groups(self) -> int | None:
        """As in `ConvolutionGeometry`."""
        return 1 if self.geometry is None else self.geometry.groups

    def bind(self, norm: float, geometry: ConvolutionGeometry | None = None) -> Self:
        factor = 1.0
        if geometry is not None:
            factor = reshaped_kernel_factor(geometry.kernel_size, geometry.strides, geometry.dilation_rate)
        return dataclasses.replace(self, norm=norm / factor, geometry=geometry)


class ComputedKernel(Parametrization):
    """Kernels that are computed from a weight that may be anything, so that no update has to be undone.

    Args:
        norm: As in `Parametrization`.
        geometry: As in `Parametrization`.

    Example:
        >>> isinstance(get("aol"), ComputedKernel), get("aol").constraint
        (True, None)
    """

    @property
    def constraint(self) -> None:
        return None

    @abc.abstractmethod
    def kernel(self, weight: Tensor, kernel_shape: tuple[int, ...]) -> Tensor:
        """Returns the kernel, differentiable in `weight`, in float32 at least."""

    def project(self, weight: Tensor) -> Tensor:
        return weight

    def tangent_gradient(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return gradient


def with_tangent_gradient(parametrization: Parametrization, kernel: Tensor) -> Tensor:
    """Returns `kernel` unchanged, such that the gradient that reaches it is tangent to the allowed kernels.

    The optimizer's moments then hold no component that the projection would remove again, which is what makes a cheap
    projection train as well as an exact one.

    Args:
        parametrization: What says which gradients are tangent.
        kernel: Variable or tensor, allowed by the parametrization.

    Returns:
        Tensor of the values of `kernel`.

    Example:
        >>> with_tangent_gradient(Orthogonal(), np.eye(2))
        [[1.0, 0.0], [0.0, 1.0]]
    """
    if parametrization.constraint is None:
        return kernel

    @ops.custom_gradient
    def identity(value: Tensor) -> tuple[Tensor, Any]:
        def backward(*args: Tensor, upstream: Tensor = None) -> Tensor:
            return parametrization.tangent_gradient(value, upstream_gradient(args, upstream))

        return value, backward

    return identity(ops.copy(kernel))  # of a variable it must be the value: TensorFlow wants no variables in here


def upstream_gradient(args: tuple[Tensor, ...], upstream: Tensor | None) -> Tensor:
    """Returns the gradient that the backward function of `keras.ops.custom_gradient` was given.

    Torch passes it by name, after the inputs of the forward function; the others pass nothing else.

    Args:
        args: What the function was given by position.
        upstream: What it was given by that name.

    Returns:
        The gradient with respect to the output of the forward function.

    Example:
        >>> @keras.ops.custom_gradient
        ... def twice(x):
        ...     def backward(*args, upstream=None):
        ...         return 2 * upstream_gradient(args, upstream)
        ...     return 2 * x, backward
        >>> twice(keras.ops.convert_to_tensor([1.0, 2.0]))
        [2.0, 4.0]
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
        return kernel if len(kernel.shape) == 2 else ops.reshape(kernel, (-1, kernel.shape[-1]))
    shape = (-1, *kernel.shape[-2:]) if groups is None else (-1, groups, kernel.shape[-1] // groups)
    return ops.transpose(ops.reshape(kernel, shape), (1, 0, 2))


def from_matrix(matrix: Tensor, shape: Shape) -> Tensor:
    """Undoes `as_matrix`."""
    if tuple(matrix.shape) == tuple(shape):
        return matrix
    return ops.reshape(matrix if len(matrix.shape) == 2 else ops.transpose(matrix, (1, 0, 2)), shape)


def transpose(matrix: Tensor) -> Tensor:
    """Returns the transpose of a matrix, or those of a stack."""
    return ops.transpose(matrix) if len(matrix.shape) == 2 else ops.swapaxes(matrix, -1, -2)


def gram_matrix(matrix: Tensor) -> Tensor:
    """Returns the Gram matrix of the smaller side of a matrix, or those of a stack."""
    wide = matrix.shape[-2] < matrix.shape[-1]
    return matrix @ transpose(matrix) if wide else transpose(matrix) @ matrix


def times_column(matrix: Tensor, vector: Tensor) -> Tensor:
    """Returns the matrix, or each of a stack, times a vector, or one for each of them: shape `(..., rows)`.

    One matrix and a vector of rank 1 are what JAX multiplies fast: a column of rank 2 it does not.
    """
    return _product(matrix, vector) if len(matrix.shape) == 2 else ops.matmul(matrix, vector[..., None])[..., 0]


def row_times(vector: Tensor, matrix: Tensor) -> Tensor:
    """Returns a vector times the matrix, as `times_column` does of its transpose."""
    return _product(vector, matrix) if len(matrix.shape) == 2 else ops.matmul(vector[..., None, :], matrix)[..., 0, :]


def squared_length(tensor: Tensor, axes: int) -> Tensor:
    """Returns the sum of squares over the last axes; without an intermediate tensor if those are all."""
    if len(tensor.shape) > axes:
        return ops.sum(ops.square(tensor), axis=tuple(range(-axes, 0)))
    flat = ops.reshape(tensor, (-1,)) if axes > 1 else tensor
    return _product(flat, flat)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Returns a product with a vector, by the operator, which on torch takes half the time of `ops.matmul`."""
    return ops.matmul(left, right) if keras.backend.backend() == "tensorflow" else left @ right


def in_float32(tensor: Tensor) -> Tensor:
    """Returns a tensor, of a variable its value, in at least the precision of float32."""
    tensor = ops.convert_to_tensor(tensor)  # which on TensorFlow leaves a variable one, unlike `cast`
    return ops.cast(tensor, "float64" if ops.dtype(tensor) == "float64" else "float32")


@functools.cache
def probe(size: int) -> np.ndarray:
    """Returns a fixed vector of a size that no structure of a kernel is likely to be orthogonal to."""
    return np.cos(math.pi * np.sqrt(2.0) * np.arange(1, size + 1) ** 2)
