"""Transposed convolution with a constrained kernel."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from deel_like_lip._registration import register
from deel_like_lip._typing import Tensor
from deel_like_lip._validation import checked_count
from deel_like_lip.layers.convolution_base import ConstrainedConvolution
from deel_like_lip.parametrizations import ConvolutionGeometry


@register
class LipConv2DTranspose(ConstrainedConvolution, keras.layers.Conv2DTranspose):
    """Transposed 2D convolution whose operator norm is at most `k_coef_lip`. Also `SpectralConv2DTranspose`.

    It computes the transpose of a convolution that takes `filters` channels to the channels of its input, with these
    strides, so it has the norm of that one: the kernel as a matrix `(height * width * filters, c_in)` is orthogonal up
    to the factor `k_coef_lip / sqrt(ceil(k_h / s_h) * ceil(k_w / s_w))`, k being the kernel size and s the strides.

    Args:
        filters: Positive integer, the number of output channels.
        kernel_size: One or two integers, height and width of the window.
        strides: One or two integers, by how much the image grows.
        padding: `"valid"`, `"same"` (zeros), or `"circular"`: the transpose of a circular convolution, the image as a
            torus `strides` times as large.
        output_padding: One or two integers, rows and columns that are added to the output, or None for the size that
            `keras.layers.Conv2DTranspose` chooses. Not with circular padding.
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration.
        dilation_rate: One or two integers. A dilation and a stride above 1 exclude each other.
        activation: Activation with a Lipschitz constant of at most 1, by name or as an object, such as `GroupSort2()`.
        use_bias: Whether the layer adds a bias.
        kernel_initializer: Initializer of the kernel; what it returns is made orthogonal.
        bias_initializer: Initializer of the bias.
        kernel_regularizer: Regularizer of the kernel.
        bias_regularizer: Regularizer of the bias.
        activity_regularizer: Regularizer of the output.
        bias_constraint: Constraint of the bias.
        k_coef_lip: The Lipschitz constant of the layer, positive.
        parametrization: As in `LipConv2D`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` with `channels_first`.

    Output shape:
        `(batch, new_height, new_width, filters)`, or `(batch, filters, new_height, new_width)`.

    Example:
        >>> layer = LipConv2DTranspose(16, 3, strides=2, padding="same")
        >>> layer(np.zeros((32, 14, 14, 8))).shape
        (32, 28, 28, 16)

    Raises:
        ValueError: If the padding is unknown, circular padding does not fit the other arguments or the input,
            `k_coef_lip` is not positive and finite, or the activation's constant is above 1 or unknown.

    Reference:
        Tsuzuku, Sato and Sugiyama, 2018, [Lipschitz-Margin Training](https://arxiv.org/abs/1802.04034), for the count
        of taps
    """

    _plain_class = keras.layers.Conv2DTranspose

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        strides: Any = 1,
        padding: str = "valid",
        output_padding: Any = None,
        data_format: str | None = None,
        dilation_rate: Any = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        bias_constraint: Any = None,
        k_coef_lip: float = 1.0,
        parametrization: Any = "polar",
        **kwargs: Any,
    ) -> None:
        checked_count(filters, "filters", type(self).__name__)
        super().__init__(
            filters,
            kernel_size,
            strides=strides,
            padding=padding,
            output_padding=output_padding,
            data_format=data_format,
            dilation_rate=dilation_rate,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            bias_constraint=bias_constraint,
            k_coef_lip=k_coef_lip,
            parametrization=parametrization,
            **kwargs,
        )
        if self.padding == "circular" and self.output_padding is not None:
            raise ValueError(
                f"Invalid value for argument `output_padding` of {type(self).__name__}. Expected None with "
                "padding='circular', where the output is `strides` times as large as the input. Received: "
                f"output_padding={output_padding}"
            )

    @property
    def _geometry(self) -> ConvolutionGeometry:
        return ConvolutionGeometry(
            self.kernel_size, self.strides, self.dilation_rate, padding=self.padding, transposed=True
        )

    def _channels(self, inputs: Any) -> tuple[int, int]:
        return self.filters, inputs

    def _convolve(self, inputs: Tensor, kernel: Tensor, padding: str) -> Tensor:
        outputs = ops.conv_transpose(
            inputs,
            kernel,
            strides=list(self.strides),
            padding=padding,
            output_padding=self.output_padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
        if self.padding == "circular":
            for axis, (before, after) in zip(self._spatial_axes, self._crops, strict=True):
                outputs = outputs[(*(slice(None),) * axis, slice(before, -after or None))]
        return outputs

    # On one axis, of a torus with n s outputs and n inputs, output p is the sum of the inputs o times tap t with
    # `s o + d t - b = p` modulo n s, b being what the convolution is padded by before. Inputs are repeated so far that
    # o need not wrap around: from `ceil((b - d (k - 1)) / s)`, at p = 0 and the last tap, to `ceil(b / s) + n - 1`. Of
    # input o the first tap then lies at `s (o + repeated)`, so the crop begins at `s repeated + b`.

    @property
    def _torus_pads(self) -> list[int]:
        return [before for before, _ in super()._circular_pads]

    @property
    def _circular_pads(self) -> list[tuple[int, int]]:
        geometry = zip(self._torus_pads, self._extents, self.strides, strict=True)
        return [((extent - 1 - before) // stride, -(-before // stride)) for before, extent, stride in geometry]

    @property
    def _crops(self) -> list[tuple[int, int]]:
        crops = []
        for (first, last), before, extent, stride in zip(
            self._circular_pads, self._torus_pads, self._extents, self.strides, strict=True
        ):
            crops.append((stride * first + before, stride * (last - 1) + max(extent, stride) - before))
        return crops

    @property
    def _circular_multiples(self) -> Sequence[int]:
        return (1,) * self.rank

    def _circular_size(self, size: int | None, stride: int) -> int | None:
        return None if size is None else size * stride

    def _finish_outputs(self, outputs: Tensor) -> Tensor:
        if self.padding == "circular":
            return keras.layers.Cropping2D(tuple(self._crops), data_format=self.data_format)(outputs)
        return outputs


SpectralConv2DTranspose = LipConv2DTranspose
