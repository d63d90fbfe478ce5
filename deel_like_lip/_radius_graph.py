"""The answer and its certified radius as a plain Keras model, in float32, to go along with an exported model.

Its radii are never above those of `Certificate.radius`, which computes in float64: constants are rounded up, results
down, and from every margin comes off what the runtime's logits may differ from those of Keras.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from deel_like_lip.certificates import Certificate, Head

Tensor = Any

# How far a logit may be off between two runtimes, in units of the sample's largest logit, or of 1 if that is larger.
RESERVE = 1e-5
_LARGEST = np.finfo(np.float32).max
# A division by this gives a radius so large that it says "never", and finite. It also keeps 0 / 0 away.
_SMALLEST_CONSTANT = 1e-30
# Sixteen roundings, more than there are between a constant and the radius.
_ROUNDINGS = 1 + 2.0**-20
# Computed margins are off by two roundings of the logits that they come from.
_MARGIN_ROUNDING = 2.0**-22
_TINY = 1e-30  # More than all that vanishes where results below the normal range are flushed to zero.
_DTYPES = ("float32", "float16", "bfloat16", "uint8", "int8", "uint16", "int16")


def answering_heads(certificate: Certificate) -> list[Head]:
    """Returns the outputs that give an answer, which is all but those of regression."""
    return [head for head in certificate.heads if head.task != "regression"]


def output_name(certificate: Certificate, head: Head, what: str) -> str:
    """Returns what a tensor of a head is called in artefacts: "class", or "species_class" in a model of several."""
    return what if len(certificate.heads) == 1 else f"{head.name}_{what}"


def radius_model(plain: keras.Model, certificate: Certificate) -> keras.Model | None:
    """Makes a model from the inputs and the outputs of a folded model to its answers and their radii.

    Args:
        plain: The folded model. Its weights are not used.
        certificate: Its certificate.

    Returns:
        A functional model from the list of all inputs and then all outputs to a dict of `class`, int32, and `radius`,
        float32, of each head, and the `radius` of all heads together. None if all outputs are certified for regression.

    Raises:
        ValueError: If the model computes in less than float32, float32 cannot tell all inputs apart, or
            `rounding="sound"` needs the size of an input that has an unknown one.
    """
    for layer in plain._flatten_layers(include_self=False):
        if layer.compute_dtype not in ("float32", "float64"):
            raise ValueError(
                "Exported are models that compute in float32. Received: the layer "
                f"'{layer.name}' of '{plain.name}', which computes in {layer.compute_dtype}. Fold the model by "
                '`vanilla_model(model, dtype="float32")` first.'
            )
    heads = answering_heads(certificate)
    if not heads:
        return None
    inputs = [keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype) for tensor in plain.inputs]
    logits = [keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype) for tensor in plain.outputs]
    for tensor in plain.inputs:
        if tensor.dtype not in _DTYPES:
            raise ValueError(
                f"Radii are exported for inputs of the types {', '.join(_DTYPES)}. Received: the input '{tensor.name}' "
                f"of '{plain.name}', of type {tensor.dtype}"
            )
    valid, squares = _check_inputs(inputs, certificate.input_range)
    norm = None
    if any(head.rounding_error is not None for head in heads):
        _entries(certificate)
        norm, known = _norm(squares)
        valid = ops.logical_and(valid, known)
    outputs = {}
    radii = []
    for head, values in zip(certificate.heads, logits, strict=True):
        if head.task == "regression":
            continue
        answer, radius = _head(head, values, certificate, norm)
        radius = ops.maximum(_where(valid, radius), np.float32(0))
        outputs[output_name(certificate, head, "class")] = answer
        outputs[output_name(certificate, head, "radius")] = radius
        radii.append(radius)
    joint = radii[0]
    for radius in radii[1:]:
        joint = ops.minimum(joint, radius)
    outputs["radius"] = joint
    return keras.Model(inputs + logits, outputs, name=f"{plain.name}_radius")


def _check_inputs(inputs: Sequence[Tensor], limits: tuple[float, float] | None) -> tuple[Tensor, Tensor]:
    """Returns which samples are finite and inside of the limits, and the sums of their squares."""
    low, high = (-_LARGEST, _LARGEST) if limits is None else (-_down(-limits[0]), _down(limits[1]))
    valid, squares = None, None
    for tensor in inputs:
        values = ops.cast(tensor, "float32")
        inside = ops.logical_and(_at_most(low, values), _at_most(values, high))
        all_inside, square = _all(inside), _per_sample(ops.sum, ops.square(values))
        valid = all_inside if valid is None else ops.logical_and(valid, all_inside)
        squares = square if squares is None else ops.add(squares, square)
    return valid, squares


def _norm(squares: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the norms of inputs, and which are known: not where squares overflow.

    What becomes of infinities further on is for each runtime to say.
    """
    known = _at_most(squares, _LARGEST)
    return ops.sqrt(ops.where(known, squares, np.float32(0))), known


def _head(head: Head, logits: Tensor, certificate: Certificate, norm: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the answers of one output, and the radii as far as its logits tell."""
    values = ops.cast(logits, "float32")
    finite = _all(_at_most(ops.abs(values), _LARGEST))
    values = _where(ops.expand_dims(finite, 1), values)
    sizes = ops.abs(values)
    of_largest, absolute, relative = _reserve(head, certificate)
    reserve = ops.add(ops.multiply(ops.max(sizes, axis=1, keepdims=True), of_largest), absolute)
    if norm is not None:
        reserve = ops.add(reserve, ops.multiply(ops.expand_dims(norm, 1), relative))
    if head.task == "multiclass":
        # The first of the largest. The `argmax` of Keras does more, which not every runtime can.
        largest, classes = ops.max(values, axis=1, keepdims=True), np.arange(head.outputs, dtype=np.int32)
        answer = ops.min(ops.where(ops.equal(values, largest), classes, np.int32(head.outputs)), axis=1)
        is_answer = ops.equal(ops.expand_dims(answer, 1), classes)
        margins = ops.subtract(largest, values)
        pairs = head.pair_constants if head.pair_constants is not None else np.zeros((1, 1))
        constants = ops.take(_constants(pairs, head, certificate), answer, axis=0)
        radii = ops.where(is_answer, _LARGEST, _quotient(margins, reserve, constants))
    else:
        assert head.output_constants is not None
        positive = ops.cast(ops.greater(values, np.float32(0)), "int32")
        answer = ops.squeeze(positive, axis=1) if head.task == "binary" else positive
        radii = _quotient(sizes, reserve, _constants(head.output_constants, head, certificate))
    return answer, _where(finite, ops.min(radii, axis=1))


def _quotient(margins: Tensor, reserve: Tensor, constants: Any) -> Tensor:
    left = ops.subtract(ops.minimum(margins, _LARGEST), reserve)
    return ops.minimum(ops.divide(ops.maximum(left, np.float32(0)), constants), _LARGEST)


def _reserve(head: Head, certificate: Certificate) -> tuple[np.float32, np.float32, np.float32]:
    """Returns what comes off a margin: in units of the largest logit, for all, and in units of the input's norm."""
    # A margin is a difference of two logits, or one of them against zero.
    logits = 2.0 if head.task == "multiclass" else 1.0
    of_largest, absolute, relative = logits * RESERVE + _MARGIN_ROUNDING, logits * RESERVE, 0.0
    if head.rounding_error is not None:
        # As in `Head.radius`: two forward passes, at the input and at whatever it moves to.
        vectors = 2 * math.sqrt(logits)
        entries = _entries(certificate)
        # The norm in float32: a sum of squares is off by a rounding for each of them, and tiny ones vanish.
        relative = vectors * head.rounding_error.relative / (1 - (entries + 16) * 2.0**-24)
        absolute += vectors * head.rounding_error.absolute + relative * math.sqrt(entries) * 2.0**-62
    return _up(of_largest), _up(absolute), _up(relative)


def _entries(certificate: Certificate) -> int:
    """Returns how many numbers a sample's inputs have together."""
    sizes = [size for shape in certificate.input_shapes for size in shape]
    entries = sum(math.prod(size or 0 for size in shape) for shape in certificate.input_shapes)
    if None in sizes or entries >= 2**23:
        raise ValueError(
            'With rounding="sound" radii are exported for inputs of a known shape and less than 2**23 numbers. '
            f"Received: a model with the input shapes {list(certificate.input_shapes)}"
        )
    return entries


def _constants(constants: npt.NDArray[np.float64], head: Head, certificate: Certificate) -> npt.NDArray[np.float32]:
    """Returns what margins are divided by, rounded up, such that radii are in the units before `input_scale`."""
    error = 0.0
    if head.rounding_error is not None:
        error = head.rounding_error.relative * (math.sqrt(2) if head.task == "multiclass" else 1) * _ROUNDINGS
    exact = (constants + error) * certificate.input_scale * _ROUNDINGS
    rounded = np.nextafter(np.minimum(exact, float(_LARGEST)).astype(np.float32), np.float32(np.inf))
    return np.clip(rounded, np.float32(_SMALLEST_CONSTANT), _LARGEST)


def _at_most(left: Any, right: Any) -> Tensor:
    """Returns where `left <= right`, which is false of NaN. tf2onnx writes `not left > right`, which is true of it."""
    return ops.logical_or(ops.less(left, right), ops.equal(left, right))


def _where(condition: Tensor, values: Tensor) -> Tensor:
    """Returns values, and -inf elsewhere. With a finite number tf2onnx would multiply by 0 instead, which keeps NaN."""
    return ops.where(condition, values, np.float32(-np.inf))


def _all(conditions: Tensor) -> Tensor:
    """Returns which samples fulfil all conditions. Not every runtime reduces booleans."""
    return ops.greater(_per_sample(ops.min, ops.cast(conditions, "float32")), np.float32(0.5))


def _per_sample(reduce: Any, values: Tensor) -> Tensor:
    axes = tuple(range(1, len(values.shape)))
    return reduce(values, axis=axes) if axes else values


def _up(value: float) -> np.float32:
    return np.nextafter(np.float32(min(value * _ROUNDINGS + _TINY, float(_LARGEST))), np.float32(np.inf))


def _down(value: float) -> np.float32:
    """Returns the largest float32 that is not above a value, and finite."""
    rounded = np.float32(np.clip(value, -float(_LARGEST), float(_LARGEST)))
    return np.nextafter(rounded, np.float32(-np.inf)) if float(rounded) > value else rounded
