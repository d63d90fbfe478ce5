"""Orthogonal dense kernels by the matrix exponential."""

from keras import ops

from deel_like_lip._registration import register
from deel_like_lip._typing import Tensor
from deel_like_lip.parametrizations.cholesky import cholesky_qr
from deel_like_lip.parametrizations.dense import DenseKernel, closing_step, or_one

# Norm of a skew matrix above which it is scaled down; one of norm pi reaches every rotation. What is compared is an
# upper bound, by a factor of at most n^(1/8).
_LARGEST = 8.0
_SQUARINGS = 4


@register
class Exponential(DenseKernel):
    """Orthogonal kernels, the exponential of the skew part of a free weight.

    Dense layers only. The norm is never above `norm`, whatever the weight, and singular values are within 1e-5 of it.
    With more than twice as many rows as columns that needs what `CholeskyQR` needs of the weight without its first
    rows. A square kernel is a rotation.

    Args:
        norm: The value of all singular values.
        geometry: As in `Parametrization`.

    Example:
        >>> layer = SpectralDense(3, parametrization=Exponential())
        >>> layer(np.zeros((1, 4))).shape
        (1, 3)
        >>> np.round(keras.ops.convert_to_numpy(keras.ops.svd(layer.kernel, compute_uv=False)), 3)
        array([1., 1., 1.], dtype=float32)

    Reference:
        - Lezcano-Casado and Martínez-Rubio, 2019, [Cheap orthogonal constraints in neural
          networks](https://arxiv.org/abs/1901.08428)
        - Edelman, Arias and Smith, 1998, [The geometry of algorithms with orthogonality
          constraints](https://arxiv.org/abs/physics/9806030), for kernels that are not square
    """

    def _tall_kernel(self, weight: Tensor, columns: int) -> Tensor:
        return exponential_columns(weight)


def exponential_columns(matrix: Tensor) -> Tensor:
    """Returns the first columns of the exponential of a skew matrix that is given by its first columns.

    With U the upper square of the matrix, V the rest and `S = U - U^T`, it is `exp([[S, -V^T], [V, 0]])`. Where
    `V = Q R` has more rows than columns, that acts on what the first columns and Q span as the smaller
    `[[S, -R^T], [R, 0]]` does. The norm is at most that of the smaller exponential, as `|Q| <= 1`.

    Args:
        matrix: Tensor of shape `(rows, columns)`, float32 or float64, with at least as many rows as columns.

    Returns:
        Tensor of the same shape and dtype, with orthonormal columns, of norm at most 1.
    """
    rows, columns = matrix.shape
    upper, lower = matrix[:columns], matrix[columns:]
    basis = cholesky_qr(lower) if rows > 2 * columns else None
    if basis is not None:
        lower = ops.matmul(ops.transpose(basis), lower)
    left = ops.concatenate([upper - ops.transpose(upper), lower])
    right = ops.concatenate([-ops.transpose(lower), ops.zeros((lower.shape[0],) * 2, dtype=matrix.dtype)])
    result = skew_exponential(ops.concatenate([left, right], axis=1))[:, :columns]
    if basis is not None:
        result = ops.concatenate([result[:columns], ops.matmul(basis, result[columns:])])
    return closing_step(result)


def skew_exponential(skew: Tensor) -> Tensor:
    """Returns the exponential of a skew matrix, scaled down where its norm may be above 8.

    By the Taylor polynomial of degree 8 at a sixteenth of the matrix, of norm a half at most, which errs by less than
    1e-8, and four squarings.
    """
    identity = ops.eye(skew.shape[0], dtype=skew.dtype)
    largest = or_one(ops.stop_gradient(ops.max(ops.abs(skew))))
    unit = skew / largest  # no power of it overflows
    second = ops.matmul(unit, unit)
    fourth = ops.matmul(second, second)
    # The norm of A is at most the eighth root of |A^4|^2.
    bound = ops.sum(ops.square(fourth))
    limit = (_LARGEST / largest) ** 8
    too_large = bound > limit
    scale = ops.where(too_large, _LARGEST * ops.where(too_large, bound, 1.0) ** (-1 / 8), largest) / 2**_SQUARINGS
    first, second, fourth = unit * scale, second * scale**2, fourth * scale**4
    third = ops.matmul(first, second)
    high = identity / 24 + first / 120 + second / 720 + third / 5040 + fourth / 40320
    result = identity + first + second / 2 + third / 6 + ops.matmul(fourth, high)
    for _ in range(_SQUARINGS):
        result = ops.matmul(result, result)
    return result
