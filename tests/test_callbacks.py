"""The callbacks do what they say within `fit`, on every backend."""

import random
import re

import h5py
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
    every = 1 if when == "batch" else None  # where a callback changes weights after a batch
    chain = [Spoil(when), callbacks.RenormalizeCallback(every), watch]
    model.fit(inputs, labels, validation_data=(inputs, labels), batch_size=16, epochs=2, verbose=0, callbacks=chain)
    assert len(watch.seen["batch"]) == 8
    assert len(watch.seen["test"]) == len(watch.seen["epoch"]) == 2
    # After a batch the layers have held their norm, which is all that they do then.
    assert max(watch.seen.pop("batch")) < (1e-3 if when == "batch" else 0.12)
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


def test_it_leaves_the_steps_of_an_epoch_to_the_layers():
    inputs, labels = data()
    weights = []
    for chain in ([], [callbacks.RenormalizeCallback()]):
        keras.utils.set_random_seed(3)
        model = small_model()
        model.fit(inputs, labels, batch_size=16, verbose=0, shuffle=False, callbacks=chain)
        lip.renormalize(model)
        weights.append(model.get_weights())
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


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


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="the other backends have no precision of products to set")
def test_renormalize_multiplies_in_full_precision_on_any_device():
    convolution, *dense = (
        layers.LipConv2D(4, 3),
        layers.SpectralDense(3),
        layers.SpectralDense(3, parametrization="spectral"),
    )
    model = keras.Sequential([keras.Input((6, 6, 2)), convolution, keras.layers.Flatten(), *dense])
    found = list(lip.renormalization.constrained_layers(model))
    kernels = [layer.stored_kernel.value for layer in found]
    projection = lip.renormalization._compiled_projection()
    program = projection.lower(tuple(layer.parametrization for layer in found), kernels).as_text()
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert len(products) > 10
    assert all("[HIGHEST, HIGHEST]" in product for product in products)


class OwnStep(keras.Sequential):
    """A model that trains by a rule of its own, which no constraint of Keras sees."""

    def train_step(self, *args):
        result = super().train_step(*args)
        if keras.backend.backend() != "jax":
            kernel = self.layers[0].kernel
            kernel.assign(3 * kernel)
            return result
        logs, (trainable, *rest) = result
        return logs, ([3 * trainable[0], *trainable[1:]], *rest)


def test_after_each_step_of_a_model_with_a_train_step_of_its_own():
    model, watch = OwnStep(small_model().layers), Watch()
    model.compile("adam", losses.MulticlassHKR())
    inputs, labels = data()
    model.fit(inputs, labels, batch_size=16, verbose=0, callbacks=[callbacks.RenormalizeCallback(), watch])
    assert len(watch.seen["batch"]) == 4
    assert max(watch.seen["batch"]) < 1e-3


@pytest.mark.parametrize("every", [0, -1, 1.5, "1", True])
def test_bad_every(every):
    with pytest.raises(
        ValueError,
        match=f"`every` of RenormalizeCallback. Expected a positive integer or None. Received: every={every}",
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


class Terms(keras.callbacks.Callback):
    """Keeps the mean loss of each batch, of which Keras logs the mean over those seen."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append((batch + 1) * float(logs["loss"]) - (sum(self.seen[-batch:]) if batch else 0))


@pytest.mark.parametrize(
    "build",
    [
        lambda: callbacks.LossParamScheduler("alpha", fp=[1.0, 9.0], xp=[0, 8]),
        lambda: callbacks.LossParamScheduler("alpha", schedule=lip.schedules.Linear(1.0, 9.0, 8), by="step"),
    ],
)
def test_a_schedule_by_optimizer_steps(build):
    """The loss is alpha times what it is with an alpha of 1, in each step, and over a second `fit`."""
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(keras.optimizers.SGD(0.0), losses.HingeKR())
    inputs, labels = data()
    scheduler, terms, histories = build(), Terms(), []
    for _ in range(2):
        options = {"batch_size": 16, "epochs": 2, "verbose": 0, "callbacks": [scheduler, terms]}
        histories.append(model.fit(inputs, labels, **options).history["alpha"])
    np.testing.assert_allclose(terms.seen, [1, 2, 3, 4, 5, 6, 7, 8, *[9] * 8], rtol=1e-5)
    np.testing.assert_allclose(histories, [[4, 8], [9, 9]])


def test_schedules_of_two_parameters_one_of_them_a_radius():
    """They leave no trace: the logs and what is saved are as without them, and each change is seen."""
    inputs, labels = data()
    model = small_model(losses.EMMA(epsilon=0.0, tau=1.0))
    model.compile(keras.optimizers.SGD(0.0), model.loss)
    chain = [
        callbacks.LossParamScheduler("epsilon", schedule=lip.schedules.Steps([0.0, 0.5], [1])),
        callbacks.LossParamScheduler("tau", schedule=lip.schedules.Log(1.0, 4.0, 1)),
        callbacks.LossParamLog("tau"),
    ]
    options = {"batch_size": 64, "epochs": 2, "verbose": 0, "validation_data": (inputs, labels)}
    history = model.fit(inputs, labels, callbacks=chain, **options).history
    outputs = model.predict(inputs, verbose=0)
    expected = [
        float(to_numpy(losses.EMMA(epsilon=epsilon, tau=tau)(labels, outputs))) for epsilon, tau in ((0, 1), (0.5, 4))
    ]
    np.testing.assert_allclose(history["loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(history["val_loss"], expected, rtol=1e-4)
    assert list(history) == ["loss", "val_loss", "epsilon", "tau"]
    assert type(model.evaluate(inputs, labels, verbose=0)) is float


def test_nothing_more_is_saved(tmp_path):
    inputs, labels = data()
    contents = []
    for schedule in (False, True):
        model = small_model()
        path = str(tmp_path / f"{schedule}.weights.h5")
        chain = [callbacks.LossParamScheduler("alpha", schedule=float)] if schedule else []
        chain.append(keras.callbacks.ModelCheckpoint(path, save_weights_only=True))
        model.fit(inputs, labels, batch_size=64, verbose=0, callbacks=chain)
        with h5py.File(path) as file:
            names = []
            file.visit(names.append)
        contents.append([re.sub(r"_\d+", "", name) for name in names])
    assert contents[0] == contents[1]


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="elsewhere the compiled step reads the variable itself")
def test_jax_compiles_once_unless_the_model_has_a_step_of_its_own():
    inputs, labels = data()
    for model, compiled in ((small_model(), 1), (OwnStep(small_model().layers), 3)):
        model.compile(keras.optimizers.SGD(0.0), losses.MulticlassHKR(alpha=7.0))
        watch = Compilations()
        scheduler = callbacks.LossParamScheduler("alpha", schedule=lambda epoch: 1.0 + epoch)
        model.fit(inputs, labels, batch_size=32, epochs=3, verbose=0, callbacks=[scheduler, watch])
        assert len({id(function) for function, _ in watch.seen}) == compiled
        assert all(count == 1 for _, count in watch.seen)


class Compilations(keras.callbacks.Callback):
    """Keeps, for each epoch, the training function and how often its step has been compiled."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        function = self.model.train_function
        (step,) = (cell.cell_contents for cell in function.__closure__)
        self.seen.append((function, step._cache_size()))


def test_the_parameter_is_printed(capsys):
    inputs, labels = data()
    history = small_model().fit(
        inputs, labels, epochs=3, verbose=0, callbacks=[callbacks.LossParamLog("alpha", rate=2)]
    )
    assert capsys.readouterr().out == "epoch 1: alpha = 10\nepoch 3: alpha = 10\n"
    assert history.history["alpha"] == [10.0] * 3


def test_scheduler_errors():
    with pytest.raises(ValueError, match="either `schedule`, or `fp` and `xp`"):
        callbacks.LossParamScheduler("alpha")
    with pytest.raises(ValueError, match="either `schedule`, or `fp` and `xp`"):
        callbacks.LossParamScheduler("alpha", fp=[1.0])
    with pytest.raises(ValueError, match=r"with `xp` increasing. Received: fp=\[1.0, 2.0\], xp=\[3, 1\]"):
        callbacks.LossParamScheduler("alpha", fp=[1.0, 2.0], xp=[3, 1])
    for options in ({"by": "batch", "schedule": float}, {"by": "epoch", "fp": [1.0], "xp": [0]}):
        with pytest.raises(ValueError, match=rf"`by` of LossParamScheduler.*Received: by='{options['by']}'"):
            callbacks.LossParamScheduler("alpha", **options)
    inputs, labels = data()
    with pytest.raises(
        ValueError, match=r"no parameter|has a parameter 'tau'.*Expected one of \['alpha', 'min_margin'\]"
    ):
        small_model().fit(inputs, labels, verbose=0, callbacks=[callbacks.LossParamScheduler("tau", schedule=float)])


# --- CertifyCallback -------------------------------------------------------------------------------------------------

RADII = [0.0, 0.3, 0.5]
KEYS = ["val_certified_accuracy_0", "val_certified_accuracy_0.3", "val_certified_accuracy_0.5", "lipschitz_constant"]


def free_model():
    """A model whose constant changes in training, as that of a plain Keras model does."""
    hidden = layers.SpectralDense(8, activation=layers.MaxMin())
    model = keras.Sequential([keras.Input((8,)), hidden, keras.layers.Dense(2)])
    model.compile(keras.optimizers.Adam(1e-2), losses.MulticlassHKR())
    return model


def by_hand(model, inputs, labels, radii=RADII, **options):
    certificate = lip.certify(model, **options)
    shares = certificate.certified_accuracy(model.predict(inputs, verbose=0), labels, radii, inputs=inputs)
    return [*shares, certificate.lipschitz_constant]


class Record(keras.callbacks.Callback):
    """Keeps the weights and the logs of each epoch, as a callback later in the list finds them."""

    def __init__(self):
        super().__init__()
        self.weights, self.logs = [], []

    def on_epoch_end(self, epoch, logs=None):
        self.weights.append([to_numpy(weight).copy() for weight in self.model.weights])
        self.logs.append(dict(logs))


def test_what_is_logged_is_what_certify_says_of_each_epoch():
    model, record = free_model(), Record()
    inputs, labels = data()
    certify = callbacks.CertifyCallback((inputs, labels), RADII)
    chain = [callbacks.RenormalizeCallback(), certify, record]
    history = model.fit(inputs, labels, batch_size=16, epochs=3, verbose=0, callbacks=chain).history
    # After the last epoch RenormalizeCallback projects once more, which moves the constant in its last digits.
    np.testing.assert_allclose([history[key][-1] for key in KEYS], by_hand(model, inputs, labels), rtol=1e-6)
    for epoch, (weights, logs) in enumerate(zip(record.weights, record.logs, strict=True)):
        assert [logs[key] for key in KEYS] == [history[key][epoch] for key in KEYS]
        assert all(type(logs[key]) is float for key in KEYS)
        model.set_weights(weights)
        np.testing.assert_allclose([logs[key] for key in KEYS], by_hand(model, inputs, labels), rtol=1e-9)
    certify.certificate.verify(model)
    assert len(set(history["lipschitz_constant"])) == 3


def test_it_names_radii_as_the_metric_does_and_takes_its_place():
    metric = lip.metrics.CertifiedAccuracy(0.3)
    model = small_model()
    model.compile("adam", losses.MulticlassHKR(), metrics=[metric])
    inputs, labels = data()
    certify = callbacks.CertifyCallback((inputs, labels), [0.3])
    validation = (inputs[:7], labels[:7])
    history = model.fit(inputs, labels, validation_data=validation, verbose=0, callbacks=[certify]).history
    assert f"val_{metric.name}" == "val_certified_accuracy_0.3"
    assert history["val_certified_accuracy_0.3"] == by_hand(model, inputs, labels, [0.3])[:1]
    other = callbacks.CertifyCallback((inputs, labels), [0.3], prefix="true_")
    history = model.fit(inputs, labels, validation_data=validation, verbose=0, callbacks=[other]).history
    assert {"val_certified_accuracy_0.3", "true_certified_accuracy_0.3"} <= set(history)


def test_early_stopping_and_checkpoints_can_monitor_it(tmp_path):
    model, record = free_model(), Record()
    model.compile(keras.optimizers.SGD(1.0), losses.MulticlassHKR())  # learns nothing for good
    inputs, labels = data()
    path = str(tmp_path / "best.weights.h5")
    chain = [
        callbacks.CertifyCallback((inputs, labels), RADII),
        keras.callbacks.EarlyStopping("val_certified_accuracy_0.3", mode="max", patience=2, restore_best_weights=True),
        keras.callbacks.ModelCheckpoint(
            path, "val_certified_accuracy_0.3", mode="max", save_best_only=True, save_weights_only=True
        ),
        record,
    ]
    history = model.fit(inputs, labels, batch_size=8, epochs=40, verbose=0, callbacks=chain).history
    values = history["val_certified_accuracy_0.3"]
    best = int(np.argmax(values))
    assert len(values) == best + 3 < 40
    stopped = [to_numpy(weight) for weight in model.weights]
    model.load_weights(path)
    for one, other, third in zip(stopped, record.weights[best], model.weights, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(to_numpy(third), other)


def test_the_constant_can_be_monitored():
    model = free_model()
    model.compile(keras.optimizers.SGD(0.0), losses.MulticlassHKR())
    inputs, labels = data()
    stop = keras.callbacks.EarlyStopping("lipschitz_constant", mode="min", patience=1, min_delta=1e-3)
    chain = [callbacks.CertifyCallback((inputs, labels), RADII), stop]
    history = model.fit(inputs, labels, epochs=9, verbose=0, callbacks=chain).history
    assert len(history["lipschitz_constant"]) == 2


@pytest.mark.parametrize(("every", "own"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3, 4]), (9, [0, 4])])
def test_between_certificates_the_last_values_are_repeated(every, own, monkeypatch, recwarn):
    certified = []
    certify = callbacks.certify_fold
    monkeypatch.setattr(
        callbacks, "certify_fold", lambda *args, **kwargs: certified.append(1) or certify(*args, **kwargs)
    )
    model = free_model()
    inputs, labels = data()
    chain = [
        callbacks.CertifyCallback((inputs, labels), RADII, every=every),
        keras.callbacks.EarlyStopping("val_certified_accuracy_0.3", mode="max", patience=9),
    ]
    history = model.fit(inputs, labels, epochs=5, verbose=0, callbacks=chain).history
    constants = history["lipschitz_constant"]
    assert len(constants) == 5
    assert [epoch for epoch in range(5) if epoch == 0 or constants[epoch] != constants[epoch - 1]] == own
    assert len(certified) == len(own) + 1  # once more before training
    np.testing.assert_allclose([history[key][-1] for key in KEYS], by_hand(model, inputs, labels), rtol=1e-9)
    assert not [warning for warning in recwarn if "Early stopping" in str(warning.message)]


def test_training_is_the_same_with_it():
    """The folds draw no random numbers, and no weight is moved."""
    inputs, labels = data()
    results = []
    for used in (False, True):
        keras.utils.set_random_seed(3)
        model = keras.Sequential(
            [keras.Input((8,)), *free_model().layers[:1], keras.layers.Dropout(0.5), keras.layers.Dense(2)]
        )
        model.compile(keras.optimizers.Adam(1e-2), losses.MulticlassHKR())
        chain = [callbacks.CertifyCallback((inputs, labels), RADII)] if used else []
        model.fit(inputs, labels, batch_size=16, epochs=3, verbose=0, callbacks=chain)
        results.append([*model.get_weights(), random.random(), np.random.random()])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


def test_swapped_averages_are_certified():
    model, record = small_model(), Record()
    inputs, labels = data()
    model.compile(keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.9), losses.MulticlassHKR())
    chain = [
        keras.callbacks.SwapEMAWeights(swap_on_epoch=True),
        callbacks.RenormalizeCallback(),
        callbacks.CertifyCallback((inputs, labels), RADII),
        record,
    ]
    model.fit(inputs, labels, batch_size=8, epochs=2, verbose=0, callbacks=chain)
    for weights, logs in zip(record.weights, record.logs, strict=True):
        model.set_weights(weights)
        np.testing.assert_allclose([logs[key] for key in KEYS], by_hand(model, inputs, labels), rtol=1e-9)
        assert logs["lipschitz_constant"] == pytest.approx(1, abs=1e-3)


def test_validation_data_as_a_dataset_and_the_options_of_certify():
    model = small_model()
    inputs, labels = data()
    certify = callbacks.CertifyCallback(
        [(inputs[:40], labels[:40]), (inputs[40:], labels[40:])],
        RADII,
        task="multiclass",
        rounding="sound",
        input_scale=0.5,
        input_range=(-1.5, 1.5),
    )
    history = model.fit(inputs, labels, epochs=2, verbose=0, callbacks=[certify]).history
    assert certify.certificate.rounding == "sound"
    assert certify.certificate.input_range == (-1.5, 1.5)
    options = {"rounding": "sound", "input_scale": 0.5, "input_range": (-1.5, 1.5)}
    expected = by_hand(model, inputs, labels, **options)
    assert expected[0] < by_hand(model, inputs, labels)[0]
    np.testing.assert_allclose([history[key][-1] for key in KEYS], expected, rtol=1e-9)


def test_steps_limit_the_data():
    model = small_model()
    inputs, labels = data()
    certify = callbacks.CertifyCallback((inputs, labels), RADII, batch_size=10, steps=2)
    history = model.fit(inputs, labels, verbose=0, callbacks=[certify]).history
    expected = by_hand(model, inputs[:20], labels[:20])
    np.testing.assert_allclose([history[key][-1] for key in KEYS], expected, rtol=1e-9)


def test_the_folded_model_is_compiled_once_and_still_follows_the_model():
    model = free_model()
    inputs, labels = data()
    certify = callbacks.CertifyCallback((inputs, labels), RADII)
    plains = []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: plains.append(certify._plain))
    model.fit(inputs, labels, epochs=3, verbose=0, callbacks=[certify, watch])
    assert len({id(plain) for plain in plains}) == 1
    # Another model of the same shapes but another activation, and the same callback.
    other = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(2)])
    other.compile("adam", losses.MulticlassHKR())
    history = other.fit(inputs, labels, verbose=0, callbacks=[certify]).history
    np.testing.assert_allclose([history[key][-1] for key in KEYS], by_hand(other, inputs, labels), rtol=1e-9)


def test_what_cannot_be_certified_fails_before_training():
    inputs, labels = data()
    began = []
    watch = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: began.append(epoch))
    refused = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2, name="wave", activation="exponential")])
    refused.compile("sgd", losses.MulticlassHKR())
    cases = [
        (refused, {}, "'wave'"),
        (small_model(), {"task": "regression"}, r"has none \(regression\)"),
        (small_model(), {"validation_data": (inputs[:, :5], labels)}, r"inputs of shape \(None, 8\)"),
        (small_model(), {"validation_data": (inputs, None)}, "labels y"),
        (small_model(), {"validation_data": (inputs[:0], labels[:0])}, "at least one sample"),
        (small_model(), {"rounding": "up"}, 'rounding="exact" or "sound"'),
    ]
    for model, options, words in cases:
        certify = callbacks.CertifyCallback(**{"validation_data": (inputs, labels), "radii": RADII, **options})
        with pytest.raises(ValueError, match=words):
            model.fit(inputs, labels, verbose=0, callbacks=[watch, certify])
    assert not began


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"radii": [-1.0]}, "`radii` to be a list of finite l2 distances"),
        ({"radii": [0.3, 0.30000001]}, "`radii` that differ in their first six digits. Received: radii="),
        ({"every": 0}, "`every` to be a positive integer. Received: every=0"),
        ({"batch_size": 0.5}, "`batch_size` to be a positive integer"),
        ({"steps": 0}, "`steps` to be a positive integer"),
        ({"validation_data": iter([])}, "not an iterator, which can be used once"),
    ],
)
def test_bad_arguments_of_the_certify_callback(options, words):
    with pytest.raises(ValueError, match=words):
        callbacks.CertifyCallback(**{"validation_data": data(), "radii": RADII, **options})


@pytest.mark.parametrize(
    ("change", "same"),
    [({}, True), ({"units": 5}, False), ({"activation": "elu"}, False), ({"use_bias": False}, False)],
)
def test_the_recipe_of_a_fold(change, same):
    def fold(**options):
        inputs = keras.Input((8,), name="in")
        inner_inputs = keras.Input((4,), name="inner")
        inner = keras.Model(inner_inputs, keras.ops.relu(keras.layers.Dense(2)(inner_inputs)))
        hidden = keras.layers.Dense(**{"units": 4, "activation": "relu", **options})(inputs)
        hidden = keras.ops.relu(keras.layers.Dense(4)(hidden) + 1.0)
        return keras.Model(inputs, inner(hidden), name="net")

    assert (callbacks._recipe(fold()) == callbacks._recipe(fold(**change))) == same


def test_certify_callback_follows_a_normalization_that_is_adapted_again(rng):
    data, labels = (rng.normal(size=(32, 4)) * [1, 10, 0.1, 5]).astype("float32"), rng.integers(0, 3, 32)
    normalization = keras.layers.Normalization()
    normalization.adapt(data)
    model = keras.Sequential([keras.Input((4,)), normalization, layers.SpectralDense(3)])
    callback = callbacks.CertifyCallback((data, labels), [0.1])
    for scale in (1, 7):
        normalization.adapt(scale * data)
        model.compile("sgd", losses.MulticlassHKR())
        model.fit(data, labels, verbose=0, callbacks=[callback])
        assert callback.certificate.lipschitz_constant == lip.certify(model).lipschitz_constant
