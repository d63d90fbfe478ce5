"""Blocks around one convolution: SDP-based and convex potential layers, and the linear residual of LiResNet."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from deel_like_lip._registration import register
from deel_like_lip._typing import Shape, Tensor
from deel_like_lip._validation import checked_data_format, checked_sizes
from deel_like_lip.layers.base import ConstrainedKernel, built, channel_axis
from deel_like_lip.layers.block_base import CPL, SLL, Block, with_tensors
from deel_like_lip.layers.convolution_base import wrap_by_slices, wrap_by_take
from deel_like_lip.parametrizations.operator_norm import BoundedOperatorNorm


class _ConvMaps(Block):
    """The kernel as a convolution that keeps the size of the image."""

    _size_name = "filters"

    def __init__(
        self,
        filters: int | None = None,
        kernel_size: Any = 3,
        padding: str = "same",
        data_format: str | None = None,
        activation: Any = "relu",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_normal",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            filters,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            **kwargs,
        )
        self.filters = filters
        sizes = checked_sizes(kernel_size, "kernel_size", 2, type(self).__name__)
        if any(size % 2 == 0 for size in sizes):
            raise ValueError(
                f"Invalid value for argument `kernel_size` of {type(self).__name__}. Expected odd numbers: only then "
                f"is the transpose of the convolution padded as it is. Received: kernel_size={kernel_size}"
            )
        if padding not in ("same", "circular"):
            raise ValueError(
                f"Invalid value for argument `padding` of {type(self).__name__}. Expected 'same' or 'circular': the "
                f"image has to keep its size. Received: padding={padding}"
            )
        self.kernel_size = sizes
        self.padding = padding
        self.data_format = checked_data_format(data_format, type(self).__name__)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "padding": self.padding,
            "data_format": self.data_format,
        }

    @property
    def _spatial_axes(self) -> tuple[int, int]:
        return (1, 2) if self.data_format == "channels_last" else (2, 3)

    def _features(self, input_shape: Shape) -> int:
        channels = input_shape[channel_axis(self.data_format, input_shape)] if len(input_shape) == 4 else None
        if channels is None:
            raise ValueError(
                f"The {type(self).__name__} layer '{self.name}' expects a 4D input, (batch, height, width, channels) "
                "or, with data_format='channels_first', (batch, channels, height, width), whose number of channels is "
                f"known. Received: input_shape={tuple(input_shape)}"
            )
        if self.padding == "circular":
            for axis, taps in zip(self._spatial_axes, self.kernel_size, strict=True):
                size = input_shape[axis]
                if size is not None and taps // 2 > size:
                    raise ValueError(
                        f"The {type(self).__name__} layer '{self.name}' with padding='circular' expects a height and "
                        "width of at least half the kernel size. "
                        f"Received: input_shape={tuple(input_shape)}, kernel_size={self.kernel_size}"
                    )
        return channels

    def _shape_of_kernel(self, features: int) -> Shape:
        return (*self.kernel_size, features, self.filters or features)

    def _forward(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        if self.padding == "circular":
            for axis, taps in zip(self._spatial_axes, self.kernel_size, strict=True):
                inputs = wrap_by_slices(inputs, axis, taps // 2, taps // 2)
        padding = "same" if self.padding == "same" else "valid"
        return ops.conv(inputs, kernel, strides=1, padding=padding, data_format=self.data_format)

    def _transposed(self, kernel: Tensor) -> Tensor:
        return ops.transpose(ops.flip(kernel, axis=(0, 1)), (0, 1, 3, 2))

    def _per_channel(self, values: Tensor) -> Tensor:
        return values if self.data_format == "channels_last" else ops.reshape(values, (-1, 1, 1))

    def _folded(self, kernel: Tensor, bias: Tensor | None, name: str) -> Callable[[Tensor], Tensor]:
        plain = keras.layers.Conv2D(
            kernel.shape[-1],
            self.kernel_size,
            padding="same" if self.padding == "same" else "valid",
            data_format=self.data_format,
            use_bias=bias is not None,
            kernel_initializer="zeros",
            name=name,
            dtype=self.dtype_policy,
        )
        apply = with_tensors(plain, kernel, bias)

        def folded(inputs: Tensor) -> Tensor:
            if self.padding == "circular":
                for axis, taps in zip(self._spatial_axes, self.kernel_size, strict=True):
                    inputs = wrap_by_take(inputs, axis, taps // 2, taps // 2, self.name, "height and width")
            return apply(inputs)

        return folded


@register
class SLLConv2D(SLL, _ConvMaps):
    """SDP-based Lipschitz layer, convolution: `x - 2 W T^-1 relu(W^T x + b)`, 1-Lipschitz times `k_coef_lip`.

    `W^T` is a convolution and W its transpose. T is diagonal, one value for each hidden channel: of `W^T W` on an
    infinite image it is `T_i = sum |W^T W|_ij q_j / q_i` over channels j and all offsets, with q positive and learned.
    The constant holds for all weights, for every size of image, with zero and with circular padding. T is computed from
    W in each call, at the cost of a convolution of the kernel with itself; the folded layer holds it.

    Args:
        filters: Positive integer, the number of hidden channels, by default that of the input.
        kernel_size: One or two odd integers.
        padding: `"same"` (zeros) or `"circular"` (the image as a torus).
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration.
        activation: Activation of one variable whose slopes lie in [0, 1], by name or as a Keras layer.
        use_bias: Whether b is added.
        kernel_initializer: Initializer of W.
        bias_initializer: Initializer of b.
        kernel_regularizer: Regularizer of W.
        bias_regularizer: Regularizer of b.
        k_coef_lip: Factor of the output, the Lipschitz constant of the layer, positive.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` with `channels_first`.

    Output shape:
        The input's.

    Example:
        >>> layer = SLLConv2D(64)
        >>> layer(np.zeros((32, 28, 28, 16))).shape
        (32, 28, 28, 16)

    Raises:
        ValueError: If `kernel_size` is even, the padding is unknown, or as in `SLLDense`.

    Reference:
        Araujo et al., 2023, [A unified algebraic perspective on Lipschitz neural
        networks](https://arxiv.org/abs/2303.03169)
    """


@register
class CPLConv2D(CPL, _ConvMaps):
    """Convex potential layer, convolution: `x - 2 W relu(W^T x + b)` with `|W| = 1`, 1-Lipschitz times `k_coef_lip`.

    `W^T` is a convolution and W its transpose. The kernel is stored as it is used: divided by an upper bound of the
    norm of the convolution on images of any size, with zero or circular padding, from `build` on and after every update
    of any Keras optimizer. The norm is never above 1, and below by some per cent.

    Takes the arguments of `SLLConv2D`, with the same meaning.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` with `channels_first`.

    Output shape:
        The input's.

    Example:
        >>> layer = CPLConv2D(64)
        >>> layer(np.zeros((32, 28, 28, 16))).shape
        (32, 28, 28, 16)

    Raises:
        ValueError: As `SLLConv2D`.

    Reference:
        Meunier et al., 2022, [A dynamical system perspective for Lipschitz neural
        networks](https://arxiv.org/abs/2110.12690)
    """


class _LinearResidual(_ConvMaps):
    """A convolution from the channels to themselves."""

    def __init__(
        self,
        kernel_size: Any = 3,
        padding: str = "same",
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(None, kernel_size, padding, data_format, None, **kwargs)

    def call(self, inputs: Tensor) -> Tensor:
        outputs = self._forward(inputs, self.kernel)
        return outputs if self.bias is None else outputs + self._per_channel(self.bias)

    def _initial_kernel(self) -> Any:
        def near_identity(shape: tuple[int, ...], dtype: Any = None) -> Tensor:
            identity = np.zeros(shape)
            identity[self.kernel_size[0] // 2, self.kernel_size[1] // 2] = np.eye(shape[-1])
            return ops.cast(identity, dtype) + 0.1 * self.kernel_initializer(shape, dtype=dtype)

        return near_identity

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["filters"], config["activation"]
        return config


@register
class LinearResidualConv2D(ConstrainedKernel, _LinearResidual):
    """Linear residual of LiResNet: `x + conv(x) + b` as one convolution, whose norm is at most `k_coef_lip`.

    The kernel is that of the sum, stored as it is used: divided by an upper bound of its norm on images of any size,
    with zero or circular padding, from `build` on and after every update of any Keras optimizer. It begins at the
    identity plus a tenth of what the initializer returns. Its norm is never above `k_coef_lip`, and below by some per
    cent. There is no activation: one follows as a layer of its own.

    Args:
        kernel_size: One or two odd integers.
        padding: `"same"` (zeros) or `"circular"` (the image as a torus).
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration.
        use_bias: Whether b is added.
        kernel_initializer: Initializer of the convolution that is added to the identity.
        bias_initializer: Initializer of b.
        kernel_regularizer: Regularizer of the kernel of the sum.
        bias_regularizer: Regularizer of b.
        k_coef_lip: The Lipschitz constant of the layer, positive.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height, width)` with `channels_first`.

    Output shape:
        The input's.

    Example:
        >>> layer = LinearResidualConv2D(3)
        >>> layer(np.zeros((32, 28, 28, 16))).shape
        (32, 28, 28, 16)

    Raises:
        ValueError: If `kernel_size` is even, the padding is unknown, or `k_coef_lip` is not positive and finite.

    Reference:
        Hu et al., 2023, [Unlocking deterministic robustness certification on
        ImageNet](https://arxiv.org/abs/2301.12549)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parametrization = BoundedOperatorNorm(self.k_coef_lip)

    def fold(self) -> Callable[[Tensor], Tensor]:
        return self._folded(built(self).kernel, self.bias, self.name)
