"""The registry of bound rules: one for each plain Keras layer or op.

A rule says what an operation does to its input, sample by sample, as a sequence of effects. Classes are matched
exactly: a subclass may compute anything.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import keras
import numpy as np
import numpy.typing as npt

from deel_like_lip._typing import Shape
from deel_like_lip.bounds.operators import Operator


class CannotBoundError(ValueError):
    """A model contains something that has no finite Lipschitz constant, or none that is known.

    The message names the layer. It is a `ValueError`.

    Example:
        >>> class Square(keras.layers.Layer):
        ...     def call(self, inputs):
        ...         return inputs**2
        >>> try:
        ...     certify(keras.Sequential([keras.Input((4,)), Square(name="square")]))
        ... except CannotBoundError as error:
        ...     print(error)
        `certify` cannot bound the layer 'square' of class Square: ...
    """


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

    @property
    def in_shape(self) -> Shape:
        """The shape of one sample of the input."""
        return tuple(self.inputs[0].shape[1:])

    @property
    def out_shape(self) -> Shape:
        """The shape of one sample of the output."""
        return tuple(self.outputs[0].shape[1:])

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


@dataclasses.dataclass(frozen=True)
class Effect:
    """What happens to one tensor: `f`, of which the Lipschitz constant is known.

    Attributes:
        constant: Upper bound of the constant of f, on the part of its input that it reads.
        operator: The linear operator, if f is one plus a constant.
        offset: Upper bound of |f(0)|, and of the sum of the absolute values of what is added to get there.
        roundings: How many roundings float32 arithmetic makes on the way to one output, besides those of the sums of
            the operator, each relative to the values that f gives; None if that is not known.
        underflow: What a result may lose, in l2, to underflow of what it is computed from.
        keeps_sizes: Whether sizes of the output that are not known are those of the input, axis by axis.
        monotone: Whether f acts on each value by itself and never decreases: its slopes lie in [0, constant].
    """

    constant: float
    operator: Operator | None = None
    offset: float = 0.0
    roundings: int | None = 0
    underflow: float = 0.0
    keeps_sizes: bool = False
    monotone: bool = False


def linear(operator: Operator, *, offset: float = 0.0, roundings: int = 0, keeps_sizes: bool = False) -> Effect:
    """Returns the effect of a linear operator and a bias of norm `offset`."""
    return Effect(operator.norm, operator, offset, roundings, keeps_sizes=keeps_sizes)


@dataclasses.dataclass(frozen=True)
class Combination:
    """How several inputs become one output.

    Attributes:
        kind: "sum" of the inputs times weights, element by element; "extremum", the largest or smallest, element by
            element; "concatenation" along an axis, in which no value is repeated.
        weights: Of a sum.
        axis: Of a concatenation: the axis of the sample, None where the inputs are stacked in another way.
        roundings: As those of an effect.
    """

    kind: Literal["sum", "extremum", "concatenation"]
    weights: tuple[float, ...] = ()
    axis: int | None = None
    roundings: int = 0


Rule = Callable[[Call], Sequence[Effect] | Combination]
_RULES: dict[Any, Rule] = {}
_Function = TypeVar("_Function", bound=Callable[..., Any])


def register_bound_rule(layer_class: type) -> Callable[[_Function], _Function]:
    """Registers how to bound a Keras layer with one input, as a decorator.

    The function takes the layer and the input's shape, and returns an upper bound of the layer's l2 Lipschitz constant
    at inference, for one sample. Certificates are as sound as this bound.

    Args:
        layer_class: The layer's class; subclasses are not covered.

    Returns:
        The decorator.

    Example:
        >>> class Halve(keras.layers.Layer):
        ...     def call(self, inputs):
        ...         return inputs / 2
        >>> @register_bound_rule(Halve)
        ... def halve(layer, input_shape):
        ...     return 0.5
        >>> certify(keras.Sequential([keras.Input((4,)), Halve()])).lipschitz_constant
        0.5
    """

    def register(function: _Function) -> _Function:
        _RULES[layer_class] = lambda call: [
            Effect(float(function(call.operation, call.input_shape)), roundings=None, offset=math.inf)
        ]
        return function

    return register


def rule(*keys: Any) -> Callable[[_Function], _Function]:
    """Registers a rule for layer classes, and for ops by the names of their classes, as a decorator."""

    def register(function: _Function) -> _Function:
        for key in keys:
            _RULES[key] = function
        return function

    return register


def apply_rule(call: Call) -> Sequence[Effect] | Combination:
    """Returns what a call does to its inputs.

    Raises:
        CannotBoundError: If there is no rule for the operation, or the rule refuses this call.
    """
    found = _RULES.get(_key(call.operation))
    if found is None:
        raise call.refuse(
            "there is no bound rule for it. Replace it by a layer that has one, or tell its constant with "
            "`deel_like_lip.bounds.register_bound_rule`."
        )
    refuse_training(call)
    result = found(call)
    if isinstance(result, Combination):
        return result
    if len(call.inputs) != 1:
        raise call.refuse(f"its bound rule is for a single input tensor, but it has {len(call.inputs)}.")
    for effect in result:
        if not math.isfinite(effect.constant) or effect.constant < 0:
            raise call.refuse(f"its bound is {effect.constant}, as with a kernel that holds NaN or infinite entries.")
    return result


def refuse_training(call: Call) -> None:
    """Raises if a layer or nested model is called in training mode, whatever the model is called with."""
    if call.kwargs.get("training"):
        raise call.refuse("the model calls it with `training=True`, and bounds are those of inference.")


def is_op(operation: Any, name: str | None = None) -> bool:
    """Whether an operation is an op of `keras.ops`, of that name. Keras does not export their classes."""
    kind = type(operation)
    return kind.__module__.startswith("keras.src.ops.") and name in (None, kind.__name__)


def weight(call: Call, variable: Any) -> npt.NDArray[np.float64]:
    """Returns a weight of a layer in float64.

    Raises:
        CannotBoundError: If it is quantized, or has a LoRA update.
    """
    layer = call.operation
    if getattr(layer, "lora_enabled", False):
        raise call.refuse("its kernel has a LoRA update. Merge that into the kernel first.")
    mode = getattr(layer, "quantization_mode", None)
    if mode is not None:
        raise call.refuse(
            f"it is quantized by the mode '{mode}'. Bounded are `Dense` layers of which the kernel alone is quantized "
            "to int8 or int4: leave this layer out, by the `filters` of `quantize`."
        )
    return to_float64(variable)


def to_float64(tensor: Any) -> npt.NDArray[np.float64]:
    """Returns a tensor as an array of float64."""
    array: npt.NDArray[np.float64] = keras.ops.convert_to_numpy(tensor).astype(np.float64)
    return array


def _key(operation: Any) -> Any:
    """Layers go by their class, ops by their name."""
    return type(operation).__name__ if is_op(operation) else type(operation)
