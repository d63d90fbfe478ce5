"""Blocks around one kernel, each 1-Lipschitz by its own theorem, where the sum or product of its parts would not be."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from deel_like_lip._registration import register
from deel_like_lip._typing import Shape, Tensor
from deel_like_lip.bounds.activations import known_activation
from deel_like_lip.layers.base import (
    ConstrainedKernel,
    LipschitzLayer,
    channel_axis,
    fold_activation,
    fold_scale,
    scaled,
)
from deel_like_lip.layers.convolution_base import with_weights, wrap_by_slices, wrap_by_take
from deel_like_lip.parametrizations import Orthogonal, gram_row_sums
from deel_like_lip.parametrizations.base import in_float32
from deel_like_lip.parametrizations.operator_norm import BoundedOperatorNorm


class _Block(LipschitzLayer):
    """`k_coef_lip (x - W diag(t) activation(W^T x + b))`, with 2 for t where a subclass does not differ.

    The slopes of the activation lie in [0, 1]. With a diagonal D of them, `I - W diag(t) D W^T` is symmetric with
    eigenvalues between `1 - |diag(sqrt t) W^T|^2` and 1.
    """

    def __init__(
        self,
        units: int | None,
        activation: Any,
        use_bias: bool,
        kernel_initializer: Any,
        bias_initializer: Any,
        kernel_regularizer: Any,
        bias_regularizer: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if units is not None and (isinstance(units, bool) or not isinstance(units, int) or units <= 0):
            raise ValueError(
                f"Invalid value for argument `{self._size_name}` of {type(self).__name__}. Expected a positive "
                f"integer, or None for that of the input. Received: {self._size_name}={units}"
            )
        self.activation = keras.activations.get(activation)
        known = known_activation(self.activation)
        if known is None or not known.monotone or known.constant > 1:
            raise ValueError(
                f"Invalid value for argument `activation` of {type(self).__name__}. Expected a function of one "
                "variable whose slopes are known to lie in [0, 1], such as 'relu' or 'tanh': the theorem of the layer "
                f"is for these. Received: activation={activation}"
            )
        self.use_bias = bool(use_bias)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.bias: Any = None

    # What the number of hidden units is called.
    _size_name = "units"

    @property
    def kernel(self) -> Tensor:
        return self.stored_kernel

    def build(self, input_shape: Shape) -> None:
        shape = self._shape_of_kernel(self._features(input_shape))
        self.stored_kernel = self.add_weight(
            name="kernel", shape=shape, initializer=self._initial_kernel(), regularizer=self.kernel_regularizer
        )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=shape[-1:],
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
            )

    def _initial_kernel(self) -> Any:
        """Returns the initializer of the kernel."""
        return self.kernel_initializer

    def call(self, inputs: Tensor) -> Tensor:
        kernel = ops.cast(self.kernel, self.compute_dtype)
        hidden = self._forward(inputs, kernel)
        if self.bias is not None:
            hidden = hidden + self._per_channel(self.bias)
        hidden = self.activation(hidden) * self._per_channel(ops.cast(self._steps(), self.compute_dtype))
        return scaled(inputs - self._forward(hidden, self._transposed(kernel)), self.k_coef_lip)

    def fold(self) -> Callable[[Tensor], Tensor]:
        self._check_built()
        hidden = self._folded_hidden(self.kernel)
        back_kernel = self._transposed(-self._steps() * in_float32(self.kernel))
        back = self._folded(back_kernel, None, f"{self.name}_back")
        add, scale = keras.layers.Add(name=self.name, dtype=self.dtype_policy), fold_scale(self.k_coef_lip)
        return lambda inputs: scale(add([inputs, back(hidden(inputs))]))

    def _steps(self) -> Tensor:
        """Returns t, in at least float32: one number, or one for each hidden unit."""
        return ops.convert_to_tensor(2.0, dtype="float32")

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        self._features(input_shape)
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
        }

    def _features(self, input_shape: Shape) -> int:
        """Returns the number of features, or channels, of an input, and raises where that is not one for the layer."""
        raise NotImplementedError

    def _shape_of_kernel(self, features: int) -> Shape:
        raise NotImplementedError

    def _forward(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Applies a kernel: the operator `W^T`."""
        raise NotImplementedError

    def _transposed(self, kernel: Tensor) -> Tensor:
        """Returns the kernel of the operator W."""
        raise NotImplementedError

    def _folded(self, kernel: Tensor, bias: Tensor | None, name: str) -> Callable[[Tensor], Tensor]:
        """Returns `_forward` with that kernel, and a bias, as a built-in layer."""
        raise NotImplementedError

    def _per_channel(self, values: Tensor) -> Tensor:
        """Shapes one value for each channel such that they fit an image."""
        return values

    def _check_built(self) -> None:
        if not self.built:
            raise ValueError(
                f"The {type(self).__name__} layer '{self.name}' is not built, so it has no kernel to fold. Call the "
                "model on data or give it an `Input` first."
            )

    def _folded_hidden(self, kernel: Tensor) -> Callable[[Tensor], Tensor]:
        forward = self._folded(kernel, self.bias, f"{self.name}_hidden")
        activation = fold_activation(self.activation)
        return lambda inputs: activation(forward(inputs))


def _with_tensors(plain: Any, *tensors: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Returns a plain layer as a function that builds it with these weights."""
    return with_weights(plain, [ops.convert_to_numpy(tensor) for tensor in tensors if tensor is not None])


class _DenseMaps(_Block):
    """The kernel as a matrix on the last axis."""

    def __init__(
        self,
        units: int | None = None,
        activation: Any = "relu",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_normal",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            units,
            activation=activation,
            use_bias=use_bias,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
            **kwargs,
        )
        self.units = units

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}

    def _features(self, input_shape: Shape) -> int:
        features = input_shape[-1] if len(input_shape) > 1 else None
        if features is None:
            raise ValueError(
                f"The {type(self).__name__} layer '{self.name}' expects an input of rank at least 2 whose last axis is "
                f"known. Received: input_shape={tuple(input_shape)}"
            )
        return features

    def _shape_of_kernel(self, features: int) -> Shape:
        return features, self.units or features

    def _forward(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        return ops.matmul(inputs, kernel)

    def _transposed(self, kernel: Tensor) -> Tensor:
        return ops.transpose(kernel)

    def _folded(self, kernel: Tensor, bias: Tensor | None, name: str) -> Callable[[Tensor], Tensor]:
        plain = keras.layers.Dense(
            kernel.shape[-1],
            use_bias=bias is not None,
            kernel_initializer="zeros",
            name=name,
            dtype=self.dtype_policy,
        )
        return _with_tensors(plain, kernel, bias)


class _ConvMaps(_Block):
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
        sizes = (kernel_size,) * 2 if isinstance(kernel_size, int) else tuple(kernel_size)
        if len(sizes) != 2 or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
            raise ValueError(
                f"Invalid value for argument `kernel_size` of {type(self).__name__}. Expected one or two positive "
                f"integers. Received: kernel_size={kernel_size}"
            )
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
        self.data_format = keras.config.image_data_format() if data_format is None else data_format
        if self.data_format not in ("channels_last", "channels_first"):
            raise ValueError(
                f"Invalid value for argument `data_format` of {type(self).__name__}. Expected 'channels_last' or "
                f"'channels_first'. Received: data_format={data_format}"
            )

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
        apply = _with_tensors(plain, kernel, bias)

        def folded(inputs: Tensor) -> Tensor:
            if self.padding == "circular":
                for axis, taps in zip(self._spatial_axes, self.kernel_size, strict=True):
                    inputs = wrap_by_take(inputs, axis, taps // 2, taps // 2, self.name, "height and width")
            return apply(inputs)

        return folded


class _SLL(_Block):
    """Mixed in before `_DenseMaps` or `_ConvMaps`."""

    def build(self, input_shape: Shape) -> None:
        super().build(input_shape)
        self.q = self.add_weight(name="q", shape=self.kernel.shape[-1:], initializer="zeros", autocast=False)

    def add_weight(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("name") == "kernel":
            kwargs["autocast"] = False  # T is computed in the kernel's own precision
        return super().add_weight(*args, **kwargs)

    def _steps(self) -> Tensor:
        return 2.0 / gram_row_sums(self.kernel, self.q)


@register
class SLLDense(_SLL, _DenseMaps):
    """SDP-based Lipschitz layer, dense: `x - 2 W T^-1 relu(W^T x + b)`, 1-Lipschitz times `k_coef_lip`.

    T is diagonal, `T_i = sum_j |W^T W|_ij q_j / q_i`, with q positive and learned. The constant holds for all weights.
    T is computed from W in each call, which costs as much as half a batch of as many samples as there are units; the
    folded layer holds it.

    Args:
        units: Positive integer, the number of hidden units, by default that of the features.
        activation: Activation of one variable whose slopes lie in [0, 1], by name or as a Keras layer.
        use_bias: Whether b is added.
        kernel_initializer: Initializer of W.
        bias_initializer: Initializer of b.
        kernel_regularizer: Regularizer of W.
        bias_regularizer: Regularizer of b.
        k_coef_lip: Factor of the output, the Lipschitz constant of the layer, positive.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name` and `dtype`.

    Input shape:
        `(batch, ..., features)`. With more than two axes the layer acts on the last one.

    Output shape:
        The input's.

    Example:
        >>> layer = SLLDense(128)
        >>> layer(np.zeros((32, 64))).shape
        (32, 64)

    Raises:
        ValueError: If `units` is not a positive integer, `k_coef_lip` is not positive and finite, or slopes of the
            activation are not known to lie in [0, 1].

    Reference:
        Araujo et al., 2023, [A unified algebraic perspective on Lipschitz neural
        networks](https://arxiv.org/abs/2303.03169)
    """


@register
class SLLConv2D(_SLL, _ConvMaps):
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


class _CPL(ConstrainedKernel, _Block):
    """Mixed in before `_DenseMaps` or `_ConvMaps`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parametrization = BoundedOperatorNorm(1.0)

    def fold(self) -> Callable[[Tensor], Tensor]:
        return _Block.fold(self)


@register
class CPLDense(_CPL, _DenseMaps):
    """Convex potential layer, dense: `x - 2 W relu(W^T x + b)` with `|W| = 1`, 1-Lipschitz times `k_coef_lip`.

    A step of gradient descent on a convex function of x, which is what its derivation calls `x - 2 / |W|^2 W
    relu(W^T x + b)`. W is stored as it is used: divided by an upper bound of its norm, from `build` on and after every
    update of any Keras optimizer. The norm is never above 1, and below by a few per cent.

    Takes the arguments of `SLLDense`, with the same meaning.

    Input shape:
        `(batch, ..., features)`. With more than two axes the layer acts on the last one.

    Output shape:
        The input's.

    Example:
        >>> layer = CPLDense(128)
        >>> layer(np.zeros((32, 64))).shape
        (32, 64)

    Raises:
        ValueError: As `SLLDense`.

    Reference:
        Meunier et al., 2022, [A dynamical system perspective for Lipschitz neural
        networks](https://arxiv.org/abs/2110.12690)
    """


@register
class CPLConv2D(_CPL, _ConvMaps):
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


class _Sandwich(_DenseMaps):
    """`A^T activation(B x + b)`, where the kernel is `[A B]^T`."""

    def call(self, inputs: Tensor) -> Tensor:
        kernel = self.kernel
        units = kernel.shape[-1]
        hidden = self._forward(inputs, kernel[units:])
        if self.bias is not None:
            hidden = hidden + self.bias
        return self._forward(self.activation(hidden), self._transposed(kernel[:units]))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.units or self._features(input_shape))

    def _shape_of_kernel(self, features: int) -> Shape:
        units = self.units or features
        return units + features, units


@register
class SandwichDense(ConstrainedKernel, _Sandwich):
    """Sandwich layer: `A^T relu(B x + b)` with `A A^T + B B^T = 2 k_coef_lip I`, `k_coef_lip`-Lipschitz.

    For a diagonal D of slopes in [0, 1], `2 <D A u, B v>` is at most half of `|A u + B v|^2`, so `A^T D B` has at most
    half the norm of `A A^T + B B^T`. The kernel `[A B]^T` is stored as it is used, with orthogonal columns: from
    `build` on and after every update of any Keras optimizer, by the projection of `SpectralDense` instead of the Cayley
    transform. The diagonal matrix that the paper puts around the activation would only scale b if that is relu, and is
    left out.

    Takes the arguments of `SLLDense`, with the same meaning but for one.

    Args:
        units: Positive integer, the number of outputs and of hidden units, by default that of the features.
        **kwargs: The other arguments of `SLLDense`.

    Input shape:
        `(batch, ..., features)`. With more than two axes the layer acts on the last one.

    Output shape:
        `(batch, ..., units)`.

    Example:
        >>> layer = SandwichDense(128)
        >>> layer(np.zeros((32, 64))).shape
        (32, 128)

    Raises:
        ValueError: As `SLLDense`.

    Reference:
        Wang and Manchester, 2023, [Direct parameterization of Lipschitz-bounded deep
        networks](https://arxiv.org/abs/2301.11526)
    """

    def __init__(self, units: int | None = None, activation: Any = "relu", **kwargs: Any) -> None:
        super().__init__(units, activation, **{"kernel_initializer": "orthogonal", **kwargs})
        self.parametrization = Orthogonal((2 * self.k_coef_lip) ** 0.5)

    def fold(self) -> Callable[[Tensor], Tensor]:
        self._check_built()
        kernel = ops.convert_to_tensor(self.kernel)
        units = kernel.shape[-1]
        hidden = self._folded_hidden(kernel[units:])
        back = self._folded(self._transposed(kernel[:units]), None, self.name)
        return lambda inputs: back(hidden(inputs))


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
        self._check_built()
        return self._folded(self.kernel, self.bias, self.name)
