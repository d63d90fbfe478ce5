"""Convolution layers with a constrained kernel."""

from typing import Any

import keras

from deel_like_lip._registration import register
from deel_like_lip._validation import checked_count
from deel_like_lip.layers.convolution_base import ConstrainedConvolution
from deel_like_lip.parametrizations import Frobenius


class _ConstrainedConv(ConstrainedConvolution):
    """The arguments of `keras.layers.Conv1D`, `Conv2D` and `Conv3D`."""

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        strides: Any = 1,
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: Any = 1,
        groups: int = 1,
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
            data_format=data_format,
            dilation_rate=dilation_rate,
            groups=groups,
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


@register
class LipConv1D(_ConstrainedConv, keras.layers.Conv1D):
    """1D convolution whose operator norm is at most `k_coef_lip`.

    Takes the arguments of `LipConv2D`, with the same meaning along one spatial axis.

    Input shape:
        `(batch, length, channels)`, or `(batch, channels, length)` with `channels_first`.

    Output shape:
        `(batch, new_length, filters)`, or `(batch, filters, new_length)`.

    Example:
        >>> layer = LipConv1D(16, 5, padding="circular")
        >>> layer(np.zeros((32, 100, 2))).shape
        (32, 100, 16)

    Raises:
        ValueError: As `LipConv2D`.

    Reference:
        Tsuzuku, Sato and Sugiyama, 2018, [Lipschitz-Margin Training](https://arxiv.org/abs/1802.04034)
    """

    _plain_class = keras.layers.Conv1D


@register
class LipConv2D(_ConstrainedConv, keras.layers.Conv2D):
    """2D convolution whose operator norm is at most `k_coef_lip`. Also exported as `SpectralConv2D`.

    The kernel, reshaped to `(height * width * c_in, filters)`, is orthogonal up to the factor `k_coef_lip /
    sqrt(ceil(k_h / s_h) * ceil(k_w / s_w))`, k being the kernel size and s the strides: an input position meets that
    many taps. The bound holds for every input size and for each padding, and is attained or nearly so where the kernel
    sums up aligned taps; `certify` computes how much of it a trained kernel uses.

    Args:
        filters: Positive integer, the number of output channels.
        kernel_size: One or two integers, height and width of the window.
        strides: One or two integers.
        padding: `"valid"`, `"same"` (zeros), or `"circular"` (the image as a torus; its height and width must be
            multiples of the strides).
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration.
        dilation_rate: One or two integers. A dilation and a stride above 1 exclude each other.
        groups: Number of groups that the channels are split into.
        activation: Activation with a Lipschitz constant of at most 1, by name or as an object, such as `GroupSort2()`.
        use_bias: Whether the layer adds a bias.
        kernel_initializer: Initializer of the kernel; what it returns is made orthogonal.
        bias_initializer: Initializer of the bias.
        kernel_regularizer: Regularizer of the kernel.
        bias_regularizer: Regularizer of the bias.
        activity_regularizer: Regularizer of the output.
        bias_constraint: Constraint of the bias.
        k_coef_lip: The Lipschitz constant of the layer, positive.
        parametrization: How the kernel is constrained, by name or as an object:

            - `"polar"`, also `"reshaped"`: orthogonal as a matrix, as above.
            - `"aoc"`, also `"bcop"`: orthogonal as an operator, computed from orthogonal matrices.
            - `"soc"`: likewise, a series of six convolutions; without strides.
            - `"cayley"`: likewise, a kernel of the size of the image, computed at each of its frequencies from a weight
              that may be anything; for circular padding and an input of fixed size.
            - `"aol"`: almost orthogonal, computed from a weight that may be anything, of norm at most `k_coef_lip`.
            - `"operator_norm"`: only the norm of the operator is fixed; in training by an estimate, up to a tenth
              above, which `RenormalizeCallback` makes hold.
            - `"spectral"`: only the norm of the reshaped kernel is fixed, likewise.

            Where the kernel is computed, or is a series, fold the model before you serve it.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` with `channels_first`.

    Output shape:
        `(batch, new_height, new_width, filters)`, or `(batch, filters, new_height, new_width)`.

    Example:
        >>> layer = LipConv2D(16, 3, padding="same", activation=GroupSort2())
        >>> layer(np.zeros((32, 28, 28, 1))).shape
        (32, 28, 28, 16)

    Raises:
        ValueError: If the padding is unknown, circular padding does not fit the input, the parametrization does not fit
            the other arguments, `k_coef_lip` is not positive and finite, or the activation's constant is above 1 or
            unknown.

    Reference:
        - Serrurier et al., 2021, [Achieving robustness in classification using optimal transport with hinge
          regularization](https://arxiv.org/abs/2006.06520)
        - Tsuzuku, Sato and Sugiyama, 2018, [Lipschitz-Margin Training](https://arxiv.org/abs/1802.04034), for the count
          of taps
    """

    _plain_class = keras.layers.Conv2D


SpectralConv2D = LipConv2D


@register
class LipConv3D(_ConstrainedConv, keras.layers.Conv3D):
    """3D convolution whose operator norm is at most `k_coef_lip`.

    Takes the arguments of `LipConv2D`, with the same meaning along three spatial axes.

    Input shape:
        `(batch, depth, height, width, channels)`, or `(batch, channels, depth, height, width)` with `channels_first`.

    Output shape:
        `(batch, new_depth, new_height, new_width, filters)`, or `(batch, filters, new_depth, new_height, new_width)`.

    Example:
        >>> layer = LipConv3D(16, 3, strides=2, padding="same")
        >>> layer(np.zeros((32, 8, 8, 8, 1))).shape
        (32, 4, 4, 4, 16)

    Raises:
        ValueError: As `LipConv2D`.

    Reference:
        Tsuzuku, Sato and Sugiyama, 2018, [Lipschitz-Margin Training](https://arxiv.org/abs/1802.04034)
    """

    _plain_class = keras.layers.Conv3D


@register
class FrobeniusConv2D(_ConstrainedConv, keras.layers.Conv2D):
    """2D convolution whose kernel has a given Frobenius norm, and whose operator norm is at most `k_coef_lip`.

    Cheaper than `LipConv2D` and looser: the spectral norm of the reshaped kernel is bounded by its Frobenius norm,
    which is `k_coef_lip / sqrt(ceil(k_h / s_h) * ceil(k_w / s_w))`.

    Takes the arguments of `LipConv2D`, with the same meaning.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` with `channels_first`.

    Output shape:
        `(batch, new_height, new_width, filters)`, or `(batch, filters, new_height, new_width)`.

    Example:
        >>> layer = FrobeniusConv2D(16, 3, padding="same")
        >>> layer(np.zeros((32, 28, 28, 1))).shape
        (32, 28, 28, 16)

    Raises:
        ValueError: As `LipConv2D`.

    Reference:
        Serrurier et al., 2021, [Achieving robustness in classification using optimal transport with hinge
        regularization](https://arxiv.org/abs/2006.06520)
    """

    _plain_class = keras.layers.Conv2D

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, parametrization=Frobenius(), **kwargs)  # type: ignore[misc]

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["parametrization"]
        return config
