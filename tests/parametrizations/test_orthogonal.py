"""The polar factor: how close, how safe, and with which gradient."""

import numpy as np
import pytest
from keras import ops

from deel_like_lip.parametrizations import (
    ConvolutionGeometry,
    Frobenius,
    Orthogonal,
    Spectral,
    orthogonalize,
    with_tangent_gradient,
)
from tests.helpers import singular_values, to_numpy, vector_jacobian_product

SHAPES = [(64, 32), (32, 64), (48, 48), (10, 1), (1, 10), (3, 3, 4, 8), (3, 3, 8, 100)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("norm", [1.0, 0.3, 5.0])
def test_project_of_any_kernel_is_orthogonal(shape, scale, norm, rng):
    kernel = ops.convert_to_tensor((scale * rng.normal(size=shape)).astype("float32"))
    values = singular_values(Orthogonal(norm).project(kernel)) / norm
    assert values.max() <= 1 + 2e-6
    assert values.min() >= 1 - 1e-3


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("move", [1e-5, 1e-3, 1e-2, 0.1, 10.0])
def test_project_after_an_update_of_any_size(shape, move, rng):
    start = Orthogonal().project(ops.convert_to_tensor(rng.normal(size=shape).astype("float32")))
    moved = start + ops.convert_to_tensor((move * np.sign(rng.normal(size=shape))).astype("float32"))
    for values in (singular_values(Orthogonal().project(moved)), singular_values(orthogonalize(as_columns(moved)))):
        assert values.max() <= 1 + 2e-6
        assert values.min() >= 1 - 1e-3
    values = singular_values(Orthogonal().retract(moved))  # which only scales what has hardly moved
    assert values.max() <= 1 + 2e-6
    assert values.min() >= 0.88


UPDATES = {
    "dense": lambda rng, shape: rng.normal(size=shape),
    "of signs": lambda rng, shape: np.sign(rng.normal(size=(shape[0], 1)) @ rng.normal(size=(1, shape[1]))),
    "of low rank": lambda rng, shape: rng.normal(size=(shape[0], 2)) @ rng.normal(size=(2, shape[1])),
    "sparse": lambda rng, shape: np.sign(rng.normal(size=shape)) * (rng.random(shape) < 0.05),
}


@pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES.keys())
@pytest.mark.parametrize("shape", [(96, 48), (32, 32), (8, 20)])
def test_retract_holds_the_norm_after_updates_of_many_kinds(shape, update, rng):
    start = to_numpy(Orthogonal().project(ops.convert_to_tensor(rng.normal(size=shape).astype("float32"))))
    scaled_only = 0
    for size in np.geomspace(1e-3, 1, 25):
        move = update(rng, shape)
        moved = start + size * move / max(np.linalg.norm(move, 2), 1e-6)
        values = singular_values(Orthogonal().retract(ops.convert_to_tensor(moved.astype("float32"))))
        assert values.max() <= 1 + 2e-6
        assert values.min() >= 0.88
        spread = np.ptp(np.linalg.svd(moved, compute_uv=False))
        scaled_only += abs(np.ptp(values) / spread - 1) < 0.1
    assert 5 <= scaled_only <= 20  # both ways were taken


def as_columns(kernel):
    return ops.reshape(kernel, (-1, kernel.shape[-1]))


def test_orthogonalize_returns_the_nearest_orthogonal_matrix(rng):
    matrix = rng.normal(size=(20, 12))
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    result = to_numpy(orthogonalize(ops.convert_to_tensor(matrix.astype("float32"))))
    np.testing.assert_allclose(result, left @ right, atol=2e-4)


def test_ill_conditioned_kernel(rng):
    left, _, right = np.linalg.svd(rng.normal(size=(32, 32)))
    matrix = left @ np.diag(np.geomspace(1, 1e-3, 32)) @ right
    values = singular_values(orthogonalize(ops.convert_to_tensor(matrix.astype("float32"))))
    assert values.max() <= 1 + 2e-6
    assert values.min() >= 1 - 1e-3


def test_a_singular_kernel_stays_within_the_bound_and_finite(rng):
    column = rng.normal(size=(16, 1)).astype("float32")
    values = singular_values(Orthogonal().project(ops.convert_to_tensor(np.repeat(column, 4, axis=1))))
    assert values.max() == pytest.approx(1, abs=1e-3)
    assert values.max() <= 1 + 2e-6
    zeros = to_numpy(Orthogonal().project(ops.zeros((16, 4))))
    assert np.all(zeros == 0)


def test_nan_stays_visible():
    kernel = np.eye(4, dtype="float32")
    kernel[0, 0] = np.nan
    assert np.isnan(to_numpy(Orthogonal().project(ops.convert_to_tensor(kernel)))).any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtype_is_kept(dtype, rng):
    kernel = ops.cast(ops.convert_to_tensor(rng.normal(size=(16, 8)).astype("float32")), dtype)
    projected = Orthogonal().project(kernel)
    assert ops.dtype(projected) == dtype
    tolerance = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 1e-3}[dtype]
    np.testing.assert_allclose(singular_values(ops.cast(projected, "float32")), 1, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", [1.0, 0.3])
def test_tangent_gradient(shape, norm, rng):
    parametrization = Orthogonal(norm)
    left, _, right = np.linalg.svd(rng.normal(size=shape).reshape(-1, shape[-1]), full_matrices=False)
    kernel = (norm * left @ right).reshape(shape).astype("float32")
    cotangent = rng.normal(size=shape).astype("float32")
    gradient = vector_jacobian_product(lambda k: with_tangent_gradient(parametrization, k), kernel, cotangent)
    matrix, tangent, original = (x.reshape(-1, shape[-1]).astype("float64") for x in (kernel, gradient, cotangent))
    if matrix.shape[0] < matrix.shape[1]:
        matrix, tangent, original = matrix.T, tangent.T, original.T
    inner = matrix.T @ tangent
    # Tangent to the orthogonal kernels: W^T G is skew.
    np.testing.assert_allclose(inner + inner.T, 0, atol=2e-5)
    # And what was removed is normal: W times a symmetric matrix, so nothing tangent was lost.
    removed = original - tangent
    symmetric = matrix.T @ removed / norm**2
    np.testing.assert_allclose(symmetric, symmetric.T, atol=2e-4)
    np.testing.assert_allclose(matrix @ symmetric, removed, atol=2e-4)


@pytest.mark.parametrize("norm", [1.0, 0.3])
@pytest.mark.parametrize("batch", [(3,), (2000,), (5, 7)])  # few and many samples take different ways
@pytest.mark.parametrize("shape", [(20, 12), (12, 20), (16, 16), (9, 1), (1, 9)])
def test_tangent_matmul(shape, batch, norm, rng):
    """Product and gradients are those of `inputs @ kernel` with the gradient of the kernel made tangent."""
    parametrization = Orthogonal(norm)
    kernel = to_numpy(parametrization.project(ops.convert_to_tensor(rng.normal(size=shape).astype("float32"))))
    inputs = rng.normal(size=(*batch, shape[0])).astype("float32")
    cotangent = rng.normal(size=(*batch, shape[1])).astype("float32")
    product = to_numpy(parametrization.tangent_matmul(ops.convert_to_tensor(inputs), ops.convert_to_tensor(kernel)))
    np.testing.assert_allclose(product, inputs @ kernel, atol=1e-5)
    backward = vector_jacobian_product(
        lambda x: parametrization.tangent_matmul(x, ops.convert_to_tensor(kernel)), inputs, cotangent
    )
    np.testing.assert_allclose(backward, cotangent @ kernel.T, atol=1e-5)
    tangent = vector_jacobian_product(
        lambda k: parametrization.tangent_matmul(ops.convert_to_tensor(inputs), k), kernel, cotangent
    )
    gradient = np.einsum("bi,bo->io", inputs.reshape(-1, shape[0]), cotangent.reshape(-1, shape[1]))
    expected = to_numpy(
        parametrization.tangent_gradient(ops.convert_to_tensor(kernel), ops.convert_to_tensor(gradient))
    )
    np.testing.assert_allclose(tangent, expected, atol=1e-5 * np.abs(gradient).max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_spectral(shape, scale, rng):
    parametrization = Spectral(0.5)
    kernel = ops.convert_to_tensor((scale * rng.normal(size=shape)).astype("float32"))
    projected, retracted = (to_numpy(f(kernel)) for f in (parametrization.project, parametrization.retract))
    assert 0.99 <= singular_values(projected).max() / 0.5 <= 1 + 2e-6
    assert 1 - 1e-6 <= singular_values(retracted).max() / 0.5 <= 1.15
    ratio = projected / to_numpy(kernel)
    np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-5)  # nothing but a scale
    for function in (parametrization.project, parametrization.retract):
        assert np.all(to_numpy(function(ops.zeros(shape))) == 0)


def test_forward_value_is_unchanged(rng):
    kernel = rng.normal(size=(8, 4)).astype("float32")
    assert np.array_equal(to_numpy(with_tangent_gradient(Orthogonal(), ops.convert_to_tensor(kernel))), kernel)


@pytest.mark.parametrize("per_output", [False, True])
def test_frobenius(per_output, rng):
    parametrization = Frobenius(0.7, per_output)
    kernel = rng.normal(size=(3, 3, 4, 5)).astype("float32")
    projected = to_numpy(parametrization.project(ops.convert_to_tensor(kernel)))
    axes = (0, 1, 2) if per_output else None
    np.testing.assert_allclose(np.sqrt(np.sum(projected.astype("float64") ** 2, axis=axes)), 0.7, rtol=1e-6)
    cotangent = rng.normal(size=kernel.shape).astype("float32")
    gradient = vector_jacobian_product(lambda k: with_tangent_gradient(parametrization, k), projected, cotangent)
    np.testing.assert_allclose(np.sum(gradient * projected, axis=axes), 0, atol=1e-5)


def test_frobenius_of_zeros_is_zeros():
    kernel = np.array([[0.0, 3.0], [0.0, 4.0]], "float32")
    projected = to_numpy(Frobenius(1.0, per_output=True).project(ops.convert_to_tensor(kernel)))
    np.testing.assert_allclose(projected, [[0.0, 0.6], [0.0, 0.8]], rtol=1e-6)


def test_parametrizations_are_hashable_values():
    assert Orthogonal(0.5) == Orthogonal(0.5)
    assert hash(Frobenius(1.0, True)) == hash(Frobenius(1.0, True))
    assert Frobenius(1.0, True) != Frobenius(1.0, False)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_gradient_of_spectral_kernels_is_that_of_the_kernel_divided_by_its_norm(groups, rng):
    """Up to the norm: `d/dW <G, W / |W|> = (G - <G, W> u v^T / |W|) / |W|`; the first group has the largest."""
    kernel, gradient = rng.normal(size=(2, 3, 2, 2, 4 * groups)).astype("float32")
    kernel[..., :4] += 3.0  # the group with the largest norm, which is far above its second singular value
    geometry = ConvolutionGeometry((3, 2), (1, 1), (1, 1), groups=groups)
    parametrization = Spectral().bind(1.0, geometry)
    left, values, right = np.linalg.svd(kernel[..., :4].reshape(-1, 4).astype("float64"), full_matrices=False)
    expected = gradient.astype("float64")
    removed = np.sum(gradient * kernel) / values[0] * np.outer(left[:, 0], right[0])
    expected[..., :4] -= removed.reshape(3, 2, 2, 4)
    found = to_numpy(parametrization.tangent_gradient(ops.convert_to_tensor(kernel), ops.convert_to_tensor(gradient)))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_gradient_of_a_spectral_kernel_of_zeros_is_the_plain_one(rng):
    gradient = rng.normal(size=(4, 3)).astype("float32")
    found = Spectral().tangent_gradient(ops.zeros((4, 3)), ops.convert_to_tensor(gradient))
    assert np.array_equal(to_numpy(found), gradient)
