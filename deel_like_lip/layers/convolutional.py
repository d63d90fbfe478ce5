"""Convolution layers with a constrained kernel."""

from typing import Any

import keras
from keras import ops

from deel_like_lip import parametrizations
from deel_like_lip._registration import register
from deel_like_lip._typing import Shape, Tensor
from deel_like_lip.layers.base import ConstrainedKernel
from deel_like_lip.parametrizations import ConvolutionGeometry, Frobenius

_PADDINGS = ("valid", "same", "circular")


class _ConstrainedConv2D(ConstrainedKernel, keras.layers.Conv2D):
    """Adds circular padding, the constraint and the fold to `keras.layers.Conv2D`."""

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
        **kwargs: Any,
    ) -> None:
        padding = padding.lower() if isinstance(padding, str) else padding
        if padding not in _PADDINGS:
            raise ValueError(
                f"Invalid value for argument `padding` of {type(self).__name__}. Expected one of {_PADDINGS}: other "
                f"ways to pad have a norm above 1. Received: padding={padding}"
            )
        if isinstance(filters, bool) or not isinstance(filters, int) or filters <= 0:
            raise ValueError(
                f"Invalid value for argument `filters` of {type(self).__name__}. Expected a positive integer. "
                f"Received: filters={filters}"
            )
        # `keras.layers.Conv2D` knows no circular padding; what it computes before `build` does not depend on the
        # padding.
        keras_padding = "same" if padding == "circular" else padding
        super().__init__(
            filters,
            kernel_size,
            strides=strides,
            padding=keras_padding,
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
            **kwargs,
        )
        self.padding = padding

    @property
    def _geometry(self) -> ConvolutionGeometry:
        return ConvolutionGeometry(self.kernel_size, self.strides, self.dilation_rate, self.groups, self.padding)

    @property
    def _spatial_axes(self) -> tuple[int, ...]:
        return (1, 2) if self.data_format == "channels_last" else (2, 3)

    def build(self, input_shape: Shape) -> None:
        if len(input_shape) != 4:
            raise ValueError(
                f"The {type(self).__name__} layer '{self.name}' expects a 4D input, (batch, height, width, channels) "
                "or, with data_format='channels_first', (batch, channels, height, width). Received: "
                f"input_shape={input_shape}"
            )
        super().build(input_shape)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        if self.padding != "circular":
            return super().compute_output_shape(input_shape)
        self._check_circular(input_shape)
        shape = list(input_shape)
        for axis, stride in zip(self._spatial_axes, self.strides, strict=True):
            size = shape[axis]
            shape[axis] = size if size is None else size // stride
        shape[-1 if self.data_format == "channels_last" else 1] = self.filters
        return tuple(shape)

    def convolution_op(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        padding = self.padding
        if padding == "circular":
            self._check_circular(inputs.shape)
            for axis, (before, after) in zip(self._spatial_axes, self._circular_pads, strict=True):
                inputs = _wrap_by_slices(inputs, axis, before, after)
            padding = "valid"
        return ops.conv(
            inputs,
            kernel,
            strides=list(self.strides),
            padding=padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )

    @property
    def _circular_pads(self) -> list[tuple[int, int]]:
        """How many rows and columns are repeated before and after, so that each axis shrinks by its stride exactly."""
        pads = []
        for taps, stride, dilation in zip(self.kernel_size, self.strides, self.dilation_rate, strict=True):
            total = max((taps - 1) * dilation + 1 - stride, 0)
            pads.append((total // 2, total - total // 2))
        return pads

    def _check_circular(self, input_shape: Shape) -> None:
        for axis, stride, pads in zip(self._spatial_axes, self.strides, self._circular_pads, strict=True):
            size = input_shape[axis]
            if size is None and stride > 1:
                raise ValueError(
                    f"The {type(self).__name__} layer '{self.name}' has padding='circular' and "
                    f"strides={self.strides}, so "
                    "it must know the height and width of its input: give the model an `Input` of fixed size, or use "
                    f"padding='same'. Received: input_shape={tuple(input_shape)}"
                )
            if size is not None and (size % stride or max(pads) > size):
                raise ValueError(
                    f"The {type(self).__name__} layer '{self.name}' with padding='circular' expects a height and "
                    "width that are multiples of the strides and at least half the kernel size: other sizes do not "
                    f"wrap around, and the constant would not hold. Received: input_shape={tuple(input_shape)}, "
                    f"strides={self.strides}, kernel_size={self.kernel_size}, dilation_rate={self.dilation_rate}"
                )

    def _plain_layer(self) -> keras.layers.Conv2D:
        config = self._plain_config()
        if self.padding == "circular":
            config["padding"] = "valid"
        return keras.layers.Conv2D(**config)

    def _prepare_inputs(self, inputs: Tensor) -> Tensor:
        if self.padding == "circular":
            for axis, (before, after) in zip(self._spatial_axes, self._circular_pads, strict=True):
                inputs = _wrap_by_take(inputs, axis, before, after, self.name)
        return inputs


def _wrap_by_slices(inputs: Tensor, axis: int, before: int, after: int) -> Tensor:
    """Repeats the last `before` and the first `after` entries of an axis around it."""
    if not before and not after:
        return inputs
    everything = (slice(None),) * axis
    parts = [inputs]
    if before:
        parts.insert(0, inputs[(*everything, slice(-before, None))])
    if after:
        parts.append(inputs[(*everything, slice(None, after))])
    return ops.concatenate(parts, axis=axis)


def _wrap_by_take(inputs: Tensor, axis: int, before: int, after: int, name: str) -> Tensor:
    """Does as `_wrap_by_slices`, as a single op that a reader of the graph recognises. Slower to differentiate."""
    if not before and not after:
        return inputs
    size = inputs.shape[axis]
    if size is None:
        raise ValueError(
            f"The layer '{name}' has padding='circular', which folds only where the height and width of its input are "
            f"known. Give the model an `Input` of fixed size. Received: input_shape={tuple(inputs.shape)}"
        )
    return ops.take(inputs, [index % size for index in range(-before, size + after)], axis=axis)


@register
class LipConv2D(_ConstrainedConv2D):
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
        parametrization: How the kernel is constrained, by name or as an object: `"polar"`, orthogonal as above, or
            `"spectral"`, where only the largest singular value of the reshaped kernel is fixed.
        use_bias: Whether the layer adds a bias.
        kernel_initializer: Initializer of the kernel; what it returns is made orthogonal.
        bias_initializer: Initializer of the bias.
        kernel_regularizer: Regularizer of the kernel.
        bias_regularizer: Regularizer of the bias.
        activity_regularizer: Regularizer of the output.
        bias_constraint: Constraint of the bias.
        k_coef_lip: The Lipschitz constant of the layer, positive.
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
        ValueError: If the padding is unknown, circular padding does not fit the input, `k_coef_lip` is not positive and
            finite, or the activation's constant is above 1 or unknown.

    Reference:
        - Serrurier et al., 2021, [Achieving robustness in classification using optimal transport with hinge
          regularization](https://arxiv.org/abs/2006.06520)
        - Tsuzuku, Sato and Sugiyama, 2018, [Lipschitz-Margin Training](https://arxiv.org/abs/1802.04034), for the count
          of taps
    """

    def __init__(self, *args: Any, parametrization: Any = "polar", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parametrization = parametrizations.get(parametrization).bind(self.k_coef_lip, self._geometry)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "parametrization": parametrizations.serialize(self.parametrization)}


SpectralConv2D = LipConv2D


@register
class FrobeniusConv2D(_ConstrainedConv2D):
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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parametrization = Frobenius().bind(self.k_coef_lip, self._geometry)
