"""The bound of the rounding error of a float32 forward pass: against float64, and flips at the edge of the ball."""

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from deel_like_lip.bounds import CannotBoundError, bound_graph
from tests.helpers import convolution_matrix, to_numpy

layers = lip.layers


def sorted_pairs(x):
    """GroupSort2 in NumPy: neighbours in order."""
    return np.sort(x.reshape(*x.shape[:-1], -1, 2), axis=-1).reshape(x.shape)


def test_no_input_leaves_the_stated_error(rng):
    keras_layers = [
        keras.Input((12, 12, 1)),
        keras.layers.Rescaling(1 / 3, offset=-0.7),
        layers.LipConv2D(6, 5, strides=2, padding="same", bias_initializer="random_normal"),
        layers.GroupSort2(),
        layers.ScaledL2NormPooling2D(2),
        keras.layers.Flatten(),
        layers.SpectralDense(32, bias_initializer="random_normal"),
        layers.GroupSort2(),
        keras.layers.BatchNormalization(
            moving_mean_initializer="random_normal", gamma_initializer=keras.initializers.RandomUniform(0.5, 2.0)
        ),
        keras.layers.LeakyReLU(0.3),
        layers.SpectralDense(5, bias_initializer="random_normal"),
    ]
    model = lip.vanilla_model(keras.Sequential(keras_layers))
    (bound,) = bound_graph(model, rounding=True).outputs
    kernels = [to_numpy(layer.kernel).astype("float64") for layer in keras_layers[1:] if hasattr(layer, "kernel")]
    biases = [to_numpy(layer.bias).astype("float64") for layer in keras_layers[1:] if hasattr(layer, "bias")]
    norm = keras_layers[8]
    gamma, beta, mean, variance = (
        to_numpy(value).astype("float64") for value in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
    )
    matrix = convolution_matrix(kernels[0], 12, 2, "same")

    def exact(x):
        x = x.astype("float64") * np.float64(np.float32(1 / 3)) + np.float64(np.float32(-0.7))
        x = (x.reshape(len(x), -1) @ matrix.T).reshape(len(x), 6, 6, 6) + biases[0]
        x = sorted_pairs(x).reshape(len(x), 3, 2, 3, 2, 6)
        x = np.sqrt((x**2).sum((2, 4))).reshape(len(x), -1)
        x = sorted_pairs(x @ kernels[1] + biases[1])
        x = (x - mean) / np.sqrt(variance + norm.epsilon) * gamma + beta
        return np.where(x > 0, x, np.float64(np.float32(0.3)) * x) @ kernels[2] + biases[2]

    inputs = rng.normal(size=(10_000, 12, 12, 1)) * 10.0 ** rng.uniform(-4, 4, size=(10_000, 1, 1, 1))
    inputs = inputs.astype("float32")
    errors = np.linalg.norm(model.predict(inputs, batch_size=1000, verbose=0) - exact(inputs), axis=1)
    norms = np.linalg.norm(inputs.astype("float64").reshape(10_000, -1), axis=1)
    allowed = bound.error.absolute + bound.error.relative * norms
    assert np.all(errors <= allowed)
    # An error in the third digit would go unnoticed if the bound were as loose as that.
    assert bound.error.relative < 1e-3 * bound.constant
    assert errors.max() > 0


@pytest.mark.parametrize("rounding", ["exact", "sound"])
def test_flips_at_the_edge_of_the_ball(rounding, rng):
    """Of a long sum the sign flips within the radius of exact arithmetic, and never within the sound one.

    One input has the weight 1 and small values, which float32 resolves finely; the others have small weights and large
    values that cancel, but for the rounding of the sum.
    """
    units = 4096
    kernel = np.full(units, 1e-5, "float32")
    kernel[0] = 1
    model = keras.Sequential([keras.Input((units,)), keras.layers.Dense(1)])
    model.layers[0].kernel.assign(kernel[:, None])
    half = rng.normal(size=(300, units // 2 - 1)) * 1e5
    inputs = np.zeros((300, units), "float32")
    inputs[:, 2:] = rng.permuted(np.concatenate([half, -half], axis=1), axis=1)
    inputs[:, 0] = 10.0 ** rng.uniform(-6, 5, 300) * rng.choice([-1, 1], 300)
    logits = model.predict(inputs, verbose=0)
    radii = lip.certify(model, rounding=rounding).radius(logits, inputs=inputs)
    assert (radii > 0).any()
    flips = 0
    for fraction in 1 - np.geomspace(1e-7, 0.5, 40):
        moved = inputs.copy()
        moved[:, 0] -= (np.sign(logits[:, 0]) * fraction * radii).astype("float32")
        inside = np.abs(moved[:, 0].astype("float64") - inputs[:, 0]) < radii
        flips += np.sum(inside & (np.sign(model.predict(moved, batch_size=300, verbose=0)) != np.sign(logits))[:, 0])
    if rounding == "exact":
        assert flips > 0  # so the search finds what there is
    else:
        assert flips == 0


def test_sound_radii_are_positive_where_it_matters(rng):
    model = keras.Sequential(
        [keras.Input((64,)), layers.SpectralDense(64, activation=layers.MaxMin()), layers.SpectralDense(3)]
    )
    inputs = rng.uniform(size=(200, 64)).astype("float32")
    logits = model.predict(inputs, verbose=0)
    exact, sound = (lip.certify(model, rounding=mode).radius(logits, inputs=inputs) for mode in ("exact", "sound"))
    assert np.all(sound <= exact)
    large = exact > 0.1
    assert large.any()
    assert np.all(sound[large] > 0.99 * exact[large])


REFUSED = {
    "tanh": (lambda: keras.layers.Activation("tanh", name="layer"), {}),
    "softmax": (lambda: keras.layers.Softmax(name="layer"), {}),
    "LayerNormalization": (lambda: keras.layers.LayerNormalization(epsilon=1.0, name="layer"), {}),
}


@pytest.mark.parametrize(("build", "options"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_known_rounding_is_refused(build, options):
    model = keras.Sequential([keras.Input((4,)), build(), keras.layers.Dense(2)])
    lip.certify(model)
    with pytest.raises(CannotBoundError, match="'layer' of class .*rounding=\"sound\""):
        lip.certify(model, rounding="sound")


def test_own_rules_say_nothing_of_rounding():
    @keras.saving.register_keras_serializable()
    class Third(keras.layers.Layer):
        def call(self, inputs):
            return inputs / 3

    lip.bounds.register_bound_rule(Third)(lambda layer, input_shape: 1 / 3)
    model = keras.Sequential([keras.Input((4,)), Third(name="third"), keras.layers.Dense(2)])
    lip.certify(model)
    with pytest.raises(CannotBoundError, match="'third' .*its rounding error is not known"):
        lip.certify(model, rounding="sound")


def test_invalid_rounding():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match='Expected rounding="exact" or "sound". Received: rounding=\'float32\''):
        lip.certify(model, rounding="float32")
