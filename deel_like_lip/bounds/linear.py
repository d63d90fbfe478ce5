"""Upper bounds of the spectral norm of matrices."""

import numpy as np
import numpy.typing as npt

from deel_like_lip.bounds.rounding import EPSILON, root_up


def spectral_norm_bound(matrices: npt.ArrayLike) -> float:
    """Returns an upper bound of the largest spectral norm in a stack of matrices.

    It is exact up to rounding, which is bounded too. The computed Gram matrix G of W (m terms a sum) differs from the
    exact one by at most `gamma_m |W|_F^2` in norm, and `eigvalsh`, being backward stable, finds its largest eigenvalue
    to within a modest multiple of `n eps |G|`, for which `8 n eps |W|_F^2` is ample.

    Args:
        matrices: Real or complex array of shape `(..., rows, columns)`.

    Returns:
        The bound, 0 for matrices of zeros and infinity for matrices that are not finite.
    """
    given = np.asarray(matrices)
    stack = given.astype(np.complex128 if np.iscomplexobj(given) else np.float64)
    if not np.all(np.isfinite(stack)):
        return float("inf")
    largest = float(np.max(np.abs(stack), initial=0.0))
    if largest == 0:
        return 0.0
    # Powers of two are exact: scaling keeps the squares away from overflow and underflow.
    scale = 2.0 ** np.ceil(np.log2(largest))
    stack = stack / scale
    rows, columns = stack.shape[-2:]
    if rows < columns:
        stack = np.swapaxes(stack, -1, -2)  # the norm is that of the transpose
    gram = np.conj(np.swapaxes(stack, -1, -2)) @ stack
    eigenvalues = np.linalg.eigvalsh(gram)
    squared_frobenius = np.sum(np.abs(stack) ** 2, axis=(-2, -1))
    rounding = EPSILON * (2 * max(rows, columns) + 8 * min(rows, columns) + 16) * squared_frobenius
    squared = float(np.max(np.maximum(eigenvalues[..., -1], 0) + rounding))
    return float(scale * root_up(squared))
