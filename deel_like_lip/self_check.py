"""What `certify` does to its own certificate before it hands it out: it tries to break it.

First it looks whether what was bounded is what runs: the model, its fold, and the fold as it comes back from a file
compute the same, for each sample by itself. Then it searches for two inputs that the model drives further apart than
the certificate says. What it finds is proof of a fault. That it finds nothing is none of the opposite.
"""

import contextlib
import dataclasses
import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from deel_like_lip._autodiff import RowMap
from deel_like_lip._keras import functional_graph, kept_randomness, nodes
from deel_like_lip.bounds import CannotBoundError
from deel_like_lip.bounds.rules import rule_of, to_float64

Array = npt.NDArray[Any]
_Noise = Callable[..., float]  # of inputs, how far outputs may be off

_BATCH = 32  # samples that models are compared on, and rows of every other batch: JAX compiles for each size
_SMALL_BATCH, _LARGE_INPUT = 16, 2**13  # the same for inputs of more numbers than this
_SIZES = (16, 8, 32)  # tried for axes of which the size is not known
_ROUNDS = 2  # of power iteration; as many more as time allows, up to the next number
_MOST_ROUNDS = 30
_FEW = 4  # smaller batches are taken as they are
_SUSPECTS = 4  # pairs of one claim that are looked at once more
_LARGEST_KERNEL = 2**20
# Outputs of one model in two forms, or of one sample in two batches, may differ by such shares of the largest output,
# and of the input: some ten times what float32 did to a hundred layers.
_AGREE, _AGREE_BY_INPUT = 1e-3, 1e-5
# A slope may exceed its bound by this share of it, and by so many roundings of the numbers that it is computed from.
_SLACK, _ROUNDINGS = 1e-4, 64 * 2.0**-24
_DEPENDS = "outputs of a sample depend on others of its batch, or on chance"
_REPORT = 'Please report it with the model: the page "What could still be wrong" says how.'


class BrokenBoundError(ValueError):
    """The self-check of `certify` has found two inputs that contradict the bound. It is a `ValueError`.

    Attributes:
        inputs: The two inputs, each as an array or a list of arrays, with a batch axis.
        found: The slope between them, or the distance at which an answer changes.
        claimed: The bound, or the radius.

    Example:
        >>> class Tripled(keras.layers.Layer):
        ...     def call(self, inputs):
        ...         return 3 * inputs
        >>> _ = register_bound_rule(Tripled)(lambda layer, input_shape: 1.0)  # which is wrong
        >>> try:
        ...     certify(keras.Sequential([keras.Input((4,)), Tripled()]))
        ... except BrokenBoundError as error:
        ...     print(round(error.found, 3), round(error.claimed, 3))
        3.0 1.0
    """

    def __init__(self, message: str, inputs: tuple[Any, Any], found: float, claimed: float) -> None:
        super().__init__(message)
        self.inputs, self.found, self.claimed = inputs, found, claimed


@dataclasses.dataclass(frozen=True)
class SelfCheck:
    """How `certify` tried to break a certificate, in vain.

    Attributes:
        pairs: The number of pairs of inputs whose outputs were compared.
        largest: The largest slope that was found, as a share of its bound.
        reloaded: Whether the fold was written to a file and compared with what came back. It is not where it has layers
            of a class that Keras does not know.

    Example:
        >>> certify(model).checked.largest <= 1
        True
    """

    pairs: int
    largest: float
    reloaded: bool


def self_check(
    model: keras.Model, plain: keras.Model, certificate: Any, data: Any = None, seconds: float = 0.0
) -> SelfCheck | None:
    """Tries to break a certificate.

    Args:
        model: The model that was certified.
        plain: Its fold, which was bounded.
        certificate: The certificate.
        data: Inputs to start from, as the model takes them, besides those that are made up.
        seconds: How long the search may go on after the least that it does, which is two rounds.

    Returns:
        What was tried, or None if the model has inputs of unknown size and runs on none that was tried.

    Raises:
        BrokenBoundError: If two inputs contradict the certificate.
        CannotBoundError: If the model and its fold compute different things, or what becomes of a sample depends on
            others.
        ValueError: If the data does not fit the model.
    """
    end = time.monotonic() + seconds
    rows = _Rows.of(model, plain)
    if rows is None:
        return None
    rng = np.random.default_rng(0)
    samples = _structured(rows, rng)
    if data is not None:
        given = rows.from_data(data)[: 2 * _BATCH]
        samples = np.concatenate([given, given[: len(given) % 2], samples])  # in pairs
    noise = functools.partial(_noise, rows, plain, certificate)
    outputs = rows.outputs(model, samples)
    _compare(rows, samples, outputs, rows.outputs(plain, samples), noise, "its fold computes something else")
    _check_samples(rows, model, samples, outputs, noise)
    reloaded = _reloaded(plain)
    if reloaded is not None:
        again = rows.outputs(reloaded, samples)
        _compare(rows, samples, outputs, again, noise, "its fold computes something else after it was saved and loaded")
    search = _Search(rows, model, plain, certificate, noise)
    search.try_pairs(samples, outputs)
    search.along_singular_vectors(samples, end)
    search.by_power_iteration(samples, outputs, rng, end)
    if certificate.rounding == "sound":
        search.at_boundaries(samples, outputs)
    return SelfCheck(search.pairs, search.largest, reloaded is not None)


# --- models as maps of rows ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Rows:
    """How inputs of a model are written as rows of numbers."""

    name: str
    structure: Any
    shapes: list[tuple[int, ...]]
    dtypes: list[str]
    batch: int | None

    @classmethod
    def of(cls, model: Any, plain: Any) -> "_Rows | None":
        """Returns it for the first size, of those to be tried for what is not known, on which the model runs."""
        graph = functional_graph(plain)
        dtypes = [keras.backend.standardize_dtype(tensor.dtype) for tensor in graph.inputs]
        batch = graph.inputs[0].shape[0]
        unknown = any(None in tensor.shape[1:] for tensor in graph.inputs)
        for size in _SIZES if unknown else _SIZES[:1]:
            shapes = [tuple(size if own is None else own for own in tensor.shape[1:]) for tensor in graph.inputs]
            rows = cls(model.name, graph.input, shapes, dtypes, batch)
            if not unknown:
                return rows
            try:
                rows.outputs(model, np.zeros((2, rows.size)))
            except Exception:  # whatever the backend raises where a size does not fit
                continue
            return rows
        return None

    @property
    def size(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes)

    @property
    def many(self) -> int:
        """The number of samples in a batch."""
        return _BATCH if self.size <= _LARGE_INPUT else _SMALL_BATCH

    def map(self, model: Any, count: int) -> RowMap:
        structure = keras.tree.map_structure(lambda _: 0, self.structure)
        size = self.batch or (count if count < _FEW else self.many)
        return RowMap(model, self.shapes, structure, batch_size=size, compiled=False)

    def outputs(self, model: Any, rows: Array) -> Array:
        """Returns the outputs of a model.

        Raises:
            CannotBoundError: If it does not run.
        """
        try:
            return self.map(model, len(rows)).forward(rows)
        except ValueError:
            raise
        except Exception as error:
            raise CannotBoundError(
                f"The model '{self.name}' does not run on a batch of {len(rows)} made-up samples, so what was bounded "
                f"cannot be compared with what runs. Received: {type(error).__name__}: {str(error)[:200]}"
            ) from error

    def rounded(self, rows: Array) -> Array:
        """Returns the nearest rows that the model's inputs can hold, as it sees them."""
        with np.errstate(over="ignore"):
            result = rows.astype(np.float32).astype(np.float64)
        start = 0
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            stop = start + int(np.prod(shape))
            if dtype == "bool":
                result[:, start:stop] = np.clip(np.round(result[:, start:stop]), 0, 1)
            elif not keras.backend.is_float_dtype(dtype):
                limits = np.iinfo(dtype)
                scaled = np.round(result[:, start:stop] * 10)
                result[:, start:stop] = np.clip(scaled, max(limits.min, -(2**20)), min(limits.max, 2**20))
            start = stop
        return result

    def from_data(self, data: Any) -> Array:
        arrays = [np.asarray(keras.ops.convert_to_numpy(array)) for array in keras.tree.flatten(data)]
        if any(array.dtype.kind not in "fiub" for array in arrays):
            raise ValueError(f"Expected `data` of numbers. Received: data of types {[array.dtype for array in arrays]}")
        expected = [tuple(shape) for shape in self.shapes]
        if [array.shape[1:] for array in arrays] != expected or len({len(array) for array in arrays}) != 1:
            raise ValueError(
                f"Expected `data` to be inputs of the model, of shapes (samples, ...) with {expected} for one sample. "
                f"Received: data of shapes {[array.shape for array in arrays]}"
            )
        rows = np.concatenate([array.reshape(len(array), -1).astype(np.float64) for array in arrays], axis=1)
        return rows[np.all(np.isfinite(rows), axis=1)]

    def as_inputs(self, row: Array) -> Any:
        """Returns one row as inputs of the model."""
        arrays, start = [], 0
        for shape, dtype in zip(self.shapes, self.dtypes, strict=True):
            stop = start + int(np.prod(shape))
            arrays.append(row[start:stop].reshape(1, *shape).astype(dtype))
            start = stop
        return arrays[0] if len(arrays) == 1 else arrays


def _structured(rows: _Rows, rng: np.random.Generator) -> Array:
    """Returns samples of which each two neighbours are a pair: at zero, at ties, small and large, random and sparse."""
    size = rows.size
    noise = rng.normal(size=(rows.many, size))
    first = np.zeros((rows.many // 2, size))
    first[1], first[2] = 1.0, -0.5  # ties
    first[3:6] = noise[3:6] * np.array([[1e-3], [30.0], [1e3]])
    first[6:] = noise[6 : len(first)]
    steps = noise[len(first) :]
    steps[::3] = np.eye(size)[rng.integers(0, size, len(steps[::3]))] * np.sqrt(size)  # one coordinate
    lengths = np.array([1e-1, 1.0, 10.0] * len(steps))[: len(steps), None] / np.sqrt(size)
    lengths *= np.maximum(1.0, np.linalg.norm(first, axis=1, keepdims=True) / 10)
    both = np.stack([first, first + lengths * steps], axis=1)
    return rows.rounded(both.reshape(rows.many, size))


def _noise(rows: _Rows, plain: Any, certificate: Any, *ends: Array) -> float:
    """Returns how far outputs may be off by rounding, by the sizes of all that is computed on the way to them."""
    graph = functional_graph(plain)
    tensors = [one for node in nodes(graph) for one in node.outputs if keras.backend.is_float_dtype(one.dtype)]
    count = rows.batch or len(ends)
    values = rows.outputs(keras.Model(graph.input, tensors), np.resize(np.stack(ends), (count, len(ends[0]))))
    # What a tensor is off by passes with the constant of what comes after it.
    constants = _products(graph, certificate)
    whole = max(certificate.lipschitz_constant, *(constants[id(tensor)] for tensor in graph.outputs))
    total, column = 0.0, 0
    for tensor in tensors:
        width = int(np.prod([size or 0 for size in tensor.shape[1:]])) if None not in tensor.shape[1:] else 0
        before = constants[id(tensor)]
        sizes = np.linalg.norm(values[:, column : column + width] if width else values, axis=1)
        total += float(np.max(sizes)) * max(1.0, whole / before if before else whole)
        column += width
    return _ROUNDINGS * total


def _products(graph: Any, certificate: Any) -> dict[int, float]:
    """Returns constants of tensors by their ids, as products of what each layer does by itself.

    A certificate bounds linear layers together, and may find that they cancel: the mean of centred values is zero.
    Their rounding errors do not cancel.
    """
    lines = {line.name: line for line in certificate.layers}
    together, products = ({id(tensor): 1.0 for tensor in graph.inputs} for _ in range(2))
    for node in nodes(graph):
        before, product = (
            max((each.get(id(tensor), 0.0) for tensor in node.input_tensors), default=0.0)
            for each in (together, products)
        )
        line = lines.get(node.operation.name)
        for tensor in node.outputs:
            together[id(tensor)] = line.up_to_here if line else before
            products[id(tensor)] = max(together[id(tensor)], line.constant * product if line else product)
    return products


def _compare(rows: _Rows, samples: Array, outputs: Array, others: Array, noise: _Noise, what: str) -> None:
    """Raises if two models compute different things."""
    if outputs.shape != others.shape:
        raise CannotBoundError(
            f"`certify` has found that the model '{rows.name}' is not what was bounded: {what}, with {others.shape[1]} "
            f"outputs instead of {outputs.shape[1]}."
        )
    finite = np.all(np.isfinite(outputs) & np.isfinite(others), axis=1)
    sizes = np.maximum(np.max(np.abs(outputs), axis=1), np.max(np.abs(others), axis=1))
    allowed = _AGREE * sizes + _AGREE_BY_INPUT * (np.linalg.norm(samples, axis=1) + 1)
    apart = np.max(np.abs(outputs - others), axis=1, initial=0.0)
    wrong = [index for index in np.flatnonzero(finite & (apart > allowed)) if apart[index] > noise(samples[index])]
    wrong += [*np.flatnonzero(np.isfinite(outputs).all(1) != np.isfinite(others).all(1))]
    if wrong:
        index = int(wrong[0])
        raise CannotBoundError(
            f"`certify` has found that the model '{rows.name}' is not what was bounded: {what}, for what the gate in "
            "front of the bounds could not see, such as an edited layer. Build the model anew from its config and its "
            f"weights. Received: for the input {_shown(samples[index])} outputs {_shown(outputs[index])} and "
            f"{_shown(others[index])}"
        )


def _check_samples(rows: _Rows, model: Any, samples: Array, outputs: Array, noise: _Noise) -> None:
    """Raises if what becomes of a sample depends on others in its batch, or on chance."""
    if rows.batch is None:
        few = samples[[6, 9, 8]]  # where the second is another one than before
        found = rows.outputs(model, few)
        _compare(rows, few, outputs[[6, 9, 8]], found, noise, _DEPENDS)
        alone = rows.outputs(model, few[:1])
        _compare(rows, few[:1], outputs[[6]], alone, noise, "outputs of a sample depend on the size of its batch")
        return
    again = np.roll(rows.outputs(model, np.roll(samples, 1, axis=0)), -1, axis=0)  # each beside others
    _compare(rows, samples, outputs, again, noise, _DEPENDS)


def _reloaded(plain: Any) -> Any:
    """Returns the fold as it comes back from a file, or None where it does not come back and so deceives nobody."""
    if not _is_built_in(plain):
        return None
    with kept_randomness(), tempfile.TemporaryDirectory() as folder, contextlib.suppress(Exception):
        path = os.path.join(folder, "plain.keras")
        plain.save(path)
        return keras.models.load_model(path, compile=False)
    return None


def _is_built_in(model: Any) -> bool:
    for node in nodes(model):
        operation = node.operation
        if isinstance(operation, keras.Model):
            if not _is_built_in(operation):
                return False
        else:
            rule = rule_of(operation)
            if rule is None or not rule.built_in:
                return False
    return True


def _shown(values: Array) -> str:
    return np.array2string(np.asarray(values), threshold=12, edgeitems=4, precision=6)


# --- the search ------------------------------------------------------------------------------------------------------


class _Search:
    """Tries pairs of inputs against all constants of a certificate."""

    def __init__(self, rows: _Rows, model: Any, plain: Any, certificate: Any, noise: _Noise) -> None:
        self.pairs, self.largest = 0, 0.0
        self._rows, self._model, self._plain, self._certificate = rows, model, plain, certificate
        self._noise = noise
        self._forward: Callable[[Array], Array] = lambda points: rows.outputs(model, points)

    def try_pairs(self, samples: Array, outputs: Array) -> None:
        """Tries each two neighbours, and keeps the largest slope as a share of its bound.

        Raises:
            BrokenBoundError: If a slope is above its bound by more than rounding.
        """
        first, second = samples[0 : len(samples) // 2 * 2 : 2], samples[1::2]
        apart = np.linalg.norm(second - first, axis=1)
        there: Array = np.all(np.isfinite(outputs), axis=1)
        use = (apart > 0) & there[0 : len(samples) // 2 * 2 : 2] & there[1::2]
        starts, stops = outputs[0 : len(samples) // 2 * 2 : 2], outputs[1::2]
        norms = np.linalg.norm(first, axis=1) + np.linalg.norm(second, axis=1)
        for changes, constants, magnitudes, what in self._claims(starts, stops):
            with np.errstate(divide="ignore", invalid="ignore"):
                slopes = np.asarray(np.where(use, np.abs(changes) / apart, 0.0))
                numbers = magnitudes + self._certificate.lipschitz_constant * norms
                allowed = np.asarray(constants * (1 + _SLACK) + np.where(use, _ROUNDINGS * numbers / apart, 0.0))
            broken = np.flatnonzero(slopes > allowed)
            for index in broken[np.argsort(-slopes[broken], kind="stable")][:_SUSPECTS]:
                if (slopes[index] - allowed[index]) * apart[index] <= self._noise(first[index], second[index]):
                    continue
                self._report(first[index], second[index], float(slopes[index]), float(np.max(constants)), what)
            with np.errstate(divide="ignore", invalid="ignore"):
                shares = np.where(constants > 0, np.minimum(slopes / constants, 1.0), 0.0)
            self.largest = max(self.largest, float(np.max(shares, initial=0.0)))
        self.pairs += int(np.sum(use))

    def _claims(self, starts: Array, stops: Array) -> Iterator[tuple[Array, Any, Array, str]]:
        """Yields changes of outputs with the constants that bound them, the sizes of outputs, and what they are."""
        change = stops - starts
        sizes = np.linalg.norm(starts, axis=1) + np.linalg.norm(stops, axis=1)
        certificate = self._certificate
        yield np.linalg.norm(change, axis=1), certificate.lipschitz_constant, sizes, "all outputs together"
        column = 0
        for head, width in zip(certificate.heads, self._widths(change.shape[1]), strict=True):
            own = change[:, column : column + width]
            column += width
            yield np.linalg.norm(own, axis=1), head.lipschitz_constant, sizes, f"the output '{head.name}'"
            if head.output_constants is not None:
                for index, constant in enumerate(head.output_constants):
                    yield own[:, index], constant, sizes, f"entry {index} of the output '{head.name}'"
            if head.pair_constants is not None:
                for i in range(min(width, _BATCH)):
                    # The worst of the others at once.
                    constants = np.where(np.arange(width) == i, np.inf, head.pair_constants[i])
                    with np.errstate(divide="ignore", invalid="ignore"):
                        ratios = np.abs(own - own[:, [i]]) / constants
                    j = np.argmax(np.where(np.isfinite(ratios), ratios, np.inf), axis=1)
                    rows = np.arange(len(own))
                    what = f"the difference of entry {i} of the output '{head.name}' and another"
                    yield own[rows, j] - own[:, i], constants[j], sizes, what

    def _widths(self, total: int) -> list[int]:
        heads = self._certificate.heads
        if len(heads) == 1:
            return [total]
        outputs = functional_graph(self._model).outputs if hasattr(self._model, "outputs") else []
        shapes = [tuple(tensor.shape[1:]) for tensor in outputs] or [head.shape for head in heads]
        if any(None in shape for shape in shapes):
            return [total, *[0] * (len(heads) - 1)]
        return [int(np.prod(shape)) for shape in shapes]

    def _report(self, first: Array, second: Array, found: float, claimed: float, what: str) -> None:
        pair = self._rows.as_inputs(first), self._rows.as_inputs(second)
        raise BrokenBoundError(
            f"The self-check of `certify` has broken its own bound: between two inputs the slope of {what} is "
            f"{found:.6g}, and the bound is {claimed:.6g}. A rule that was registered may claim too little, or this "
            f"library is wrong. {_REPORT} Received: the model '{self._model.name}', inputs {_shown(first)} and "
            f"{_shown(second)}",
            pair,
            found,
            claimed,
        )

    def by_power_iteration(self, samples: Array, outputs: Array, rng: np.random.Generator, end: float) -> None:
        """Follows directions that the Jacobian stretches, for each output and difference of two, by finite differences.

        A vector of outputs is pulled back through the Jacobian, the pair moves along what comes of it, and the change
        of outputs is the next vector: power iteration.
        """
        if not any(map(keras.backend.is_float_dtype, self._rows.dtypes)):
            return
        count, width = self._rows.batch or self._rows.many // 2, outputs.shape[1]
        points = samples[rng.integers(0, len(samples), count)] + 0.1 * rng.normal(size=(count, samples.shape[1]))
        points = np.where(np.linalg.norm(points, axis=1, keepdims=True) < 1e3, points, points / 1e3)
        vectors = rng.normal(size=(count, width))
        for index in range(min(count // 2, width)):
            vectors[index] = np.eye(width)[index]
        for index in range(count // 2, count if width > 1 else 0):
            i, j = rng.choice(width, 2, replace=False)
            vectors[index] = np.eye(width)[i] - np.eye(width)[j]
        lengths = np.geomspace(1e-2, 10, count)[rng.permutation(count), None]
        rows = self._rows.map(self._model, count)
        for step in range(_MOST_ROUNDS):
            if step >= _ROUNDS and time.monotonic() > end:
                return
            pulled = rows.vjp(points, vectors)
            directions = _directions(np.where(np.isfinite(pulled), pulled, 0.0))
            others = _directions(rng.normal(size=points.shape))
            directions = np.where(np.any(directions, axis=1, keepdims=True), directions, others)
            both = self._pairs(points, directions, lengths)
            found = self._forward(both)
            self.try_pairs(both, found)
            change = found[1::2] - found[::2]
            if step >= 1:  # each output first, then what moves most
                vectors = np.where(np.isfinite(change), change, 0.0)
            if step % 3 == 2:
                points = self._rows.rounded(both[1::2])

    def _pairs(self, points: Array, directions: Array, lengths: Array) -> Array:
        ends = np.stack([points - lengths / 2 * directions, points + lengths / 2 * directions], axis=1)
        return self._rows.rounded(ends.reshape(-1, points.shape[1]))

    def along_singular_vectors(self, samples: Array, end: float) -> None:
        """Tries the directions that kernels stretch most, pulled back from their layers to the inputs."""
        graph = functional_graph(self._plain)
        for tensor, vectors in _largest_singular_vectors(graph):
            if time.monotonic() > end:
                return
            points = samples[6 : 6 + max(1, (self._rows.batch or 4))]
            if any(tensor is one for one in graph.inputs) and len(graph.inputs) == 1:
                pulled = np.resize(vectors, (len(points), vectors.size // len(vectors)))
            else:
                inner = keras.Model(graph.input, tensor)
                cotangents = np.zeros((len(points), int(np.prod(inner.output_shape[1:]))))
                flat = vectors.reshape(len(vectors), -1)
                cotangents[:, : flat.shape[1]] = np.resize(flat, (len(points), flat.shape[1]))
                pulled = self._rows.map(inner, len(points)).vjp(points, cotangents)
            directions = _directions(np.where(np.isfinite(pulled), pulled, 0.0))
            use = np.any(directions, axis=1)
            if directions.shape[1] != points.shape[1] or not np.any(use):
                continue
            for length in (0.1, 10.0):
                both = self._pairs(points[use], directions[use], np.full((int(np.sum(use)), 1), length))
                self.try_pairs(both, self._forward(both))

    def at_boundaries(self, samples: Array, outputs: Array) -> None:
        """Goes to where answers change, and holds the radii on both sides against the distance.

        Raises:
            BrokenBoundError: If an answer changes within the radius.
        """
        certificate = self._certificate
        heads = list(zip(certificate.heads, self._widths(outputs.shape[1]), strict=True))
        if any(head.task == "regression" for head, _ in heads) or not all(
            width == head.outputs for head, width in heads
        ):
            return

        def answers(values: Array) -> Array:
            parts, column = [], 0
            for head, width in heads:
                parts.append(head.answer(values[:, column : column + width]).reshape(len(values), -1))
                column += width
            return np.concatenate(parts, axis=1)

        finite = np.isfinite(outputs).all(axis=1) & (np.linalg.norm(samples, axis=1) < 1e3)
        starts, given = samples[finite], answers(outputs[finite])
        pairs = [(i, j) for i in range(len(starts)) for j in range(i) if np.any(given[i] != given[j])][:8]
        if not pairs:
            return
        first, second = (starts[list(index)] for index in zip(*pairs, strict=True))
        cuts = np.linspace(0, 1, 9)[:, None, None]
        for _ in range(9):
            points = self._rows.rounded((first + cuts * (second - first)).reshape(-1, first.shape[1]))
            found = answers(self._forward(points)).reshape(len(cuts), len(first), -1)
            changed = np.any(found != found[0], axis=2)
            place = np.argmax(changed, axis=0)
            places, columns = points.reshape(len(cuts), *first.shape), np.arange(len(first))
            first, second = places[np.maximum(place - 1, 0), columns], places[place, columns]
        for near, other in ((first, second), (second, first)):
            values = self._forward(near)
            logits, column = [], 0
            for _, width in heads:
                logits.append(values[:, column : column + width])
                column += width
            arrays = [self._rows.as_inputs(row) for row in near]
            inputs = keras.tree.map_structure(lambda *parts: np.concatenate(parts), *arrays)
            radii = certificate.radius(logits if len(logits) > 1 else logits[0], inputs=inputs)
            radii = radii * certificate.input_scale
            distance = np.linalg.norm(near - other, axis=1)
            differ = np.any(answers(values) != answers(self._forward(other)), axis=1)
            broken = np.flatnonzero(differ & (radii > distance * (1 + 1e-6)))
            self.pairs += len(near)
            if len(broken):
                index = int(broken[0])
                raise BrokenBoundError(
                    "The self-check of `certify` has broken its own radius: the answer changes at a distance of "
                    f"{distance[index]:.6g}, and the radius is {radii[index]:.6g}. {_REPORT} Received: the model "
                    f"'{self._model.name}', inputs {_shown(near[index])} and {_shown(other[index])}",
                    (self._rows.as_inputs(near[index]), self._rows.as_inputs(other[index])),
                    float(distance[index]),
                    float(radii[index]),
                )


def _largest_singular_vectors(graph: Any) -> Iterator[tuple[Any, Array]]:
    """Yields the inputs of dense layers, and the vectors, one a row, that their kernels stretch most."""
    for node in nodes(graph):
        layer = node.operation
        if type(layer) is not keras.layers.Dense or layer.quantization_mode is not None:
            continue
        tensor, kernel = node.input_tensors[0], to_float64(layer.kernel)
        if len(tensor.shape) == 2 and kernel.size <= _LARGEST_KERNEL:
            vector = np.random.default_rng(0).normal(size=len(kernel))
            for _ in range(20):
                vector = kernel @ (kernel.T @ vector)
                norm = np.linalg.norm(vector)
                if not 0 < norm < np.inf:
                    break
                vector /= norm
            else:
                yield tensor, vector[None]


def _directions(vectors: Array) -> Array:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((norms > 0) & np.isfinite(norms), vectors / norms, 0.0)
