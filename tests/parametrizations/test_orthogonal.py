"""The polar factor: how close, how safe, and with which gradient."""

import numpy as np
import pytest
from keras import ops

from deel_like_lip.parametrizations import Frobenius, Orthogonal, orthogonalize, with_tangent_gradient
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
    values = singular_values(Orthogonal().project(moved))
    assert values.max() <= 1 + 2e-6
    assert values.min() >= 1 - 1e-3


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
