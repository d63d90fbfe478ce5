"""Scaled pooling: values, gradients, norms, and arguments under which the constant would not hold."""

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from tests.helpers import to_numpy, vector_jacobian_product

layers = lip.layers


def windows(images, size, stride, padding):
    """Returns the values in each window, (samples, rows, columns, values, channels), zeros outside of the image."""
    samples, height, width, channels = images.shape
    if padding == "same":
        pads = [max((-(-length // stride) - 1) * stride + size - length, 0) for length in (height, width)]
        images = np.pad(images, [(0, 0), *[(pad // 2, pad - pad // 2) for pad in pads], (0, 0)])
        height, width = images.shape[1:3]
    rows, columns = (height - size) // stride + 1, (width - size) // stride + 1
    found = np.zeros((samples, rows, columns, size * size, channels))
    for row in range(rows):
        for column in range(columns):
            top, left = row * stride, column * stride
            found[:, row, column] = images[:, top : top + size, left : left + size].reshape(samples, -1, channels)
    return found


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("size", "stride"), [(2, 2), (3, 3), (2, 3)])
@pytest.mark.parametrize("k_coef_lip", [1.0, 0.5])
def test_values(data_format, padding, size, stride, k_coef_lip, rng):
    images = rng.normal(size=(2, 8, 7, 3))
    found = windows(images, size, stride, padding)
    mean, norm = found.sum(3) / size * k_coef_lip, np.sqrt((found**2).sum(3)) * k_coef_lip
    inputs = images.astype("float32")
    if data_format == "channels_first":
        inputs, mean, norm = (np.moveaxis(x, -1, 1) for x in (inputs, mean, norm))
    arguments = {"strides": stride, "padding": padding, "data_format": data_format, "k_coef_lip": k_coef_lip}
    np.testing.assert_allclose(to_numpy(layers.ScaledAveragePooling2D(size, **arguments)(inputs)), mean, atol=1e-5)
    np.testing.assert_allclose(to_numpy(layers.ScaledL2NormPooling2D(size, **arguments)(inputs)), norm, atol=1e-5)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("keepdims", [False, True])
def test_global_values(data_format, keepdims, rng):
    inputs = rng.normal(size=(2, 4, 5, 3)).astype("float32")
    axes = (1, 2) if data_format == "channels_last" else (2, 3)
    area = np.prod([inputs.shape[axis] for axis in axes])
    mean = inputs.sum(axes, keepdims=keepdims) / np.sqrt(area)
    norm = np.sqrt((inputs**2).sum(axes, keepdims=keepdims))
    arguments = {"data_format": data_format, "keepdims": keepdims}
    np.testing.assert_allclose(to_numpy(layers.ScaledGlobalAveragePooling2D(**arguments)(inputs)), mean, atol=1e-5)
    np.testing.assert_allclose(to_numpy(layers.ScaledGlobalL2NormPooling2D(**arguments)(inputs)), norm, atol=1e-5)


def test_the_constant_is_attained(rng):
    """Constant windows for the mean, any direction for the norm: the output moves as far as the input."""
    move = np.repeat(np.repeat(rng.normal(size=(1, 3, 3, 2)), 2, axis=1), 2, axis=2).astype("float32")
    for layer in (layers.ScaledAveragePooling2D(2), layers.ScaledL2NormPooling2D(2)):
        assert np.linalg.norm(to_numpy(layer(move))) == pytest.approx(np.linalg.norm(move), rel=1e-5)


@pytest.mark.parametrize("layer", [layers.ScaledL2NormPooling2D(2), layers.ScaledGlobalL2NormPooling2D()])
def test_gradient_of_the_norm(layer, rng):
    inputs = rng.normal(size=(1, 4, 4, 2))
    inputs[0, :2, :2] = 0  # a window of zeros
    outputs = to_numpy(layer(inputs.astype("float32")))
    gradient = vector_jacobian_product(layer, inputs, np.ones_like(outputs))
    assert np.all(np.isfinite(gradient))
    assert np.all(gradient[0, :2, :2] == 0)
    assert np.linalg.norm(gradient) <= np.sqrt(outputs.size) * (1 + 1e-5)
    zeros = vector_jacobian_product(layer, 0 * inputs, np.ones_like(outputs))
    assert np.all(zeros == 0)


def test_images_of_unknown_size(rng):
    model = keras.Sequential(
        [keras.Input((None, None, 4)), layers.ScaledAveragePooling2D(), layers.ScaledGlobalAveragePooling2D()]
    )
    inputs = rng.normal(size=(2, 6, 8, 4)).astype("float32")
    expected = windows(inputs, 2, 2, "valid").sum(3) / 2
    np.testing.assert_allclose(model.predict(inputs, verbose=0), expected.sum((1, 2)) / np.sqrt(12), atol=1e-5)
    with pytest.raises(ValueError, match="'scaled_global_average_pooling2d.*' folds only where the height and width"):
        lip.vanilla_model(model)


@pytest.mark.parametrize("layer_class", [layers.ScaledAveragePooling2D, layers.ScaledL2NormPooling2D])
def test_bad_arguments(layer_class):
    with pytest.raises(
        ValueError,
        match=rf"`strides` of {layer_class.__name__}.*overlap.*Received: strides=\(1, 1\), pool_size=\(2, 2\)",
    ):
        layer_class(2, strides=1)
    with pytest.raises(ValueError, match=f"`padding` of {layer_class.__name__}.*Received: padding=reflect"):
        layer_class(2, padding="reflect")
    with pytest.raises(ValueError, match="`k_coef_lip`. Expected a positive finite number. Received: k_coef_lip=0"):
        layer_class(2, k_coef_lip=0)
    with pytest.raises(
        ValueError,
        match=r"padding='same' must know the height and width.*Received: input_shape=\(None, None, None, 3\)",
    ):
        keras.Sequential([keras.Input((None, None, 3)), layer_class(2, padding="same")])
