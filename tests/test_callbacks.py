"""The callbacks do what they say within `fit`, on every backend."""

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from tests.helpers import singular_values, to_numpy

layers, callbacks, losses = lip.layers, lip.callbacks, lip.losses


def small_model(loss=None, **compile_options):
    model = keras.Sequential(
        [keras.Input((8,)), layers.SpectralDense(8, activation=layers.MaxMin()), layers.SpectralDense(2)]
    )
    model.compile(keras.optimizers.Adam(1e-2), loss or losses.MulticlassHKR(), **compile_options)
    return model


def data(count=64):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 8)).astype("float32"), rng.integers(0, 2, count)


def spread(model):
    """Returns how far the singular values of the first kernel are from 1."""
    return np.max(np.abs(singular_values(model.layers[0].kernel) - 1))


class Spoil(keras.callbacks.Callback):
    """Takes the kernels off the orthogonal ones, as a foreign callback might."""

    def __init__(self, when):
        super().__init__()
        self.when = when

    def spoil(self):
        kernel = self.model.layers[0].kernel
        kernel.assign(3 * to_numpy(kernel))

    def on_train_batch_end(self, batch, logs=None):
        if self.when == "batch":
            self.spoil()

    def on_test_begin(self, logs=None):
        if self.when == "test":
            self.spoil()

    def on_epoch_end(self, epoch, logs=None):
        if self.when == "epoch":
            self.spoil()

    def on_train_end(self, logs=None):
        if self.when == "train":
            self.spoil()


class Watch(keras.callbacks.Callback):
    """Records how far from orthogonal the kernels are at each hook."""

    def __init__(self):
        super().__init__()
        self.seen = {"batch": [], "test": [], "epoch": [], "train": []}

    def on_train_batch_end(self, batch, logs=None):
        self.seen["batch"].append(spread(self.model))

    def on_test_begin(self, logs=None):
        self.seen["test"].append(spread(self.model))

    def on_epoch_end(self, epoch, logs=None):
        self.seen["epoch"].append(spread(self.model))

    def on_train_end(self, logs=None):
        self.seen["train"].append(spread(self.model))


@pytest.mark.parametrize("when", ["batch", "test", "epoch", "train"])
def test_kernels_are_projected_at_each_hook(when):
    model, watch = small_model(), Watch()
    inputs, labels = data()
    chain = [Spoil(when), callbacks.RenormalizeCallback(), watch]
    model.fit(inputs, labels, validation_data=(inputs, labels), batch_size=16, epochs=2, verbose=0, callbacks=chain)
    assert len(watch.seen["batch"]) == 8
    assert len(watch.seen["test"]) == len(watch.seen["epoch"]) == 2
    assert max(max(seen) for seen in watch.seen.values()) < 1e-3
    assert spread(model) < 1e-3
    # What was spoiled was real: without the callback it shows.
    other = Watch()
    model.fit(
        inputs, labels, validation_data=(inputs, labels), batch_size=16, verbose=0, callbacks=[Spoil(when), other]
    )
    assert max(other.seen[when]) > 1


@pytest.mark.parametrize(("every", "projected"), [(1, [0, 1, 2, 3]), (2, [1, 3]), (3, [2]), (9, [])])
def test_every(every, projected):
    model, watch = small_model(), Watch()
    inputs, labels = data()
    chain = [Spoil("batch"), callbacks.RenormalizeCallback(every=every), watch]
    model.fit(inputs, labels, batch_size=16, verbose=0, callbacks=chain)
    assert [batch for batch, distance in enumerate(watch.seen["batch"]) if distance < 1e-3] == projected
    assert watch.seen["epoch"][0] < 1e-3


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras on torch has no steps_per_execution")
def test_steps_per_execution():
    model, watch = small_model(steps_per_execution=3), Watch()
    inputs, labels = data(96)
    chain = [Spoil("batch"), callbacks.RenormalizeCallback(every=3), watch]
    model.fit(inputs, labels, batch_size=8, verbose=0, callbacks=chain)
    assert len(watch.seen["batch"]) == 4  # 12 steps, 3 an execution, each of which makes the projection due
    assert max(watch.seen["batch"]) < 1e-3


def test_it_changes_nothing_that_is_in_place():
    inputs, labels = data()
    weights = []
    for chain in ([], [callbacks.RenormalizeCallback()]):
        keras.utils.set_random_seed(3)
        model = small_model()
        model.fit(inputs, labels, batch_size=16, epochs=3, verbose=0, shuffle=False, callbacks=chain)
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)


def test_without_the_brackets_of_a_list():
    """JAX and torch then call it from other threads; kernels are in place at each step all the same."""
    model = small_model()
    inputs, labels = data()
    model.layers[0].kernel.assign(3 * to_numpy(model.layers[0].kernel))
    for _ in range(3):
        model.fit(inputs, labels, batch_size=2, epochs=2, verbose=0, callbacks=callbacks.RenormalizeCallback())
        assert spread(model) < 1e-3


def test_averages_are_projected():
    inputs, labels = data()
    spreads = []
    for chain in ([], [callbacks.RenormalizeCallback()]):
        model = small_model()
        model.compile(keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.9), losses.MulticlassHKR())
        model.fit(inputs, labels, batch_size=8, epochs=3, verbose=0, callbacks=chain)
        spreads.append(spread(model))
    assert spreads[0] > 1e-2  # the average of orthogonal kernels is none
    assert spreads[1] < 1e-3


def test_swapped_averages_are_projected_before_validation():
    model, watch = small_model(), Watch()
    inputs, labels = data()
    model.compile(keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.9), losses.MulticlassHKR())
    chain = [keras.callbacks.SwapEMAWeights(swap_on_epoch=False), callbacks.RenormalizeCallback(), watch]
    model.fit(inputs, labels, validation_data=(inputs, labels), batch_size=8, epochs=2, verbose=0, callbacks=chain)
    assert max(watch.seen["test"]) < 1e-3


def test_nested_and_shared_layers_are_found_once():
    shared = layers.SpectralDense(4)
    inner = keras.Sequential([keras.Input((4,)), shared, layers.GroupSort2()])
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.LipConv2D(2, 1)(keras.layers.Reshape((2, 2, 1))(inner(shared(inputs)))))
    found = list(lip.renormalization.constrained_layers(model))
    assert len(found) == 2
    for layer in found:
        layer.kernel.assign(5 * to_numpy(layer.kernel))
    lip.renormalize(model)
    for layer in found:
        np.testing.assert_allclose(singular_values(layer.kernel), 1, atol=1e-3)


def test_renormalize_of_a_plain_model_does_nothing():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    before = model.get_weights()
    lip.renormalize(model)
    np.testing.assert_array_equal(before[0], model.get_weights()[0])


def test_renormalize_of_a_model_that_is_not_built():
    with pytest.raises(ValueError, match=r"SpectralDense layer 'spectral_dense.*' is not built"):
        lip.renormalize(keras.Sequential([layers.SpectralDense(3)]))


@pytest.mark.parametrize("every", [0, -1, 1.5, None, True])
def test_bad_every(every):
    with pytest.raises(
        ValueError, match=f"`every` of RenormalizeCallback. Expected a positive integer. Received: every={every}"
    ):
        callbacks.RenormalizeCallback(every=every)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(
    ("loss", "name", "values"),
    [
        (lambda: losses.HingeMargin(min_margin=1.0), "min_margin", [3.0, 1.0, 2.0]),
        (lambda: losses.HingeKR(alpha=1.0), "alpha", [1.0, 5.0, 0.0]),
        (lambda: losses.TauBinaryCrossentropy(tau=1.0), "tau", [1.0, 10.0, 100.0]),
    ],
)
def test_the_compiled_step_sees_scheduled_parameters(loss, name, values, jit_compile):
    if jit_compile and keras.backend.backend() == "torch" and name != "alpha":
        pytest.skip("torch compiles for a minute: one loss stands for all")
    model = keras.Sequential([keras.Input((8,)), layers.SpectralDense(1)])
    model.compile(keras.optimizers.SGD(0.0), loss(), jit_compile=jit_compile)
    inputs, labels = data()
    chain = [callbacks.LossParamScheduler(name, schedule=lambda epoch: values[epoch])]
    options = {"batch_size": 64, "epochs": 3, "verbose": 0, "callbacks": chain, "validation_data": (inputs, labels)}
    history = model.fit(inputs, labels, **options).history
    outputs, expected = model.predict(inputs, verbose=0), []
    for value in values:
        reference = loss()
        setattr(reference, name, value)
        expected.append(float(to_numpy(reference(labels, outputs))))
    np.testing.assert_allclose(history["loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(history["val_loss"], expected, rtol=1e-4)
    assert len(set(np.round(expected, 3))) == 3
    np.testing.assert_allclose(history[name], values)


def test_a_schedule_by_optimizer_steps():
    model = small_model()
    inputs, labels = data()
    scheduler = callbacks.LossParamScheduler("alpha", fp=[0.0, 80.0], xp=[0, 8])
    history = model.fit(inputs, labels, batch_size=16, epochs=2, verbose=0, callbacks=[scheduler]).history
    np.testing.assert_allclose(history["alpha"], [0.0, 40.0])
    history = model.fit(inputs, labels, batch_size=16, epochs=2, verbose=0, callbacks=[scheduler]).history
    np.testing.assert_allclose(history["alpha"], [80.0, 80.0])


def test_scheduler_errors():
    with pytest.raises(ValueError, match="either `schedule`, or `fp` and `xp`"):
        callbacks.LossParamScheduler("alpha")
    with pytest.raises(ValueError, match="either `schedule`, or `fp` and `xp`"):
        callbacks.LossParamScheduler("alpha", fp=[1.0])
    with pytest.raises(ValueError, match=r"with `xp` increasing. Received: fp=\[1.0, 2.0\], xp=\[3, 1\]"):
        callbacks.LossParamScheduler("alpha", fp=[1.0, 2.0], xp=[3, 1])
    inputs, labels = data()
    with pytest.raises(
        ValueError, match=r"no parameter|has a parameter 'tau'.*Expected one of \['alpha', 'min_margin'\]"
    ):
        small_model().fit(inputs, labels, verbose=0, callbacks=[callbacks.LossParamScheduler("tau", schedule=float)])
