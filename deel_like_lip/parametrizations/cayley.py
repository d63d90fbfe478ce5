"""Orthogonal dense kernels by the Cayley transform."""

from keras import ops

from deel_like_lip._registration import register
from deel_like_lip._typing import Tensor
from deel_like_lip.parametrizations.dense import DenseKernel, closing_step, gram, with_ridge


@register
class Cayley(DenseKernel):
    """Orthogonal kernels, the Cayley transform of a free weight.

    Dense layers only. The norm is never above `norm`, whatever the weight, and singular values are within 1e-5 of it as
    long as those of the weight are below 10. A square kernel is a rotation that turns nothing by 180 degrees.

    Args:
        norm: The value of all singular values.

    Reference:
        Trockman and Kolter, 2021, [Orthogonalizing convolutional layers with the Cayley
        transform](https://arxiv.org/abs/2104.07167)
    """

    def _tall_kernel(self, weight: Tensor, columns: int) -> Tensor:
        return cayley(weight)


def cayley(matrix: Tensor) -> Tensor:
    """Returns the Cayley transform of a matrix with at least as many rows as columns.

    With U the upper square of the matrix, V the rest and `M = I + U - U^T + V^T V`, it is `2 M^-1 - I` on top of
    `-2 V M^-1`. Its Gram matrix is `I + 2 M^-T (2 + 2 V^T V - M - M^T) M^-1 = I`, and less where M has a ridge more.

    Args:
        matrix: Tensor of shape `(rows, columns)`, float32 or float64.

    Returns:
        Tensor of the same shape and dtype, with orthonormal columns, of norm at most 1.
    """
    columns = matrix.shape[1]
    upper, lower = matrix[:columns], matrix[columns:]
    identity = ops.eye(columns, dtype=matrix.dtype)
    inverse = ops.inv(with_ridge(identity + upper - ops.transpose(upper) + gram(lower)))
    return closing_step(ops.concatenate([2 * inverse - identity, -2 * ops.matmul(lower, inverse)]))
