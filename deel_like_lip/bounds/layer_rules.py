"""Bound rules for the layers of Keras."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from deel_like_lip._geometry import entries, max_overlap
from deel_like_lip._typing import Shape
from deel_like_lip.bounds.activations import Activation, known_activation, rectifier
from deel_like_lip.bounds.admission import is_float32
from deel_like_lip.bounds.convolution import Axis
from deel_like_lip.bounds.operators import (
    Convolution,
    Dense,
    Einsum,
    Pick,
    Scale,
    Separable,
    average_matrix,
    mean_matrix,
    spatial_axes,
)
from deel_like_lip.bounds.rounding import (
    EPSILON,
    FLOAT32_ROUNDOFF,
    FLOAT32_UNDERFLOW,
    norm_up,
    product_up,
    root_up,
    up,
)
from deel_like_lip.bounds.rules import Call, Combination, Effect, Parts, apply_rule, linear, rule, to_float64, weight

layers = keras.layers
Effects = Sequence[Effect]

# What the configs of layers have in common.
_DENSE = "activation quantization_config lora_rank lora_alpha"
_CONVOLUTION = "kernel_size strides padding data_format dilation_rate activation use_bias lora_rank lora_alpha"
_POOLING = "pool_size strides padding data_format"
Array = npt.NDArray[np.float64]


def activation_effects(call: Call, found: Activation | None, name: str) -> Effects:
    """Returns the effects of an activation, none for the linear one.

    Raises:
        CannotBoundError: If nothing is known of it.
    """
    if found is None:
        raise call.refuse(f"the activation '{name}' has no known Lipschitz constant.")
    if found.constant == 1 and name == "linear":
        return []
    offset = math.inf if found.roundings is None else 0.0
    return [Effect(found.constant, None, offset, found.roundings, keeps_sizes=True, monotone=found.monotone)]


def picked(call: Call, pick: Callable[[Any], Any] | None, repeats: int = 1, *, keeps_sizes: bool = False) -> Effects:
    """Returns the effect of moving values.

    Args:
        call: The call.
        pick: The same on NumPy arrays with a batch axis, which may write -1 for zeros; None if that is not known.
        repeats: How often a value may occur in the output, where sizes are not known.
        keeps_sizes: As in `Effect`.
    """
    operator = Pick(call.in_shape, call.out_shape, repeats)
    count = entries(call.in_shape)
    if pick is not None and count is not None:
        # On three samples: nothing may pass from one to another.
        samples: Any = np.arange(3 * count).reshape(3, *call.in_shape)
        try:
            all_, one = pick(samples), pick(samples[:1])
        except (IndexError, ValueError) as error:
            raise call.refuse("it moves values from one sample to another, or cannot do so.") from error
        expected = [np.where(one >= 0, one + sample * count, -1) for sample in range(3)]
        if np.shape(one)[:1] != (1,) or not np.array_equal(all_, np.concatenate(expected)):
            raise call.refuse("it moves values from one sample to another.")
        if len(call.out_shape) != one.ndim - 1 or any(
            size not in (None, own) for size, own in zip(call.out_shape, one.shape[1:], strict=True)
        ):
            raise call.refuse(f"its output has the shape {call.out_shape}, and not {one.shape[1:]}.")
        repeats = int(np.max(np.bincount(one[one >= 0]), initial=0))
        operator = Pick(call.in_shape, tuple(one.shape[1:]), repeats, pick)
    return [linear(operator, keeps_sizes=keeps_sizes)]


# --- dense layers ----------------------------------------------------------------------------------------------------


def _activated(call: Call, effect: Effect) -> Effects:
    activation = call.operation.activation
    name = getattr(activation, "__name__", type(activation).__name__)
    _check_softmax(call, activation)
    return [effect, *activation_effects(call, known_activation(activation), name)]


def _bias_offset(call: Call, bias: Any) -> float:
    """Returns the l2 norm of a bias that is added to the whole output."""
    return 0.0 if bias is None else spread_norm(call, to_float64(bias))


def spread_norm(call: Call, array: Array) -> float:
    """Returns an upper bound of the l2 norm of an array that is repeated to fill the output."""
    norm, outputs = norm_up(array), entries(call.out_shape)
    if norm == 0:
        return 0.0
    return math.inf if outputs is None else product_up(norm, root_up(outputs / array.size))


@rule(layers.Dense, config=f"units use_bias {_DENSE}")
def _dense(call: Call) -> Effects:
    layer = call.operation
    if layer.quantization_mode in ("int8", "int4") and not layer.lora_enabled:
        return _quantized_dense(call)
    # With more than two axes the kernel acts on each position by itself, which leaves its norm as it is.
    operator = Dense(call.in_shape, call.out_shape, weight(call, layer.kernel))
    return _activated(call, linear(operator, offset=_bias_offset(call, layer.bias), keeps_sizes=True))


def _quantized_dense(call: Call) -> Effects:
    """`(x Q) / s` with integers Q, or `x ((Q - z) s)` where a group of inputs has its own s and z, as Keras computes.

    Both are linear where x is left as it is: the kernel is the dequantized one.
    """
    layer = call.operation
    if layer.inputs_quantizer:
        raise call.refuse(
            "it rounds its inputs too, at each call, so that outputs jump and no constant bounds them. Quantize the "
            "kernels alone: `quantize(config=keras.quantizers.Int8QuantizationConfig(activation_quantizer=None))`."
        )
    integers, scale = to_float64(layer.kernel), to_float64(layer.kernel_scale)
    underflow = 0.0
    if hasattr(layer, "kernel_zero"):
        groups, zeros = to_float64(layer.g_idx).astype(int), to_float64(layer.kernel_zero)
        if not np.all((groups >= 0) & (groups < len(scale))):
            raise call.refuse("it has inputs of a group without a scale.")
        kernel = (integers - zeros[groups]) * scale[groups]  # exact: 9 and 24 bits
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            kernel = integers / scale
        # What the products with Q lose to underflow is divided by s too.
        smallest = float(np.min(np.abs(scale), initial=1.0))
        lost = product_up(2.0 * (len(kernel) + 4), FLOAT32_UNDERFLOW, root_up(float(entries(call.out_shape) or 0)))
        underflow = up(lost / smallest) if smallest else math.inf
    operator = Dense(call.in_shape, call.out_shape, kernel, error=product_up(EPSILON, norm_up(kernel)))
    known = bool(np.all(np.abs(scale) >= FLOAT32_UNDERFLOW))  # others may be flushed to zero
    effect = linear(operator, offset=_bias_offset(call, layer.bias), keeps_sizes=True)
    # Besides those of the sum: of the dequantized kernel, or of 1 / s and of the product with it.
    return _activated(call, dataclasses.replace(effect, roundings=2 if known else None, underflow=underflow))


@rule(layers.EinsumDense, config=f"equation output_shape bias_axes {_DENSE}")
def _einsum_dense(call: Call) -> Effects:
    layer = call.operation
    equation = _without_ellipsis(layer.equation, len(call.input_shape))
    inputs, kernel, outputs = equation.replace("->", ",").split(",")
    indices = set(kernel)
    shared = [index for index in kernel if index in inputs and index in outputs]
    contracted = [index for index in kernel if index in inputs and index not in outputs]
    new = [index for index in kernel if index not in inputs]
    is_matrix = (
        all(len(set(part)) == len(part) for part in (inputs, kernel, outputs))
        and inputs[0] == outputs[0]
        and inputs[0] not in indices
        and set(new) <= set(outputs)
        and all(index in indices or index in outputs for index in inputs)
    )
    if not is_matrix:
        raise call.refuse(f"its equation '{layer.equation}' is not that of a dense map from each sample to another.")
    array = weight(call, layer.kernel)
    _check_sizes(call, array, inputs, kernel, outputs)
    if layer.bias is not None and not fits(tuple(layer.bias.shape), call.out_shape):
        raise call.refuse(f"it repeats values to fit its bias, of shape {tuple(layer.bias.shape)}.")
    ordered = np.transpose(array, [kernel.index(index) for index in (*shared, *contracted, *new)])
    sizes = [math.prod(array.shape[kernel.index(index)] for index in group) for group in (shared, contracted, new)]
    operator = Einsum(call.in_shape, call.out_shape, equation, array, ordered.reshape(sizes))
    return _activated(call, linear(operator, offset=_bias_offset(call, layer.bias)))


def _check_sizes(call: Call, array: Array, inputs: str, kernel: str, outputs: str) -> None:
    """Raises if an index of an equation has several sizes: some backends repeat values along axes of size 1."""
    known = dict(zip(kernel, array.shape, strict=True))
    given = [*zip(inputs, call.input_shape, strict=True)]
    # (Keras states sizes of the output that it is not told as not known.)
    given += [pair for pair in zip(outputs, call.outputs[0].shape, strict=True) if pair[1] is not None]
    for index, size in given:
        if known.setdefault(index, size) != size:
            raise call.refuse(f"its kernel, of shape {array.shape}, is for inputs and outputs of other sizes.")


def _without_ellipsis(equation: str, rank: int) -> str:
    """Writes the dots of an equation as letters that it does not use."""
    if "..." not in equation:
        return equation
    inputs, rest = equation.split(",", 1)
    free = [letter for letter in "ABCDEFGHIJKLMNOP" if letter not in equation]
    dots = "".join(free[: rank - len(inputs.replace("...", ""))])
    return f"{inputs},{rest}".replace("...", dots)


# --- convolutions ----------------------------------------------------------------------------------------------------


def _image(call: Call, rank: int) -> tuple[bool, Sequence[int | None], Sequence[int | None]]:
    """Returns whether channels come first, and the spatial sizes of input and output."""
    first = call.operation.data_format == "channels_first"
    axes = spatial_axes(rank, first)
    return first, [call.in_shape[axis] for axis in axes], [call.out_shape[axis] for axis in axes]


def _convolution(call: Call, kernels: Array, bias: Any) -> Effects:
    layer = call.operation
    rank = kernels.ndim - 3
    first, sizes, counts = _image(call, rank)
    taps = kernels.shape[1:-2]
    axes = tuple(
        Axis.of(tap, stride, dilation, layer.padding, size)
        for tap, stride, dilation, size in zip(taps, layer.strides, layer.dilation_rate, sizes, strict=True)
    )
    if any(axis.outputs not in (None, count) for axis, count in zip(axes, counts, strict=True)):
        raise call.refuse(f"its output has the size {counts}, and not {[axis.outputs for axis in axes]}.")
    operator = Convolution(call.in_shape, call.out_shape, kernels, axes, first)
    keeps = layer.padding != "valid" and all(axis.stride == 1 for axis in axes)
    return [linear(operator, offset=_bias_offset(call, bias), keeps_sizes=keeps)]


@rule(layers.Conv1D, layers.Conv2D, layers.Conv3D, config=f"filters groups {_CONVOLUTION}")
def _full_convolution(call: Call) -> Effects:
    layer = call.operation
    kernels = np.stack(np.split(weight(call, layer.kernel), layer.groups, axis=-1))
    (effect,) = _convolution(call, kernels, layer.bias)
    return _activated(call, effect)


@rule(layers.DepthwiseConv1D, layers.DepthwiseConv2D, config=f"depth_multiplier {_CONVOLUTION}")
def _depthwise_convolution(call: Call) -> Effects:
    layer = call.operation
    (effect,) = _convolution(call, _by_channel(weight(call, layer.kernel)), layer.bias)
    return _activated(call, effect)


@rule(layers.SeparableConv1D, layers.SeparableConv2D, config=f"filters depth_multiplier {_CONVOLUTION}")
def _separable_convolution(call: Call) -> Effects:
    layer = call.operation
    depthwise = weight(call, layer.depthwise_kernel)
    first, _, counts = _image(call, depthwise.ndim - 2)
    pointwise = weight(call, layer.pointwise_kernel).reshape(depthwise.shape[-2] * depthwise.shape[-1], -1)
    middle = (len(pointwise), *counts) if first else (*counts, len(pointwise))
    (effect,) = _convolution(call, _by_channel(depthwise), None)
    assert isinstance(effect.operator, Convolution)
    each = Convolution(call.in_shape, middle, effect.operator.kernels, effect.operator.axes, first)
    mixed = Dense(middle, call.out_shape, pointwise, 0 if first else -1)
    offset = _bias_offset(call, layer.bias)
    keeps = effect.keeps_sizes
    return [linear(each, keeps_sizes=keeps), *_activated(call, linear(mixed, offset=offset, keeps_sizes=True))]


def _by_channel(kernel: Array) -> Array:
    """Makes groups of one input channel each out of a depthwise kernel `(*taps, channels, multiplier)`."""
    return np.moveaxis(kernel, -2, 0)[..., None, :]


@rule(
    layers.Conv1DTranspose,
    layers.Conv2DTranspose,
    layers.Conv3DTranspose,
    config=f"filters output_padding {_CONVOLUTION}",
)
def _transposed_convolution(call: Call) -> Effects:
    """The transpose of the convolution from the output's size to the input's."""
    layer = call.operation
    kernel = weight(call, layer.kernel)  # (*taps, filters, channels): the roles of that convolution
    rank = kernel.ndim - 2
    first, sizes, counts = _image(call, rank)
    axes = []
    for tap, stride, dilation, size, count in zip(
        kernel.shape[:rank], layer.strides, layer.dilation_rate, sizes, counts, strict=True
    ):
        extent = dilation * (tap - 1) + 1
        before = 0
        if layer.padding == "same" and size is not None and count is not None:
            total = extent - stride if layer.output_padding is None else (size - 1) * stride + extent - count
            before = max(total, 0) // 2
        known = size is not None and count is not None
        axes.append(Axis(tap, stride, dilation, before, count, size) if known else Axis(tap, stride, dilation))
    operator = Convolution(call.in_shape, call.out_shape, kernel[None], tuple(axes), first, transposed=True)
    return _activated(call, linear(operator, offset=_bias_offset(call, layer.bias)))


# --- pooling and resampling ------------------------------------------------------------------------------------------


@rule(layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D, config=_POOLING)
def max_pooling(call: Call) -> Effects:
    # Each output moves by at most the l2 norm of the change under its window.
    return [Effect(root_up(float(window_overlap(call))))]


def window_overlap(call: Call) -> int:
    """Returns the largest number of windows of a pooling layer that meet one position of its input."""
    layer = call.operation
    _, sizes, _ = _image(call, len(layer.pool_size))
    overlap = 1
    for window, stride, size in zip(layer.pool_size, layer.strides, sizes, strict=True):
        if size is None:
            overlap *= max_overlap([window], [stride])
        else:
            positions = Axis.of(window, stride, 1, layer.padding, size).positions()
            overlap *= int(np.max(np.bincount(positions[positions >= 0]), initial=0))
    return overlap


@rule(layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D, config=_POOLING)
def average_pooling(call: Call) -> Effects:
    layer = call.operation
    rank, area = len(layer.pool_size), math.prod(layer.pool_size)
    first, sizes, _ = _image(call, rank)
    if None in sizes:
        overlap = float(max_overlap(layer.pool_size, layer.strides))
        # A window at the edge may average over as little as one value.
        constant = root_up(up(overlap / area)) if layer.padding == "valid" else root_up(overlap)
        return [Effect(constant, roundings=area + 4)]
    axes = [
        Axis.of(window, stride, 1, layer.padding, size)
        for window, stride, size in zip(layer.pool_size, layer.strides, sizes, strict=True)
    ]
    operators = []
    for edges_repeated in (False, True):
        matrices = {
            index: average_matrix(axis, edges_repeated=edges_repeated)
            for index, axis in zip(spatial_axes(rank, first), axes, strict=True)
        }
        operators.append(Separable(call.in_shape, call.out_shape, matrices))
    inside, repeated = operators
    # Keras on torch repeats the edge of the input where as many values cannot be padded on both sides; elsewhere, means
    # are those of the values inside. What is certified on one backend may be served by another.
    same = all(np.array_equal(inside.matrices[index], repeated.matrices[index]) for index in inside.matrices)
    if layer.padding == "valid" or same or not any(map(_pads_unevenly, axes)):
        return [linear(inside, roundings=4)]
    return [Effect(max(inside.norm, repeated.norm), roundings=area + 4)]


def _pads_unevenly(axis: Axis) -> bool:
    total = (axis.outputs or 0) * axis.stride - axis.stride + axis.taps - (axis.size or 0)
    return max(total, 0) % 2 == 1


@rule(
    layers.AdaptiveMaxPooling1D,
    layers.AdaptiveMaxPooling2D,
    layers.AdaptiveMaxPooling3D,
    config="output_size data_format",
)
def _adaptive_max_pooling(call: Call) -> Effects:
    overlaps = [int(np.max(np.sum(matrix > 0, axis=0))) for matrix in _adaptive_matrices(call).values()]
    return [Effect(root_up(float(math.prod(overlaps))))]


@rule(
    layers.AdaptiveAveragePooling1D,
    layers.AdaptiveAveragePooling2D,
    layers.AdaptiveAveragePooling3D,
    config="output_size data_format",
)
def _adaptive_average_pooling(call: Call) -> Effects:
    return [linear(Separable(call.in_shape, call.out_shape, _adaptive_matrices(call)), roundings=4)]


def _adaptive_matrices(call: Call) -> dict[int, Array]:
    """Returns the means along each axis: output i of m is that of inputs `floor(i n / m)` to `ceil((i + 1) n / m)`."""
    layer = call.operation
    first = layer.data_format == "channels_first"
    if len(call.in_shape) != len(layer.output_size) + 1:
        raise call.refuse(f"it pools inputs of {len(layer.output_size)} spatial axes.")
    matrices = {}
    for axis, outputs in zip(spatial_axes(len(layer.output_size), first), layer.output_size, strict=True):
        size = call.in_shape[axis]
        if size is None:
            raise call.refuse("its constant depends on the size of its input, which is not known.")
        matrices[axis] = np.zeros((outputs, size))
        for index, row in enumerate(matrices[axis]):
            start, stop = index * size // outputs, -(-(index + 1) * size // outputs)
            row[start:stop] = 1 / (stop - start)
    return matrices


@rule(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D, config="data_format keepdims")
def _global_max_pooling(call: Call) -> Effects:
    return [Effect(1.0)]


@rule(
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
    config="data_format keepdims",
)
def _global_average_pooling(call: Call) -> Effects:
    rank = len(call.in_shape) - 1
    first = call.operation.data_format == "channels_first"
    sizes = {axis: call.in_shape[axis] for axis in spatial_axes(rank, first)}
    if None in sizes.values():
        raise call.refuse("its constant depends on the size of its input, which is not known.")
    matrices = {axis: mean_matrix(size or 0) for axis, size in sizes.items()}
    operator = Separable(call.in_shape, call.out_shape, matrices, drop=not call.operation.keepdims)
    return [linear(operator, roundings=4)]


def image_area(call: Call) -> int | None:
    """Returns the number of positions of the images that a 2D layer takes, if it is known."""
    first = call.operation.data_format == "channels_first"
    return entries(tuple(call.in_shape[axis] for axis in spatial_axes(2, first)))


@rule(layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D, config="size data_format interpolation")
def _up_sampling(call: Call) -> Effects:
    layer = call.operation
    factors = (layer.size,) if isinstance(layer.size, int) else tuple(layer.size)
    repeats = math.prod(factors)
    if getattr(layer, "interpolation", "nearest") == "bilinear":
        # The weights of each output are not negative and sum to 1, and by symmetry those of each input to the factor:
        # the root of the largest row sum times the largest column sum.
        return [Effect(root_up(float(repeats)), roundings=None, offset=math.inf)]
    if getattr(layer, "interpolation", "nearest") != "nearest":
        raise call.refuse(f"there is no bound for the interpolation '{layer.interpolation}'.")
    axes = spatial_axes(len(factors), getattr(layer, "data_format", None) == "channels_first")

    def pick(array: Any) -> Any:
        for axis, factor in zip(axes, factors, strict=True):
            array = np.repeat(array, factor, axis=axis + 1)
        return array

    return picked(call, pick, repeats)


def _on_spatial_axes(call: Call, amounts: Any, change: Callable[[Any, Sequence[tuple[int, int]]], Any]) -> Effects:
    """Returns the effect of padding or cropping by `(before, after)` along each spatial axis."""
    pairs = [tuple(pair) for pair in (amounts if isinstance(amounts[0], (tuple, list)) else [amounts])]
    first = getattr(call.operation, "data_format", None) == "channels_first"
    everywhere: list[tuple[int, int]] = [(0, 0)] * (len(call.in_shape) + 1)
    for axis, (before, after) in zip(spatial_axes(len(pairs), first), pairs, strict=True):
        everywhere[axis + 1] = (before, after)
    return picked(call, lambda array: change(array, everywhere))


@rule(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D, config="padding data_format", integers=True)
def _zero_padding(call: Call) -> Effects:
    return _on_spatial_axes(
        call, call.operation.padding, lambda array, amounts: np.pad(array, amounts, constant_values=-1)
    )


@rule(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D, config="cropping data_format", integers=True)
def _cropping(call: Call) -> Effects:
    def crop(array: Any, amounts: Sequence[tuple[int, int]]) -> Any:
        return array[
            tuple(slice(before, size - after) for (before, after), size in zip(amounts, array.shape, strict=True))
        ]

    return _on_spatial_axes(call, call.operation.cropping, crop)


# --- layers that move values -----------------------------------------------------------------------------------------


@rule(layers.Flatten, config="data_format", integers=True)
def _flatten(call: Call) -> Effects:
    first = call.operation.data_format == "channels_first" and len(call.in_shape) > 0

    def flatten(array: Any) -> Any:
        return (np.moveaxis(array, 1, -1) if first else array).reshape(len(array), -1)

    return picked(call, flatten)


@rule(layers.Reshape, config="target_shape", integers=True)
def _reshape_layer(call: Call) -> Effects:
    shape = call.out_shape
    return picked(call, lambda array: array.reshape(len(array), *(-1 if size is None else size for size in shape)))


@rule(layers.Permute, config="dims", integers=True)
def _permute(call: Call) -> Effects:
    return picked(call, lambda array: np.transpose(array, (0, *call.operation.dims)))


@rule(layers.RepeatVector, config="n")
def _repeat_vector(call: Call) -> Effects:
    count = call.operation.n
    return picked(call, lambda array: np.repeat(array[:, None], count, axis=1), count)


@rule(
    layers.Identity,
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.AlphaDropout,
    layers.GaussianNoise,
    layers.GaussianDropout,
    layers.ActivityRegularization,
    config="data_format",
    integers=True,
)
def _nothing_at_inference(call: Call) -> Effects:
    return []


@rule(layers.TimeDistributed, config="layer")
def _time_distributed(call: Call) -> Effects:
    inner = call.operation.layer
    tensors = [keras.KerasTensor((None, *shape[1:])) for shape in (call.in_shape, call.out_shape)]
    effects = apply_rule(Call(inner, tensors[:1], tensors[1:], {"inputs": tensors[0]}))
    if isinstance(effects, Combination | Parts):
        raise call.refuse("it wraps a layer with several inputs or outputs.")
    constant = product_up(*(effect.constant for effect in effects))
    return [Effect(constant, roundings=None, offset=math.inf)]


# --- activations -----------------------------------------------------------------------------------------------------


@rule(
    layers.Activation,
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.Softmax,
    config="activation max_value negative_slope threshold alpha axis",
)
def _activation_layer(call: Call) -> Effects:
    layer = call.operation
    _check_softmax(call, layer)
    name = getattr(getattr(layer, "activation", None), "__name__", type(layer).__name__)
    return activation_effects(call, known_activation(layer), name)


def _check_softmax(call: Call, activation: Any) -> None:
    """Raises if an activation is a softmax across samples, or a layer with such a one inside."""
    while isinstance(activation, layers.Layer):
        if isinstance(activation, layers.Softmax) and isinstance(activation.axis, int):
            not_the_batch(call, activation.axis, "normalises")
        activation = getattr(activation, "activation", None)


@rule(layers.PReLU, config="shared_axes")
def _prelu(call: Call) -> Effects:
    slopes = weight(call, call.operation.alpha)
    if repeats_values(call, slopes):
        raise call.refuse(f"it repeats values to fit its slopes, of shape {slopes.shape}.")
    steepest = rectifier(float(np.max(np.abs(slopes), initial=0.0)))
    return activation_effects(call, steepest._replace(monotone=bool(np.all(slopes >= 0))), "prelu")


def not_the_batch(call: Call, axis: int, does: str) -> None:
    """Raises if an operation acts along the batch axis."""
    if axis % len(call.input_shape) == 0:
        raise call.refuse(f"it {does} across samples.")


# --- scaling and normalization ---------------------------------------------------------------------------------------


@rule(layers.Rescaling, config="scale offset", integers=True)
def _rescaling(call: Call) -> Effects:
    scale, offset = (np.asarray(value, np.float64) for value in (call.operation.scale, call.operation.offset))
    if scale.ndim and keras.config.image_data_format() == "channels_first":
        # Keras then takes the first axis of the scale, but not that of the offset, for the channels of images.
        scale = scale.reshape(*scale.shape, *(1,) * (3 - scale.ndim))
    for array in (scale, offset):
        # (Keras states the input's shape as the output's even where the scale repeats values.)
        if repeats_values(call, array):
            raise call.refuse(f"it repeats values to fit its scale or offset, of shape {array.shape}.")
    return [scaled(call, scale, offset, roundings=2, keeps_sizes=True)]


def repeats_values(call: Call, array: Array) -> bool:
    """Whether values of a sample are repeated to fit an array that an operation combines with it."""
    return not fits(array.shape, call.in_shape)


def fits(shape: Sequence[int | None], sample: Shape) -> bool:
    """Whether an array of a shape can be combined with samples of another without values of theirs being repeated."""
    sizes = zip(shape[::-1], sample[::-1], strict=False)
    return len(shape) <= len(sample) and all(own in (1, size) for own, size in sizes)


def scaled(
    call: Call, factors: Array, offset: Array, *, error: float = 0.0, roundings: int, keeps_sizes: bool
) -> Effect:
    """Returns the effect of `factors * x + offset`, where the model holds float32 values of both."""
    if np.any(factors.astype(np.float32) != factors):
        error += FLOAT32_ROUNDOFF
    if not keras.backend.is_float_dtype(call.outputs[0].dtype):
        raise call.refuse(f"it computes with integers, {call.outputs[0].dtype}, which are rounded off.")
    _check_float32(call, factors, offset)
    operator = Scale(call.in_shape, call.out_shape, factors, error)
    return linear(operator, offset=spread_norm(call, offset), roundings=roundings, keeps_sizes=keeps_sizes)


@rule(layers.BatchNormalization, config="axis epsilon center scale")
def _batch_normalization(call: Call) -> Effects:
    """`gamma (x - mean) / sqrt(variance + epsilon) + beta` with the statistics that the layer holds."""
    layer = call.operation
    axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
    not_the_batch(call, axis, "normalises")
    mean, variance = weight(call, layer.moving_mean), weight(call, layer.moving_variance)
    if np.any(variance + layer.epsilon < FLOAT32_UNDERFLOW):
        raise call.refuse("its moving variance and `epsilon` are together not positive, in float32.")
    factors = 1 / np.sqrt(variance + layer.epsilon)
    if layer.gamma is not None:
        factors = factors * weight(call, layer.gamma)
    added = np.abs(factors * mean)
    if layer.beta is not None:
        added = added + np.abs(weight(call, layer.beta))
    return [_per_channel(call, axis, factors, added)]


def _check_float32(call: Call, factors: Array, offset: Array) -> None:
    """Raises if float32 does not hold what an operation multiplies by or adds: it computes with 0 or infinity then."""
    vanishing = (factors != 0) & (np.abs(factors) < FLOAT32_UNDERFLOW)
    if not is_float32(factors) or not is_float32(offset) or np.any(vanishing):
        raise call.refuse("it multiplies by or adds numbers that float32 does not hold.")


def _per_channel(call: Call, axis: int, factors: Array, added: Array) -> Effect:
    shape = [1] * len(call.in_shape)
    shape[axis % len(call.input_shape) - 1] = factors.size
    _check_float32(call, factors, added)
    operator = Scale(call.in_shape, call.out_shape, factors.reshape(shape), 8 * EPSILON)
    # Backends compute it in different orders; a dozen roundings cover all of them.
    return linear(operator, offset=spread_norm(call, added), roundings=12, keeps_sizes=True)


@rule(layers.Normalization, config="axis mean variance invert", integers=True)
def _normalization(call: Call) -> Effects:
    """`(x - mean) / max(sqrt(variance), epsilon)` with fixed statistics, or its inverse."""
    layer = call.operation
    if 0 in layer._keep_axis:
        raise call.refuse("it has statistics for each sample.")
    mean, variance = (keras.ops.convert_to_numpy(value).astype(np.float64) for value in (layer.mean, layer.variance))
    deviation = np.maximum(np.sqrt(variance), keras.backend.epsilon())
    factors = deviation if layer.invert else 1 / deviation
    offset = mean if layer.invert else mean / deviation
    shape = mean.shape[1:]
    if repeats_values(call, mean[0]):
        raise call.refuse(f"it repeats values to fit its statistics, of shape {mean.shape}.")
    # (The square root is taken in float32.)
    factors, offset = factors.reshape(shape), np.broadcast_to(offset, mean.shape).reshape(shape)
    error = 4 * FLOAT32_ROUNDOFF
    return [scaled(call, factors, offset, error=error, roundings=8, keeps_sizes=True)]


@rule(
    layers.LayerNormalization,
    layers.GroupNormalization,
    layers.RMSNormalization,
    config="axis epsilon center scale rms_scaling groups",
)
def _normalization_of_samples(call: Call) -> Effects:
    """`gamma z / sqrt(|z|^2 / n + epsilon) + beta` on groups of n values, where z is the input, for most centred.

    With s the root, the Jacobian is `gamma (I - z z^T / (n s^2)) P / s` for the projection P that centres, and the
    eigenvalues of the bracket lie in [0, 1]: its norm is at most `|gamma| / sqrt(epsilon)`.
    """
    layer = call.operation
    if getattr(layer, "rms_scaling", False):
        raise call.refuse("with `rms_scaling` it divides by a deviation what it has not centred, and has no constant.")
    for axis in layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]:
        not_the_batch(call, axis, "normalises")
    if layer.epsilon < FLOAT32_UNDERFLOW:
        raise call.refuse("without a positive `epsilon`, in float32, it has no finite constant.")
    factors = layer.scale if type(layer) is layers.RMSNormalization else layer.gamma
    expected = [
        call.input_shape[axis] for axis in (layer.axis if isinstance(layer.axis, list | tuple) else [layer.axis])
    ]
    for array in (factors, getattr(layer, "beta", None)):
        if array is not None and list(array.shape) != expected:
            raise call.refuse(f"its weights have the shape {tuple(array.shape)}, and its inputs would need {expected}.")
    gamma = 1.0 if factors is None else float(np.max(np.abs(weight(call, factors))))
    constant = product_up(gamma, up(up(1 / math.sqrt(layer.epsilon)) * (1 + 4 * EPSILON)))
    return [Effect(constant, roundings=None, offset=math.inf, keeps_sizes=True)]


# --- several inputs --------------------------------------------------------------------------------------------------


@rule(layers.Add)
def _add(call: Call) -> Combination:
    return Combination("sum", (1.0,) * len(call.parts), roundings=len(call.parts) - 1)


@rule(layers.Subtract)
def _subtract(call: Call) -> Combination:
    if len(call.parts) != 2:
        raise call.refuse(f"it subtracts one tensor from another, and has {len(call.parts)}.")
    return Combination("sum", (1.0, -1.0), roundings=1)


@rule(layers.Average)
def _average(call: Call) -> Combination:
    count = len(call.parts)
    return Combination("sum", (1 / count,) * count, roundings=count + 1)


@rule(layers.Maximum, layers.Minimum)
def _extremum(call: Call) -> Combination:
    return Combination("extremum")


@rule(layers.Concatenate, config="axis", integers=True)
def _concatenate(call: Call) -> Combination:
    axis = call.operation.axis
    if axis % len(call.input_shape) == 0:
        raise call.refuse("it joins batches.")
    return Combination("concatenation", axis=axis % len(call.input_shape) - 1)
