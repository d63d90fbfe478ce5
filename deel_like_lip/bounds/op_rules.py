"""Bound rules for the ops of `keras.ops`, which functional models contain as they are."""

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from deel_like_lip._geometry import entries
from deel_like_lip.bounds.activations import Activation, exponential_unit, known_activation, rectifier
from deel_like_lip.bounds.admission import is_float32
from deel_like_lip.bounds.layer_rules import (
    activation_effects,
    average_pooling,
    max_pooling,
    not_the_batch,
    picked,
    repeats_values,
    scaled,
    spread_norm,
)
from deel_like_lip.bounds.operators import Pick, Separable, mean_matrix
from deel_like_lip.bounds.rounding import EPSILON, FLOAT32_UNDERFLOW, sum_up, up
from deel_like_lip.bounds.rules import Call, Combination, Effect, Parts, is_op, linear, rule

Effects = Sequence[Effect]
Array = npt.NDArray[np.float64]

# --- activations -----------------------------------------------------------------------------------------------------

_ACTIVATIONS = {
    "Relu": "relu",
    "Relu6": "relu6",
    "Sigmoid": "sigmoid",
    "SparseSigmoid": "sparse_sigmoid",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "SoftShrink": "soft_shrink",
    "SparsePlus": "sparse_plus",
    "Silu": "silu",
    "Squareplus": "squareplus",
    "LogSigmoid": "log_sigmoid",
    "HardSigmoid": "hard_sigmoid",
    "HardSilu": "hard_silu",
    "Selu": "selu",
    "Gelu": "gelu",
    "Celu": "celu",
    "TanhShrink": "tanh_shrink",
    "HardTanh": "hard_tanh",
    "Tanh": "tanh",
}


@rule(*_ACTIVATIONS, config="alpha b threshold approximate")
def _activation(call: Call) -> Effects:
    name = _ACTIVATIONS[type(call.operation).__name__]
    for parameter, least in (("alpha", FLOAT32_UNDERFLOW), ("b", 0.0), ("threshold", 0.0)):
        # Of celu, squareplus and soft_shrink, which otherwise have no finite constant.
        if hasattr(call.operation, parameter) and not call.number(parameter) >= least:
            raise call.refuse(f"with a negative `{parameter}` it has no finite Lipschitz constant.")
    return activation_effects(call, known_activation(name), name)


@rule("LeakyRelu", config="negative_slope")
def _leaky_relu(call: Call) -> Effects:
    return activation_effects(call, rectifier(call.number("negative_slope")), "leaky_relu")


@rule("Elu", config="alpha")
def _elu(call: Call) -> Effects:
    return activation_effects(call, exponential_unit(call.number("alpha")), "elu")


@rule("Softmax", config="axis")
def _softmax(call: Call) -> Effects:
    axis = call.operation.axis
    if not isinstance(axis, int):
        raise call.refuse("this activation has no known Lipschitz constant.")
    not_the_batch(call, axis, "normalises")
    return activation_effects(call, known_activation("softmax"), "softmax")


@rule("Sin", "Cos", "Arctan", "Arcsinh")
def _slope_one(call: Call) -> Effects:
    return activation_effects(call, Activation(1.0), "")


@rule("Erf")
def _erf(call: Call) -> Effects:
    return activation_effects(call, Activation(up(2 / math.sqrt(math.pi))), "")


@rule("Absolute", "Abs", "Fabs")
def _absolute(call: Call) -> Effects:
    return [Effect(1.0, keeps_sizes=True)]


@rule("Clip", config="x_min x_max")
def _clip(call: Call) -> Effects:
    low, high = (_operand(call, limit) for limit in (call.operation.x_min, call.operation.x_max))
    return [limited(call, np.clip(np.zeros(()), low, high), low, high)]


def limited(call: Call, nearest: Array, *limits: Array) -> Effect:
    """Returns the effect of a minimum or maximum with constants, where `nearest` is what becomes of 0."""
    # A model holds float32 values of the constants.
    rounded = [limit.astype(np.float32).astype(np.float64) - limit for limit in limits]
    lost = sum_up(spread_norm(call, difference) for difference in rounded)
    return Effect(1.0, offset=spread_norm(call, nearest), underflow=lost, keeps_sizes=True)


@rule("Sort", config="axis")
def _sort(call: Call) -> Effects:
    axis = call.operation.axis
    if not isinstance(axis, int):
        raise call.refuse("it sorts across samples.")
    not_the_batch(call, axis, "sorts")
    return [Effect(1.0, keeps_sizes=True)]


# --- arithmetic with constants, and of two tensors -------------------------------------------------------------------


def _constant(call: Call, value: Any) -> Array:
    """Returns a constant in float64."""
    if isinstance(value, (keras.KerasTensor, keras.Variable)) or value is None:
        raise call.refuse("it takes something that is neither a tensor of the model nor a constant.")
    array: Array = np.asarray(keras.ops.convert_to_numpy(value), dtype=np.float64)
    if not is_float32(array):
        raise call.refuse("a constant in it is not finite, in float32.")
    return array


def operands(call: Call) -> tuple[Array | None, Array | None]:
    """Returns the two operands of an op, None for tensors, and constants without their batch axis."""
    values = call.arguments["x1"], call.arguments["x2"]
    first, second = (None if isinstance(value, keras.KerasTensor) else _operand(call, value) for value in values)
    return first, second


def _operand(call: Call, value: Any) -> Array:
    array = _constant(call, value)
    sample = array[0] if array.shape[:1] == (1,) and array.ndim == len(call.input_shape) else array
    if repeats_values(call, sample):
        raise call.refuse(f"it repeats values to fit a constant of shape {array.shape}.")
    return sample


@rule("Add", "Subtract", arguments="x2")
def _add(call: Call) -> Effects | Combination:
    sign = 1.0 if type(call.operation).__name__ == "Add" else -1.0
    first, second = operands(call)
    if first is None and second is None:
        return Combination("sum", (1.0, sign), roundings=1)
    factor = np.array(sign if first is not None else 1.0)
    added = first if first is not None else second
    assert added is not None
    return [scaled(call, factor, added, roundings=1, keeps_sizes=True)]


@rule("Negative")
def _negative(call: Call) -> Effects:
    return [scaled(call, np.array(-1.0), np.zeros(()), roundings=0, keeps_sizes=True)]


@rule("Multiply", arguments="x2")
def _multiply(call: Call) -> Effects:
    first, second = operands(call)
    factors = first if first is not None else second
    if factors is None:
        raise call.refuse("the product of two tensors has no finite Lipschitz constant.")
    return [scaled(call, factors, np.zeros(()), roundings=1, keeps_sizes=True)]


@rule("Divide", "TrueDivide", arguments="x2")
def _divide(call: Call) -> Effects:
    first, second = operands(call)
    if first is not None or second is None or np.any(second == 0):
        raise call.refuse("only division by constants that are not 0 has a finite Lipschitz constant.")
    factors = 1 / second
    return [scaled(call, factors, np.zeros(()), error=2 * EPSILON, roundings=2, keeps_sizes=True)]


@rule("Maximum", "Minimum", arguments="x2")
def _extremum(call: Call) -> Effects | Combination:
    first, second = operands(call)
    if first is None and second is None:
        return Combination("extremum")
    other = first if first is not None else second
    assert other is not None
    return [limited(call, other, other)]


@rule("Square", "Sqrt")
def _no_constant(call: Call) -> Effects:
    raise call.refuse("on its own it has no finite Lipschitz constant. As a part of an l2 norm it has one.")


# --- reductions ------------------------------------------------------------------------------------------------------


def reduced_axes(call: Call) -> list[int]:
    """Returns the axes of a sample that an op reduces."""
    axis = call.operation.axis
    rank = len(call.input_shape)
    if axis is None:
        raise call.refuse("it reduces over samples.")
    axes = sorted({int(one) % rank for one in (axis if isinstance(axis, (list, tuple)) else [axis])})
    if 0 in axes:
        raise call.refuse("it reduces over samples.")
    return [one - 1 for one in axes]


@rule("Mean", "Sum", config="axis keepdims")
def _mean(call: Call) -> Effects:
    axes = reduced_axes(call)
    if any(call.in_shape[axis] is None for axis in axes):
        raise call.refuse("its constant depends on the size of its input, which is not known.")
    matrices = {axis: mean_matrix(call.in_shape[axis] or 0) for axis in axes}
    if type(call.operation).__name__ == "Sum":
        matrices = {axis: np.ones_like(matrix) for axis, matrix in matrices.items()}
    return [linear(Separable(call.in_shape, call.out_shape, matrices, drop=not call.operation.keepdims), roundings=4)]


@rule("Max", "Min", "Amax", "Amin", config="axis keepdims initial")
def _largest(call: Call) -> Effects:
    reduced_axes(call)
    if getattr(call.operation, "initial", None) is not None:
        raise call.refuse("it has an initial value.")
    return [Effect(1.0)]


# --- ops that move values --------------------------------------------------------------------------------------------


@rule("Norm", config="ord axis keepdims")
def _norm(call: Call) -> Effects:
    reduced_axes(call)
    if call.operation.ord not in (None, 2, "fro") or (call.operation.ord == 2 and len(call.operation.axis) > 1):
        raise call.refuse(f"there is no bound for the norm of order {call.operation.ord!r}.")
    # Each slice is 1-Lipschitz, and slices share no value.
    return [Effect(1.0, roundings=None, offset=math.inf)]


@rule("Logsumexp", config="axis keepdims")
def _logsumexp(call: Call) -> Effects:
    # The gradient is a softmax, of norm at most 1.
    reduced_axes(call)
    return [Effect(1.0, roundings=None, offset=math.inf)]


@rule("MaxPool", "AveragePool", config="pool_size strides padding data_format")
def _pool(call: Call) -> Effects:
    operation = call.operation
    rank = len(call.in_shape) - 1
    windows, strides = (
        (value,) * rank if isinstance(value, int) else tuple(value)
        for value in (operation.pool_size, operation.strides or operation.pool_size)
    )
    layer = types.SimpleNamespace(
        name=operation.name,
        pool_size=windows,
        strides=strides,
        padding=operation.padding,
        data_format=operation.data_format or keras.config.image_data_format(),
    )
    pooling = max_pooling if type(operation).__name__ == "MaxPool" else average_pooling
    return pooling(dataclasses.replace(call, operation=layer))


@rule("Cast", config="dtype", integers=True)
def _cast(call: Call) -> Effects:
    if call.operation.dtype not in ("float32", "float64"):
        raise call.refuse(f"it rounds to the type {call.operation.dtype}.")
    return []


@rule("Copy", "StopGradient")
def _nothing(call: Call) -> Effects:
    return []


@rule("DepthToSpace", "SpaceToDepth", config="block_size data_format")
def _permutation(call: Call) -> Effects:
    return picked(call, None)


@rule("Reshape", config="newshape", integers=True)
def _reshape(call: Call) -> Effects:
    before, after = entries(call.in_shape), entries(call.out_shape)
    if before is None or before != after:
        raise call.refuse("it is not certain that it keeps the values of each sample together.")
    return picked(call, lambda array: array.reshape(-1, *call.out_shape))


def _moved(function: Callable[[Call], Callable[[Any], Any]]) -> Callable[[Call], Effects]:
    """Makes a rule from a function that gives an op's effect on NumPy arrays."""

    def apply(call: Call) -> Effects:
        if None in call.in_shape:
            raise call.refuse("it moves values of an input of which the size is not known.")
        return picked(call, function(call))

    return apply


rule("Transpose", config="axes", integers=True)(
    _moved(lambda call: lambda array: np.transpose(array, call.operation.axes))
)
rule("Squeeze", config="axis", integers=True)(_moved(lambda call: lambda array: np.squeeze(array, call.operation.axis)))
rule("ExpandDims", config="axis", integers=True)(
    _moved(lambda call: lambda array: np.expand_dims(array, call.operation.axis))
)

rule("Flip", config="axis")(_moved(lambda call: lambda array: np.flip(array, call.operation.axis)))
rule("Repeat", config="repeats axis")(
    _moved(lambda call: lambda array: np.repeat(array, call.operation.repeats, call.operation.axis))
)
rule("Tile", config="repeats")(_moved(lambda call: lambda array: np.tile(array, call.operation.repeats)))
rule("Swapaxes", config="axis1 axis2")(
    _moved(lambda call: lambda array: np.swapaxes(array, call.operation.axis1, call.operation.axis2))
)


@rule("Roll", config="shift axis")
def _roll(call: Call) -> Effects:
    shift, axis = call.operation.shift, call.operation.axis
    if axis is None or any(one % len(call.input_shape) == 0 for one in np.ravel(axis)):
        raise call.refuse("it moves values from one sample to another.")
    return _moved(lambda call: lambda array: np.roll(array, shift, axis))(call)


@rule("Moveaxis", config="source destination", integers=True)
def _move_axis(call: Call) -> Effects:
    source, destination = call.operation.source, call.operation.destination
    rank = len(call.input_shape)
    if None in call.in_shape and all(axis % rank for axis in np.ravel([source, destination])):
        return picked(call, None)
    return _moved(lambda call: lambda array: np.moveaxis(array, source, destination))(call)


@rule("Take", config="axis", arguments="indices", integers=True)
def _take(call: Call) -> Effects:
    indices = _constant(call, call.arguments["indices"]).astype(np.int64)
    axis = call.operation.axis
    if axis is None or axis % len(call.input_shape) == 0:
        raise call.refuse("it takes from among samples.")
    size = call.input_shape[axis]
    if size is None or np.any(indices < -size) or np.any(indices >= size):
        raise call.refuse("it takes values from an axis of which the size is not known, or from outside of it.")
    if None in call.in_shape:
        repeats = int(np.max(np.bincount(indices.reshape(-1) % size), initial=0))
        return picked(call, None, repeats, keeps_sizes=True)
    return _moved(lambda call: lambda array: np.take(array, indices, axis))(call)


@rule("GetItem", arguments="key", integers=True)
def _get_item(call: Call) -> Effects:
    key = call.arguments["key"]
    parts = key if isinstance(key, (tuple, list)) else (key,)
    ends = [end for part in parts if isinstance(part, slice) for end in (part.start, part.stop, part.step)]
    if not all(type(end) in (int, type(None)) for end in ends) or not all(
        type(part) in (int, slice, type(None), type(Ellipsis)) for part in parts
    ):
        raise call.refuse("it takes values by an index that is not constant.")
    if not parts or parts[0] not in (slice(None), Ellipsis):
        raise call.refuse("it takes from among samples: the first index is to be a colon.")
    return _moved(lambda call: lambda array: array[tuple(parts)])(call)


@rule("Pad", config="pad_width mode", arguments="constant_values", integers=True)
def _pad(call: Call) -> Effects:
    operation = call.operation
    if operation.mode == "constant" and np.any(_constant(call, call.arguments.get("constant_values") or 0) != 0):
        raise call.refuse("it pads with values that are not 0.")
    widths = [tuple(pair) for pair in operation.pad_width]
    if len(widths) != len(call.input_shape) or widths[0] != (0, 0):
        raise call.refuse("it pads the batch.")
    if operation.mode == "constant" and None in call.in_shape:
        return picked(call, None)
    options = {"constant_values": -1} if operation.mode == "constant" else {}
    effects = _moved(lambda call: lambda array: np.pad(array, operation.pad_width, operation.mode, **options))(call)
    if operation.mode != "symmetric" or np.max(operation.pad_width, initial=0) < 2:
        return effects
    # Keras on torch repeats the edge instead. What is certified on one backend may be served by another.
    repeated = _moved(lambda call: lambda array: np.pad(array, operation.pad_width, "edge"))(call)
    return [Effect(max(effect.constant for effect in (*effects, *repeated)))]


@rule("Split", "Unstack", config="axis indices_or_sections num", integers=True)
def _split(call: Call) -> Parts:
    axis = call.operation.axis
    not_the_batch(call, axis, "splits")
    if None in call.in_shape:
        return Parts([[linear(Pick(call.in_shape, tuple(output.shape[1:])))] for output in call.outputs])
    if is_op(call.operation, "Split"):
        sections = call.operation.indices_or_sections

        def part(array: Any, index: int) -> Any:
            return np.split(array, sections, axis)[index]
    else:

        def part(array: Any, index: int) -> Any:
            return np.moveaxis(array, axis, 0)[index]

    return Parts(
        [
            picked(dataclasses.replace(call, outputs=[output]), functools.partial(part, index=index))
            for index, output in enumerate(call.outputs)
        ]
    )


@rule("Concatenate", config="axis", integers=True)
def _concatenate(call: Call) -> Combination:
    axis = call.operation.axis
    if axis is None or axis % len(call.input_shape) == 0:
        raise call.refuse("it joins batches.")
    return Combination("concatenation", axis=axis % len(call.input_shape) - 1)


@rule("Stack", config="axis", integers=True)
def _stack(call: Call) -> Combination:
    if call.operation.axis % (len(call.input_shape) + 1) == 0:
        raise call.refuse("it joins batches.")
    return Combination("concatenation")
