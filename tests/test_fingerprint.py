"""A certificate knows its model: the graph, the arguments of layers, the weights, the order of inputs and outputs."""

import keras
import numpy as np
import pytest
from keras import ops

import deel_like_lip as lip
from deel_like_lip._fingerprint import fingerprint
from tests.helpers import to_numpy

layers = keras.layers


def two(last, first=None):
    """A model with weights that are the same whatever is done between its layers."""
    inputs = keras.Input((4, 4, 1))
    x = layers.Conv2D(2, 2, kernel_initializer="ones")(first(inputs) if first else inputs)
    return keras.Model(inputs, layers.Dense(3, kernel_initializer="ones")(layers.Flatten()(last(x))))


OTHERS = {
    "a layer more": lambda: two(lambda x: layers.Rescaling(100.0)(layers.ReLU()(x))),
    "another argument": lambda: two(lambda x: layers.ReLU(negative_slope=0.5)(x)),
    "another layer": lambda: two(lambda x: layers.Activation("softplus")(x)),
    "an op more": lambda: two(lambda x: layers.ReLU()(x) * 2.0),
    "another op": lambda: two(lambda x: ops.abs(layers.ReLU()(x))),
    "another order": lambda: two(lambda x: x, first=lambda x: layers.ReLU()(x)),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS)
def test_another_model_of_equal_weights(make):
    certificate = lip.certify(two(lambda x: layers.ReLU()(x)))
    data = np.zeros((2, 4, 4, 1), "float32"), np.zeros(2, int)
    certificate.verify(two(lambda x: layers.ReLU()(x)))
    lip.certified_accuracy(two(lambda x: layers.ReLU()(x)), data, [0.0], certificate=certificate)
    with pytest.raises(lip.CertificateError, match="computed from other weights, or from another graph"):
        certificate.verify(make())
    with pytest.raises(lip.CertificateError, match="another graph"):
        lip.certified_accuracy(make(), data, [0.0], certificate=certificate)


@pytest.mark.parametrize("export", [lip.export_saved_model, lip.export_litert, lip.export_onnx])
def test_exports_know_it_too(export, tmp_path):
    names = {lip.export_saved_model: "served", lip.export_litert: "served.tflite", lip.export_onnx: "served.onnx"}
    certificate = lip.certify(two(lambda x: layers.ReLU()(x)))
    with pytest.raises(lip.CertificateError, match="another graph"):
        export(OTHERS["a layer more"](), tmp_path / names[export], certificate=certificate)
    assert not list(tmp_path.iterdir())


def of_constant(array, swapped=False):
    inputs = keras.Input((4,))
    return keras.Model(inputs, ops.subtract(array, inputs) if swapped else ops.subtract(inputs, array))


def heads(first, second, swapped=False):
    inputs = keras.Input((4,))
    parts = [inputs[:, :2], inputs[:, 2:] * 10.0]
    return keras.Model(inputs, dict(zip((first, second), parts[:: -1 if swapped else 1], strict=True)))


def test_constants_order_and_names_of_outputs_count():
    ones = np.ones(4, "float32")
    assert fingerprint(of_constant(ones)) == fingerprint(of_constant(ones.copy()))
    different = {
        fingerprint(model) for model in (of_constant(ones), of_constant(2 * ones), of_constant(ones, swapped=True))
    }
    assert len(different) == 3
    certificate = lip.certify(heads("kind", "tags"))
    certificate.verify(heads("kind", "tags"))
    for other in (heads("kind", "tags", swapped=True), heads("tags", "kind"), heads("kind", "other")):
        with pytest.raises(lip.CertificateError, match="(another graph|other names)"):
            certificate.verify(other)


def test_names_and_order_of_inputs_count():
    def model(*names):
        first, second = (keras.Input((4,), name=name) for name in names)
        return keras.Model(
            dict(zip(names, (first, second), strict=True)),
            layers.Add()([first, layers.Rescaling(10.0)(second)]),
        )

    assert fingerprint(model("a", "b")) == fingerprint(model("a", "b"))
    assert fingerprint(model("a", "b")) != fingerprint(model("b", "a"))
    assert fingerprint(model("a", "b")) != fingerprint(model("a", "c"))


def test_it_is_that_of_the_model_wherever_it_is_made(tmp_path):
    """The names that Keras gives, folds, files and nested folds do not change it."""
    inputs = keras.Input((6, 6, 2))
    shared = lip.layers.SpectralDense(4, activation=lip.layers.GroupSort2())
    x = lip.layers.LipConv2D(4, 3, padding="circular", activation=lip.layers.MaxMin())(inputs)
    x = lip.layers.ScaledL2NormPooling2D(2)(x)
    x = shared(shared(layers.Dense(4)(layers.Flatten()(x * 0.1))))
    model = keras.Model(inputs, keras.Sequential([keras.Input((4,)), layers.Dropout(0.5), layers.Dense(3)])(x))
    expected = lip.certify(model).fingerprint
    plain = lip.vanilla_model(model)
    plain.save(tmp_path / "plain.keras")
    model.save(tmp_path / "model.keras")
    for other in (
        plain,
        lip.vanilla_model(plain),
        keras.models.load_model(tmp_path / "plain.keras"),
        lip.vanilla_model(keras.models.load_model(tmp_path / "model.keras")),
    ):
        assert fingerprint(other) == expected
    lip.certify(model).verify(keras.models.load_model(tmp_path / "plain.keras"))
    plain.layers[-1].layers[-1].bias.assign(to_numpy(plain.layers[-1].layers[-1].bias) + 1)
    assert fingerprint(plain) != expected


def test_certificates_of_the_first_format_are_refused():
    text = lip.certify(two(lambda x: x)).to_json().replace('"format": 2', '"format": 1')
    with pytest.raises(lip.CertificateError, match="its format is 1, and this version reads 2"):
        lip.Certificate.from_json(text)
