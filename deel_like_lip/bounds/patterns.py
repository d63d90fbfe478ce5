"""Groups of operations whose constant together is smaller than the product of their own, or exists only together.

Each pattern looks upward from its last call, and says what tensor it starts from. The operations in between get bounds
of their own, or refusals, which count only where something else uses them.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from deel_like_lip._geometry import entries, largest_overlap
from deel_like_lip.bounds.admission import as_call
from deel_like_lip.bounds.convolution import Axis
from deel_like_lip.bounds.layer_rules import image_area, not_the_batch, spread_norm, window_overlap
from deel_like_lip.bounds.linear import spectral_norm_bound
from deel_like_lip.bounds.op_rules import operands, reduced_axes
from deel_like_lip.bounds.operators import Centering, Convolution, PaddedConvolution, Pick, spatial_axes
from deel_like_lip.bounds.rounding import EPSILON, FLOAT32_ROUNDOFF, FLOAT32_UNDERFLOW, product_up, root_up, up
from deel_like_lip.bounds.rules import Call, Combination, Effect, Parts, apply_rule, is_op, linear, weight

Array = npt.NDArray[np.float64]

_CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
)
_ZERO_PADDINGS = (keras.layers.ZeroPadding1D, keras.layers.ZeroPadding2D, keras.layers.ZeroPadding3D)


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A group of operations with one source.

    Attributes:
        source: The tensor that it starts from.
        effects: What happens from the source to the last call's output.
        kind: What it is, for the table.
    """

    source: Any
    effects: Sequence[Effect]
    kind: str


def match_pattern(call: Call) -> Pattern | None:
    """Returns the pattern that ends in this call, or None."""
    for matcher in _MATCHERS:
        pattern = matcher(call)
        if pattern is not None:
            return pattern
    return None


def _sorted_pairs(call: Call) -> Pattern | None:
    """Minimum and maximum of two halves, side by side: on every piece a permutation of the values."""
    if not _is(call, keras.layers.Concatenate, "Concatenate") or len(call.inputs) != 2:
        return None
    if call.operation.axis % len(call.input_shape) == 0:
        return None
    low, high = (producer(tensor) for tensor in call.inputs)
    if low is None or high is None:
        return None
    if not (_is_minimum(low) and _is_maximum(high)) and not (_is_minimum(high) and _is_maximum(low)):
        return None
    halves = {id(tensor) for tensor in low.inputs}
    if len(halves) != 2 or halves != {id(tensor) for tensor in high.inputs}:
        return None
    split = _split_in_two(low.inputs)
    if split is None:
        return None
    not_the_batch(split, split.operation.axis, "splits")
    return Pattern(split.inputs[0], [Effect(1.0)], "sort of pairs")


def _l2_norm_pooling(call: Call) -> Pattern | None:
    """`sqrt(scale * mean(x^2))` over windows: `sqrt(scale / area)` times l2 norms of windows."""
    if not _is(call, "Sqrt"):
        return None
    above = producer(call.inputs[0])
    scale = 1.0
    if above is not None and _is(above, keras.layers.Rescaling):
        layer = above.operation
        if np.ndim(layer.scale) or float(layer.scale) <= 0 or np.any(np.asarray(layer.offset) != 0):
            return None
        scale = float(layer.scale)
        above = producer(above.inputs[0])
    if above is None:
        return None
    # One window is 1-Lipschitz; windows that overlap see a value several times.
    pooling = above.operation
    if _is(above, keras.layers.AveragePooling2D) and pooling.padding == "valid":
        area, overlap = math.prod(pooling.pool_size), window_overlap(above)
    elif _is(above, keras.layers.GlobalAveragePooling2D):
        known_area, overlap = image_area(above), 1
        if known_area is None:
            raise above.refuse("its constant depends on the size of its input, which is not known.")
        area = known_area
    else:
        return None
    square = producer(above.inputs[0])
    if square is None or not _is(square, "Square"):
        return None
    constant = root_up(up(product_up(scale, float(overlap)) / area))
    outputs = entries(call.out_shape) or 0
    # A square that is flushed to zero takes at most the root of the smallest normal number from a root.
    lost = product_up(4.0, root_up(scale * area * outputs), root_up(FLOAT32_UNDERFLOW))
    # Of the sum of squares, which are not negative, the relative error is halved by the root.
    return Pattern(square.inputs[0], [Effect(constant, roundings=area + 8, underflow=lost)], "l2-norm pooling")


def _circular_convolution(call: Call) -> Pattern | None:
    """A convolution of an image that was continued periodically: the padding is no operator of its own.

    Each output then reads the image as a torus, and where the stride divides the size and no output repeats another,
    the operator is a part of a circular convolution.
    """
    layer = call.operation
    if not _is(call, *_CONVOLUTIONS) or layer.padding != "valid":
        return None
    spatial = [axis + 1 for axis in spatial_axes(layer.rank, layer.data_format == "channels_first")]
    source, wrapped = call.inputs[0], dict[int, Axis]()
    while (take := _periodic_take(source, spatial)) is not None and take.axis not in wrapped:
        axis, size = take.axis, take.size
        where = spatial.index(axis)
        stride, outputs = layer.strides[where], call.outputs[0].shape[axis]
        if size % stride or outputs * stride > size:
            break
        wrapped[axis] = Axis(
            layer.kernel_size[where], stride, layer.dilation_rate[where], take.before, size, outputs, True
        )
        source = take.source
    if not wrapped:
        return None
    linear_part, operator, activation = _parts(call)
    axes = tuple(wrapped.get(axis, own) for axis, own in zip(spatial, operator.axes, strict=True))
    torus = Convolution(tuple(source.shape[1:]), operator.out_shape, operator.kernels, axes, operator.channels_first)
    return Pattern(source, [linear(torus, offset=linear_part.offset), *activation], "circular convolution")


def _circular_transpose(call: Call) -> Pattern | None:
    """A transposed convolution of an image that was continued periodically, cropped to one period of its output.

    Of n inputs, with `a` repeated before them and others behind, input o lies at `o + a` and adds its tap t at
    `s (o + a) + d t`. After cropping by c, output p of n s is the sum over `s o + d t - b = p`, where `b = c - s a`.
    Were the image repeated without end, that would be the transpose of a circular convolution. So it is where no input
    is missed: one place before the first, the last tap lies at `d (k - 1) - s`, which must be before the cropped range,
    and one place behind the last of m, the first tap lies at `s m`, which must be behind it.
    """
    above = producer(call.inputs[0]) if _is(call, keras.layers.Cropping2D) else None
    if above is None or not _is(above, keras.layers.Conv2DTranspose):
        return None
    layer = above.operation
    plain = layer.padding == "valid" and layer.output_padding is None
    if not plain or call.operation.data_format != layer.data_format or layer.activation is not keras.activations.linear:
        return None
    spatial = [axis + 1 for axis in spatial_axes(layer.rank, layer.data_format == "channels_first")]
    source, takes = above.inputs[0], dict[int, _Take]()
    while (take := _periodic_take(source, spatial)) is not None and take.axis not in takes:
        takes[take.axis] = take
        source = take.source
    axes = []
    for where, axis in enumerate(spatial):
        taps, stride, dilation = layer.kernel_size[where], layer.strides[where], layer.dilation_rate[where]
        size, count = source.shape[axis], above.inputs[0].shape[axis]
        if size is None:
            return None
        repeated = takes[axis].before if axis in takes else 0
        crop, outputs = call.operation.cropping[where][0], call.outputs[0].shape[axis]
        last_of_missing = dilation * (taps - 1) - stride
        if outputs != size * stride or last_of_missing >= crop or stride * count < crop + outputs:
            return None
        axes.append(Axis(taps, stride, dilation, crop - stride * repeated, outputs, size, True))
    linear_part, operator, _ = _parts(above)
    torus = Convolution(
        tuple(source.shape[1:]),
        tuple(call.outputs[0].shape[1:]),
        operator.kernels,
        tuple(axes),
        operator.channels_first,
        transposed=True,
    )
    return Pattern(source, [linear(torus, offset=linear_part.offset)], "circular transposed convolution")


@dataclasses.dataclass(frozen=True)
class _Take:
    """A call that continues an image periodically along one axis.

    Attributes:
        source: The image.
        axis: The axis.
        size: Its size.
        before: Which position, counted backwards from the start of the image, comes first: from 0 to the size, without.
    """

    source: Any
    axis: int
    size: int
    before: int


def _periodic_take(tensor: Any, spatial: Sequence[int]) -> _Take | None:
    """Returns how a tensor continues an image along a spatial axis, or None."""
    take = producer(tensor)
    if take is None or not _is(take, "Take"):
        return None
    axis = take.operation.axis
    if axis not in spatial:
        return None
    indices, size = np.asarray(take.arguments["indices"]), take.input_shape[axis]
    if indices.ndim != 1 or not indices.size or size is None or np.any(abs(indices + 0.5) > size):
        return None
    if np.any((indices[1:] - indices[:-1] - 1) % size):
        return None
    return _Take(take.inputs[0], axis, size, int(-indices[0] % size))


def _padded_convolution(call: Call) -> Pattern | None:
    """A convolution of an image that was continued by its own values: most of them are not repeated."""
    layer = call.operation
    if not _is(call, *_CONVOLUTIONS) or layer.padding != "valid" or None in call.in_shape:
        return None
    spatial = [axis + 1 for axis in spatial_axes(layer.rank, layer.data_format == "channels_first")]
    source, taken = call.inputs[0], dict[int, npt.NDArray[np.int64]]()
    while True:
        take = producer(source)
        if take is None or not _is(take, "Take") or len(take.inputs) > 1:
            break
        axis, indices = take.operation.axis, np.asarray(take.arguments["indices"])
        size = None if axis is None else take.input_shape[axis]
        if axis not in spatial or axis in taken or indices.ndim != 1 or size is None:
            break
        if np.any(indices < -size) or np.any(indices >= size):
            break
        taken[axis] = indices % size
        source = take.inputs[0]
    if not taken or None in source.shape[1:]:
        return None

    def pick(array: Any) -> Any:
        for axis, indices in taken.items():
            array = np.take(array, indices, axis)
        return array

    overlap = math.prod(
        largest_overlap(taken.get(axis, np.arange(call.input_shape[axis] or 0)), taps, stride, dilation)
        for axis, taps, stride, dilation in zip(
            spatial, layer.kernel_size, layer.strides, layer.dilation_rate, strict=True
        )
    )
    repeats = math.prod(int(np.max(np.bincount(indices))) for indices in taken.values())
    pad = Pick(tuple(source.shape[1:]), call.in_shape, repeats, pick)
    linear_part, convolution, activation = _parts(call)
    operator = PaddedConvolution(pad.in_shape, convolution.out_shape, pad, convolution, overlap)
    return Pattern(source, [linear(operator, offset=linear_part.offset), *activation], "padded convolution")


def _zero_padded_convolution(call: Call) -> Pattern | None:
    """A convolution of an image around which a layer puts zeros: they are known, unlike a part of an image."""
    layer = call.operation
    if not _is(call, *_CONVOLUTIONS) or layer.padding != "valid":
        return None
    above = producer(call.inputs[0])
    if above is None or not _is(above, *_ZERO_PADDINGS) or above.operation.data_format != layer.data_format:
        return None
    pads = above.operation.padding
    pads = [pads] if isinstance(pads[0], int) else pads
    linear_part, operator, activation = _parts(call)
    axes = tuple(
        dataclasses.replace(axis, before=before, size=None if axis.size is None else axis.size - before - after)
        for axis, (before, after) in zip(operator.axes, pads, strict=True)
    )
    source = above.inputs[0]
    whole = dataclasses.replace(operator, in_shape=tuple(source.shape[1:]), axes=axes)
    return Pattern(source, [linear(whole, offset=linear_part.offset), *activation], "zero-padded convolution")


def _parts(call: Call) -> tuple[Effect, Convolution, list[Effect]]:
    """Returns the linear effect of a convolution layer, its operator, and the effects of its activation."""
    effects = apply_rule(call)
    assert not isinstance(effects, Combination | Parts)
    linear_part, *activation = effects
    assert isinstance(linear_part.operator, Convolution)
    return linear_part, linear_part.operator, activation


def _skew_series(call: Call) -> Pattern | None:
    """`x + a_1 T x + a_2 T T x + ...`, a polynomial p of a skew-symmetric convolution T, such as a series of `exp(T)`.

    T is a normal operator with eigenvalues `i s`, where `|s|` is at most its norm, so the norm of `p(T)` is the largest
    `|p(i s)|`.
    """
    links: list[_Link] = []
    current: Call | None = call
    while current is not None and _is(current, "Add") and len(current.inputs) == 2:
        total, term = current.inputs
        if links and term is not links[-1].source:
            return None
        link = _skew_link(term)
        if link is None or (links and link.layer is not links[-1].layer):
            return None
        links.append(link)
        if link.source is total:
            coefficients = [1.0]
            for each in reversed(links):
                coefficients.append(coefficients[-1] * each.factor)
            norm = max(each.operator.norm for each in links)
            constant = _largest_on_imaginary_axis(coefficients, norm)
            return Pattern(total, [Effect(constant, roundings=None)], "series of a skew-symmetric convolution")
        current = producer(total)
    return None


@dataclasses.dataclass(frozen=True)
class _Link:
    """A tensor that is `factor` times a convolution, without a bias, of another.

    Attributes:
        source: The other tensor.
        layer: The plain layer.
        operator: The convolution, circular where the source is continued periodically.
        factor: The factor.
    """

    source: Any
    layer: Any
    operator: Convolution
    factor: float


def _skew_link(tensor: Any) -> _Link | None:
    """Returns how a tensor is computed by a skew-symmetric convolution, or None."""
    call, factor = producer(tensor), 1.0
    if call is not None and _is(call, "Divide", "TrueDivide") and len(call.inputs) == 1:
        divisor = call.arguments["x2"]
        if not isinstance(divisor, (int, float)) or divisor == 0:
            return None
        factor, call = 1 / divisor, producer(call.inputs[0])
    if call is None or not _is(call, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D):
        return None
    layer = call.operation
    if layer.use_bias or layer.activation is not keras.activations.linear or max(layer.strides) > 1:
        return None
    kernels = np.stack(np.split(weight(call, layer.kernel), layer.groups, axis=-1))
    mirrored = np.flip(kernels, tuple(range(1, kernels.ndim - 2))).swapaxes(-1, -2)
    if mirrored.shape != kernels.shape or np.any(mirrored != -kernels):
        return None
    pattern = _circular_convolution(call)
    effects = apply_rule(call) if pattern is None else pattern.effects
    assert not isinstance(effects, Combination | Parts)
    (effect,) = effects
    operator = effect.operator
    assert isinstance(operator, Convolution)
    # Tap t of output o meets input `o + d (t - (k - 1) / 2)`, and tap `k - 1 - t` of that output meets o: their entries
    # are opposite, also where both are cut off.
    centred = all(2 * axis.before == axis.dilation * (axis.taps - 1) for axis in operator.axes)
    if not centred or any(axis.size != axis.outputs for axis in operator.axes):
        return None
    return _Link(call.inputs[0] if pattern is None else pattern.source, layer, operator, factor)


def _largest_on_imaginary_axis(coefficients: Sequence[float], limit: float) -> float:
    """Returns an upper bound of `|sum_j a_j (i s)^j|` for all real s up to a limit, which is the same for -s.

    On a grid. Between two points the polynomial is within `h^2 / 8` times its largest second derivative, at most
    `sum_j j (j - 1) |a_j| limit^(j - 2)`, of the line that joins its values there, and no point of that is longer than
    both of its ends.
    """
    points = 2**14
    grid = 1j * np.linspace(0.0, limit, points + 1)
    largest = float(np.max(np.abs(np.polynomial.polynomial.polyval(grid, coefficients))))
    sizes = [abs(value) * max(limit, 1.0) ** power for power, value in enumerate(coefficients)]
    curvature = sum(power * (power - 1) * size for power, size in enumerate(sizes))
    rounding = EPSILON * (16 * len(coefficients) + 16) * sum(sizes)
    return up((largest + curvature * (limit / points) ** 2 / 8 + rounding) * (1 + 16 * EPSILON))


def _centering(call: Call) -> Pattern | None:
    """A tensor minus its own mean over some axes."""
    if not _is(call, "Subtract") or len(call.inputs) != 2:
        return None
    source, subtracted = call.inputs
    mean = producer(subtracted)
    if mean is None or not _is(mean, "Mean") or mean.inputs[0] is not source or not mean.operation.keepdims:
        return None
    axes = tuple(reduced_axes(mean))
    count = entries(tuple(call.in_shape[axis] for axis in axes))
    # One rounding each for the division, its divisor and the difference.
    operator = Centering(call.in_shape, call.in_shape, axes, count)
    return Pattern(source, [linear(operator, roundings=3, keeps_sizes=True)], "centering")


def _folded_line(call: Call) -> Pattern | None:
    """`x - m h(x)` with h a chain of minima and maxima with constants: N-activations and the like.

    The slope of h lies in [0, 1] everywhere, so that of the whole between 1 and 1 - m.
    """
    found = _minus_multiple(call)
    if found is None:
        return None
    source, tensor, factors = found
    chain = []
    while tensor is not source:
        extremum = producer(tensor)
        if extremum is None or not _is(extremum, "Minimum", "Maximum") or len(extremum.inputs) != 1:
            return None
        chain.append(extremum)
        tensor = extremum.inputs[0]
    if not chain:
        return None
    nearest = np.zeros(())
    for extremum in reversed(chain):
        constant = next(value for value in operands(extremum) if value is not None)
        function = np.minimum if _is(extremum, "Minimum") else np.maximum
        nearest = function(nearest, constant)
    slope = float(np.max(np.abs(1 - factors) + _float32_error(factors) * np.abs(factors)))
    # Multiplying by a power of two is exact. What another factor rounds is not relative to the result.
    exact = np.all(np.frexp(factors)[0] ** 2 == 0.25)
    effect = Effect(
        max(1.0, up(up(slope))),
        offset=spread_norm(call, np.asarray(factors * nearest)),
        roundings=1 if exact else None,
        keeps_sizes=True,
    )
    return Pattern(source, [effect], "folded line")


def _smooth_absolute_value(call: Call) -> Pattern | None:
    """`sqrt(x^2 + c)` with c >= 0: the derivative `x / sqrt(x^2 + c)` lies in [-1, 1]."""
    if not _is(call, "Sqrt"):
        return None
    total = producer(call.inputs[0])
    if total is None or not _is(total, "Add") or len(total.inputs) != 1:
        return None
    square = producer(total.inputs[0])
    added = next(value for value in operands(total) if value is not None)
    if square is None or not _is(square, "Square") or np.any(added < 0):
        return None
    outputs = entries(call.out_shape) or 0
    # As with l2 norms: a square that is flushed to zero, and a relative error that the root halves.
    lost = product_up(4.0, root_up(float(outputs)), root_up(FLOAT32_UNDERFLOW))
    offset = spread_norm(call, np.asarray(np.nextafter(np.sqrt(added), np.inf)))
    effect = Effect(1.0, offset=offset, roundings=3, underflow=lost, keeps_sizes=True)
    return Pattern(square.inputs[0], [effect], "smooth absolute value")


def _reflected_pairs(call: Call) -> Pattern | None:
    """`z - u relu(t . z)` for each pair z of values of two halves, with constants u and t: Householder activations.

    Two values of `relu` differ by s in [0, 1] times the difference of its arguments, so two outputs by `I - s u t^T`
    times that of the inputs. Its norm is convex in s: the larger one of s = 0, which is 1, and s = 1.
    """
    if not _is(call, keras.layers.Concatenate, "Concatenate") or len(call.inputs) != 2:
        return None
    if call.operation.axis % len(call.input_shape) == 0:
        return None
    first, second = (_minus_multiple(producer(tensor)) for tensor in call.inputs)
    if first is None or second is None or first[1] is not second[1]:
        return None
    split, rectified = _split_in_two((first[0], second[0])), producer(first[1])
    total = None if rectified is None or not _is(rectified, "Relu") else producer(rectified.inputs[0])
    if split is None or total is None or not _is(total, "Add") or len(total.inputs) != 2:
        return None
    left, right = map(_times_constant, total.inputs)
    if left is None or right is None or left[0] is not first[0] or right[0] is not second[0]:
        return None
    not_the_batch(split, split.operation.axis, "splits")
    u_first, u_second, t_first, t_second = np.broadcast_arrays(first[2], second[2], left[1], right[1])
    vectors = np.stack([u_first, u_second], -1), np.stack([t_first, t_second], -1)
    outer = vectors[0][..., :, None] * vectors[1][..., None, :]
    norm = spectral_norm_bound((np.eye(2) - outer).reshape(-1, 2, 2))
    largest = float(np.max(np.linalg.norm(outer, axis=(-2, -1)), initial=0.0))
    error = max(map(_float32_error, vectors))
    constant = max(1.0, up(norm + 8 * EPSILON * (1 + largest) + 3 * error * largest))
    # The product and sum err by 3 u |u| |t| times |z|, the product with u by one more, and the difference by u.
    return Pattern(split.inputs[0], [Effect(constant, roundings=2 + math.ceil(5 * largest))], "reflection of pairs")


_MATCHERS = (
    _sorted_pairs,
    _l2_norm_pooling,
    _circular_convolution,
    _circular_transpose,
    _padded_convolution,
    _zero_padded_convolution,
    _skew_series,
    _centering,
    _folded_line,
    _smooth_absolute_value,
    _reflected_pairs,
)


def _minus_multiple(call: Call | None) -> tuple[Any, Any, Array] | None:
    """Returns the tensors x and y and the constant m of a call that computes `x - m y`, or None."""
    if call is None or not _is(call, "Subtract") or len(call.inputs) != 2:
        return None
    product = _times_constant(call.inputs[1])
    return None if product is None else (call.inputs[0], *product)


def _times_constant(tensor: Any) -> tuple[Any, Array] | None:
    """Returns the tensor and the constant of which a tensor is the product, or None."""
    product = producer(tensor)
    if product is None or not _is(product, "Multiply") or len(product.inputs) != 1:
        return None
    return product.inputs[0], next(value for value in operands(product) if value is not None)


def _float32_error(constant: Array) -> float:
    """Returns the relative error of what a model holds of a constant, which is in float32."""
    return FLOAT32_ROUNDOFF if np.any(constant.astype(np.float32) != constant) else 0.0


def _split_in_two(halves: Sequence[Any]) -> Call | None:
    """Returns the split of which two tensors are different outputs of the same shape, or None.

    They then share no value, and what combines them element by element repeats none.
    """
    left, right = halves
    first, second = producer(left), producer(right)
    if first is None or second is None or left is right or not _is(first, "Split"):
        return None
    if first.outputs[0] is not second.outputs[0] or tuple(left.shape) != tuple(right.shape):
        return None
    return first


def producer(tensor: Any) -> Call | None:
    """Returns the call that computed a tensor of a graph that has been admitted, or None for an input."""
    operation, node_index, _ = tensor._keras_history
    if operation is None:
        return None
    node = operation._inbound_nodes[node_index]
    if node.is_input:
        return None
    return as_call(node)


def _is_minimum(call: Call) -> bool:
    return _is(call, "Minimum", keras.layers.Minimum)


def _is_maximum(call: Call) -> bool:
    return _is(call, "Maximum", keras.layers.Maximum)


def _is(call: Call, *kinds: Any) -> bool:
    """Whether a call is one of a layer class or of an op by name."""
    operation = call.operation
    return any(is_op(operation, kind) if isinstance(kind, str) else type(operation) is kind for kind in kinds)
