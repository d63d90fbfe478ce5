"""Orthogonal kernels: the polar factor, and how to stay near it.

The Newton-Schulz step `p(x) = 1.5 x - 0.5 x^3` on the singular values is the work-horse. It maps every singular value
in [0, 2] into [0, 1], so whatever was computed before it, a kernel that has just been through it has norm at most 1.
Near 1 it squares the distance, so a kernel that an optimizer has moved a little needs one step. In training a kernel
that has hardly moved is not even worth that: it is scaled until its norm is at most 1, and left at that.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from deel_like_lip._fusion import compiled
from deel_like_lip._registration import register
from deel_like_lip._typing import Shape, Tensor
from deel_like_lip.parametrizations.base import (
    TINY,
    ReshapedKernel,
    as_matrix,
    from_matrix,
    gram_matrix,
    probe,
    row_times,
    squared_length,
    times_column,
    transpose,
    upstream_gradient,
)

# In training, a kernel is only scaled as long as its squared singular values differ by no more than this share of their
# mean, as estimated from below by power iteration. The true share is 1.3 times that where eigenvalues lie in a
# semicircle, and at most 2.3 times in a simulation of updates of many kinds: kernels are scaled by more than that.
_SPREAD = 0.06
_SPREAD_FACTOR = 2.5
# A Newton-Schulz step leaves singular values of at least 1 - 3/8 e^2, where e = |W^T W - I| before it. So stopping
# after a step that found e below the first leaves less than 2e-6, and below the other, in training, about 1e-2.
_CLOSE_ENOUGH = 2e-3
_CLOSE_ENOUGH_IN_TRAINING = 0.2
# From a smallest singular value of 1e-7 of the largest, growth by 1.5 a step takes 40 steps. In training the next
# update goes on where these end.
_MAX_STEPS = 60
_MAX_STEPS_IN_TRAINING = 20
# Beyond this e the first step starts from a scaled kernel, or from Polar Express.
_FAR = 0.9
# The polynomials a x + b x^3 + c x^5 of Polar Express for singular values in [1e-3, 1], by the recursion of the
# paper: each is the nearest to 1 in the maximum norm on the interval that the one before it leaves. The last leaves
# values within 1e-3 of 1.
_POLAR_EXPRESS = (
    (8.470329, -25.108075, 18.629276),
    (4.182834, -3.108701, 0.580607),
    (3.961857, -2.954064, 0.562976),
    (3.286586, -2.464720, 0.507358),
    (2.273750, -1.644660, 0.416191),
    (1.888716, -1.265157, 0.376519),
)


@register
class Orthogonal(ReshapedKernel):
    """Kernels whose singular values are all `norm`.

    A kernel of any rank stands for the matrix with its last axis as columns, or for one such matrix for each group of a
    convolution. A matrix with at least as many rows as columns has orthogonal columns, a wider one orthogonal rows.

    Args:
        norm: The value of all singular values.
        geometry: As in `Parametrization`.

    Example:
        >>> kernel = Orthogonal(norm=2.0).project(np.diag([8.0, 4.0]))
        >>> np.round(kernel, 3)
        array([[2., 0.],
               [0., 2.]])
    """

    def start(self, initializer: Any, shape: Shape, dtype: Any = None) -> Tensor:
        if type(initializer) is keras.initializers.Orthogonal and initializer.gain == 1 and self.groups == 1:
            # What it returns needs no projection. On torch its columns lie in one piece; training wants rows.
            return ops.reshape(ops.reshape(initializer(shape, dtype=dtype) * self.norm, (-1,)), shape)
        return super().start(initializer, shape, dtype)

    def project(self, kernel: Tensor) -> Tensor:
        return self._by_matrix(orthogonalize, kernel)

    def retract(self, kernel: Tensor) -> Tensor:
        return self._by_matrix(_stay_near, kernel)

    def tangent_gradient(self, kernel: Tensor, gradient: Tensor) -> Tensor:
        matrix, direction = as_matrix(kernel, self.groups), as_matrix(gradient, self.groups)
        return ops.cast(from_matrix(tangent(matrix, direction, self.norm), gradient.shape), gradient.dtype)

    def tangent_matmul(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Returns `inputs @ kernel`; the gradient that reaches the kernel is tangent.

        With inputs X, outputs Y = X W, and gradients D of the outputs and C = D W^T of the inputs, the gradient of W is
        G = X^T D, and W^T G = Y^T D, W D^T Y = C^T Y. So `G - W sym(W^T G) = (X - Y W^T / 2)^T D - C^T Y / 2` where W
        has orthogonal columns, and `X^T (D - C W / 2) - C^T Y / 2` where it has orthogonal rows: two more products of
        the batch's size, instead of two of the kernel's: which it is depends on the batch, but the result does not.
        Where W is square, so that W W^T is 1 too, it is `(X^T D - C^T Y) / 2`: only one more. (So is
        `W (Y^T D - D^T Y) / 2`, of fewer multiplications for large batches. But in training W is orthogonal up to a
        factor only: then the two differ, and a batch that is split among devices would have another gradient.)
        """
        half = 0.5 / self.norm**2

        @ops.custom_gradient
        def product(x: Tensor, w: Tensor) -> tuple[Tensor, Any]:
            outputs = x @ w
            y = ops.stop_gradient(outputs)  # torch never frees an output that its own backward function refers to
            rows, columns = w.shape

            def backward(*args: Tensor, upstream: Tensor = None) -> tuple[Tensor, Tensor]:
                d = upstream_gradient(args, upstream)
                wt = ops.transpose(w)
                batch = ops.shape(x)[0] if x.shape[0] is None else x.shape[0]
                small, large = sorted((rows, columns))
                # Multiplications, of the first way.
                fewer = rows == columns or batch <= small * large // (2 * large - small)
                # Torch, which compiles nothing, also passes x: it tells whether its gradient is of use to anybody.
                wanted = not args or getattr(args[0], "requires_grad", True)
                needed = wanted or rows < columns or fewer is not False
                c: Any = d @ wt if needed else None

                def through_the_batch() -> Tensor:
                    left, right = x, d
                    if rows == columns:
                        left = x * 0.5
                    elif rows < columns:
                        right = d - c @ w * half
                    else:
                        left = x - y @ wt * half
                    left, right = ops.concatenate([left, c * -half]), ops.concatenate([right, y])
                    return ops.transpose(left) @ right

                def through_the_smaller_side() -> Tensor:
                    inner = ops.transpose(x) @ c if rows < columns else ops.transpose(y) @ d
                    normal = (inner + ops.transpose(inner)) * half
                    removed = normal @ w if rows < columns else w @ normal
                    return ops.transpose(x) @ d - removed

                if isinstance(fewer, bool):
                    tangent = through_the_batch() if fewer else through_the_smaller_side()
                else:  # TensorFlow traces `fit` without the batch size
                    tangent = ops.cond(fewer, through_the_batch, through_the_smaller_side)
                return c, tangent

            return outputs, backward

        inputs, kernel = ops.convert_to_tensor(inputs), ops.cast(kernel, inputs.dtype)
        if len(inputs.shape) == 2:
            return product(inputs, kernel)
        outputs = product(ops.reshape(inputs, (-1, kernel.shape[0])), kernel)
        return ops.reshape(outputs, (*ops.shape(inputs)[:-1], kernel.shape[1]))

    def _by_matrix(self, function: Callable[[Tensor, float], Tensor], kernel: Tensor) -> Tensor:
        matrix = function(as_matrix(kernel, self.groups), self.norm)
        return ops.cast(from_matrix(matrix, kernel.shape), kernel.dtype)


def tangent(matrix: Tensor, direction: Tensor, norm: float = 1.0) -> Tensor:
    """Returns the part of a direction along which an orthogonal matrix stays orthogonal, to first order.

    Args:
        matrix: Tensor of shape `(..., rows, columns)` whose singular values are `norm`.
        direction: Tensor of the same shape.
        norm: The value of all singular values.
    """
    wide = matrix.shape[-2] < matrix.shape[-1]
    left, right = (direction, transpose(matrix)) if wide else (transpose(matrix), direction)
    inner = left @ right
    normal = (inner + transpose(inner)) * (0.5 / norm**2)
    return direction - _times(matrix, normal)


@compiled
def orthogonalize(matrix: Tensor, norm: float = 1.0, close_enough: float = _CLOSE_ENOUGH) -> Tensor:
    """Returns `norm` times the polar factor of a matrix, or of each matrix of a stack.

    Where the matrix is far, by Polar Express and closing Newton-Schulz steps: one whose smallest singular value is 1e-3
    of the largest takes eight steps instead of twenty. A stack takes the steps that its farthest matrix needs. Every
    singular value of the result is at most `norm`, up to the rounding of the dtype, and by default at least 1 - 1e-3 of
    it; where the matrix is singular, its zero singular values stay zero. Not meant to be differentiated: on JAX it
    cannot be.

    Args:
        matrix: Tensor of shape `(..., rows, columns)`, float32 or float64.
        norm: The value of all singular values.
        close_enough: The distance `|W^T W / norm^2 - I|` from which one step more is the last.

    Returns:
        Tensor of the same shape and dtype.

    Example:
        >>> result = orthogonalize(keras.ops.convert_to_tensor([[0.0, 5.0], [-3.0, 0.0]]))
        >>> np.round(keras.ops.convert_to_numpy(result), 3) + 0.0
        array([[ 0.,  1.],
               [-1.,  0.]], dtype=float32)

    Reference:
        - Björck and Bowie, 1971, An iterative algorithm for computing the best estimate of an orthogonal matrix.
        - Amsel, Persson, Musco and Gower, 2025, [The Polar Express](https://arxiv.org/abs/2505.16932)
    """
    unit = 1 / norm**2
    gram = gram_matrix(matrix)
    # Row sums bound the largest eigenvalue. The start is scaled where they do not exclude a squared singular value
    # above 3, beyond which the steps would diverge.
    squared_scale = ops.maximum(_largest_row_sum(gram) * (unit / 2.9), 1.0)
    scaled = matrix / ops.sqrt(squared_scale)
    far = _distance_from_identity(gram, unit / squared_scale[..., 0]) > _FAR
    near = ops.cond(far, lambda: _polar_express(matrix, gram) * norm, lambda: scaled)
    begin = ops.convert_to_tensor(math.inf, dtype=matrix.dtype)
    return _newton_schulz(near, begin, norm, close_enough, _MAX_STEPS)


@compiled
def _stay_near(matrix: Tensor, norm: float) -> Tensor:
    """Returns the kernel after an update: scaled if the update was small, and near its polar factor otherwise.

    Singular values end in about [0.88, 1] times `norm`. That they are at most 1 rests on an estimate, which
    `orthogonalize`, at the next call of the callback, does not. A stack takes the steps that its farthest matrix needs.
    """
    mean, spread = _squared_singular_values(matrix)
    farthest = _largest(spread)
    above = ops.where((farthest <= _SPREAD) | (spread > _FAR), 1 + _SPREAD_FACTOR * spread, 1.0)
    start = matrix * (norm * (mean * above) ** -0.5)[..., None, None]
    # A spread of `_SPREAD` is the distance from which on the loop begins.
    distance = farthest * (_CLOSE_ENOUGH_IN_TRAINING / _SPREAD)
    return _newton_schulz(start, distance, norm, _CLOSE_ENOUGH_IN_TRAINING, _MAX_STEPS_IN_TRAINING)


def _squared_singular_values(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean of the squared singular values, and their largest distance from it, relative to it.

    It is a norm of W^T W / mean - I, estimated from below by eight products of the kernel with a vector.
    """
    wide = matrix.shape[-2] < matrix.shape[-1]
    size = min(matrix.shape[-2:])
    mean = squared_length(matrix, 2) * (1 / size) + TINY

    def deviation(vector: Tensor) -> Tensor:
        image = row_times(vector, matrix) if wide else times_column(matrix, vector)
        square = times_column(matrix, image) if wide else row_times(image, matrix)
        return square / mean[..., None] - vector

    return mean, _norm_from_below(deviation, (*matrix.shape[:-2], size), matrix.dtype)


def _newton_schulz(matrix: Tensor, distance: Tensor, norm: float, close_enough: float, max_steps: int) -> Tensor:
    """Repeats `1.5 x - 0.5 x^3` on the singular values until a step began near enough to be the last.

    Args:
        matrix: Its singular values must be below sqrt(3) times `norm`.
        distance: How far from orthogonal it is: nothing is done where that is near enough.
        norm: Where singular values go.
        close_enough: The distance `|W^T W / norm^2 - I|` from which one step more is the last.
        max_steps: The largest number of steps.
    """
    unit = 1 / norm**2

    def step(matrix: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        # Memory that is touched for the first time costs more than arithmetic: few tensors of the kernel's size.
        gram = gram_matrix(matrix)
        return matrix * 1.5 + _times(matrix, gram * (-0.5 * unit)), _distance_from_identity(gram, unit)

    loop = ops.while_loop(
        lambda matrix, distance: distance > close_enough,
        step,
        (matrix, distance),
        maximum_iterations=max_steps,
    )
    return loop[0]


def _polar_express(matrix: Tensor, gram: Tensor) -> Tensor:
    """Returns a matrix near the polar factor of one that has this Gram matrix."""
    bound = _largest_row_sum(gram)
    identity = ops.eye(gram.shape[-1], dtype=gram.dtype)
    coefficients = ops.convert_to_tensor(np.array(_POLAR_EXPRESS), dtype=gram.dtype)

    def polynomial(index: Tensor, near: Tensor) -> Tensor:
        first, third, fifth = ops.unstack(ops.take(coefficients, index, axis=0))
        square = gram_matrix(near)
        return _times(near, first * identity + square @ (third * identity + fifth * square))

    near = matrix / ops.sqrt(ops.where(bound > 0, bound, 1.0))
    return ops.fori_loop(0, len(_POLAR_EXPRESS), polynomial, near)


def _times(matrix: Tensor, factor: Tensor) -> Tensor:
    """Multiplies the smaller side of a matrix."""
    return factor @ matrix if matrix.shape[-2] < matrix.shape[-1] else matrix @ factor


def _largest_row_sum(gram: Tensor) -> Tensor:
    """Returns the largest sum of absolute values in a row, a bound of the largest eigenvalue; shape `(..., 1, 1)`."""
    return ops.max(ops.sum(ops.abs(gram), axis=-1, keepdims=True), axis=-2, keepdims=True)


def _distance_from_identity(gram: Tensor, scale: Any) -> Tensor:
    """Estimates the spectral norm of `scale * gram - I` from below; the largest of a stack."""
    return _largest(
        _norm_from_below(lambda vector: times_column(gram, vector) * scale - vector, gram.shape[:-1], gram.dtype)
    )


def _largest(values: Tensor) -> Tensor:
    """Returns the largest value of a stack, or the only one."""
    return ops.max(values) if len(values.shape) else values


def _norm_from_below(symmetric: Callable[[Tensor], Tensor], shape: tuple[int, ...], dtype: Any) -> Tensor:
    """Estimates the norm of a symmetric map of vectors, or those of a stack, by four power iterations."""
    vector = ops.convert_to_tensor(np.broadcast_to(probe(shape[-1]), shape), dtype=dtype)
    previous, vector = ops.fori_loop(0, 4, lambda _, pair: (pair[1], symmetric(pair[1])), (vector, vector))
    return (squared_length(vector, 1) / (squared_length(previous, 1) + TINY)) ** 0.5
