"""What layers share that treat the channel axis by itself."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from deel_like_lip._typing import Shape, Tensor
from deel_like_lip._validation import checked_data_format
from deel_like_lip.layers.base import LipschitzLayer, channel_axis

Array = npt.NDArray[Any]


class ChannelLayer(LipschitzLayer):
    """A layer that knows where the channels are and how many. Keeps the shape of its input, unless a subclass does not.

    Args:
        data_format: `"channels_last"` or `"channels_first"`, by default that of the Keras configuration. Inputs of rank
            2 have their channels last in any case.
        k_coef_lip: The constant that the layer promises, a positive finite number.
    """

    def __init__(self, data_format: str | None = None, k_coef_lip: float = 1.0, **kwargs: Any) -> None:
        super().__init__(k_coef_lip=k_coef_lip, **kwargs)
        self.data_format = checked_data_format(data_format, type(self).__name__)
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        self.compute_output_shape(input_shape)
        self.built = True

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        self._channels(input_shape)
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "data_format": self.data_format}

    def _channels(self, shape: Shape) -> tuple[int, int]:
        """Returns the axis of the channels and their number."""
        axis = channel_axis(self.data_format, shape)
        channels = shape[axis]
        if len(shape) < 2 or channels is None:
            raise ValueError(
                f"The {type(self).__name__} layer '{self.name}' expects an input of rank at least 2 whose number of "
                f"channels is known. Received: input_shape={tuple(shape)}"
            )
        return axis, channels

    def _channels_of_weights(self, shape: Shape) -> tuple[int, int]:
        """Returns the same in `build`, for weights of each channel: then no other number of them is taken."""
        axis, channels = self._channels(shape)
        expected = {1 if self.data_format == "channels_first" else -1: channels}
        self.input_spec = keras.InputSpec(min_ndim=2, axes=expected)
        return axis, channels

    def _along_channels(self, count: int, rank: int) -> tuple[int, ...]:
        """Returns the shape of `count` values, one for each channel, that broadcasts to inputs of a rank."""
        return (count, *(1,) * (rank - 2)) if self.data_format == "channels_first" else (count,)

    def _spread(self, values: Tensor, inputs: Tensor) -> Tensor:
        """Returns one value for each channel in such a shape, in the dtype of the inputs."""
        shape = self._along_channels(values.shape[0], len(inputs.shape))
        return ops.cast(ops.reshape(values, shape), inputs.dtype)

    def _spread_constant(self, values: Array, inputs: Tensor) -> Array:
        """Returns the same of a constant of a folded model."""
        return values.reshape(self._along_channels(len(values), len(inputs.shape)))

    def _through_view(
        self, inputs: Tensor, axis: int, view: tuple[int, int], change: Callable[[Tensor, int], Tensor]
    ) -> Tensor:
        """Views the channel axis as two, applies `change` to that and the first of them, and views them as one."""
        lead, tail = [-1, *inputs.shape[1:axis]], list(inputs.shape[axis + 1 :])
        if None in lead or None in tail:
            shape = ops.shape(inputs)
            lead, tail = [-1, *shape[1:axis]], list(shape[axis + 1 :])
        changed = change(ops.reshape(inputs, (*lead, *view, *tail)), axis)
        return ops.reshape(changed, (*lead, view[0] * view[1], *tail))


def constant(weight: Tensor) -> Array:
    """Returns a weight as a constant of a folded model, in float32 or float64."""
    array: Array = ops.convert_to_numpy(weight)
    return array if array.dtype == np.float64 else array.astype(np.float32)
