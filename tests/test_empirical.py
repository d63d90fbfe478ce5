"""Lower bounds found by search: reached where the truth is known, and never above a certificate."""

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from deel_like_lip.empirical import empirical_lipschitz
from tests.helpers import operator_norm, to_numpy

layers = lip.layers


def linear(kernel, bias=0.0):
    head = keras.layers.Dense(kernel.shape[1])
    model = keras.Sequential([keras.Input(kernel.shape[:1]), head])
    head.set_weights([kernel, np.full(kernel.shape[1], bias)])
    return model


def tanh_of_each(size=3):
    return keras.Sequential(
        [keras.Input((size,)), keras.layers.Dense(size, activation="tanh", kernel_initializer="identity")]
    )


@pytest.mark.parametrize("shape", [(1, 1), (20, 1), (1, 20), (30, 8), (8, 30)])
def test_linear_models_have_their_largest_singular_value(shape, rng):
    kernel = rng.normal(size=shape)
    found = empirical_lipschitz(linear(kernel), rng.normal(size=(40, shape[0])))
    assert found == pytest.approx(operator_norm(kernel), rel=1e-4)


def test_singular_values_that_are_close_to_one_another(rng):
    left, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    right, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    kernel = left @ np.diag(np.linspace(2, 3, 12)) @ right
    assert empirical_lipschitz(linear(kernel), rng.normal(size=(40, 12)), iterations=60) == pytest.approx(3, rel=1e-4)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_units_of_input_and_output_do_not_matter(scale, rng):
    kernel = rng.normal(size=(6, 4))
    found = empirical_lipschitz(linear(kernel / scale), scale * rng.normal(size=(20, 6)))
    assert found == pytest.approx(operator_norm(kernel) / scale, rel=1e-4)


def test_large_offsets_do_not_raise_it(rng):
    kernel = rng.normal(size=(6, 4))
    found = empirical_lipschitz(linear(kernel, bias=1e4), 100 + rng.normal(size=(20, 6)))
    assert found == pytest.approx(operator_norm(kernel), rel=1e-4)
    assert found <= operator_norm(kernel) * (1 + 1e-5)


@pytest.mark.parametrize("samples", [1, 50])
def test_the_search_leaves_the_data(samples, rng):
    """The slope of tanh is 1 at 0, and less than a hundredth of that at the data."""
    data = 4 + 0.5 * rng.uniform(size=(samples, 3))
    assert empirical_lipschitz(tanh_of_each(), data, search_steps=0) < 0.01
    assert 0.995 < empirical_lipschitz(tanh_of_each(), data) <= 1 + 1e-5


def test_the_search_sees_steep_pieces_between_samples(rng):
    """Slope 1 at all samples, and 5 between 0.5 and 0.7, where none is: no Jacobian at a sample knows of it."""
    inputs = keras.Input((1,))
    model = keras.Model(inputs, inputs + 4 * (keras.ops.relu(inputs - 0.5) - keras.ops.relu(inputs - 0.7)))
    data = np.concatenate([rng.uniform(-1, 0.4, size=(15, 1)), rng.uniform(0.8, 1, size=(15, 1))])
    assert empirical_lipschitz(model, data, search_steps=0) == pytest.approx(1, rel=1e-5)
    assert empirical_lipschitz(model, data) == pytest.approx(5, rel=1e-4)


def group_sort_net():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.LipConv2D(4, 3, padding="same", activation=layers.GroupSort2()),
            layers.ScaledL2NormPooling2D(),
            keras.layers.Flatten(),
            layers.SpectralDense(16, activation=layers.FullSort()),
            layers.FrobeniusDense(3),
        ]
    )


def plain_net():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(16, activation="elu"),
            keras.layers.Dense(5),
        ]
    )


def residual_net():
    inputs = keras.Input((8, 8, 1))
    x = layers.SpectralDense(32)(keras.layers.Flatten()(inputs))
    x = keras.layers.Average()([x, layers.SpectralDense(32)(layers.GroupSort2()(x))])
    return keras.Model(inputs, layers.SpectralDense(2)(x))


def subclassed_net():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = layers.SpectralDense(4, activation="tanh")

        def call(self, inputs):
            return self.head(keras.ops.reshape(inputs, (-1, 64)))

    model = Net()
    model(np.zeros((1, 8, 8, 1)))
    return model


def attained_net():
    hidden = [layers.SpectralDense(64, activation=layers.GroupSort2()) for _ in range(3)]
    return keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), *hidden, layers.SpectralDense(10)])


NETS = [group_sort_net, plain_net, residual_net, subclassed_net, attained_net]


@pytest.mark.parametrize("make", NETS)
@pytest.mark.parametrize("folded", [False, True])
def test_it_is_never_above_the_certified_constant(make, folded, rng):
    model = make()
    for weight in model.trainable_weights:
        if "bias" in weight.path:
            weight.assign(0.1 * rng.normal(size=weight.shape))
    constant = lip.certify(model).lipschitz_constant
    if folded:
        model = lip.vanilla_model(model)
    found = empirical_lipschitz(model, rng.normal(size=(50, 8, 8, 1)), search_steps=40)
    assert constant / 20 < found <= constant * (1 + 1e-5)


def test_a_bound_that_is_attained_is_found(rng):
    model = attained_net()
    constant = lip.certify(model).lipschitz_constant
    data = rng.normal(size=(20, 8, 8, 1))
    assert 0.9 * constant < empirical_lipschitz(model, data, search_steps=0) <= constant * (1 + 1e-5)
    assert 0.999 * constant < empirical_lipschitz(model, data) <= constant * (1 + 1e-5)


def test_training_and_edits_are_seen(rng):
    model = attained_net()
    data = rng.normal(size=(20, 8, 8, 1))
    assert empirical_lipschitz(model, data, search_steps=0) == pytest.approx(1, rel=1e-4)
    model.layers[-1].kernel.assign(3 * to_numpy(model.layers[-1].kernel))
    assert empirical_lipschitz(model, data, search_steps=0) == pytest.approx(3, rel=1e-4)


def test_dropout_and_batch_statistics_are_those_of_inference(rng):
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.BatchNormalization(epsilon=0.0), keras.layers.Dropout(0.5)]
    )
    model.layers[0].set_weights([np.ones(5), np.zeros(5), np.zeros(5), np.full(5, 0.25)])
    assert empirical_lipschitz(model, rng.normal(size=(30, 5))) == pytest.approx(2, rel=1e-4)


def test_ties_do_not_raise_it():
    """At ties of sorted pairs, and at a kink that cancels, backends differentiate to more than there is."""
    sorting = keras.Sequential([keras.Input((6,)), layers.GroupSort2()])
    inputs = keras.Input((6,))
    nothing = keras.Model(inputs, inputs - keras.ops.relu(inputs) + keras.ops.relu(-inputs))
    for data in (np.zeros((4, 6)), np.ones((4, 6))):
        assert empirical_lipschitz(sorting, data) == pytest.approx(1, rel=1e-5)
        assert empirical_lipschitz(nothing, data) == pytest.approx(0, abs=1e-5)


def test_roots_of_zero_have_no_gradient_and_do_no_harm(rng):
    """Folded l2-norm pooling is a plain root, whose gradient is not finite where a window is all zero."""
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.ReLU(), layers.ScaledL2NormPooling2D()])
    for one in (model, lip.vanilla_model(model)):
        assert empirical_lipschitz(one, rng.normal(size=(30, 8, 8, 1))) == pytest.approx(1, rel=1e-4)
        assert 0.5 < empirical_lipschitz(one, np.full((2, 8, 8, 1), -1.0)) <= 1 + 1e-5


def test_a_constant_model_has_none():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, kernel_initializer="zeros")])
    assert empirical_lipschitz(model, np.zeros((3, 4))) == 0


def test_several_outputs_are_one(rng):
    first, second = rng.normal(size=(6, 2)), rng.normal(size=(6, 12))
    inputs = keras.Input((6,))
    ends = [keras.layers.Dense(2, use_bias=False), keras.layers.Dense(12, use_bias=False)]
    outputs = {"a": ends[0](inputs), "b": keras.layers.Reshape((3, 4))(ends[1](inputs))}
    model = keras.Model(inputs, outputs)
    ends[0].set_weights([first])
    ends[1].set_weights([second])
    expected = operator_norm(np.concatenate([first, second], axis=1))
    assert empirical_lipschitz(model, rng.normal(size=(20, 6))) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("named", [False, True])
def test_several_inputs_are_one(named, rng):
    first, second = rng.normal(size=(6, 5)), rng.normal(size=(4, 5))
    inputs = [keras.Input((6,), name="left"), keras.Input((2, 2), name="right")]
    ends = [keras.layers.Dense(5, use_bias=False), keras.layers.Dense(5, use_bias=False)]
    outputs = ends[0](inputs[0]) + ends[1](keras.layers.Flatten()(inputs[1]))
    data = [rng.normal(size=(20, 6)), rng.normal(size=(20, 2, 2))]
    if named:
        model = keras.Model({"left": inputs[0], "right": inputs[1]}, outputs)
        data = {"right": data[1], "left": data[0]}
    else:
        model = keras.Model(inputs, outputs)
    ends[0].set_weights([first])
    ends[1].set_weights([second])
    expected = operator_norm(np.concatenate([first, second]))
    assert empirical_lipschitz(model, data) == pytest.approx(expected, rel=1e-4)


def test_the_same_seed_finds_the_same(rng):
    model, data = plain_net(), rng.normal(size=(30, 8, 8, 1))
    found = empirical_lipschitz(model, data, search_steps=5, seed=3)
    assert empirical_lipschitz(model, data, search_steps=5, seed=3) == found
    # Batches that are filled up with samples of the beginning change nothing but rounding.
    assert empirical_lipschitz(model, data, search_steps=5, seed=3, batch_size=7) == pytest.approx(found, rel=1e-2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_data_that_is_not_finite_is_refused(bad):
    data = np.zeros((3, 8, 8, 1))
    data[1, 2, 3] = bad
    with pytest.raises(ValueError, match=r"expects finite data\. Received: data with 1 entries that are NaN or inf"):
        empirical_lipschitz(plain_net(), data)


def test_outputs_that_are_not_finite_are_refused():
    broken = linear(np.full((4, 2), np.nan))
    with pytest.raises(ValueError, match="to return finite outputs for the data"):
        empirical_lipschitz(broken, np.ones((3, 4)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.zeros((3, 8, 8)), r"takes, \[\(None, 8, 8, 1\)\]\. Received: data of shapes \[\(3, 8, 8\)\]"),
        (np.zeros((3, 8, 9, 1)), r"Received: data of shapes \[\(3, 8, 9, 1\)\]"),
        (np.zeros((0, 8, 8, 1)), r"at least one sample.* Received: data of shapes \[\(0, 8, 8, 1\)\]"),
        (1.0, r"array of shape \(samples, \.\.\.\)"),
        ([np.zeros((3, 8, 8, 1)), np.zeros((2, 8, 8, 1))], "as many samples each"),
        ([np.zeros((3, 8, 8, 1)), np.zeros((3, 8, 8, 1))], "of the shapes that the model"),
    ],
)
def test_data_of_other_shapes_is_refused(data, words):
    with pytest.raises(ValueError, match=words):
        empirical_lipschitz(plain_net(), data)


def test_data_of_other_shapes_is_refused_by_subclassed_models():
    with pytest.raises(ValueError, match="shape"):
        empirical_lipschitz(subclassed_net(), np.zeros((3, 5, 7, 1)))


def test_models_that_are_not_fit_are_refused():
    data = np.zeros((3, 4))
    with pytest.raises(ValueError, match="The model 'new' is not built, so it has no weights yet"):
        empirical_lipschitz(keras.Sequential([keras.layers.Dense(2)], name="new"), data)
    with pytest.raises(ValueError, match=r"expects a `keras\.Model`\. Received: model=<Dense"):
        empirical_lipschitz(keras.layers.Dense(2), data)
    indices = keras.Sequential([keras.Input((4,), dtype="int32"), keras.layers.Embedding(5, 2)])
    with pytest.raises(ValueError, match=r"inputs are floats\. Received: .* with dtypes \['int32'\]"):
        empirical_lipschitz(indices, data)
    inputs = keras.Input((4,))
    classes = keras.Model(inputs, keras.ops.argmax(inputs, axis=1), name="classes")
    with pytest.raises(ValueError, match="model 'classes' to return floats for each sample by itself"):
        empirical_lipschitz(classes, data)


@pytest.mark.parametrize(("name", "value"), [("iterations", 0), ("search_steps", -1), ("batch_size", 0)])
def test_numbers_that_are_too_small_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"expects {name} of at least .* Received: {name}={value}"):
        empirical_lipschitz(plain_net(), np.zeros((3, 8, 8, 1)), **{name: value})
