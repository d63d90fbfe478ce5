"""The Cayley transform of convolutions: operators in float64 against a definition in complex numbers."""

import itertools

import keras
import numpy as np
import pytest

import deel_like_lip as lip
from deel_like_lip.parametrizations import Cayley, ConvolutionGeometry
from tests.helpers import to_numpy, vector_jacobian_product

layers = lip.layers

# All singular values of the operator are within this of the constant, in float32.
TOLERANCE = 2e-6


def transform(symbols):
    """Returns `(I - A) (I + A)^-1` above `-2 V (I + A)^-1` of a square U above V, where `A = U - U* + V* V`."""
    if symbols.shape[-2] < symbols.shape[-1]:
        return adjoint(transform(adjoint(symbols)))
    columns = symbols.shape[-1]
    upper, lower = symbols[..., :columns, :], symbols[..., columns:, :]
    skew, identity = upper - adjoint(upper) + adjoint(lower) @ lower, np.eye(columns)
    inverse = np.linalg.inv(identity + skew)
    return np.concatenate([(identity - skew) @ inverse, -2 * lower @ inverse], axis=-2)


def adjoint(matrices):
    return np.conj(np.swapaxes(matrices, -1, -2))


def operator(layer, size):
    """Returns the operator of a built layer on images of a size, from its weight, by the discrete Fourier transform."""
    rank, stride = len(size), layer.strides
    weight = to_numpy(layer.stored_kernel).astype(np.float64)
    taps, (inputs, outputs) = weight.shape[:rank], weight.shape[rank:]
    small = tuple(extent // step for extent, step in zip(size, stride, strict=True))
    kernel = np.zeros((*small, *stride, inputs, outputs))
    for tap in itertools.product(*map(range, taps)):
        extents = [(count - 1) * dilation + 1 for count, dilation in zip(taps, layer.dilation_rate, strict=True)]
        places = [
            dilation * index - max(extent - step, 0) // 2
            for index, dilation, extent, step in zip(tap, layer.dilation_rate, extents, stride, strict=True)
        ]
        shift = tuple(-(place // step) % count for place, step, count in zip(places, stride, small, strict=True))
        phase = tuple(place % step for place, step in zip(places, stride, strict=True))
        kernel[shift + phase] += weight[tap]
    axes, places, groups = tuple(range(1, rank + 1)), int(np.prod(small)), layer.groups
    columns = []
    for group, part in enumerate(np.split(kernel, groups, axis=-1)):
        symbols = np.fft.fftn(part.reshape(*small, -1, outputs // groups), axes=tuple(range(rank)))
        images = np.eye(int(np.prod(size)) * inputs * groups).reshape(-1, *size, groups, inputs)[..., group, :]
        split = [extent for pair in zip(small, stride, strict=True) for extent in pair]
        order = (0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1)
        images = images.reshape(-1, *split, inputs).transpose(order).reshape(len(images), *small, -1)
        products = np.einsum("b...i,...io->b...o", np.fft.fftn(images, axes=axes), transform(symbols))
        columns.append(np.real(np.fft.ifftn(products, axes=axes)).reshape(len(images), places, -1))
    return layer.k_coef_lip * np.concatenate(columns, axis=-1).reshape(len(images), -1)


def folded_operator(model):
    """Returns the operator of a layer as its fold has it, without bias: the product of three tensors in float64."""
    steps = [layer for layer in lip.vanilla_model(model).layers if isinstance(layer, keras.layers.EinsumDense)]
    size = int(np.prod(model.input_shape[1:]))
    images = np.eye(size).reshape(size, *model.input_shape[1:])
    for step in steps:
        images = np.einsum(step.equation, images, to_numpy(step.kernel).astype(np.float64), optimize=True)
    return images.reshape(size, -1)


CASES = [
    (lambda **options: layers.LipConv2D(4, 1, **options), (6, 5, 4)),
    (lambda **options: layers.LipConv2D(2, 2, use_bias=False, **options), (5, 4, 5)),
    (lambda **options: layers.LipConv2D(5, 3, k_coef_lip=2.0, **options), (4, 5, 2)),
    (lambda **options: layers.LipConv2D(3, (4, 5), **options), (4, 6, 3)),
    (lambda **options: layers.LipConv2D(1, 3, **options), (3, 4, 1)),
    (lambda **options: layers.LipConv2D(6, 5, groups=2, dilation_rate=2, **options), (6, 6, 4)),
    (lambda **options: layers.LipConv2D(4, (3, 5), strides=(2, 3), **options), (6, 6, 2)),
    (lambda **options: layers.LipConv2D(9, 1, strides=2, **options), (4, 6, 2)),
    (lambda **options: layers.LipConv1D(4, 5, strides=2, groups=2, **options), (10, 2)),
    (lambda **options: layers.LipConv3D(2, (3, 2, 1), **options), (3, 4, 2, 3)),
]


def check(model, inputs, rounding=2e-5):
    layer = model.layers[0]
    size = layer.input_spec.axes
    matrix = operator(layer, tuple(size[axis] for axis in range(1, layer.rank + 1)))
    outputs = to_numpy(model(inputs)).reshape(len(inputs), -1)
    bias = to_numpy(layer.bias) if layer.use_bias else np.zeros(layer.filters)
    expected = inputs.reshape(len(inputs), -1) @ matrix + np.tile(bias, outputs.shape[1] // layer.filters)
    np.testing.assert_allclose(outputs, expected, atol=rounding)
    values = np.linalg.svd(folded_operator(model), compute_uv=False) / layer.k_coef_lip
    np.testing.assert_allclose(values, 1, atol=TOLERANCE)
    bound = lip.certify(model).lipschitz_constant / layer.k_coef_lip
    assert values[0] * (1 - 1e-9) <= bound <= 1 + TOLERANCE


def test_operators_are_orthogonal_before_and_after_training(rng):
    models, data = [], []
    for make, shape in CASES:
        models.append(keras.Sequential([keras.Input(shape), make(padding="circular", parametrization="cayley")]))
        data.append(rng.normal(size=(3, *shape)).astype("float32"))
        check(models[-1], data[-1])
    inputs = [keras.Input(shape) for _, shape in CASES]
    flat = [keras.layers.Flatten()(model(tensor)) for model, tensor in zip(models, inputs, strict=True)]
    together = keras.Model(inputs, keras.layers.Concatenate()(flat))
    together.compile(keras.optimizers.Adam(0.03), "mse", jit_compile=keras.backend.backend() == "jax")
    before = [to_numpy(model.layers[0].stored_kernel) for model in models]
    targets = rng.normal(size=(3, together.output_shape[1]))
    losses = [float(together.train_on_batch(data, targets)) for _ in range(10)]
    assert losses[-1] < losses[0]
    for model, inputs, weight in zip(models, data, before, strict=True):
        assert np.linalg.norm(to_numpy(model.layers[0].stored_kernel) - weight) > 0.1 * np.linalg.norm(weight)
        check(model, inputs, rounding=5e-5)  # the larger the weights, the less well conditioned the inverse


def test_certify_of_a_layer_that_is_not_written_out():
    layer = layers.LipConv2D(16, 3, padding="circular", parametrization="cayley")
    assert 1 - 1e-6 <= lip.certify(keras.Sequential([keras.Input((16, 16, 16)), layer])).lipschitz_constant <= 1 + 1e-5


@pytest.mark.parametrize("channels", [(3, 3), (2, 4), (5, 2)])
def test_any_weight_is_allowed(channels, rng):
    geometry = ConvolutionGeometry((3,), (1,), (1,), padding="circular", channels=channels, sizes=(6,))
    parametrization, shape = Cayley().bind(1.0, geometry), (3, *channels)
    for scale in (0.0, 1e-3, 1.0, 1e3, 1e6):
        weight = (scale * rng.normal(size=shape)).astype("float32")
        kernel = to_numpy(parametrization.kernel(weight, shape)).astype(np.float64)
        norms = np.linalg.svd(kernel.reshape(len(kernel), 2 * channels[0], -1), compute_uv=False)
        assert norms.max() <= 1 + TOLERANCE
        if scale <= 1:
            np.testing.assert_allclose(norms, 1, atol=TOLERANCE)
        gradient = vector_jacobian_product(lambda weight: parametrization.kernel(weight, shape), weight, kernel)
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda **options: layers.LipConv2D(2, 3, **options), "Cayley expects.*Received: padding=valid"),
        (lambda **options: layers.LipConv2D(2, 3, padding="same", **options), "Received: padding=same"),
        (
            lambda **options: layers.LipConv2D(2, 3, padding="circular", **options).build((None, 4, None, 2)),
            r"an `Input` of fixed size.*Received: an input of size \(4, None\)",
        ),
        (lambda **options: layers.LipConv2DTranspose(2, 3, padding="circular", **options), "a transposed convolution"),
        (lambda **options: layers.LipDepthwiseConv2D(3, padding="circular", **options), "a depthwise convolution"),
        (lambda **options: layers.PadConv2D(2, 3, padding="reflect", **options), "Received: padding=valid"),
    ],
)
def test_refusals(make, words):
    with pytest.raises(ValueError, match=words):
        make(parametrization="cayley")


def test_an_image_of_another_size_is_refused():
    layer = layers.LipConv2D(2, 3, padding="circular", parametrization="cayley")
    layer(np.zeros((1, 4, 6, 2), "float32"))
    with pytest.raises(ValueError, match="expected axis 1 of input shape to have value 4"):
        layer(np.zeros((1, 6, 6, 2), "float32"))
