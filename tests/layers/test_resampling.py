"""Layers that move values: what goes where, norm exactly 1, and sizes that do not fit."""

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from tests.helpers import jacobian, to_numpy

layers = lip.layers


def blocks(images, rows, columns):
    """Takes every pixel of a block in turn, by rows, and stacks them as channels."""
    parts = [images[:, i::rows, j::columns] for i in range(rows) for j in range(columns)]
    return np.concatenate(parts, axis=-1)


@pytest.mark.parametrize("pool_size", [2, (2, 3), (1, 2), (4, 6)])
def test_down_sampling_and_its_inverse(pool_size, rng):
    rows, columns = (pool_size, pool_size) if isinstance(pool_size, int) else pool_size
    images = rng.normal(size=(2, 4, 6, 3)).astype("float32")
    down, up = layers.InvertibleDownSampling(pool_size), layers.InvertibleUpSampling(pool_size)
    small = to_numpy(down(images))
    np.testing.assert_array_equal(small, blocks(images, rows, columns))
    np.testing.assert_array_equal(to_numpy(up(small)), images)
    first = np.moveaxis(images, -1, 1)
    down, up = (type(layer)(pool_size, "channels_first") for layer in (down, up))
    np.testing.assert_array_equal(to_numpy(down(first)), np.moveaxis(small, -1, 1))
    np.testing.assert_array_equal(to_numpy(up(np.moveaxis(small, -1, 1))), first)


@pytest.mark.parametrize("shape", [(6,), (5, 6), (4, 3, 6)])
def test_channels_by_hand(shape, rng):
    inputs = rng.normal(size=(2, *shape)).astype("float32")
    expected = {
        layers.FirstChannels: (4, inputs[..., :4]),
        layers.ZeroChannelPadding: (8, np.concatenate([inputs, np.zeros_like(inputs[..., :2])], axis=-1)),
        layers.ChannelShuffle: (2, inputs[..., [0, 3, 1, 4, 2, 5]]),
    }
    for make, (argument, outputs) in expected.items():
        np.testing.assert_array_equal(to_numpy(make(argument)(inputs)), outputs)
        if len(shape) > 1:
            inputs_first, outputs_first = (np.moveaxis(array, -1, 1) for array in (inputs, outputs))
            np.testing.assert_array_equal(to_numpy(make(argument, "channels_first")(inputs_first)), outputs_first)
        else:
            np.testing.assert_array_equal(to_numpy(make(argument, "channels_first")(inputs)), outputs)


def test_shuffling_back(rng):
    inputs = rng.normal(size=(2, 3, 12)).astype("float32")
    np.testing.assert_array_equal(to_numpy(layers.ChannelShuffle(4)(layers.ChannelShuffle(3)(inputs))), inputs)


CASES = {
    "down": (lambda **o: layers.InvertibleDownSampling((2, 3), **o), (4, 6, 2)),
    "up": (lambda **o: layers.InvertibleUpSampling((2, 1), **o), (2, 3, 4)),
    "padding": (lambda **o: layers.ZeroChannelPadding(5, **o), (3, 3, 4)),
    "the same number of channels": (lambda **o: layers.FirstChannels(4, **o), (3, 3, 4)),
    "first": (lambda **o: layers.FirstChannels(1, **o), (3, 4)),
    "shuffle": (lambda **o: layers.ChannelShuffle(2, **o), (3, 6)),
}


@pytest.mark.parametrize("k", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize(("make", "shape"), CASES.values(), ids=CASES)
def test_the_norm_is_exactly_one(make, shape, data_format, k, rng):
    if data_format == "channels_first":
        shape = (shape[-1], *shape[:-1])
    model = keras.Sequential([keras.Input(shape), make(data_format=data_format, k_coef_lip=k)])
    matrix = jacobian(model, rng.normal(size=shape)) / k
    # Ones and zeros, one for each output but those of padding, and at most one for each input.
    assert set(np.unique(matrix)) <= {0.0, 1.0}
    assert matrix.sum() == min(matrix.shape)
    assert max(matrix.sum(0).max(), matrix.sum(1).max()) == 1
    # (A scale other than one is rounded outward.)
    assert k <= lip.certify(model).lipschitz_constant <= k * (1 if k == 1 else 1 + 1e-15)


def test_images_of_unknown_size(rng):
    model = keras.Sequential([keras.Input((None, None, 4)), layers.InvertibleDownSampling((2, 3))])
    model.add(layers.ChannelShuffle(3))
    model.add(layers.InvertibleUpSampling((1, 2)))
    assert model.output_shape == (None, None, None, 12)
    images = rng.normal(size=(2, 4, 6, 4)).astype("float32")
    shuffled = blocks(images, 2, 3).reshape(2, 2, 2, 3, 8).swapaxes(3, 4).reshape(2, 2, 2, 24)
    outputs = model.predict(images, verbose=0)
    np.testing.assert_array_equal(blocks(outputs, 1, 2), shuffled)
    for layer in (layers.InvertibleDownSampling(2), layers.InvertibleUpSampling(2), layers.ChannelShuffle(2)):
        unknown = keras.Sequential([keras.Input((None, None, 4)), layer])
        with pytest.raises(ValueError, match=f"{type(layer).__name__} layer '{layer.name}' folds only where"):
            lip.vanilla_model(unknown)


def test_in_a_network_that_trains(rng):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.ZeroChannelPadding(4),
            layers.LipConv2D(4, 3, padding="circular", activation=layers.MaxMin()),
            layers.InvertibleDownSampling(2),
            layers.ChannelShuffle(4),
            layers.LipConv2D(16, 1, groups=4, activation=layers.Abs()),
            layers.InvertibleUpSampling(2),
            layers.FirstChannels(2),
            keras.layers.Flatten(),
            layers.UnitNormDense(3),
        ]
    )
    model.compile("adam", lip.losses.MulticlassHKR())
    images = rng.normal(size=(16, 8, 8, 1)).astype("float32")
    history = model.fit(images, np.arange(16) % 3, epochs=4, verbose=0).history["loss"]
    assert history[-1] < history[0]
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(lip.vanilla_model(model).predict(images, verbose=0), expected, atol=1e-5)


@pytest.mark.parametrize("pool_size", [0, -1, (2, 2, 2), (2, 0), 2.0, "2", None, True, (True, 2)])
@pytest.mark.parametrize("make", [layers.InvertibleDownSampling, layers.InvertibleUpSampling])
def test_bad_pool_size(make, pool_size):
    with pytest.raises(
        ValueError, match=f"`pool_size` of {make.__name__}. Expected a positive integer, or 2 of them.*Received"
    ):
        make(pool_size)


@pytest.mark.parametrize("value", [0, -3, 2.5, "8", None, True])
@pytest.mark.parametrize(
    ("make", "argument"),
    [(layers.FirstChannels, "channels"), (layers.ZeroChannelPadding, "channels"), (layers.ChannelShuffle, "groups")],
)
def test_bad_numbers(make, argument, value):
    words = f"`{argument}` of {make.__name__}. Expected a positive integer. Received: {argument}={value}"
    with pytest.raises(ValueError, match=words):
        make(value)


@pytest.mark.parametrize(
    ("layer", "shape", "words"),
    [
        (layers.InvertibleDownSampling(2), (5, 4, 1), r"height and width that are multiples of pool_size=\(2, 2\)"),
        (layers.InvertibleDownSampling(2), (None, 3, 1), r"height and width that are multiples of pool_size=\(2, 2\)"),
        (layers.InvertibleDownSampling(2), (4, 4), "expects a 4D input"),
        (layers.InvertibleUpSampling(2), (4, 4, 6), r"multiple of 4, the area of pool_size=\(2, 2\)"),
        (layers.ZeroChannelPadding(2), (4, 4, 3), "pads up to 2 channels. Received: 3 channels"),
        (layers.FirstChannels(4), (4, 4, 3), "keeps the first 4 channels. Received: 3 channels"),
        (layers.ChannelShuffle(2), (4, 4, 3), "multiple of groups=2. Received: 3 channels"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_sizes_that_do_not_fit(layer, shape, words):
    with pytest.raises(ValueError, match=rf"'{layer.name}'.*{words}.*input_shape=\(None, {shape[0]}"):
        keras.Sequential([keras.Input(shape), layer])


@pytest.mark.parametrize("padding", ["same", "circular"])
def test_channels_that_are_appended_reach_a_convolution(padding):
    """TensorFlow on CPUs makes one operation of a padding and a convolution, which knew of height and width only."""
    convolution = layers.LipConv2D(4, 1, padding=padding)
    model = keras.Sequential([keras.Input((4, 5, 1)), layers.ZeroChannelPadding(4), convolution])
    images = np.random.default_rng(0).normal(size=(2, 4, 5, 1)).astype("float32")
    expected = images * to_numpy(convolution.kernel)[0, 0, 0]
    for net in (model, lip.vanilla_model(model)):
        np.testing.assert_allclose(net.predict(images, verbose=0), expected, atol=1e-6)
