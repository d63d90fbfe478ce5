"""Constants hold and losses fall under every optimizer of Keras and its options, and in loops written by hand."""

import importlib.util
import inspect
import re

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from deel_like_lip.renormalization import constrained_layers
from tests.helpers import ROOT, fewer_where_compiled, singular_values

layers = lip.layers
BACKEND = keras.backend.backend()
optimizers = keras.optimizers


def net():
    return keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            layers.LipConv2D(4, 3, padding="same"),
            layers.MaxMin(),
            keras.layers.Flatten(),
            layers.SpectralDense(4),
        ]
    )


def blobs(count):
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 4
    return (rng.normal(size=(4, 4, 4, 2))[labels] + rng.normal(size=(count, 4, 4, 2))).astype("float32"), labels


def check_orthogonal(model, largest=1 + 1e-5, smallest=1 - 1e-5):
    for layer in constrained_layers(model):
        values = singular_values(layer.kernel) / layer.parametrization.norm
        assert values.max() <= largest
        assert values.min() >= smallest


# Between steps kernels are near orthogonal, as far as an estimate of their largest singular value tells.
BETWEEN_STEPS = {"largest": 1.02, "smallest": 0.8}


class EachStep(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        check_orthogonal(self.model, **BETWEEN_STEPS)


def classes():
    """Returns all optimizers that Keras has, but for those that only wrap others."""
    found = {name: kind for name, kind in vars(optimizers).items() if inspect.isclass(kind)}
    wrappers = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}
    return {
        name: kind for name, kind in found.items() if issubclass(kind, optimizers.Optimizer) and name not in wrappers
    }


RATES = {"Adadelta": 3.0, "Adagrad": 0.1, "Ftrl": 0.1, "Lion": 1e-3}
CASES = {name: lambda name=name, kind=kind: kind(RATES.get(name, 1e-2)) for name, kind in sorted(classes().items())}
Adam = optimizers.Adam
CASES |= {
    "averages": lambda: Adam(1e-2, use_ema=True, ema_momentum=0.9),
    "weight decay": lambda: Adam(1e-2, weight_decay=0.1),
    "clipnorm": lambda: Adam(1e-2, clipnorm=0.01),
    "global_clipnorm": lambda: optimizers.SGD(1.0, momentum=0.9, nesterov=True, global_clipnorm=0.01),
    "clipvalue": lambda: optimizers.SGD(1.0, clipvalue=0.01),
    "accumulation": lambda: Adam(3e-2, gradient_accumulation_steps=4),
    "loss scale": lambda: optimizers.LossScaleOptimizer(Adam(1e-2), initial_scale=8.0, dynamic_growth_steps=20),
}


def test_all_optimizers_are_found():
    assert {"SGD", "Adam", "AdamW", "Muon", "Lion", "Lamb", "Adafactor", "Ftrl", "ScheduleFreeAdamW"} <= set(CASES)


# What optimizers compute is Keras's own; backends differ in how variables are assigned to.
@pytest.mark.parametrize("name", fewer_where_compiled(CASES, "Adam", "Muon", "averages", "accumulation"))
def test_a_hundred_steps(name):
    model = net()
    inputs, labels = blobs(400)
    model.compile(CASES[name](), lip.losses.MulticlassHKR(alpha=10.0))
    before = model.evaluate(inputs, labels, verbose=0)
    chain = [EachStep(), lip.callbacks.RenormalizeCallback()]
    model.fit(inputs, labels, batch_size=16, epochs=4, verbose=0, callbacks=chain)
    check_orthogonal(model)
    assert lip.certify(model).lipschitz_constant <= 1 + 1e-5
    assert model.evaluate(inputs, labels, verbose=0) < 0.9 * before


# --- loops written by hand: those of the guide ----------------------------------------------------------


@pytest.fixture(scope="module")
def guide():
    """Returns the names that the section of the guide defines, once its code has run on this backend."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    section = re.search(r"^## Your own training loop\n(.*?)^## ", text, re.MULTILINE | re.DOTALL).group(1)
    names = {}
    exec("\n\n".join(re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)), names)
    return names


LOOPS = {"train_on_tensorflow": "tensorflow", "train_on_jax": "jax", "train_by_optax": "jax", "train_on_torch": "torch"}


@pytest.mark.parametrize("loop", [name for name, backend in LOOPS.items() if backend == BACKEND])
def test_loops_of_the_guide(loop, guide):
    if loop == "train_by_optax" and importlib.util.find_spec("optax") is None:
        pytest.skip("optax is not installed")
    model, loss = net(), lip.losses.MulticlassHKR(alpha=10.0)
    inputs, labels = blobs(400)
    before = float(loss(labels, model(inputs)))
    taken = []

    def batches():
        for _ in range(4):
            for start in range(0, 400, 16):
                yield inputs[start : start + 16], labels[start : start + 16]
                taken.append(start)
                if BACKEND != "jax":  # there the kernels come back to the model in the end
                    check_orthogonal(model, **BETWEEN_STEPS)

    guide[loop](model, loss, batches())
    assert len(taken) == 100
    check_orthogonal(model, **BETWEEN_STEPS)
    assert float(loss(labels, model(inputs))) < 0.9 * before
    lip.renormalize(model)
    check_orthogonal(model)
    assert lip.certify(model).lipschitz_constant <= 1 + 1e-5
