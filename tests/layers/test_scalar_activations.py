"""Activations of one variable: values, slopes at kinks, and what training does to learned ones."""

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from tests.helpers import jacobian, to_numpy, vector_jacobian_product

layers = lip.layers
POINTS = np.array([[-3.0, -1.0, -0.5, 0.0, 0.25, 1.0, 4.0, 0.0]])


def slopes_at(layer, points):
    return vector_jacobian_product(layer, points, np.ones_like(points))


def test_absolute_value_by_hand():
    np.testing.assert_array_equal(to_numpy(layers.Abs(k_coef_lip=3.0)(POINTS)), 3 * np.abs(POINTS))


def test_soft_huber_by_hand():
    np.testing.assert_allclose(to_numpy(layers.SoftHuber(3.0)(np.array([[-4.0, 0.0, 4.0]]))), [[2, 0, 2]], atol=1e-6)
    near, far = to_numpy(layers.SoftHuber(2.0, k_coef_lip=0.5)(np.array([[0.02, 1e4]]))).reshape(-1)
    assert near == pytest.approx(0.5 * 0.02**2 / 4, abs=1e-6)
    assert far == pytest.approx(0.5 * (1e4 - 2), rel=1e-6)


def test_soft_huber_does_not_overflow_in_half_precision():
    values = layers.SoftHuber(dtype="mixed_float16")(np.array([[1000.0, -6e4]], "float16"))
    assert keras.backend.standardize_dtype(values.dtype) == "float16"
    np.testing.assert_allclose(to_numpy(values), [[1000, 6e4]], rtol=1e-3)


def test_parametric_rectifier_by_hand():
    layer = layers.LipPReLU(k_coef_lip=3.0)
    layer.build((None, 2))
    layer.alpha.assign([0.5, -7.0])  # the second is clipped to -1
    np.testing.assert_allclose(to_numpy(layer(np.array([[-2.0, -2.0], [2.0, 2.0]]))), [[-3, 6], [6, 6]])


def test_n_activation_by_hand():
    layer = layers.NActivation(k_coef_lip=0.5)
    layer.build((None, 2))
    layer.thresholds.assign([[1.0, 0.0], [-1.0, 0.0]])  # in the wrong order, and the identity
    inputs = np.array([-3.0, -1.0, -0.5, 0.5, 1.0, 3.0])
    expected = np.array([-1.0, 1.0, 0.5, -0.5, -1.0, 1.0])
    outputs = to_numpy(layer(np.stack([inputs, inputs], -1)))
    np.testing.assert_allclose(outputs, 0.5 * np.stack([expected, inputs], -1), atol=1e-6)


@pytest.mark.parametrize("make", [layers.LipPReLU, layers.NActivation])
def test_channels_first_is_channels_last_transposed(make, rng):
    images = rng.normal(size=(2, 4, 3, 5)).astype("float32")
    first, last = make("channels_first"), make("channels_last")
    last.build((None, 4, 3, 5))
    first.build((None, 5, 4, 3))
    for weight, other in zip(first.weights, last.weights, strict=True):
        weight.assign(rng.normal(size=weight.shape))
        other.assign(weight)
    expected = np.moveaxis(to_numpy(last(images)), -1, 1)
    np.testing.assert_allclose(to_numpy(first(np.moveaxis(images, -1, 1))), expected, atol=1e-6)
    flat = make("channels_first")
    flat.build((None, 5))
    for weight, other in zip(flat.weights, last.weights, strict=True):
        weight.assign(other)
    np.testing.assert_allclose(to_numpy(flat(images[:, 0, 0])), to_numpy(last(images))[:, 0, 0], atol=1e-6)


ALL = {
    "Abs": layers.Abs,
    "SoftHuber": layers.SoftHuber,
    "LipPReLU": layers.LipPReLU,
    "NActivation": layers.NActivation,
}


@pytest.mark.parametrize("k", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_the_constant_is_exact_whatever_the_weights(make, k, rng):
    model = keras.Sequential([keras.Input((8,)), make(k_coef_lip=k)])
    for weight in model.weights:
        weight.assign(3 * rng.normal(size=weight.shape))
    points = [POINTS[0], *[w for weight in model.weights for w in to_numpy(weight).reshape(-1, 8)]]  # kinks included
    points += list(5 * rng.normal(size=(20, 8)))
    norms = []
    for point in points:
        matrix = jacobian(model, point)
        assert np.all(np.isfinite(matrix))
        assert np.array_equal(matrix, np.diag(np.diag(matrix)))
        norms.append(np.abs(matrix).max())
    assert k * 0.999 <= max(norms) <= k * (1 + 1e-6)
    assert max(norms) * (1 - 1e-6) <= lip.certify(model).lipschitz_constant <= k * (1 + 1e-12)


@pytest.mark.parametrize("make", [layers.LipPReLU, layers.NActivation])
def test_training_moves_what_is_learned_and_keeps_the_constant(make, rng):
    model = keras.Sequential([keras.Input((6,)), make(k_coef_lip=3.0)])
    before = to_numpy(model.weights[0]).copy()
    model.compile(keras.optimizers.Adam(0.1), "mse")
    inputs = rng.normal(size=(64, 6)).astype("float32")
    for _ in range(20):
        model.train_on_batch(inputs, np.minimum(inputs, 0.3) - 1)
    after = to_numpy(model.weights[0])
    assert np.all(after != before)
    assert lip.certify(model).lipschitz_constant == pytest.approx(3, rel=1e-12)
    if make is layers.LipPReLU:
        assert np.all(np.abs(after) <= 1)
    else:
        assert np.all(after[0] != after[1])  # those that started as the identity have come apart


def test_slopes_at_a_limit_learn_at_full_rate(rng):
    """The gradient is passed on at -1 and 1, on every backend, and the update is what is clipped."""
    model = keras.Sequential([keras.Input((2,)), layers.LipPReLU()])
    model.compile(keras.optimizers.SGD(0.25), "mse")
    inputs = -np.ones((1, 2), "float32")
    # (The output is 1, and the gradient of the mean over two of (alpha x - y)^2 is -(1 - y).)
    model.train_on_batch(inputs, np.array([[0.0, 5.0]], "float32"))
    np.testing.assert_allclose(to_numpy(model.layers[0].alpha), [-0.75, -1.0], atol=1e-6)


@pytest.mark.parametrize("delta", [0, -1.0, float("nan"), float("inf"), "1", None, True])
def test_bad_delta(delta):
    with pytest.raises(ValueError, match=f"`delta` of SoftHuber. Expected a finite number.*Received: delta={delta}"):
        layers.SoftHuber(delta)


@pytest.mark.parametrize("make", [layers.LipPReLU, layers.NActivation, layers.Householder])
def test_a_number_of_channels_that_is_not_known(make):
    with pytest.raises(ValueError, match=r"rank at least 2 whose number of channels is known. Received: input_shape="):
        make().build((None, 4, None))
    with pytest.raises(ValueError, match="'new' is not built, so it has no weights to fold"):
        make(name="new").fold()
