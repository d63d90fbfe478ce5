"""Sorting activations: 1-Lipschitz, and the norm of a gradient passes through them unchanged.

Each is a permutation of the input on every piece, so a network of orthogonal layers and sorts keeps its gradient norm.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from deel_like_lip._fusion import fused
from deel_like_lip._registration import register
from deel_like_lip._typing import Shape, Tensor
from deel_like_lip.layers.base import LipschitzLayer, channel_axis, fold_scale, scaled


class _ChannelSort(LipschitzLayer):
    """Views the channel axis as two axes, sorts along one of them, and views them as one again."""

    def __init__(self, data_format: str | None = None, k_coef_lip: float = 1.0, **kwargs: Any) -> None:
        super().__init__(k_coef_lip=k_coef_lip, **kwargs)
        data_format = keras.config.image_data_format() if data_format is None else data_format
        if data_format not in ("channels_last", "channels_first"):
            raise ValueError(
                f"Invalid value for argument `data_format` of {type(self).__name__}. Expected 'channels_last' or "
                f"'channels_first'. Received: data_format={data_format}"
            )
        self.data_format = data_format
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        self._views(input_shape)
        self.built = True

    def call(self, inputs: Tensor) -> Tensor:
        return scaled(self._through_view(inputs, _sort_pairs), self.k_coef_lip)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        self._views(input_shape)
        return input_shape

    def fold(self) -> Callable[[Tensor], Tensor]:
        scale = fold_scale(self.k_coef_lip)
        return lambda inputs: scale(self._through_view(inputs, _sort_pairs_by_extrema))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "data_format": self.data_format}

    def _through_view(self, inputs: Tensor, sort_pairs: Callable[[Tensor, int], Tensor]) -> Tensor:
        axis, view = self._views(inputs.shape)
        lead, tail = [-1, *inputs.shape[1:axis]], list(inputs.shape[axis + 1 :])
        if None in lead or None in tail:
            shape = ops.shape(inputs)
            lead, tail = [-1, *shape[1:axis]], list(shape[axis + 1 :])
        sort_axis = axis + self._sorted_axis
        viewed = ops.reshape(inputs, (*lead, *view, *tail))
        viewed = sort_pairs(viewed, sort_axis) if view[self._sorted_axis] == 2 else ops.sort(viewed, axis=sort_axis)
        return ops.reshape(viewed, (*lead, view[0] * view[1], *tail))

    # Which of the two axes of the view is sorted: 1 for neighbouring channels, 0 for channels that are far apart.
    _sorted_axis = 1

    def _views(self, shape: Shape) -> tuple[int, tuple[int, int]]:
        """Returns the channel axis, and the two sizes as which its channels are viewed."""
        axis = channel_axis(self.data_format, shape)
        channels = shape[axis]
        if len(shape) < 2 or channels is None:
            raise ValueError(
                f"The {type(self).__name__} layer '{self.name}' expects an input of rank at least 2 whose number of "
                f"channels is known. Received: input_shape={tuple(shape)}"
            )
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


@fused
def _sort_pairs(inputs: Tensor, axis: int) -> Tensor:
    """Sorts an axis of size 2, such that the gradient at a tie leaves the order as it is and has norm 1.

    (Minimum and maximum give the whole gradient at a tie to one side on TensorFlow, which is a Jacobian of norm
    sqrt(2).) What is out of order is moved by the gap, so nothing is computed of values that stand in order, and what
    the gradient needs to know is one positive part.
    """
    left, right = ops.split(inputs, 2, axis=axis)
    gap = ops.relu(left - right)
    return inputs + ops.concatenate([-gap, gap], axis=axis)


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
