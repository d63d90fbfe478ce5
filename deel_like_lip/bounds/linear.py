"""Upper bounds of the spectral norm of matrices."""

import math

import numpy as np
import numpy.typing as npt

from deel_like_lip.bounds.rounding import EPSILON, root_up, up

# Up to here the eigenvalues of the Gram matrix are cheaper than its repeated squares: of one matrix, and of a stack.
_LARGEST_EIGENPROBLEM = 1536
_LARGEST_EIGENPROBLEM_OF_A_STACK = 24
# By how much the bound by squaring may exceed the squared norm, and the number of squarings that reaches it anyway.
_TOLERANCE = 2e-4
_MAX_SQUARINGS = 16
_CHUNK_ENTRIES = 2**23

FloatStack = npt.NDArray[np.float64] | npt.NDArray[np.complex128]


def spectral_norm_bound(matrices: npt.ArrayLike, floor: float = 0.0) -> float:
    """Returns an upper bound of the largest spectral norm in a stack of matrices.

    Small ones are exact up to rounding, which is bounded too; large ones are bounded by Gram iteration to within 0.01
    per cent.

    Args:
        matrices: Real or complex array of shape `(..., rows, columns)`.
        floor: A norm below which the bound need not be close.

    Returns:
        The bound, 0 for matrices of zeros and infinity for matrices that are not finite.

    Example:
        >>> round(spectral_norm_bound([[3.0, 0.0], [0.0, -4.0]]), 6)
        4.0
    """
    given = np.asarray(matrices)
    stack = given.astype(np.complex128 if np.iscomplexobj(given) else np.float64)
    stack = stack.reshape(-1, *stack.shape[-2:])
    if not np.all(np.isfinite(stack)):
        return math.inf
    largest = float(np.max(np.abs(stack), initial=0.0))
    if largest == 0:
        return 0.0
    # Powers of two are exact: scaling keeps the squares away from overflow and underflow.
    scale = 2.0 ** math.ceil(math.log2(largest))
    rows, columns = stack.shape[-2:]
    if rows < columns:
        stack = np.swapaxes(stack, -1, -2)  # the norm is that of the transpose
    small = min(rows, columns)
    step = max(1, _CHUNK_ENTRIES // (small * small))
    squared, reached = 0.0, (floor / scale) ** 2
    for start in range(0, len(stack), step):
        part = stack[start : start + step] / scale
        gram = np.conj(np.swapaxes(part, -1, -2)) @ part
        frobenius = np.sum(np.abs(part) ** 2, axis=(-2, -1))
        # Of the sums of products, relative to the sum of all squares (and of the squares themselves).
        error = EPSILON * (4 * max(rows, columns) + 16) * frobenius
        squared = max(squared, largest_eigenvalue_bound(gram, error, floor=max(reached, squared * (1 - _TOLERANCE))))
    return scale * root_up(squared)


def largest_eigenvalue_bound(grams: FloatStack, errors: npt.NDArray[np.float64], floor: float = 0.0) -> float:
    """Returns an upper bound of the largest eigenvalue in a stack of positive semidefinite matrices.

    Args:
        grams: Hermitian matrices, shape `(matrices, n, n)`.
        errors: How far each may be, in spectral norm, from the positive semidefinite one that is meant.
        floor: What is known to be reached elsewhere; matrices that stay below it need no closer look.
    """
    count, size = grams.shape[:2]
    limit = _LARGEST_EIGENPROBLEM if count == 1 else _LARGEST_EIGENPROBLEM_OF_A_STACK
    if size > limit:
        return _by_squaring(grams, errors, floor)
    # `eigvalsh` is backward stable: a modest multiple of n eps |G|, for which 8 n eps |G|_F is ample.
    eigenvalues = np.linalg.eigvalsh(grams)[:, -1]
    backward = EPSILON * (8 * size + 8) * np.sqrt(np.sum(np.abs(grams) ** 2, axis=(-2, -1)))
    return float(np.max(np.maximum(eigenvalues, 0) + backward + errors, initial=0.0)) * (1 + 4 * EPSILON)


def _by_squaring(grams: FloatStack, errors: npt.NDArray[np.float64], floor: float) -> float:
    """Gram iteration: the 2^t-th root of a norm of `G^(2^t)` is an upper bound after every number t of squarings.

    Of the matrices A = G^(2^t) / C that it keeps, the norm is bounded by the smaller of the Frobenius norm and the
    largest row sum; their distance from the exact ones is carried along. What stays below the largest value that is
    surely reached by another matrix is dropped, at the bound that it had.

    Reference:
        Delattre et al., 2023, [Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram
        Iteration](https://arxiv.org/abs/2305.16173)
    """
    size = grams.shape[-1]
    product_error = EPSILON * (4 * size + 16)
    frobenius = _frobenius(grams)
    alive = frobenius > 0
    result = float(np.max(errors[~alive], initial=0.0))
    frobenius, matrices = frobenius[alive], grams[alive] / frobenius[alive][:, None, None]
    distance = errors[alive] / frobenius + 2 * EPSILON
    log_scale, power = np.log(frobenius), 1.0
    for _ in range(_MAX_SQUARINGS):
        if not len(matrices):
            break
        rows = np.max(np.sum(np.abs(matrices), axis=-1), axis=-1) * (1 + EPSILON * (size + 4))
        norm = np.minimum(1 + 8 * EPSILON, rows)
        # (Logarithms of moderate numbers: their own rounding is far below 1e-13.)
        upper = np.exp((log_scale + np.log(norm + distance)) / power) * (1 + 1e-13)
        traces = np.real(np.trace(matrices, axis1=-2, axis2=-1))
        lower = np.exp((log_scale - np.log(np.maximum(traces, 1e-300))) / power)  # tr(A^2) / tr(A), with |A|_F = 1
        floor = max(floor, float(np.max(lower)))
        done = upper <= floor * (1 + _TOLERANCE)
        result = max(result, float(np.max(upper[done], initial=0.0)))
        matrices, distance, norm = matrices[~done], distance[~done], norm[~done]
        log_scale, upper = log_scale[~done], upper[~done]
        squares = matrices @ matrices
        frobenius = _frobenius(squares)
        distance = (2 * norm * distance + distance**2 + product_error) / frobenius + 2 * EPSILON
        matrices = squares / frobenius[:, None, None]
        log_scale = 2 * log_scale + np.log(frobenius)
        power *= 2
    else:
        result = max(result, float(np.max(upper, initial=0.0)))
    return up(result)


def _frobenius(matrices: FloatStack) -> npt.NDArray[np.float64]:
    norms: npt.NDArray[np.float64] = np.sqrt(np.sum(np.abs(matrices) ** 2, axis=(-2, -1)))
    return norms
