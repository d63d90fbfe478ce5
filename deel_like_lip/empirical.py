"""Lower bounds of Lipschitz constants, found by search: what a certificate is held against."""

from typing import Any

import keras
import numpy as np

from deel_like_lip._autodiff import Array, RowMap

# Lengths are relative to `_unit`, which is about how far samples are apart.
_SHORTEST = 1e-2  # of pairs in the search: nearer ends would differ by little but rounding
_STEP = 0.1  # that the search begins with; it then grows and shrinks
_JITTER = 1e-4  # off kinks, or from one point to those nearby
_PAIRS = 128  # that are searched at once
_POLISHING = 5  # power iterations at points that the search found


def empirical_lipschitz(
    model: keras.Model,
    data: Any,
    *,
    iterations: int = 15,
    search_steps: int = 100,
    batch_size: int = 256,
    seed: int = 0,
) -> float:
    """Returns a lower bound of a model's l2 Lipschitz constant: the largest `|f(y) - f(x)| / |y - x|` that was found.

    The constant that `certify` returns is never below it, but for rounding, and the two together say how tight both
    are. The search begins with the largest singular vectors of the samples' Jacobians, by power iteration on products
    with them, and goes uphill with both ends of pairs, which also leaves the places where the data is. That nothing
    larger exists is not implied.

    All is computed in the model's own precision. In float32 the result is above the true ratio by no more than 1e-5 of
    it: slopes are products with the Jacobian, which round by less, and count only if they are found at points nearby as
    well; ratios of pairs are taken at a distance, less what rounding can add. On accelerators that multiply in TF32 it
    is as imprecise as that is. Samples do not interact in Keras's layers at inference, so batches are worked on at
    once; for a model in which they do the result means nothing.

    Args:
        model: A built model, of any layers. Several outputs are flattened and taken as one, and so are several inputs.
        data: Samples to start from, as an array of shape `(samples, ...)`, or a list, tuple or dict of arrays for a
            model with several inputs.
        iterations: Power iterations at each sample.
        search_steps: Steps uphill; 0 looks at the samples only.
        batch_size: Samples that are computed at once.
        seed: Of the starting vectors.

    Returns:
        The lower bound, in output units by input units.

    Raises:
        ValueError: If the model is not built, or does not fit the data; or if the data is empty, or it or what the
            model returns for it is not finite.

    Example:
        >>> 0.9 < empirical_lipschitz(model, x_test[:500]) < certify(model).lipschitz_constant
        True
    """
    for name, value, least in [
        ("iterations", iterations, 1),
        ("search_steps", search_steps, 0),
        ("batch_size", batch_size, 1),
    ]:
        if value < least:
            raise ValueError(f"`empirical_lipschitz` expects {name} of at least {least}. Received: {name}={value}")
    shapes, samples = _checked(model, data)
    structure = keras.tree.map_structure(lambda _: 0, data)
    rows = RowMap(model, shapes, structure, min(batch_size, max(len(samples), 2 * _PAIRS if search_steps else 0)))
    rng = np.random.default_rng(seed)
    unit = _unit(samples, rng)
    try:
        outputs = rows.forward(samples)
    except ValueError:
        raise
    except Exception as error:  # that of the backend, about a shape that a subclassed model does not tell beforehand
        raise ValueError(
            f"`empirical_lipschitz` could not call the model '{model.name}' on the data. Received: data of shapes "
            f"{[(len(samples), *shape) for shape in shapes]}"
        ) from error
    if not np.all(np.isfinite(outputs)):
        raise ValueError(
            f"`empirical_lipschitz` expects the model '{model.name}' to return finite outputs for the data."
        )

    points = _nearby(samples, unit, rng)
    directions, stretches = _power_iteration(rows, points, rng.normal(size=samples.shape), iterations)
    largest = 0.0
    if search_steps:
        pairs = _search(rows, _first_pairs(points, directions, stretches, unit, rng), unit, search_steps)
        largest = _largest_ratio(rows, pairs)
        for share in (0.0, 0.5, 1.0):
            inner = pairs[0] + share * (pairs[1] - pairs[0])
            inner_directions, inner_stretches = _power_iteration(rows, inner, pairs[1] - pairs[0], _POLISHING)
            points = np.concatenate([points, inner])
            directions = np.concatenate([directions, inner_directions])
            stretches = np.append(stretches, inner_stretches)

    best = np.argsort(-stretches, kind="stable")[:_PAIRS]
    points, directions, stretches = points[best], directions[best], stretches[best]
    # At a kink, such as a tie of a maximum, automatic differentiation may give more than the function's slope. Kinks
    # have no volume: what is not one is also found nearby.
    for _ in range(2):
        stretches = np.minimum(stretches, _stretch(rows, _nearby(points, unit, rng), directions))
    return max(largest, float(np.max(stretches)))


def _checked(model: Any, data: Any) -> tuple[list[tuple[int, ...]], Array]:
    """Returns the shapes of the model's inputs for one sample, and the data as rows in float64."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"`empirical_lipschitz` expects a `keras.Model`. Received: model={model!r}")
    if not model.built:
        raise ValueError(
            f"The model '{model.name}' is not built, so it has no weights yet. Call it on data or give it an `Input` "
            "first."
        )
    arrays = [keras.ops.convert_to_numpy(array) for array in keras.tree.flatten(data)]
    received = f"Received: data of shapes {[array.shape for array in arrays]}"
    counts = {array.shape[:1] for array in arrays}
    if len(counts) != 1 or counts & {(), (0,)}:
        raise ValueError(
            "`empirical_lipschitz` expects `data` as an array of shape (samples, ...), with at least one sample, or as "
            f"several arrays with as many samples each. {received}"
        )
    expected = [(tuple(tensor.shape), tensor.dtype) for tensor in getattr(model, "inputs", None) or []]
    fits = len(expected) == len(arrays) and all(
        len(shape) == array.ndim
        and all(own in (None, size) for own, size in zip(shape[1:], array.shape[1:], strict=True))
        for (shape, _), array in zip(expected, arrays, strict=True)
    )
    if expected and not fits:
        raise ValueError(
            f"`empirical_lipschitz` expects `data` of the shapes that the model '{model.name}' takes, "
            f"{[shape for shape, _ in expected]}. {received}"
        )
    if not all(keras.backend.is_float_dtype(dtype) for _, dtype in expected):
        raise ValueError(
            f"`empirical_lipschitz` expects a model whose inputs are floats. Received: inputs of the model "
            f"'{model.name}' with dtypes {[dtype for _, dtype in expected]}"
        )
    rows = np.concatenate([array.reshape(len(array), -1).astype(np.float64) for array in arrays], axis=1)
    if not np.all(np.isfinite(rows)):
        raise ValueError(
            "`empirical_lipschitz` expects finite data. Received: data with "
            f"{np.count_nonzero(~np.isfinite(rows))} entries that are NaN or infinite"
        )
    return [array.shape[1:] for array in arrays], rows


def _unit(samples: Array, rng: np.random.Generator) -> float:
    """Returns the median distance of two samples, but not less than a tenth of their norm."""
    others = samples[rng.permutation(len(samples))]
    apart = float(np.median(np.linalg.norm(samples - others, axis=1)))
    norm = float(np.median(np.linalg.norm(samples, axis=1)))
    return max(apart, 0.1 * norm) if apart else norm or 1.0


def _nearby(points: Array, unit: float, rng: np.random.Generator) -> Array:
    return points + unit * _JITTER * _directions(rng.normal(size=points.shape))


def _directions(vectors: Array) -> Array:
    """Returns vectors of length 1, or 0 for those that have no direction."""
    vectors = _finite(vectors)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    result: Array = vectors / np.where(norms > 0, norms, 1)
    return result


def _finite(values: Array) -> Array:
    """Returns values with zeros where they are not finite, as the gradient of a root at 0 in folded l2-norm pooling.

    The rest of a product with the Jacobian is no longer than the whole.
    """
    return np.where(np.isfinite(values), values, 0.0)


def _power_iteration(rows: RowMap, points: Array, vectors: Array, iterations: int) -> tuple[Array, Array]:
    """Returns at each point a direction, near that which the Jacobian stretches most, and by how much it does."""
    vectors = _directions(vectors)
    for _ in range(iterations):
        back = _directions(rows.vjp(points, _directions(rows.jvp(points, vectors))))
        vectors = np.where(np.any(back, axis=1, keepdims=True), back, vectors)
    return vectors, _stretch(rows, points, vectors)


def _stretch(rows: RowMap, points: Array, directions: Array) -> Array:
    stretch: Array = np.linalg.norm(_finite(rows.jvp(points, directions)), axis=1)
    return stretch


def _first_pairs(samples: Array, directions: Array, stretches: Array, unit: float, rng: np.random.Generator) -> Array:
    """Returns pairs to begin the search with, shape (2, pairs, size): around samples, and from sample to sample."""
    best = np.resize(np.argsort(-stretches, kind="stable"), _PAIRS // 2)
    spread = unit * np.geomspace(2 * _SHORTEST, 4, len(best))[:, None]
    around = np.stack([samples[best] - spread / 2 * directions[best], samples[best] + spread / 2 * directions[best]])
    between = samples[rng.integers(0, len(samples), (2, _PAIRS - len(best)))]
    return np.concatenate([around, between], axis=1)


def _search(rows: RowMap, ends: Array, unit: float, steps: int) -> Array:
    """Moves both ends of pairs such that the ratio grows, and returns for each pair the best that it has been at.

    Between kinks of a piecewise linear model the norm of the Jacobian is constant, so only ends that lie in different
    pieces feel where it is larger.
    """
    best, highest, last = ends, np.full(ends.shape[1], -1.0), np.zeros(ends.shape[1])
    sizes = np.full(ends.shape[1], unit * _STEP)
    for step in range(steps + 1):
        ends = _apart(ends, unit * _SHORTEST)
        flat = ends.reshape(-1, ends.shape[-1])
        start, stop = rows.forward(flat).reshape(2, ends.shape[1], -1)
        change, difference = stop - start, ends[1] - ends[0]
        distance = np.linalg.norm(difference, axis=1, keepdims=True)
        length = np.linalg.norm(change, axis=1, keepdims=True)
        ratio = _finite(length / distance)[:, 0]
        best = np.where((ratio > highest)[:, None], ends, best)
        highest = np.maximum(ratio, highest)
        if step == steps:
            break
        sizes = sizes * np.where(ratio > last, 1.1, 0.8)
        last = ratio
        # The gradient of log |f(y) - f(x)| - log |y - x|.
        pull = _directions(change)
        gradient = rows.vjp(flat, np.concatenate([-pull, pull])).reshape(ends.shape) / np.where(length > 0, length, 1)
        gradient = gradient + np.stack([difference, -difference]) / distance**2
        uphill = _directions(np.concatenate(list(gradient), axis=1))
        ends = ends + sizes[:, None] * np.stack(np.split(uphill, 2, axis=1))
    return best


def _apart(ends: Array, shortest: float) -> Array:
    """Moves the ends of pairs apart that are closer than `shortest`."""
    middle, half = (ends[0] + ends[1]) / 2, (ends[1] - ends[0]) / 2
    half = np.where(np.any(half, axis=1, keepdims=True), half, 1.0)
    half = half * np.maximum(shortest / (2 * np.linalg.norm(half, axis=1, keepdims=True)), 1)
    return np.stack([middle - half, middle + half])


def _largest_ratio(rows: RowMap, pairs: Array) -> float:
    """Returns the largest ratio, less what rounding can add to it.

    Outputs are off by some units in the last place of the largest numbers in the model, which are taken to be of the
    size of its outputs, or of its inputs times the ratio.
    """
    first, second = pairs.astype(rows.dtype)  # as they are fed
    start, stop = rows.forward(first), rows.forward(second)
    distance = np.linalg.norm(second.astype(np.float64) - first.astype(np.float64), axis=1)
    ratio = _finite(np.linalg.norm(stop - start, axis=1) / distance)
    norms = np.linalg.norm(first, axis=1) + np.linalg.norm(second, axis=1)
    magnitude = ratio * norms + np.linalg.norm(start, axis=1) + np.linalg.norm(stop, axis=1)
    return float(np.max(_finite(ratio - 4 * np.finfo(rows.dtype).eps * magnitude / distance), initial=0.0))
