"""What a convolution is, and what the norm of its reshaped kernel says of the norm of its operator."""

import dataclasses
import math
from collections.abc import Sequence

from deel_like_lip._geometry import max_overlap


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
    """

    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation_rate: tuple[int, ...]
    groups: int | None = 1
    padding: str = "valid"
    transposed: bool = False


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
