"""Orthogonal dense kernels by Cholesky factorisation: the Q of a QR decomposition, and products of reflections."""

from keras import ops

from deel_like_lip._registration import register
from deel_like_lip._typing import Tensor
from deel_like_lip.parametrizations.dense import DenseKernel, closing_step, gram, of_unit_size, with_ridge


@register
class CholeskyQR(DenseKernel):
    """Orthogonal kernels, the Q of the QR decomposition of a free weight, by a Cholesky factorisation.

    Dense layers only. The norm is never above `norm`, whatever the weight. Singular values are within 5e-4 of it as
    long as the weight's condition number is below 50, and within 1e-5 below 10. Directions in which the weight nearly
    vanishes come out shorter.

    Args:
        norm: The value of all singular values.
        geometry: As in `Parametrization`.

    Example:
        >>> layer = SpectralDense(3, parametrization=CholeskyQR())
        >>> layer(np.zeros((1, 4))).shape
        (1, 3)
        >>> np.round(keras.ops.convert_to_numpy(keras.ops.svd(layer.kernel, compute_uv=False)), 3)
        array([1., 1., 1.], dtype=float32)

    Reference:
        - Hu et al., 2024, [A recipe for improved certifiable robustness](https://arxiv.org/abs/2310.02513), which
          trains on it
        - Yamamoto et al., 2015, Roundoff error analysis of the CholeskyQR2 algorithm
    """

    def _tall_kernel(self, weight: Tensor, columns: int) -> Tensor:
        return cholesky_qr(weight)


@register
class BlockReflector(DenseKernel):
    """Orthogonal kernels `I - 2 V (V^T V)^-1 V^T` of a free weight V, or the first columns of such a matrix.

    Dense layers only. The norm is never above `norm`, whatever the weight. Singular values are within 1e-3 of it as
    long as the weight's condition number is below 50, and within 1e-5 below 10. The kernel reflects what V spans, half
    of the space or as many directions as the kernel has columns: square kernels have a half as many weights as entries.
    A weight of zeros, which has no direction, gets no gradient.

    Args:
        norm: The value of all singular values.
        geometry: As in `Parametrization`.

    Example:
        >>> layer = SpectralDense(3, parametrization=BlockReflector())
        >>> layer(np.zeros((1, 4))).shape
        (1, 3)
        >>> np.round(keras.ops.convert_to_numpy(keras.ops.svd(layer.kernel, compute_uv=False)), 3)
        array([1., 1., 1.], dtype=float32)

    Reference:
        Lai et al., 2025, [Enhancing certified robustness via block reflector orthogonal layers and logit annealing
        loss](https://arxiv.org/abs/2505.15174)
    """

    def _tall_weight_shape(self, rows: int, columns: int) -> tuple[int, int]:
        return rows, max(min(rows // 2, columns), 1)

    def _tall_kernel(self, weight: Tensor, columns: int) -> Tensor:
        return block_reflector(weight, columns)


def cholesky_qr(matrix: Tensor) -> Tensor:
    """Returns `W L^-T`, where `L L^T = W^T W` is a Cholesky factorisation.

    With a ridge r > 0 the square of the result, `W (W^T W + r)^-1 W^T`, is below that of r = 0, a projection.

    Args:
        matrix: Tensor of shape `(rows, columns)`, float32 or float64, with at least as many rows as columns.

    Returns:
        Tensor of the same shape and dtype, of norm at most 1.
    """
    matrix = of_unit_size(matrix)
    factor = ops.cholesky(with_ridge(gram(matrix)))
    return closing_step(ops.transpose(ops.solve_triangular(factor, ops.transpose(matrix), lower=True)))


def block_reflector(matrix: Tensor, columns: int) -> Tensor:
    """Returns the first columns of `I - 2 Q Q^T`, where Q is an orthonormal basis of the columns of a matrix.

    Where Q is not quite orthonormal, `0 <= Q Q^T <= I` still, so the norm of `I - 2 Q Q^T` is at most 1.

    Args:
        matrix: Tensor of shape `(rows, rank)`, float32 or float64.
        columns: How many columns to return.

    Returns:
        Tensor of shape `(rows, columns)`, of norm at most 1.
    """
    basis = cholesky_qr(matrix)
    reflected = ops.matmul(basis, ops.transpose(basis[:columns]))
    return ops.eye(matrix.shape[0], columns, dtype=matrix.dtype) - 2 * reflected
