"""Blocks of several layers whose constant is smaller than that of their parts together.

Unlike patterns, whose parts may have no constant at all, blocks are bounded part by part as well, and the smaller bound
counts. Each looks upward from its last call, and derives its constant from the weights that it finds there.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from deel_like_lip.bounds.convolution import Axis
from deel_like_lip.bounds.linear import spectral_norm_bound
from deel_like_lip.bounds.operators import Convolution, Dense, Operator
from deel_like_lip.bounds.patterns import producer
from deel_like_lip.bounds.rounding import EPSILON, norm_up, product_up, sum_up, up
from deel_like_lip.bounds.rules import Call, Combination, Effect, apply_rule, is_op

Array = npt.NDArray[np.float64]

# How many calls there may be between the two linear layers of a block.
_LONGEST = 8


@dataclasses.dataclass(frozen=True)
class Block:
    """A group of calls with one source.

    Attributes:
        source: The tensor that it starts from.
        kind: What it is, for the table.
        constant: Upper bound of its constant, if `parts` are empty.
        parts: Pairs of tensors: parts of the source that share no value, and what becomes of each. The constant of the
            block is the largest of those of the parts.
    """

    source: Any
    kind: str
    constant: float = 0.0
    parts: Sequence[tuple[Any, Any]] = ()


# Returns what the output of a call was computed from, and how, if it was from one tensor and that is known.
Read = Callable[[Call], tuple[Any, Sequence[Effect]] | None]


def match_block(call: Call, read: Read) -> Block | None:
    """Returns the block that ends in a call, or None."""
    if type(call.operation) is keras.layers.Dense:
        return _sandwich(call, read)
    combination = _combination(call) if len(call.inputs) > 1 else None
    if combination is None:
        return None
    return _potential(call, combination, read) if combination.kind == "sum" else _side_by_side(call, combination)


def _combination(call: Call) -> Combination | None:
    effects = apply_rule(call)
    return effects if isinstance(effects, Combination) else None


def calls_between(sources: Sequence[Any], target: Any) -> tuple[list[Call], list[Any]] | None:
    """Returns the calls that lead from some tensors to another, in an order of computation, and which of them do.

    Returns None if the target depends on anything else.
    """
    by_id = {id(source): source for source in sources}
    calls, reached, done = list[Call](), dict[int, Any](), set[int]()
    stack: list[tuple[Any, Call | None]] = [(target, None)]
    while stack:
        tensor, call = stack.pop()
        if call is not None:  # all that it depends on has been seen
            calls.append(call)
        elif id(tensor) in by_id:
            reached[id(tensor)] = tensor
        elif id(tensor) not in done:
            call = producer(tensor)
            if call is None:
                return None
            done.update(map(id, call.outputs))
            stack.append((tensor, call))
            stack.extend((one, None) for one in call.inputs)
    return calls, list(reached.values())


# --- x + B phi(A x + b) ----------------------------------------------------------------------------------------------


def _potential(call: Call, combination: Combination, read: Read) -> Block | None:
    """`x + B phi(A x + b)` where B is nearly `-A^T diag(t)`: a step of gradient descent on a convex function.

    Slopes of phi lie in [0, 1], so the difference of two outputs is `(I + B D A) (x - x')` for a diagonal D with
    entries in [0, 1]. Let t be not negative and `E = B + A^T diag(t)`. With `S = diag(sqrt t) A`, `I - S^T D S` is
    symmetric with eigenvalues between `1 - |S|^2` and 1, so its norm is at most `max(1, |S|^2 - 1)`. The rest, `E D A`,
    has at most the norm `|E diag(1 / g)| |diag(g) A|` for any positive g, since D commutes with diag(g).
    """
    weights = combination.weights
    if len(weights) != 2:
        return None
    for skip, moved in ((0, 1), (1, 0)):
        layers = _two_layers(call.inputs[moved], read) if abs(weights[skip]) == 1 else None
        if layers is not None and layers[0] is call.inputs[skip]:
            constant = _potential_constant(layers[1], layers[2], weights[moved] * weights[skip])
            return None if constant is None else Block(layers[0], "residual block", constant)
    return None


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is no bound
def _potential_constant(first: Operator, second: Operator, sign: float) -> float | None:
    """Bounds `x + sign * second(phi(first(x) + b))`, or returns None if that is no such block."""
    kernels, back = _kernel_of(first), _transposed_kernel(first, second)
    if kernels is None or back is None:
        return None
    back = sign * back  # exact: the sign is 1 or -1
    within = tuple(range(1, kernels.ndim - 1))
    alive = np.any(kernels != 0, axis=within, keepdims=True)
    lengths = np.where(alive, _lengths(kernels, within), 1.0)
    # Any root will do, as it is: t is its square.
    root = np.sqrt(np.maximum(-np.sum(back * kernels, axis=within, keepdims=True), 0)) / lengths
    scaled = kernels * root
    norm = _norm(first, scaled, EPSILON * norm_up(scaled))
    rest = np.where(alive, back + kernels * root**2, 0.0)
    rounding = np.where(alive, 4 * EPSILON * (np.abs(back) + np.abs(kernels) * root**2), 0.0)
    balance = np.maximum(root, np.sqrt(_lengths(rest, within)) / np.sqrt(lengths))
    balance = np.where(balance > 0, balance, 1.0)
    if not np.all(np.isfinite(balance)):
        return None
    left, right = rest / balance, kernels * balance
    left_norm = _norm(first, left, norm_up(rounding / balance) * (1 + 8 * EPSILON) + EPSILON * norm_up(left))
    right_norm = _norm(first, right, EPSILON * norm_up(right))
    constant = sum_up([max(1.0, up(product_up(norm, norm) - 1)), product_up(left_norm, right_norm)])
    return constant if math.isfinite(constant) else None


def _lengths(kernels: Array, axes: tuple[int, ...]) -> Array:
    """Returns l2 norms over some axes, which are kept. Squares of scaled entries neither overflow nor vanish."""
    largest = np.max(np.abs(kernels), axis=axes, keepdims=True)
    scale = np.where(largest > 0, largest, 1.0)
    lengths: Array = scale * np.sqrt(np.sum((kernels / scale) ** 2, axis=axes, keepdims=True))
    return lengths


def _kernel_of(operator: Operator) -> Array | None:
    """Returns the kernels of a dense layer or convolution, shape `(groups, ..., outputs)`."""
    if isinstance(operator, Dense) and operator.error == 0:
        return operator.kernel[None]
    if isinstance(operator, Convolution) and operator.error == 0 and not operator.transposed:
        return operator.kernels
    return None


def _transposed_kernel(first: Operator, second: Operator) -> Array | None:
    """Returns the kernels of the transpose of `second`, if it is an operator that differs from `first` in its kernels.

    With stride 1 tap t of output o meets input `o + d t - before`, so in the transpose tap t of output p meets input
    `p - d t + before`: taps are in the other order, and windows begin `d (taps - 1) - before` before the input.
    """
    if isinstance(first, Dense) and isinstance(second, Dense):
        rank = len(first.in_shape)
        same = first.axis % rank == second.axis % rank and second.error == 0
        return second.kernel.T[None] if same and second.kernel.T.shape == first.kernel.shape else None
    if not isinstance(first, Convolution) or not isinstance(second, Convolution) or second.error:
        return None
    kernels, axes = second.kernels, second.axes
    if not second.transposed:
        if any(axis.stride != 1 for axis in axes):
            return None
        kernels = np.swapaxes(np.flip(kernels, tuple(range(1, kernels.ndim - 2))), -1, -2)
        axes = tuple(
            dataclasses.replace(
                axis,
                before=axis.dilation * (axis.taps - 1) - axis.before,
                size=axis.outputs,
                outputs=axis.size,
            )
            for axis in axes
        )
    same = first.channels_first == second.channels_first and kernels.shape == first.kernels.shape
    same = same and list(map(_on_torus, axes)) == list(map(_on_torus, first.axes))
    return kernels if same else None


def _on_torus(axis: Axis) -> Axis:
    """Returns the axis with the first of the positions that are one and the same if it is circular."""
    return dataclasses.replace(axis, before=axis.before % axis.size) if axis.circular and axis.size else axis


def _norm(like: Operator, kernels: Array, error: float) -> float:
    """Returns the norm of an operator with other kernels, which may be off by `error` in Frobenius norm."""
    if isinstance(like, Dense):
        return dataclasses.replace(like, kernel=kernels[0], error=error).norm
    assert isinstance(like, Convolution)
    return dataclasses.replace(like, kernels=kernels, error=error).norm


# --- B phi(A x + b) --------------------------------------------------------------------------------------------------


def _sandwich(call: Call, read: Read) -> Block | None:
    """`B phi(A x + b)` of dense layers: at most half the norm of `s^2 B^T B + A A^T / s^2`, for any number s.

    Slopes of phi lie in [0, 1]. For a diagonal D of them and the vectors `p = s B^T u` and `q = A v / s`,
    `u^T B D A v = <p, D q> = (<p + q, D (p + q)> - <p - q, D (p - q)>) / 4 <= |p + q|^2 / 4`. For unit vectors u and v
    that is at most half the squared norm of `[s B^T, A / s]`. With `s^2 = |A| / |B|` it is at most the product of the
    norms.
    """
    layers = _two_layers(call.outputs[0], read)
    if layers is None:
        return None
    source, first, second = layers
    if not isinstance(first, Dense) or not isinstance(second, Dense) or first.error or second.error:
        return None
    rank = len(first.in_shape)
    if first.axis % rank != second.axis % rank or not first.norm or not second.norm:
        return None
    bounds = []
    for s in filter(lambda s: 0 < s < math.inf, (1.0, math.sqrt(first.norm / second.norm))):
        both = np.concatenate([s * second.kernel, first.kernel.T / s], axis=1)
        norm = up(spectral_norm_bound(both) + EPSILON * norm_up(both))
        bounds.append(product_up(0.5, norm, norm))
    constant = min(filter(math.isfinite, bounds), default=math.inf)
    return Block(source, "sandwich", constant) if math.isfinite(constant) else None


def _two_layers(tensor: Any, read: Read) -> tuple[Any, Operator, Operator] | None:
    """Returns the source and the operators of two linear layers with activations of slopes in [0, 1] between them."""
    effects: list[Effect] = []
    for _ in range(_LONGEST):
        call = producer(tensor)
        found = None if call is None else read(call)
        if found is None:
            return None
        tensor, before = found
        effects = [*before, *effects]
        if effects and effects[-1].operator is None:
            return None
        if any(effect.operator is None and not (effect.monotone and effect.constant <= 1) for effect in effects):
            return None
        operators = [effect.operator for effect in effects if effect.operator is not None]
        if len(operators) > 2:
            return None
        if len(operators) == 2:
            return (tensor, *operators) if effects[0].operator is not None else None
    return None


# --- [f(x_1), g(x_2), ...] -------------------------------------------------------------------------------------------


def _side_by_side(call: Call, combination: Combination) -> Block | None:
    """A concatenation of functions, each of its own part of a tensor: the constant is the largest of theirs."""
    if combination.kind != "concatenation":
        return None
    for split in filter(None, map(_split_above, call.inputs)):
        parts = _parts(call, split)
        if parts is not None:
            return Block(split.inputs[0], "parts side by side", parts=parts)
    return None


def _split_above(tensor: Any) -> Call | None:
    """Returns the split that a tensor comes from through calls with one input."""
    call = producer(tensor)
    while call is not None and not is_op(call.operation, "Split"):
        call = producer(call.inputs[0]) if len(call.inputs) == 1 else None
    return call


def _parts(call: Call, split: Call) -> list[tuple[Any, Any]] | None:
    """Returns the inputs of a call, each with the output of a split that it depends on: one of its own, or None."""
    parts = []
    for tensor in call.inputs:
        between = calls_between(split.outputs, tensor)
        if between is None or len(between[1]) != 1:
            return None
        parts.append((between[1][0], tensor))
    return parts if len({id(source) for source, _ in parts}) == len(parts) else None
