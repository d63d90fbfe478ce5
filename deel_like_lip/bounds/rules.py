"""The registry of bound rules: one for each plain Keras layer or op.

A rule says what an operation does to its input, sample by sample, as a sequence of effects. Classes are matched
exactly: a subclass may compute anything.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import keras
import numpy as np
import numpy.typing as npt

from deel_like_lip._keras import op_class
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


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """An array among the tensors that an operation combines."""

    value: npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of an operation in a model's graph.

    Attributes:
        operation: The layer or op.
        inputs: The tensors of the graph that it takes, in the order of its arguments.
        outputs: What it returns.
        arguments: Everything that it was called with, by the names of its arguments.
    """

    operation: Any
    inputs: Sequence[Any]  # KerasTensors
    outputs: Sequence[Any]
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)

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

    @property
    def parts(self) -> Sequence[Any]:
        """The tensors that it combines, in order: those of the graph, and a `Constant` for each array among them."""
        return [
            part if isinstance(part, keras.KerasTensor) else Constant(to_float64(part))
            for part in keras.tree.flatten(list(self.arguments.values()))
            if part is not None
        ]

    def refuse(self, reason: str) -> CannotBoundError:
        operation = self.operation
        return CannotBoundError(
            f"`certify` cannot bound the layer '{operation.name}' of class {type(operation).__name__}: {reason} "
            f"Received: an input of shape {self.input_shape if self.inputs else ()}"
        )

    def number(self, name: str) -> float:
        """Returns a number that the operation was made with.

        Raises:
            CannotBoundError: If it is something else, such as an array, which may repeat values to fit its shape.
        """
        value = getattr(self.operation, name)
        if np.ndim(value) or isinstance(value, keras.KerasTensor | keras.Variable):
            raise self.refuse(f"its `{name}` is an array, and the bound is known for a number.")
        return float(value)


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


@dataclasses.dataclass(frozen=True)
class Parts:
    """Several outputs, each by effects of its own.

    Attributes:
        effects: The effects of each output.
    """

    effects: Sequence[Sequence[Effect]]


Found = Sequence[Effect] | Combination | Parts
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Rule:
    """How to bound one class of layers or ops, and what the bound takes into account.

    Attributes:
        apply: From a call to what it does to its inputs.
        config: The entries of a layer's config, or the attributes of an op, that `apply` knows of. What is not among
            them is refused, so that a new argument of a later Keras is.
        arguments: The arguments of the call that `apply` knows of, besides the first.
        integers: Whether it may be called with integers, since it only moves them or makes floats of them.
        call: The method `call` of the class when the rule was made.
        built_in: Whether it comes with this library.
    """

    apply: Callable[[Call], Found]
    config: frozenset[str] | None
    arguments: frozenset[str]
    integers: bool
    call: Any
    built_in: bool


_RULES: dict[type, Rule] = {}


def register_bound_rule(layer_class: type) -> Callable[[_Function], _Function]:
    """Registers how to bound a Keras layer with one input, as a decorator.

    The function takes the layer and the input's shape, and returns an upper bound of the layer's l2 Lipschitz constant
    at inference, for one sample. Certificates are as sound as this bound.

    Args:
        layer_class: The layer's class; subclasses are not covered. It may have a rule from before, which is replaced,
            unless that comes with this library.

    Returns:
        The decorator.

    Raises:
        ValueError: If it is not a class of layers, or one that this library has a rule for.

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
    if not (isinstance(layer_class, type) and issubclass(layer_class, keras.layers.Layer)):
        raise ValueError(f"Expected `layer_class` to be a class of layers. Received: layer_class={layer_class!r}")
    own = _RULES.get(layer_class)
    if own is not None and own.built_in:
        raise ValueError(
            f"The class {layer_class.__name__} of Keras has a bound rule, which cannot be replaced. Write a class of "
            f"your own, derived from it, and register that. Received: layer_class={layer_class!r}"
        )

    def register(function: _Function) -> _Function:
        def apply(call: Call) -> Sequence[Effect]:
            try:
                constant = float(function(call.operation, call.input_shape))
            except Exception as error:
                raise call.refuse(
                    f"the rule that was registered for it raised {type(error).__name__}: {error}."
                ) from error
            return [Effect(constant, roundings=None, offset=math.inf)]

        own_call: Any = getattr(layer_class, "call", None)
        _RULES[layer_class] = Rule(apply, None, frozenset(), False, own_call, built_in=False)
        return function

    return register


def unregister_bound_rule(layer_class: type) -> None:
    """Takes back what `register_bound_rule` did for a class of layers.

    Args:
        layer_class: The class.

    Raises:
        ValueError: If there is no rule for it, or the rule comes with this library.

    Example:
        >>> class Third(keras.layers.Layer):
        ...     def call(self, inputs):
        ...         return inputs / 3
        >>> _ = register_bound_rule(Third)(lambda layer, input_shape: 1 / 3)
        >>> unregister_bound_rule(Third)
    """
    own = _RULES.get(layer_class)
    if own is None or own.built_in:
        raise ValueError(f"Expected a class that a rule was registered for. Received: layer_class={layer_class!r}")
    del _RULES[layer_class]


def rule(
    *keys: type | str, config: str = "", arguments: str = "", integers: bool = False
) -> Callable[[_Function], _Function]:
    """Registers a rule, as a decorator.

    Args:
        *keys: Classes of layers, and names of classes of ops. Names that this version of Keras lacks are left out.
        config: As in `Rule`, separated by spaces.
        arguments: As in `Rule`, separated by spaces.
        integers: As in `Rule`.
    """

    def register(function: _Function) -> _Function:
        for key in keys:
            kind = op_class(key) if isinstance(key, str) else key
            if kind is not None:
                own_call: Any = getattr(kind, "call", None)
                _RULES[kind] = Rule(
                    function, frozenset(config.split()), frozenset(arguments.split()), integers, own_call, built_in=True
                )
        return function

    return register


def rule_of(operation: Any) -> Rule | None:
    """Returns the rule of an operation, by its exact class, or None."""
    return _RULES.get(type(operation))


def apply_rule(call: Call) -> Found:
    """Returns what a call, which has been admitted, does to its inputs.

    Raises:
        CannotBoundError: If the rule refuses this call.
    """
    found = rule_of(call.operation)
    assert found is not None  # the gate has seen to it
    try:
        result = found.apply(call)
    except CannotBoundError:
        raise
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise call.refuse(f"its bound rule does not cover this call ({type(error).__name__}: {error}).") from error
    if isinstance(result, Combination):
        return result
    if len(call.inputs) != 1:
        raise call.refuse(f"its bound rule is for a single input tensor, but it has {len(call.inputs)}.")
    for effect in (
        effect for effects in (result.effects if isinstance(result, Parts) else [result]) for effect in effects
    ):
        if not math.isfinite(effect.constant) or effect.constant < 0:
            raise call.refuse(f"its bound is {effect.constant}, as with a kernel that holds NaN or infinite entries.")
    return result


def is_op(operation: Any, name: str | None = None) -> bool:
    """Whether an operation is an op of `keras.ops`, of that name, rather than a layer."""
    if name is None:
        return not isinstance(operation, keras.layers.Layer)
    return type(operation) is op_class(name)


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
