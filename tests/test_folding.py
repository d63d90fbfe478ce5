"""Folding models of every shape."""

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from tests.helpers import run_python, to_numpy

layers = lip.layers


def functional():
    """Branches, a shared layer, nested models and plain layers."""
    inputs = keras.Input((8,), name="features")
    shared = layers.SpectralDense(8)
    inner = keras.Sequential([keras.Input((8,)), layers.SpectralDense(8), layers.FullSort()], name="inner")
    hidden = layers.GroupSort2()(shared(shared(inputs)))
    branches = keras.layers.Add()([inner(hidden), inner(shared(hidden)), keras.layers.BatchNormalization()(hidden)])
    return keras.Model(inputs, layers.FrobeniusDense(3)(branches + inputs), name="branches")


class Subclassed(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.body = keras.Sequential([layers.SpectralDense(8, activation=layers.MaxMin())])
        self.head = layers.SpectralDense(2)

    def call(self, inputs, training=None):
        return self.head(keras.ops.relu(self.body(inputs, training=training)) + inputs)


class OwnTrainStep(keras.Model):
    """Functional, with a method of its own that does not matter."""

    def own(self):
        return 1


class OwnCall(keras.Model):
    """Functional, with a `call` that computes something else than its graph."""

    def call(self, inputs):
        return 2.0 * super().call(inputs)


def check_same(model, plain, shape, count=16):
    inputs = np.random.default_rng(0).normal(size=(count, *shape)).astype("float32")
    np.testing.assert_allclose(plain.predict(inputs, verbose=0), model.predict(inputs, verbose=0), atol=1e-5)


def test_functional_model():
    model = functional()
    for weight in model.weights:
        weight.assign(weight + 0.01 * np.random.default_rng(1).normal(size=weight.shape).astype("float32"))
    plain = lip.vanilla_model(model)
    check_same(model, plain, (8,))
    assert len(plain.weights) == len(model.weights)  # the shared layer is one layer still
    assert plain.name == "branches"
    assert [tensor.name for tensor in plain.inputs] == ["features"]
    assert "inner" in [layer.name for layer in plain.layers]
    assert not plain.compiled


def test_subclassed_model():
    model = Subclassed()
    inputs = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")
    model(inputs)
    check_same(model, lip.vanilla_model(model), (8,))


def test_functional_model_of_a_subclass():
    inputs = keras.Input((8,))
    model = OwnTrainStep(inputs, layers.SpectralDense(2)(inputs))
    check_same(model, lip.vanilla_model(model), (8,))


def test_a_call_that_was_overridden_counts():
    inputs = keras.Input((8,))
    model = OwnCall(inputs, layers.SpectralDense(2)(inputs))
    model(np.zeros((1, 8), "float32"))
    check_same(model, lip.vanilla_model(model), (8,))


def test_several_inputs_and_outputs():
    first, second = keras.Input((4,), name="first"), keras.Input((4,), name="second")
    joined = keras.layers.Concatenate()([first, second])
    model = keras.Model({"a": first, "b": second}, [layers.SpectralDense(2)(joined), layers.SpectralDense(3)(second)])
    plain = lip.vanilla_model(model)
    values = {"a": np.ones((2, 4), "float32"), "b": np.full((2, 4), 2.0, "float32")}
    for one, other in zip(plain.predict(values, verbose=0), model.predict(values, verbose=0), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_after_training_it_predicts_the_same_and_stays_as_it_was():
    model = functional()
    model.compile("adam", lip.losses.MulticlassHKR())
    inputs = np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    model.fit(inputs, np.arange(64) % 3, verbose=0)
    plain = lip.vanilla_model(model)
    check_same(model, plain, (8,))
    before = plain.predict(inputs, verbose=0)
    model.fit(inputs, np.arange(64) % 3, verbose=0)
    np.testing.assert_array_equal(plain.predict(inputs, verbose=0), before)


def test_the_file_loads_where_the_library_cannot_be_imported(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.LipConv2D(8, 3, padding="circular", strides=2, activation=layers.GroupSort2()),
            layers.ScaledL2NormPooling2D(),
            layers.LipConv2D(8, 3, padding="same", activation=layers.GroupSort(4)),
            layers.MaxMin(),
            layers.ScaledGlobalL2NormPooling2D(),
            layers.SpectralDense(4, activation=layers.FullSort()),
            layers.FrobeniusDense(2),
        ]
    )
    inputs = np.random.default_rng(0).normal(size=(16, 8, 8, 2)).astype("float32")
    np.save(tmp_path / "inputs.npy", inputs)
    lip.vanilla_model(model).save(tmp_path / "plain.keras")
    code = """
import pathlib, sys
sys.modules["deel_like_lip"] = None  # importing it fails
import keras, numpy as np
folder = pathlib.Path(sys.argv[1])
plain = keras.models.load_model(folder / "plain.keras")
np.save(folder / "outputs.npy", plain.predict(np.load(folder / "inputs.npy"), verbose=0))
"""
    run_python(code, str(tmp_path))
    np.testing.assert_allclose(np.load(tmp_path / "outputs.npy"), model.predict(inputs, verbose=0), atol=1e-5)


@pytest.mark.parametrize("fold", [lip.vanilla_model, lip.certify])
def test_a_model_that_is_not_built(fold):
    with pytest.raises(ValueError, match="'untouched' is not built"):
        fold(keras.Sequential([layers.SpectralDense(2)], name="untouched"))
    with pytest.raises(ValueError, match="'untouched' is not built"):
        fold(Subclassed(name="untouched"))


def test_what_is_no_model():
    with pytest.raises(ValueError, match="`vanilla_model` expects a `keras.Model`. Received: model=3"):
        lip.vanilla_model(3)


def test_a_layer_inside_a_wrapper():
    wrapper = keras.layers.TimeDistributed(layers.SpectralDense(2), name="wrapper")
    with pytest.raises(ValueError, match="TimeDistributed layer 'wrapper' cannot be folded.*inside"):
        lip.vanilla_model(keras.Sequential([keras.Input((3, 4)), wrapper]))


def test_an_activation_inside_a_recurrent_layer():
    recurrent = keras.layers.SimpleRNN(4, activation=layers.GroupSort2(), name="recurrent")
    with pytest.raises(ValueError, match="SimpleRNN layer 'recurrent' cannot be folded.*inside"):
        lip.vanilla_model(keras.Sequential([keras.Input((3, 4)), recurrent]))


@pytest.mark.parametrize(
    "plain_layer",
    [
        lambda: keras.layers.Activation(layers.MaxMin()),
        lambda: keras.layers.Conv2D(4, 3, activation=layers.GroupSort2()),
        lambda: keras.layers.DepthwiseConv2D(3, depth_multiplier=2, activation=layers.FullSort()),
    ],
)
def test_a_sort_as_the_activation_of_a_plain_layer(plain_layer):
    model = keras.Sequential([keras.Input((6, 6, 4)), plain_layer()])
    check_same(model, lip.vanilla_model(model), (6, 6, 4))


def test_what_matters_in_training_only_is_not_folded():
    class Odd(keras.regularizers.Regularizer):
        def __call__(self, kernel):
            return 0.0 * keras.ops.sum(kernel)

        def get_config(self):
            return {}

    model = keras.Sequential(
        [keras.Input((4,)), layers.SpectralDense(2, kernel_regularizer=Odd(), bias_constraint="non_neg")]
    )
    (dense,) = lip.vanilla_model(model).layers[1:]
    assert dense.kernel_regularizer is None
    assert dense.bias_constraint is None


def test_a_subclass_of_a_layer_that_changes_call():
    class Doubled(layers.SpectralDense):
        def call(self, inputs, training=None):
            return 2 * super().call(inputs, training=training)

    model = keras.Sequential([keras.Input((4,)), Doubled(2, name="doubled")])
    with pytest.raises(
        ValueError, match="'doubled' cannot be folded: its class Doubled overrides `call` but not `fold`"
    ):
        lip.vanilla_model(model)


def test_a_subclassed_model_whose_call_cannot_be_followed():
    class Opaque(keras.Model):
        def call(self, inputs):
            return keras.ops.convert_to_tensor(to_numpy(inputs) * 2)

    model = Opaque(name="opaque")
    model.built = True
    model._build_shapes_dict = {"input_shape": (None, 4)}
    with pytest.raises(ValueError, match="'opaque' of class Opaque cannot be folded: its `call` does something"):
        lip.vanilla_model(model)


def test_a_fold_shares_no_name_with_other_layers():
    model = keras.Sequential(
        [
            keras.Input((4, 4, 2)),
            lip.layers.LipConv2D(2, 3, padding="circular", parametrization="soc"),
            lip.layers.GroupSort2(k_coef_lip=2.0),
            keras.layers.Rescaling(1.0, name="rescaling"),
            keras.layers.Flatten(),
            keras.layers.Dense(3, name="dense"),
        ]
    )
    keras.backend.clear_session()  # names are counted from the start again, as where a saved model is loaded
    plain = lip.vanilla_model(model)
    assert np.isfinite(to_numpy(plain(np.ones((1, 4, 4, 2), "float32")))).all()


@pytest.mark.parametrize("shape", [(4,), (5, 4)])
def test_adapted_normalization_keeps_its_statistics(shape, rng):
    data = (rng.normal(size=(32, *shape)) * [1, 10, 0.1, 5] + 3).astype("float32")
    normalization = keras.layers.Normalization()
    normalization.adapt(data.reshape(-1, 4))
    wrapped = normalization if len(shape) == 1 else keras.layers.TimeDistributed(normalization)
    dense = lip.layers.SpectralDense(3)
    model = keras.Sequential([keras.Input(shape), wrapped, dense])
    plain = lip.vanilla_model(model)
    np.testing.assert_allclose(plain.predict(data, verbose=0), model.predict(data, verbose=0), atol=1e-4)
    deviations = np.sqrt(np.var(data.reshape(-1, 4), axis=0, dtype="float64"))
    norm = np.linalg.norm(to_numpy(dense.kernel) / deviations[:, None], 2)
    constant = lip.certify(model).lipschitz_constant
    assert norm * (1 - 1e-6) <= constant <= (1 + 1e-5) / np.min(deviations)  # kernel and statistics, joined or not
    assert constant * (1 + 1e-6) >= lip.empirical_lipschitz(model, data)  # which is rounded to float32
