"""One bound rule for each plain Keras layer or op, in a registry.

A rule says how far an operation can take its inputs apart, in l2 and sample by sample. Classes are matched exactly: a
subclass may compute anything.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import keras
import numpy as np
import numpy.typing as npt

from deel_like_lip._geometry import max_overlap
from deel_like_lip._typing import Shape
from deel_like_lip.bounds.activations import activation_constant
from deel_like_lip.bounds.convolution import convolution_bound
from deel_like_lip.bounds.linear import spectral_norm_bound
from deel_like_lip.bounds.rounding import product_up, root_sum_of_squares_up, root_up, sum_up, up


class CannotBoundError(ValueError):
    """A model contains something that has no finite Lipschitz constant, or none that is known."""


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of an operation in a model's graph."""

    operation: Any
    inputs: Sequence[Any]  # KerasTensors
    outputs: Sequence[Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def input_shape(self) -> Shape:
        return tuple(self.inputs[0].shape)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Returns an argument of the call that may have been given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def refuse(self, reason: str) -> CannotBoundError:
        operation = self.operation
        return CannotBoundError(
            f"`certify` cannot bound the layer '{operation.name}' of class {type(operation).__name__}: {reason} "
            f"Received: an input of shape {self.input_shape if self.inputs else ()}"
        )


def as_call(node: Any) -> Call:
    """Makes a `Call` of a Keras node."""
    return Call(node.operation, node.input_tensors, node.outputs, node.arguments.args, node.arguments.kwargs)


# From the call and the constants of its inputs to the constant of its outputs.
Rule = Callable[[Call, Sequence[float]], float]
_RULES: dict[Any, Rule] = {}
_Function = TypeVar("_Function", bound=Callable[..., Any])


def register_bound_rule(layer_class: type) -> Callable[[_Function], _Function]:
    """Registers how to bound a Keras layer with one input, as a decorator.

    The function takes the layer and the input's shape, and returns an upper bound of the layer's l2 Lipschitz constant
    at inference, for one sample. Certificates are as sound as this bound.

    Args:
        layer_class: The layer's class; subclasses are not covered.

    Example:
        >>> @register_bound_rule(Halve)
        ... def halve(layer, input_shape):
        ...     return 0.5
    """

    def register(function: _Function) -> _Function:
        _RULES[layer_class] = _factor_rule(lambda call: float(function(call.operation, call.input_shape)))
        return function

    return register


def apply_rule(call: Call, constants: Sequence[float]) -> float:
    """Returns the constant of a call's outputs, given those of its inputs.

    Raises:
        CannotBoundError: If there is no rule for the operation, or the rule refuses this call.
    """
    rule = _RULES.get(_key(call.operation))
    if rule is None:
        raise call.refuse(
            "there is no bound rule for it. Replace it by a layer that has one, or tell its constant with "
            "`deel_like_lip.bounds.register_bound_rule`."
        )
    if call.kwargs.get("training"):
        raise call.refuse("the model calls it with `training=True`, and bounds are those of inference.")
    constant = rule(call, constants)
    if not math.isfinite(constant) or constant < 0:
        raise call.refuse(f"its bound is {constant}, as with a kernel that holds NaN or infinite entries.")
    return constant


def is_op(operation: Any, name: str | None = None) -> bool:
    """Whether an operation is an op of `keras.ops`, of that name. Keras does not export their classes."""
    kind = type(operation)
    return kind.__module__.startswith("keras.src.ops.") and name in (None, kind.__name__)


def _key(operation: Any) -> Any:
    """Layers go by their class, ops by their name."""
    return type(operation).__name__ if is_op(operation) else type(operation)


def _factor_rule(factor: Callable[[Call], float]) -> Rule:
    """Makes a rule from the constant of an operation with one input."""

    def rule(call: Call, constants: Sequence[float]) -> float:
        if len(constants) != 1:
            raise call.refuse(f"its bound rule is for a single input tensor, but it has {len(constants)}.")
        return product_up(factor(call), constants[0])

    return rule


def _factor(*keys: Any) -> Callable[[_Function], _Function]:
    def register(function: _Function) -> _Function:
        for key in keys:
            _RULES[key] = _factor_rule(function)
        return function

    return register


def _rule(*keys: Any) -> Callable[[_Function], _Function]:
    def register(function: _Function) -> _Function:
        for key in keys:
            _RULES[key] = function
        return function

    return register


layers = keras.layers


# --- linear layers ---------------------------------------------------------------------------------------------------


def plain_kernel(call: Call) -> npt.NDArray[np.float64]:
    """Returns the kernel of a layer in float64."""
    layer = call.operation
    if getattr(layer, "quantization_mode", None) is not None or getattr(layer, "lora_enabled", False):
        raise call.refuse("its kernel is quantized or has a LoRA update. Merge or dequantize it first.")
    return keras.ops.convert_to_numpy(layer.kernel).astype(np.float64)


def _activation(call: Call) -> float:
    activation = call.operation.activation
    constant = activation_constant(activation)
    if constant is None:
        name = getattr(activation, "__name__", type(activation).__name__)
        raise call.refuse(f"the activation '{name}' has no known Lipschitz constant.")
    return constant


@_factor(layers.Dense)
def _dense(call: Call) -> float:
    # With more than two axes the kernel acts on each position by itself, which leaves its norm as it is.
    return product_up(spectral_norm_bound(plain_kernel(call)), _activation(call))


@_factor(layers.Conv2D)
def _convolution(call: Call) -> float:
    layer = call.operation
    bound = convolution_bound(plain_kernel(call), layer.strides, layer.dilation_rate, layer.groups)
    return product_up(bound, _activation(call))


# --- pooling ---------------------------------------------------------------------------------------------------------


@_factor(layers.MaxPooling2D)
def _max_pooling(call: Call) -> float:
    # Each output moves by at most the l2 norm of the change under its window.
    return root_up(max_overlap(call.operation.pool_size, call.operation.strides))


@_factor(layers.AveragePooling2D)
def _average_pooling(call: Call) -> float:
    layer = call.operation
    overlap = max_overlap(layer.pool_size, layer.strides)
    if layer.padding == "valid":
        return root_up(up(overlap / math.prod(layer.pool_size)))
    return root_up(overlap)  # a window at the edge may average over as little as one value


@_factor(layers.GlobalMaxPooling2D)
def _global_max_pooling(call: Call) -> float:
    return 1.0


@_factor(layers.GlobalAveragePooling2D)
def _global_average_pooling(call: Call) -> float:
    return root_up(up(1 / image_area(call)))


def image_area(call: Call) -> int:
    """Returns the number of positions of the images that a 2D layer takes."""
    shape = call.input_shape
    height, width = shape[1:3] if call.operation.data_format == "channels_last" else shape[2:4]
    if height is None or width is None:
        raise call.refuse("its constant depends on the height and width of its input, which are not known.")
    return height * width


# --- activations -----------------------------------------------------------------------------------------------------


@_factor(layers.Activation, layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Softmax)
def _activation_layer(call: Call) -> float:
    if type(call.operation) is layers.Softmax and call.operation.axis % len(call.input_shape) == 0:
        raise call.refuse("it normalises across samples.")
    constant = activation_constant(call.operation)
    if constant is None:
        raise call.refuse("this activation has no known Lipschitz constant.")
    return constant


@_factor("Relu", "Absolute", "Negative")
def _elementwise(call: Call) -> float:
    return 1.0


@_factor("Sort")
def _sort(call: Call) -> float:
    axis = call.operation.axis
    if not isinstance(axis, int) or axis % len(call.input_shape) == 0:
        raise call.refuse("it sorts across samples.")
    return 1.0


# --- layers that move values, or scale them --------------------------------------------------------------------------


@_factor(
    layers.Flatten,
    layers.Reshape,
    layers.Permute,
    layers.Identity,
    layers.ZeroPadding2D,
    layers.Cropping2D,
    layers.Dropout,
    layers.SpatialDropout2D,
    layers.GaussianNoise,
    layers.GaussianDropout,
)
def _unit(call: Call) -> float:
    return 1.0  # at inference


@_factor("Reshape")
def _reshape(call: Call) -> float:
    before, after = (
        math.prod(size or 0 for size in tuple(tensor.shape)[1:]) for tensor in (*call.inputs, *call.outputs)
    )
    if before == 0 or before != after:
        raise call.refuse("it is not certain that it keeps the values of each sample together.")
    return 1.0


@_factor("Split")
def _split(call: Call) -> float:
    if call.operation.axis % len(call.input_shape) == 0:
        raise call.refuse("it splits the batch.")
    return 1.0  # of each part by itself


@_factor(layers.Rescaling)
def _rescaling(call: Call) -> float:
    sizes = call.input_shape[:0:-1]
    for array in (np.asarray(call.operation.scale), np.asarray(call.operation.offset)):
        # (Keras states the input's shape as the output's even where the scale repeats values.)
        fits = all(own in (1, size) for own, size in zip(array.shape[::-1], sizes, strict=False))
        if array.ndim > len(sizes) or not fits:
            raise call.refuse(f"it repeats values to fit its scale or offset, of shape {array.shape}.")
    return float(np.max(np.abs(np.asarray(call.operation.scale, dtype=np.float64))))


# --- several inputs --------------------------------------------------------------------------------------------------


def _same_shapes(call: Call) -> None:
    shapes = {tuple(tensor.shape) for tensor in [*call.inputs, *call.outputs]}
    if len(shapes) != 1:
        raise call.refuse(f"it repeats values to fit shapes to one another, {sorted(map(str, shapes))}.")


@_rule(layers.Add, layers.Subtract, "Add", "Subtract")
def _sum(call: Call, constants: Sequence[float]) -> float:
    _same_shapes(call)
    return sum_up(constants)


@_rule(layers.Average)
def _average(call: Call, constants: Sequence[float]) -> float:
    _same_shapes(call)
    return up(sum_up(constants) / len(constants))


@_rule(layers.Maximum, layers.Minimum, "Maximum", "Minimum")
def _extremum(call: Call, constants: Sequence[float]) -> float:
    _same_shapes(call)
    return root_sum_of_squares_up(constants)


@_rule(layers.Concatenate, "Concatenate")
def _concatenate(call: Call, constants: Sequence[float]) -> float:
    if call.operation.axis % len(call.input_shape) == 0:
        raise call.refuse("it joins batches.")
    return root_sum_of_squares_up(constants)
