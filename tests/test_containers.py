"""`Sequential` and `Model`: constants, files, and the methods of deel-lip."""

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from tests.helpers import singular_values, to_numpy

layers = lip.layers


def network(**options) -> lip.Sequential:
    return lip.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.LipConv2D(4, 3, padding="circular", activation=layers.GroupSort2()),
            layers.ScaledL2NormPooling2D(k_coef_lip=5.0),
            keras.layers.Flatten(),
            lip.Sequential([layers.SpectralDense(8), layers.MaxMin()]),
            layers.SpectralDense(1, use_bias=False),
        ],
        **options,
    )


def dense(k_coef_lip: float) -> lip.Sequential:
    layer = layers.SpectralDense
    return lip.Sequential(
        [keras.Input((8,)), layer(16), layers.GroupSort2(), layer(8), layers.MaxMin(), layer(1)], k_coef_lip=k_coef_lip
    )


@pytest.mark.parametrize("k_coef_lip", [2.0, 0.3])
def test_the_whole_has_the_constant(k_coef_lip):
    model = dense(k_coef_lip)
    np.testing.assert_allclose([layer.k_coef_lip for layer in model.layers], k_coef_lip ** (1 / 5), rtol=1e-12)
    constant = lip.certify(model).lipschitz_constant
    assert 0.99 * k_coef_lip <= constant <= k_coef_lip * (1 + 1e-5)


def test_the_constant_after_training():
    model = dense(2.0)
    model.compile(keras.optimizers.Adam(0.05), "mse")
    x = np.random.default_rng(0).normal(size=(96, 8))
    model.fit(x, np.ones((96, 1)), callbacks=[lip.callbacks.CondenseCallback()], verbose=0)
    assert 1.98 <= lip.certify(model).lipschitz_constant <= 2 * (1 + 1e-5)


def test_nested_ones_and_those_with_other_constants_get_their_share():
    model = network(k_coef_lip=16.0)
    constants = [getattr(layer, "k_coef_lip", None) for layer in model.layers]
    assert constants == [2.0, 2.0, None, 2.0, 2.0]
    inner = model.layers[3]
    np.testing.assert_allclose([layer.k_coef_lip for layer in inner.layers], 2**0.5)
    assert lip.certify(model).lipschitz_constant <= 16 * (1 + 1e-5)
    assert [getattr(layer, "k_coef_lip", 1.0) for layer in network().layers] == [1.0] * 5


def test_keras_file(tmp_path):
    inputs = np.random.default_rng(1).normal(size=(4, 6, 6, 1)).astype("float32")
    model = network(k_coef_lip=3.0, name="whole")
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again) is lip.Sequential
    assert (again.k_coef_lip, again.name) == (3.0, "whole")
    np.testing.assert_array_equal(to_numpy(again(inputs)), to_numpy(model(inputs)))
    again = lip.Sequential.from_config(model.get_config())
    assert [layer.get_config() for layer in again.layers] == [layer.get_config() for layer in model.layers]
    later = lip.Sequential([layers.SpectralDense(3)], k_coef_lip=0.5)
    later.build((None, 4))
    later.save(tmp_path / "later.keras")
    again = keras.models.load_model(tmp_path / "later.keras")
    np.testing.assert_allclose(singular_values(again.layers[0].kernel), 0.5, rtol=1e-3)


def test_exports_and_projects():
    inputs = keras.Input((6,))
    functional = lip.Model(inputs, layers.SpectralDense(3)(inputs))

    class Own(lip.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.SpectralDense(3)

        def call(self, inputs):
            return self.dense(inputs)

    own = Own()
    x = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    own(x)
    named = lip.Model(inputs=inputs, outputs=[layers.SpectralDense(3)(inputs)], name="named")
    sequential = lip.Sequential([keras.Input((6,)), layers.SpectralDense(3)])
    for model in (functional, own, named, sequential):
        kernel = model.weights[0]
        kernel.assign(kernel * 1.5)
        model.condense()
        np.testing.assert_allclose(singular_values(kernel), 1, rtol=1e-3)
        plain = model.vanilla_export()
        assert all(type(layer).__module__.startswith("keras.") for layer in [plain, *plain.layers])
        np.testing.assert_allclose(
            to_numpy(keras.tree.flatten(plain(x))[0]), to_numpy(keras.tree.flatten(model(x))[0]), atol=1e-6
        )
    assert all(isinstance(model, lip.Model) for model in (functional, own, named))
    assert named.name == "named"


def test_functional_models_in_files(tmp_path):
    inputs = keras.Input((6,))
    model = lip.Model(inputs, layers.SpectralDense(1)(layers.GroupSort2()(layers.SpectralDense(4)(inputs))))
    x = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again) is type(model)
    assert isinstance(again, lip.Model)
    np.testing.assert_array_equal(to_numpy(again(x)), to_numpy(model(x)))
    assert lip.certify(again).lipschitz_constant == pytest.approx(1, rel=1e-2)


def test_names_of_deel_lip():
    assert lip.vanillaModel is lip.vanilla_model
    assert lip.callbacks.CondenseCallback is lip.callbacks.RenormalizeCallback


def test_layers_of_keras_are_warned_of_where_they_may_enlarge_the_constant():
    for layer in (keras.layers.Dense(3), keras.layers.MaxPooling2D(3, strides=1), keras.layers.Activation("selu")):
        with pytest.warns(UserWarning, match=f"'{layer.name}'.*no constant that is set"):
            lip.Sequential([layer], k_coef_lip=2.0)
    # An error in these tests, if one is issued.
    lip.Sequential([keras.layers.ReLU(), keras.layers.MaxPooling2D(), keras.layers.Activation("tanh")])


def test_adding_layers():
    model = lip.Sequential()
    model.add(keras.Input((4,)))
    model.add(layers.SpectralDense(3, k_coef_lip=2.0))
    assert model.layers[0].k_coef_lip == 1
    model = dense(2.0)
    with pytest.raises(ValueError, match=r"k_coef_lip=2.0 among the layers.*Give all of them.*Received: <MaxMin"):
        model.add(layers.MaxMin())
    built = layers.SpectralDense(3)
    built.build((None, 4))
    with pytest.raises(ValueError, match="has weights already, that were made for k_coef_lip=1.0.*share of the model"):
        lip.Sequential([built], k_coef_lip=2.0)
    assert lip.Sequential([built]).layers[0] is built
    with pytest.raises(ValueError, match="`k_coef_lip`. Expected a positive finite number. Received: k_coef_lip=0"):
        lip.Sequential([], k_coef_lip=0)
