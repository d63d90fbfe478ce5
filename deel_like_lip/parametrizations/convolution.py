"""What the norm of a reshaped kernel says of the norm of the convolution."""

import math
from collections.abc import Sequence

from deel_like_lip._geometry import max_overlap
from deel_like_lip._validation import checked_sizes


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
