"""Bounds of matrices and convolutions against explicit operators in float64."""

import numpy as np
import pytest

from deel_like_lip.bounds import convolution_bound, spectral_norm_bound
from deel_like_lip.bounds.convolution import symbol_bound
from deel_like_lip.bounds.rounding import product_up, root_sum_of_squares_up, sum_up
from tests.helpers import convolution_matrix, operator_norm


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (3, 5), (200, 100), (64, 64), (1, 300)])
@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_spectral_norm_is_exact_and_above(shape, scale, rng):
    for _ in range(20):
        matrix = scale * rng.normal(size=shape)
        exact = np.linalg.svd(matrix, compute_uv=False)[0]
        bound = spectral_norm_bound(matrix)
        assert exact <= bound * (1 + 1e-15)  # the reference itself is rounded
        assert bound <= exact * (1 + 1e-10)


def test_spectral_norm_of_hand_computed_cases():
    assert spectral_norm_bound(np.diag([3.0, -4.0])) == pytest.approx(4, rel=1e-13)
    assert spectral_norm_bound(np.ones((4, 9))) == pytest.approx(6, rel=1e-13)
    assert spectral_norm_bound(np.ones((4, 9))) >= 6
    assert spectral_norm_bound(np.zeros((3, 2))) == 0
    assert spectral_norm_bound(np.array([[np.nan, 1.0]])) == np.inf
    assert spectral_norm_bound(np.array([[np.inf, 1.0]])) == np.inf


def test_convolution_bound_is_never_below_the_operator(rng):
    ratios = []
    for trial in range(400):
        padding = ("valid", "same", "circular")[trial % 3]
        size_h, size_w = rng.integers(1, 6, 2)
        stride = int(rng.integers(1, 5))
        dilation = int(rng.integers(1, 4)) if stride == 1 else 1
        groups = int(rng.integers(1, 3))
        shape = (size_h, size_w, int(rng.integers(1, 4)), groups * int(rng.integers(1, 4)))
        kernel = rng.normal(size=shape) if trial % 2 else rng.uniform(0, 1, size=shape)
        extent = (max(size_h, size_w) - 1) * dilation + 1
        size = int(rng.integers(extent, extent + 6))
        if padding == "circular":
            size = stride * -(-size // stride)
        exact = operator_norm(convolution_matrix(kernel, size, stride, padding, dilation, groups))
        bound = convolution_bound(kernel, (stride, stride), (dilation, dilation), groups)
        assert exact <= bound * (1 + 1e-12), (shape, stride, dilation, groups, padding, size)
        ratios.append(bound / exact)
    # Small images are far from the supremum over all frequencies, which holds for every size.
    assert np.median(ratios) <= 1.1


def test_convolution_bound_is_near_the_operator_on_a_large_image(rng):
    for kernel_size, stride in [(3, 1), (5, 1), (3, 2), (4, 2)]:
        kernel = rng.normal(size=(kernel_size, kernel_size, 2, 3))
        exact = operator_norm(convolution_matrix(kernel, 24, stride, "circular"))
        assert exact <= convolution_bound(kernel, (stride, stride)) <= 1.03 * exact


def test_the_grid_of_the_symbol_is_fine_enough(rng):
    """The worst frequency of `1 + e^-iw` patterns may lie between grid points; the bound must cover it."""
    for _ in range(50):
        frequency = rng.uniform(0, 2 * np.pi, 2)
        rows, columns = np.exp(1j * frequency[0] * np.arange(3)), np.exp(1j * frequency[1] * np.arange(3))
        kernel = np.real(np.outer(rows, columns)).reshape(3, 3, 1, 1)
        grid = np.linspace(0, 2 * np.pi, 301)
        phases = np.exp(-1j * np.outer(grid, np.arange(3)))
        exact = np.max(np.abs(phases @ kernel[:, :, 0, 0] @ phases.T))
        assert exact <= symbol_bound(kernel) <= 1.02 * exact


@pytest.mark.parametrize(("size", "overlap"), [(28, 3), (4, 3)])
def test_the_reshaped_norm_alone_is_no_bound(size, overlap):
    """A 3x3 kernel of equal taps: norm 1 reshaped, 3 as an operator on a large image."""
    kernel = np.full((3, 3, 1, 1), 1 / 3)
    exact = operator_norm(convolution_matrix(kernel, size, 1, "same"))
    assert 1.5 < exact <= convolution_bound(kernel) <= overlap * (1 + 1e-12)


def test_outward_rounding():
    assert product_up(1.0, 1.0) == 1
    assert product_up(0.1, 3.0) > 0.1 * 3.0
    assert product_up(0.0, 5.0) == 0
    assert sum_up([0.1, 0.2, 0.3]) > 0.1 + 0.2 + 0.3
    assert root_sum_of_squares_up([0.7]) == 0.7
    assert root_sum_of_squares_up([3.0, 4.0]) >= 5
    assert root_sum_of_squares_up([]) == 0
