"""Depthwise convolution with a constrained kernel."""

from typing import Any

import keras
from keras import ops

from deel_like_lip._registration import register
from deel_like_lip._typing import Shape, Tensor
from deel_like_lip._validation import checked_count
from deel_like_lip.layers.convolution_base import ConstrainedConvolution
from deel_like_lip.parametrizations import ConvolutionGeometry


@register
class LipDepthwiseConv2D(ConstrainedConvolution, keras.layers.DepthwiseConv2D):
    """2D convolution of each channel by itself whose operator norm is at most `k_coef_lip`.

    The kernel of each channel, reshaped to `(height * width, depth_multiplier)`, is orthogonal up to the factor
    `k_coef_lip / sqrt(ceil(k_h / s_h) * ceil(k_w / s_w))`, as in `LipConv2D`.

    Args:
        kernel_size: One or two integers, height and width of the window.
        strides: One or two integers.
        padding: `"valid"`, `"same"` (zeros), or `"circular"` (the image as a torus; its height and width must be
            multiples of the strides).
        depth_multiplier: Positive integer, the number of output channels of each input channel.
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration.
        dilation_rate: One or two integers.
        activation: Activation with a Lipschitz constant of at most 1, by name or as an object, such as `GroupSort2()`.
        use_bias: Whether the layer adds a bias.
        depthwise_initializer: Initializer of the kernel; what it returns is made orthogonal.
        bias_initializer: Initializer of the bias.
        depthwise_regularizer: Regularizer of the kernel.
        bias_regularizer: Regularizer of the bias.
        activity_regularizer: Regularizer of the output.
        bias_constraint: Constraint of the bias.
        k_coef_lip: The Lipschitz constant of the layer, positive.
        parametrization: As in `LipConv2D`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` with `channels_first`.

    Output shape:
        `(batch, new_height, new_width, channels * depth_multiplier)`, or with the channels as second axis.

    Example:
        >>> layer = LipDepthwiseConv2D(3, padding="same", depth_multiplier=2)
        >>> layer(np.zeros((32, 28, 28, 8))).shape
        (32, 28, 28, 16)

    Raises:
        ValueError: As `LipConv2D`.

    Reference:
        Tsuzuku, Sato and Sugiyama, 2018, [Lipschitz-Margin Training](https://arxiv.org/abs/1802.04034), for the count
        of taps
    """

    _REFUSED = (*ConstrainedConvolution._REFUSED, "depthwise_constraint")
    _plain_class = keras.layers.DepthwiseConv2D

    def __init__(
        self,
        kernel_size: Any,
        strides: Any = 1,
        padding: str = "valid",
        depth_multiplier: int = 1,
        data_format: str | None = None,
        dilation_rate: Any = 1,
        activation: Any = None,
        use_bias: bool = True,
        depthwise_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        depthwise_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        bias_constraint: Any = None,
        k_coef_lip: float = 1.0,
        parametrization: Any = "polar",
        **kwargs: Any,
    ) -> None:
        checked_count(depth_multiplier, "depth_multiplier", type(self).__name__)
        super().__init__(
            kernel_size,
            strides=strides,
            padding=padding,
            depth_multiplier=depth_multiplier,
            data_format=data_format,
            dilation_rate=dilation_rate,
            activation=activation,
            use_bias=use_bias,
            depthwise_initializer=depthwise_initializer,
            bias_initializer=bias_initializer,
            depthwise_regularizer=depthwise_regularizer,
            bias_regularizer=bias_regularizer,
            activity_regularizer=activity_regularizer,
            bias_constraint=bias_constraint,
            k_coef_lip=k_coef_lip,
            parametrization=parametrization,
            **kwargs,
        )

    @property
    def _geometry(self) -> ConvolutionGeometry:
        return ConvolutionGeometry(self.kernel_size, self.strides, self.dilation_rate, None, self.padding)

    def _channels(self, inputs: Any) -> tuple[int, int]:
        return 1, self.depth_multiplier

    def _convolve(self, inputs: Tensor, kernel: Tensor, padding: str) -> Tensor:
        return ops.depthwise_conv(
            inputs,
            kernel,
            strides=self.strides,
            padding=padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )

    def _output_channels(self, input_shape: Shape) -> int | None:
        channels = input_shape[self._channel_axis]
        multiplier: int = self.depth_multiplier
        return None if channels is None else channels * multiplier
