"""What values an output can take: whether its sign can be an answer at all.

An interval for each tensor, the same for all of its entries, from what is known of activations, absolute values and
limits. What is not known may be anything.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from deel_like_lip._geometry import entries
from deel_like_lip._keras import functional_graph
from deel_like_lip.bounds.patterns import producer
from deel_like_lip.bounds.rules import Call, Constant, is_op, to_float64

Interval = tuple[float, float]
Array = npt.NDArray[np.float64]
ANYTHING: Interval = (-math.inf, math.inf)
_POSITIVE: Interval = (0.0, math.inf)

layers = keras.layers
# Functions with values in an interval, whatever they are applied to.
_VALUES: dict[str, Interval] = {
    **dict.fromkeys(("sigmoid", "hard_sigmoid", "sparse_sigmoid", "softmax"), (0.0, 1.0)),
    **dict.fromkeys(("softplus", "squareplus", "sparse_plus", "exponential", "relu"), _POSITIVE),
    **dict.fromkeys(("tanh", "hard_tanh", "softsign"), (-1.0, 1.0)),
    "relu6": (0.0, 6.0),
    **dict.fromkeys(("log_sigmoid", "log_softmax"), (-math.inf, 0.0)),
    **dict.fromkeys(("elu", "celu"), (-1.0, math.inf)),  # with their default, 1
    "selu": (-1.7581, math.inf),
    "gelu": (-0.1701, math.inf),
    "silu": (-0.2785, math.inf),
    "mish": (-0.3089, math.inf),
    "hard_silu": (-0.3751, math.inf),
    **dict.fromkeys(("sin", "cos", "erf"), (-1.0, 1.0)),
    "arctan": (-1.5708, 1.5708),
}
# Functions whose result has the sign of what they are applied to.
_KEEP_SIGNS = {
    *("leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hard_silu", "soft_shrink", "tanh_shrink"),
    *("tanh", "hard_tanh", "softsign", "erf", "arctan", "arcsinh"),
}
# Functions that are nowhere below what they are applied to.
_ABOVE = ("relu", "softplus", "squareplus", "sparse_plus", "exponential")
_OPS = {
    **{name: name.lower() for name in ("Sigmoid", "Softmax", "Softplus", "Squareplus", "Relu", "Relu6", "Tanh")},
    **{name: name.lower() for name in ("Softsign", "Elu", "Selu", "Celu", "Gelu", "Silu", "Mish")},
    **{name: name.lower() for name in ("Sin", "Cos", "Erf", "Arctan", "Arcsinh")},
    "Exp": "exponential",
    "HardSigmoid": "hard_sigmoid",
    "HardSilu": "hard_silu",
    "HardTanh": "hard_tanh",
    "LeakyRelu": "leaky_relu",
    "LogSigmoid": "log_sigmoid",
    "LogSoftmax": "log_softmax",
    "SoftShrink": "soft_shrink",
    "SparsePlus": "sparse_plus",
    "SparseSigmoid": "sparse_sigmoid",
    "TanhShrink": "tanh_shrink",
}
_NOT_NEGATIVE = ("Absolute", "Abs", "Fabs", "Square", "Sqrt", "Norm")
# What moves, repeats, averages or selects values, and what does nothing at inference.
_MOVING = {
    *(layers.Flatten, layers.Reshape, layers.Permute, layers.RepeatVector, layers.Identity, layers.Dropout),
    *(layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D, layers.AlphaDropout),
    *(layers.GaussianNoise, layers.GaussianDropout, layers.ActivityRegularization),
    *(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D),
    *(layers.UpSampling1D, layers.UpSampling2D, layers.UpSampling3D),
    *(layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D),
    *(layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D),
    *(layers.AdaptiveMaxPooling1D, layers.AdaptiveMaxPooling2D, layers.AdaptiveMaxPooling3D),
    *(layers.AdaptiveAveragePooling1D, layers.AdaptiveAveragePooling2D, layers.AdaptiveAveragePooling3D),
    *(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D),
    *(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D),
}
_MOVING_OPS = (
    *("Reshape", "Transpose", "Squeeze", "ExpandDims", "Flip", "Roll", "Repeat", "Tile", "Swapaxes", "Moveaxis"),
    *("Take", "GetItem", "Split", "Unstack", "Cast", "Copy", "StopGradient", "DepthToSpace", "SpaceToDepth"),
    *("Mean", "Max", "Min", "Amax", "Amin", "Sort", "MaxPool", "AveragePool"),
)
_PADDING = (layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D)
_JOINING = (layers.Concatenate, layers.Average)
_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)


def value_range(tensor: Any) -> Interval:
    """Returns an interval in which all values of a tensor of a graph lie that has been admitted, for all inputs.

    Raises:
        CannotBoundError: If it is not certain which argument of a call is which.
    """
    return _Ranges({}).of(tensor)


def parts_of(tensor: Any) -> list[Any]:
    """Returns the tensors that an output is joined of, each of which has a sign of its own."""
    call = producer(tensor)
    joined = call is not None and (type(call.operation) is layers.Concatenate or is_op(call.operation, "Concatenate"))
    if call is None or not joined or len(call.parts) != len(call.inputs):
        return [tensor]
    return [part for one in call.inputs for part in parts_of(one)]


class _Ranges:
    """The intervals of the tensors of one model."""

    def __init__(self, known: dict[int, Interval]) -> None:
        self._known = known

    def of(self, tensor: Any) -> Interval:
        if id(tensor) not in self._known:
            call = producer(tensor)
            if call is None:
                interval = ANYTHING
            elif isinstance(call.operation, keras.Model):
                interval = self._of_nested(call, tensor)
            else:
                interval = _after(call, [self.of(one) for one in call.inputs])
            self._known[id(tensor)] = interval
        return self._known[id(tensor)]

    def _of_nested(self, call: Call, tensor: Any) -> Interval:
        model = functional_graph(call.operation)
        inputs = zip(model.inputs, call.inputs, strict=True)
        index = next(index for index, one in enumerate(call.outputs) if one is tensor)
        return _Ranges({id(own): self.of(given) for own, given in inputs}).of(model.outputs[index])


def _after(call: Call, inputs: list[Interval]) -> Interval:
    operation = call.operation
    if is_op(operation):
        return _after_op(call, inputs)
    kind, interval = type(operation), inputs[0]
    if kind in _MOVING:
        return interval
    if kind in _PADDING:
        return _union([interval, (0.0, 0.0)])
    if kind in _JOINING:
        return _union(inputs) if len(call.parts) == len(inputs) else ANYTHING
    if kind is layers.Add and len(call.parts) == len(inputs):
        return sum(low for low, _ in inputs), sum(high for _, high in inputs)
    if kind is layers.Subtract and len(inputs) == 2:
        return _difference(call, inputs)
    if kind is layers.TimeDistributed:
        return _after(dataclasses.replace(call, operation=operation.layer), inputs)
    if kind in (layers.Maximum, layers.Minimum):
        return _extremum(call, inputs, kind is layers.Maximum)
    if kind is layers.Rescaling:
        return _affine(interval, np.asarray(operation.scale, np.float64), np.asarray(operation.offset, np.float64))
    if kind in (layers.BatchNormalization, layers.Normalization):
        return _affine(interval, *_factors_and_offsets(operation))
    if kind is layers.PReLU:
        return _bent(to_float64(operation.alpha), interval)
    kernels = _kernels(operation) if interval != ANYTHING else []
    if kernels:
        biases = [None] * (len(kernels) - 1) + [operation.bias]
        for kernel, bias in zip(kernels, biases, strict=True):
            interval = _linear(kernel, bias, interval if kind is layers.Dense else _union([interval, (0.0, 0.0)]))
    elif kind not in (layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Softmax):
        interval = ANYTHING
    return _activated(operation, interval)


def _after_op(call: Call, inputs: list[Interval]) -> Interval:
    operation, interval = call.operation, inputs[0] if inputs else ANYTHING
    name = type(operation).__name__  # of an op of Keras, or the bound refuses
    if name in _OPS:
        slope = {"LeakyRelu": "negative_slope", "Elu": "alpha", "Celu": "alpha"}.get(name)
        if slope is None:
            return _function(_OPS[name], interval)
        return _bent(getattr(operation, slope), interval, limited=slope == "alpha")
    if name in _NOT_NEGATIVE:
        return _POSITIVE
    is_largest = name in ("Max", "Amax", "Logsumexp") and entries(tuple(call.outputs[0].shape[1:])) == 1
    if is_largest and _holds_a_negative(call.inputs[0]):
        return _POSITIVE  # at least an absolute value
    if name in _MOVING_OPS:
        return interval
    if name == "Logsumexp":
        return interval[0], math.inf
    if name == "Sum":
        return (0.0, math.inf) if interval[0] >= 0 else (-math.inf, 0.0) if interval[1] <= 0 else ANYTHING
    if name == "Pad":
        return _union([interval, (0.0, 0.0)])
    if name == "Clip":
        low, high = (float(np.min(np.asarray(limit))) for limit in (operation.x_min, operation.x_max))
        return (low, float(np.max(np.asarray(operation.x_max)))) if high >= low else ANYTHING
    if name in ("Concatenate", "Stack"):
        return _union(inputs) if len(call.parts) == len(inputs) else ANYTHING
    if name in ("Maximum", "Minimum"):
        return _extremum(call, inputs, name == "Maximum")
    if name == "Negative":
        return -interval[1], -interval[0]
    return _arithmetic(call, name, inputs)


def _arithmetic(call: Call, name: str, inputs: list[Interval]) -> Interval:
    if name not in ("Add", "Subtract", "Multiply", "Divide", "TrueDivide"):
        return ANYTHING
    first, second = call.arguments["x1"], call.arguments["x2"]
    if len(inputs) == 2:
        if name == "Add":
            return sum(low for low, _ in inputs), sum(high for _, high in inputs)
        return _difference(call, inputs) if name == "Subtract" else ANYTHING
    one, zero = np.ones(()), np.zeros(())
    if isinstance(first, keras.KerasTensor):
        array = to_float64(second)
        if name in ("Add", "Subtract"):
            return _affine(inputs[0], one, array if name == "Add" else -array)
        if name == "Multiply" or not np.any(array == 0):
            return _affine(inputs[0], array if name == "Multiply" else 1 / array, zero)
        return ANYTHING
    array = to_float64(first)
    if name == "Multiply":
        return _affine(inputs[0], array, zero)
    return _affine(inputs[0], one if name == "Add" else -one, array) if name in ("Add", "Subtract") else ANYTHING


def _difference(call: Call, inputs: list[Interval]) -> Interval:
    """Returns the interval of one tensor less another."""
    if _is_above(*call.inputs):
        return _POSITIVE
    (low, high), (other_low, other_high) = inputs
    return low - other_high, high - other_low


def _factors_and_offsets(layer: Any) -> tuple[Array, Array]:
    """Returns what a normalization with fixed statistics multiplies by and adds."""
    if isinstance(layer, layers.Normalization):
        mean, deviation = to_float64(layer.mean), np.sqrt(to_float64(layer.variance))
        deviation = np.maximum(deviation, keras.backend.epsilon())
        return (deviation, mean) if layer.invert else (1 / deviation, -mean / deviation)
    factors = 1 / np.sqrt(to_float64(layer.moving_variance) + layer.epsilon)
    if layer.gamma is not None:
        factors = factors * to_float64(layer.gamma)
    offsets = -factors * to_float64(layer.moving_mean)
    return factors, offsets if layer.beta is None else offsets + to_float64(layer.beta)


def _activated(layer: Any, interval: Interval) -> Interval:
    """Returns what becomes of an interval by the activation of a layer, or the layer that is one."""
    activation = getattr(layer, "activation", None)
    if isinstance(activation, layers.Layer):
        return _activated(activation, interval)
    kind = type(layer)
    if activation is not None:
        return _function(getattr(activation, "__name__", ""), interval)
    if kind is layers.ReLU:
        top = math.inf if layer.max_value is None else float(layer.max_value)
        low, high = _function("relu" if not layer.negative_slope else "leaky_relu", interval)
        return low, min(high, top)
    if kind is layers.LeakyReLU or kind is layers.ELU:
        is_elu = kind is layers.ELU
        return _bent(layer.alpha if is_elu else layer.negative_slope, interval, limited=is_elu)
    names = {layers.Softmax: "softmax", layers.Dense: "linear"}
    return _function(names.get(kind, ""), interval)


def _bent(slopes: Any, interval: Interval, limited: bool = False) -> Interval:
    """Returns what becomes of an interval where values below 0 get other slopes, down to a limit if `limited`."""
    if interval[0] >= 0:
        return interval
    slopes = np.asarray(slopes, np.float64)
    if np.all(slopes <= 0):
        return _POSITIVE
    low = -float(np.max(slopes)) if limited else -math.inf
    return low, 0.0 if interval[1] <= 0 and np.all(slopes >= 0) else math.inf


def _function(name: str, interval: Interval) -> Interval:
    if name == "linear":
        return interval
    low, high = _VALUES.get(name, ANYTHING)
    if name in _KEEP_SIGNS or name in ("relu", "relu6"):
        low, high = (max(low, 0.0) if interval[0] >= 0 else low), (min(high, 0.0) if interval[1] <= 0 else high)
    return low, high


def _affine(interval: Interval, factors: Array, offsets: Array) -> Interval:
    """Returns the interval of `factor * x + offset`, with the factor and the offset of each channel together."""
    if 1 not in (factors.size, offsets.size) and factors.shape != offsets.shape:
        return ANYTHING
    pairs = zip(
        *(array.reshape(-1) for array in np.broadcast_arrays(factors.squeeze(), offsets.squeeze())), strict=True
    )
    ends = [_times(factor, end) + float(offset) for factor, offset in pairs for end in interval]
    return min(ends), max(ends)


def _times(factor: float, end: float) -> float:
    return 0.0 if factor == 0 else float(factor) * end


def _kernels(layer: Any) -> list[Array]:
    """Returns what a linear layer multiplies by, one after the other, with an output channel a column."""
    kind = type(layer)
    if kind is layers.Dense or kind in _CONVOLUTIONS:
        kernels = [to_float64(layer.kernel)]
    elif kind in _TRANSPOSED:
        kernels = [np.swapaxes(to_float64(layer.kernel), -1, -2)]
    elif kind in _DEPTHWISE:
        kernels = [_joined_channels(layer.kernel)]
    elif kind in _SEPARABLE:
        kernels = [_joined_channels(layer.depthwise_kernel), to_float64(layer.pointwise_kernel)]
    else:
        kernels = []
    return [kernel.reshape(-1, kernel.shape[-1]) for kernel in kernels]


def _joined_channels(kernel: Any) -> Array:
    """Returns a depthwise kernel with its inputs and multiples on one axis."""
    array = to_float64(kernel)
    return array.reshape(*array.shape[:-2], -1)


def _linear(kernel: Array, bias: Any, interval: Interval) -> Interval:
    """Returns the interval of sums of values by a kernel's columns. If it holds 0, terms may be missing."""
    offsets = np.zeros(kernel.shape[1]) if bias is None else to_float64(bias)
    positive, negative = np.sum(np.maximum(kernel, 0), axis=0), np.sum(np.minimum(kernel, 0), axis=0)
    ends = [
        [
            _times(up, top) + _times(down, bottom) + own
            for up, down, own in zip(positive, negative, offsets, strict=True)
        ]
        for bottom, top in (interval, interval[::-1])
    ]
    return min(ends[1]), max(ends[0])


def _extremum(call: Call, inputs: list[Interval], largest: bool) -> Interval:
    if len(call.inputs) == 2 and (_is_negative_of(*call.inputs) or _is_negative_of(*call.inputs[::-1])):
        return _POSITIVE if largest else (-math.inf, 0.0)  # an absolute value
    intervals = [*inputs]
    for part in call.parts:
        if not isinstance(part, keras.KerasTensor):
            intervals.append((float(np.min(part.value)), float(np.max(part.value))))
    choose: Callable[..., float] = max if largest else min
    return choose(low for low, _ in intervals), choose(high for _, high in intervals)


def _is_negative_of(tensor: Any, other: Any) -> bool:
    call = producer(tensor)
    if call is None or not call.inputs or call.inputs[0] is not other:
        return False
    if isinstance(call.operation, layers.Rescaling):
        return bool(np.all(np.asarray(call.operation.scale) == -1) and np.all(np.asarray(call.operation.offset) == 0))
    if is_op(call.operation, "Multiply") and len(call.inputs) == 1:
        return any(bool(np.all(part.value == -1)) for part in call.parts if isinstance(part, Constant))
    return is_op(call.operation, "Negative")


def _holds_a_negative(tensor: Any) -> bool:
    """Whether a tensor is joined of two, one of which is the other's negative, with nothing else."""
    call = producer(tensor)
    if call is None:
        return False
    joins = is_op(call.operation, "Concatenate") or is_op(call.operation, "Stack")
    if not joins and type(call.operation) is not layers.Concatenate:
        return False
    pair = call.inputs
    return len(pair) == len(call.parts) == 2 and (_is_negative_of(*pair) or _is_negative_of(*pair[::-1]))


def _is_above(tensor: Any, other: Any) -> bool:
    """Whether a tensor is a function of another one that is nowhere below it, such as its relu."""
    call = producer(tensor)
    if call is None or len(call.inputs) != 1 or call.inputs[0] is not other:
        return False
    operation = call.operation
    if is_op(operation):
        name = _OPS.get(type(operation).__name__, "")
    elif type(operation) is layers.ReLU and operation.max_value is None and not operation.threshold:
        name = "relu" if 0 <= operation.negative_slope <= 1 else ""
    elif type(operation) is layers.Activation:
        name = getattr(operation.activation, "__name__", "")
    else:
        name = ""
    return name in _ABOVE


def _union(intervals: list[Interval]) -> Interval:
    return min(low for low, _ in intervals), max(high for _, high in intervals)
