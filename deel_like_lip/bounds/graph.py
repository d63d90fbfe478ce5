"""Walks the graph of a functional model and composes the bounds of its operations."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from deel_like_lip._geometry import entries
from deel_like_lip._keras import functional_graph, nodes
from deel_like_lip._typing import Shape
from deel_like_lip.bounds import layer_rules, op_rules  # noqa: F401 (they register their rules)
from deel_like_lip.bounds.admission import admit_graph
from deel_like_lip.bounds.blocks import Block, calls_between, match_block
from deel_like_lip.bounds.linear import spectral_norm_bound
from deel_like_lip.bounds.linear_maps import LinearMap, Matrix
from deel_like_lip.bounds.operators import Scale
from deel_like_lip.bounds.patterns import Pattern, match_pattern
from deel_like_lip.bounds.rounding import (
    EPSILON,
    FLOAT32_ROUNDOFF,
    FLOAT32_UNDERFLOW,
    Affine,
    norm_up,
    product_up,
    root_sum_of_squares_up,
    root_up,
    sum_up,
)
from deel_like_lip.bounds.rules import (
    Call,
    CannotBoundError,
    Combination,
    Constant,
    Effect,
    Found,
    Parts,
    apply_rule,
    is_op,
)

Array = npt.NDArray[np.float64]
# Types with numbers that float32 rounds.
_ROUNDED = ("float64", "int32", "int64", "uint32", "uint64")


@dataclasses.dataclass(frozen=True)
class LayerBound:
    """A line of the table of a certificate.

    Attributes:
        name: Name of the layer.
        kind: Its class.
        constant: Upper bound of its own Lipschitz constant, or of the operations that it stands for.
        up_to_here: Upper bound of the constant from the model's inputs to its output.

    Example:
        >>> [(line.kind, round(line.constant, 3)) for line in certify(model).layers][0]
        ('Dense', 1.0)
    """

    name: str
    kind: str
    constant: float
    up_to_here: float


@dataclasses.dataclass(frozen=True)
class OutputBound:
    """Bounds of one output of a model.

    Attributes:
        constant: Upper bound of the l2 Lipschitz constant from all inputs together.
        pairs: Upper bounds of the constants of the differences of two outputs, shape `(outputs, outputs)`, where the
            output is affine in something; None otherwise.
        coordinates: Upper bounds of the constants of single outputs, shape `(outputs,)`; None as with `pairs`.
        error: How far a float32 forward pass may end from the exact output, in l2; None if that was not asked for.

    Example:
        >>> bound_graph(vanilla_model(model)).outputs[0].pairs.shape
        (3, 3)
    """

    constant: float
    pairs: Array | None
    coordinates: Array | None
    error: Affine | None


@dataclasses.dataclass(frozen=True)
class GraphBound:
    """Bounds of a model.

    Attributes:
        constant: Upper bound of the l2 Lipschitz constant of the whole map.
        outputs: The bounds of each output.
        layers: One line for each operation that the bounds rest on, in the order of computation.

    Example:
        >>> len(bound_graph(vanilla_model(model)).outputs)
        1
    """

    constant: float
    outputs: tuple[OutputBound, ...]
    layers: tuple[LayerBound, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class _Tensor:
    """What is known of a tensor of the graph.

    Attributes:
        shape: Shape of a sample. Sizes that are not known are objects: the same one where sizes are surely equal.
        constant: Bound of its constant with respect to all inputs of the model together.
        gross: The same without what cancels in exact arithmetic, and so of rounding errors too, in units of theirs.
        by_input: The same with respect to each input alone.
        maps: The tensor as an affine function of earlier ones.
        size: Bound of its l2 norm, by the norm of the model's inputs.
        error: Bound of the error of a float32 forward pass, likewise; None where nobody asked.
        lines: Which lines of the table it rests on. What a pattern has skipped is not among them.
    """

    shape: tuple[Any, ...]
    constant: float
    gross: float
    by_input: tuple[float, ...]
    maps: tuple[LinearMap, ...]
    size: Affine
    error: Affine | None
    lines: frozenset[int]

    @property
    def all_maps(self) -> tuple[LinearMap, ...]:
        """The maps, and the tensor as a function of itself."""
        return (*self.maps, LinearMap.of(self, _plain(self.shape)))

    def at_most(self, factor: float, source: "_Tensor") -> "_Tensor":
        """Returns the tensor with the constants that follow from `factor` times those of an earlier one."""
        constant = min(self.constant, product_up(factor, source.constant))
        by_input = tuple(
            min(own, product_up(factor, other)) for own, other in zip(self.by_input, source.by_input, strict=True)
        )
        return dataclasses.replace(self, constant=constant, by_input=by_input)


def bound_graph(model: keras.Model, *, rounding: bool = False, verbose: int = 0) -> GraphBound:
    """Bounds a functional model.

    The constants of a tensor are those of the maps from all inputs of the model together, and from each. They are
    composed operation by operation: sums add up, a concatenation takes the root of the sum of squares. What is linear
    in an earlier tensor, through chains and sums, is bounded by the norm of that linear map as well.

    Args:
        model: A built functional model of built-in Keras layers.
        rounding: Whether to bound the rounding errors of a float32 forward pass too.
        verbose: 1 for a progress bar.

    Returns:
        The bounds.

    Raises:
        CannotBoundError: If an operation on the way to an output has no bound.

    Example:
        >>> round(bound_graph(vanilla_model(model)).constant, 3)
        1.0
    """
    walk = _Walk(rounding, keras.utils.Progbar(_count(model), unit_name="layer") if verbose else None)
    count = len(model.inputs)
    inputs = []
    for index, tensor in enumerate(model.inputs):
        by_input = tuple(float(place == index) for place in range(count))
        # (Inputs below the normal range may be taken for zero.)
        flushed = product_up(root_up(float(entries(tuple(tensor.shape[1:])) or 0)), FLOAT32_UNDERFLOW)
        error = Affine(flushed) if rounding else None
        shape = _with_tokens(tuple(tensor.shape[1:]))
        inputs.append(_Tensor(shape, 1.0, 1.0, by_input, (), Affine(0.0, 1.0), error, frozenset()))
    outputs = walk.outputs_of(model, inputs)
    constant = min(_blocks(outputs), root_sum_of_squares_up(output.constant for output in outputs))
    if not math.isfinite(constant):
        raise CannotBoundError(f"The product of the constants of the layers of the model '{model.name}' overflows.")
    lines = frozenset[int]().union(*(output.lines for output in outputs))
    return GraphBound(constant, tuple(map(_output_bound, outputs)), tuple(walk.table[index] for index in sorted(lines)))


class _Walk:
    """One walk through a model, nested models included."""

    def __init__(self, rounding: bool, progress: Any = None, end: Any = None) -> None:
        self.table: list[LayerBound] = []
        self._rounding = rounding
        self._progress = progress
        self._end = end  # a tensor that is bounded part by part, even where a block ends there
        self._effects: dict[Any, Found] = {}
        self._patterns: dict[int, Pattern | None] = {}

    def outputs_of(self, model: Any, inputs: Sequence[_Tensor]) -> list[_Tensor]:
        """Returns the bounds of a model's outputs. A refusal counts only if an output depends on it."""
        bounds: dict[int, Any] = {
            id(tensor): bound for tensor, bound in zip(functional_graph(model).inputs, inputs, strict=True)
        }
        self._run_all(admit_graph(model), bounds)
        return [_required(bounds, tensor) for tensor in functional_graph(model).outputs]

    def _run_all(self, calls: Iterable[Call], bounds: dict[int, Any]) -> None:
        """Adds the bounds of the outputs of calls, or why there are none."""
        for call in calls:
            try:
                outputs = self._call(call, bounds)
            except CannotBoundError as refusal:
                bounds.update((id(tensor), refusal) for tensor in call.outputs)
            else:
                bounds.update((id(tensor), bound) for tensor, bound in zip(call.outputs, outputs, strict=True))
            if self._progress is not None and not isinstance(call.operation, keras.Model):
                self._progress.add(1)

    def _call(self, call: Call, bounds: dict[int, Any]) -> list[_Tensor]:
        if isinstance(call.operation, keras.Model):
            return self.outputs_of(call.operation, [_required(bounds, tensor) for tensor in call.inputs])
        pattern = self._pattern(call)
        if pattern is not None and id(pattern.source) in bounds:
            source = self._as_taken(call, _required(bounds, pattern.source))
            return self._run(call, pattern.effects, source, pattern.kind)
        found = self._rule(call)
        if isinstance(found, Combination):
            outputs = self._combine(call, found, [self._part(call, found, part, bounds) for part in call.parts])
        else:
            source = self._as_taken(call, _required(bounds, call.inputs[0]))
            kind = type(call.operation).__name__
            if isinstance(found, Parts):
                return [
                    self._run(dataclasses.replace(call, outputs=[output]), effects, source, kind)[0]
                    for output, effects in zip(call.outputs, found.effects, strict=True)
                ]
            outputs = self._run(call, found, source, kind)
        block = None if call.outputs[0] is self._end else match_block(call, self._read)
        if block is None or id(block.source) not in bounds:  # it may begin before this walk does
            return outputs
        return [self._as_block(call, block, outputs[0], bounds)]

    def _part(self, call: Call, combination: Combination, part: Any, bounds: dict[int, Any]) -> _Tensor:
        """Returns what is known of one of several tensors that a call combines: a constant has a size, and no slope."""
        if not isinstance(part, Constant):
            return self._as_taken(call, _required(bounds, part))
        array = part.value
        if combination.kind == "concatenation" or array.ndim != len(call.input_shape) or array.shape[0] != 1:
            raise call.refuse(
                f"it joins an array of shape {array.shape} to tensors, which fits batches of that size only. Add a "
                "constant with `+`, or use a bias."
            )
        count = len(_required(bounds, call.inputs[0]).by_input)
        error = Affine(norm_up(array.astype(np.float32).astype(np.float64) - array)) if self._rounding else None
        return _Tensor(tuple(array.shape[1:]), 0.0, 0.0, (0.0,) * count, (), Affine(norm_up(array)), error, frozenset())

    def _as_taken(self, call: Call, tensor: _Tensor) -> _Tensor:
        """Returns a tensor with the error that it gets from being rounded to float32 where a call takes it."""
        wide = any(keras.backend.standardize_dtype(taken.dtype) in _ROUNDED for taken in call.inputs)
        if tensor.error is None or not wide or any(str(given.dtype) == "float64" for given in call.outputs):
            return tensor
        return dataclasses.replace(tensor, error=tensor.error + (tensor.size + tensor.error).scaled(_gamma(1)))

    def _pattern(self, call: Call) -> Pattern | None:
        """Returns the pattern that ends in a call, which is looked for once."""
        key = id(call.outputs[0])
        if key not in self._patterns:
            self._patterns[key] = match_pattern(call)
        return self._patterns[key]

    def _read(self, call: Call) -> tuple[Any, Sequence[Effect]] | None:
        """Returns what a call that has been bounded was computed from, and how, if it was from one tensor."""
        if isinstance(call.operation, keras.Model):
            return None
        pattern = self._pattern(call)
        if pattern is not None:
            return pattern.source, pattern.effects
        effects = self._rule(call)
        return None if isinstance(effects, Combination | Parts) else (call.inputs[0], effects)

    def _as_block(self, call: Call, block: Block, output: _Tensor, bounds: dict[int, Any]) -> _Tensor:
        """Returns the output of a block's last call with the smaller of its bounds and those of the block."""
        source = _required(bounds, block.source)
        constant = block.constant
        for start, end in block.parts:
            own = _required(bounds, start)
            fresh = dataclasses.replace(own, constant=1.0, by_input=(1.0,), maps=(), lines=frozenset())
            constant = max(constant, self._from([start], end, fresh).constant)
        result = output.at_most(constant, source)
        if product_up(constant, source.constant) < output.constant:
            self.table[-1] = LayerBound(call.operation.name, block.kind, constant, result.constant)
            result = dataclasses.replace(result, lines=source.lines | {len(self.table) - 1})
        if not self._rounding:
            return result
        # An error of the source passes with the constant of the block. What the block adds is that of its parts, at
        # the source that was computed, which is exact in its own eyes.
        assert source.error is not None
        assert output.error is not None
        computed = dataclasses.replace(source, size=source.size + source.error, error=Affine(), maps=())
        end = call.outputs[0]
        added = self._from([block.source], end, computed, end).error
        at_zero = self._from([block.source], end, dataclasses.replace(computed, size=Affine()), end).size
        assert added is not None
        return dataclasses.replace(
            result,
            size=_smaller(output.size, source.size.scaled(constant) + Affine(at_zero.absolute)),
            error=_smaller(output.error, source.error.scaled(constant) + added),
        )

    def _from(self, sources: Sequence[Any], target: Any, known: _Tensor, end: Any = None) -> _Tensor:
        """Returns the bounds of a tensor from what is known of those that it is computed from.

        With `end`, a tensor, also of rounding, where that one is bounded part by part.
        """
        between = calls_between(sources, target)
        assert between is not None
        walk = _Walk(rounding=end is not None, end=end)
        walk._effects, walk._patterns = self._effects, self._patterns
        bounds: dict[int, Any] = {id(source): known for source in sources}
        walk._run_all(between[0], bounds)
        return _required(bounds, target)

    def _rule(self, call: Call) -> Found:
        """Applies the rule of a call, once for a shared layer that sees the same shapes."""
        if is_op(call.operation) or len(call.inputs) != 1:
            return apply_rule(call)
        key = id(call.operation), call.in_shape
        if key not in self._effects:
            self._effects[key] = apply_rule(call)
        return self._effects[key]

    def _run(self, call: Call, effects: Sequence[Effect], source: _Tensor, kind: str) -> list[_Tensor]:
        """Returns the outputs of a call that has one input."""
        if not effects:
            return [source] * len(call.outputs)
        tensor = source
        for effect in effects:
            tensor = self._after(call, effect, tensor)
        # Its own constant is that of the same effects on their own.
        own = product_up(*(effect.constant for effect in effects))
        if len(effects) > 1 and all(effect.operator is not None for effect in effects):
            own = min([own, *(map_.norm for map_ in tensor.maps if map_.source is source)])
        lines = tensor.lines
        if not (is_op(call.operation) and own == 1 and _only_moves(effects)):
            self.table.append(LayerBound(call.operation.name, kind, own, tensor.constant))
            lines |= {len(self.table) - 1}
        results = []
        for output in call.outputs:
            shape = tuple(output.shape[1:])
            keeps = all(effect.keeps_sizes for effect in effects) and len(shape) == len(source.shape)
            shape = _with_tokens(shape, source.shape if keeps else None)
            results.append(dataclasses.replace(tensor, shape=shape, lines=lines))
        return results

    def _after(self, call: Call, effect: Effect, tensor: _Tensor) -> _Tensor:
        """Returns what one effect makes of a tensor."""
        constant = product_up(effect.constant, tensor.constant)
        gross = product_up(effect.constant, tensor.gross)
        by_input = tuple(product_up(effect.constant, own) for own in tensor.by_input)
        maps: tuple[LinearMap, ...] = ()
        shape: tuple[Any, ...] = tuple(call.outputs[0].shape[1:])
        if effect.operator is not None:
            maps = _followed(tensor, effect)
            shape = effect.operator.out_shape
        size = error = Affine()
        if self._rounding:
            size = tensor.size.scaled(effect.constant) + Affine(effect.offset)
            error = self._rounding_error(call, effect, tensor)
        result = _Tensor(
            _with_tokens(shape), constant, gross, by_input, maps, size, error if self._rounding else None, tensor.lines
        )
        for map_ in maps:
            if map_.steps > 1:
                result = result.at_most(map_.norm, map_.source)
        return result

    def _rounding_error(self, call: Call, effect: Effect, tensor: _Tensor) -> Affine:
        """Returns a bound of the error of a float32 forward pass, for sums in any order, with that of the input.

        Each of the additions in a sum is off by at most u times the partial sum that it gives, and a partial sum of
        terms t is at most the sum of the positive terms or that of the negative ones: `(sum |t| + |sum t|) / 2`. For
        all outputs together, in l2, the operator with absolute entries bounds the first and the operator the second. A
        computed partial sum is off by at most `gamma_n = n u / (1 - n u)` times `sum |t|`.

        Reference:
            Higham, 2002, Accuracy and Stability of Numerical Algorithms, sections 3.1 and 4.2.
        """
        assert tensor.error is not None
        self._check_arithmetic(call, effect)
        operator = effect.operator
        others = effect.roundings or 0
        terms = operator.terms + 1 if operator is not None and operator.terms > 1 else 0
        if operator is not None and operator.terms == 1:
            others += 2
        passed = tensor.error.scaled(effect.constant)
        if not terms + others:
            return passed + Affine(effect.underflow)
        gamma, absolute = _gamma(terms), effect.constant if operator is None else operator.absolute_norm
        sums = terms * FLOAT32_ROUNDOFF
        of_terms = sums * ((absolute + effect.constant) / 2 + gamma * absolute)
        # One for each product, and four more where a runtime has multiplied the scale of a later layer into the kernel.
        relative = of_terms + _gamma(others + 5 if terms else others) * absolute * (1 + gamma)
        offset = (sums * (1 + gamma) + _gamma(others) * (1 + gamma)) * effect.offset
        lost = product_up(2.0 * (terms + others), FLOAT32_UNDERFLOW, root_up(float(entries(call.out_shape) or 0)))
        if operator is not None:  # entries below the normal range may be taken for zero
            sizes = float(entries(operator.in_shape) or 0) * float(entries(operator.out_shape) or 0)
            relative += FLOAT32_UNDERFLOW * root_up(sizes)
        rounded_up = 1 + 16 * EPSILON
        own = (tensor.size + tensor.error).scaled(relative * rounded_up)
        return passed + own + Affine(sum_up([offset * rounded_up, lost, effect.underflow]))

    def _check_arithmetic(self, call: Call, effect: Effect) -> None:
        """Raises where the rounding of a call is not known."""
        dtypes = {str(tensor.dtype) for tensor in call.outputs}
        dtypes.add(str(getattr(call.operation, "compute_dtype", None) or "float32"))
        if not dtypes <= {"float32", "float64"}:
            raise call.refuse(f'it computes in {", ".join(sorted(dtypes))}, and rounding="sound" is for float32.')
        if effect.roundings is None or not math.isfinite(effect.offset):
            reason = (
                "its rounding error is not known" if effect.roundings is None else "the size of its output is not known"
            )
            raise call.refuse(f'with rounding="sound" {reason}. Use rounding="exact", or another layer.')
        if None in tuple(call.outputs[0].shape[1:]):
            raise call.refuse('with rounding="sound" the size of its output is not known. Give the `Input` a shape.')

    def _combine(self, call: Call, combination: Combination, inputs: Sequence[_Tensor]) -> list[_Tensor]:
        """Returns the output of a call that has several inputs."""
        if combination.kind != "concatenation":
            _check_equal_shapes(call, inputs)
        weights = combination.weights or (1.0,) * len(inputs)

        def compose(constants: Sequence[float]) -> float:
            if combination.kind == "sum":
                return sum_up(product_up(abs(w), own) for w, own in zip(weights, constants, strict=True))
            return root_sum_of_squares_up(constants)

        by_input = tuple(compose(constants) for constants in zip(*(tensor.by_input for tensor in inputs), strict=True))
        # All hold: the constants of all inputs together, those of single inputs put together, and, of a concatenation,
        # the norm of the matrix of the constants of each part with respect to each input.
        constant = min(compose([tensor.constant for tensor in inputs]), root_sum_of_squares_up(by_input))
        if combination.kind == "concatenation":
            constant = min(constant, _blocks(inputs))
        maps = _combined_maps(call, combination, weights, inputs)
        size, error = Affine(), None
        if self._rounding:
            self._check_arithmetic(call, Effect(1.0))
            size, error = self._combined_rounding(call, combination, weights, inputs)
        shape = tuple(call.outputs[0].shape[1:])
        keeps = inputs[0].shape if combination.kind != "concatenation" else None
        lines = frozenset[int]().union(*(tensor.lines for tensor in inputs))
        gross = compose([tensor.gross for tensor in inputs])
        result = _Tensor(_with_tokens(shape, keeps), constant, gross, by_input, maps, size, error, lines)
        for map_ in maps:
            result = result.at_most(map_.norm, map_.source)
        own = compose([1.0] * len(inputs))
        self.table.append(LayerBound(call.operation.name, type(call.operation).__name__, own, result.constant))
        return [dataclasses.replace(result, lines=lines | {len(self.table) - 1})]

    def _combined_rounding(
        self, call: Call, combination: Combination, weights: Sequence[float], inputs: Sequence[_Tensor]
    ) -> tuple[Affine, Affine]:
        errors = [tensor.error or Affine() for tensor in inputs]
        sizes = [tensor.size for tensor in inputs]
        if combination.kind != "sum":
            return Affine.joined(sizes), Affine.joined(errors)
        size, error = (
            sum((part.scaled(abs(w)) for part, w in zip(parts, weights, strict=True)), Affine())
            for parts in (sizes, errors)
        )
        gamma = _gamma(combination.roundings)
        lost = product_up(2.0 * combination.roundings * FLOAT32_UNDERFLOW, root_up(float(entries(call.out_shape) or 0)))
        return size, error + (size + error).scaled(gamma) + Affine(lost)


def _blocks(parts: Sequence[_Tensor]) -> float:
    """Bounds the constant of several tensors side by side: the norm of a block matrix is that of its blocks' norms."""
    return spectral_norm_bound(np.array([part.by_input for part in parts]))


def _smaller(first: Affine, second: Affine) -> Affine:
    """Returns one of two bounds that both hold: the one that grows more slowly."""
    return min(first, second, key=lambda bound: (bound.relative, bound.absolute))


def _gamma(roundings: int) -> float:
    product = roundings * FLOAT32_ROUNDOFF
    if product >= 0.5:
        return math.inf
    return product / (1 - product) * (1 + 4 * EPSILON)


def _only_moves(effects: Sequence[Effect]) -> bool:
    return all(effect.operator is not None and effect.operator.terms == 0 for effect in effects)


def _followed(tensor: _Tensor, effect: Effect) -> tuple[LinearMap, ...]:
    """Returns the maps of a tensor that an operator is applied to: from the earliest source, and from its input."""
    assert effect.operator is not None
    usable = [map_ for map_ in (before.then(effect.operator) for before in tensor.all_maps) if map_.usable]
    return tuple(dict.fromkeys([*usable[:1], *usable[-1:]]))


def _combined_maps(
    call: Call, combination: Combination, weights: Sequence[float], inputs: Sequence[_Tensor]
) -> tuple[LinearMap, ...]:
    """Returns a sum or concatenation as affine functions of tensors that all its inputs come from."""
    axis = combination.axis
    if combination.kind == "extremum" or (combination.kind == "concatenation" and axis is None):
        return ()
    if combination.kind == "sum":  # what is constant is no part of the linear map
        kept = [(tensor, w) for tensor, w in zip(inputs, weights, strict=True) if tensor.gross]
        inputs, weights = [tensor for tensor, _ in kept], [w for _, w in kept]
        if not kept:
            return ()
    out_shape = tuple(call.outputs[0].shape[1:])
    results = []
    for first in inputs[0].all_maps:
        total: LinearMap | None = first
        if combination.kind == "sum" and weights[0] != 1:
            total = first.then(Scale(first.out_shape, first.out_shape, np.array(weights[0]), 2 * EPSILON))
        for tensor, factor in zip(inputs[1:], weights[1:], strict=True):
            other = next((map_ for map_ in tensor.all_maps if map_.source is first.source), None)
            if other is None or total is None:
                total = None
                break
            if combination.kind == "sum":
                total = total.plus(other, (1.0, factor))
            else:
                assert axis is not None
                total = total.beside(other, axis, out_shape)
        if total is not None and total.usable:
            results.append(total)
    return tuple(results[:2])


def _check_equal_shapes(call: Call, inputs: Sequence[_Tensor]) -> None:
    """Raises where values are repeated to fit shapes to one another, or may be."""
    given = {tuple(tensor.shape) for tensor in call.inputs}
    # (Beside a constant Keras states a batch of one, whatever it computes with.)
    if len(given) != 1 or {call.in_shape} != {tuple(tensor.shape[1:]) for tensor in call.outputs}:
        raise call.refuse(f"it repeats values to fit shapes to one another, {sorted(map(str, given))}.")
    if len({tensor.shape for tensor in inputs}) != 1:
        raise call.refuse("it may repeat values: sizes of its inputs are not known, and not certain to be the same.")


def _output_bound(tensor: _Tensor) -> OutputBound:
    pairs = coordinates = None
    if len(tensor.shape) == 1:
        for map_ in tensor.maps:
            if map_.matrix is None:
                continue
            own_pairs, own_coordinates = _column_norms(map_.matrix)
            own_pairs, own_coordinates = (
                np.where(array > 0, array * map_.source.constant * (1 + 2 * EPSILON), 0.0)
                for array in (own_pairs, own_coordinates)
            )
            pairs = own_pairs if pairs is None else np.minimum(pairs, own_pairs)
            coordinates = own_coordinates if coordinates is None else np.minimum(coordinates, own_coordinates)
    if tensor.error is not None and not all(
        math.isfinite(part) for part in (tensor.error.absolute, tensor.error.relative)
    ):
        raise CannotBoundError(
            'With rounding="sound" the bound of the rounding error is not finite: the model sums too many terms.'
        )
    # What cancels in exact arithmetic leaves rounding errors behind: no constant is below those.
    floor = product_up(FLOAT32_ROUNDOFF, tensor.gross)
    if pairs is not None and coordinates is not None:
        pairs, coordinates = np.maximum(pairs, floor), np.maximum(coordinates, floor)
        np.fill_diagonal(pairs, 0)
    return OutputBound(max(tensor.constant, floor), pairs, coordinates, tensor.error)


def _column_norms(matrix: Matrix) -> tuple[Array, Array]:
    """Returns upper bounds of the norms of the differences of two columns, and of the columns.

    The difference `f_i - f_j` of two outputs is one function of the source, with the gradient `w_i - w_j`. That is at
    most `sqrt(2) |W|`, and less where the columns are not orthogonal or not equally long.
    """
    largest = float(np.max(np.abs(matrix.flat), initial=0.0))
    scale = 2.0 ** math.ceil(math.log2(largest)) if 0 < largest < math.inf else 1.0
    columns, error = matrix.flat / scale, matrix.error / scale  # exact, and squares do not vanish
    count = columns.shape[1]
    squares = np.sum(columns**2, axis=0)
    if count * columns.size > 2**28:
        # (w_i - w_j)^2 = w_i^2 + w_j^2 - 2 w_i w_j, with the rounding of its terms on top.
        sums = squares[:, None] + squares[None]
        squared = np.maximum(sums - 2 * columns.T @ columns, 0) + EPSILON * (2 * len(columns) + 8) * sums
        np.fill_diagonal(squared, 0)
    else:
        squared = np.stack([np.sum((columns - columns[:, [index]]) ** 2, axis=0) for index in range(count)])
    rounding = 1 + (len(columns) + 8) * EPSILON
    # An error of the matrix moves a difference of columns by at most sqrt(2) times its norm.
    differences = np.sqrt(squared) * rounding + 1.5 * error
    np.fill_diagonal(differences, 0)
    return scale * np.maximum(differences, differences.T), scale * (np.sqrt(squares) * rounding + error)


def _with_tokens(shape: Shape, like: Sequence[Any] | None = None) -> tuple[Any, ...]:
    """Puts an object in place of each size that is not known: that of another shape, or a new one."""
    others = like if like is not None else [None] * len(shape)
    return tuple(
        (object() if other is None or isinstance(other, int) else other) if size is None else size
        for size, other in zip(shape, others, strict=True)
    )


def _plain(shape: tuple[Any, ...]) -> Shape:
    return tuple(size if isinstance(size, int) else None for size in shape)


def _required(bounds: dict[int, Any], tensor: Any) -> _Tensor:
    bound = bounds[id(tensor)]
    if isinstance(bound, CannotBoundError):
        raise bound
    result: _Tensor = bound
    return result


def _count(model: Any) -> int:
    """Returns the number of calls in a model and the models in it."""
    return sum(_count(node.operation) if isinstance(node.operation, keras.Model) else 1 for node in nodes(model))
