"""Orthogonal dense kernels, and convolutions, by the Cayley transform."""

import dataclasses
from typing import Self

from keras import ops

from deel_like_lip._registration import register
from deel_like_lip._typing import Tensor
from deel_like_lip.parametrizations.base import in_float32, transpose
from deel_like_lip.parametrizations.convolution import ConvolutionGeometry, kernel_of_groups
from deel_like_lip.parametrizations.dense import DenseKernel, closing_step, gram, with_ridge
from deel_like_lip.parametrizations.torus import real_symbols, waves


@register
class Cayley(DenseKernel):
    """Orthogonal kernels, and convolutions with circular padding, the Cayley transform of a free weight.

    The norm is never above `norm`, whatever the weight, and singular values are within 1e-5 of it as long as those of
    the weight are below 10. A square kernel is a rotation that turns nothing by 180 degrees.

    Of a convolution the weight is a kernel, the symbol of which is transformed at each frequency of the image: the
    result is the symbol of a convolution with a kernel of the image's size. It is orthogonal on images of that size,
    which must be known when the layer is built. It is applied as products with three matrices, in the folded model too:
    to the coefficients of the image, at each frequency, and back. With strides it is a convolution of stride 1 whose
    channels are the phases of the image.

    Args:
        norm: The value of all singular values.
        geometry: As in `Parametrization`.

    Raises:
        ValueError: By `bind`, if a convolution is transposed or depthwise, or not one with circular padding on an image
            of a size that is known.

    Example:
        >>> layer = SpectralDense(3, parametrization=Cayley())
        >>> layer(np.zeros((1, 4))).shape
        (1, 3)
        >>> np.round(keras.ops.convert_to_numpy(keras.ops.svd(layer.kernel, compute_uv=False)), 3)
        array([1., 1., 1.], dtype=float32)

    Reference:
        Trockman and Kolter, 2021, [Orthogonalizing convolutional layers with the Cayley
        transform](https://arxiv.org/abs/2104.07167)
    """

    def bind(self, norm: float, geometry: ConvolutionGeometry | None = None) -> Self:
        reason = "" if geometry is None else _refusal(geometry)
        if reason:
            raise ValueError(
                "Invalid value for argument `parametrization`. Cayley expects a dense layer, or a convolution that is "
                "neither transposed nor depthwise, with padding \"circular\" and an `Input` of fixed size; 'aoc' has "
                f"no such limits. Received: {reason}"
            )
        return dataclasses.replace(self, norm=norm, geometry=geometry)

    def weight_shape(self, kernel_shape: tuple[int, ...]) -> tuple[int, ...]:
        return super().weight_shape(kernel_shape) if self.geometry is None else kernel_shape

    def kernel(self, weight: Tensor, kernel_shape: tuple[int, ...]) -> Tensor:
        """Returns the kernel; of a convolution the matrices at the frequencies.

        These have the shape `(frequencies, prod(strides), c_in, 2, c_out, 2)`, for all groups together.
        """
        if self.geometry is None:
            return super().kernel(weight, kernel_shape)
        geometry, sizes = self._bound
        kernels = kernel_of_groups(in_float32(weight), geometry.groups)
        groups, *_, inputs, outputs = kernels.shape
        symbols = real_symbols(kernels, sizes, geometry.strides, geometry.dilation_rate)
        rows, columns = symbols.shape[-2:]
        matrices = cayley(symbols) if rows >= columns else transpose(cayley(transpose(symbols)))
        matrices = ops.reshape(matrices * self.norm, (-1, groups, rows // inputs // 2, inputs, 2, outputs, 2))
        if groups > 1:
            matrices = ops.einsum("fgrixoy,gh->frgixhoy", matrices, ops.eye(groups, dtype=matrices.dtype))
        shape = (matrices.shape[0], rows // inputs // 2, groups * inputs, 2, groups * outputs, 2)
        return ops.reshape(matrices, shape)

    def _tall_kernel(self, weight: Tensor, columns: int) -> Tensor:
        return cayley(weight)

    def factors(self, kernel: Tensor, channels_first: bool) -> list[tuple[str, Tensor]]:
        """Returns what images are multiplied by, one after another: equations of `einsum`, and tensors.

        Args:
            kernel: The kernel of the convolution.
            channels_first: Whether images have their channels first.
        """
        geometry, sizes = self._bound
        tables = (ops.convert_to_tensor(table, dtype=kernel.dtype) for table in waves(sizes, geometry.strides))
        analysis, synthesis = tables
        image, result = "hwd"[: len(sizes)], "klm"[: len(sizes)]
        inputs, outputs = (f"i{image}", f"o{result}") if channels_first else (f"{image}i", f"{result}o")
        return [
            (f"b{inputs},{image}frx->bfrix", analysis),
            ("bfrix,frixoy->bfoy", kernel),
            (f"bfoy,fy{result}->b{outputs}", synthesis),
        ]

    @property
    def _bound(self) -> tuple[ConvolutionGeometry, tuple[int, ...]]:
        assert self.geometry is not None
        assert self.geometry.sizes is not None
        return self.geometry, tuple(size or 0 for size in self.geometry.sizes)


def cayley(matrix: Tensor) -> Tensor:
    """Returns the Cayley transform of a matrix with at least as many rows as columns, or those of a stack.

    With U the upper square of the matrix, V the rest and `M = I + U - U^T + V^T V`, it is `2 M^-1 - I` on top of
    `-2 V M^-1`. Its Gram matrix is `I + 2 M^-T (2 + 2 V^T V - M - M^T) M^-1 = I`, and less where M has a ridge more.

    Args:
        matrix: Tensor of shape `(..., rows, columns)`, float32 or float64.

    Returns:
        Tensor of the same shape and dtype, with orthonormal columns, of norm at most 1.
    """
    columns = matrix.shape[-1]
    upper, lower = matrix[..., :columns, :], matrix[..., columns:, :]
    identity = ops.eye(columns, dtype=matrix.dtype)
    inverse = ops.inv(with_ridge(identity + upper - transpose(upper) + gram(lower)))
    return closing_step(ops.concatenate([2 * inverse - identity, -2 * ops.matmul(lower, inverse)], axis=-2))


def _refusal(geometry: ConvolutionGeometry) -> str:
    """Returns which argument of a layer does not fit, or nothing."""
    if geometry.transposed or geometry.groups is None:
        return "a transposed convolution" if geometry.transposed else "a depthwise convolution"
    if geometry.padding != "circular":
        return f"padding={geometry.padding}"
    if geometry.sizes is not None and None in geometry.sizes:
        return f"an input of size {geometry.sizes}"
    return ""
