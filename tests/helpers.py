"""Reference computations in NumPy, written without the library's own code, and small tools for tests."""

import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest

Array = npt.NDArray[np.float64]

ROOT = pathlib.Path(__file__).parents[1]

needs_mnist = pytest.mark.skipif(
    not os.path.isdir(os.path.join(os.environ.get("TFDS_DATA_DIR", ""), "mnist")),
    reason="needs MNIST as prepared by tensorflow-datasets: set TFDS_DATA_DIR to its folder",
)


# TensorFlow and JAX trace and compile each new model for seconds, torch does not.
COMPILES = keras.backend.backend() != "torch"
# For scripts and pages, whose layers and losses are tested on each backend by themselves.
on_torch = pytest.mark.skipif(COMPILES, reason="is tested on torch, which does not compile")


def fewer_where_compiled(names: Iterable[str], *kept: str) -> list[str]:
    """Returns the names of all cases on torch, and those to be kept on backends that compile each of them."""
    return [name for name in names if not COMPILES or name in kept]


def mnist(split: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Returns the images of MNIST in [0, 1], of shape `(samples, 28, 28, 1)`, and their digits."""
    import tensorflow_datasets as tfds

    dataset = tfds.load("mnist", split=split, batch_size=-1, as_supervised=True, download=False)
    images, digits = tfds.as_numpy(dataset)
    return images.astype("float32") / 255, digits


def to_numpy(tensor: Any) -> Any:
    return keras.ops.convert_to_numpy(tensor)


def singular_values(kernel: Any) -> Array:
    """Returns the singular values, in float64, of a kernel with its last axis as columns."""
    matrix = to_numpy(kernel).astype(np.float64)
    values: Array = np.linalg.svd(matrix.reshape(-1, matrix.shape[-1]), compute_uv=False)
    return values


def convolution_matrix(
    kernel: Any,
    size: int | tuple[int, ...],
    stride: int | tuple[int, ...] = 1,
    padding: str = "valid",
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Array:
    """Returns a convolution of any rank as an explicit matrix in float64, with channels last."""
    kernel = to_numpy(kernel).astype(np.float64)
    *taps, group_in, outputs = kernel.shape
    rank, group_out = len(taps), outputs // groups
    full = np.zeros((*taps, group_in * groups, outputs))
    for group in range(groups):
        rows, columns = (
            slice(group * group_in, (group + 1) * group_in),
            slice(group * group_out, (group + 1) * group_out),
        )
        full[..., rows, columns] = kernel[..., columns]
    sizes, strides, dilations = (
        value if isinstance(value, tuple) else (value,) * rank for value in (size, stride, dilation)
    )
    meets = [_axis_taps(*axis[:3], padding, axis[3]) for axis in zip(taps, sizes, strides, dilations, strict=True)]
    met = ",".join(letters for letters in ("ahi", "bwj", "ukl")[:rank])
    tensor = np.einsum(f"{met},{'hwk'[:rank]}xy->{'abu'[:rank]}y{'ijl'[:rank]}x", *meets, full, optimize=True)
    return tensor.reshape(math.prod(len(axis) for axis in meets) * outputs, -1)


def _axis_taps(taps: int, size: int, stride: int, padding: str, dilation: int) -> Array:
    """Returns which input position each tap of each output meets, along one axis: (outputs, taps, inputs)."""
    extent = (taps - 1) * dilation + 1
    if padding == "valid":
        outputs, before = (size - extent) // stride + 1, 0
    elif padding == "same":
        outputs = -(-size // stride)
        before = max((outputs - 1) * stride + extent - size, 0) // 2
    else:
        outputs, before = size // stride, max(extent - stride, 0) // 2
    meets = np.zeros((outputs, taps, size))
    for output in range(outputs):
        for tap in range(taps):
            position = output * stride + tap * dilation - before
            if padding == "circular":
                meets[output, tap, position % size] += 1
            elif 0 <= position < size:
                meets[output, tap, position] += 1
    return meets


def operator_norm(matrix: Array) -> float:
    """Returns the spectral norm of a matrix by its smaller Gram matrix."""
    gram = matrix.T @ matrix if matrix.shape[0] > matrix.shape[1] else matrix @ matrix.T
    return float(np.sqrt(np.linalg.eigvalsh(gram)[-1]))


def vector_jacobian_product(function: Any, inputs: Array, cotangent: Array) -> Any:
    """Returns the gradient of `sum(function(inputs) * cotangent)` on the active backend."""
    backend = keras.backend.backend()
    inputs, cotangent = inputs.astype("float32"), cotangent.astype("float32")
    if backend == "tensorflow":
        import tensorflow as tf

        tensor = tf.constant(inputs)
        with tf.GradientTape() as tape:
            tape.watch(tensor)
            total = tf.reduce_sum(function(tensor) * cotangent)
        return to_numpy(tape.gradient(total, tensor))
    if backend == "jax":
        import jax

        return to_numpy(jax.jit(jax.grad(lambda x: (function(x) * cotangent).sum()))(jax.numpy.asarray(inputs)))
    import torch

    tensor = keras.ops.convert_to_tensor(inputs).requires_grad_()
    (gradient,) = torch.autograd.grad(function(tensor), tensor, keras.ops.convert_to_tensor(cotangent))
    return to_numpy(gradient)


def jacobian(function: Any, point: Array) -> Array:
    """Returns the Jacobian of a function of one sample at a point, by the active backend, shape `(outputs, inputs)`."""
    outputs = np.shape(to_numpy(function(point[None].astype("float32"))))[1:]
    size = int(np.prod(outputs))
    cotangents = np.eye(size).reshape(size, *outputs)
    rows = vector_jacobian_product(function, np.repeat(point[None], size, axis=0), cotangents)
    result: Array = rows.astype(np.float64).reshape(size, -1)
    return result


def run_python(code: str, *arguments: str, **environment: str) -> str:
    """Runs code in a fresh process outside of the repository and returns what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        cwd=os.path.expanduser("~"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
