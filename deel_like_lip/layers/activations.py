"""Activations of groups of channels: 1-Lipschitz, and the norm of a gradient passes through them unchanged.

Each is a permutation or reflection of the input on every piece, so a network of orthogonal layers and these keeps its
gradient norm.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from deel_like_lip._fusion import one_pass
from deel_like_lip._registration import register
from deel_like_lip._typing import Shape, Tensor
from deel_like_lip.layers.base import built, fold_scale, scaled
from deel_like_lip.layers.channels import ChannelLayer, constant
from deel_like_lip.parametrizations import upstream_gradient


class _ChannelSort(ChannelLayer):
    """Views the channel axis as two axes, sorts along one of them, and views them as one again."""

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        if keras.backend.backend() != "tensorflow":
            of_pairs = sort_pairs if training else _sort_pairs_by_extrema
        else:  # there it is compiled by itself, for each size once
            of_pairs = sort_pairs if None in inputs.shape[1:] else _sort_pairs_in_one_pass
        return scaled(self._sorted(inputs, of_pairs), self.k_coef_lip)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        self._views(input_shape)
        return input_shape

    def fold(self) -> Callable[[Tensor], Tensor]:
        scale = fold_scale(self.k_coef_lip)

        def folded(inputs: Tensor) -> Tensor:
            unknown = None in inputs.shape[1:]
            return scale(self._sorted_by_channels(inputs) if unknown else self._sorted(inputs, _sort_pairs_by_extrema))

        return folded

    def _sorted(self, inputs: Tensor, of_pairs: Callable[[Tensor, int], Tensor]) -> Tensor:
        axis, view = self._views(inputs.shape)

        def sort(viewed: Tensor, axis: int) -> Tensor:
            axis += self._sorted_axis
            return of_pairs(viewed, axis) if view[self._sorted_axis] == 2 else ops.sort(viewed, axis=axis)

        return self._through_view(inputs, axis, view, sort)

    def _sorted_by_channels(self, inputs: Tensor) -> Tensor:
        """Sorts without a view: the graph of a model cannot give one two sizes that are not known."""
        axis, view = self._views(inputs.shape)
        channels, size = view[0] * view[1], view[self._sorted_axis]
        if size == channels:
            return ops.sort(inputs, axis=axis)
        if size != 2:
            raise ValueError(
                f"The {type(self).__name__} layer '{self.name}' with n={size} folds only where the size of its input "
                f"is known. Give the model an `Input` of fixed size. Received: input_shape={tuple(inputs.shape)}"
            )
        if self._sorted_axis == 0:
            return _sort_pairs_by_extrema(inputs, axis)
        apart = np.arange(channels).reshape(-1, 2).T.reshape(-1)  # the first of each pair, then the second
        outputs = _sort_pairs_by_extrema(ops.take(inputs, apart, axis=axis), axis)
        return ops.take(outputs, np.argsort(apart), axis=axis)

    # Which of the two axes of the view is sorted: 1 for neighbouring channels, 0 for channels that are far apart.
    _sorted_axis = 1

    def _views(self, shape: Shape) -> tuple[int, tuple[int, int]]:
        """Returns the channel axis, and the two sizes as which its channels are viewed."""
        axis, channels = self._channels(shape)
        size = channels if self._group_size is None else self._group_size
        if channels % size:
            raise ValueError(
                f"The {type(self).__name__} layer '{self.name}' sorts groups of n={size} channels, so the number of "
                f"channels must be a multiple of {size}. Received: {channels} channels, input_shape={tuple(shape)}"
            )
        groups = channels // size
        return axis, ((groups, size) if self._sorted_axis else (size, groups))

    @property
    def _group_size(self) -> int | None:
        """Number of channels that are sorted together, None for all."""
        return 2


def sort_pairs(inputs: Tensor, axis: int) -> Tensor:
    """Sorts an axis of size 2, such that the gradient at a tie leaves the order as it is and has norm 1.

    (Minimum and maximum give the whole gradient at a tie to one side on TensorFlow, which is a Jacobian of norm
    sqrt(2).) What is out of order is moved by the gap, so nothing is computed of values that stand in order, and what
    the gradient needs to know is one positive part.
    """
    left, right = ops.split(inputs, 2, axis=axis)
    gap = ops.relu(left - right)
    return inputs + ops.concatenate([-gap, gap], axis=axis)


def _sort_pairs_in_one_pass(inputs: Tensor, axis: int) -> Tensor:
    """Sorts like `sort_pairs`, on TensorFlow in one pass through memory forth and in one back."""

    @ops.custom_gradient
    def sort(values: Tensor) -> tuple[Tensor, Any]:
        def backward(*args: Tensor, upstream: Tensor = None) -> Tensor:
            gradient = upstream_gradient(args, upstream)
            with one_pass():
                left, right = ops.split(values, 2, axis=axis)
                gap = ops.subtract(*reversed(ops.split(gradient, 2, axis=axis)))
                gap = ops.where(left > right, gap, ops.zeros_like(gap))
                return gradient + ops.concatenate([gap, -gap], axis=axis)

        with one_pass():
            return sort_pairs(values, axis), backward

    return sort(inputs)


def _sort_pairs_by_extrema(inputs: Tensor, axis: int) -> Tensor:
    """Sorts an axis of size 2 by minimum and maximum: a graph that `certify` recognises, and fast on every runtime."""
    left, right = ops.split(inputs, 2, axis=axis)
    return ops.concatenate([ops.minimum(left, right), ops.maximum(left, right)], axis=axis)


@register
class GroupSort(_ChannelSort):
    """Sorts groups of `n` neighbouring channels in ascending order. 1-Lipschitz times `k_coef_lip`.

    Args:
        n: Number of channels in a group, at least 2, or None to sort all channels.
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration. Inputs of rank
            2 have their channels last in any case.
        k_coef_lip: Factor of the output, the Lipschitz constant of the layer.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        `(batch, ..., channels)`, or `(batch, channels, ...)` with `channels_first`.

    Output shape:
        The input's.

    Example:
        >>> GroupSort(2)(np.array([[3.0, 1.0, 2.0, 4.0]]))
        [[1.0, 3.0, 2.0, 4.0]]

    Raises:
        ValueError: If `n` is not an integer above 1, or does not divide the number of channels.

    Reference:
        Anil, Lucas and Grosse, 2019, [Sorting out Lipschitz function approximation](https://arxiv.org/abs/1811.05381)
    """

    def __init__(
        self, n: int | None = None, data_format: str | None = None, k_coef_lip: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(data_format=data_format, k_coef_lip=k_coef_lip, **kwargs)
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 2):
            raise ValueError(
                "Invalid value for argument `n` of GroupSort. Expected an integer of at least 2, or None to sort all "
                f"channels. Received: n={n}"
            )
        self.n = n

    @property
    def _group_size(self) -> int | None:
        return self.n

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "n": self.n}


@register
class GroupSort2(_ChannelSort):
    """Sorts each pair of neighbouring channels (2i, 2i + 1) in ascending order. 1-Lipschitz times `k_coef_lip`.

    The same as `GroupSort(2)`.

    Args:
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration. Inputs of rank
            2 have their channels last in any case.
        k_coef_lip: Factor of the output, the Lipschitz constant of the layer.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        `(batch, ..., channels)`, or `(batch, channels, ...)` with `channels_first`, an even number of channels.

    Output shape:
        The input's.

    Example:
        >>> GroupSort2()(np.array([[3.0, 1.0, 2.0, 4.0]]))
        [[1.0, 3.0, 2.0, 4.0]]

    Raises:
        ValueError: If the number of channels is odd.

    Reference:
        Anil, Lucas and Grosse, 2019, [Sorting out Lipschitz function approximation](https://arxiv.org/abs/1811.05381)
    """


@register
class MaxMin(_ChannelSort):
    """Puts the minimum of channels i and i + C/2 at i and their maximum at i + C/2. 1-Lipschitz times `k_coef_lip`.

    `GroupSort2` up to an order of the channels, and faster, since its operands are contiguous. (The `MaxMin` of
    deel-lip doubles the channels instead, `[relu(x), relu(-x)]`.)

    Args:
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration. Inputs of rank
            2 have their channels last in any case.
        k_coef_lip: Factor of the output, the Lipschitz constant of the layer.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        `(batch, ..., channels)`, or `(batch, channels, ...)` with `channels_first`, an even number C of channels.

    Output shape:
        The input's.

    Example:
        >>> MaxMin()(np.array([[3.0, 1.0, 2.0, 4.0]]))
        [[2.0, 1.0, 3.0, 4.0]]

    Raises:
        ValueError: If the number of channels is odd.

    Reference:
        Anil, Lucas and Grosse, 2019, [Sorting out Lipschitz function approximation](https://arxiv.org/abs/1811.05381)
    """

    _sorted_axis = 0


@register
class FullSort(_ChannelSort):
    """Sorts all channels in ascending order. 1-Lipschitz times `k_coef_lip`.

    The same as `GroupSort(None)`.

    Args:
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration. Inputs of rank
            2 have their channels last in any case.
        k_coef_lip: Factor of the output, the Lipschitz constant of the layer.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        `(batch, ..., channels)`, or `(batch, channels, ...)` with `channels_first`.

    Output shape:
        The input's.

    Example:
        >>> FullSort()(np.array([[3.0, 1.0, 2.0, 4.0]]))
        [[1.0, 2.0, 3.0, 4.0]]

    Reference:
        Anil, Lucas and Grosse, 2019, [Sorting out Lipschitz function approximation](https://arxiv.org/abs/1811.05381)
    """

    @property
    def _group_size(self) -> None:
        return None


@register
class Householder(ChannelLayer):
    """Reflects pairs of channels in learned directions. 1-Lipschitz times `k_coef_lip`.

    With `a` the angle of the pair z = (i, i + C/2) and v = (sin(a/2), -cos(a/2)), a pair with `v . z > 0` is reflected,
    `z - 2 (v . z) v`, and the others stay. The angle pi/2, from which all start, is `MaxMin`.

    Args:
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration. Inputs of rank
            2 have their channels last in any case.
        angle_initializer: Initializer of the angles, shape `(channels / 2,)`, by default the constant pi/2.
        k_coef_lip: Factor of the output, the Lipschitz constant of the layer.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        `(batch, ..., channels)`, or `(batch, channels, ...)` with `channels_first`, an even number C of channels.

    Output shape:
        The input's.

    Example:
        >>> Householder()(np.array([[3.0, 1.0, 2.0, 4.0]]))
        [[2.0, 1.0, 3.0, 4.0]]

    Raises:
        ValueError: If the number of channels is odd.

    Reference:
        Singla, Singla and Feizi, 2021, [Improved deterministic l2 robustness on CIFAR-10 and
        CIFAR-100](https://arxiv.org/abs/2108.04062)
    """

    def __init__(
        self, data_format: str | None = None, angle_initializer: Any = None, k_coef_lip: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(data_format=data_format, k_coef_lip=k_coef_lip, **kwargs)
        default = keras.initializers.Constant(math.pi / 2)
        self.angle_initializer = default if angle_initializer is None else keras.initializers.get(angle_initializer)

    def build(self, input_shape: Shape) -> None:
        self._channels_of_weights(input_shape)
        _, channels = self._pairs(input_shape)
        self.angle = self.add_weight(
            shape=(channels // 2,), initializer=self.angle_initializer, name="angle", autocast=False
        )
        self.built = True

    def call(self, inputs: Tensor) -> Tensor:
        sine, cosine = (self._spread(function(self.angle / 2), inputs) for function in (ops.sin, ops.cos))
        return scaled(self._reflected(inputs, (sine, -cosine), (2 * sine, -2 * cosine)), self.k_coef_lip)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        self._pairs(input_shape)
        return input_shape

    def fold(self) -> Callable[[Tensor], Tensor]:
        angle = constant(built(self).angle)
        # Rounded towards zero, so that |v| <= 1 and no reflection of the folded model enlarges anything.
        half, zero = angle.astype(np.float64) / 2, angle.dtype.type(0)
        vectors = [np.nextafter(values.astype(angle.dtype), zero) for values in (np.sin(half), -np.cos(half))]
        scale = fold_scale(self.k_coef_lip)

        def folded(inputs: Tensor) -> Tensor:
            first, second = (self._spread_constant(vector, inputs) for vector in vectors)
            return scale(self._reflected(inputs, (first, second), (2 * first, 2 * second)))

        return folded

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "angle_initializer": keras.initializers.serialize(self.angle_initializer)}

    def _reflected(self, inputs: Tensor, vector: tuple[Any, Any], twice: tuple[Any, Any]) -> Tensor:
        """Reflects where the product with `vector` is positive: a form that `certify` recognises.

        Half of the plane stays and `relu` has the gradient 0 at 0, so the gradient of a pair on the border keeps its
        norm.
        """
        axis, _ = self._pairs(inputs.shape)
        first, second = ops.split(inputs, 2, axis=axis)
        part = ops.relu(first * vector[0] + second * vector[1])
        return ops.concatenate([first - part * twice[0], second - part * twice[1]], axis=axis)

    def _pairs(self, shape: Shape) -> tuple[int, int]:
        """Returns the channel axis and the number of channels, which has to be even."""
        axis, channels = self._channels(shape)
        if channels % 2:
            raise ValueError(
                f"The Householder layer '{self.name}' reflects pairs of channels, so the number of channels must be "
                f"even. Received: {channels} channels, input_shape={tuple(shape)}"
            )
        return axis, channels
