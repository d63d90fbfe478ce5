"""Regularizers that draw kernels towards orthogonal ones, for plain Keras layers and constrained ones."""

import math
from typing import Any

import keras
from keras import ops

from deel_like_lip._registration import register
from deel_like_lip._typing import Tensor
from deel_like_lip._validation import checked_positive, checked_sizes
from deel_like_lip.parametrizations.base import as_matrix, gram_matrix, in_float32


@register
class OrthDenseRegularizer(keras.regularizers.Regularizer):
    """The squared distance `|W^T W - I|^2`, in Frobenius norm, of a kernel from orthogonal ones.

    Of a kernel with fewer rows than columns it is that of `W W^T`. A kernel of rank above 2 stands for the matrix with
    its last axis as columns.

    Args:
        lambda_orth: Factor, at least 0.

    Example:
        >>> keras.layers.Dense(10, kernel_regularizer=OrthDenseRegularizer(0.1))

    Raises:
        ValueError: If the factor is negative or not finite.
    """

    def __init__(self, lambda_orth: float = 1.0) -> None:
        self.lambda_orth = checked_positive(lambda_orth, "lambda_orth", or_zero=True)

    def __call__(self, kernel: Tensor) -> Tensor:
        gram = gram_matrix(as_matrix(kernel))
        return self.lambda_orth * ops.sum(ops.square(gram - ops.eye(gram.shape[0], dtype=gram.dtype)))

    def get_config(self) -> dict[str, Any]:
        return {"lambda_orth": self.lambda_orth}


@register
class LorthRegularizer(keras.regularizers.Regularizer):
    """How far a convolution is from orthogonal, as an operator: 0 where all its singular values are 1.

    On a torus of n strides along each of the d spatial axes the operator K has `|K K^T - I|^2 = n^d * L`, in Frobenius
    norm, where it has no more outputs than inputs, and `|K^T K - I|^2 = n^d * L` otherwise. L is this regularizer, of
    the kernel alone: the correlations of its filters with each other at all distances of whole strides. That holds for
    tori that are so large that two windows meet on one side of each other only.

    For the kernels of `Conv1D`, `Conv2D`, `Conv3D` and their transposes, which have the kernel of the convolution that
    they transpose. Dilated convolutions are the same up to an order of the positions.

    Args:
        stride: Strides of the convolution, one integer or one for each spatial axis.
        lambda_lorth: Factor, at least 0.
        groups: Number of groups that the channels are split into.

    Example:
        >>> keras.layers.Conv2D(16, 3, strides=2, kernel_regularizer=LorthRegularizer(stride=2))

    Raises:
        ValueError: If the kernel is not that of a convolution, or no orthogonal convolution has its shape and strides.

    Reference:
        - Wang et al., 2020, [Orthogonal convolutional neural networks](https://arxiv.org/abs/1911.12207)
        - Achour, Malgouyres and Mamalet, 2022, [Existence, stability and scalability of orthogonal convolutional neural
          networks](https://arxiv.org/abs/2108.05623)
    """

    def __init__(self, stride: Any = 1, lambda_lorth: float = 1.0, groups: int = 1) -> None:
        self.stride = checked_sizes(stride, "stride")
        self.lambda_lorth = checked_positive(lambda_lorth, "lambda_lorth", or_zero=True)
        (self.groups,) = checked_sizes(groups, "groups", 1)

    def __call__(self, kernel: Tensor) -> Tensor:
        kernel = in_float32(kernel)
        strides = self._checked_strides(kernel.shape)
        total = sum(_lorth(part, strides) for part in ops.split(kernel, self.groups, axis=-1))
        return self.lambda_lorth * total

    def _checked_strides(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        *kernel_size, inputs, outputs = shape
        if not kernel_size or outputs % self.groups:
            raise ValueError(
                "LorthRegularizer expects a kernel of shape (*kernel_size, c_in / groups, c_out) with at least one "
                f"spatial axis, and a c_out that the groups divide. Received: shape={tuple(shape)}, "
                f"groups={self.groups}"
            )
        strides = checked_sizes(self.stride, "stride", len(kernel_size))
        columns = outputs // self.groups
        # With no more outputs than inputs, the filters must fit under a window; otherwise it must reach all inputs.
        fits = columns <= math.prod(kernel_size) * inputs
        reaches = all(stride <= taps for stride, taps in zip(strides, kernel_size, strict=True))
        if not (fits if columns <= math.prod(strides) * inputs else reaches):
            raise ValueError(
                "LorthRegularizer cannot reach 0: no orthogonal convolution has this kernel shape and stride. Use a "
                f"larger kernel or other channels. Received: shape={tuple(shape)}, stride={self.stride}"
            )
        return strides

    def get_config(self) -> dict[str, Any]:
        return {"stride": self.stride, "lambda_lorth": self.lambda_lorth, "groups": self.groups}


def _lorth(kernel: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Returns `|correlations - I|^2`, less what it cannot fall below where there are more outputs than inputs."""
    *kernel_size, inputs, outputs = kernel.shape
    reach = [(taps - 1) // stride for taps, stride in zip(kernel_size, strides, strict=True)]
    pads = [(count * stride, count * stride) for count, stride in zip(reach, strides, strict=True)]
    filters = ops.pad(ops.moveaxis(kernel, -1, 0), [(0, 0), *pads, (0, 0)])
    # `(outputs, *(2 reach + 1), outputs)`: each filter as an image, under the window of each filter.
    correlations = ops.conv(filters, kernel, strides=list(strides), padding="valid", data_format="channels_last")
    identity = ops.reshape(ops.eye(outputs, dtype=kernel.dtype), (outputs, *[1] * len(reach), outputs))
    target = ops.pad(identity, [(0, 0), *[(count, count) for count in reach], (0, 0)])
    # |K K^T - I|^2 - |K^T K - I|^2 is the number of rows less that of columns, whatever K.
    surplus = max(outputs - math.prod(strides) * inputs, 0)
    return ops.sum(ops.square(correlations - target)) - surplus
