"""Parametrizations of convolutions: norms and singular values of the explicit operators in float64."""

import functools
import itertools

import keras
import numpy as np
import pytest
from keras import ops

from deel_like_lip import layers, parametrizations
from deel_like_lip.parametrizations import AOC, AOL, SOC, ConvolutionGeometry, OperatorNorm, Orthogonal
from tests.helpers import convolution_matrix, operator_norm, to_numpy, vector_jacobian_product


def bound(kind, kernel_size, channels, stride=1, dilation=1, groups=1, norm=1.0):
    """Returns a parametrization of a 2D layer and the shape of its kernel; `channels` are those of one group."""
    geometry = ConvolutionGeometry(
        (kernel_size, kernel_size), (stride, stride), (dilation, dilation), groups, channels=channels
    )
    return kind().bind(norm, geometry), (kernel_size, kernel_size, channels[0], channels[1] * groups)


@functools.cache
def compiled(method, *static):
    """Returns a method as a function of an array, which JAX compiles once, instead of each of its operations."""
    function = compiled_together(lambda tensor: [method(tensor, *static)])
    return lambda array: function(array)[0]


def compiled_together(function):
    """Likewise of a function from tensors to a list of them."""
    if keras.backend.backend() == "jax":
        import jax

        function = jax.jit(function)
    return lambda *arrays: list(map(to_numpy, function(*map(ops.convert_to_tensor, arrays))))


def matrix_of(parametrization, weight, kernel_shape, padding, size=6):
    kernel = weight
    if parametrization.computes_kernel:
        kernel = compiled(parametrization.kernel, kernel_shape)(weight)
    return matrix_of_kernel(parametrization, kernel, padding, size)


def matrix_of_kernel(parametrization, kernel, padding, size=6):
    geometry = parametrization.geometry
    options = {"stride": geometry.strides, "dilation": geometry.dilation_rate, "groups": geometry.groups}
    return convolution_matrix(kernel, size, padding=padding, **options)


def random_weight(parametrization, kernel_shape, rng, scale=1.0):
    return (scale * rng.normal(size=parametrization.weight_shape(kernel_shape))).astype("float32")


# Of a group: more outputs than inputs or fewer, or as many. With strides the window counts as well.
ALL_GEOMETRIES = [
    ((4, 6), {}),
    ((5, 2), {"dilation": 2, "norm": 0.5}),
    ((2, 3), {"groups": 2}),
    ((2, 9), {"stride": 2}),
    ((4, 3), {"stride": 2, "groups": 2}),
    ((2, 19), {"stride": 3}),
    ((2, 3), {"stride": 3, "norm": 2.0}),
]


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 4, 5])
def test_aoc_is_orthogonal(kernel_size, rng):
    """Made of matrices that NumPy has made orthogonal, whatever the kernel size, strides, groups and dilation."""
    cases = [bound(AOC, kernel_size, channels, **options) for channels, options in ALL_GEOMETRIES]
    weights = []
    for parametrization, shape in cases:
        weight = random_weight(parametrization, shape, rng)
        matrices = [np.linalg.svd(to_numpy(part), full_matrices=False) for part in parametrization._matrices(weight)]
        weights.append(np.concatenate([(u @ v).reshape(len(weight), -1) for u, _, v in matrices], axis=1))

    def kernels(*weights):
        return [found.kernel(weight, shape) for (found, shape), weight in zip(cases, weights, strict=True)]

    for (parametrization, _), kernel in zip(cases, compiled_together(kernels)(*weights), strict=True):
        values = np.linalg.svd(matrix_of_kernel(parametrization, kernel, "circular"), compute_uv=False)
        geometry = parametrization.geometry
        # As many as there are outputs, or inputs that windows meet: all of them but where windows leave gaps.
        met = min(geometry.channels[1], geometry.channels[0] * min(kernel_size, geometry.strides[0]) ** 2)
        count = (6 // geometry.strides[0]) ** 2 * geometry.groups * met
        assert count == len(values) or kernel_size < geometry.strides[0]
        np.testing.assert_allclose(values[:count] / parametrization.norm, 1, atol=1e-5)
        np.testing.assert_allclose(values[count:], 0, atol=1e-12)


@pytest.mark.parametrize(
    ("kernel_size", "channels", "options"),
    [(3, (2, 5), {"dilation": 2}), (4, (2, 3), {"stride": 2, "groups": 2}), (5, (4, 4), {"norm": 0.5})],
)
def test_aoc_of_any_weight(kernel_size, channels, options, rng):
    parametrization, shape = bound(AOC, kernel_size, channels, **options)
    weight = compiled(parametrization.project)(random_weight(parametrization, shape, rng))
    values = np.linalg.svd(matrix_of(parametrization, weight, shape, "circular"), compute_uv=False)
    np.testing.assert_allclose(values / parametrization.norm, 1, atol=1e-3)
    assert values.max() <= parametrization.norm * (1 + 1e-5)
    moved = weight + 0.3 * np.sign(rng.normal(size=weight.shape)).astype("float32")
    moved = compiled(parametrization.retract)(moved)
    huge = compiled(parametrization.project)(1e6 * random_weight(parametrization, shape, rng))
    for any_weight in (moved, huge, compiled(parametrization.project)(0 * weight)):
        for padding in ("circular", "same", "valid"):
            matrix = matrix_of(parametrization, any_weight, shape, padding)
            assert operator_norm(matrix) <= parametrization.norm * (1 + 1e-5)


def test_aoc_reaches_more_than_shifts(rng):
    """Each tap of a kernel carries weight, and two kernels from different weights differ."""
    parametrization, shape = bound(AOC, 3, (8, 8))
    kernels = []
    for _ in range(2):
        weight = compiled(parametrization.project)(random_weight(parametrization, shape, rng))
        kernels.append(compiled(parametrization.kernel, shape)(weight))
    shares = np.sum(kernels[0] ** 2, axis=(2, 3)) / np.sum(kernels[0] ** 2)
    assert shares.min() > 0.01
    assert np.linalg.norm(kernels[0] - kernels[1]) > 0.5 * np.linalg.norm(kernels[0])


def test_aoc_tangent_gradient_keeps_each_matrix_orthogonal_to_first_order(rng):
    parametrization, shape = bound(AOC, 3, (4, 4))
    weight = compiled(parametrization.project)(random_weight(parametrization, shape, rng))
    step = parametrization.tangent_gradient(weight, ops.convert_to_tensor(random_weight(parametrization, shape, rng)))
    for matrices, moves in zip(parametrization._matrices(weight), parametrization._matrices(step), strict=True):
        inner = np.swapaxes(to_numpy(matrices), -1, -2) @ to_numpy(moves)
        np.testing.assert_allclose(inner + np.swapaxes(inner, -1, -2), 0, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel_size", "channels", "options"),
    [
        (3, (4, 4), {}),
        (3, (2, 7), {"dilation": 2}),
        (4, (6, 2), {"groups": 2}),
        (3, (1, 6), {"stride": 2}),
        (5, (3, 4), {"stride": 3, "norm": 2.0}),
    ],
)
def test_aol_whatever_the_weights(kernel_size, channels, options, rng):
    parametrization, shape = bound(AOL, kernel_size, channels, **options)
    random = random_weight(parametrization, shape, rng)
    smooth, one = 1 + 0.1 * random, np.eye(np.prod(shape), 1, dtype="float32").reshape(shape)
    some_zero, uneven = random * (np.arange(shape[-1]) % 2), random * np.geomspace(1e-6, 1e6, shape[-1])
    kernel_of = compiled(parametrization.kernel, shape)
    for weight in (random, smooth, one, some_zero, uneven, 0 * random):
        for scale in (1e-12, 1e-3, 1.0, 1e6):
            kernel = kernel_of((scale * weight).astype("float32"))
            for padding in ("circular", "same"):
                matrix = matrix_of_kernel(parametrization, kernel, padding)
                assert operator_norm(matrix) <= parametrization.norm * (1 + 1e-5)


def test_aol_leaves_orthogonal_kernels_as_they_are(rng):
    parametrization, shape = bound(AOL, 2, (3, 4), stride=2)
    kernel = to_numpy(Orthogonal().project(rng.normal(size=shape).astype("float32")))
    np.testing.assert_allclose(to_numpy(parametrization.kernel(kernel, shape)), kernel, atol=1e-3)


def test_aol_of_zeros_has_a_finite_gradient():
    parametrization, shape = bound(AOL, 3, (2, 3))
    zeros, ones = np.zeros(shape, "float32"), np.ones(shape, "float32")
    assert np.all(to_numpy(parametrization.kernel(zeros, shape)) == 0)
    gradient = vector_jacobian_product(lambda weight: parametrization.kernel(weight, shape), zeros, ones)
    assert np.all(np.isfinite(gradient))


def test_aol_of_a_matrix(rng):
    weight = rng.normal(size=(8, 5)).astype("float32")
    kernel = to_numpy(AOL().bind(0.5).kernel(ops.convert_to_tensor(weight), (8, 5)))
    assert 0.3 <= np.linalg.norm(kernel, 2) <= 0.5 * (1 + 1e-5)
    ratio = kernel / weight
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:1], ratio.shape), rtol=1e-5)  # one factor a column


@pytest.mark.parametrize(
    ("kernel_size", "channels", "options"),
    [
        (1, (4, 4), {}),
        (3, (4, 5), {"norm": 2.0}),
        (4, (2, 2), {"groups": 2}),
        (3, (2, 3), {"dilation": 2}),
        (5, (2, 3), {"stride": 2}),
    ],
)
def test_operator_norm(kernel_size, channels, options, rng):
    parametrization, shape = bound(OperatorNorm, kernel_size, channels, **options)
    weight = 100 * random_weight(parametrization, shape, rng)
    size = 4 * kernel_size
    projected, retracted = compiled(parametrization.project)(weight), compiled(parametrization.retract)(weight)
    ratio = projected / weight
    np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-5)  # nothing but a scale
    norms = [
        operator_norm(matrix_of(parametrization, kernel, shape, "circular", size)) / parametrization.norm
        for kernel in (projected, retracted)
    ]
    assert 0.93 <= norms[0] <= 1 + 1e-6
    assert 0.97 <= norms[1] <= 1.1
    assert operator_norm(matrix_of(parametrization, projected, shape, "same", 7)) <= parametrization.norm
    assert np.all(compiled(parametrization.project)(0 * weight) == 0)


def test_soc_of_a_weight_of_any_size(rng):
    parametrization = SOC().bind(1.0, ConvolutionGeometry((3, 3), (1, 1), (1, 1), padding="same", channels=(3, 3)))
    for scale, move in ((1e-3, 0.0), (1e3, 0.0), (1.0, 0.3)):
        weight = compiled(parametrization.project)(scale * rng.normal(size=(3, 3, 3, 3)).astype("float32"))
        step = move * np.sign(rng.normal(size=weight.shape)).astype("float32")
        moved = compiled(parametrization.retract)(weight + step)
        kernel = compiled(parametrization.kernel, (3, 3, 3, 3))(moved)
        for padding in ("circular", "same"):
            matrix = convolution_matrix(kernel, 6, padding=padding)
            np.testing.assert_array_equal(matrix, -matrix.T)
            assert np.linalg.norm(matrix, 2) <= 1 + (0.1 if move else 1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AOC().bind(1.0), "AOC is one of convolutions"),
        (lambda: OperatorNorm().bind(1.0), "OperatorNorm is one of convolutions"),
        (lambda: bound(AOC, 3, (1, 1)), r"knows no orthogonal convolution but shifts.*Received: channels=\(1, 1\)"),
        (lambda: bound(AOL, 3, (2, 2), stride=2, dilation=2), "AOL expects no dilation beside strides"),
        (lambda: bound(AOC, 3, (2, 2), stride=2, dilation=2), "AOC expects no dilation beside strides"),
        (lambda: SOC().bind(1.0), "SOC expects.*Received: a dense layer"),
        (lambda: bound(SOC, 3, (2, 2)), "SOC expects.*Received: padding=valid"),
        (lambda: layers.LipConv2D(2, 3, strides=2, parametrization="soc"), r"Received: strides=\(2, 2\)"),
        (lambda: layers.LipConv2D(2, 4, parametrization="soc"), r"Received: kernel_size=\(4, 4\)"),
        (lambda: layers.LipConv2DTranspose(2, 3, parametrization="soc"), "Received: a transposed convolution"),
        (lambda: layers.LipDepthwiseConv2D(3, parametrization="soc"), "Received: a depthwise convolution"),
        (
            lambda: layers.LipConv2D(2, 3, padding="same", groups=2, parametrization="soc").build((None, 4, 4, 4)),
            "Received: groups=2 of 2 inputs and 1 outputs",
        ),
    ],
)
def test_refusals(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("name", ["aoc", "aol", "operator_norm", "soc"])
def test_names_and_configurations(name):
    found = parametrizations.get(name)
    assert parametrizations.get(parametrizations.serialize(found)) == found
    geometry = ConvolutionGeometry((3, 3), (1, 1), (1, 1), padding="same")
    again = parametrizations.get(parametrizations.serialize(found.bind(2.0, geometry)))
    assert again == found
    assert keras.saving.get_registered_name(type(found)).startswith("deel_like_lip.parametrizations>")


@pytest.mark.parametrize(("shape", "groups"), [((3, 3, 2, 4), 1), ((3, 1, 2, 6), 2), ((2, 3, 4, 2), None)])
def test_the_gradient_of_a_kernel_divided_by_its_operator_norm(shape, groups, rng):
    """That of `<G, K / |K|>`, times |K|, against finite differences in float64."""
    kernel, gradient, direction = rng.normal(size=(3, *shape))
    kernel[..., -1] *= 2.0  # a norm that is differentiable

    def quotient(kernel):
        waves = [2 * np.pi * np.arange(max(1, 8 * (size // 2))) / max(1, 8 * (size // 2)) for size in shape[:2]]
        norms = []
        for first, second in itertools.product(*waves):
            phases = np.exp(-1j * (first * np.arange(shape[0])[:, None] + second * np.arange(shape[1])))
            symbol = np.einsum("ij,ijcd->cd", phases, kernel)
            parts = symbol[:, None] if groups is None else np.split(symbol, groups, axis=1)
            norms += [np.linalg.norm(part, 2) for part in parts]
        return np.sum(gradient * kernel) / max(norms), max(norms)

    step = 1e-5
    expected = (quotient(kernel + step * direction)[0] - quotient(kernel - step * direction)[0]) / (2 * step)
    geometry = ConvolutionGeometry(shape[:2], (1, 1), (1, 1), groups=groups)
    tensors = [ops.convert_to_tensor(array.astype("float32")) for array in (kernel, gradient)]
    found = to_numpy(OperatorNorm().bind(1.0, geometry).tangent_gradient(*tensors))
    assert np.sum(found * direction) / quotient(kernel)[1] == pytest.approx(expected, rel=1e-2, abs=1e-2)
