"""Convolution of images that are continued by their own values."""

import functools
import math
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from deel_like_lip._geometry import largest_overlap, max_overlap
from deel_like_lip._registration import register
from deel_like_lip._typing import Shape, Tensor
from deel_like_lip.layers.convolutional import LipConv2D
from deel_like_lip.parametrizations import ReshapedKernel

# What is done here, by the mode of `numpy.pad`; the rest is done by `LipConv2D`.
_NUMPY_MODES = {"constant": "constant", "reflect": "reflect", "symmetric": "symmetric", "replicate": "edge"}
_ALIASES = {"zeros": "constant", "edge": "replicate"}
_PADDINGS = ("valid", "same", "circular", *_NUMPY_MODES, *_ALIASES)


@register
class PadConv2D(LipConv2D):
    """2D convolution with a choice of paddings, whose operator norm is at most `k_coef_lip`.

    Values that are repeated around the image are met by more windows, so the kernel is smaller where that enlarges the
    norm. With the parametrizations `"polar"` and `"spectral"` the norm of the reshaped kernel is `k_coef_lip /
    sqrt(m_h * m_w)`, m being along an axis the largest number of taps that meet one value of the image or a copy of it.
    For a kernel size k, odd, and strides of 1 that is

    - k for `"symmetric"`, which therefore costs nothing, as for `"constant"`, `"same"` and `"circular"`,
    - k + 1 for `"reflect"`,
    - `(k + 1) (k + 3) / 8`, or k if that is more, for `"replicate"`.

    With others, which know the norm of the convolution by itself, that is `k_coef_lip / sqrt(r_h * r_w)`, r being how
    often one value occurs in the padded image: 2 for `"reflect"` and `"symmetric"`, `(k + 1) / 2` for `"replicate"`.

    In deel-lip the layer of this name is not constrained, and only a base class.

    Args:
        filters: Positive integer, the number of output channels.
        kernel_size: One or two integers, height and width of the window.
        strides: One or two integers.
        padding: What stands around the image, so much that strides of 1 keep its size: `"constant"` or `"zeros"`;
            `"reflect"`, the image in a mirror that stands on its last row; `"symmetric"`, in one that stands behind it;
            `"replicate"` or `"edge"`, its last row. Or `"valid"`, `"same"` or `"circular"`, as in `LipConv2D`.
        **kwargs: The other arguments of `LipConv2D`.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` with `channels_first`. Where values
        are repeated, height and width must be known.

    Output shape:
        `(batch, new_height, new_width, filters)`, or `(batch, filters, new_height, new_width)`.

    Example:
        >>> layer = PadConv2D(16, 3, padding="symmetric", activation=GroupSort2())
        >>> layer(np.zeros((32, 28, 28, 1))).shape
        (32, 28, 28, 16)

    Raises:
        ValueError: If the padding is unknown, the image is so small that it would be repeated more often than that, or
            as `LipConv2D`.

    Reference:
        Tsuzuku, Sato and Sugiyama, 2018, [Lipschitz-Margin Training](https://arxiv.org/abs/1802.04034), for the count
        of taps
    """

    def __init__(self, filters: int, kernel_size: Any, strides: Any = 1, padding: str = "same", **kwargs: Any) -> None:
        padding = padding.lower() if isinstance(padding, str) else padding
        if padding not in _PADDINGS:
            raise ValueError(
                f"Invalid value for argument `padding` of {type(self).__name__}. Expected one of {_PADDINGS}. "
                f"Received: padding={padding}"
            )
        mode = _ALIASES.get(padding, padding)
        self._mode = mode if mode in _NUMPY_MODES else None
        super().__init__(filters, kernel_size, strides, padding if self._mode is None else "valid", **kwargs)

    @property
    def _constant_of_kernel(self) -> float:
        if self._mode is None:
            return super()._constant_of_kernel
        squared = math.prod(self._largest_squared_norm(index) for index in range(2))
        if self._counts_taps:
            # With the kernel K as a matrix, |y|^2 = sum_o |K x_o|^2 <= |K|^2 sum_o |x_o|^2, and in the last sum a value
            # of the image is counted once for each tap that meets it or a copy of it. `ReshapedKernel` divides by the
            # number of taps that meet one value of the padded image.
            return self.k_coef_lip * math.sqrt(
                max_overlap(self.kernel_size, self.strides, self.dilation_rate) / squared
            )
        # The norm of the padding is the root of how often it repeats a value.
        return self.k_coef_lip / math.sqrt(squared)

    @property
    def _counts_taps(self) -> bool:
        return isinstance(self.parametrization, ReshapedKernel)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return super().compute_output_shape(self._padded_shape(input_shape))

    def _convolve(self, inputs: Tensor, kernel: Tensor, padding: str) -> Tensor:
        self._padded_shape(inputs.shape)
        if self._mode is not None:
            for index, axis in enumerate(self._spatial_axes):
                inputs = _continued(inputs, axis, *self._pads(index), self._mode)
        return super()._convolve(inputs, kernel, padding)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return config if self._mode is None else {**config, "padding": self._mode}

    def _plain_config(self) -> dict[str, Any]:
        return {**super()._plain_config(), "padding": self.padding}

    def _prepare_inputs(self, inputs: Tensor) -> Tensor:
        if self._mode is None:
            return super()._prepare_inputs(inputs)
        self._padded_shape(inputs.shape)
        if self._mode == "constant":
            pads = (self._pads(0), self._pads(1))
            return keras.layers.ZeroPadding2D(pads, data_format=self.data_format)(inputs)
        for index, axis in enumerate(self._spatial_axes):
            # By one op that a reader of the graph recognises. (`ops.pad` repeats the edge for "symmetric" on torch.)
            indices = _indices(self._mode, inputs.shape[axis], self._pads(index))
            inputs = ops.take(inputs, indices.tolist(), axis=axis)
        return inputs

    def _pads(self, index: int) -> tuple[int, int]:
        total = self.dilation_rate[index] * (self.kernel_size[index] - 1)
        return total // 2, total - total // 2

    def _squared_norm(self, index: int, size: int) -> int:
        """Returns by how much an axis of that size enlarges the square of the norm of the kernel, at most."""
        geometry = (self.kernel_size[index], self.strides[index], self.dilation_rate[index])
        return _overlap(self._mode or "", size, self._pads(index), *(geometry if self._counts_taps else (1, 1, 1)))

    def _largest_squared_norm(self, index: int) -> int:
        """Returns the same for all axes of at least twice the window's size.

        No value is then near both edges, and what happens at one of them depends on the size modulo the stride only.
        """
        first = 2 * (sum(self._pads(index)) + 1)
        return max(self._squared_norm(index, size) for size in range(first, first + self.strides[index]))

    def _padded_shape(self, input_shape: Shape) -> Shape:
        """Returns the shape of the padded image, and raises if the constant would not hold."""
        shape = list(input_shape)
        if self._mode is None:
            return tuple(shape)
        for index, axis in enumerate(self._spatial_axes):
            size, pads = shape[axis], self._pads(index)
            if size is None and self._mode == "constant":
                continue
            if size is None:
                raise ValueError(
                    f"The {type(self).__name__} layer '{self.name}' with padding='{self._mode}' must know the height "
                    "and width of its input: give the model an `Input` of fixed size. Received: "
                    f"input_shape={tuple(input_shape)}"
                )
            smallest = {"reflect": max(pads) + 1, "symmetric": max(pads)}.get(self._mode, 1)
            if size < smallest or self._squared_norm(index, size) > self._largest_squared_norm(index):
                raise ValueError(
                    f"The {type(self).__name__} layer '{self.name}' with padding='{self._mode}' expects a height and "
                    "width that are larger than the window: values of smaller images would be repeated more often, and "
                    "the constant would not hold. Use padding='symmetric' or 'constant', or a smaller kernel. "
                    f"Received: input_shape={tuple(input_shape)}, kernel_size={self.kernel_size}, "
                    f"dilation_rate={self.dilation_rate}"
                )
            shape[axis] = size + sum(pads)
        return tuple(shape)


def _indices(mode: str, size: int, pads: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Returns which value of an axis stands at each position of the padded one, -1 for zeros."""
    options: dict[str, Any] = {"constant_values": -1} if mode == "constant" else {}
    padded: npt.NDArray[np.int64] = np.pad(np.arange(size), pads, _NUMPY_MODES[mode], **options)  # type: ignore[call-overload]
    return padded


@functools.cache
def _overlap(mode: str, size: int, pads: tuple[int, int], taps: int, stride: int, dilation: int) -> int:
    return largest_overlap(_indices(mode, size, pads), taps, stride, dilation)


def _continued(inputs: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    """Continues an axis of a tensor, as `_indices` says."""
    if mode == "constant":
        return ops.pad(inputs, [(before, after) if place == axis else (0, 0) for place in range(len(inputs.shape))])
    everything, size = (slice(None),) * axis, inputs.shape[axis]
    skipped = 1 if mode == "reflect" else 0

    def edge(start: int, count: int) -> Tensor:
        if mode == "replicate":
            start = min(start, size - 1)
            return ops.repeat(inputs[(*everything, slice(start, start + 1))], count, axis=axis)
        return ops.flip(inputs[(*everything, slice(start, start + count))], axis=axis)

    parts = [edge(skipped, before)] if before else []
    parts.append(inputs)
    if after:
        parts.append(edge(size if mode == "replicate" else size - skipped - after, after))
    return ops.concatenate(parts, axis=axis)
