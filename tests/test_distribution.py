"""One device and several, steps that Keras runs together, and gradients that it accumulates: the same kernels."""

import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from tests.helpers import ROOT, singular_values, vector_jacobian_product

BACKEND = keras.backend.backend()
WAYS = {
    "jax": ["DataParallel", "ModelParallel"],
    "tensorflow": ["MirroredStrategy"],
    "torch": ["DistributedDataParallel"],
}
SHARES = [0.6, 0.3, 0.1]


def test_one_device_and_several(tmp_path):
    # On a machine that does other things as well, JAX gives up after 40 s.
    environment = {**os.environ, "XLA_FLAGS": "--xla_cpu_collective_call_terminate_timeout_seconds=600"}
    command = [sys.executable, str(ROOT / "examples/distributed.py")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    number = r"(\d\.\d+e?[-+]?\d*)"
    line = rf"^(\w+), (\w+): losses differ by {number}, weights by {number}; constants {number} and {number}$"
    found = re.findall(line, done.stdout, re.MULTILINE)
    assert [(way, loss) for way, loss, *_ in found] == [
        (way, loss) for loss in ("HingeKR", "MulticlassHKR") for way in WAYS[BACKEND]
    ]
    for *_, losses, weights, alone, together in found:
        assert float(losses) <= 1e-5
        assert float(weights) <= 1e-5
        assert 0.99 <= float(alone) <= 1.0001
        assert abs(float(alone) - float(together)) <= 1e-5
    parts = re.findall(
        r"kernel of shape \((\d+), (\d+)\) each device has a part of shape \((\d+), (\d+)\)", done.stdout
    )
    assert parts == [("16", "64", "16", "16"), ("64", "64", "64", "16")] * (2 if BACKEND == "jax" else 0)


@pytest.mark.parametrize("shape", [(16, 16), (24, 8), (8, 24)], ids=["square", "tall", "wide"])
def test_the_gradient_of_a_batch_is_the_sum_of_those_of_its_parts(shape, rng):
    polar = lip.parametrizations.get("polar").bind(1.0)
    # In training kernels are orthogonal up to a factor. The way of computing depends on the number of samples.
    kernel = 0.9 * np.linalg.qr(rng.normal(size=(24, 24)))[0][: shape[0], : shape[1]]
    inputs, cotangent = (rng.normal(size=(64, size)).astype("float32") for size in shape)

    def gradient(part):
        return vector_jacobian_product(lambda w: polar.tangent_matmul(inputs[part], w), kernel, cotangent[part])

    parts = sum(gradient(slice(start, start + 4)) for start in range(0, 64, 4))
    np.testing.assert_allclose(parts, gradient(slice(None)), atol=1e-4)


class Watch(keras.callbacks.Callback):
    """Keeps the smallest and the largest singular value of the kernels after each update."""

    def __init__(self):
        super().__init__()
        self.found = []

    def on_train_batch_end(self, batch, logs=None):
        values = [singular_values(layer.kernel) for layer in self.model.layers if hasattr(layer, "kernel")]
        self.found.append((min(map(np.min, values)), max(map(np.max, values))))


def trained(optimizer, batch_size, **options):
    """Returns the weights after 50 updates of 64 samples, and the ranges of singular values."""
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 50 * 64, p=SHARES)
    inputs = (rng.normal(size=(3, 8))[labels] + rng.normal(size=(50 * 64, 8))).astype("float32") / 3
    keras.utils.set_random_seed(0)
    hidden, head = lip.layers.SpectralDense(16, activation=lip.layers.GroupSort2()), lip.layers.SpectralDense(3)
    model = keras.Sequential([keras.Input((8,)), hidden, head])
    loss = lip.losses.MulticlassHKR(alpha=10.0, min_margin=0.3, class_proportions=SHARES)
    model.compile(optimizer, loss, **options)
    watch = Watch()
    model.fit(inputs, labels, batch_size=batch_size, shuffle=False, callbacks=[watch], verbose=0)
    return model.get_weights(), watch.found


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_accumulated_gradients_move_kernels_as_the_large_batch_does():
    accumulated, found = trained(keras.optimizers.SGD(0.01, gradient_accumulation_steps=4), 16)
    assert len(found) == 200
    assert_same(accumulated, trained(keras.optimizers.SGD(0.01), 64)[0])


@pytest.mark.parametrize("rate", [0.01, 0.3])
def test_kernels_stay_constrained_while_gradients_accumulate(rate):
    _, found = trained(keras.optimizers.SGD(rate, gradient_accumulation_steps=4), 16)
    smallest, largest = np.transpose(found)
    assert smallest.min() >= 0.88
    assert largest.max() <= 1 + 1e-5


@pytest.mark.skipif(BACKEND == "torch", reason="Keras on torch has no steps_per_execution")
def test_steps_that_run_together_move_kernels_as_single_ones_do():
    together, found = trained(keras.optimizers.SGD(0.1), 64, steps_per_execution=5)
    assert len(found) == 10
    assert_same(together, trained(keras.optimizers.SGD(0.1), 64)[0])
    assert all(0.88 <= low <= high <= 1 + 1e-5 for low, high in found)
