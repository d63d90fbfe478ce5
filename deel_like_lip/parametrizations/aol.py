"""Almost orthogonal dense kernels."""

from keras import ops

from deel_like_lip._registration import register
from deel_like_lip._typing import Tensor
from deel_like_lip.parametrizations.dense import DenseKernel, gram

# Squared length below which a column counts as short: it keeps the gradient at zero finite.
_TINY = 1e-12


@register
class AOL(DenseKernel):
    """Kernels of norm at most `norm`, by rescaling the columns of a free weight, or the rows of a wide one.

    Dense layers only. Columns that are orthogonal to all others get length `norm`, others a smaller one: the kernel is
    orthogonal where the weight is, up to a scale for each column, and training tends to lead there.

    Args:
        norm: The upper bound of the singular values.

    Reference:
        Prach and Lampert, 2022, [Almost-orthogonal layers for efficient general-purpose Lipschitz
        networks](https://arxiv.org/abs/2208.03160)
    """

    def _tall_kernel(self, weight: Tensor, columns: int) -> Tensor:
        return almost_orthogonal(weight)


def almost_orthogonal(matrix: Tensor) -> Tensor:
    """Divides each column of W by the square root of the sum of absolute values in its column of `W^T W`.

    With D the diagonal matrix of these sums, each diagonal entry of `D - W^T W` is the sum of the absolute values
    beside it, so that matrix is positive semi-definite: `W^T W <= D`, and the norm of `W D^(-1/2)` is at most 1. What
    is added to D only lowers it.

    Args:
        matrix: Tensor of shape `(rows, columns)`, float32 or float64.

    Returns:
        Tensor of the same shape and dtype, of norm at most 1.
    """
    return matrix * ops.rsqrt(ops.sum(ops.abs(gram(matrix)), axis=0) + _TINY)
