"""What all convolution layers have: padding, circular padding included, and what they compute in each mode."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from deel_like_lip import parametrizations
from deel_like_lip._geometry import circular_pads
from deel_like_lip._typing import Shape, Tensor
from deel_like_lip.layers.base import ConstrainedKernel, fold_activation, scaled, with_zero_channels
from deel_like_lip.parametrizations import SOC, Cayley, ConvolutionGeometry

_PADDINGS = ("valid", "same", "circular")
_AXIS_NAMES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}


class _Convolution(keras.layers.Layer):
    """Computes what the Keras layer after it in the method order does, for any padding. It comes right before it."""

    rank: int
    kernel_size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation_rate: tuple[int, ...]
    padding: str
    data_format: str
    use_bias: bool
    activation: Any

    def call(self, inputs: Tensor) -> Tensor:
        outputs = self._applied(inputs, self.kernel)
        if self.use_bias:
            ones = (1,) * self.rank
            shape = (1, *ones, -1) if self.data_format == "channels_last" else (1, -1, *ones)
            outputs = ops.add(outputs, ops.reshape(self.bias, shape))
        return outputs if self.activation is None else self.activation(outputs)

    def _applied(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Computes the outputs without bias and activation."""
        padding = self.padding
        if padding == "circular":
            self._check_circular(inputs.shape)
            for axis, (before, after) in zip(self._spatial_axes, self._circular_pads, strict=True):
                inputs = wrap_by_slices(inputs, axis, before, after)
            padding = "valid"
        return self._convolve(inputs, kernel, padding)

    def _convolve(self, inputs: Tensor, kernel: Tensor, padding: str) -> Tensor:
        """Applies the kernel to inputs that are padded already where the padding is circular."""
        return ops.conv(
            inputs,
            kernel,
            strides=list(self.strides),
            padding=padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )

    @property
    def _spatial_axes(self) -> range:
        return range(1, self.rank + 1) if self.data_format == "channels_last" else range(2, self.rank + 2)

    @property
    def _axis_names(self) -> str:
        return " and ".join(_AXIS_NAMES[self.rank])

    @property
    def _channel_axis(self) -> int:
        return -1 if self.data_format == "channels_last" else 1

    @property
    def _extents(self) -> list[int]:
        """How many positions a window reaches over, along each axis."""
        return [(taps - 1) * dilation + 1 for taps, dilation in zip(self.kernel_size, self.dilation_rate, strict=True)]

    @property
    def _circular_pads(self) -> list[tuple[int, int]]:
        """How many rows and columns are repeated before and after."""
        return circular_pads(self.kernel_size, self.strides, self.dilation_rate)

    @property
    def _circular_multiples(self) -> Sequence[int]:
        """What the sizes of a circular input have to be multiples of."""
        return self.strides

    def _check_circular(self, input_shape: Shape) -> None:
        names = self._axis_names
        pads = self._circular_pads
        for axis, multiple, (before, after) in zip(self._spatial_axes, self._circular_multiples, pads, strict=True):
            size = input_shape[axis]
            if size is None and multiple > 1:
                raise ValueError(
                    f"The {type(self).__name__} layer '{self.name}' has padding='circular' and "
                    f"strides={self.strides}, so it must know the {names} of its input: give the model an `Input` of "
                    f"fixed size, or use padding='same'. Received: input_shape={tuple(input_shape)}"
                )
            if size is not None and (size % multiple or max(before, after) > size):
                raise ValueError(
                    f"The {type(self).__name__} layer '{self.name}' with padding='circular' expects a {names} in "
                    "multiples of the strides and of at least half the kernel size: other sizes do not wrap around, "
                    f"and the constant would not hold. Received: input_shape={tuple(input_shape)}, "
                    f"strides={self.strides}, kernel_size={self.kernel_size}, dilation_rate={self.dilation_rate}"
                )


class ConstrainedConvolution(ConstrainedKernel, _Convolution):
    """A convolution layer of Keras with circular padding, a constrained kernel, and a fold.

    Mixed in before the Keras layer that it specialises.

    Args:
        padding: `"valid"`, `"same"` or `"circular"`.
        parametrization: How the kernel is constrained, by name or as an object.
        **kwargs: The arguments of the Keras layer, and `k_coef_lip`.
    """

    input_spec: Any
    _plain_class: type

    def __init__(self, *args: Any, padding: Any, parametrization: Any, **kwargs: Any) -> None:
        padding = padding.lower() if isinstance(padding, str) else padding
        if padding not in _PADDINGS:
            raise ValueError(
                f"Invalid value for argument `padding` of {type(self).__name__}. Expected one of {_PADDINGS}: other "
                f"ways to pad have a norm above 1. Received: padding={padding}"
            )
        # Keras's layers know no circular padding; what they compute before `build` does not depend on the padding.
        super().__init__(*args, padding="same" if padding == "circular" else padding, **kwargs)
        self.padding = padding
        self.parametrization = parametrizations.get(parametrization)
        self.parametrization = self.parametrization.bind(self._constant_of_kernel, self._geometry)

    @property
    def _geometry(self) -> ConvolutionGeometry:
        return ConvolutionGeometry(self.kernel_size, self.strides, self.dilation_rate, self.groups, self.padding)

    @property
    def _constant_of_kernel(self) -> float:
        """What the norm of the convolution by itself may be, without what comes before it."""
        return self.k_coef_lip

    def build(self, input_shape: Shape) -> None:
        self._check_axes(input_shape)
        if self.padding == "circular":
            self._check_circular(input_shape)
        self._spatial_sizes = tuple(input_shape[axis] for axis in self._spatial_axes)
        channels = self._channels(input_shape[self._channel_axis])
        geometry = dataclasses.replace(self._geometry, channels=channels, sizes=self._spatial_sizes)
        self.parametrization = self.parametrization.bind(self._constant_of_kernel, geometry)
        super().build(input_shape)
        if isinstance(self.parametrization, Cayley):
            sizes = dict(zip(self._spatial_axes, self._spatial_sizes, strict=True))
            self.input_spec = keras.layers.InputSpec(ndim=self.rank + 2, axes={**self.input_spec.axes, **sizes})

    def _check_axes(self, input_shape: Shape) -> None:
        if len(input_shape) != self.rank + 2 or input_shape[self._channel_axis] is None:
            names = ", ".join(_AXIS_NAMES[self.rank])
            raise ValueError(
                f"The {type(self).__name__} layer '{self.name}' expects a {self.rank + 2}D input, (batch, {names}, "
                f"channels) or, with data_format='channels_first', (batch, channels, {names}), whose number of "
                f"channels is known. Received: input_shape={tuple(input_shape)}"
            )

    def _channels(self, inputs: Any) -> tuple[int, int]:
        """Returns the `channels` of the geometry of a layer with as many input channels."""
        return inputs // self.groups, self.filters // self.groups

    def _applied(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        if isinstance(self.parametrization, Cayley):
            for equation, factor in self.parametrization.factors(kernel, self._channel_axis == 1):
                inputs = ops.einsum(equation, inputs, factor)
            return inputs
        if not isinstance(self.parametrization, SOC):
            return super()._applied(inputs, kernel)
        axis, count = self._channel_axis % len(inputs.shape), kernel.shape[-1]
        inputs = with_zero_channels(inputs, axis, max(count - inputs.shape[axis], 0))
        outputs = self.parametrization.exponential(
            lambda term: super(ConstrainedConvolution, self)._applied(term, kernel), inputs
        )
        if self.filters < count:
            outputs = outputs[(*(slice(None),) * axis, slice(self.filters))]
        return scaled(outputs, self.parametrization.norm)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        self._check_axes(input_shape)
        if self.padding != "circular":
            return super().compute_output_shape(input_shape)
        self._check_circular(input_shape)
        shape = list(input_shape)
        for axis, stride in zip(self._spatial_axes, self.strides, strict=True):
            shape[axis] = self._circular_size(shape[axis], stride)
        shape[self._channel_axis] = self._output_channels(input_shape)
        return tuple(shape)

    def _circular_size(self, size: int | None, stride: int) -> int | None:
        return None if size is None else size // stride

    def _output_channels(self, input_shape: Shape) -> int | None:
        filters: int = self.filters
        return filters

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "parametrization": parametrizations.serialize(self.parametrization)}

    def _plain_layer(self) -> Any:
        config = self._plain_config()
        if self.padding == "circular":
            config["padding"] = "valid"
        return self._plain_class(**config)

    def fold(self) -> Callable[[Tensor], Tensor]:
        if self.built and isinstance(self.parametrization, Cayley):
            return self._fold_at_frequencies(self.parametrization)
        if not self.built or not isinstance(self.parametrization, SOC):
            return super().fold()
        kernel, series = ops.convert_to_numpy(self.kernel), self.parametrization
        size, count = self.input_spec.axes[self._channel_axis], kernel.shape[-1]
        config = {**self._plain_config(), "filters": count, "use_bias": False}
        config["padding"] = "valid" if self.padding == "circular" else self.padding
        step = with_weights(self._plain_class(**config), [kernel])
        # Dense layers on the channels fill up inputs with zeros, and leave out outputs.
        first = self._plain_dense(np.eye(size, count)) if size < count else None
        last = None
        if self.filters < count or series.norm != 1 or self.use_bias:
            bias = ops.convert_to_numpy(self.bias) if self.use_bias else None
            last = self._plain_dense(series.norm * np.eye(count, self.filters), bias)
        activation = fold_activation(self.activation)

        def folded(inputs: Tensor) -> Tensor:
            inputs = inputs if first is None else first(inputs)
            outputs = series.exponential(lambda term: step(self._prepare_inputs(term)), inputs)
            return activation(outputs if last is None else last(outputs))

        return folded

    def _fold_at_frequencies(self, cayley: Cayley) -> Callable[[Tensor], Tensor]:
        factors = [
            (equation, [ops.convert_to_numpy(factor)])
            for equation, factor in cayley.factors(self.kernel, self._channel_axis == 1)
        ]
        if self.use_bias:
            factors[-1][1].append(ops.convert_to_numpy(self.bias))
        channels = {"i": self.input_spec.axes[self._channel_axis], "o": self.filters}
        steps = [self._plain_einsum(equation, weights, channels) for equation, weights in factors]
        activation = fold_activation(self.activation)

        def folded(inputs: Tensor) -> Tensor:
            for step in steps:
                inputs = step(inputs)
            return activation(inputs)

        return folded

    def _plain_dense(self, matrix: Any, bias: Any = None) -> Callable[[Tensor], Tensor]:
        """Returns a plain layer that multiplies the channels by a matrix, and adds a bias."""
        weights, dtype = [matrix, *([] if bias is None else [bias])], self.dtype_policy
        if self._channel_axis == -1:
            return with_weights(keras.layers.Dense(matrix.shape[1], use_bias=bias is not None, dtype=dtype), weights)
        axes = "hwd"[: self.rank]
        sizes = dict(zip(axes, self._spatial_sizes, strict=True))
        return self._plain_einsum(f"bi{axes},io->bo{axes}", weights, sizes)

    def _plain_einsum(
        self, equation: str, weights: list[Any], kept: dict[str, int | None]
    ) -> Callable[[Tensor], Tensor]:
        """Returns a plain layer that multiplies by a tensor, and adds a bias to the channels, `o` in the equation.

        Of the axes of the output that the tensor does not have, `kept` gives the sizes.
        """
        _, letters, results = equation.replace("->", ",").split(",")
        sizes = {**kept, **dict(zip(letters, weights[0].shape, strict=True))}
        shape = [sizes[letter] for letter in results[1:]]
        bias_axes = "o" if len(weights) > 1 else None
        plain = keras.layers.EinsumDense(equation, shape, bias_axes=bias_axes, dtype=self.dtype_policy)
        ones = (1,) * len(results.partition("o")[2])
        return with_weights(plain, [weights[0], *(weight.reshape(-1, *ones) for weight in weights[1:])])

    def _prepare_inputs(self, inputs: Tensor) -> Tensor:
        if self.padding == "circular":
            for axis, (before, after) in zip(self._spatial_axes, self._circular_pads, strict=True):
                inputs = wrap_by_take(inputs, axis, before, after, self.name, self._axis_names)
        return inputs


def with_weights(plain: Any, weights: list[Any]) -> Callable[[Tensor], Tensor]:
    """Returns a plain layer as a function that builds it with these weights."""

    def call(inputs: Tensor) -> Tensor:
        if not plain.built:
            plain.build(inputs.shape)
            plain.set_weights(weights)
        return plain(inputs)

    return call


def wrap_by_slices(inputs: Tensor, axis: int, before: int, after: int) -> Tensor:
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


def wrap_by_take(inputs: Tensor, axis: int, before: int, after: int, name: str, axis_names: str) -> Tensor:
    """Does as `wrap_by_slices`, as a single op that a reader of the graph recognises. Slower to differentiate."""
    if not before and not after:
        return inputs
    size = inputs.shape[axis]
    if size is None:
        raise ValueError(
            f"The layer '{name}' has padding='circular', which folds only where the {axis_names} of its input are "
            f"known. Give the model an `Input` of fixed size. Received: input_shape={tuple(inputs.shape)}"
        )
    return ops.take(inputs, [index % size for index in range(-before, size + after)], axis=axis)
