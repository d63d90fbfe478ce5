"""Centering and normalization: statistics, what they are at inference, and constants that are counted."""

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from tests.helpers import jacobian, to_numpy

layers = lip.layers
BATCH = [layers.BatchCentering, layers.LipBatchNormalization]


def images(rng, count=8, shape=(4, 3, 6)):
    return (rng.normal(size=(count, *shape)) * rng.uniform(0.2, 3, size=shape[-1]) + 5).astype("float32")


def statistics(inputs):
    return inputs.mean((0, 1, 2), dtype="float64"), inputs.var((0, 1, 2), dtype="float64")


@pytest.mark.parametrize("k", [0.5, 1.0, 3.0])
def test_batch_centering_by_hand(k, rng):
    layer = layers.BatchCentering(momentum=0.75, k_coef_lip=k)
    first, second = images(rng), images(rng)
    layer.build(first.shape)
    bias = rng.normal(size=6)
    layer.bias.assign(bias)
    np.testing.assert_allclose(to_numpy(layer(first)), k * first + bias, atol=2e-5)  # nothing is known yet
    mean = statistics(first)[0]
    np.testing.assert_allclose(to_numpy(layer(first, training=True)), k * (first - mean) + bias, atol=2e-5)
    moving = 0.25 * mean
    np.testing.assert_allclose(to_numpy(layer.moving_mean), moving, rtol=1e-5)
    layer(second, training=True)
    moving = 0.75 * moving + 0.25 * statistics(second)[0]
    np.testing.assert_allclose(to_numpy(layer.moving_mean), moving, rtol=1e-5)
    np.testing.assert_allclose(to_numpy(layer(first)), k * (first - moving) + bias, atol=5e-5)


@pytest.mark.parametrize("k", [0.2, 1.0, 30.0])
def test_one_scale_for_all_channels_by_hand(k, rng):
    layer = layers.LipBatchNormalization(momentum=0.5, epsilon=0.01, k_coef_lip=k)
    inputs = images(rng)
    mean, variance = statistics(inputs)
    scale = min(1 / np.sqrt(variance.max() + 0.01), k)
    np.testing.assert_allclose(to_numpy(layer(inputs, training=True)), scale * (inputs - mean), atol=1e-4)
    np.testing.assert_allclose(to_numpy(layer.moving_variance), 0.5 + 0.5 * variance, rtol=1e-4)
    moved = min(1 / np.sqrt(0.5 + 0.5 * variance.max() + 0.01), k)
    np.testing.assert_allclose(to_numpy(layer(inputs)), moved * (inputs - 0.5 * mean), atol=1e-4)
    if k > 1:  # every channel deviates by 1 at most, and one by 1
        deviations = to_numpy(layer(inputs, training=True)).std((0, 1, 2))
        assert deviations.max() == pytest.approx(1, abs=0.01)
        assert deviations.min() < 0.7


@pytest.mark.parametrize("variance", [1e-4, 0.3, 25.0])
@pytest.mark.parametrize("k", [0.5, 3.0])
def test_the_scale_is_counted_by_certify(k, variance, rng):
    model = keras.Sequential([keras.Input((5,)), layers.LipBatchNormalization(k_coef_lip=k)])
    layer = model.layers[0]
    for weight in layer.weights:
        weight.assign(rng.normal(size=5))
    layer.moving_variance.assign(variance * np.array([0.1, 1.0, 0.5, 0.0, 0.9]))
    expected = min(1 / np.sqrt(variance + 1e-3), k)
    exact = np.linalg.norm(jacobian(model, rng.normal(size=5)), 2)
    assert exact == pytest.approx(expected, rel=1e-6)
    constant = lip.certify(model).lipschitz_constant
    assert exact * (1 - 2e-7) <= constant <= expected * (1 + 3e-7)
    assert constant <= k * (1 + 2e-7)


@pytest.mark.parametrize("make", BATCH)
@pytest.mark.parametrize("k", [0.5, 3.0])
def test_training_learns_and_keeps_the_constant(make, k, rng, tmp_path):
    model = keras.Sequential(
        [
            keras.Input((4, 3, 6)),
            make(k_coef_lip=k, momentum=0.9),
            keras.layers.Flatten(),
            layers.SpectralDense(2, use_bias=False),
        ]
    )
    layer = model.layers[0]
    inputs = images(rng, 64)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(inputs, rng.normal(size=(64, 2)), epochs=5, batch_size=16, verbose=0)
    lip.renormalize(model)
    assert np.all(to_numpy(layer.bias) != 0)
    # Twenty batches, of which each counts for a tenth.
    np.testing.assert_allclose(to_numpy(layer.moving_mean), statistics(inputs)[0] * (1 - 0.9**20), rtol=0.05)
    constant = lip.certify(model).lipschitz_constant
    assert constant <= k * (1 + 1e-5)
    if make is layers.BatchCentering:
        assert constant >= 0.98 * k
    expected = model.predict(inputs, verbose=0)
    np.testing.assert_allclose(lip.vanilla_model(model).predict(inputs, verbose=0), expected, atol=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(to_numpy(again.layers[0].moving_mean), to_numpy(layer.moving_mean))
    np.testing.assert_allclose(again.predict(inputs, verbose=0), expected, atol=1e-6)


@pytest.mark.parametrize("make", BATCH)
def test_statistics_move_in_training_only(make, rng):
    layer = make()
    inputs = images(rng)
    layer.build(inputs.shape)
    before = [to_numpy(weight).copy() for weight in layer.weights]

    def unchanged():
        return all(np.array_equal(to_numpy(w), value) for w, value in zip(layer.weights, before, strict=True))

    layer(inputs)
    layer(inputs, training=False)
    layer(inputs[:0], training=True)  # an empty batch has no mean
    assert unchanged()
    layer.trainable = False
    np.testing.assert_array_equal(to_numpy(layer(inputs, training=True)), to_numpy(layer(inputs)))
    assert unchanged()
    layer.trainable = True
    layer(inputs[:1], training=True)
    assert not unchanged()
    assert all(np.all(np.isfinite(to_numpy(weight))) for weight in layer.weights)


def test_the_map_of_a_batch_in_training_is_a_projection(rng):
    layer = layers.BatchCentering(k_coef_lip=3.0)

    def batch(flat):  # `(samples, 4 * 2)` of batches of four samples
        return keras.ops.concatenate(
            [
                keras.ops.reshape(layer(keras.ops.reshape(flat[i], (4, 2)), training=True), (1, 8))
                for i in range(len(flat))
            ]
        )

    values = np.linalg.svd(jacobian(batch, rng.normal(size=8)), compute_uv=False)
    np.testing.assert_allclose(values, [3, 3, 3, 3, 3, 3, 0, 0], atol=1e-5)


AXES = {
    "of an image": (None, (4, 3, 2), "channels_last", (1, 2)),
    "of an image, channels first": (None, (2, 4, 3), "channels_first", (2, 3)),
    "of a sequence": (None, (5, 3), "channels_last", (1,)),
    "of features": (None, (6,), "channels_first", (1,)),
    "of channels": (-1, (4, 3, 2), "channels_last", (3,)),
    "of everything": ([3, 1, -2], (4, 3, 2), "channels_last", (1, 2, 3)),
}


@pytest.mark.parametrize("k", [0.5, 3.0])
@pytest.mark.parametrize(("axis", "shape", "data_format", "expected"), AXES.values(), ids=AXES)
def test_layer_centering_is_a_projection(axis, shape, data_format, expected, k, rng):
    layer = layers.LayerCentering(axis, data_format=data_format, k_coef_lip=k)
    model = keras.Sequential([keras.Input(shape), layer])
    bias = rng.normal(size=layer.bias.shape)
    layer.bias.assign(bias)
    inputs = rng.normal(size=(3, *shape))
    per_channel = bias.reshape(-1, *(1,) * (len(shape) - 1)) if data_format == "channels_first" else bias
    by_hand = k * (inputs - inputs.mean(expected, keepdims=True)) + per_channel
    for one in (model, lip.vanilla_model(model)):
        np.testing.assert_allclose(to_numpy(one(inputs)), by_hand, atol=1e-5)
    matrix = jacobian(model, inputs[0]) / k
    np.testing.assert_allclose(matrix @ matrix, matrix, atol=1e-6)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
    assert k <= lip.certify(model).lipschitz_constant <= k * (1 + 1e-12)


def test_centering_in_front_of_other_layers_costs_nothing(rng):
    """The whole chain is certified to one, at a size where it is not written out."""
    model = keras.Sequential([keras.Input((32, 32, 8))])
    for make in (layers.LayerCentering, layers.BatchCentering):
        model.add(layers.LipConv2D(8, 1, use_bias=False))
        model.add(make())
        model.add(layers.MaxMin())
    for layer in model.layers:
        if isinstance(layer, layers.BatchCentering):
            layer.moving_mean.assign(rng.normal(size=8))
    assert lip.certify(model).lipschitz_constant <= 1 + 1e-5


def test_layer_centering_learns_its_bias(rng):
    model = keras.Sequential([keras.Input((4, 4, 2)), layers.LayerCentering()])
    model.compile(keras.optimizers.Adam(0.1), "mse")
    inputs = images(rng, 16, (4, 4, 2))
    wanted = inputs - inputs.mean((1, 2), keepdims=True) + [1.0, -2.0]
    for _ in range(60):
        model.train_on_batch(inputs, wanted)
    np.testing.assert_allclose(to_numpy(model.layers[0].bias), [1, -2], atol=0.1)


def test_half_precision_takes_means_in_float32(rng):
    inputs = (1000 + rng.normal(size=(64, 8, 8, 2))).astype("float16")  # of which a sum overflows
    for layer in (layers.LayerCentering(dtype="mixed_float16"), layers.BatchCentering(dtype="mixed_float16")):
        outputs = layer(inputs, training=True) if isinstance(layer, layers.BatchCentering) else layer(inputs)
        assert keras.backend.standardize_dtype(outputs.dtype) == "float16"
        axes = (0, 1, 2) if isinstance(layer, layers.BatchCentering) else (1, 2)
        exact = inputs.astype("float64") - inputs.mean(axes, dtype="float64", keepdims=True)
        np.testing.assert_allclose(to_numpy(outputs), exact, atol=5e-3)


@pytest.mark.parametrize("axis", [0, (1, 1), (1, -3), 4, -5, (0, 1)])
def test_axes_that_are_not_of_a_sample(axis):
    with pytest.raises(ValueError, match=r"different axes of its input, without that of the batch. Received: axis="):
        layers.LayerCentering(axis).build((None, 4, 4, 2))


@pytest.mark.parametrize("axis", ["1", 1.0, True, (), (1, None)])
def test_bad_axis(axis):
    with pytest.raises(ValueError, match="`axis` of LayerCentering. Expected an integer, several, or None"):
        layers.LayerCentering(axis)


@pytest.mark.parametrize("momentum", [-0.1, 1.1, float("nan"), "0.9", None, True])
@pytest.mark.parametrize("make", BATCH)
def test_bad_momentum(make, momentum):
    with pytest.raises(ValueError, match=f"`momentum` of {make.__name__}. Expected.*Received: momentum={momentum}"):
        make(momentum=momentum)


@pytest.mark.parametrize("epsilon", [0, -1.0, float("nan"), float("inf"), "1", None, True])
def test_bad_epsilon(epsilon):
    with pytest.raises(ValueError, match=f"`epsilon` of LipBatchNormalization. Expected.*Received: epsilon={epsilon}"):
        layers.LipBatchNormalization(epsilon=epsilon)
