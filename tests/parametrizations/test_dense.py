"""Kernels that are computed from free weights: what they are, how near to orthogonal, and that nothing breaks them."""

import keras
import numpy as np
import pytest
from keras import ops

import deel_like_lip as lip
from deel_like_lip import parametrizations
from deel_like_lip.parametrizations import ConvolutionGeometry
from tests.helpers import singular_values, to_numpy, vector_jacobian_product

# Square, tall and wide ones, slightly and much; single units and inputs.
SHAPES = [(12, 12), (9, 13), (40, 7), (1, 5), (1, 1)]


def cayley(weight, columns):
    """The definition of the paper, with A the skew part of the upper square plus V^T V."""
    upper, lower = weight[:columns], weight[columns:]
    skew, identity = upper - upper.T + lower.T @ lower, np.eye(columns)
    inverse = np.linalg.inv(identity + skew)
    return np.concatenate([(identity - skew) @ inverse, -2 * lower @ inverse])


def cholesky(weight, columns):
    """The Q of a QR decomposition, with signs such that the diagonal of R is positive."""
    basis, triangular = np.linalg.qr(weight)
    return basis * np.sign(np.diag(triangular))


def bro(weight, columns):
    projection = weight @ np.linalg.inv(weight.T @ weight) @ weight.T
    return (np.eye(len(weight)) - 2 * projection)[:, :columns]


def exponential(weight, columns):
    """Of the whole skew matrix, by its eigenvalues."""
    rows = len(weight)
    skew = np.zeros((rows, rows))
    skew[:, :columns] += weight
    skew[:columns] -= weight.T
    values, vectors = np.linalg.eigh(1j * skew)
    return ((vectors * np.exp(-1j * values)) @ vectors.conj().T).real[:, :columns]


def aol(weight, columns):
    return weight / np.sqrt(np.abs(weight.T @ weight).sum(axis=0))


DEFINITIONS = {"aol": aol, "bro": bro, "cayley": cayley, "cholesky": cholesky, "exponential": exponential}
every_name = pytest.mark.parametrize("name", DEFINITIONS)
every_shape = pytest.mark.parametrize("shape", SHAPES)


def defined(name, weight, shape):
    tall = shape[0] >= shape[1]
    kernel = DEFINITIONS[name](weight if tall else weight.T, min(shape))
    return kernel if tall else kernel.T


def conditioned(shape, condition, rng):
    left, _, right = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    return (left * np.geomspace(1, 1 / condition, min(shape))) @ right


def kernel_of(parametrization, shape):
    """Returns the kernel as a function of the weight, compiled on JAX, where one by one each operation would be."""

    def kernel(weight):
        return parametrization.kernel(ops.convert_to_tensor(weight, dtype="float32"), shape)

    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(kernel)
    return kernel


@every_name
@every_shape
def test_kernel_and_gradient_are_those_of_the_definition(name, shape, rng):
    parametrization = parametrizations.get(name).bind(0.7)
    weight = conditioned(parametrization.weight_shape(shape), 3, rng)
    kernel = kernel_of(parametrization, shape)
    np.testing.assert_allclose(to_numpy(kernel(weight)), 0.7 * defined(name, weight, shape), atol=2e-6)
    # The derivative along a direction, by central differences in float64, which err by about 1e-9.
    cotangent, direction = rng.normal(size=shape), rng.normal(size=weight.shape)
    gradient = vector_jacobian_product(kernel, weight, cotangent)
    ahead, behind = (defined(name, weight + step * direction, shape) for step in (1e-5, -1e-5))
    expected = 0.7 * np.sum((ahead - behind) * cotangent) / 2e-5
    assert np.sum(gradient * direction) == pytest.approx(expected, rel=2e-4, abs=2e-4)


def hard_weights(shape, rng):
    rows, columns = shape
    normal = rng.normal(size=shape)
    yield from (scale * normal for scale in (0.0, 1e-30, 1e-10, 1e4, 1e8))
    yield from (scale * np.ones(shape) for scale in (1e-4, 1.0, 1e4))
    yield np.outer(rng.normal(size=rows), rng.normal(size=columns))
    rank = max(min(shape) // 2, 1)
    yield 1e4 * rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))
    yield rng.normal(size=(rows, 1)) + 1e-4 * normal
    yield conditioned(shape, 1e4, rng)
    for axis in (0, 1):
        scale = np.ones(shape[axis])
        scale[0] = 1e6
        yield normal * np.expand_dims(scale, 1 - axis)
        scale[::2] = 0
        yield normal * np.expand_dims(scale, 1 - axis)


@every_name
@pytest.mark.parametrize("shape", [(48, 48), (10, 100), (1, 1)])
def test_no_weight_breaks_a_kernel(name, shape, rng):
    """The norm holds, and gradients are finite, for whatever weights."""
    parametrization = parametrizations.get(name)
    kernel, cotangent = kernel_of(parametrization, shape), rng.normal(size=shape)
    for weight in hard_weights(parametrization.weight_shape(shape), rng):
        assert singular_values(kernel(weight)).max() <= 1 + 1e-5
        gradient = vector_jacobian_product(kernel, weight, cotangent)
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("shape", [(64, 64), (10, 300)])
def test_how_near_to_orthogonal(shape, rng):
    """What the docstrings promise."""
    promises = [("cholesky", 50, 5e-4, 1), ("cholesky", 10, 1e-5, 1), ("bro", 50, 1e-3, 1), ("bro", 10, 1e-5, 1)]
    promises += [("exponential", 10, 1e-5, largest) for largest in (1, 100)]
    promises += [("cayley", condition, 1e-5, 10) for condition in (1, 50, 1e6)]
    for name, condition, tolerance, largest in promises:
        parametrization = parametrizations.get(name)
        weight = largest * conditioned(parametrization.weight_shape(shape), condition, rng)
        kernel = kernel_of(parametrization, shape)
        np.testing.assert_allclose(singular_values(kernel(weight)), 1, atol=tolerance, err_msg=f"{name} {condition}")


def test_training_keeps_the_constant_and_orthogonality(rng):
    """One model with all of them side by side, so that each backend compiles once."""
    shapes = [(24, 24), (40, 10)]
    inputs, outputs, layers = [], [], []
    for features, units in shapes:
        inputs.append(keras.Input((features,)))
        for name in DEFINITIONS:
            layers.append(lip.layers.SpectralDense(units, parametrization=name, k_coef_lip=0.5))
            outputs.append(layers[-1](inputs[-1]))
    model = keras.Model(inputs, keras.layers.Concatenate()(outputs))
    before = [to_numpy(layer.kernel) for layer in layers]
    model.compile(keras.optimizers.Adam(1e-2), lip.losses.MulticlassHKR())
    samples = [rng.normal(size=(320, features)).astype("float32") for features, _ in shapes]
    model.fit(samples, np.arange(320) % model.output_shape[-1], batch_size=16, verbose=0)
    moved = [np.linalg.norm(to_numpy(layer.kernel) - kernel) for layer, kernel in zip(layers, before, strict=True)]
    assert min(moved) > 0.02
    tolerance = {"bro": 1e-5, "cayley": 1e-5, "cholesky": 1e-5, "exponential": 1e-5}
    for layer, name in zip(layers, list(DEFINITIONS) * len(shapes), strict=True):
        values = singular_values(layer.kernel) / 0.5
        assert values.max() <= 1 + 1e-5
        if name in tolerance:
            assert values.min() >= 1 - tolerance[name], (name, layer.kernel.shape)
    for layer in layers:
        alone = keras.Sequential([keras.Input((layer.kernel.shape[0],)), layer])
        assert lip.certify(alone).lipschitz_constant <= 0.5 * (1 + 1e-5)


def test_aol_is_orthogonal_where_the_weight_is(rng):
    weight = conditioned((30, 20), 1, rng) * np.geomspace(1, 100, 20)
    kernel = kernel_of(parametrizations.get("aol"), (30, 20))
    np.testing.assert_allclose(singular_values(kernel(weight)), 1, atol=1e-5)


@pytest.mark.parametrize("name", sorted(DEFINITIONS.keys() - {"aol", "cayley"}))
def test_convolutions_are_refused(name):
    geometry = ConvolutionGeometry((3, 3), (1, 1), (1, 1))
    with pytest.raises(ValueError, match=r"`parametrization`. \w+ is one of dense layers.*Received: parametrization="):
        parametrizations.get(name).bind(1.0, geometry)


@every_name
def test_float64_is_kept_and_float16_is_not(name, rng):
    parametrization = parametrizations.get(name)
    weight = rng.normal(size=parametrization.weight_shape((6, 4)))
    half = parametrization.kernel(ops.convert_to_tensor(weight.astype("float16")), (6, 4))
    assert keras.backend.standardize_dtype(half.dtype) == "float32"
    if keras.backend.backend() == "tensorflow":  # Keras multiplies float64 matrices in float32 on torch, JAX has none
        double = parametrization.kernel(ops.convert_to_tensor(weight), (6, 4))
        assert keras.backend.standardize_dtype(double.dtype) == "float64"
