"""The contract of a parametrization, and the one way in which it touches a gradient."""

import abc
from typing import Any

from keras import ops

from deel_like_lip._typing import Tensor


class Parametrization(abc.ABC):
    """A set of allowed kernels, with the two maps that training on it needs.

    Instances are immutable and hashable, hold no tensor, and work under every compiler of the three backends. They are
    callable, so that one can be handed to Keras as the constraint of a variable: Keras then projects the kernel inside
    the compiled step, right after the optimizer's update.
    """

    @abc.abstractmethod
    def project(self, kernel: Tensor) -> Tensor:
        """Returns the allowed kernel that belongs to `kernel`, in its shape and dtype."""

    @abc.abstractmethod
    def tangent_gradient(self, kernel: Tensor, gradient: Tensor) -> Tensor:
        """Returns the part of `gradient` along which an allowed `kernel` can move and stay allowed, to first order."""

    def __call__(self, kernel: Tensor) -> Tensor:
        return self.project(kernel)


def with_tangent_gradient(parametrization: Parametrization, kernel: Tensor) -> Tensor:
    """Returns `kernel` unchanged, such that the gradient that reaches it is tangent to the allowed kernels.

    The optimizer's moments then hold no component that the projection would remove again, which is what makes a cheap
    projection train as well as an exact one.
    """

    @ops.custom_gradient
    def identity(value: Tensor) -> tuple[Tensor, Any]:
        def backward(*args: Tensor, upstream: Tensor = None) -> Tensor:
            gradient = args[-1] if upstream is None else upstream  # torch names it, the others do not
            return parametrization.tangent_gradient(value, gradient)

        return value, backward

    return identity(ops.copy(kernel))  # of a variable it must be the value: TensorFlow wants no variables in here
