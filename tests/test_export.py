"""The SavedModel serves the same predictions in a process that has TensorFlow only."""

import json

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from tests.helpers import run_python

layers = lip.layers

SERVE = """
import pathlib, sys
for name in ("deel_like_lip", "keras", "jax", "torch"):
    sys.modules[name] = None  # importing it fails
import numpy as np, tensorflow as tf
folder = pathlib.Path(sys.argv[1])
served = tf.saved_model.load(str(folder / "served"))
np.save(folder / "outputs.npy", served.serve(np.load(folder / "inputs.npy")).numpy())
"""


def small_model(seed=0):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.LipConv2D(8, 3, padding="circular", strides=2, activation=layers.GroupSort2()),
            layers.ScaledL2NormPooling2D(),
            keras.layers.Flatten(),
            layers.SpectralDense(8, activation=layers.FullSort()),
            layers.SpectralDense(3),
        ]
    )


def test_saved_model(tmp_path):
    model = small_model()
    inputs = np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype("float32")
    np.save(tmp_path / "inputs.npy", inputs)
    certificate = lip.export_saved_model(model, tmp_path / "served")
    run_python(SERVE, str(tmp_path))
    np.testing.assert_allclose(np.load(tmp_path / "outputs.npy"), model.predict(inputs, verbose=0), atol=1e-5)
    stored = json.loads((tmp_path / "served/assets.extra/certificate.json").read_text())
    assert stored["lipschitz_constant"] == certificate.lipschitz_constant
    assert certificate.lipschitz_constant == lip.certify(model).lipschitz_constant

    # Exporting again replaces the artefact as a whole and leaves nothing beside it.
    lip.export_saved_model(small_model(seed=1), tmp_path / "served")
    run_python(SERVE, str(tmp_path))
    assert np.abs(np.load(tmp_path / "outputs.npy") - model.predict(inputs, verbose=0)).max() > 1e-2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inputs.npy", "outputs.npy", "served"]


def test_what_is_no_saved_model_is_not_replaced(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="does not replace what is no SavedModel. Received: path=.*notes"):
        lip.export_saved_model(small_model(), tmp_path / "notes")
    assert (tmp_path / "notes" / "thesis.txt").read_text() == "years of work"


def test_what_cannot_be_certified_is_not_exported(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.LayerNormalization(name="norm"), layers.SpectralDense(2)])
    with pytest.raises(ValueError, match="cannot bound the layer 'norm'"):
        lip.export_saved_model(model, tmp_path / "served")
    assert list(tmp_path.iterdir()) == []


def test_without_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'deel-like-lip\[tensorflow\]'"):
        lip.export_saved_model(small_model(), tmp_path / "served")
