"""Interrupted trainings end with the weights of those that were not, and interrupted exports leave no broken file."""

import random

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from benchmarks import kill_and_resume
from tests.helpers import on_torch

layers, callbacks = lip.layers, lip.callbacks

EPOCHS = 5


class Interrupt(keras.callbacks.Callback):
    """Interrupts `fit` in the middle of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.interrupted_epoch = epoch
        self.epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if self.epoch == self.interrupted_epoch and batch == 2:
            raise KeyboardInterrupt


def compiled(noise=0.0):
    """Returns a new model, as a new process makes it, with much that must be kept: moments, averages and seeds."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.SpectralDense(8, activation=layers.GroupSort2()),
            layers.BatchCentering(),
            keras.layers.GaussianNoise(noise),
            layers.SpectralDense(8, parametrization="spectral", activation=layers.MaxMin()),
            layers.SpectralDense(3),
        ]
    )
    model.compile(keras.optimizers.Adam(1e-2), lip.losses.MulticlassHKR(alpha=10.0))
    return model


def fit(model, *more, **options):
    rng = np.random.default_rng(3)
    inputs, labels = rng.normal(size=(48, 6)).astype("float32"), rng.integers(0, 3, 48)
    scheduler = callbacks.LossParamScheduler("alpha", schedule=lip.schedules.Log(10.0, 100.0, length=25), by="step")
    chain = [scheduler, callbacks.RenormalizeCallback(), *more]
    options = {"epochs": EPOCHS, "batch_size": 8, "shuffle": False, "verbose": 0, **options}
    return model.fit(inputs, labels, callbacks=chain, **options)


@pytest.fixture(scope="module")
def uninterrupted():
    model = compiled()
    fit(model)
    return model.get_weights()


def assert_same(model, weights):
    for own, other in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(own, other)


def test_the_backup_of_keras(uninterrupted, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(compiled(), keras.callbacks.BackupAndRestore(tmp_path), Interrupt(3))
    model = compiled()
    fit(model, keras.callbacks.BackupAndRestore(tmp_path))
    assert_same(model, uninterrupted)


def test_backup(tmp_path):
    """Random numbers go on, too."""
    uninterrupted = compiled(noise=0.5)
    fit(uninterrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(compiled(noise=0.5), callbacks.AtomicBackup(tmp_path), Interrupt(3))
    model = compiled(noise=0.5)
    assert fit(model, callbacks.AtomicBackup(tmp_path)).epoch == [3, 4]
    assert_same(model, uninterrupted.get_weights())
    assert not list(tmp_path.rglob("*.h5"))


@pytest.mark.parametrize("moment", ["while it writes", "before it is in place", "before the last one is deleted"])
def test_a_backup_that_is_interrupted(moment, tmp_path, monkeypatch):
    model = compiled()
    model.optimizer.build(model.trainable_variables)
    backup = callbacks.AtomicBackup(tmp_path)
    backup.set_model(model)
    backup.on_epoch_end(0)
    saved = [model.get_weights()]
    model.set_weights([weight + 1 for weight in saved[0]])
    saved.append(model.get_weights())

    def write_half(path):
        path.write_bytes(next(tmp_path.glob("epochs-1.*")).read_bytes()[:5000])
        raise KeyboardInterrupt

    def die(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "while it writes":
            patch.setattr(model, "save_weights", write_half)
        else:
            patch.setattr("pathlib.Path." + ("replace" if moment == "before it is in place" else "unlink"), die)
        with pytest.raises(KeyboardInterrupt):
            backup.on_epoch_end(1)
    model = compiled()
    backup.set_model(model)
    backup.on_train_begin()
    epochs = 2 if moment == "before the last one is deleted" else 1
    assert model._initial_epoch == epochs
    assert_same(model, saved[epochs - 1])
    backup.on_train_end()
    assert not list(tmp_path.glob("epochs*"))
    assert model._initial_epoch is None


def test_a_model_that_is_not_built(tmp_path):
    model = keras.Sequential([layers.SpectralDense(3)], name="open")
    backup = callbacks.AtomicBackup(tmp_path)
    backup.set_model(model)
    with pytest.raises(ValueError, match="built before `fit`. Received: the model 'open'"):
        backup.on_train_begin()


def test_checkpoints(uninterrupted, tmp_path):
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    with pytest.raises(KeyboardInterrupt):
        fit(compiled(), checkpoint, Interrupt(2))
    keras.utils.set_random_seed(1)
    model = keras.models.load_model(tmp_path / "2.keras")
    fit(model, initial_epoch=2)
    assert_same(model, uninterrupted)


# --- `benchmarks/kill_and_resume.py` in small: processes that are killed ---------------------------------------------


@on_torch
def test_a_training_that_is_killed():
    result = kill_and_resume.kill_trainings(1, "atomic", epochs=6, rng=random.Random(0))
    assert result["kills"] == 1
    assert result["largest_difference"] == 0


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="another backend writes all artefacts, and it is tested")
def test_an_export_that_is_killed():
    kind = {"torch": "onnx", "tensorflow": "litert"}[keras.backend.backend()]
    result = kill_and_resume.kill_exports(1, [kind, "certificate"], random.Random(0))
    assert result["artefacts"] == {kind: 1, "certificate": 1}
    assert result["wrong"] == []


def test_what_is_wrong_is_found(tmp_path):
    path = tmp_path / "certificate.json"
    certificate = lip.certify(kill_and_resume.make_model(1))
    certificate.save(path)
    models = {certificate.fingerprint: kill_and_resume.make_model(1)}
    assert kill_and_resume.fault("certificate", path, models) == ""
    path.write_bytes(path.read_bytes()[:-10])
    assert "CertificateError" in kill_and_resume.fault("certificate", path, models)
