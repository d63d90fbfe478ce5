"""How far bounds are above the true constants: convolutions against explicit matrices, graphs against their Jacobians.

    python benchmarks/bound_tightness.py                      # 3000 convolutions, 200 graphs: about ten minutes
    python benchmarks/bound_tightness.py --convolutions 200 --graphs 20

A bound below what was found is an error, and ends the run with exit status 1.
"""

import argparse
import collections
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import numpy.typing as npt
from keras import layers, ops

from deel_like_lip._autodiff import RowMap
from deel_like_lip.bounds import bound_graph
from deel_like_lip.bounds.convolution import Axis, explicit_matrix, grouped_convolution_bound

Array = npt.NDArray[np.float64]


# --- convolutions ----------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A random convolution: the kernels of its groups, its axes, and what it is called."""

    kind: str
    kernels: Array
    axes: tuple[Axis, ...]


def random_convolution(rng: np.random.Generator) -> Case:
    """Draws kernel sizes 1-7, strides 1-4, dilation 1-3, images of 1-16 pixels a side and 1-8 channels."""
    kind = str(rng.choice(["convolution", "transposed", "depthwise", "causal 1D"]))
    rank = 1 if kind == "causal 1D" else 2
    padding = "causal" if rank == 1 else str(rng.choice(["valid", "same"]))
    axes = []
    for _ in range(rank):
        stride, dilation, size = (int(rng.integers(1, top + 1)) for top in (4, 3, 16))
        taps = int(rng.integers(1, 8))
        if padding == "valid":
            taps = min(taps, (size - 1) // dilation + 1)
        axes.append(Axis.of(taps, stride, dilation, padding, size))
    groups = int(rng.integers(1, 9)) if kind == "depthwise" else int(rng.choice([1, 1, 2, 4]))
    inputs = 1 if kind == "depthwise" else int(rng.integers(1, 8 // groups + 1))
    outputs = int(rng.integers(1, 8 // groups + 1))
    shape = (groups, *(axis.taps for axis in axes), inputs, outputs)
    kernels = rng.normal(size=shape)
    style = rng.integers(3)
    if style == 1:
        kernels = 1 + 0.1 * kernels
    elif style == 2:
        kernels = kernels * (rng.uniform(size=shape) < 0.3)
    return Case(kind, kernels, tuple(axes))


def true_norm(case: Case) -> float:
    """Returns the norm of the explicit matrix by singular values."""
    norms = []
    for kernel in case.kernels:
        matrix = explicit_matrix(kernel, case.axes).reshape(
            math.prod(axis.size or 0 for axis in case.axes) * kernel.shape[-2], -1
        )
        gram = matrix @ matrix.T if len(matrix) < matrix.shape[1] else matrix.T @ matrix
        norms.append(float(np.sqrt(max(np.linalg.eigvalsh(gram)[-1], 0.0))))
    return max(norms)


def measure_convolutions(count: int, seed: int) -> tuple[dict[str, list[float]], int]:
    """Returns the ratios of bound and norm by kind, with and without the image's size, and how many were below 1."""
    rng = np.random.default_rng(seed)
    ratios: dict[str, list[float]] = collections.defaultdict(list)
    wrong = 0
    for _ in range(count):
        case = random_convolution(rng)
        exact = true_norm(case)
        if exact == 0:
            continue
        bound = grouped_convolution_bound(case.kernels, case.axes)
        anywhere = grouped_convolution_bound(
            case.kernels, [Axis(axis.taps, axis.stride, axis.dilation) for axis in case.axes]
        )
        wrong += bound < exact * (1 - 1e-12) or anywhere < exact * (1 - 1e-12)
        ratios[case.kind].append(bound / exact)
        ratios["any size"].append(anywhere / exact)
    return ratios, wrong


# --- graphs ----------------------------------------------------------------------------------------------------------

VECTOR, IMAGE = (6,), (4, 4, 3)
Grow = Callable[[Any, np.random.Generator], Any]


def _sort_pairs(x: Any, rng: np.random.Generator) -> Any:
    left, right = ops.split(x, 2, axis=-1)
    return ops.concatenate([ops.minimum(left, right), ops.maximum(left, right)], axis=-1)


def _random_normalization() -> Any:
    uniform = keras.initializers.RandomUniform(0.3, 2.0)
    return layers.BatchNormalization(
        gamma_initializer=uniform, moving_variance_initializer=uniform, moving_mean_initializer=uniform
    )


ANYWHERE: list[Grow] = [
    lambda x, rng: layers.ReLU()(x),
    lambda x, rng: layers.LeakyReLU(float(rng.uniform(0, 2)))(x),
    lambda x, rng: layers.Activation(str(rng.choice(["tanh", "gelu", "softplus", "silu", "elu"])))(x),
    lambda x, rng: layers.Rescaling(float(rng.uniform(-2, 2)), 0.5)(x),
    lambda x, rng: _random_normalization()(x),
    lambda x, rng: layers.LayerNormalization(epsilon=0.5)(x),
    lambda x, rng: ops.abs(x),
    lambda x, rng: x * float(rng.uniform(-2, 2)),
    lambda x, rng: ops.flip(x, axis=-1),
    lambda x, rng: layers.Dropout(0.5)(x),
    lambda x, rng: layers.Softmax()(x),
]
OF_VECTORS: list[Grow] = [
    lambda x, rng: layers.Dense(6)(x),
    lambda x, rng: layers.Dense(6, activation="relu")(x),
    lambda x, rng: layers.EinsumDense("ab,bc->ac", 6)(x),
    lambda x, rng: ops.sort(x, axis=-1),
    _sort_pairs,
    lambda x, rng: ops.take(x, rng.integers(0, 6, 6), axis=-1),
    lambda x, rng: ops.concatenate([x[:, 2:], x[:, :2]], axis=-1),
]
OF_IMAGES: list[Grow] = [
    lambda x, rng: layers.Conv2D(3, 3, padding="same")(x),
    lambda x, rng: layers.Conv2D(3, (1, 3), padding="same", activation="relu")(x),
    lambda x, rng: layers.DepthwiseConv2D(3, padding="same")(x),
    lambda x, rng: layers.SeparableConv2D(3, 2, padding="same")(x),
    lambda x, rng: layers.Conv2DTranspose(3, 3, padding="same")(x),
    lambda x, rng: layers.MaxPooling2D(3, strides=1, padding="same")(x),
    lambda x, rng: layers.AveragePooling2D(3, strides=1, padding="same")(x),
    lambda x, rng: layers.AveragePooling2D(2)(layers.UpSampling2D(2)(x)),
    lambda x, rng: layers.Cropping2D(1)(layers.ZeroPadding2D(1)(x)),
    lambda x, rng: layers.Reshape(IMAGE)(layers.Dense(48)(layers.Flatten()(x))),
]
OF_TWO: list[Callable[[Any, Any], Any]] = [
    lambda x, y: layers.Add()([x, y]),
    lambda x, y: x - y,
    lambda x, y: layers.Average()([x, y]),
    lambda x, y: layers.Maximum()([x, y]),
    lambda x, y: ops.minimum(x, y),
]


def random_graph(rng: np.random.Generator) -> keras.Model:
    """Draws a model of up to six operations a path, with branches that meet again, of vectors or small images."""
    shape, own = (VECTOR, OF_VECTORS) if rng.integers(2) else (IMAGE, OF_IMAGES)
    inputs = [keras.Input(shape) for _ in range(int(rng.integers(1, 3)))]
    tensors = [(tensor, 0) for tensor in inputs]
    for _ in range(int(rng.integers(2, 10))):
        (x, depth), (y, other) = (tensors[int(rng.integers(len(tensors)))] for _ in range(2))
        if max(depth, other) >= 6:
            continue
        if rng.uniform() < 0.35:
            grown, depth = OF_TWO[int(rng.integers(len(OF_TWO)))](x, y), max(depth, other)
        else:
            choices = own if rng.uniform() < 0.6 else ANYWHERE
            grown = choices[int(rng.integers(len(choices)))](x, rng)
        tensors.append((grown, depth + 1))
    outputs = [tensor for tensor, _ in tensors[len(inputs) :]]
    if not outputs:
        outputs = [layers.ReLU()(inputs[0])]
    head = (
        outputs[-1] if rng.uniform() < 0.7 else layers.Concatenate()(outputs[-2:] if len(outputs) > 1 else outputs * 2)
    )
    model = keras.Model(inputs, head)
    for variable in model.trainable_variables:  # biases and scales that are not trivial
        if len(variable.shape) == 1:
            variable.assign(rng.normal(size=variable.shape))
    return model


def largest_jacobian(model: keras.Model, rng: np.random.Generator, points: int = 24) -> float:
    """Returns the largest norm of the Jacobian that random points show, one output after another."""
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    points_of_inputs = [rng.normal(size=(points, int(np.prod(shape)))) for shape in shapes]
    rows = np.concatenate(points_of_inputs, axis=1) * 10.0 ** rng.uniform(-1, 1, (points, 1))
    function = RowMap(model, shapes, structure=[0] * len(shapes) if len(shapes) > 1 else 0, batch_size=points)
    outputs = int(np.prod(model.output_shape[1:]))
    jacobians = np.stack([function.vjp(rows, np.eye(outputs)[[index] * points]) for index in range(outputs)], axis=1)
    return float(np.max(np.linalg.norm(jacobians, 2, axis=(1, 2))))


def measure_graphs(count: int, seed: int) -> tuple[list[float], int]:
    """Returns the ratios of bound and largest Jacobian, and how many bounds were below it."""
    rng = np.random.default_rng(seed)
    ratios, wrong = [], 0
    for _ in range(count):
        keras.utils.set_random_seed(int(rng.integers(2**31)))
        model = random_graph(rng)
        found, bound = largest_jacobian(model, rng), bound_graph(model).constant
        wrong += found > bound * (1 + 1e-4)  # the Jacobian is computed in float32
        if found > 1e-6:
            ratios.append(bound / found)
    return ratios, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--convolutions", type=int, default=3000, help="number of convolutions (default: %(default)s)")
    parser.add_argument("--graphs", type=int, default=200, help="number of graphs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    options = parser.parse_args()
    print(f"{'bound / true constant':34} {'cases':>6} {'median':>8} {'95 %':>8} {'largest':>8}")
    start = time.monotonic()
    ratios, wrong = measure_convolutions(options.convolutions, options.seed)
    for kind, values in ratios.items():
        print_row(f"{kind}, image size unknown" if kind == "any size" else kind, values)
    print_row("all kinds", [value for kind, values in ratios.items() if kind != "any size" for value in values])
    of_graphs, wrong_graphs = measure_graphs(options.graphs, options.seed)
    print_row("graphs, largest Jacobian found", of_graphs)
    print(f"bounds below what was found: {wrong + wrong_graphs}  ({time.monotonic() - start:.0f} s)")
    return 1 if wrong + wrong_graphs else 0


def print_row(name: str, ratios: Sequence[float]) -> None:
    if len(ratios):
        median, high, largest = np.quantile(ratios, [0.5, 0.95, 1.0])
        print(f"{name:34} {len(ratios):6} {median:8.4f} {high:8.4f} {largest:8.4f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
