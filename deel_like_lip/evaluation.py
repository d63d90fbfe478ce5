"""Certified accuracy of a model on a whole dataset, and the picture of it."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from deel_like_lip.certificates import (
    Certificate,
    certify_fold,
    checked_radii,
    output_names,
)
from deel_like_lip.folding import vanilla_model

Array = npt.NDArray[np.float64]
Batch = tuple[Any, Any, Array]


def certified_accuracy(
    model: keras.Model,
    data: Any,
    radii: Sequence[float],
    *,
    certificate: Certificate | None = None,
    batch_size: int = 256,
    steps: int | None = None,
    verbose: int = 0,
) -> Array:
    """Returns the share of a dataset that is classified right and certified to stay so, at each radius.

    The folded model predicts, batch by batch, so the data need not fit into memory. Samples that are not finite, or
    outside of the certificate's `input_range`, count as not certified at any radius. A sample with several outputs
    counts if all of them are right and stay so.

    Args:
        model: A built model that `certify` accepts, or the one that `certificate` belongs to.
        data: A tuple `(x, y)` or `(x, y, sample_weight)` of arrays, or batches of such: a `tf.data.Dataset`, a
            `keras.utils.PyDataset`, a torch `DataLoader` or any iterable. For models with several inputs or outputs x
            and y are lists or dicts. Each sample counts by its weight.
        radii: l2 distances, in the units of the certificate. A sample counts at those that are below its own radius.
        certificate: The certificate of the model, with the task, rounding and input range to go by. By default the
            model is certified here, by the defaults of `certify`.
        batch_size: Samples that are predicted at once. Where the data comes in batches, these are taken as they are.
        steps: The largest number of batches to use. Data without an end needs it.
        verbose: 1 for progress bars.

    Returns:
        Array of shape `(len(radii),)`.

    Raises:
        CertificateError: If the certificate is that of another model, or of other weights. It is a `ValueError`.
        CannotBoundError: If the model cannot be certified. It is a `ValueError`.
        ValueError: If an argument is wrong, an output is one of regression, or the data is empty, without labels,
            without an end, or does not fit the model.

    Example:
        >>> certified_accuracy(model, (x_test, y_test), [0.0, 0.1, 0.3]).shape
        (3,)
        >>> certified_accuracy(model, (x_test, y_test), [1e9])
        array([0.])
    """
    plain = vanilla_model(model)
    if certificate is None:
        certificate = certify_fold(model, plain, verbose=verbose)
    else:
        certificate.check_model(plain, output_names(model))
    return evaluate(plain, certificate, data, radii, batch_size=batch_size, steps=steps, verbose=verbose)


def evaluate(
    plain: keras.Model,
    certificate: Certificate,
    data: Any,
    radii: Sequence[float],
    *,
    batch_size: int = 256,
    steps: int | None = None,
    verbose: int = 0,
) -> Array:
    """Returns the certified accuracy of a model that is folded already and has this certificate."""
    limits = checked_radii(radii)
    check_answers(certificate)
    layout = _Layout(plain, certificate)
    batches, total = _batches(layout, data, batch_size, steps)
    bar = keras.utils.Progbar(total, verbose=verbose)
    certified, weight = np.zeros(len(limits)), 0.0
    done = samples = size = 0
    for done, (inputs, labels, weights) in enumerate(batches, start=1):
        if len(weights):
            inputs = layout.as_seen(inputs)
            size = plain.inputs[0].shape[0] or max(size, len(weights))
            outputs = _predict(plain, inputs, len(weights), size)
            own = certificate.radius(outputs, targets=labels, inputs=layout.in_order(inputs))
            certified += weights @ (own[:, None] > limits)
        samples += len(weights)
        weight += float(np.sum(weights))
        bar.update(done)
    if total is None or done < total:
        bar.update(done, finalize=True)
    if not weight > 0:
        what = "weights that are not all 0" if samples else "at least one sample"
        raise ValueError(f"Expected `data` with {what}. Received: {samples} samples in {done} batches")
    return np.minimum(certified / weight, 1.0)


def check_answers(certificate: Certificate) -> None:
    """Raises if an output of the model has no answer that could be right."""
    for head in certificate.heads:
        if head.task == "regression":
            raise ValueError(
                "The certified accuracy is that of answers. Received: a certificate by which the output "
                f"'{head.name}' has none (regression). Certify the model with another `task`."
            )


def checked_count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"Expected `{name}` to be a positive integer. Received: {name}={value!r}")
    return value


def _predict(plain: keras.Model, inputs: Any, samples: int, size: int) -> Any:
    """Returns the outputs, computed in batches of one size, so that the model is compiled once."""
    parts = []
    for start in range(0, samples, size):
        batch = keras.tree.map_structure(lambda array, start=start: _filled(array[start : start + size], size), inputs)
        parts.append(plain.predict_on_batch(batch))
    return keras.tree.map_structure(lambda *outputs: np.concatenate(outputs)[:samples], *parts)


def _filled(array: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """Returns the array with zeros for the samples that are missing, which others do not notice at inference."""
    missing = size - len(array)
    return np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)]) if missing else array


class _Layout:
    """The form in which a model and its certificate take inputs and labels."""

    def __init__(self, plain: Any, certificate: Certificate) -> None:
        self._tensors = list(plain.inputs)
        self._heads = len(certificate.heads)
        structure = plain._inputs_struct
        keys = {id(tensor): key for key, tensor in structure.items()} if isinstance(structure, dict) else {}
        self._names = [keys.get(id(tensor), tensor.name) for tensor in plain.inputs]

    def arrays(self, batch: Any) -> Batch:
        """Returns the inputs, the labels and the weights of a batch, with as many samples in each."""
        if not isinstance(batch, (tuple, list)) or not 2 <= len(batch) <= 3 or batch[1] is None:
            raise _not_labelled(batch)
        inputs = _arrays(batch[0], len(self._tensors) > 1)
        labels = _arrays(batch[1], self._heads > 1)
        weights = batch[2] if len(batch) == 3 else None
        if isinstance(weights, (dict, list, tuple)) and self._heads > 1:
            raise ValueError(
                "Expected an array `sample_weight`, of one weight a sample for all outputs together. Received: "
                f"{type(weights).__name__}"
            )
        parts = keras.tree.flatten((inputs, labels))
        parts += [] if weights is None else [_to_numpy(weights)]
        lengths = [part.shape[0] if part.ndim else None for part in parts]
        if len(set(lengths)) != 1 or lengths[0] is None:
            raise ValueError(
                "Expected `data` in batches, with as many inputs as labels and weights. Received: arrays of shapes "
                f"{[part.shape for part in parts]}"
            )
        return inputs, labels, np.ones(lengths[0]) if weights is None else _checked_weights(parts[-1])

    def as_seen(self, inputs: Any) -> Any:
        """Returns inputs in the model's own dtypes, to which Keras casts them; checks their shapes."""
        received = list(inputs) if isinstance(inputs, dict) else len(inputs) if isinstance(inputs, list) else 1
        if isinstance(inputs, dict) and set(self._names) <= set(inputs):
            return {name: _cast(inputs[name], tensor) for name, tensor in zip(self._names, self._tensors, strict=True)}
        arrays = inputs if isinstance(inputs, list) else [inputs]
        if isinstance(inputs, dict) or len(arrays) != len(self._tensors):
            raise ValueError(f"Expected `data` with the inputs {self._names} of the model. Received: {received}")
        cast = [_cast(array, tensor) for array, tensor in zip(arrays, self._tensors, strict=True)]
        return cast if isinstance(inputs, list) else cast[0]

    def in_order(self, inputs: Any) -> Any:
        """Returns inputs in the order of the certificate."""
        return [inputs[name] for name in self._names] if isinstance(inputs, dict) else inputs


def _batches(layout: _Layout, data: Any, batch_size: int, steps: int | None) -> tuple[Iterator[Batch], int | None]:
    """Returns the batches, and how many there will be, where that is known."""
    checked_count(batch_size, "batch_size")
    if steps is not None:
        checked_count(steps, "steps")
    batches: Iterator[Batch]
    total: int | None
    if isinstance(data, tuple):
        arrays = layout.arrays(data)
        samples = len(arrays[2])
        total = -(-samples // batch_size)
        batches = (
            keras.tree.map_structure(lambda array, start=start: array[start : start + batch_size], arrays)
            for start in range(0, samples, batch_size)
        )
    elif hasattr(data, "__iter__") and not hasattr(data, "shape") and not isinstance(data, (str, bytes, Mapping)):
        total, endless = _length(data)
        if endless and steps is None:
            raise ValueError(f"Expected `steps`, since the `data` has no end. Received: steps={steps}, data={data!r}")
        if isinstance(data, keras.utils.PyDataset):
            data = map(data.__getitem__, itertools.count() if total is None else range(total))
        batches = map(layout.arrays, data)
    else:
        raise _not_labelled(data)
    if steps is not None:
        total = steps if total is None else min(steps, total)
    return itertools.islice(batches, steps), total


def _not_labelled(data: Any) -> ValueError:
    parts = [type(part).__name__ for part in data] if isinstance(data, (tuple, list)) else type(data).__name__
    return ValueError(
        "Expected `data` to be a tuple (x, y) or (x, y, sample_weight), or an iterable of such batches; there must be "
        f"labels y. Received: {parts}"
    )


def _length(data: Any) -> tuple[int | None, bool]:
    """Returns how many batches there are, where that is known, and whether there is no end to them."""
    if isinstance(data, keras.utils.PyDataset):
        return data.num_batches, data.num_batches is None
    if hasattr(data, "cardinality"):  # of tf.data: -1 is infinite, -2 is unknown
        count = int(data.cardinality())
        return (count if count >= 0 else None), count == -1
    try:
        return len(data), False
    except TypeError:
        return None, False


def _arrays(values: Any, several: bool) -> Any:
    if isinstance(values, Mapping):
        return {name: _to_numpy(value) for name, value in values.items()}
    if several and isinstance(values, (list, tuple)):
        return [_to_numpy(value) for value in values]
    return _to_numpy(values)


def _to_numpy(value: Any) -> npt.NDArray[Any]:
    if hasattr(value, "detach"):  # of torch, perhaps on another device, whatever the backend
        value = value.detach().cpu()
    return np.asarray(value)


def _cast(array: npt.NDArray[Any], tensor: Any) -> npt.NDArray[Any]:
    shape = tuple(tensor.shape[1:])
    fits = array.ndim == len(shape) + 1 and all(
        own in (None, size) for own, size in zip(shape, array.shape[1:], strict=True)
    )
    if not fits:
        raise ValueError(
            f"Expected `data` with batches of inputs of shape {(None, *shape)}. Received: inputs of shape {array.shape}"
        )
    with np.errstate(over="ignore"):  # what becomes infinite is not certified
        return array.astype(keras.backend.standardize_dtype(tensor.dtype), copy=False)


def _checked_weights(weights: npt.NDArray[Any]) -> Array:
    values: Array = weights.astype(np.float64).reshape(len(weights), -1)
    if values.shape[1:] != (1,) or not np.all((values >= 0) & (values < np.inf)):
        raise ValueError(
            "Expected one finite weight of at least 0 for each sample. Received: sample_weight of shape "
            f"{weights.shape}, from {np.min(values, initial=np.inf)} to {np.max(values, initial=-np.inf)}"
        )
    return values[:, 0]


# --- the picture -----------------------------------------------------------------------------------------------------


def accuracy_under_attack(distances: npt.ArrayLike, radii: Sequence[float]) -> Array:
    """Returns the share of samples that an attack did not break, at each radius.

    It is above the certified accuracy at every radius; the truth lies between the two.

    Args:
        distances: For each sample the l2 distance of the nearest input found that is answered wrongly: 0 where the
            sample itself is, infinity where none was found.
        radii: l2 distances.

    Returns:
        Array of shape `(len(radii),)`.

    Raises:
        ValueError: If the distances are not one for each of at least one sample, or the radii no distances.

    Example:
        >>> accuracy_under_attack([0.0, 0.4, np.inf], [0.0, 0.5])
        array([0.66666667, 0.33333333])
    """
    values = np.asarray(distances, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.all(values >= 0):
        raise ValueError(
            "Expected `distances` to be one distance of at least 0, or infinity, for each sample. Received: distances "
            f"of shape {values.shape}" + (f" with {values[~(values >= 0)][0]}" if np.any(~(values >= 0)) else "")
        )
    shares: Array = np.mean(values[:, None] > checked_radii(radii), axis=0)
    return shares


def plot_certified_accuracy(
    radii: Sequence[float],
    certified: npt.ArrayLike | Mapping[str, npt.ArrayLike],
    attacked: npt.ArrayLike | Mapping[str, npt.ArrayLike] | None = None,
    *,
    path: str | os.PathLike[str] | None = None,
    ax: Any = None,
    unit: str = "units of the input",
    title: str | None = None,
) -> Any:
    """Draws certified accuracy against radius, and the accuracy under attack above it.

    Args:
        radii: l2 distances.
        certified: What `certified_accuracy` returned for them, or a dict of such by the names of models.
        attacked: The accuracies under attack at these radii, as `accuracy_under_attack` returns them; a dict by the
            same names for several models.
        path: The file to write, such as `"curve.png"`. The figure is closed then, unless `ax` is yours.
        ax: The matplotlib axes to draw on. By default a new figure is made.
        unit: The unit of the radii, for the axis.
        title: Title of the axes.

    Returns:
        The axes.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
        ValueError: If the radii do not increase, or there is not a share between 0 and 1 for each of them.

    Example:
        >>> radii = np.linspace(0, 1, 101)
        >>> plot_certified_accuracy(radii, certified_accuracy(model, test_data, radii), path="curve.png")
    """
    limits = checked_radii(radii)
    if np.any(np.diff(limits) <= 0):
        raise ValueError(f"Expected increasing `radii`. Received: radii={radii}")
    curves = _curves(certified, "certified", limits)
    attacks = {} if attacked is None else _curves(attacked, "attacked", limits)
    if not set(attacks) <= set(curves):
        raise ValueError(
            f"Expected `attacked` for the models of `certified`, {list(curves)}. Received: {list(attacks)}"
        )
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "`plot_certified_accuracy` needs matplotlib: pip install 'deel-like-lip[plot]'"
        ) from error

    own = ax is None
    if own:
        _, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for index, (name, shares) in enumerate(curves.items()):
        color = f"C{index}"
        prefix = f"{name}, " if name else ""
        if name in attacks:
            ax.plot(limits, 100 * attacks[name], "--", color=color, label=f"{prefix}under attack")
            if len(curves) == 1:  # several shades over one another say nothing
                ax.fill_between(limits, 100 * shares, 100 * attacks[name], color=color, alpha=0.1, linewidth=0)
        ax.plot(limits, 100 * shares, "-", color=color, linewidth=2, label=f"{prefix}certified")
    ax.set(xlim=(0, limits[-1] or 1), ylim=(0, 100), xlabel=f"l2 radius ({unit})", ylabel="accuracy (% of samples)")
    if title:
        ax.set_title(title)
    ax.grid(alpha=0.3)
    ax.legend()
    if path is not None:
        ax.figure.savefig(path, dpi=150)
        if own:
            plt.close(ax.figure)
    return ax


def _curves(values: Any, argument: str, limits: Array) -> dict[str, Array]:
    curves = {
        name: np.asarray(shares, dtype=np.float64)
        for name, shares in (values.items() if isinstance(values, Mapping) else [("", values)])
    }
    for shares in curves.values():
        if shares.shape != limits.shape or not np.all((shares >= 0) & (shares <= 1)):
            raise ValueError(
                f"Expected `{argument}` to have a share between 0 and 1 for each of {len(limits)} radii. Received: "
                f"{argument} of shape {shares.shape}: {shares}"
            )
    return curves
