"""What a convolution is, what its reshaped kernel says of the norm of its operator, and other shapes of kernels."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from keras import ops

from deel_like_lip._geometry import max_overlap
from deel_like_lip._typing import Shape, Tensor
from deel_like_lip._validation import checked_sizes


@dataclasses.dataclass(frozen=True)
class ConvolutionGeometry:
    """What a convolution layer does with its kernel, as far as its norm depends on it.

    Args:
        kernel_size: Number of taps along each spatial axis.
        strides: Stride along each spatial axis.
        dilation_rate: Dilation along each spatial axis.
        groups: Number of groups that the channels are split into, the last axis of the kernel with them; None where
            each channel is a group, and the axis before the last counts them.
        padding: `"valid"`, `"same"` or `"circular"`.
        transposed: Whether the layer is a transposed convolution.
        channels: Number of input and output channels of one group, in the roles that they have in the convolution even
            where the layer is its transpose; None before the layer is built.
        sizes: Size of the input along each spatial axis, None where it is not known; None before the layer is built.

    Example:
        >>> LipConv2D(16, 3, strides=2).parametrization.geometry.strides
        (2, 2)
    """

    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation_rate: tuple[int, ...]
    groups: int | None = 1
    padding: str = "valid"
    transposed: bool = False
    channels: tuple[int, int] | None = None
    sizes: tuple[int | None, ...] | None = None


def reshaped_kernel_factor(
    kernel_size: Sequence[int], strides: Sequence[int] | None = None, dilation_rate: Sequence[int] | None = None
) -> float:
    """Returns a factor F such that a convolution's norm is at most F times the norm of its reshaped kernel.

    The reshaped kernel K maps the `prod(kernel_size) * c_in` values under the window to the `c_out` outputs there. So
    `|y|^2 = sum_o |K x_o|^2 <= |K|^2 sum_o |x_o|^2`, and in the last sum an input position is counted once for each tap
    that meets it.

    Args:
        kernel_size: Number of taps along each spatial axis.
        strides: Stride along each spatial axis, by default 1.
        dilation_rate: Dilation along each spatial axis, by default 1.

    Returns:
        The factor, at least 1.

    Example:
        >>> reshaped_kernel_factor((3, 3)), reshaped_kernel_factor((3, 3), strides=(3, 3))
        (3.0, 1.0)
    """
    return math.sqrt(max_overlap(kernel_size, strides, dilation_rate))


def operator_factor(
    shape: Sequence[int], strides: Sequence[int] | None = None, dilation_rate: Sequence[int] = (1,)
) -> float:
    """Returns a factor F such that a layer's norm is at most F times that of its kernel as a matrix.

    Args:
        shape: Shape of the kernel.
        strides: Strides of a convolution, one integer or one for each spatial axis; None where the matrix itself is
            meant, as it is for a dense layer.
        dilation_rate: Dilation of a convolution, likewise.

    Returns:
        The factor, at least 1.

    Example:
        >>> operator_factor((3, 3, 8, 16), strides=1), operator_factor((128, 64))
        (3.0, 1.0)

    Raises:
        ValueError: If there are strides and the kernel has no as many spatial axes.
    """
    if strides is None:
        return 1.0
    rank = len(shape) - 2
    if rank < 1:
        raise ValueError(
            "Argument `strides` is for the kernels of convolutions, which have at least one spatial axis. "
            f"Received: a kernel of shape {tuple(shape)}, strides={strides}"
        )
    geometry = (
        checked_sizes(value, name, rank) for value, name in ((strides, "strides"), (dilation_rate, "dilation_rate"))
    )
    return reshaped_kernel_factor(shape[:rank], *geometry)


def kernel_of_groups(kernel: Tensor, groups: int | None) -> Tensor:
    """Returns the kernel of each group of a convolution, shape `(groups, *taps, c_in, c_out)`.

    Args:
        kernel: Tensor of shape `(*taps, c_in, groups * c_out)`, or `(*taps, groups, c_out)` without `groups`.
        groups: As in `ConvolutionGeometry`.
    """
    *taps, inputs, outputs = kernel.shape
    shape = (*taps, 1, inputs, outputs) if groups is None else (*taps, inputs, groups, outputs // groups)
    rank = len(taps)
    return ops.transpose(ops.reshape(kernel, shape), (rank + 1, *range(rank), rank, rank + 2))


def kernel_from_groups(kernels: Tensor, kernel_shape: Shape) -> Tensor:
    """Undoes `kernel_of_groups`."""
    rank = len(kernels.shape) - 3
    return ops.reshape(ops.transpose(kernels, (*range(1, rank + 2), 0, rank + 2)), kernel_shape)


def fold_strides(kernels: Tensor, strides: Sequence[int]) -> Tensor:
    """Returns the kernels of the same convolution with stride 1, where the phases of the input count as channels.

    Args:
        kernels: Tensor of shape `(groups, *taps, c_in, c_out)`.
        strides: Stride along each spatial axis.

    Returns:
        Tensor of shape `(groups, *ceil(taps / strides), prod(strides) * c_in, c_out)`.
    """
    if all(stride == 1 for stride in strides):
        return kernels
    groups, *taps, inputs, outputs = kernels.shape
    rank = len(taps)
    counts = [-(-size // stride) for size, stride in zip(taps, strides, strict=True)]
    missing = [count * stride - size for count, stride, size in zip(counts, strides, taps, strict=True)]
    kernels = ops.pad(kernels, [(0, 0), *((0, size) for size in missing), (0, 0), (0, 0)])
    shape = [size for pair in zip(counts, strides, strict=True) for size in pair]
    kernels = ops.reshape(kernels, (groups, *shape, inputs, outputs))
    order = (0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1, 2 * rank + 2)
    return ops.reshape(ops.transpose(kernels, order), (groups, *counts, math.prod(strides) * inputs, outputs))


def unfold_strides(kernels: Tensor, strides: Sequence[int], taps: Sequence[int]) -> Tensor:
    """Undoes `fold_strides`, of kernels that had as many taps."""
    if all(stride == 1 for stride in strides):
        return kernels
    groups, *counts, inputs, outputs = kernels.shape
    rank = len(counts)
    kernels = ops.reshape(kernels, (groups, *counts, *strides, inputs // math.prod(strides), outputs))
    order = [axis for pair in zip(range(1, rank + 1), range(rank + 1, 2 * rank + 1), strict=True) for axis in pair]
    kernels = ops.transpose(kernels, (0, *order, 2 * rank + 1, 2 * rank + 2))
    sizes = [count * stride for count, stride in zip(counts, strides, strict=True)]
    kernels = ops.reshape(kernels, (groups, *sizes, *kernels.shape[-2:]))
    return kernels[(slice(None), *(slice(size) for size in taps))]


def refuse_strided_dilation(parametrization: Any, geometry: ConvolutionGeometry) -> None:
    """Raises for a dilation and a stride above 1 at once, which only depthwise layers of Keras allow."""
    if max(geometry.strides) > 1 and max(geometry.dilation_rate) > 1:
        raise ValueError(
            f"Invalid value for argument `parametrization`. {type(parametrization).__name__} expects no dilation "
            "beside strides above 1; 'polar' allows both. Received: "
            f"strides={geometry.strides}, dilation_rate={geometry.dilation_rate}"
        )
