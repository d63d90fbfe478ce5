"""Activations of groups of channels: what they compute, and that they keep the norm of a gradient."""

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from tests.helpers import jacobian, to_numpy, vector_jacobian_product

layers = lip.layers


def reference(inputs, n, axis):
    """Sorts groups of n neighbouring channels with NumPy."""
    moved = np.moveaxis(inputs, axis, -1)
    grouped = np.sort(moved.reshape(*moved.shape[:-1], -1, n or moved.shape[-1]), axis=-1)
    return np.moveaxis(grouped.reshape(moved.shape), -1, axis)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("shape", [(12,), (5, 12), (4, 3, 12), (2, 3, 4, 12)])
@pytest.mark.parametrize("n", [2, 3, 4, None])
def test_group_sort(n, shape, data_format, rng):
    axis = -1
    if data_format == "channels_first" and len(shape) > 1:
        shape, axis = (12, *shape[:-1]), 1
    inputs = rng.normal(size=(3, *shape)).astype("float32")
    layer = layers.GroupSort(n, data_format=data_format)
    np.testing.assert_allclose(to_numpy(layer(inputs)), reference(inputs, n, axis), atol=1e-6)
    if n == 2:
        np.testing.assert_allclose(
            to_numpy(layers.GroupSort2(data_format=data_format)(inputs)), reference(inputs, n, axis), atol=1e-6
        )
    if n is None:
        np.testing.assert_array_equal(
            to_numpy(layers.FullSort(data_format=data_format)(inputs)), reference(inputs, n, axis)
        )


@pytest.mark.parametrize(
    ("data_format", "shape"), [("channels_last", (4, 5, 6)), ("channels_first", (6, 4, 5)), ("channels_first", (6,))]
)
def test_max_min_is_on_halves(data_format, shape, rng):
    inputs = rng.normal(size=(3, *shape)).astype("float32")
    axis = 1 if data_format == "channels_first" else -1
    low, high = np.split(inputs, 2, axis=axis)
    expected = np.concatenate([np.minimum(low, high), np.maximum(low, high)], axis=axis)
    np.testing.assert_allclose(to_numpy(layers.MaxMin(data_format=data_format)(inputs)), expected, atol=1e-6)


def test_max_min_is_group_sort_2_up_to_an_order_of_channels(rng):
    inputs = rng.normal(size=(3, 8)).astype("float32")
    interleave = np.arange(8).reshape(2, 4).T.reshape(-1)
    sorted_pairs = to_numpy(layers.GroupSort2()(inputs[:, interleave]))
    np.testing.assert_array_equal(to_numpy(layers.MaxMin()(inputs))[:, interleave], sorted_pairs)


ACTIVATIONS = [layers.GroupSort2, layers.MaxMin, layers.FullSort, lambda: layers.GroupSort(4)]


@pytest.mark.parametrize("make", ACTIVATIONS)
def test_gradient_norm_is_kept(make, rng):
    inputs, cotangent = rng.normal(size=(6, 8)), rng.normal(size=(6, 8))
    gradient = vector_jacobian_product(make(), inputs, cotangent)
    np.testing.assert_allclose(np.linalg.norm(gradient, axis=1), np.linalg.norm(cotangent, axis=1), rtol=1e-5)


@pytest.mark.parametrize("make", ACTIVATIONS)
@pytest.mark.parametrize("value", [0.0, 1.5])
def test_gradient_at_ties_has_at_most_norm_one(make, value, rng):
    layer = make()
    ties = np.full((1, 8), value)
    jacobian = np.stack([vector_jacobian_product(layer, ties, np.eye(8)[i : i + 1])[0] for i in range(8)])
    assert np.linalg.norm(jacobian, 2) <= 1 + 1e-6
    assert np.all(np.isfinite(jacobian))


def householder(angles, **options):
    layer = layers.Householder(**options)
    layer.build((None, 2 * len(angles)))
    layer.angle.assign(angles)
    return layer


def test_householder_by_hand():
    inputs = np.array([[3.0, 1.0], [3.0, -1.0], [-3.0, 1.0], [-3.0, -1.0]])
    np.testing.assert_allclose(to_numpy(householder([0.0])(inputs)), inputs * [1, 0] + np.abs(inputs) * [0, 1])
    expected = -np.abs(inputs) * [1, 0] + inputs * [0, 1]
    np.testing.assert_allclose(to_numpy(householder([np.pi])(inputs)), expected, atol=1e-6)
    # A third of a turn: v = (sin 60, -cos 60), and (1, 0) goes to (cos 120, sin 120).
    outputs = to_numpy(householder([2 * np.pi / 3], k_coef_lip=2.0)(np.array([[1.0, 0.0], [0.0, 1.0]])))
    np.testing.assert_allclose(outputs, [[-1.0, 3**0.5], [0.0, 2.0]], atol=1e-6)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_householder_starts_as_max_min(data_format, rng):
    inputs = rng.normal(size=(3, 4, 6, 8)).astype("float32")
    expected = to_numpy(layers.MaxMin(data_format)(inputs))
    np.testing.assert_allclose(to_numpy(layers.Householder(data_format)(inputs)), expected, atol=1e-6)


@pytest.mark.parametrize("k", [0.5, 1.0, 3.0])
def test_householder_is_orthogonal_on_every_piece_and_on_borders(k, rng):
    angles = rng.uniform(-10, 10, size=4)
    model = keras.Sequential([keras.Input((8,)), householder(angles, k_coef_lip=k)])
    border = np.concatenate([np.cos(angles / 2), np.sin(angles / 2)])  # where v . z is 0 for each pair
    for point in (*rng.normal(size=(10, 8)), border, np.zeros(8)):
        matrix = jacobian(model, point)
        np.testing.assert_allclose(matrix.T @ matrix, k**2 * np.eye(8), atol=2e-6 * k**2)
    assert k <= lip.certify(model).lipschitz_constant <= k * (1 + 1e-12)


def test_householder_in_depth_certifies_to_one_in_both_formats(rng):
    for data_format, shape in (("channels_last", (5, 4, 6)), ("channels_first", (6, 5, 4))):
        stack = [layers.Householder(data_format, angle_initializer="random_normal") for _ in range(30)]
        model = keras.Sequential([keras.Input(shape), *stack])
        assert lip.certify(model).lipschitz_constant <= 1 + 1e-9
        images = rng.normal(size=(2, *shape)).astype("float32")
        np.testing.assert_allclose(to_numpy(lip.vanilla_model(model)(images)), to_numpy(model(images)), atol=2e-5)


def test_householder_learns_its_angles(rng):
    model = keras.Sequential([keras.Input((6,)), layers.Householder(k_coef_lip=0.5)])
    model.compile(keras.optimizers.Adam(0.05), "mse")
    inputs = rng.normal(size=(64, 6)).astype("float32")
    wanted = to_numpy(householder([0.7, 1.5, 2.5], k_coef_lip=0.5)(inputs))
    for _ in range(60):
        model.train_on_batch(inputs, wanted)
    np.testing.assert_allclose(to_numpy(model.layers[0].angle), [0.7, 1.5, 2.5], atol=0.1)
    assert 0.5 <= lip.certify(model).lipschitz_constant <= 0.5 * (1 + 1e-12)


def test_a_learned_activation_inside_a_layer(rng, tmp_path):
    """Its weights are built with the layer, train, are saved, and fold."""
    activation = layers.Householder()
    model = keras.Sequential([keras.Input((5,)), layers.SpectralDense(6, activation=activation)])
    model.add(layers.SpectralDense(2))
    before = to_numpy(activation.weights[0]).copy()
    inputs = rng.normal(size=(32, 5)).astype("float32")
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(inputs, rng.normal(size=(32, 2)), verbose=0)
    assert np.any(to_numpy(activation.weights[0]) != before)
    expected = to_numpy(model(inputs))
    np.testing.assert_allclose(to_numpy(lip.vanilla_model(model)(inputs)), expected, atol=1e-5)
    assert lip.certify(model).lipschitz_constant <= 1 + 1e-5
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(to_numpy(keras.models.load_model(tmp_path / "model.keras")(inputs)), expected)


def test_a_learned_activation_in_a_plain_keras_layer(rng):
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(6, activation=householder([0.3, 1.0, 2.0]))])
    inputs = rng.normal(size=(3, 5)).astype("float32")
    np.testing.assert_allclose(to_numpy(lip.vanilla_model(model)(inputs)), to_numpy(model(inputs)), atol=1e-6)


def test_householder_of_an_odd_number_of_channels():
    with pytest.raises(ValueError, match=r"must be even. Received: 5 channels, input_shape=\(None, 5\)"):
        keras.Sequential([keras.Input((5,)), layers.Householder()])


def test_the_constant_scales_the_output(rng):
    inputs = rng.normal(size=(3, 8)).astype("float32")
    plain = to_numpy(layers.GroupSort2()(inputs))
    np.testing.assert_allclose(to_numpy(layers.GroupSort2(k_coef_lip=2.5)(inputs)), 2.5 * plain, rtol=1e-6)


def test_images_of_unknown_size(rng):
    model = keras.Sequential([keras.Input((None, None, 4)), layers.GroupSort2(), layers.MaxMin()])
    inputs = rng.normal(size=(2, 5, 7, 4)).astype("float32")
    first = reference(inputs, 2, -1)
    expected = np.concatenate(
        [np.minimum(first[..., :2], first[..., 2:]), np.maximum(first[..., :2], first[..., 2:])], -1
    )
    np.testing.assert_allclose(model.predict(inputs, verbose=0), expected, atol=1e-6)


@pytest.mark.parametrize(
    "activation", [layers.GroupSort2(), layers.GroupSort(3), "relu", "tanh", "leaky_relu", keras.layers.ReLU(), None]
)
def test_as_activation_argument(activation, rng):
    layer = layers.SpectralDense(6, activation=activation)
    inputs = rng.normal(size=(3, 5)).astype("float32")
    linear = inputs @ to_numpy(layer(inputs) is not None and layer.kernel)
    expected = linear if activation is None else to_numpy(keras.activations.get(activation)(linear))
    np.testing.assert_allclose(to_numpy(layer(inputs)), expected, atol=1e-5)
    again = layers.SpectralDense.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()


def test_in_a_plain_keras_layer(rng):
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(6, activation=layers.MaxMin())])
    inputs = rng.normal(size=(3, 5)).astype("float32")
    np.testing.assert_allclose(to_numpy(lip.vanilla_model(model)(inputs)), to_numpy(model(inputs)), atol=1e-6)


@pytest.mark.parametrize(
    ("activation", "words"),
    [
        ("gelu", "'gelu' has the Lipschitz constant 1.129"),
        ("silu", "Lipschitz constant 1.0999"),
        ("selu", "Lipschitz constant 1.7581"),
        ("exponential", "'exponential' has no known Lipschitz constant"),
        (lambda x: 2 * x, "has no known Lipschitz constant"),
        (layers.GroupSort2(k_coef_lip=1.5), "'GroupSort2' has the Lipschitz constant 1.5"),
        (keras.layers.LeakyReLU(2.0), "Lipschitz constant 2"),
        (keras.layers.ReLU(threshold=1.0), "no known Lipschitz constant"),
    ],
)
@pytest.mark.parametrize("layer_class", [layers.SpectralDense, layers.FrobeniusDense])
def test_an_activation_above_one_is_refused(activation, words, layer_class):
    with pytest.raises(ValueError, match=f"`activation` of {layer_class.__name__}.*{words}"):
        layer_class(4, activation=activation)


def test_an_activation_above_one_is_refused_in_convolutions():
    with pytest.raises(ValueError, match="`activation` of LipConv2D.*'gelu' has the Lipschitz constant 1.129"):
        layers.LipConv2D(4, 3, activation="gelu")


@pytest.mark.parametrize("n", [0, 1, -2, 2.0, True, "2"])
def test_bad_n(n):
    with pytest.raises(ValueError, match=f"`n` of GroupSort. Expected an integer of at least 2.*Received: n={n}"):
        layers.GroupSort(n)


@pytest.mark.parametrize(
    ("layer", "channels"), [(layers.GroupSort2, 5), (layers.MaxMin, 7), (lambda: layers.GroupSort(3), 8)]
)
def test_n_that_does_not_divide_the_channels(layer, channels):
    with pytest.raises(
        ValueError, match=rf"must be a multiple of \d\. Received: {channels} channels, input_shape=\(None, {channels}\)"
    ):
        keras.Sequential([keras.Input((channels,)), layer()])


def test_n_that_does_not_divide_the_channels_inside_a_layer():
    with pytest.raises(ValueError, match=r"sorts groups of n=2 channels.*Received: 5 channels"):
        keras.Sequential([keras.Input((4,)), layers.SpectralDense(5, activation=layers.GroupSort2())])


def test_bad_data_format():
    with pytest.raises(ValueError, match="`data_format` of GroupSort2.*Received: data_format=NHWC"):
        layers.GroupSort2(data_format="NHWC")
