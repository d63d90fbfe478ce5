"""Padded convolutions against NumPy's padding and against their explicit operators."""

import itertools

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from tests.helpers import convolution_matrix, operator_norm, to_numpy, vector_jacobian_product

layers = lip.layers

MODES = {"constant": "constant", "reflect": "reflect", "symmetric": "symmetric", "replicate": "edge"}
# kernel size, stride, dilation
GEOMETRIES = [(1, 1, 1), (2, 1, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2), (4, 1, 1), (5, 1, 1), (5, 2, 1), (5, 3, 1)]


def pads_of(kernel_size, dilation):
    total = dilation * (kernel_size - 1)
    return total // 2, total - total // 2


def padding_matrix(mode, size, pads):
    """Returns the padding of one axis as a matrix: of the basis, since padding is linear."""
    return np.pad(np.eye(size), [pads, (0, 0)], MODES[mode])


def padded_operator(mode, kernel, size, stride, dilation):
    pads = pads_of(kernel.shape[0], dilation)
    pad = padding_matrix(mode, size, pads)
    channels = kernel.shape[2]
    image = np.kron(np.kron(pad, pad), np.eye(channels))
    return convolution_matrix(kernel, size + sum(pads), stride, "valid", dilation) @ image


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_pads_as_numpy_does(mode, data_format, rng):
    if data_format == "channels_first" and keras.backend.backend() == "tensorflow":
        pytest.skip("TensorFlow has no convolution with channels first on the CPU")
    layer = layers.PadConv2D(3, (5, 2), padding=mode, data_format=data_format)
    images = rng.normal(size=(2, 6, 5, 2)).astype("float32")
    padded = np.pad(images, [(0, 0), (2, 2), (0, 1), (0, 0)], MODES[mode])
    if data_format == "channels_first":
        images, padded = np.moveaxis(images, -1, 1), np.moveaxis(padded, -1, 1)
    outputs = to_numpy(layer(images))
    plain = keras.layers.Conv2D(3, (5, 2), data_format=data_format)
    plain.build(padded.shape)
    plain.set_weights(layer.get_weights())
    np.testing.assert_allclose(outputs, to_numpy(plain(padded)), atol=1e-6)
    assert outputs.shape == images.shape[:1] + ((3, 6, 5) if data_format == "channels_first" else (6, 5, 3))


@pytest.mark.parametrize("mode", MODES)
def test_the_constant_holds_for_the_worst_kernel(mode):
    tight = 0
    for (kernel_size, stride, dilation), size in itertools.product(GEOMETRIES, (4, 7, 8, 13)):
        layer = layers.PadConv2D(2, kernel_size, stride, mode, dilation_rate=dilation)
        try:
            layer.compute_output_shape((None, size, size, 1))
        except ValueError:
            continue
        # The bound is attained where all taps count with one sign.
        kernel = np.zeros((kernel_size, kernel_size, 1, 2))
        kernel[..., 0] = layer.parametrization.norm / kernel_size
        norm = operator_norm(padded_operator(mode, kernel, size, stride, dilation))
        assert norm <= 1 + 1e-6, (kernel_size, stride, dilation, size)
        tight += norm > 0.999
    assert tight >= {"symmetric": 16, "replicate": 8}.get(mode, 4)  # those of kernel size 1 among them


@pytest.mark.parametrize("mode", MODES)
def test_random_kernels_and_their_certificates(mode, rng):
    for kernel_size, stride, dilation in [(5, 2, 1), (3, 1, 2)]:
        model = keras.Sequential(
            [
                keras.Input((8, 8, 2)),
                layers.PadConv2D(4, kernel_size, stride, mode, dilation_rate=dilation, k_coef_lip=0.5),
            ]
        )
        layer = model.layers[0]
        rows, _, columns = np.linalg.svd(rng.normal(size=(kernel_size**2 * 2, 4)), full_matrices=False)
        layer.kernel.assign((layer.parametrization.norm * rows @ columns).reshape(layer.kernel.shape))
        exact = operator_norm(padded_operator(mode, to_numpy(layer.kernel), 8, stride, dilation))
        bound = lip.certify(model).lipschitz_constant
        assert exact <= bound * (1 + 1e-9)
        assert bound <= min(0.5, exact) * (1 + 1e-5)


def test_parametrizations_that_know_the_norm_of_the_convolution():
    cases = [("aol", "constant", 1), ("aoc", "reflect", 2), ("aol", "symmetric", 2), ("aol", "replicate", 3)]
    for parametrization, mode, copies in cases:
        layer = layers.PadConv2D(4, 5, padding=mode, parametrization=parametrization, k_coef_lip=2.0)
        model = keras.Sequential([keras.Input((12, 12, 2)), layer])
        assert layer.parametrization.norm == pytest.approx(2 / copies)  # the root of the copies on both axes
        exact = operator_norm(padded_operator(mode, to_numpy(layer.kernel), 12, 1, 1))
        assert exact <= lip.certify(model).lipschitz_constant * (1 + 1e-9)
        assert lip.certify(model).lipschitz_constant <= 2 * (1 + 1e-5)
    with pytest.raises(ValueError, match="larger than the window"):
        # The middle of three values has a copy on both sides.
        layers.PadConv2D(4, 5, padding="symmetric", parametrization="aol").build((None, 3, 12, 2))
    layers.PadConv2D(4, 5, padding="symmetric").build((None, 3, 12, 2))


def test_the_gradient_is_that_of_the_operator(rng):
    for mode in ("reflect", "replicate"):
        layer = layers.PadConv2D(3, 5, padding=mode, use_bias=False)
        layer.build((None, 6, 6, 2))
        cotangent = rng.normal(size=(1, 6, 6, 3))
        gradient = vector_jacobian_product(layer, rng.normal(size=(1, 6, 6, 2)), cotangent)
        operator = padded_operator(mode, to_numpy(layer.kernel), 6, 1, 1)
        np.testing.assert_allclose(gradient.reshape(-1), cotangent.reshape(-1) @ operator, atol=1e-5)


def test_what_is_refused():
    with pytest.raises(
        ValueError, match=r"`padding` of PadConv2D. Expected one of .*'reflect'.*Received: padding=mirror"
    ):
        layers.PadConv2D(3, 3, padding="mirror")
    with pytest.raises(ValueError, match="must know the height and width"):
        layers.PadConv2D(3, 3, padding="reflect").build((None, None, 8, 1))
    # In a mirror at both edges, the middle of three values is met by five taps instead of four.
    with pytest.raises(ValueError, match="larger than the window.*Use padding='symmetric'.*Received: input_shape"):
        layers.PadConv2D(3, 3, padding="reflect").build((None, 8, 3, 1))
    with pytest.raises(ValueError, match="larger than the window"):
        layers.PadConv2D(3, 7, padding="symmetric").build((None, 2, 8, 1))
    layer = layers.PadConv2D(3, 3, padding="reflect")
    layer.build((None, 8, 8, 1))
    with pytest.raises(ValueError, match="larger than the window"):
        layer(np.zeros((1, 3, 8, 1), "float32"))
