"""Convolutions of all kinds: what they compute and their constants, against explicit operators in float64."""

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from tests.helpers import convolution_matrix, operator_norm, to_numpy

layers = lip.layers


def matrix_of(layer, input_shape):
    """Returns the explicit operator of a built layer, written from its kernel; `input_shape` with channels last."""
    kernel = to_numpy(layer.kernel)
    *size, channels = input_shape
    options = {"stride": layer.strides, "padding": layer.padding, "dilation": layer.dilation_rate}
    if isinstance(layer.parametrization, lip.parametrizations.SOC):
        skew = convolution_matrix(kernel, tuple(size), groups=layer.groups, **options)
        total = term = np.eye(len(skew))
        for power in range(1, 7):
            term = skew @ term / power
            total = total + term
        places, count = int(np.prod(size)), kernel.shape[-1]
        part = total.reshape(places, count, places, count)[:, : layer.filters, :, :channels]
        largest = np.hypot(1 - 1 / 2 + 1 / 24 - 1 / 720, 1 - 1 / 6 + 1 / 120)  # where the skew operator has norm 1
        scale = np.float64(np.float32(layer.k_coef_lip / largest))
        return scale * part.reshape(places * layer.filters, places * channels)
    if isinstance(layer, layers.LipDepthwiseConv2D):
        kernel = kernel.reshape(*kernel.shape[:-2], 1, -1)
        return convolution_matrix(kernel, tuple(size), groups=channels, **options)
    if isinstance(layer, layers.LipConv2DTranspose):
        grown = layer.compute_output_shape((None, *input_shape))[1:-1]
        matrix = convolution_matrix(kernel, tuple(grown), **options)
        return matrix[: np.prod(input_shape)].T  # a valid convolution of what was grown may have one window more
    return convolution_matrix(kernel, tuple(size), groups=layer.groups, **options)


def check(layer, shape, rng):
    """Compares outputs with the explicit operator, and the certificate with its norm and with what is promised."""
    model = keras.Sequential([keras.Input(shape), layer])
    matrix = matrix_of(layer, shape)
    inputs = rng.normal(size=(2, *shape)).astype("float32")
    outputs = to_numpy(model(inputs)).reshape(2, -1)
    np.testing.assert_allclose(outputs, inputs.reshape(2, -1) @ matrix.T, atol=1e-5)
    norm = operator_norm(matrix)
    bound = lip.certify(model).lipschitz_constant
    assert norm * (1 - 1e-9) <= bound <= norm * (1 + 1e-6)
    assert bound <= layer.k_coef_lip * (1 + 1e-5)


@pytest.mark.parametrize(
    ("padding", "options"),
    [
        ("valid", {"groups": 2}),
        ("same", {"dilation_rate": 2}),
        ("same", {"strides": 2}),
        ("circular", {"strides": 3}),
        ("circular", {"groups": 2, "dilation_rate": 2}),
    ],
)
def test_1d_and_3d(padding, options, rng):
    check(layers.LipConv1D(4, 4, padding=padding, **options), (12, 2), rng)
    check(layers.LipConv3D(4, (3, 2, 1), padding=padding, **options), (6, 6, 6, 2), rng)


@pytest.mark.parametrize(
    ("kernel_size", "padding", "options"),
    [
        (3, "valid", {}),
        (4, "valid", {"strides": 2}),
        (2, "valid", {"strides": 3}),
        (4, "same", {}),
        (3, "same", {"strides": 2}),
        (2, "same", {"strides": 3}),
        (3, "same", {"dilation_rate": 2}),
        (1, "circular", {"strides": 2}),
        (4, "circular", {}),
        (5, "circular", {"strides": 3}),
        ((2, 5), "circular", {"strides": (3, 2)}),
        (3, "circular", {"dilation_rate": 2}),
    ],
)
def test_transposed(kernel_size, padding, options, rng):
    check(layers.LipConv2DTranspose(3, kernel_size, padding=padding, **options), (5, 4, 2), rng)


@pytest.mark.parametrize(
    ("kernel_size", "options"),
    [(1, {"strides": 2}), (2, {"strides": 3}), (3, {"dilation_rate": 2}), (4, {"strides": 2}), (5, {"strides": 3})],
)
def test_transposed_and_orthogonal(kernel_size, options, rng):
    layer = layers.LipConv2DTranspose(3, kernel_size, padding="circular", parametrization="aoc", **options)
    check(layer, (4, 4, 2), rng)
    np.testing.assert_allclose(np.linalg.svd(matrix_of(layer, (4, 4, 2)), compute_uv=False), 1, atol=1e-3)


def test_a_transposed_circular_convolution_of_images_of_any_size(rng):
    model = keras.Sequential(
        [keras.Input((None, None, 2)), layers.LipConv2DTranspose(3, 5, strides=2, padding="circular")]
    )
    assert model.output_shape == (None, None, None, 3)
    for size in (4, 5):
        inputs = rng.normal(size=(2, size, size, 2)).astype("float32")
        matrix = matrix_of(model.layers[0], (size, size, 2))
        np.testing.assert_allclose(to_numpy(model(inputs)).reshape(2, -1), inputs.reshape(2, -1) @ matrix.T, atol=1e-5)


@pytest.mark.parametrize(
    ("multiplier", "padding", "options"),
    [
        (1, "same", {}),
        (3, "valid", {"dilation_rate": 2}),
        (10, "circular", {}),
        (2, "circular", {"strides": 2}),
        (2, "circular", {"dilation_rate": 2}),
    ],
)
def test_depthwise(multiplier, padding, options, rng):
    layer = layers.LipDepthwiseConv2D(3, padding=padding, depth_multiplier=multiplier, **options)
    check(layer, (6, 6, 2), rng)
    kernel = np.moveaxis(to_numpy(layer.kernel).reshape(9, 2, multiplier), 1, 0)
    values = np.linalg.svd(kernel / layer.parametrization.norm, compute_uv=False)
    np.testing.assert_allclose(values, 1, atol=1e-3)  # of each channel


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: layers.LipConv2D(4, 3, padding="same", parametrization="soc"), (6, 5, 4)),
        (lambda: layers.LipConv2D(5, 3, padding="circular", parametrization="soc", k_coef_lip=2.0), (5, 5, 2)),
        (lambda: layers.LipConv1D(2, 5, padding="circular", parametrization="soc", use_bias=False), (9, 4)),
        (
            lambda: layers.LipConv2D(4, 3, padding="same", parametrization="soc", groups=2, dilation_rate=2),
            (6, 6, 4),
        ),
    ],
)
def test_soc(make, shape, rng):
    layer = make()
    model = keras.Sequential([keras.Input(shape), layer])
    matrix = matrix_of(layer, shape)
    values = np.linalg.svd(matrix, compute_uv=False) / layer.k_coef_lip
    np.testing.assert_allclose(values, 1, atol=3e-4)
    inputs = rng.normal(size=(2, *shape)).astype("float32")
    np.testing.assert_allclose(to_numpy(model(inputs)).reshape(2, -1), inputs.reshape(2, -1) @ matrix.T, atol=1e-5)
    bound = lip.certify(model).lipschitz_constant / layer.k_coef_lip
    assert values[0] <= bound <= 1 + 1e-5


def test_each_group_is_orthogonal():
    layer = layers.LipConv2D(32, 2, groups=2)
    layer.build((None, 6, 6, 4))
    kernel = np.moveaxis(to_numpy(layer.kernel).reshape(8, 2, 16), 1, 0)
    values = np.linalg.svd(kernel / layer.parametrization.norm, compute_uv=False)
    np.testing.assert_allclose(values, 1, atol=1e-3)


CHANNELS_FIRST = [
    lambda: layers.LipConv1D(4, 3, padding="circular", data_format="channels_first"),
    lambda: layers.LipConv3D(4, 2, padding="circular", strides=2, data_format="channels_first"),
    lambda: layers.LipConv2DTranspose(3, 3, strides=2, padding="circular", data_format="channels_first"),
    lambda: layers.LipDepthwiseConv2D(3, padding="circular", data_format="channels_first", depth_multiplier=2),
    lambda: layers.LipConv2D(3, 3, padding="circular", data_format="channels_first", parametrization="soc"),
]


@pytest.mark.parametrize("make", CHANNELS_FIRST)
def test_channels_first(make, rng):
    layer = make()
    rank = layer.rank
    shape = (4,) * rank
    model = keras.Sequential([keras.Input((2, *shape)), layer])
    inputs = rng.normal(size=(3, *shape, 2)).astype("float32")
    outputs = to_numpy(model(np.moveaxis(inputs, -1, 1)))
    assert outputs.shape[1:] == model.output_shape[1:]
    expected = inputs.reshape(3, -1) @ matrix_of_last(layer, (*shape, 2)).T
    np.testing.assert_allclose(np.moveaxis(outputs, 1, -1).reshape(3, -1), expected, atol=1e-5)
    assert lip.certify(model).lipschitz_constant <= 1 + 1e-5
    folded = to_numpy(lip.vanilla_model(model)(np.moveaxis(inputs, -1, 1)))
    np.testing.assert_allclose(folded, outputs, atol=1e-5)
    model.compile("sgd", "mse")
    assert np.isfinite(model.train_on_batch(np.moveaxis(inputs, -1, 1), 0 * outputs))


def matrix_of_last(layer, shape):
    last = type(layer).from_config({**layer.get_config(), "data_format": "channels_last"})
    last.build((None, *shape))
    last.stored_kernel.assign(layer.stored_kernel)
    return matrix_of(last, shape)


# What holds of those whose norm is an estimate in training.
AFTER_AN_UPDATE = {lip.parametrizations.OperatorNorm: 1.1, lip.parametrizations.SOC: 1 + 1e-3}


def test_constants_hold_after_training(rng):
    cases = [
        (layers.LipConv3D(4, 3, padding="circular"), (3, 4, 4, 2)),
        (layers.LipConv2DTranspose(3, 4, strides=2, padding="same", k_coef_lip=0.5), (4, 5, 4)),
        (layers.LipDepthwiseConv2D(3, padding="same", depth_multiplier=2), (6, 6, 3)),
        (layers.LipConv2D(4, 3, padding="circular", parametrization="aol", groups=2), (6, 6, 4)),
        (layers.LipConv2DTranspose(4, 3, padding="same", parametrization="aol", strides=2), (4, 4, 3)),
        (layers.LipConv2D(6, 4, padding="circular", parametrization="aoc", strides=2, k_coef_lip=2.0), (6, 6, 4)),
        (layers.LipConv2D(4, 3, padding="same", parametrization="operator_norm"), (6, 6, 3)),
        (layers.LipConv2D(4, 3, padding="same", parametrization="soc"), (6, 6, 3)),
    ]
    inputs = [keras.Input(shape) for _, shape in cases]
    outputs = [keras.layers.Flatten()(layer(tensor)) for (layer, _), tensor in zip(cases, inputs, strict=True)]
    model = keras.Model(inputs, keras.layers.Concatenate()(outputs))
    data = [rng.normal(size=(32, *shape)).astype("float32") for _, shape in cases]
    jit = "auto" if keras.backend.backend() == "jax" else False  # on TensorFlow compilation takes a minute
    model.compile(keras.optimizers.Adam(1e-2), "mse", jit_compile=jit)
    before = [to_numpy(layer.kernel) for layer, _ in cases]
    model.fit(data, rng.normal(size=(32, model.output_shape[1])), batch_size=4, epochs=3, verbose=0)
    for (layer, shape), kernel in zip(cases, before, strict=True):
        assert np.linalg.norm(to_numpy(layer.kernel) - kernel) > 0.05 * np.linalg.norm(kernel)
        factor = AFTER_AN_UPDATE.get(type(layer.parametrization), 1 + 1e-5)
        assert operator_norm(matrix_of(layer, shape)) <= layer.k_coef_lip * factor, layer.get_config()
    lip.renormalize(model)
    for layer, shape in cases:
        norms = np.linalg.svd(matrix_of(layer, shape), compute_uv=False) / layer.k_coef_lip
        assert norms[0] <= 1 + 1e-5
        if isinstance(layer.parametrization, lip.parametrizations.AOC) and layer.padding == "circular":
            np.testing.assert_allclose(norms, 1, atol=1e-3)


def test_names_of_deel_lip():
    assert layers.SpectralConv2D is layers.LipConv2D
    assert layers.SpectralConv2DTranspose is layers.LipConv2DTranspose


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: layers.LipConv2DTranspose(2, 3, strides=2, padding="circular", output_padding=1), "`output_padding`"),
        (lambda: layers.LipConv2DTranspose(0, 3), "`filters` of LipConv2DTranspose. Expected a positive integer"),
        (lambda: layers.LipDepthwiseConv2D(3, depth_multiplier=0), "`depth_multiplier` of LipDepthwiseConv2D"),
        (lambda: layers.LipConv1D(2, 3, padding="causal"), "`padding` of LipConv1D. Expected one of"),
        (lambda: layers.LipDepthwiseConv2D(3, depthwise_constraint="max_norm"), "`depthwise_constraint` is not"),
        (lambda: layers.LipConv1D(2, 3).build((None, 4, 4, 1)), r"expects a 3D input, \(batch, length, channels\)"),
        (lambda: layers.LipConv3D(2, 3).build((None, 4, 1)), r"5D input, \(batch, depth, height, width, channels\)"),
        (lambda: layers.LipConv2DTranspose(2, 7, padding="circular").build((None, 2, 2, 1)), "expects a height and"),
    ],
)
def test_bad_arguments(make, words):
    with pytest.raises(ValueError, match=words):
        make()
