"""Walks the graph of a functional model and composes the bounds of its operations."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from deel_like_lip.bounds.patterns import match_pattern
from deel_like_lip.bounds.rounding import product_up
from deel_like_lip.bounds.rules import Call, CannotBoundError, apply_rule, as_call, is_op, plain_kernel

# By how much a norm of a difference of two rows may be computed too small: sums of n terms, relative to the terms.
_PAIR_ROUNDING = 2.0**-52


@dataclasses.dataclass(frozen=True)
class LayerBound:
    """A line of the table of a certificate.

    Attributes:
        name: Name of the layer.
        kind: Its class.
        constant: Upper bound of its own Lipschitz constant, or of the operations that it stands for.
        up_to_here: Upper bound of the constant from the model's input to its output.
    """

    name: str
    kind: str
    constant: float
    up_to_here: float


@dataclasses.dataclass(frozen=True)
class GraphBound:
    """Bounds of a model.

    Attributes:
        constant: Upper bound of the l2 Lipschitz constant of the whole map.
        pairs: Upper bounds of the constants of the differences of two outputs, shape `(outputs, outputs)`, where the
            output is that of a dense layer; None otherwise.
        layers: One line for each operation that the bound rests on, in the order of computation.
    """

    constant: float
    pairs: npt.NDArray[np.float64] | None
    layers: tuple[LayerBound, ...]


@dataclasses.dataclass(frozen=True)
class _TensorBound:
    constant: float
    pairs: npt.NDArray[np.float64] | None = None
    # Which lines of the table it rests on. What a pattern has skipped is not among them.
    lines: frozenset[int] = frozenset()


def bound_graph(model: keras.Model) -> GraphBound:
    """Bounds a functional model with one output.

    The constant of a tensor is that of the map from all inputs of the model together. It is composed operation by
    operation: sums add up, a concatenation takes the root of the sum of squares.

    Args:
        model: A built functional model of built-in Keras layers.

    Raises:
        CannotBoundError: If an operation on the way to the output has no bound.
    """
    table: list[LayerBound] = []
    inputs = [_TensorBound(1.0) for _ in model.inputs]
    (output,) = _bound_outputs(model, inputs, table)
    return GraphBound(output.constant, output.pairs, tuple(table[index] for index in sorted(output.lines)))


def _bound_outputs(model: Any, inputs: Sequence[_TensorBound], table: list[LayerBound]) -> list[_TensorBound]:
    """Returns the bounds of a model's outputs. A refusal counts only if an output depends on it."""
    if not type(model).__module__.startswith("keras."):
        raise CannotBoundError(
            f"The model '{model.name}' of class {type(model).__name__} may compute something else than its graph. Fold "
            "it with `vanilla_model` first, which follows its `call`."
        )
    if isinstance(model, keras.Sequential):
        model = model._functional
    bounds: dict[int, _TensorBound | CannotBoundError] = {
        id(tensor): bound for tensor, bound in zip(model.inputs, inputs, strict=True)
    }
    for call in _calls(model):
        try:
            outputs = _bound_call(call, bounds, table)
        except CannotBoundError as refusal:
            bounds.update((id(tensor), refusal) for tensor in call.outputs)
        else:
            bounds.update((id(tensor), bound) for tensor, bound in zip(call.outputs, outputs, strict=True))
    return [_required(bounds, tensor) for tensor in model.outputs]


def _bound_call(call: Call, bounds: dict[int, Any], table: list[LayerBound]) -> list[_TensorBound]:
    operation = call.operation
    if isinstance(operation, keras.Model):
        return _bound_outputs(operation, [_required(bounds, tensor) for tensor in call.inputs], table)
    pattern = match_pattern(call)
    if pattern is not None:
        source = _required(bounds, pattern.source)
        constant = product_up(pattern.constant, source.constant)
        table.append(LayerBound(operation.name, pattern.kind, pattern.constant, constant))
        return [_TensorBound(constant, None, source.lines | {len(table) - 1})] * len(call.outputs)
    inputs = [_required(bounds, tensor) for tensor in call.inputs]
    constants = [bound.constant for bound in inputs]
    own = apply_rule(call, [1.0] * len(constants))
    constant = product_up(own, constants[0]) if len(constants) == 1 else apply_rule(call, constants)
    lines = frozenset[int]().union(*(bound.lines for bound in inputs))
    if not is_op(operation, "Reshape"):
        table.append(LayerBound(operation.name, type(operation).__name__, own, constant))
        lines |= {len(table) - 1}
    return [_TensorBound(constant, _pairs(call, inputs), lines)] * len(call.outputs)


def _required(bounds: dict[int, Any], tensor: Any) -> _TensorBound:
    bound = bounds[id(tensor)]
    if isinstance(bound, CannotBoundError):
        raise bound
    result: _TensorBound = bound
    return result


def _pairs(call: Call, inputs: Sequence[_TensorBound]) -> npt.NDArray[np.float64] | None:
    """Returns the constants of differences of two outputs, `L |w_i - w_j|` for the output `x W + b` of a dense layer.

    The difference `f_i - f_j` is one function of the body's output, with the gradient `w_i - w_j`. That is at most
    `sqrt(2) |W|`, and less where the columns are not orthogonal or not equally long.
    """
    layer = call.operation
    kind = type(layer)
    if kind is keras.layers.Rescaling and inputs[0].pairs is not None and np.ndim(layer.scale) == 0:
        return np.nextafter(inputs[0].pairs * abs(float(layer.scale)), np.inf) * (inputs[0].pairs > 0)
    if kind in (keras.layers.Identity, keras.layers.Dropout):
        return inputs[0].pairs
    linear = kind is keras.layers.Dense and layer.activation is keras.activations.linear
    if not linear or len(call.input_shape) != 2:
        return None
    kernel = plain_kernel(call)
    squared = np.zeros((kernel.shape[1], kernel.shape[1]))
    for index in range(kernel.shape[1]):
        squared[index] = np.sum((kernel - kernel[:, index : index + 1]) ** 2, axis=0)
    rounding = 1 + (len(kernel) + 8) * _PAIR_ROUNDING
    return np.sqrt(squared) * rounding * inputs[0].constant * rounding


def _calls(model: Any) -> Iterator[Call]:
    """Yields the calls of a functional model in an order of computation."""
    by_depth = model._nodes_by_depth
    for depth in sorted(by_depth, reverse=True):
        for node in by_depth[depth]:
            if not node.is_input:
                yield as_call(node)
