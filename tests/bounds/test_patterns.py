"""Groups of operations that are bounded together, against the matrices that Keras computes; and near misses."""

import keras
import numpy as np
import pytest
from keras import ops

from deel_like_lip.bounds import bound_graph
from tests.helpers import to_numpy

layers = keras.layers


def matrix_of(model, shape):
    size = int(np.prod(shape))
    images = to_numpy(model(np.concatenate([np.zeros((1, size)), np.eye(size)]).reshape(-1, *shape).astype("float32")))
    images = images.astype("float64").reshape(size + 1, -1)
    return (images[1:] - images[0]).T


def kinds(model):
    return {line.kind for line in bound_graph(model).layers}


@pytest.mark.parametrize(
    ("repeated", "crop", "matches"),
    [
        ((1, 1), 3, True),
        ((2, 2), 5, True),
        ((1, 1), 2, True),  # another alignment, still one period
        ((0, 1), 1, False),  # inputs are missing before
        ((1, 0), 3, False),  # and behind
        ((1, 1), 0, False),
    ],
)
def test_a_transposed_convolution_on_a_torus(repeated, crop, matches, rng):
    """4 inputs, 8 outputs, 4 taps, stride 2, along one axis; the other is not padded."""
    inputs = keras.Input((4, 1, 2))
    padded = ops.take(inputs, [index % 4 for index in range(-repeated[0], 4 + repeated[1])], axis=1)
    grown = layers.Conv2DTranspose(3, (4, 1), strides=(2, 1), bias_initializer="ones")(padded)
    end = grown.shape[1] - crop - 8
    assert end >= 0
    model = keras.Model(inputs, layers.Cropping2D(((crop, end), (0, 0)))(grown))
    model.layers[-2].kernel.assign(rng.normal(size=(4, 1, 3, 2)))
    exact = np.linalg.norm(matrix_of(model, (4, 1, 2)), 2)
    bound = bound_graph(model).constant
    assert bound >= exact * (1 - 1e-6)
    assert ("circular transposed convolution" in kinds(model)) == matches
    if matches:
        assert bound <= exact * (1 + 1e-5)


@pytest.mark.parametrize("kind", ["Conv1D", "Conv3D", "DepthwiseConv2D"])
def test_a_circular_convolution_of_any_kind(kind, rng):
    layer = getattr(layers, kind)(*((2, 3) if kind != "DepthwiseConv2D" else (3,)))
    rank = layer.rank
    inputs = keras.Input((3,) * rank + (2,))
    padded = inputs
    for axis in range(1, rank + 1):
        padded = ops.take(padded, [2, 0, 1, 2, 0], axis=axis)
    model = keras.Model(inputs, layer(padded))
    layer.kernel.assign(rng.normal(size=layer.kernel.shape))
    exact = np.linalg.norm(matrix_of(model, inputs.shape[1:]), 2)
    assert exact * (1 - 1e-6) <= bound_graph(model).constant <= exact * (1 + 1e-5)
    assert kinds(model) == {"circular convolution"}


def skew_kernel(rng, taps=3, channels=4, scale=0.1):
    kernel = scale * rng.normal(size=(taps, taps, channels, channels)).astype("float32")
    return kernel - np.swapaxes(kernel[::-1, ::-1], -1, -2)


def series(image, apply, powers=(1, 2, 3)):
    term = total = image
    for power in powers:
        term = ops.divide(apply(term), power)
        total = ops.add(total, term)
    return total


def test_a_series_of_a_skew_convolution(rng):
    inputs = keras.Input((8, 8, 4))
    convolution = layers.Conv2D(4, 3, padding="same", use_bias=False)
    model = keras.Model(inputs, series(inputs, convolution))
    for scale in (0.0, 0.1, 0.5):
        convolution.kernel.assign(skew_kernel(rng, scale=scale))
        exact = np.linalg.norm(matrix_of(model, (8, 8, 4)), 2)
        bound = bound_graph(model).constant
        assert exact * (1 - 1e-6) <= bound <= exact * 1.05
    assert "series of a skew-symmetric convolution" in kinds(model)


@pytest.mark.parametrize("miss", ["kernel", "padding", "layers", "bias", "even", "order"])
def test_what_is_no_series_of_a_skew_convolution(miss, rng):
    """Each of them is bounded, by more than the pattern would say, and not by less than its norm."""
    inputs = keras.Input((6, 6, 4))
    taps = 2 if miss == "even" else 3
    options = {"use_bias": miss == "bias", "padding": "same"}
    convolutions = [layers.Conv2D(4, taps, **options) for _ in range(2)]
    first, second = convolutions if miss == "layers" else convolutions[:1] * 2
    if miss == "padding":
        outer = layers.Cropping2D(((0, 1), (1, 0)))
        outputs = ops.add(
            inputs, outer(layers.Conv2D(4, 3, use_bias=False)(layers.ZeroPadding2D(((2, 1), (1, 2)))(inputs)))
        )
    elif miss == "order":
        term = first(inputs)
        outputs = ops.add(ops.add(inputs, ops.divide(first(term), 2)), term)
    else:
        term = first(inputs)
        outputs = ops.add(ops.add(inputs, term), ops.divide(second(term), 2))
    model = keras.Model(inputs, outputs)
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D):
            kernel = skew_kernel(rng, taps)
            kernel[0, 0, 0, 0] += 1e-7 if miss == "kernel" else 0
            layer.kernel.assign(kernel)
    exact = np.linalg.norm(matrix_of(model, (6, 6, 4)), 2)
    assert bound_graph(model).constant >= exact * (1 - 1e-6)
    assert "series of a skew-symmetric convolution" not in {
        line.kind for line in bound_graph(model).layers if line.name == model.layers[-1].name
    }
