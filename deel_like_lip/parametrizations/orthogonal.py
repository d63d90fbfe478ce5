"""Orthogonal kernels: the polar factor, and how to stay near it.

The Newton-Schulz step `p(x) = 1.5 x - 0.5 x^3` on the singular values is the work-horse. It maps every singular value
in [0, 2] into [0, 1], so whatever was computed before it, a kernel that has just been through it has norm at most 1: it
is what makes both maps below sound. Near 1 it squares the distance, so a kernel that an optimizer has moved a little
needs one step. The number of steps adapts to the move, so that no learning rate leaves a kernel that is far from
orthogonal.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from deel_like_lip._registration import register
from deel_like_lip._typing import Shape, Tensor
from deel_like_lip.parametrizations.base import (
    ReshapedKernel,
    as_matrix,
    from_matrix,
    gram_matrix,
    probe,
    transpose,
    upstream_gradient,
)

# A step leaves singular values of at least 1 - 3/8 e^2, where e = |W^T W - I| before it. So stopping after a step that
# found e below the first leaves less than 6e-4. In training, where the next update undoes the digits that a second step
# would add, stopping below the other leaves about 1e-2 at worst, and less than 1e-4 once
# updates are a tenth of that.
_CLOSE_ENOUGH = 0.04
CLOSE_ENOUGH_IN_TRAINING = 0.1
# From a smallest singular value of 1e-7 of the largest, growth by 1.5 a step takes 40 steps.
_MAX_STEPS = 60
# Beyond this e a kernel is brought near by Polar Express.
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
    """

    def start(self, initializer: Any, shape: Shape, dtype: Any = None) -> Tensor:
        if type(initializer) is keras.initializers.Orthogonal and initializer.gain == 1 and self.groups == 1:
            # What it returns needs no projection. On torch its columns lie in one piece; training wants rows.
            return ops.reshape(ops.reshape(initializer(shape, dtype=dtype) * self.norm, (-1,)), shape)
        return super().start(initializer, shape, dtype)

    def project(self, kernel: Tensor) -> Tensor:
        return self._by_matrix(orthogonalize, kernel)

    def retract(self, kernel: Tensor) -> Tensor:
        return self._by_matrix(functools.partial(retract, close_enough=CLOSE_ENOUGH_IN_TRAINING), kernel)

    def tangent_gradient(self, kernel: Tensor, gradient: Tensor) -> Tensor:
        matrix, direction = as_matrix(kernel, self.groups), as_matrix(gradient, self.groups)
        return ops.cast(from_matrix(tangent(matrix, direction, self.norm), gradient.shape), gradient.dtype)

    def tangent_matmul(self, inputs: Tensor, kernel: Tensor) -> Tensor:
        """Returns `inputs @ kernel`; the gradient that reaches the kernel is tangent.

        With inputs X, outputs Y = X W, and gradients D of the outputs and C = D W^T of the inputs, the gradient of W is
        G = X^T D, and W^T G = Y^T D, W D^T Y = C^T Y. So `G - W sym(W^T G) = (X - Y W^T / 2)^T D - C^T Y / 2` where W
        has orthogonal columns, and `X^T (D - C W / 2) - C^T Y / 2` where it has orthogonal rows: two more products of
        the batch's size, instead of two of the kernel's.
        """
        half = 0.5 / self.norm**2

        @ops.custom_gradient
        def product(x: Tensor, w: Tensor) -> tuple[Tensor, Any]:
            y = ops.matmul(x, w)
            rows, columns = w.shape

            def backward(*args: Tensor, upstream: Tensor = None) -> tuple[Tensor, Tensor]:
                d = upstream_gradient(args, upstream)
                wt = ops.transpose(w)
                c = ops.matmul(d, wt)

                def through_the_batch() -> Tensor:
                    left, right = x, d
                    if rows < columns:
                        right = d - ops.matmul(c, w) * half
                    else:
                        left = x - ops.matmul(y, wt) * half
                    left, right = ops.concatenate([left, c * -half]), ops.concatenate([right, y])
                    return ops.matmul(ops.transpose(left), right)

                def through_the_smaller_side() -> Tensor:
                    inner = ops.matmul(ops.transpose(x), c) if rows < columns else ops.matmul(ops.transpose(y), d)
                    normal = (inner + ops.transpose(inner)) * half
                    removed = ops.matmul(normal, w) if rows < columns else ops.matmul(w, normal)
                    return ops.matmul(ops.transpose(x), d) - removed

                batch = ops.shape(x)[0]
                small, large = sorted((rows, columns))
                fewer = batch <= small * large // (2 * large - small)  # multiplications, of the first
                if isinstance(fewer, bool):
                    tangent = through_the_batch() if fewer else through_the_smaller_side()
                else:  # TensorFlow traces `fit` without the batch size
                    tangent = ops.cond(fewer, through_the_batch, through_the_smaller_side)
                return c, tangent

            return y, backward

        outputs = product(ops.reshape(inputs, (-1, kernel.shape[0])), ops.cast(kernel, inputs.dtype))
        return outputs if len(inputs.shape) == 2 else ops.reshape(outputs, (*ops.shape(inputs)[:-1], kernel.shape[1]))

    def _by_matrix(self, function: Callable[[Tensor, float], Tensor], kernel: Tensor) -> Tensor:
        kernel = ops.convert_to_tensor(kernel)
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
    inner = ops.matmul(left, right)
    normal = (inner + transpose(inner)) * (0.5 / norm**2)
    return direction - _times(matrix, normal)


def retract(matrix: Tensor, norm: float = 1.0, close_enough: float = _CLOSE_ENOUGH) -> Tensor:
    """Returns `norm` times the polar factor of a matrix, by Newton-Schulz steps until it is reached.

    One step where the matrix is near; a stack goes on until each of its matrices is. Every singular value of the result
    is at most `norm`, up to the rounding of the dtype, and by default at least 1 - 1e-3 of it; where the matrix is
    singular, its zero singular values stay zero. Not meant to be differentiated: on JAX it cannot be.

    Args:
        matrix: Tensor of shape `(..., rows, columns)`, float32 or float64.
        norm: The value of all singular values.
        close_enough: The distance `|W^T W / norm^2 - I|` from which one step more is the last.

    Returns:
        Tensor of the same shape and dtype.

    Reference:
        Björck and Bowie, 1971, An iterative algorithm for computing the best estimate of an orthogonal matrix.
    """

    def newton_schulz(matrix: Tensor) -> tuple[Tensor, Tensor]:
        # With G = W^T W / norm^2: numbers and vectors only, but for G and the result. Memory that is touched for the
        # first time costs more than arithmetic.
        gram = gram_matrix(matrix)
        unit = 1 / norm**2
        size = gram.shape[-1]
        squared_length = _dot(gram, gram) * unit**2
        trace = _dot(matrix, matrix) * unit
        from_identity = ops.sqrt(ops.maximum(squared_length - 2 * trace + size, 0.0))
        # Both bound the largest squared singular value. The start is scaled only where that may exceed 2.9, inside the
        # basin of the step, which reaches to 3; after one step no singular value is above 1.
        bound = ops.minimum(1 + from_identity, ops.sqrt(squared_length))
        squared_scale = ops.maximum(bound / 2.9, 1.0)
        distance = _largest_eigenvalue_estimate(gram, unit / squared_scale)
        scale = ops.sqrt(squared_scale)
        cubic = _times(matrix, gram * (-0.5 * unit / (scale * squared_scale)))
        return matrix * (1.5 / scale) + cubic, distance

    # The first step stands outside of the loop, which is rarely entered: loops keep compilers from fusing.
    loop = ops.while_loop(
        lambda matrix, distance: distance > close_enough,
        lambda matrix, distance: newton_schulz(matrix),
        newton_schulz(matrix),
        maximum_iterations=_MAX_STEPS,
    )
    return loop[0]


def orthogonalize(matrix: Tensor, norm: float = 1.0, close_enough: float = _CLOSE_ENOUGH) -> Tensor:
    """Returns the same as `retract`, of a matrix that may be far, by Polar Express and closing Newton-Schulz steps.

    A matrix whose smallest singular value is 1e-3 of the largest takes eight steps instead of twenty.

    Args:
        matrix: Tensor of shape `(..., rows, columns)`, float32 or float64.
        norm: The value of all singular values.
        close_enough: As in `retract`.

    Returns:
        Tensor of the same shape and dtype.

    Reference:
        Amsel, Persson, Musco and Gower, 2025, [The Polar Express](https://arxiv.org/abs/2505.16932)
    """
    gram = gram_matrix(matrix)
    identity = ops.eye(gram.shape[-1], dtype=gram.dtype)

    def polar_express() -> Tensor:
        bound = ops.max(ops.sum(ops.abs(gram), axis=-1, keepdims=True), axis=-2, keepdims=True)
        near = matrix / ops.sqrt(ops.where(bound > 0, bound, 1.0))
        for first, third, fifth in _POLAR_EXPRESS:
            square = gram_matrix(near)
            near = _times(near, first * identity + ops.matmul(square, third * identity + fifth * square))
        return near * norm

    far = _largest_eigenvalue_estimate(gram, 1 / norm**2) > _FAR
    return retract(ops.cond(far, polar_express, lambda: matrix), norm, close_enough)


def _times(matrix: Tensor, factor: Tensor) -> Tensor:
    """Multiplies the smaller side of a matrix."""
    return ops.matmul(factor, matrix) if matrix.shape[-2] < matrix.shape[-1] else ops.matmul(matrix, factor)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Returns the sum of the products of the entries, without an intermediate tensor where there is one matrix.

    Of a stack there is one sum for each matrix, shape `(..., 1, 1)`.
    """
    if len(left.shape) == 2:
        return ops.dot(ops.reshape(left, (-1,)), ops.reshape(right, (-1,)))
    return ops.sum(left * right, axis=(-2, -1), keepdims=True)


def _largest_eigenvalue_estimate(gram: Tensor, scale: Any) -> Tensor:
    """Estimates the spectral norm of `scale * gram - I` from below, by three power iterations; the largest of a stack.

    It only decides when to stop, so it need not be a bound; a norm that it could miss would cost accuracy, not
    soundness.
    """
    vector = ops.convert_to_tensor(probe(gram.shape[-1]), dtype=gram.dtype)
    for _ in range(3):
        previous, vector = vector, ops.matmul(gram, vector) * scale - vector
    tiny = float(np.finfo("float32").tiny)
    ratio = ops.sum(vector * vector, axis=(-2, -1)) / (ops.sum(previous * previous, axis=(-2, -1)) + tiny)
    return ops.sqrt(ratio if len(gram.shape) == 2 else ops.max(ratio))
